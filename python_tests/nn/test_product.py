"""A product of groups in the sum of their forwards: every pair of elements, the formula, commuting, canonical maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from equikern import (
    EquiTune,
    MatrixAction,
    ProductEquiTune,
    cyclic_group,
    field,
    grid,
    matrix,
    orbit_mean,
    permutation,
    product_action,
    symmetrize,
    tokens,
    trivial,
)
from equikern.nn.commuting import check_commuting, representatives
from helpers.backbones import Counted, Pooled, classifier, conv
from helpers.looped import each
from helpers.oracles import powers
from torch import Tensor, nn
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")

CHANNELS = permutation(powers([1, 2, 0], 3), dim=-3)
COLOURS = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
GENDER = tokens([[0, 1, 2, 3, 4, 5, 6], [1, 0, 3, 2, 5, 4, 6]])  # three pairs
ORIGIN = tokens(powers([2, 3, 4, 5, 0, 1, 6], 3))  # which a cycle of three takes to each other
VECTORS = [field(grid("hflip"), "vector"), field(grid("vflip"), "vector")]
AGE = tokens([[*range(9)], [*range(7), 8, 7]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def flipped(dim: int) -> Callable[[Tensor], Tensor]:
    """Each image as it is or flipped, so that its first half is the brighter one: nothing is lost."""

    def canonical(x: Tensor) -> Tensor:
        bright = x.flatten(1) if dim == 0 else x
        half = x.shape[dim] // 2
        first, last = bright.narrow(dim, 0, half), bright.narrow(dim, x.shape[dim] - half, half)
        keep = first.flatten(1).sum(1) >= last.flatten(1).sum(1)
        return torch.where(keep.reshape(-1, *(1,) * (x.dim() - 1)), x, x.flip(dim))

    return canonical


class Words(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(size, 8), nn.Linear(8, size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).cumsum(1).tanh())


def models() -> dict[str, tuple[ProductEquiTune, Tensor]]:
    rectangle = torch.randn(2, 1, 5, 8)
    return {
        "flips": (
            ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], [flipped(-1), flipped(-2)]),
            rectangle,
        ),
        "means": (ProductEquiTune(conv(), ["vflip", "hflip"], ["vflip", "hflip"]), rectangle),
        "turns and colours": (
            ProductEquiTune(copy.deepcopy(COLOURS), ["c4", CHANNELS], ["c4", CHANNELS]),
            torch.randn(2, 3, 6, 6),
        ),
        "turns and colours of a rectangle": (
            ProductEquiTune(
                nn.Sequential(copy.deepcopy(COLOURS), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)),
                ["c4", CHANNELS],
                "trivial",
                [lambda x: x.mean((-1, -2), keepdim=True).expand(-1, -1, 2, 2), None],
            ),
            torch.randn(2, 3, 5, 8),
        ),
        "three": (
            ProductEquiTune(
                copy.deepcopy(COLOURS), ["hflip", CHANNELS, "vflip"], ["hflip", CHANNELS, "vflip"], views_per_forward=1
            ),
            torch.randn(2, 3, 4, 6),
        ),
        "vectors": (ProductEquiTune(nn.Conv2d(2, 2, 3, padding=1), VECTORS, VECTORS), torch.randn(2, 2, 4, 5)),
        "regular features": (
            ProductEquiTune(
                nn.Conv2d(2, 4, 3, padding=1), ["hflip", "vflip"], [field(grid("hflip"), "regular"), "vflip"]
            ),
            torch.randn(2, 2, 4, 5),
        ),
        "words": (
            ProductEquiTune(Words(7), [GENDER, ORIGIN], [GENDER.logits, ORIGIN.logits]),
            torch.randint(0, 7, (3, 5)),
        ),
    }


@pytest.mark.parametrize("name", models())
def test_every_pair_of_elements(name: str) -> None:
    model, x = models()[name]
    counted = Counted(model.backbone)
    model.backbone = counted
    if x.is_floating_point():
        model, x = model.double(), x.double()
    y = model(x)
    assert counted.samples == len(x) * sum(inp.order for inp in model.inps) == len(x) * model.forwards
    if name != "turns and colours of a rectangle":
        assert y.std() > 1e-2
    for elements in product(*(range(inp.order) for inp in model.inps)):
        moved, expected = x, y
        for inp, out, g in zip(model.inps, model.outs, elements, strict=True):
            moved, expected = inp.act(g, moved), out.act(g, expected)
        torch.testing.assert_close(model(moved), expected, rtol=1e-5, atol=1e-5)


def test_the_formula_in_single_steps() -> None:
    model, x = models()["flips"]
    maps, groups = (flipped(-1), flipped(-2)), (grid("hflip"), grid("vflip"))
    terms = []
    for i in range(2):
        own, other = groups[i], groups[1 - i]
        seen = maps[1 - i](x)
        views = torch.stack([model.backbone(own.act(g, seen)) for g in range(2)])
        terms.append(symmetrize(orbit_mean(views, own), other))
    torch.testing.assert_close(model(x), (terms[0] + terms[1]) / 2, rtol=1e-5, atol=1e-6)


def test_an_equivariant_backbone_is_kept_on_canonical_inputs() -> None:
    """Beside the whole product, of which it is the cheaper form: both leave what is invariant already as it is."""
    both = product_action(grid("hflip"), grid("vflip"))

    def invariant(x: Tensor) -> Tensor:
        return x.square().mean((1, 2, 3)).unsqueeze(1)

    x = torch.randn(3, 1, 5, 6)
    whole = EquiTune(invariant, both, "trivial")
    cheap = ProductEquiTune(invariant, ["hflip", "vflip"], "trivial", [flipped(-1), flipped(-2)])
    torch.testing.assert_close(cheap(x), whole(x))
    torch.testing.assert_close(cheap(x), invariant(x))


def test_one_factor_is_equitune() -> None:
    net, x = conv(), torch.randn(2, 1, 5, 8)
    torch.testing.assert_close(ProductEquiTune(net, ["c4"], ["c4"])(x), EquiTune(net, "c4", "c4")(x))


def test_gradients() -> None:
    model, x = models()["means"]
    model, x = model.double(), x[:1].double().requires_grad_()
    assert gradcheck(model, (x,), fast_mode=True)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    words, ids = models()["words"]
    words(ids).square().sum().backward()
    assert all(p.grad is not None for p in words.parameters())


def test_saved_and_copied() -> None:
    model, ids = models()["words"]
    assert set(model.state_dict()) == {"backbone.embed.weight", "backbone.head.weight", "backbone.head.bias"}
    again = models()["words"][0]
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids), model(ids))
    assert torch.equal(copy.deepcopy(model)(ids), model(ids))


TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
MIRROR = matrix([[[1, 0], [0, 1]], [[1, 0], [0, -1]]])
HALF = matrix([[[1, 0], [0, 1]], [[-1, 0], [0, -1]]])


def turns(n: int) -> MatrixAction:
    """Rotations of the plane in a skew basis, in float32: they commute up to rounding."""
    angles = torch.arange(n) * (2 * torch.pi / n)
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).reshape(n, 2, 2)
    basis = torch.tensor([[1.0, 0.3], [-0.2, 0.7]])
    return matrix(basis @ rows @ basis.inverse())


def mirror(normal: list[float]) -> MatrixAction:
    """Of the plane through the origin with that normal."""
    n = torch.tensor(normal, dtype=torch.float64)
    still = torch.eye(3, dtype=torch.float64)
    return matrix(torch.stack([still, still - 2 * torch.outer(n, n) / n.dot(n)]))


@each(
    "actions",
    [
        ["hflip", "vflip"],
        ["c4", "c2"],
        ["flips", "c2"],
        ["d4", CHANNELS],
        [CHANNELS, "c4", trivial(cyclic_group(5))],
        [GENDER, ORIGIN],
        [TURN, HALF],
        [permutation(powers([1, 0, 2, 3], 2)), permutation(powers([0, 1, 3, 2], 2))],
        [permutation([[0, 1], [0, 1]], [[1, 1], [-1, -1]]), permutation([[0, 1], [1, 0]])],
        [permutation(powers([1, 2, 0], 3), dim=-2), MIRROR],
        VECTORS,
        [turns(5), turns(3)],
        [field(grid("c4"), "regular"), field(grid("c2"), "vector")],
        [
            permutation([[*range(6)], [3, 4, 5, 0, 1, 2]], dim=-3),
            field(grid("hflip"), permutation(powers([0, 2, 1], 2))),
        ],
    ],
)
def test_what_commutes(actions: list[Any]) -> None:
    check_commuting("inps", [grid(a) if isinstance(a, str) else a for a in actions])


@each(
    ("actions", "said"),
    [
        (["c4", "hflip"], r"rot90 of inps\[0\] \('c4'\) and hflip of inps\[1\] \('hflip'\)"),
        (["vflip", "hflip", "c4"], r"vflip of inps\[0\] \('vflip'\) and rot90 of inps\[2\]"),
        (["c4", "flips"], r"rot90 of .* and hflip of"),
        (["d4", "c4"], r"hflip of inps\[0\] \('d4'\) and rot90 of inps\[1\]"),
        ([TURN, MIRROR], r"g1 of inps\[0\] .* and g1 of inps\[1\]"),
        ([GENDER, tokens([[*range(7)], [0, 2, 1, *range(3, 7)]])], r"g1 of inps\[0\] \('tokens'\) and g1"),
        ([permutation([[0, 1], [1, 0]]), permutation([[0, 1], [0, 1]], [[1, 1], [1, -1]])], r"g1 of .* and g1 of"),
        ([permutation(powers([1, 2, 0], 3)), "hflip"], r"g1 of inps\[0\] .* and hflip of inps\[1\]"),
        (
            [field(grid("c4"), "regular"), field(grid("c2"), "regular")],
            r"rot90 of inps\[0\] .* and rot180 of inps\[1\]",
        ),
        ([mirror([-2, 1, 0]), mirror([-1, -1, 1])], r"g1 of inps\[0\] .* and g1 of inps\[1\]"),
    ],
)
def test_what_does_not_commute(actions: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^inps: expected actions that commute, but {said}"):
        check_commuting("inps", [grid(a) if isinstance(a, str) else a for a in actions])


def test_actions_of_other_sizes_or_kinds() -> None:
    with pytest.raises(ValueError, match=r"^inps: expected actions on one size, got 7 \('tokens'\) and 9"):
        check_commuting("inps", [GENDER, AGE])
    with pytest.raises(TypeError, match=r"^inps: expected actions on token ids throughout or nowhere"):
        check_commuting("inps", [GENDER, grid("c4")])
    with pytest.raises(ValueError, match=r"^inps: expected a multiple of 2 channels on dim -3 for .*, got 3"):
        check_commuting("inps", [CHANNELS, VECTORS[0]])


def test_words_that_stand_for_their_orbits() -> None:
    both = [GENDER, ORIGIN]
    for c, own, other in zip(representatives(both), both, both[::-1], strict=True):
        for perm in own.perm:
            assert torch.equal(c[perm], c)
        for perm in other.perm:
            assert torch.equal(c[perm], perm[c])
        assert torch.equal(c[c], c)
    # A choice by the smallest id would not do: 1 for {1, 4} and 0 for {0, 3}, but the other factor takes 1 to 3.
    crossed = [tokens([[0, 1, 2, 3, 4], [3, 4, 2, 0, 1]]), tokens([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])]
    assert [c.tolist() for c in representatives(crossed)] == [[0, 4, 2, 0, 4], [0, 3, 2, 3, 0]]
    assert representatives(crossed, [[3], []])[0].tolist() == [3, 1, 2, 3, 1]


def test_words_for_which_nothing_can_stand() -> None:
    same = tokens([[0, 1, 2], [1, 0, 2]])
    names = {0: "man", 1: "woman"}
    with pytest.raises(ValueError, match=r"^factor 0: expected words to stand .* factor 1 takes man to woman"):
        representatives([same, same], said=lambda v: names.get(v, str(v)))


X = torch.randn(2, 1, 4, 6)


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        ([lambda x: x, None], r"^canonical\[0\]: expected a map that is invariant to inps\[0\] \('hflip'\), but for"),
        ([None, flipped(-1)], r"^canonical\[1\]: expected a map that is equivariant to inps\[0\] \('hflip'\), but for"),
        (
            [lambda x: x * 0 + x[:, :, :1].sum(-1, keepdim=True), None],
            r"^canonical\[0\]: expected a map that is equivariant to inps\[1\] \('vflip'\), but for vflip",
        ),
        (
            [lambda x: torch.where(x > 0, float("inf"), x), None],
            r"^canonical\[0\]: expected a map that is invariant to inps\[0\] .*but for hflip it is off by inf",
        ),
        ([lambda x: x[:1], None], r"^canonical\[0\]: expected a batch of 2 like its input, got shape \(1, "),
        ([lambda x: 3, None], r"^canonical\[0\]: expected a batch of 2 like its input, got int"),
    ],
)  # fmt: skip
def test_maps_that_break_their_laws(maps: list[Any], said: str) -> None:
    model = ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], maps)
    with pytest.raises(ValueError, match=said):
        model(X)
    with pytest.raises(ValueError, match=said):
        model.verify(X)


def test_when_maps_are_tried() -> None:
    calls = []

    def map_of(x: Tensor) -> Tensor:
        calls.append(len(x))
        return flipped(-1)(x)

    def tries(verified: Any) -> list[int]:
        model = ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], [map_of, None], verified=verified)
        counts = []
        for _ in range(2):
            calls.clear()
            model(X)
            counts.append(len(calls))
        return counts

    assert tries("first") == [4, 1]  # as it is, flipped by either factor, and for the term of the second factor
    assert tries("always") == [4, 4]
    assert tries("never") == [1, 1]


@pytest.mark.parametrize(("given", "made"), [(torch.uint8, torch.float32), (torch.float32, torch.bfloat16)])
def test_maps_in_fewer_bits_or_from_bytes(given: torch.dtype, made: torch.dtype) -> None:
    """What a map rounds is measured by what it returns, too; here it adds pixels up in their order."""

    def along(dim: int) -> Callable[[Tensor], Tensor]:
        return lambda x: sum((x.to(made) * 0.1).unbind(dim)).unsqueeze(dim).expand_as(x)

    model = ProductEquiTune(lambda x: x.float(), ["hflip", "vflip"], ["hflip", "vflip"], [along(-1), along(-2)])
    x = (X.abs() * 50).to(given)
    assert not torch.equal(along(-1)(x), along(-1)(x.flip(-1)))
    model(x)


def test_maps_are_tried_until_a_batch_can_show_something() -> None:
    model = ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], [lambda x: x, None])
    model(X[:0])
    model(torch.zeros_like(X))
    with pytest.raises(ValueError, match=r"^canonical\[0\]: expected a map that is invariant"):
        model(X)
    unknown = torch.randn_like(X).index_fill(-1, torch.tensor([0]), float("nan"))
    assert ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"])(unknown).isnan().any()  # no map's fault


@pytest.mark.parametrize("wrong", [-1, 7])
def test_words_outside_the_vocabulary(wrong: int) -> None:
    model, ids = models()["words"]
    model(ids)  # the maps are tried on this one
    with pytest.raises(ValueError, match=rf"^x: expected token ids from 0 to 6, got {wrong}"):
        model(torch.tensor([[0, wrong]]))


def test_rotations_and_flips_are_not_a_product() -> None:
    with pytest.raises(ValueError, match=r"^inps: .*rot90 of inps\[0\] \('c4'\) and hflip of inps\[1\]"):
        ProductEquiTune(conv(), ["c4", "hflip"], "trivial")
    swap, turn = permutation([[0, 1, 2], [1, 0, 2]], dim=-3), permutation(powers([1, 2, 3, 0], 4), dim=-4)
    with pytest.raises(ValueError, match=r"^outs: .*hflip of outs\[0\] \('hflip'\) and rot90 of outs\[1\] \('c4'\)"):
        ProductEquiTune(conv(), [swap, turn], ["hflip", "c4"])


@each(
    ("call", "error", "said"),
    [
        (lambda: ProductEquiTune(3, ["c4"], "c4"), TypeError, r"^backbone: expected a module"),
        (lambda: ProductEquiTune(conv(), "c4", "c4"), TypeError, r"^inps: expected a list"),
        (lambda: ProductEquiTune(conv(), ["c4"], "d4"), ValueError, r"^outs\[0\]: expected an action of the input's"),
        (lambda: ProductEquiTune(conv(), ["c4"], "c4", flipped(-1)), TypeError, r"^canonical: expected a list"),
        (lambda: ProductEquiTune(conv(), ["c4"], "c4", [3]), TypeError, r"^canonical\[0\]: expected a callable"),
        (lambda: ProductEquiTune(conv(), ["c4"], "c4", [None] * 2), ValueError, r"^canonical: expected 1, .*got 2"),
        (lambda: ProductEquiTune(conv(), ["c4"], "c4", verified="x"), ValueError, r"^verified: expected one of"),
        (
            lambda: ProductEquiTune(conv(), ["hflip", "vflip"], "hflip")(torch.zeros(1, 1, 2, 2, dtype=torch.int64)),
            TypeError,
            r"^canonical\[0\]: expected a map for x of dtype torch.int64",
        ),
        (lambda: ProductEquiTune(Pooled(3), ["c4"], "c4")(X), ValueError, r"^out: expected outputs"),
        (lambda: ProductEquiTune(conv(), ["c4", "c2"], "trivial")([X]), TypeError, r"^x: expected a torch.Tensor"),
        (lambda: ProductEquiTune(lambda x: (x,), ["c4"], "c4")(X), ValueError, r"^out: the backbone returns a tuple"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


class Captioned(nn.Module):
    """An image, words that go with it, and a number: a map and scores of words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.words = conv(), Words(7)

    def forward(self, image: Tensor, ids: Tensor, temperature: Tensor | float = 1.0) -> dict[str, Any]:
        scores = self.words(ids)
        return {
            "map": self.conv(image) * scores.mean((1, 2)).reshape(-1, 1, 1, 1).tanh() / temperature,
            "scores": (scores * image.square().mean((1, 2, 3)).reshape(-1, 1, 1), None),
            "unlisted": image.sum(),
        }


