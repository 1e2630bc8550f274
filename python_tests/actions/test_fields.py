"""Fields: channels that change with the grid, against compositions in torch, escnn's transforms and plain sums."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import (
    EquiTune,
    FieldAction,
    cyclic_group,
    dihedral_group,
    field,
    grid,
    matrix,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_weighted_mean,
    permutation,
    regular,
    symmetrize,
    trivial,
    use_backend,
)
from equikern.core import library
from helpers.strategies import random_values
from torch import Tensor

SWAP = permutation([[0, 1, 2], [1, 0, 2]], [[1, 1, 1], [1, 1, -1]])
TURN = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])  # not orthogonal
FIELDS: dict[str, FieldAction] = {
    "regular c4": field(grid("c4"), "regular"),
    "regular d4": field(grid("d4"), "regular"),
    "vector d4": field(grid("d4"), "vector"),
    "swap hflip": field(grid("hflip"), SWAP),
    "matrix c4": field(grid("c4"), TURN),
    "vector rot3d": field(grid("rot3d", dims=3), "vector"),
    "regular flips3d": field(grid("flips3d", dims=3), "regular"),
}
EVERY = pytest.mark.parametrize("action", FIELDS.values(), ids=FIELDS)


def acted(action: FieldAction, g: int, x: Tensor) -> Tensor:
    """Σ_c' M[g, c, c'] · grid_g(x[c']), summed in float64."""
    dim = -action.grid.dims - 1
    fields = action.grid.act(g, x).double().unflatten(dim, (-1, action.size)).movedim(dim, -1)
    return (fields @ action.mats[g].T).movedim(-1, dim).flatten(dim - 1, dim)


def shape_of(action: FieldAction, *lead: int, fields: int = 2, side: int = 5) -> tuple[int, ...]:
    more = 0 if action.square else 1
    return (*lead, fields * action.size, side, *(side + more for _ in range(action.grid.dims - 1)))


@EVERY
def test_is_an_action(action: FieldAction) -> None:
    x = torch.randn(shape_of(action, 2), dtype=torch.float64)
    for g in range(action.order):
        torch.testing.assert_close(action.act(g, x), acted(action, g, x))
        for h in range(0, action.order, 3):
            both = action.act(int(action.group.multiply[g, h]), x)
            torch.testing.assert_close(action.act(g, action.act(h, x)), both)
    assert torch.equal(action.act(0, x), x)


@EVERY
@pytest.mark.usefixtures("backend")
def test_operators(action: FieldAction) -> None:
    """Every operator against sums of single views in float64; several items, fields and layouts."""
    for lead, fields, layout in (((3,), 2, "dense"), ((2, 2), 1, "channels_last"), ((), 3, "dense")):
        shape = shape_of(action, *lead, fields=fields)
        order, dim = action.order, -action.dims
        x = random_values(shape, torch.float32)
        y = random_values((order, *shape), torch.float32, 1)
        if layout == "channels_last":
            x, y = (t.movedim(dim, -1).contiguous().movedim(-1, dim) for t in (x, y))
        inverse = action.group.inverse.tolist()
        back = torch.stack([acted(action, inverse[g], y[g]) for g in range(order)])
        views = torch.stack([acted(action, g, x) for g in range(order)])
        close: Callable[[Tensor, Tensor], None] = lambda a, b: torch.testing.assert_close(  # noqa: E731
            a.double(), b, rtol=1e-5, atol=1e-5
        )
        ours = orbit(x, action)
        close(ours, views)
        if layout == "channels_last":
            assert library.channels_dim(ours, 1) == dim
        close(orbit_mean(y, action), back.mean(0))
        weights = torch.rand(order, *lead[:1])
        share = (weights / weights.sum(0)).reshape(*weights.shape, *(1,) * (y.dim() - weights.dim())).double()
        close(orbit_weighted_mean(y, weights, action), (back * share).sum(0))
        close(symmetrize(x, action), views.mean(0))
        close(orbit_reduce(y, action, "max"), back.amax(0))
        mean, std = orbit_reduce(y, action, "mean_std")
        close(mean, back.mean(0))
        close(std, back.std(0, correction=0))
        chosen, index = orbit_select(y, weights, action, return_index=True)
        assert torch.equal(index, weights.argmin(0))
        where = index.reshape(*index.shape, *(1,) * (y.dim() - 1 - index.dim())).expand(shape)
        close(chosen, back.gather(0, where.unsqueeze(0))[0])
        out, dots = library.orbit_dot(x, y, action.maps.code, action.maps.table(y), weights)
        close(out, views * weights.reshape(*weights.shape, *(1,) * (y.dim() - weights.dim())).double())
        products = (views * y).flatten(weights.dim())  # whose sum may be small beside them
        assert bool(((dots.double() - products.sum(-1)).abs() <= 4e-7 * products.abs().sum(-1)).all())


@EVERY
@pytest.mark.usefixtures("backend")
def test_gradients(action: FieldAction) -> None:
    side = 2 if action.order * action.size < 60 else 1
    shape = shape_of(action, 1, fields=1, side=side)
    if action.order * torch.Size(shape).numel() > 200:
        pytest.skip("too many numbers for finite differences")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn((action.order, *shape), dtype=torch.float64, requires_grad=True)
    weights = torch.rand(action.order, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: orbit(t, action), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda t, w: orbit_weighted_mean(t, w, action, None), (y, weights), fast_mode=True)
    assert torch.autograd.gradcheck(lambda t: symmetrize(t, action), x, fast_mode=True)
    if action.order <= 4:
        for op in ("max", "std"):
            assert torch.autograd.gradcheck(lambda t, op=op: orbit_reduce(t, action, op), y, fast_mode=True)
        assert torch.autograd.gradgradcheck(
            lambda t, w: orbit_weighted_mean(t, w, action), (y, weights), fast_mode=True
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int8])
def test_dtypes_and_large_planes(dtype: torch.dtype) -> None:
    action = FIELDS["vector d4"]
    x = random_values((2, 4, 150, 150), torch.float32).mul(9).to(dtype)
    expected = torch.stack([acted(action, g, x) for g in range(8)])
    with use_backend("cpu"):
        assert torch.equal(orbit(x, action).double(), expected)
        chosen = orbit_select(orbit(x, action), torch.arange(8.0), action, "max")
    assert torch.equal(chosen, x)


def test_vectors_point_where_their_image_does() -> None:
    """A step along an edge of an image turns as the edge does."""
    for name in ("d4", "flips"):
        action = field(grid(name), "vector")
        base = torch.zeros(5, 5)
        base[1, 2] = 1.0  # from here …
        for dx, dy in ((1, 0), (0, 1), (-1, 1)):
            tip = torch.zeros(5, 5)
            tip[1 + dy, 2 + dx] = 1.0  # … to there
            flow = torch.stack((torch.full((5, 5), float(dx)), torch.full((5, 5), float(dy))))
            for g in range(action.order):
                start, end = (action.grid.act(g, t).nonzero()[0] for t in (base, tip))
                turned = action.act(g, flow)[:, 0, 0]
                assert turned.tolist() == [float(end[1] - start[1]), float(end[0] - start[0])]


def test_regular_moves_entry_g_to_g_times_the_inverse() -> None:
    for group in (cyclic_group(3), dihedral_group(4)):
        action = regular(group, dim=-1)
        x = torch.arange(group.order)
        for h in range(group.order):
            moved = action.act(h, x)
            for g in range(group.order):
                assert moved[group.multiply[g, group.inverse[h]]] == g
    # The features of all views of an input are such a field.
    d4, net = grid("d4"), torch.nn.Conv2d(1, 1, 3, padding=1).double()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)

    def features(t: Tensor) -> Tensor:
        views = orbit(t, d4).flatten(0, 1)
        kept = [d4.act(int(d4.group.inverse[g]), view) for g, view in enumerate(net(views))]
        return torch.stack(kept, 1)

    for h in range(8):
        turned = field(d4, "regular").act(h, features(x))
        torch.testing.assert_close(features(d4.act(h, x)), turned)


