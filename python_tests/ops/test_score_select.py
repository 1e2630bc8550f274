"""orbit_select by y's own rows: bit for bit what orbit_score and orbit_select say one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from equikern import Action, cyclic_group, grid, matrix, orbit_score, orbit_select, permutation, trivial
from equikern.ops.score import KINDS, Kind
from helpers.calls import ONE_BACKEND
from helpers.logits import ACTIONS, size_of, undone
from helpers.looped import each
from helpers.oracles import powers
from helpers.strategies import FLOATS, bits, laid_out, layouts, random_bits, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytestmark = pytest.mark.usefixtures("backend")
NAMES = pytest.mark.parametrize("name", ACTIONS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
NAN, INF = float("nan"), float("inf")
SWAP = permutation([[0, 1, 2], [1, 0, 2]])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_two(y: Tensor, kind: Kind, action: Action, mode: Any = "min", **options: Any) -> tuple[Tensor, Tensor]:
    """The two operators that the fused one stands for."""
    found = orbit_select(y, orbit_score(y, kind), action, mode, return_index=True, **options)
    assert isinstance(found, tuple)
    return found


def in_one(y: Tensor, kind: Kind, action: Action, mode: Any = "min", **options: Any) -> tuple[Tensor, Tensor]:
    found = orbit_select(y, kind, action, mode, return_index=True, **options)
    assert isinstance(found, tuple)
    return found


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Every bit, the choice, and where in memory the result's entries are."""
    (result, index), (expected, chosen) = ours, theirs
    assert torch.equal(index, chosen)
    assert torch.equal(bits(result), bits(expected))
    assert (result.dtype, index.dtype, result.stride()) == (expected.dtype, torch.int64, expected.stride())


def made_hostile(y: Tensor, kind: str) -> Tensor:
    """Logits with what decides between views: equal rows, NaN, −inf, huge numbers, one number everywhere."""
    if y.numel() == 0:
        return y
    if kind == "any bits":
        return random_bits(tuple(y.shape), y.dtype, 1)
    if kind == "equal views":
        y[1:] = y[:1]
    elif kind == "nan":
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.05] = NAN
        y[-1, ..., 0] = NAN
    elif kind == "all nan":
        y.fill_(NAN)
    elif kind == "ruled out":
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = -INF
        y[0] = -INF
    elif kind == "infinite":
        y[0, ..., 0] = INF
    elif kind == "huge":
        y *= 6e3
    elif kind == "constant":
        y.fill_(1.0)
    return y


HOSTILE = ["none", "any bits", "equal views", "nan", "all nan", "ruled out", "infinite", "huge", "constant"]


@NAMES
@settings(max_examples=30)
@given(data=st.data())
def test_is_the_two_operators(name: str, data: st.DataObject) -> None:
    action = ACTIONS[name]
    lead = data.draw(st.lists(st.integers(0, 5), max_size=3), label="lead")
    y = random_values(
        (action.order, *lead, size_of(action)),
        data.draw(st.sampled_from(FLOATS), label="dtype"),
        data.draw(st.integers(0, 2**16), label="seed"),
    )
    y = laid_out(made_hostile(y, data.draw(st.sampled_from(HOSTILE), label="hostile")), data.draw(layouts))
    kind, mode = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(["min", "max"]))
    before = y.clone()
    torch.set_num_threads(data.draw(st.integers(1, 3), label="threads"))
    ours, theirs = in_one(y, kind, action, mode), in_two(y, kind, action, mode)
    assert_same(ours, theirs)
    assert ours[1].shape == y.shape[1:-1]
    assert torch.equal(bits(y), bits(before))
    assert torch.equal(bits(orbit_select(y, kind, action, mode)), bits(theirs[0]))  # type: ignore[arg-type]
    layout = data.draw(st.sampled_from(["contiguous", "sliced", "rows", "reversed"]), label="layout of out")
    out = laid_out(torch.zeros_like(theirs[0]), layout)
    into, index = in_one(y, kind, action, mode, out=out)
    assert into is out
    assert torch.equal(bits(out), bits(theirs[0]))
    assert torch.equal(index, theirs[1])


@EVERY_KIND
@each("shape", [(2, 4, 5003), (3, 1, 60_000), (2, 3, 40_000), (2, 700, 33)])
def test_any_number_of_threads(kind: Kind, shape: tuple[int, ...]) -> None:
    """Views are scored side by side where there are fewer rows than threads."""
    size = shape[-1]
    action = permutation(powers([size - 1, *range(1, size - 1), 0], 2), group=cyclic_group(2))
    if shape[0] == 3:
        action = trivial(cyclic_group(3))  # type: ignore[assignment]
    y = random_values(shape, torch.bfloat16, 3)
    expected = in_two(y, kind, action)
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        assert_same(in_one(y, kind, action), expected)


def test_results_that_no_cache_holds() -> None:
    y = random_values((2, 40, 200_003), torch.float32, 5)
    action = permutation([[*range(200_003)], [2, 1, 0, *range(3, 200_003)]])
    assert_same(in_one(y, "max", action), in_two(y, "max", action))
    out = torch.zeros(40, 200_004)[:, 1:]
    assert torch.equal(in_one(y, "max", action, out=out)[0], in_two(y, "max", action)[0])


