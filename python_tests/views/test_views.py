"""The language of views: every code means what it says, and no operator takes a code or a table that says nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import pytest
import torch
from equikern import GridAction, cyclic_group, field, grid, matrix, permutation, tokens, trivial
from equikern.views import EXACT, FLOATS, KINDS, Views, of, still, transposed
from equikern.views.grid import compose, inverse_word, numbers, turn_grid, upright
from helpers.looped import each
from helpers.oracles import CASES
from helpers.strategies import bits, random_bits, random_values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

IMAGES = ["".join(word) for a in ("hw", "wh") for word in product(*((s, s.upper()) for s in a))]
VOLUMES = ["".join(word) for a in permutations("dhw") for word in product(*((s, s.upper()) for s in a))]
SIGNED = EXACT - {torch.bool, torch.uint8}
IDS = {torch.int32, torch.int64}

# By code: what is not as in {kind: …, words: what is behind the colon, all else nothing}.
CODES: dict[str, dict[str, Any]] = {
    ".": {"kind": "still", "codes": b"\0", "dtypes": EXACT},
    ". . .": {"kind": "still", "codes": b"\0\0\0", "dtypes": EXACT},
    "hw": {"kind": "grid", "sides": 2, "dims": 2, "axes": (None,), "codes": b"\0", "dtypes": EXACT},
    "hw Wh HW wH": {
        "kind": "grid", "sides": 2, "dims": 2, "axes": (None, (-1, -2), None, (-1, -2)), "codes": bytes((0, 5, 6, 3)),
        "turns": True, "dtypes": EXACT,
    },
    "hW Hw wh WH": {
        "kind": "grid", "sides": 2, "dims": 2, "axes": (None, None, (-1, -2), (-1, -2)), "codes": bytes((4, 2, 1, 7)),
        "turns": True, "dtypes": EXACT,
    },
    "dhw DhW whd": {
        "kind": "grid", "sides": 3, "dims": 3, "axes": (None, None, (-1, -2, -3)),
        "codes": bytes((4, 4 + 16 + 64, 2 + 4)), "turns": True, "dtypes": EXACT,
    },
    "permutation -1 5: . x": {
        "kind": "permutation", "dims": 1, "dim": -1, "size": 5, "codes": b"\0\1", "dtypes": EXACT,
        "table_shape": (5, None),
    },
    "permutation -3 50257 adjoint: . x ~": {
        "kind": "permutation", "dims": 3, "dim": -3, "size": 50257, "codes": b"\0\1\2", "signed": True,
        "adjoint": True, "dtypes": SIGNED, "table_shape": (7, None),
    },
    "tokens 9: . x": {"kind": "tokens", "size": 9, "codes": b"\0\0", "dtypes": IDS, "table_shape": (2, 2, 9)},
    "tokens 9 adjoint: x": {
        "kind": "tokens", "size": 9, "codes": b"\0", "adjoint": True, "dtypes": IDS, "table_shape": (2, 1, 9),
    },
    "matrix 3: x x": {
        "kind": "matrix", "dims": 1, "dim": -1, "size": 3, "signed": True, "codes": b"\0\0", "dtypes": FLOATS,
        "table_shape": (4, 2, 3, 3),
    },
    "matrix 64 inverse adjoint: x": {
        "kind": "matrix", "dims": 1, "dim": -1, "size": 64, "signed": True, "codes": b"\0", "dtypes": FLOATS,
        "adjoint": True, "inverse": True, "table_shape": (4, 1, 64, 64),
    },
    "field 8: hw wH": {
        "kind": "field", "sides": 2, "dims": 3, "dim": -3, "size": 8, "axes": (None, (-1, -2)), "codes": bytes((0, 3)),
        "turns": True, "dtypes": EXACT, "table_shape": (2, 2, 8),
    },
    "field 2 signed adjoint: dhw dHw": {
        "kind": "field", "sides": 3, "dims": 4, "dim": -4, "size": 2, "axes": (None, None), "codes": bytes((4, 36)),
        "signed": True, "adjoint": True, "dtypes": SIGNED, "table_shape": (2, 2, 2),
    },
    "mixed 3 inverse: hw hW": {
        "kind": "mixed", "sides": 2, "dims": 3, "dim": -3, "size": 3, "axes": (None, None), "codes": bytes((4, 68)),
        "signed": True, "inverse": True, "dtypes": FLOATS, "table_shape": (4, 2, 3, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_what_a_code_says(code: str) -> None:
    views, said = of(code), {"sides": 0, "dims": 0, "dim": 0, "size": 0, "axes": (), "table_shape": None, **CODES[code]}
    assert views.code == code
    assert views.kind is KINDS[said.pop("kind")]
    assert views.words == tuple(code.rpartition(": ")[2].split(" "))
    assert views.order == len(views.words)
    for flag in ("signed", "adjoint", "inverse", "turns"):
        assert getattr(views, flag) is said.pop(flag, False)
    for name, value in said.items():
        assert getattr(views, name) == value, name
    assert of(code) is views  # made once


def test_kinds_have_the_names_that_kernels_know() -> None:
    assert all(kind.name == name for name, kind in KINDS.items())
    assert {name for name, kind in KINDS.items() if kind.computes} == {"matrix", "mixed"}
    native = pytest.importorskip("equikern._C", exc_type=ImportError)
    assert set(native.KINDS) == set(KINDS)


@pytest.mark.parametrize(
    ("maps", "code"),
    [
        (trivial(cyclic_group(2)).maps, ". ."),
        (grid("c4").maps, "hw Wh HW wH"),
        (grid("c4").inverse_maps, "hw wH HW Wh"),
        (permutation([[0, 1, 2], [1, 0, 2]], dim=-2).maps, "permutation -2 3: . x"),
        (permutation([[0, 1], [1, 0]], [[1, 1], [-1, -1]]).inverse_maps, "permutation -1 2 adjoint: . ~"),
        (permutation([[0, 1], [0, 1]], [[1, 1], [-1, -1]]).maps, "permutation -1 2: . ~"),
        (tokens([[0, 1, 2], [1, 0, 2]]).maps, "tokens 3: . x"),
        (tokens([[0, 1, 2], [1, 0, 2]]).logits.maps, "permutation -1 3: . x"),
        (matrix([[[1, 0], [0, 1]]]).maps.T, "matrix 2 adjoint: x"),
        (matrix([[[1, 0], [0, 1]]]).inverse_maps.T, "matrix 2 inverse adjoint: x"),
        (field(grid("c4"), "vector").inverse_maps, "field 2 signed adjoint: hw wH HW Wh"),
        (field(grid("hflip"), "regular").maps, "field 2: hw hW"),
        (
            field(grid("hflip"), matrix([[[1, 0], [0, 1]], [[0, 2], [0.5, 0]]])).inverse_maps,
            "mixed 2 inverse: hw hW",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_codes_of_actions(maps: Any, code: str) -> None:
    assert maps.code == code


# -- words of grids


@pytest.mark.parametrize("words", [IMAGES, VOLUMES], ids=["images", "volumes"])
def test_words(words: list[str]) -> None:
    """Composition, inverses and sides of all of them, against torch; no two do the same."""
    axes = "hw" if words is IMAGES else "dhw"
    x = torch.arange(24).reshape(4, 6) if words is IMAGES else torch.arange(60).reshape(3, 4, 5)
    shown = {word: turn_grid(x, word) for word in words}
    assert len({str(view.tolist()) for view in shown.values()}) == len(words)
    for word, view in shown.items():
        read = [axes.index(letter.lower()) for letter in word]
        assert torch.equal(view, x.permute(read).flip([k for k, letter in enumerate(word) if letter.isupper()]))
        assert tuple(view.shape) == tuple(of(word).shape(x.shape)) == tuple(x.shape[k] for k in read)
        assert torch.equal(turn_grid(view, inverse_word(word)), x)
        assert upright(word) == word.lower()
        assert of(word).keeps(x.shape) == (view.shape == x.shape)
        for outer in words[:: 1 if words is IMAGES else 5]:
            assert torch.equal(turn_grid(x, compose(outer, word)), turn_grid(view, outer))
    assert len(set(of(" ".join(words)).codes)) == len(words)
    assert len(set(numbers(tuple(words)).words)) == len(words)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (0, 3), (4, 4, 4), (2, 3, 3), (3, 3, 2), (3, 2, 3), (2, 3, 4)])
def test_which_shapes_are_kept(shape: tuple[int, ...]) -> None:
    words = IMAGES if len(shape) == 2 else VOLUMES
    x = torch.zeros(7, *shape)
    for some in [words[:2], words[4:6], [*words[:2], words[-1]], words, *([word] for word in words)]:
        views = of(" ".join(some))
        shapes = [tuple(turn_grid(x, word).shape) for word in some]
        assert [tuple(views.shape(x.shape, g)) for g in range(len(some))] == shapes
        assert views.keeps(x.shape) == all(found == x.shape for found in shapes)


def test_numbers_of_views() -> None:
    """What kernels compute with that find every point on their own: an axis in three bits, its direction the third."""
    for word in VOLUMES:
        (bit,) = numbers((word,)).words
        assert [(bit >> 3 * k) & 3 for k in range(3)] == ["dhw".index(letter.lower()) for letter in word]
        assert [(bit >> 3 * k) & 4 > 0 for k in range(3)] == [letter.isupper() for letter in word]
    assert numbers((".", "hW")).words == numbers(("dhw", "dhW")).words
    assert numbers(("hW",)).planar
    assert not numbers((".",)).moves
    assert not numbers(("Dhw",)).planar


# -- adjoints and inverses


@st.composite
def codes(draw: st.DrawFn) -> str:
    """Any code of any kind."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    order, size = draw(st.integers(1, 5)), draw(st.integers(1, 99999))
    if kind == "still":
        return " ".join("." * order)
    grid_words = " ".join(draw(st.lists(st.sampled_from(draw(st.sampled_from([IMAGES, VOLUMES]))), min_size=1)))
    adjoint, inverse, signed = (f" {name}" * draw(st.booleans()) for name in ("adjoint", "inverse", "signed"))
    if kind == "grid":
        return grid_words
    letters = {"permutation": ".x~", "tokens": ".x"}.get(kind, "x")
    words = " ".join(draw(st.lists(st.sampled_from(letters), min_size=order, max_size=order)))
    return {
        "permutation": f"permutation {-draw(st.integers(1, 6))} {size}{adjoint}: {words}",
        "tokens": f"tokens {size}{adjoint}: {words}",
        "matrix": f"matrix {size}{inverse}{adjoint}: {words}",
        "field": f"field {size}{signed}{adjoint}: {grid_words}",
        "mixed": f"mixed {size}{inverse}{adjoint}: {grid_words}",
    }[kind]


