"""Several inputs: the IS layer's characterisation, equivariance for every pair of elements, gradients, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from equikern import (
    GroupAction,
    InvariantSymmetric,
    MultiInputEquiTune,
    cyclic_group,
    grid,
    orbit_mean,
    permutation,
    product_action,
    symmetrize,
    trivial,
)
from helpers.backbones import Counted, Pooled, conv
from helpers.looped import each
from helpers.oracles import powers
from torch import Tensor, nn
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
C3 = permutation(powers([1, 2, 0, 4, 5, 3, 6], 3))  # two three-cycles, one entry stays
S3 = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]])
LABELS = permutation(powers([1, 2, 3, 0, 4], 4))  # of the group of 90° rotations
SIGNS = permutation([[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [-1, 1, -1]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def fixed(action: GroupAction, d: int) -> int:
    """1/|G| Σ_g tr ρ(g): the dimension of the space that the group leaves fixed."""
    shape = (3, 3) if d == 9 and action.dims == 2 else (d,)
    basis = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
    traces = [float(action.act(g, basis).reshape(d, d).trace()) for g in range(action.order)]
    return round(sum(traces) / action.order)


@pytest.mark.parametrize(
    ("inp", "out"),
    [(C3, S3), (S3, C3), (SIGNS, C3), (C3, SIGNS), (grid("c4"), S3), (S3, grid("d4")), (C3, trivial(C3.group))],
)
def test_linear_layers_fill_the_space_of_the_trace_formula(inp: GroupAction, out: GroupAction) -> None:
    """From every matrix the layer makes one with ρ₂(g₂) W ρ₁(g₁) = W; they span that whole space."""
    d1, d2 = (9 if a.dims == 2 else getattr(a, "size", 4) for a in (inp, out))
    shape1, shape2 = ((3, 3) if a.dims == 2 else (d,) for a, d in ((inp, d1), (out, d2)))
    basis = torch.eye(d1, dtype=torch.float64).reshape(d1, *shape1)
    columns = []
    for k in range(d1 * d2):
        matrix = torch.zeros(d1 * d2, dtype=torch.float64).index_fill(0, torch.tensor(k), 1.0).reshape(d2, d1)
        layer = InvariantSymmetric(lambda x, m=matrix: (x.flatten(1) @ m.T).reshape(-1, *shape2), inp, out)
        made = layer(basis).reshape(d1, d2).T
        for g in range(inp.order):
            torch.testing.assert_close(layer(inp.act(g, basis)).reshape(d1, d2).T, made)
        for g in range(out.order):
            torch.testing.assert_close(out.act(g, layer(basis)).reshape(d1, d2).T, made)
        columns.append(made.flatten())
    projector = torch.stack(columns, 1)
    torch.testing.assert_close(projector @ projector, projector)
    dimension = fixed(inp, d1) * fixed(out, d2)
    assert int(torch.linalg.matrix_rank(projector)) == dimension
    assert round(float(projector.trace())) == dimension


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
@pytest.mark.parametrize(("name", "out"), [("c4", S3), ("d4", C3), ("flips", S3)])
def test_layer_is_invariant_and_symmetric(name: str, out: Any, shape: tuple[int, int]) -> None:
    counted = Counted(Pooled(out.size))
    layer = InvariantSymmetric(counted, name, out)
    x = torch.randn(2, 1, *shape)
    y = layer(x)
    assert counted.samples == 2 * grid(name).order  # |G₁| forwards, whatever |G₂| is
    for g in range(grid(name).order):
        torch.testing.assert_close(layer(grid(name).act(g, x)), y, rtol=1e-5, atol=1e-5)
    for g in range(out.order):
        torch.testing.assert_close(out.act(g, y), y, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(counted(x), y, atol=1e-3)


def models() -> dict[str, tuple[MultiInputEquiTune, tuple[Tensor, ...]]]:
    images = [torch.randn(2, 1, 6, 6) for _ in range(3)]
    wide = [torch.randn(2, 1, 5, 8) for _ in range(2)]
    return {
        "maps": (
            MultiInputEquiTune([conv(), conv()], ["c4", "flips"], ["c4", "flips"], [conv(), conv()]),
            tuple(images[:2]),
        ),
        "three": (
            MultiInputEquiTune(conv(), ["d4", "c4", "hflip"], ["d4", "c4", "hflip"], [conv(), None, conv()]),
            tuple(images),
        ),
        "rectangles": (
            MultiInputEquiTune(Pooled(5), ["c4", "c4"], [LABELS, "trivial"], Pooled(5)),
            tuple(wide),
        ),
        "flips of rectangles": (
            MultiInputEquiTune(conv(), ["flips", "vflip"], ["flips", "vflip"], conv()),
            tuple(wide),
        ),
        "states": (
            MultiInputEquiTune(
                [nn.Linear(7, 3), nn.Linear(3, 3)], [C3, S3], ["trivial", S3], [nn.Linear(7, 3), nn.Linear(3, 3)]
            ),
            (torch.randn(4, 7), torch.randn(4, 3)),
        ),
        "apart": (MultiInputEquiTune(conv(), ["c4", "c4"], ["c4", "c4"]), (images[0], wide[0])),
        "one": (MultiInputEquiTune(conv(), ["c4"], ["c4"], conv()), (images[0],)),
    }


@pytest.mark.parametrize("name", ["maps", "three", "rectangles", "flips of rectangles", "states", "apart", "one"])
def test_every_tuple_of_elements(name: str) -> None:
    model, xs = models()[name]
    model = model.double()
    xs = tuple(x.double() for x in xs)
    ys = model(*xs)
    inps, outs = ([getattr(layer, side) for layer in model.equivariant] for side in ("inp", "out"))
    for elements in product(*(range(inp.order) for inp in inps)):
        moved = model(*(inp.act(g, x) for inp, g, x in zip(inps, elements, xs, strict=True)))
        for found, out, g, y in zip(moved, outs, elements, ys, strict=True):
            torch.testing.assert_close(found, out.act(g, y), rtol=1e-5, atol=1e-5)


def test_the_formula_in_single_steps() -> None:
    equi, fuse = [conv(), conv()], [conv(), conv()]
    model = MultiInputEquiTune(equi, ["c4", "flips"], ["c4", "flips"], fuse)
    xs, groups = (torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)), (grid("c4"), grid("flips"))
    for i in range(2):
        own, other = groups[i], groups[1 - i]
        views = torch.stack([equi[i](own.act(g, xs[i])) for g in range(own.order)])
        told = torch.stack([fuse[1 - i](other.act(g, xs[1 - i])) for g in range(other.order)]).mean(0)
        expected = orbit_mean(views, own) + symmetrize(told, own)
        torch.testing.assert_close(model(*xs)[i], expected, rtol=1e-5, atol=1e-6)
        assert (model(*xs)[i] - orbit_mean(views, own)).abs().max() > 1e-3


def test_forwards_add() -> None:
    parts = [Counted(conv()) for _ in range(4)]
    model = MultiInputEquiTune(parts[:2], ["d4", "c4"], ["d4", "c4"], parts[2:])
    model(torch.randn(3, 1, 6, 6), torch.randn(3, 1, 6, 6))
    assert [part.samples for part in parts] == [3 * 8, 3 * 4, 3 * 8, 3 * 4]


def test_gradients_reach_every_part_and_are_right() -> None:
    model, xs = models()["states"]
    model.double()
    xs = tuple(x.double().requires_grad_() for x in xs)
    assert gradcheck(lambda *t: model(*t), xs, fast_mode=True)
    sum(y.square().sum() for y in model(*xs)).backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())
    images, shared = models()["maps"]
    sum(y.square().sum() for y in images(*shared)).backward()
    assert all(p.grad is not None for p in images.parameters())


def test_saved_copied_and_cut_into_parts() -> None:
    model, xs = models()["maps"]
    expected = model(*xs)
    again, _ = models()["maps"]
    again.load_state_dict(model.state_dict())
    assert "equivariant.0.backbone.0.weight" in model.state_dict()
    parts = MultiInputEquiTune(
        [layer.backbone for layer in model.equivariant], ["c4", "flips"], ["c4", "flips"],
        [layer.backbone for layer in model.invariant], views_per_forward=1,
    )  # fmt: skip
    for other in (again, copy.deepcopy(model), parts):
        for a, b in zip(other(*xs), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


X = torch.zeros(2, 1, 6, 6)
WIDE = torch.zeros(2, 1, 5, 8)


@each(
    ("call", "error", "said"),
    [
        (lambda: MultiInputEquiTune(conv(), "c4", "c4"), TypeError, r"^inps: expected a list of actions.*got str"),
        (lambda: MultiInputEquiTune(conv(), [], "c4"), ValueError, r"^inps: expected at least one action"),
        (lambda: MultiInputEquiTune(conv(), ["c4", "c5"], "c4"), ValueError, r"^inps\[1\]: expected one of .*'c5'"),
        (lambda: MultiInputEquiTune([conv()], ["c4", "c4"], "c4"), ValueError, r"^backbones: expected 2, .*got 1"),
        (
            lambda: MultiInputEquiTune(conv(), ["c4", "c4"], "d4"),
            ValueError,
            r"^outs\[0\]: expected an action of the input",
        ),
        (lambda: MultiInputEquiTune(3, ["c4"], "c4"), TypeError, r"^backbone: expected a module or a callable"),
        (lambda: MultiInputEquiTune(conv(), ["c4"], "c4", [3]), TypeError, r"^fusions\[0\]: expected .*got int"),
        (lambda: MultiInputEquiTune(conv(), ["c4"] * 2, "c4")(X), ValueError, r"^xs: expected 2 inputs, got 1"),
        (
            lambda: MultiInputEquiTune(conv(), ["c4"] * 2, "c4", Pooled(3))(X, X),
            ValueError,
            r"^fusions: expected outputs like those of the backbones.*\(2, 2, 6, 6\), got \(2, 3\)",
        ),
        (
            lambda: MultiInputEquiTune(conv(), ["c4", "flips"], ["c4", "flips"], [None, conv()])(WIDE, WIDE),
            ValueError,
            r"^x: expected a square image for 'c4', got 5×8.*fix no rectangle",
        ),
        (
            lambda: MultiInputEquiTune(conv(), ["hflip"] * 3, "hflip", [conv(), Pooled(2), conv()])(X, X, X),
            ValueError,
            r"^fusions: expected outputs",
        ),
        (lambda: MultiInputEquiTune(lambda x: (x, x), ["c4"], "c4")(X), ValueError, r"^out: the backbone returns"),
        (lambda: InvariantSymmetric(conv(), "c4", "c5"), ValueError, r"^out: expected one of"),
        (lambda: InvariantSymmetric(Pooled(2), "c4", "c4")(X), ValueError, r"^out: expected outputs .*got \(2, 2\)"),
        (lambda: InvariantSymmetric(conv(), "flips", "c4")(WIDE), ValueError, r"^x: expected a square image"),
        (lambda: InvariantSymmetric(conv(), "c4", "flips")(WIDE), ValueError, r"^backbone: expected the same output"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_group_of_the_product_acts_on_inputs_apart() -> None:
    """Only the transformed input's output moves; with the product group it is one action on one tensor."""
    both = product_action(grid("hflip"), grid("vflip"))
    layer = InvariantSymmetric(conv(), both, trivial(cyclic_group(2)))
    x = torch.randn(2, 1, 4, 6)
    torch.testing.assert_close(layer(x.flip(-1).flip(-2)), layer(x), rtol=1e-5, atol=1e-5)