@each(
    ("rows", "smallest", "largest"),
    [
        ([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]], 1, 2),
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], 0, 0),
        ([[NAN, 9.0], [0.0, 1.0], [0.0, 1.0]], 1, 1),
        ([[0.0, 1.0], [NAN, 9.0], [0.0, 2.0]], 2, 0),
        ([[NAN, 0.0], [0.0, NAN], [NAN, NAN]], 0, 0),
        ([[NAN, 0.0], [0.0, 3.0], [NAN, NAN]], 1, 1),
        ([[0.0, 5.0], [-INF, 5.0], [0.0, 1.0]], 1, 2),
    ],
)
@EVERY_KIND
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_choice(kind: Kind, rows: list[list[float]], smallest: int, largest: int, dtype: torch.dtype) -> None:
    """Ties go to the lowest element, NaN never wins, and all NaN gives the identity."""
    if kind == "max" and rows[1][0] == -INF:
        smallest = 0  # the largest logits of the first two are equal
    y, action = torch.tensor(rows, dtype=dtype), trivial(cyclic_group(3))
    assert int(in_one(y, kind, action)[1]) == smallest
    assert int(in_one(y, kind, action, "max")[1]) == largest
    assert torch.equal(bits(in_one(y, kind, action)[0]), bits(y[smallest]))


@EVERY_KIND
def test_rows_without_a_distribution(kind: Kind) -> None:
    """Nothing but −inf: no softmax, so that it never wins; its largest logit is −inf, which loses as well."""
    y = torch.tensor([[-INF, -INF, -INF], [1.0, 0.0, 0.0]])
    result, index = in_one(y, kind, SWAP)
    assert int(index) == 1
    assert result.tolist() == [0.0, 1.0, 0.0]


@EVERY_KIND
@each("name", ["2 of 50", "9 of 50", "all of 30", "none of 3"])
def test_equivariance(kind: Kind, name: str) -> None:
    """y[g] = M(gx): of hx the views are those of x in another order, and the choice is the same one moved by h."""
    action = ACTIONS[name]
    y = random_values((action.order, 40, size_of(action)), torch.float32, 4)
    result = orbit_select(y, kind, action)
    assert isinstance(result, Tensor)
    for h in range(action.order):
        moved = orbit_select(y[action.group.multiply[:, h]], kind, action)
        assert torch.equal(moved, action.act(h, result))  # type: ignore[arg-type]


@each("gradient", ["mean", "identity", "selected", None])
@each("name", ["2 of 50", "all of 30", "none of 3"])
@EVERY_KIND
def test_gradients(kind: Kind, name: str, gradient: Any) -> None:
    action = ACTIONS[name]
    leaf = random_values((action.order, 6, size_of(action)), torch.float64, 2).requires_grad_()
    incoming = random_values((6, size_of(action)), torch.float64, 3).requires_grad_()
    direction = random_values(tuple(leaf.shape), torch.float64, 4)
    found = []
    for run in (in_one, in_two):
        result, index = run(leaf, kind, action, gradient=gradient)
        assert not index.requires_grad
        if gradient is None:
            assert not result.requires_grad
            continue
        (first,) = torch.autograd.grad(result, leaf, incoming, create_graph=True)
        (second,) = torch.autograd.grad(first, incoming, direction)
        found.append((result, first, second))
        stand_in = undone(leaf, action)
        if gradient == "mean":
            (expected,) = torch.autograd.grad(stand_in.mean(0), leaf, incoming)
            torch.testing.assert_close(first, expected)
    if found:
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@ONE_BACKEND
@EVERY_KIND
def test_in_one_graph(kind: Kind) -> None:
    torch._dynamo.reset()
    action = ACTIONS["9 of 50"]

    def function(y: Tensor) -> tuple[Tensor, Tensor]:
        result, index = in_one(2 * y, kind, action, gradient="mean")
        return result + 3 * in_one(y, kind, action, gradient="selected")[0], index

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for rows in (4, 7):
        y = random_values((3, rows, 50), torch.float32, rows).requires_grad_()
        (ours, index), (theirs, chosen) = compiled(y), function(y)
        assert torch.equal(ours, theirs)
        assert torch.equal(index, chosen)
        incoming = random_values((rows, 50), torch.float32, 1)
        grads = [torch.autograd.grad(t, y, incoming)[0] for t in (ours, theirs)]
        torch.testing.assert_close(*grads)


def test_traced_for_a_gpu_that_is_not_there() -> None:
    action = trivial(cyclic_group(2))  # without a table, which torch 2.8 takes for a constant that it can move
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = torch.zeros(2, 8, 3, device="cuda")
        graph = make_fx(lambda y: in_one(y, "margin", action))(y)
    calls = [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("equikern")]
    assert calls == ["equikern.score_select.default"]


@each("shape", [(2, 0, 3), (2, 4, 0, 3), (2, 3)])
@EVERY_KIND
def test_no_rows_or_one(kind: Kind, shape: tuple[int, ...]) -> None:
    y = random_values(shape, torch.float16, 1)
    assert_same(in_one(y, kind, SWAP), in_two(y, kind, SWAP))


def test_what_has_no_scores_of_its_own_is_refused() -> None:
    y = torch.zeros(2, 3, 4, 4)
    pattern = (
        r"action: expected a permutation of the last dim without signs, or the trivial action.*orbit_score\(y, 'max'"
    )
    in_front = permutation([[0, 1, 2, 3], [1, 0, 2, 3]], dim=-2)
    signed = permutation([[0, 1, 2, 3]] * 2, [[1] * 4, [-1] * 4])
    for action in (grid("hflip"), in_front, signed):
        with pytest.raises(ValueError, match=pattern):
            orbit_select(y, "max", action)
    with pytest.raises(ValueError, match=pattern):
        orbit_select(y[..., :2], "max", matrix([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]]))


def test_kinds_are_listed_once() -> None:
    assert get_args(Kind) == KINDS