def test_signed_permutations_given_as_matrices_only_move() -> None:
    turn = matrix([[[1, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]]])
    assert field(grid("c4"), turn).maps == field(grid("c4"), "vector").maps
    assert not field(grid("c4"), turn).mixes
    assert FIELDS["matrix c4"].mixes


@EVERY
def test_pickles(action: FieldAction) -> None:
    again = pickle.loads(pickle.dumps(action))
    assert again == action
    assert again.maps == action.maps


VECTOR, MIXED = FIELDS["vector d4"], FIELDS["matrix c4"]
HOSTILE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "grid of words": (lambda: field("c4", "vector"), TypeError, "grid: expected a grid action .*got str"),  # type: ignore[arg-type]
    "no grid": (lambda: field(trivial(cyclic_group(2)), "regular"), ValueError, "grid: .*moves nothing"),
    "unknown name": (lambda: field(grid("c4"), "tensor"), ValueError, "channels: expected 'regular', 'vector'"),
    "not an action": (lambda: field(grid("c4"), 3), TypeError, "channels: expected .*got int"),  # type: ignore[arg-type]
    "another group": (lambda: field(grid("c4"), SWAP), ValueError, "channels: expected an action of the grid's group"),
    "too many to mix": (
        lambda: field(grid("hflip"), matrix(torch.stack([torch.eye(17), -torch.eye(17)]))),
        *(ValueError, "channels: expected matrices that mix at most 16 channels, got 17"),
    ),
    "regular of a number": (lambda: regular(4), TypeError, "group: expected a Group, got int"),  # type: ignore[arg-type]
    "regular of dim 1": (lambda: regular(cyclic_group(2), dim=1), ValueError, "dim: expected a negative number"),
    "three channels": (
        lambda: orbit(torch.zeros(3, 4, 4), VECTOR),
        *(ValueError, r"x: expected a multiple of 2 channels on dim -3 .*got 3 in shape \(3, 4, 4\)"),
    ),
    "no channels": (lambda: orbit(torch.zeros(4, 4), VECTOR), ValueError, r"at least 3 dims \(…, C, H, W\)"),
    "rectangle": (lambda: orbit(torch.zeros(2, 4, 5), VECTOR), ValueError, "a square image .*4×5"),
    "unsigned": (lambda: orbit(torch.zeros(2, 4, 4).bool(), VECTOR), TypeError, "negative numbers"),
    "integers mixed": (lambda: orbit(torch.zeros(2, 4, 4).int(), MIXED), TypeError, "expected float16"),
    "one element on three channels": (
        lambda: VECTOR.act(1, torch.zeros(3, 4, 4)),
        *(ValueError, r"x: expected a multiple of 2 channels on dim -3 .*got 3 in shape \(3, 4, 4\)"),
    ),
    "one element on bytes": (lambda: VECTOR.act(1, torch.ones(2, 4, 4).byte()), TypeError, "x: .*negative numbers"),
    "one element on integers": (lambda: MIXED.act(1, torch.ones(2, 4, 4).int()), TypeError, "x: expected float16"),
    "no batch": (lambda: EquiTune(abs, VECTOR, VECTOR)(torch.ones(2, 4, 4)), ValueError, r"\(B, …, C, H, W\)"),
    "weights of channels": (
        lambda: orbit_weighted_mean(torch.zeros(4, 2, 2, 3, 3), torch.ones(4, 2, 2), MIXED),
        *(ValueError, r"weights: expected shape y.shape\[:k\] with 1 ≤ k ≤ 2"),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input(name: str) -> None:
    call, error, message = HOSTILE[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.usefixtures("backend")
def test_empty_and_single() -> None:
    action = FIELDS["vector d4"]
    assert orbit(torch.zeros(0, 2, 3, 3), action).shape == (8, 0, 2, 3, 3)
    assert orbit(torch.zeros(2, 0, 3, 3), action).shape == (8, 2, 0, 3, 3)
    assert orbit_mean(torch.zeros(4, 2, 0, 0), FIELDS["matrix c4"]).shape == (2, 0, 0)
    one = orbit(torch.tensor([[[2.0]], [[3.0]]]), FIELDS["matrix c4"])
    assert one.flatten(1).tolist() == [[2.0, 3.0], [-6.0, 1.0], [-2.0, -3.0], [6.0, -1.0]]


@pytest.mark.parametrize("sides", [(6, 6), (4, 6)])
@pytest.mark.parametrize("name", ["vector d4", "regular c4", "matrix c4"])
def test_equitune_with_fields(name: str, sides: tuple[int, int]) -> None:
    """From fields to fields, squares and rectangles: equivariant to every element."""
    torch.manual_seed(0)
    action = FIELDS[name]
    net = torch.nn.Conv2d(action.size, 2 * action.size, 3, padding=1).double()
    model = EquiTune(net, action, action)
    x = torch.randn(2, action.size, *sides, dtype=torch.float64)
    y = model(x)
    for g in range(action.order):
        torch.testing.assert_close(model(action.act(g, x)), action.act(g, y), rtol=0, atol=1e-10)
    (y.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(("name", "flips"), [("c4", False), ("d4", True)])
def test_agrees_with_escnn(name: str, flips: bool) -> None:
    """escnn's own transforms by 90° of regular and vector fields."""
    escnn_nn = pytest.importorskip("escnn.nn", exc_type=ImportError)
    gspaces = pytest.importorskip("escnn.gspaces", exc_type=ImportError)
    space = gspaces.flipRot2dOnR2(4) if flips else gspaces.rot2dOnR2(4)
    theirs = space.fibergroup
    action = grid(name)
    side = 5
    image = torch.arange(float(side * side)).reshape(1, 1, side, side)
    scalar = escnn_nn.FieldType(space, [space.trivial_repr])
    # Which of its elements is which of ours, by what it does to an image.
    elements = []
    for g in range(action.order):
        turned = action.act(g, image)
        elements.append(
            next(e for e in theirs.elements if torch.allclose(scalar.transform(image, e), turned, atol=1e-3))
        )
    inverse = action.group.inverse.tolist()
    # Its regular representation moves h to g h: channel h there is our channel h⁻¹.
    order = [elements.index(e) for e in theirs.elements]
    to_ours = [order.index(inverse[h]) for h in range(action.order)]
    x = torch.randn(2, action.order, side, side)
    their_type = escnn_nn.FieldType(space, [space.regular_repr])
    for g, element in enumerate(elements):
        moved = their_type.transform(x, element)
        ours = field(action, "regular").act(g, x[:, to_ours])
        torch.testing.assert_close(ours, moved[:, to_ours], rtol=1e-4, atol=1e-4)
    their_type = escnn_nn.FieldType(space, [space.basespace_action])
    up = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)  # its y points upwards, dy downwards
    v = torch.randn(2, 2, side, side)
    for g, element in enumerate(elements):
        moved = their_type.transform(v * up, element) * up
        torch.testing.assert_close(field(action, "vector").act(g, v), moved, rtol=1e-4, atol=1e-4)