def test_several_inputs_and_outputs() -> None:
    """Flips of the image, a swap of words and rows of the image: every pair of elements, from every way to call."""
    flips, swap = grid("hflip"), GENDER
    rows = grid("vflip")
    inps = [{"image": flips}, {"ids": swap}, (rows,)]
    still = [trivial(action.group) for action in (flips, swap, rows)]
    outs = [
        {"map": flips, "scores": (still[0], None)},
        {"map": still[1], "scores": (GENDER.logits, None)},
        {"map": rows, "scores": (still[2], None)},
    ]
    model = ProductEquiTune(Captioned(), inps, outs, [flipped(-1), None, flipped(-2)], strict=False)
    assert model.forwards == 6
    image, ids = torch.randn(2, 1, 5, 8), torch.randint(7, (2, 4))
    found = model(image, ids=ids, temperature=2.0)
    assert list(found) == ["map", "scores"]
    assert found["scores"][1] is None
    by_name = model(image=image, ids=ids, temperature=torch.tensor(2.0))
    torch.testing.assert_close(by_name["map"], found["map"])
    for g, h, k in product(range(2), repeat=3):
        moved = model(rows.act(k, flips.act(g, image)), swap.act(h, ids), 2.0)
        torch.testing.assert_close(moved["map"], rows.act(k, flips.act(g, found["map"])))
        torch.testing.assert_close(moved["scores"][0], GENDER.logits.act(h, found["scores"][0]))
    # One factor's output for one output is what the wrapper of one output gives.
    alone = ProductEquiTune(
        lambda x, ids: model.backbone(x, ids)["map"], ["hflip", "vflip"], ["hflip", "vflip"], [flipped(-1), flipped(-2)]
    )
    both = ProductEquiTune(
        model.backbone, [flips, rows], [{"map": flips}, {"map": rows}], [flipped(-1), flipped(-2)], strict=False
    )
    torch.testing.assert_close(both(image, ids)["map"], alone(image, ids))