@given(codes())
def test_adjoints_and_inverses_of_codes(code: str) -> None:
    views = of(code)
    assert views.code == code
    assert transposed(code) == views.back
    back, undo = of(views.back), of(views.undo)
    assert transposed(transposed(code)) == code
    assert undo.undo == code
    assert of(back.undo).code == of(undo.back).code  # the adjoint of the inverse is the inverse of the adjoint
    for other in (back, undo):
        assert (other.kind, other.order, other.size, other.dim) == (views.kind, views.order, views.size, views.dim)
        assert (other.dims, other.sides, other.dtypes) == (views.dims, views.sides, views.dtypes)
        assert other.table_shape == views.table_shape
    assert views.kind.computes or views.back == views.undo
    assert views.grid.words == (views.words if views.sides else views.grid.words)
    assert views.with_words(views.words) == code


def test_still() -> None:
    assert still(3) is of(". . .")
    assert transposed(". . .") == ". . ."


# -- what says nothing

BAD_CODES = [
    *("", " ", "hw ", " hw", "hw  Wh", "hw xx", "hx", "h", "hh", "hw hh", "HH", "hwd hw", "hw dhw", "dhw hw", "dhh"),
    *("..", ". hw", "hw .", ". .. .", ".x", "x", "~", "hw;Wh", "hw\nWh", "hw\tWh", "ĥw"),
    *("permutation", "permutation:", "permutation: x", "permutation -1: x", "permutation -1 5", "permutation -1 5:x"),
    *("permutation 0 5: x", "permutation 1 5: x", "permutation -1 0: x", "permutation -1 -5: x", "permutation x 5: x"),
    *("permutation -1 5: y", "permutation -1 5: ", "permutation -1 5: x  x", "permutation -1 5: hw"),
    *("permutation -1 5 inverse: x", "permutation -1 5 adjoint adjoint: x", "permutation -1 5 adjoint : x"),
    *("permutation -1 5.0: x", "permutation -1.0 5: x", "permutation -1 5 6: x", "permutation -1 5: x: x"),
    *("tokens: x", "tokens 5", "tokens -3: x", "tokens 3: ~", "tokens 3 inverse: x", "tokens 3 signed: x"),
    *("tokens x: x", "tokens 3: hw", "tokens 3: ", "tokens 3.5: x"),
    *("matrix: x", "matrix 3: .", "matrix 3: ", "matrix -3: x", "matrix 3 adjoint inverse: x", "matrix 3 signed: x"),
    *("matrix 3: x y", "matrix 3: hw", "matrix 3 3: x", "matrix 3 inverse inverse: x"),
    *("field: hw", "field 2: .", "field 2: x", "field 2: ", "field 2 adjoint signed: hw", "field 2 inverse: hw"),
    *("field 2: hw dhw", "field -2: hw", "field 2 signed signed: hw", "field 2: hw xx"),
    *("mixed x: hw", "mixed 3 signed: hw", "mixed 3 adjoint inverse: hw", "mixed 3: .", "mixed 3: hw xx", "mixed: hw"),
    *("matrix 0: x", "tokens 0: x", "field 0: hw", "mixed 0: hw"),
    *("unknown 3: x", ": x", "p-1:0123", "t:0123", "m:0123", "Matrix 3: x", "grid 2: hw", "still 1: ."),
]


