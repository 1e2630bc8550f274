"""Grids of three dims: the groups, their views against torch's flip and permute, every operator on every backend."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from equikern import (
    EquiTune,
    GridAction,
    cyclic_group,
    grid,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_weighted_mean,
    symmetrize,
    use_backend,
)
from equikern.core import library
from helpers.looped import each
from helpers.strategies import bits, laid_out, random_bits, random_values
from torch import Tensor

ORDERS = {"flips3d": 8, "rot3d": 24, "oct": 48}
NAMED = pytest.mark.parametrize("name", ORDERS)


def viewed(x: Tensor, word: str) -> Tensor:
    """A view as its word says it, in torch."""
    axes = ["dhw".index(letter.lower()) - 3 for letter in word]
    return x.movedim(axes, (-3, -2, -1)).flip([k - 3 for k, letter in enumerate(word) if letter.isupper()])


@NAMED
def test_is_the_group_of_its_name(name: str) -> None:
    action = grid(name, dims=3)
    assert (action.order, action.dims, action.square) == (ORDERS[name], 3, name != "flips3d")
    assert len(set(action.words)) == action.order
    every = {"".join(a.upper() if f else a for a, f in zip(order, flips, strict=True))
             for order in permutations("dhw") for flips in product((0, 1), repeat=3)}  # fmt: skip
    assert set(action.words) <= every
    if name == "rot3d":  # rotations: no mirror images, which have determinant −1
        for word in action.words:
            m = torch.zeros(3, 3)
            for k, letter in enumerate(word):
                m[k, "dhw".index(letter.lower())] = -1.0 if letter.isupper() else 1.0
            assert m.det() == 1
    x = torch.arange(27).reshape(3, 3, 3)
    for g in range(action.order):
        assert torch.equal(action.act(g, x), viewed(x, action.words[g]))
        for h in range(0, action.order, 5):
            assert torch.equal(action.act(int(action.group.multiply[g, h]), x), action.act(g, action.act(h, x)))


def test_agrees_with_rot90() -> None:
    x = torch.randn(2, 4, 4, 4)
    action = grid("rot3d", dims=3)
    for axes, word in (((-2, -1), "dWh"), ((-3, -1), "Whd"), ((-3, -2), "Hdw")):
        assert torch.equal(action.act(action.words.index(word), x), torch.rot90(x, 1, axes))


@NAMED
@each("layout", ["contiguous", "channels_last", "rows", "transposed"])
@pytest.mark.usefixtures("backend")
def test_views_bit_for_bit(name: str, layout: str) -> None:
    action = grid(name, dims=3)
    for dtype, side in ((torch.uint8, 5), (torch.bfloat16, 7), (torch.float32, 16), (torch.int64, 3)):
        shape = (2, 3, side, side, side) if action.square else (2, 3, side, side + 2, side + 1)
        x = random_bits(shape, dtype, side)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else laid_out(x, layout)
        views = orbit(x, action)
        assert torch.equal(bits(views), bits(torch.stack([viewed(x, word) for word in action.words])))
        if layout == "channels_last":
            assert views.stride(-4) == 1
        back = orbit_select(views, torch.eye(action.order)[0], action, "max")
        assert torch.equal(bits(back), bits(x))


LARGE = [("oct", (2, 33, 33, 33)), ("flips3d", (2, 20, 70, 50)), ("rot3d", (1, 72, 72, 72))]


@pytest.mark.parametrize(("name", "shape"), LARGE)
def test_large_volumes_agree_with_plain_torch(name: str, shape: tuple[int, ...]) -> None:
    """Volumes that are cut into boxes."""
    action = grid(name, dims=3)
    x = random_values(shape, torch.float32)
    y = random_values((action.order, *shape), torch.float32, 1, "positive")
    weights = torch.rand(action.order, shape[0]) + 0.1
    found = {}
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            found[backend] = [
                orbit(x, action),
                orbit_mean(y, action),
                orbit_weighted_mean(y, weights, action),
                orbit_select(y, weights, action),
                orbit_reduce(y, action, "max"),
                *orbit_reduce(y, action, "mean_std"),
                symmetrize(x, action),
                *library.orbit_dot(x, y, action.maps.code, None, weights),
            ]
    for ours, plain in zip(found["cpu"], found["reference"], strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-5 * float(plain.abs().max()))


@pytest.mark.usefixtures("backend")
def test_gradients() -> None:
    action = GridAction(cyclic_group(4), ["dhw", "Whd", "DhW", "whD"], "about h")
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.rand(4, 2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: orbit(t, action), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda t, w: orbit_weighted_mean(t, w, action), (y, weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: orbit_reduce(t, action, "gmean"), y, fast_mode=True)


def test_sides_that_do_not_change_places_are_free() -> None:
    about_d = GridAction(cyclic_group(4), ["dhw", "dWh", "dHW", "dwH"], "about d")
    assert orbit(torch.zeros(2, 5, 3, 3), about_d).shape == (4, 2, 5, 3, 3)
    assert orbit(torch.zeros(2, 5, 3, 4), grid("flips3d", dims=3)).shape == (8, 2, 5, 3, 4)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("sides", [(2, 4, 6), (3, 5, 70), (40, 50, 60)])
def test_what_is_not_chosen_is_zero(sides: tuple[int, ...]) -> None:
    """Also where every view turns a box: its planes are others than the input's."""
    x, index = torch.randn(2, 3, *sides), torch.tensor([1, 0])
    views = library.orbit(x, "whd WHd", None, 1.0, None, index)
    turned = x.permute(0, 1, 4, 3, 2)
    expected = torch.stack([torch.zeros_like(turned), torch.zeros_like(turned)])
    expected[1, 0], expected[0, 1] = turned.flip(2, 3)[0], turned[1]
    assert torch.equal(views, expected)