class Both(nn.Module):
    """A map and what it says of the whole image, in an order of one's own."""

    def __init__(self, first: str = "map") -> None:
        super().__init__()
        self.conv, self.first = conv(), first

    def forward(self, x: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        y = self.conv(x) if scale is None else self.conv(x) * scale.reshape(-1, 1, 1, 1)
        made = {"map": y, "whole": (y.mean((2, 3)), None)}
        return {name: made[name] for name in sorted(made, reverse=self.first != "map")}


def picked(y: dict[str, Any], part: str) -> Tensor:
    return y["map"] if part == "map" else y["whole"][0]


def test_outputs_of_several_parts() -> None:
    """Each part is what wrappers of that part alone give, whatever the order in which fusions name theirs."""
    models, fusions = [Both(), Both()], [Both("whole"), Both("whole")]
    outs = [{"map": name, "whole": ("trivial", None)} for name in ("c4", "flips")]
    model = MultiInputEquiTune(models, ["c4", "flips"], outs, fusions)
    xs = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    found = model(*xs, scale=torch.tensor([1.0, 2.0]))
    for part, spec in (("map", ["c4", "flips"]), ("whole", "trivial")):

        def of(model: nn.Module, part: str = part) -> Any:
            return lambda x, scale: picked(model(x, scale), part)

        alone = MultiInputEquiTune([of(m) for m in models], ["c4", "flips"], spec, [of(m) for m in fusions])
        for y, expected in zip(found, alone(*xs, scale=torch.tensor([1.0, 2.0])), strict=True):
            torch.testing.assert_close(picked(y, part), expected)
    cut = MultiInputEquiTune(models, ["c4", "flips"], outs, fusions, views_per_forward=1)
    torch.testing.assert_close(cut(*xs)[0]["map"], model(*xs)[0]["map"])
    with pytest.raises(ValueError, match=r"^outs: expected the outputs of .* for every group"):
        MultiInputEquiTune(models, ["c4", "flips"], [{"map": "c4"}, {"whole": "trivial"}], fusions)
    MultiInputEquiTune(models, ["c4", "flips"], [{"map": "c4"}, {"whole": ("trivial", None)}], strict=False)(*xs)
    mute = MultiInputEquiTune(models, ["c4", "flips"], outs, [lambda x: {"map": None, "whole": (x.sum(), None)}] * 2)
    with pytest.raises(ValueError, match=r"^(fusions|backbone): expected"):
        mute(*xs)


def test_a_layer_with_several_outputs() -> None:
    layer = InvariantSymmetric(Both(), "c4", {"map": "hflip", "whole": ("trivial", None)})
    parts = [InvariantSymmetric(lambda x, m=layer.backbone: m(x)["map"], "c4", "hflip")]
    x = torch.randn(2, 1, 6, 6)
    y = layer(x)
    torch.testing.assert_close(y["map"], parts[0](x))
    torch.testing.assert_close(y["map"], y["map"].flip(-1))
    torch.testing.assert_close(layer(x.rot90(1, (-2, -1)))["whole"][0], y["whole"][0])
    assert y["whole"][1] is None