@each("code", BAD_CODES)
def test_bad_codes_are_refused(code: str) -> None:
    with pytest.raises(ValueError, match=r"^(views|words(\[\d+\])?): expected .*, got '"):
        of(code)
    with pytest.raises(ValueError, match=r"^(views|words(\[\d+\])?): expected .*, got '"):
        transposed(code)


Call = Callable[[Tensor, Tensor, str, Any], Any]
OPERATORS = torch.ops.equikern
# Every registered operator with views, on x (4, 4), its two views y (2, 4, 4), a code and a table.
CALLS: dict[str, Call] = {
    "orbit": lambda x, y, code, table: OPERATORS.orbit(x, code, table, 1.0, None, None),
    "orbit_out": lambda x, y, code, table: OPERATORS.orbit_out(x, code, table, y.clone()),
    "act": lambda x, y, code, table: OPERATORS.act(y, torch.tensor([0, 1]), code, table),
    "act_out": lambda x, y, code, table: OPERATORS.act_out(y, torch.tensor([0, 1]), code, table, y.clone()),
    "reduce": lambda x, y, code, table: OPERATORS.reduce(y, code, table, "sum", 1.0, None),
    "reduce_out": lambda x, y, code, table: OPERATORS.reduce_out(y, code, table, "max", 1.0, None, x.clone()),
    "mean_plus": lambda x, y, code, table: OPERATORS.mean_plus(y, x, code, table),
    "mean_plus_out": lambda x, y, code, table: OPERATORS.mean_plus_out(y, x, code, table, x.clone()),
    "mean_std": lambda x, y, code, table: OPERATORS.mean_std(y, code, table),
    "mean_std_out": lambda x, y, code, table: OPERATORS.mean_std_out(y, code, table, x.clone(), x.clone()),
    "orbit_dot": lambda x, y, code, table: OPERATORS.orbit_dot(x, y, code, table, torch.ones(2, dtype=wide(y))),
    "dot": lambda x, y, code, table: OPERATORS.dot(x, y, code, table, 1),
    "variance": lambda x, y, code, table: OPERATORS.variance(y, code, table, 0),
    "select": lambda x, y, code, table: OPERATORS.select(y, torch.zeros(2), code, table, True),
    "select_out": lambda x, y, code, table: OPERATORS.select_out(y, torch.zeros(2), code, table, True, x.clone()),
    "take": lambda x, y, code, table: OPERATORS.take(y, torch.tensor(1), code, table),
}
ROWS: dict[str, Call] = {  # and those of views that only move entries
    "reduce_backward": lambda x, y, code, table: OPERATORS.reduce_backward(x, None, y, code, table, "max"),
    "variance_backward": lambda x, y, code, table: OPERATORS.variance_backward(
        torch.tensor(1.0, dtype=wide(y)), y, code, table
    ),
    "softmax_mean": lambda x, y, code, table: OPERATORS.softmax_mean(y, code, table, "probs"),
    "softmax_mean_out": lambda x, y, code, table: OPERATORS.softmax_mean_out(y, code, table, "probs", x.clone()),
    "softmax_mean_backward": lambda x, y, code, table: OPERATORS.softmax_mean_backward(
        x, y, y.logsumexp(-1), code, table, "probs"
    ),
    "score_select": lambda x, y, code, table: OPERATORS.score_select(y, "entropy", code, table, True),
    "score_select_out": lambda x, y, code, table: OPERATORS.score_select_out(y, "max", code, table, True, x.clone()),
    "cross_entropy": lambda x, y, code, table: OPERATORS.cross_entropy(
        y, torch.arange(4), code, table, "logits", -100, 0.0, None, True
    ),
    "linear_cross_entropy": lambda x, y, code, table: OPERATORS.linear_cross_entropy(
        y, x, None, torch.arange(4), code, table, "logits", -100, 0.0, None, True, True, False
    ),
    "weighed_cross_entropy": lambda x, y, code, table: OPERATORS.weighed_cross_entropy(
        y, torch.arange(4), code, table, "logits", -100, 0.0, None, True, 0.1, 0.0, None
    ),
    "weighed_linear_cross_entropy": lambda x, y, code, table: OPERATORS.weighed_linear_cross_entropy(
        y, x, None, torch.arange(4), code, table, "logits", -100, 0.0, None, True, True, False, 0.1, 0.0, None
    ),
}


def wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random_values((4, 4), dtype, 1), random_values((2, 4, 4), dtype, 2)


def test_every_operator_with_views_is_here() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("equikern::")]
    found = {name.removeprefix("equikern::") for name in names if "views" in str(schema(name))}
    # Those that traces record are made of the others, which check what they are given.
    assert {name for name in found if not name.startswith("traced_")} == {*CALLS, *ROWS}


def schema(name: str) -> str:
    return str(torch._C._get_schema(name, ""))


@pytest.mark.usefixtures("backend")
@each("name", [*CALLS, *ROWS])
def test_no_operator_takes_a_bad_code(name: str) -> None:
    x, y = data()
    kept = x.clone(), y.clone()
    for code in ("hw xx", "", ". hw", "matrix 0: x x", "permutation -1 4: x y", "tokens 0: x x", "p-1:0123 p-1:0123"):
        for table in (None, torch.zeros(5, 4, dtype=torch.int32), torch.zeros(4, 2, 4, 4)):
            with pytest.raises(ValueError, match=r"^(views|words(\[\d+\])?|table): expected"):
                {**CALLS, **ROWS}[name](x, y, code, table)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


@pytest.mark.parametrize("name", ["orbit", "act", "reduce", "mean_plus", "mean_std", "select", "take", "score_select"])
def test_no_operator_takes_a_bad_code_on_fake_tensors(name: str) -> None:
    """Where nothing runs but what tells a result's shape from the views."""
    with FakeTensorMode() as mode:
        x, y = (mode.from_tensor(t) for t in data())
        with pytest.raises(ValueError, match=r"^words\[1\]: expected"):
            {**CALLS, **ROWS}[name](x, y, "hw xx", None)


SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2]])
TURN = matrix(torch.stack((torch.eye(4), torch.block_diag(torch.tensor([[0, 2], [0.5, 0]]), torch.eye(2)))))
FLOW = field(GridAction(cyclic_group(2), ["hw", "HW"]), permutation([[0, 1], [0, 1]], [[1, 1], [-1, -1]]))
MIX = field(grid("hflip"), matrix([[[1, 0], [0, 1]], [[0, 2], [0.5, 0]]]))
WORDS = tokens([[0, 1, 2, 3], [1, 0, 3, 2]])


def wrong_tables(views: Views, table: Tensor) -> dict[str, Tensor | None]:
    """Tables that are not that of the views, though some are close to it."""
    other = torch.float64 if table.dtype == torch.float32 else torch.float32 if views.kind.computes else torch.int64
    wrong = {
        "none": None,
        "another dtype": table.to(other),
        "a part": table[:-1],
        "more": torch.cat((table, table)),
        "flat": table.flatten(),
        "one more dim": table[None],
        "not contiguous": torch.stack((table, table), -1)[..., 0],
        "empty": table[:0],
        "a number": table.flatten()[0],
    }
    if views.table_shape is not None and views.table_shape[-1] is not None:
        wrong["another size"] = table[..., :-1].contiguous()
        wrong["more elements"] = table.repeat_interleave(2, 1)
    return wrong


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each("name", [*CALLS, *ROWS])
@pytest.mark.parametrize("action", [SWAP, TURN], ids=["permutation", "matrices"])
def test_no_operator_takes_a_wrong_table(action: Any, name: str, dtype: torch.dtype) -> None:
    if name in ROWS and action is TURN:
        pytest.skip("logits are permuted")
    x, y = data(dtype)
    call, maps = {**CALLS, **ROWS}[name], action.maps
    table = maps.table(x)
    call(x, y, maps.code, table)
    for wrong in wrong_tables(maps.views, table).values():
        with pytest.raises(ValueError, match=r"^table: expected a contiguous one of torch\.(int32|float(32|64)) "):
            call(x, y, maps.code, wrong)
    with pytest.raises(ValueError, match=r"^table: expected none for the views 'hw Wh', got one$"):
        call(x, y, "hw Wh", table)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("action", [FLOW, MIX, WORDS], ids=["field", "mixed", "tokens"])