@pytest.mark.parametrize("name", ["rot3d", "oct"])
def test_rotations_ask_for_cubes(name: str) -> None:
    with pytest.raises(ValueError, match=rf'x: expected a volume whose sides are alike where "{name}".* got 4×4×5; .*'):
        orbit(torch.zeros(2, 4, 4, 5), grid(name, dims=3))
    with pytest.raises(ValueError, match=r"y: expected a volume .* got 3×4×4"):
        orbit_mean(torch.zeros(ORDERS[name], 3, 4, 4), grid(name, dims=3))


def test_a_name_tells_its_dims() -> None:
    for name in ORDERS:
        assert grid(name) is grid(name, dims=3)
    assert grid("c4") is grid("c4", dims=2)
    assert grid("trivial") is grid("trivial", dims=2)
    still, x = grid("trivial", dims=3), torch.randn(2, 3, 4, 5)
    assert torch.equal(orbit(x, still), x[None])
    net = torch.nn.Conv3d(1, 2, 3, padding=1)
    torch.testing.assert_close(
        EquiTune(net, "rot3d", "rot3d")(x[:, None]), EquiTune(net, *[grid("rot3d")] * 2)(x[:, None])
    )


def test_bad_names_and_dims() -> None:
    for name, dims, message in (
        ("oct", 2, "dims: expected 3 for 'oct', got 2"),
        ("d4", 3, "dims: expected 2 for 'd4', got 3"),
        ("cube", 3, "name: expected one of .*oct, got 'cube'"),
    ):
        with pytest.raises(ValueError, match=message):
            grid(name, dims=dims)
    with pytest.raises(ValueError, match=r"words\[1\]: expected the letters d, h and w once each.*got 'hw'"):
        GridAction(cyclic_group(2), ["dhw", "hw"])
    with pytest.raises(ValueError, match=r"at least 3 dims \(…, D, H, W\)"):
        orbit(torch.zeros(3, 3), grid("oct", dims=3))


@pytest.mark.parametrize("sides", [(4, 4, 4), (2, 3, 4), (3, 3, 5)])
@pytest.mark.parametrize("views_per_forward", [None, 5])
def test_equitune_on_volumes(sides: tuple[int, ...], views_per_forward: int | None) -> None:
    """Equivariant to every element, boxes included: views of up to six shapes, each in forwards of its own."""
    torch.manual_seed(0)
    action = grid("oct", dims=3)
    net = torch.nn.Conv3d(1, 2, 3, padding=1).double()
    model = EquiTune(net, action, action, views_per_forward=views_per_forward)
    x = torch.randn(2, 1, *sides, dtype=torch.float64)
    y = model(x)
    assert y.shape == (2, 2, *sides)
    for g in range(0, 48, 7):
        torch.testing.assert_close(model(action.act(g, x)), action.act(g, y), rtol=0, atol=1e-10)
    views = model.views(x)
    torch.testing.assert_close(views.mean(0), y)