def test_several_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^inps: expected actions that commute, but rot90 of inps\[0\] .* inps\[2\]"):
        ProductEquiTune(Captioned(), [{"image": "c4"}, {"ids": GENDER}, "hflip"], "trivial")
    with pytest.raises(ValueError, match=r"^outs: expected the outputs of \{.*\} for every group, got \{"):
        ProductEquiTune(conv(), ["hflip", "vflip"], [{"a": "hflip"}, {"b": "vflip"}])
    with pytest.raises(ValueError, match=r"^outs\[…\]\['a'\]: expected the same for every group, None,"):
        ProductEquiTune(conv(), ["hflip", "vflip"], [{"a": "hflip"}, {"a": None}])
    with pytest.raises(ValueError, match=r"^inp: expected names of the backbone's inputs"):
        ProductEquiTune(Captioned(), [{"picture": "hflip"}, "vflip"], "trivial")
    with pytest.raises(ValueError, match=r"^inps\[0\]: expected a dict that names its input, as inps\[1\] does"):
        ProductEquiTune(lambda **inputs: inputs["x"], ["c4", {"x": "hflip"}], "trivial")
    model = ProductEquiTune(
        Captioned(), ["hflip", {"ids": GENDER}], {"map": "trivial"}, [lambda x: x, None], strict=False
    )
    with pytest.raises(ValueError, match=r"^canonical\[0\]: expected a map that is invariant to inps\[0\] \('hflip'\)"):
        model(torch.randn(2, 1, 4, 6), torch.zeros(2, 3, dtype=torch.int64))


def test_labels_give_the_loss_of_the_merged_logits() -> None:
    vit = classifier()
    model = ProductEquiTune(vit, ["c2", "hflip"], {"logits": "trivial"})
    x, labels = torch.randn(2, 3, 12, 12), torch.tensor([2, 0])
    found = model(pixel_values=x, labels=labels)
    assert list(found) == ["loss", "logits"]
    torch.testing.assert_close(found.logits, model(x).logits)
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(found.logits, labels))
    torch.testing.assert_close(model(x.flip(-1), labels=labels).loss, found.loss)