def test_no_kind_takes_a_wrong_table(action: Any) -> None:
    x = torch.tensor([[0, 3, 2, 1]]) if action is WORDS else random_values((1, 2, 3, 3), torch.float32)
    maps = action.maps
    table = maps.table(x)
    OPERATORS.orbit(x, maps.code, table, 1.0, None, None)
    for wrong in wrong_tables(maps.views, table).values():
        with pytest.raises(ValueError, match=r"^table: expected a contiguous one of torch\.(int32|float32) and shape"):
            OPERATORS.orbit(x, maps.code, wrong, 1.0, None, None)


@pytest.mark.parametrize("action", [SWAP, TURN, FLOW, MIX, WORDS], ids=repr)
def test_a_table_is_where_the_tensor_is(action: Any) -> None:
    """Of an operator's tensors on two devices torch itself would run the one without memory."""
    x, maps = torch.zeros(1), action.maps
    table = maps.table(x)
    maps.views.kind.check_table(maps.views, table, x)
    maps.views.kind.check_table(maps.views, maps.table(x.to("meta")), x.to("meta"))
    with pytest.raises(ValueError, match=r"^table: expected .* on cpu for the views .*, got .* on meta$"):
        maps.views.kind.check_table(maps.views, table.to("meta"), x)
    with pytest.raises(ValueError, match=r"^table: expected .* on meta for the views .*, got .* on cpu$"):
        maps.views.kind.check_table(maps.views, table, x.to("meta"))


@pytest.mark.usefixtures("backend")
def test_the_table_of_other_maps_has_another_shape() -> None:
    x = random_values((2, 4), torch.float32)
    three = permutation([[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]])
    for code, action in (("permutation -1 4: . x", three), ("matrix 4: x x", SWAP), ("permutation -1 4: . x", TURN)):
        with pytest.raises(ValueError, match=r"^table: expected a contiguous one"):
            OPERATORS.orbit(x, code, action.maps.table(x), 1.0, None, None)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["d4", "diagonal", "cycle3", "signed", "channels", "flow"])
def test_kernels_show_what_kinds_apply(name: str) -> None:
    case = CASES[name]
    x = (
        random_values(case.shape(2, 2, side=5), torch.float32)
        if case.signed
        else random_bits(case.shape(2, 2, side=5), torch.float32)
    )
    for maps in (case.action.maps, case.action.inverse_maps):
        table = maps.table(x)
        views = torch.stack([maps.views.kind.apply(x, maps.views, table, g) for g in range(case.order)])
        assert torch.equal(bits(OPERATORS.orbit(x, maps.code, table, 1.0, None, None)), bits(views))
