"""Regular features: the lift, linear maps over the group axis, pooling and heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from equikern import (
    EquiTune,
    EquivariantHead,
    Group,
    GroupConv2d,
    GroupLinear,
    GroupPool,
    InvariantHead,
    RegularLift,
    cyclic_group,
    dihedral_group,
    grid,
    matrix,
    permutation,
    product_group,
    regular,
    tokens,
    trivial,
)
from equikern.core import autograd
from equikern.rl import gridworld
from helpers.looped import each
from helpers.oracles import CASES, NAMED, Case
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")
SHAPES = pytest.mark.parametrize("shape", [(8, 8), (6, 9)])
GROUPS = pytest.mark.parametrize(
    "group",
    [cyclic_group(1), cyclic_group(3), dihedral_group(3), product_group(cyclic_group(2), cyclic_group(3))],
    ids=lambda group: group.name,
)
QUARTERS = matrix([[[1, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]]])


def entries_moved(group: Group, h: int, z: Tensor, dim: int) -> Tensor:
    """Entry g goes to entry g h⁻¹, one entry after another."""
    moved = torch.empty_like(z)
    for g in range(group.order):
        moved.select(dim, int(group.multiply[g, group.inverse[h]])).copy_(z.select(dim, g))
    return moved


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 2, 3, padding=1))


@pytest.fixture
def features(dense: nn.Module) -> nn.Module:
    return nn.Sequential(dense, nn.AdaptiveAvgPool2d(2), nn.Flatten())


# -- every view moved by its own element


@each("case", CASES.values())
def test_each_moves_every_view_by_its_element(backend: str, case: Case) -> None:
    action = case.action
    for lead, axis in (((), 0), ((3, 2), 2)):
        y = torch.randn(case.order, *case.shape(*lead, side=4), dtype=torch.float64)
        expected = case.undone(y).movedim(0, axis)
        y = y.movedim(0, axis).requires_grad_()

        def moved(t: Tensor, axis: int = axis) -> Tensor:
            return autograd.each(t, axis, action.inverse_maps)

        torch.testing.assert_close(moved(y), expected)
    torch.testing.assert_close(moved(y.transpose(0, 1)).transpose(0, 1), moved(y))
    assert torch.autograd.gradcheck(moved, (y,), fast_mode=True)
    assert torch.autograd.gradgradcheck(moved, (y,), fast_mode=True)


# -- the lift


@SHAPES
@each("name", NAMED)
@each("views", [None, 3])
def test_the_lift_permutes_its_entries(
    dense: nn.Module, features: nn.Module, name: str, shape: tuple[int, int], views: int | None
) -> None:
    action = grid(name)
    lift = RegularLift(
        lambda v: {"maps": dense(v), "flat": features(v)}, name, {"maps": action, "flat": "trivial"}, views
    )
    x = torch.randn(2, 3, *shape)
    z = lift(x)
    assert z["maps"].shape == (2, 2, action.order, *shape)
    assert z["flat"].shape == (2, 8, action.order)
    for h in range(action.order):
        turned = lift(action.act(h, x))
        close(turned["maps"], action.act(h, entries_moved(action.group, h, z["maps"], 2)))
        close(turned["flat"], entries_moved(action.group, h, z["flat"], 2))


@SHAPES
def test_the_lift_is_every_view_turned_back(dense: nn.Module, shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    z = RegularLift(dense, "d4", "d4")(x)
    for s in range(2):
        for k in range(4):
            view = torch.rot90(x.flip(-1) if s else x, k, (-2, -1))
            back = torch.rot90(dense(view), -k, (-2, -1))
            torch.testing.assert_close(z[:, :, 4 * s + k], back.flip(-1) if s else back)
    torch.testing.assert_close(z.mean(2), EquiTune(dense, "d4", "d4")(x))


def test_the_lift_of_permuted_and_multiplied_outputs(features: nn.Module) -> None:
    """The group axis lies before the dim that the output's action moves."""
    moves = gridworld().out
    points = permutation([[0, 1], [0, 1], [0, 1], [0, 1]], group=cyclic_group(4))  # moves nothing, on dim −1

    def backbone(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = features(v)
        return y[:, :4], y.unflatten(1, (4, 2)), y.unflatten(1, (4, 2))

    lift = RegularLift(backbone, "c4", (moves, QUARTERS, points))
    x = torch.randn(2, 3, 5, 7)
    z = lift(x)
    assert [tuple(t.shape) for t in z] == [(2, 4, 4), (2, 4, 4, 2), (2, 4, 4, 2)]
    for h in range(4):
        turned = lift(grid("c4").act(h, x))
        close(turned[0], moves.act(h, entries_moved(moves.group, h, z[0], 1)))
        close(turned[1], QUARTERS.act(h, entries_moved(moves.group, h, z[1], 2)))
        close(turned[2], entries_moved(moves.group, h, z[2], 2))


@SHAPES
def test_gradients_of_the_lift(dense: nn.Module, shape: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RegularLift(dense.double(), "c4", "c4"), (x,), fast_mode=True)


# -- linear maps


@GROUPS
def test_linear_maps_are_equivariant(group: Group) -> None:
    torch.manual_seed(0)
    layer = GroupLinear(group, 3, 5)
    z = torch.randn(4, 2, 3, group.order)
    for h in range(group.order):
        close(layer(entries_moved(group, h, z, -1)), entries_moved(group, h, layer(z), -1))


@GROUPS
def test_linear_maps_are_the_written_sum(group: Group) -> None:
    torch.manual_seed(0)
    layer = GroupLinear(group, 3, 2)
    assert layer.bias is not None
    z = torch.randn(4, 3, group.order)
    expected = layer.bias[:, None].expand(4, 2, group.order).clone()
    for g in range(group.order):
        for u in range(group.order):
            expected[:, :, g] += z[:, :, int(group.multiply[u, g])] @ layer.weight[:, :, u].T
    torch.testing.assert_close(layer(z), expected)


@GROUPS
def test_every_equivariant_linear_map_is_one(group: Group) -> None:
    """A map averaged over the group until it commutes with it is the layer's, with the weights read off one entry."""
    torch.manual_seed(0)
    n = group.order
    plain = torch.randn(2 * n, 3 * n, dtype=torch.float64)

    def moves(h: int, channels: int) -> Tensor:
        entries = torch.eye(channels * n, dtype=torch.float64).unflatten(0, (channels, n))
        return entries_moved(group, h, entries, 1).flatten(0, 1)

    average = torch.stack([moves(h, 2).T @ plain @ moves(h, 3) for h in range(n)]).mean(0)
    layer = GroupLinear(group, 3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(average.view(2, n, 3, n)[:, 0])
    torch.testing.assert_close(layer.matrix().detach(), average)


def test_gradients_of_linear_maps() -> None:
    torch.manual_seed(0)
    layer = GroupLinear(dihedral_group(3), 2, 3, dtype=torch.float64)
    z = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)

    def call(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=True)), (z,))

    inputs = (z, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_the_regular_representation() -> None:
    group = dihedral_group(3)
    z = torch.randn(2, 6, 4)
    for h in range(6):
        assert torch.equal(regular(group, -2).act(h, z), entries_moved(group, h, z, 1))


# -- pooling and heads


@SHAPES
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_pooling_and_invariant_heads(dense: nn.Module, mode: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    action, x = grid("d4"), torch.randn(2, 3, *shape)
    lift, pool, head = RegularLift(dense, "d4", "d4"), GroupPool(mode), InvariantHead(2, 5, mode)
    z = lift(x)
    expected = z.amax(2) if mode == "max" else EquiTune(dense, "d4", "d4")(x)
    torch.testing.assert_close(pool(z), expected)
    torch.testing.assert_close(head(z), head.linear(expected.mean((2, 3))))
    torch.testing.assert_close(GroupPool(mode, 0)(z.mean((3, 4))), pool(z.mean((3, 4), keepdim=True)).flatten(1))
    for h in range(8):
        turned = lift(action.act(h, x))
        close(pool(turned), action.act(h, pool(z)))
        close(head(turned), head(z))


@SHAPES
def test_equivariant_heads(dense: nn.Module, features: nn.Module, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, c4 = torch.randn(2, 3, *shape), grid("c4")
    maps, flat = RegularLift(dense, "c4", "c4"), RegularLift(features, "c4", "trivial")
    for out in (gridworld().out, QUARTERS):
        head, small = EquivariantHead(2, out), EquivariantHead(8, out, dims=0)
        slow = sum(out.act(int(out.group.inverse[g]), small.linear(flat(x)[..., g])) for g in range(4)) / 4
        torch.testing.assert_close(small(flat(x)), slow)
        for h in range(4):
            close(head(maps(c4.act(h, x))), out.act(h, head(maps(x))))
            close(small(flat(c4.act(h, x))), out.act(h, small(flat(x))))


def test_gradients_of_heads() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 3, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    heads: tuple[Callable[[Tensor], Tensor], ...] = (
        EquivariantHead(3, QUARTERS, dtype=torch.float64),
        InvariantHead(3, 2, "mean", dtype=torch.float64),
        InvariantHead(3, 2, "max", dtype=torch.float64),
    )
    for head in heads:
        assert torch.autograd.gradcheck(head, (z,), fast_mode=True)


def test_the_equivariant_layer_learns_and_compiles(features: nn.Module) -> None:
    """Equi-tuning's custom layer: a pretrained backbone's regular features, layers over them, an invariant output."""
    torch.manual_seed(0)
    model = nn.Sequential(
        RegularLift(features, "d4", "trivial"), GroupLinear("d4", 8, 6), nn.BatchNorm1d(6), nn.ReLU(),
        GroupLinear("d4", 6, 6), InvariantHead(6, 4, dims=0),
    )  # fmt: skip
    x, target = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for training in (True, False):
        model.train(training)
        for h in range(8):
            close(model(grid("d4").act(h, x)), model(x))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()


BAD = {
    "lift token ids": (
        lambda: RegularLift(lambda v: v.flatten(1), "hflip", tokens([[0, 1], [1, 0]]))(torch.zeros(1, 1, 1, 2)),
        TypeError,
        "expected one on outputs",
    ),
    "lift another group": (lambda: RegularLift(nn.Identity(), "c4", "d4"), ValueError, "out: expected an action of"),
    "group": (lambda: GroupLinear(4, 1, 1), TypeError, "group: expected a group, an action or a name .*got int"),
    "group name": (lambda: GroupLinear("c5", 1, 1), ValueError, "expected one of .*'c5'"),
    "size": (lambda: GroupLinear("c4", 0, 1), ValueError, "in_features: expected 1 or more, got 0"),
    "size type": (lambda: GroupLinear("c4", 1, 1.0), TypeError, "out_features: expected a whole number, got float"),
    "channels": (
        lambda: GroupLinear("c4", 3, 1)(torch.zeros(2, 4, 4)),
        ValueError,
        r"z: expected regular features \(…, 3, 4\), got shape \(2, 4, 4\)",
    ),
    "pool": (lambda: GroupPool("median"), ValueError, "mode: expected one of 'max', 'mean'"),
    "pool dims": (lambda: GroupPool(dims=1), ValueError, "dims: expected 2 for maps"),
    "pool shape": (
        lambda: GroupPool()(torch.zeros(4, 5, 5)),
        ValueError,
        r"expected regular features \(…, C, \|G\|, H, W\), got shape \(4, 5, 5\)",
    ),
    "no tensor": (lambda: GroupPool()(3), TypeError, r"z: expected a torch.Tensor, got int"),
    "head order": (
        lambda: EquivariantHead(2, gridworld().out, dims=0)(torch.zeros(2, 3)),
        ValueError,
        r"expected regular features \(…, 2, 4\)",
    ),
    "head grid": (
        lambda: EquivariantHead(2, grid("c4")),
        TypeError,
        r"out: expected an action by permutation\(…\) or matrix\(…\), got GridAction",
    ),
    "head trivial": (lambda: EquivariantHead(2, trivial(cyclic_group(2))), TypeError, "out: expected an action by"),
    "head dim": (
        lambda: EquivariantHead(2, permutation([[0, 1], [1, 0]], dim=-2)),
        ValueError,
        "out: expected an action on the last dim, got one on dim -2",
    ),
    "convolution of points": (
        lambda: GroupConv2d(gridworld().out, 1, 1, 3),
        TypeError,
        "group: expected an action on images such as 'c4' or 'd4'",
    ),
    "convolution of nothing": (
        lambda: GroupConv2d(trivial(cyclic_group(2)), 1, 1, 3),
        TypeError,
        "group: expected an action on images",
    ),
    "inp": (lambda: GroupConv2d("c4", 1, 1, 3, inp="scalar"), ValueError, "inp: expected one of 'regular', 'trivial'"),
    "padding": (lambda: GroupConv2d("c4", 1, 1, 3, padding=-1), ValueError, "padding: expected 0 or more, got -1"),
    "convolution shape": (
        lambda: GroupConv2d("c4", 2, 1, 3)(torch.zeros(1, 2, 5, 5)),
        ValueError,
        r"z: expected shape \(B, 2, 4, H, W\), got \(1, 2, 5, 5\)",
    ),
    "windows": (
        lambda: GroupConv2d("c4", 2, 1, 3, "trivial", stride=2, padding=1)(torch.zeros(1, 2, 5, 8)),
        ValueError,
        r"leave out 1 of W = 8; crop or pad z to W = 7",
    ),
}


@each("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_layers_compile_for_all_sizes() -> None:
    """Under symbolic sizes, in one graph, with gradients."""
    cycle = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    layers: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "linear": (GroupLinear(cyclic_group(3), 5, 7), (4, 6, 5, 3)),
        "pool": (GroupPool("mean"), (4, 2, 3, 6, 8)),
        "invariant": (InvariantHead(5, 7), (4, 5, 3, 6, 8)),
        "equivariant": (EquivariantHead(5, cycle), (4, 5, 3, 6, 8)),
        "of vectors": (EquivariantHead(5, cycle, dims=0), (4, 5, 3)),
    }
    for name, (layer, shape) in layers.items():
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="eager", dynamic=True, fullgraph=True)
        for batch in (shape[0], 2 * shape[0], 3):
            z = torch.randn(batch, *shape[1:], requires_grad=True)
            y = compiled(z)
            torch.testing.assert_close(y, layer(z), msg=lambda m, name=name: f"{name}: {m}")
            y.sum().backward()
            assert z.grad is not None
