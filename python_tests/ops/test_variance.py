"""``orbit_variance``: its value and gradient, also where views nearly agree, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from equikern import EquiTune, grid, matrix, orbit, orbit_variance, tokens, trivial
from helpers import definitions
from helpers.looped import each
from helpers.oracles import CASES
from helpers.strategies import FLOATS, random_values
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("backend")


def both(y: Tensor, name: str, dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The values and the gradients, ours and from the definition in float64."""
    case, leaf, wide = CASES[name], y.detach().requires_grad_(), y.detach().double().requires_grad_()
    ours = orbit_variance(leaf, case.action, dims)
    right = definitions.variance(case.undone(wide), dims)
    incoming = 1.0 + torch.arange(right.numel(), dtype=torch.float64).reshape(right.shape)
    return (
        ours.detach(),
        right.detach(),
        torch.autograd.grad(ours, leaf, incoming.to(ours.dtype))[0],
        torch.autograd.grad(right, wide, incoming)[0],
    )


@each("name", CASES)
def test_every_action(name: str) -> None:
    case = CASES[name]
    for dtype in FLOATS:
        y = random_values((case.order, *case.shape(2, 3, side=4)), dtype, 1)
        eps = torch.finfo(dtype).eps
        for dims in range(3):
            ours, right, grad, slope = both(y, name, dims)
            assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert ours.shape == y.shape[1 : 1 + dims]
            torch.testing.assert_close(ours.double(), right, rtol=16 * eps, atol=0.0 if case.order > 1 else eps)
            torch.testing.assert_close(grad.double(), slope, rtol=0.0, atol=16 * eps * float(slope.abs().max() + 1e-9))


def test_views_that_nearly_agree_far_from_zero() -> None:
    """Where the mean of the squares less the square of the mean has no digit left."""
    steps = torch.tensor([0.0, 0.25, 0.5, 1.0])
    y = (4096 + steps).reshape(4, 1, 1, 1).expand(4, 2, 5, 5)
    ours, right, grad, slope = both(y, "c4", 1)
    torch.testing.assert_close(ours.double(), right, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-9)


@each("name", CASES)
def test_values_that_vary_in_their_last_digits(name: str) -> None:
    case = CASES[name]
    if case.multiplies:  # a product rounds them away
        return
    y = 1e4 + 1e-2 * random_values((case.order, *case.shape(2, 3, side=6)), torch.float32, 3)
    ours, right, grad, slope = both(y, name, 1)
    torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


def test_small_gradients_of_float16() -> None:
    """A mean over many elements: its share of the gradient alone is no number of float16."""
    y = random_values((4, 1, 4, 256, 256), torch.float16, 2)
    leaf = y.requires_grad_()
    (grad,) = torch.autograd.grad(orbit_variance(leaf, grid("c4")) * 2.0**15, leaf)  # as loss scaling does
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.9


def test_nothing_is_left_of_an_orbit() -> None:
    for name in ("d4", "flow", "signed", "cycle3"):
        case = CASES[name]
        leaf = case.orbit(torch.randn(case.shape(2, 3, side=6))).requires_grad_()
        loss = orbit_variance(leaf, case.action)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert float(loss.detach()) < 1e-12, name
        assert float(grad.abs().max()) < 1e-6, name
        curvature = torch.autograd.functional.hvp(
            lambda t, a=case.action: orbit_variance(t, a), leaf.detach(), grad + 1
        )
        assert curvature[1].isfinite().all(), name


def test_training_makes_a_model_equivariant() -> None:
    torch.manual_seed(0)
    d4, model = grid("d4"), nn.Conv2d(1, 1, 3, padding=1)
    adam, x = torch.optim.Adam(model.parameters(), lr=0.05), torch.randn(4, 1, 8, 8)

    def variance() -> Tensor:
        return orbit_variance(model(orbit(x, d4).flatten(0, 1)).unflatten(0, (8, 4)), d4)

    before = variance().item()
    for _ in range(60):
        adam.zero_grad()
        variance().backward()
        adam.step()
    assert variance().item() < 1e-2 * before
    whole = EquiTune(model, d4, d4)(x)
    assert (model(x) - whole).square().mean() < 0.05 * whole.square().mean()


def test_no_elements() -> None:
    for shape, dims in (((4, 0, 3, 3), 0), ((4, 2, 0, 0), 1), ((4, 0, 3, 3), 1)):
        leaf = torch.zeros(shape, requires_grad=True)
        ours = orbit_variance(leaf, grid("c4"), dims)
        assert ours.shape == shape[1 : 1 + dims]
        assert bool(ours.isnan().all())
        assert torch.autograd.grad(ours.sum(), leaf)[0].shape == shape


def test_refusals() -> None:
    y, c4 = torch.zeros(4, 2, 3, 3), grid("c4")
    with pytest.raises(TypeError, match="y: expected float16"):
        orbit_variance(y.int(), c4)
    with pytest.raises(TypeError, match="dims: expected"):
        orbit_variance(y, c4, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dims: expected 0 or more"):
        orbit_variance(y, c4, -1)
    with pytest.raises(ValueError, match=r"dims: expected at most 1, the dims of y \(4, 2, 3, 3\)"):
        orbit_variance(y, c4, 2)
    with pytest.raises(ValueError, match="4 views on dim 0"):
        orbit_variance(y[:3], c4)
    with pytest.raises(ValueError, match="square"):
        orbit_variance(y[..., :2], c4)
    with pytest.raises(TypeError, match="token ids"):
        orbit_variance(torch.zeros(2, 3), tokens([[0, 1], [1, 0]]))
    assert orbit_variance(y[..., 0, 0], trivial(c4.group), 1).tolist() == [0.0, 0.0]
    assert orbit_variance(torch.ones(1, 2), matrix([[[1.0, 0.0], [0.0, 1.0]]])).item() == 0.0
