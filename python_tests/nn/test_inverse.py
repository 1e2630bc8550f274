"""``EquiZero.inverse``: every input of an output, the only one where there is one, and its derivative."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from equikern import EquiZero, grid, matrix, permutation
from torch import Tensor, nn


class Affine(nn.Module):
    """An invertible map of all entries of a sample at once, with a bend."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.register_buffer("w", w / math.sqrt(size) + torch.eye(size, dtype=torch.float64))
        self.register_buffer("b", torch.randn(size, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.get_buffer("w") + self.get_buffer("b")).asinh().unflatten(1, x.shape[1:])

    def inverse(self, y: Tensor) -> Tensor:
        return ((y.flatten(1).sinh() - self.get_buffer("b")) @ self.get_buffer("w").inverse()).unflatten(1, y.shape[1:])


class Ordered(nn.Module):
    """Keeps the order of the entries, and bends them by where the largest one is."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * x.argmax(-1, keepdim=True)) + x.argmax(-1, keepdim=True)

    def inverse(self, y: Tensor) -> Tensor:
        return (y - y.argmax(-1, keepdim=True)) / (1 + 0.1 * y.argmax(-1, keepdim=True))


def by_sum(y: Tensor) -> Tensor:
    """Of (n, B, …) outputs, by which place of them is how large."""
    rows = y.flatten(2)
    return (rows * torch.linspace(-1, 1, rows.shape[2], dtype=rows.dtype)).sum(2)


def turns(n: int) -> Any:
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    c, s = angles.cos(), angles.sin()
    return matrix(torch.stack((c, -s, s, c), -1).reshape(n, 2, 2))


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "c4": (grid("c4"), (1, 3, 3)),
    "d4": (grid("d4"), (2, 2, 2)),
    "three turns": (turns(3), (2,)),
    "cyclic": (permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]]), (3,)),
}


@pytest.mark.parametrize("name", CASES)
def test_preimages_are_all_inputs_of_an_output(name: str) -> None:
    action, shape = CASES[name]
    backbone = Affine(math.prod(shape), seed=4)
    model = EquiZero(backbone, action, action, by_sum, gradient="selected")
    x = torch.randn(100, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, chosen = model(x), model.chosen(x)
    torch.testing.assert_close(model.inverse(y, chosen), x)
    found, fits = model.preimages(y)
    assert found.shape == (action.order, *x.shape)
    for g in range(action.order):
        written = action.act(action.group.inverse[g], backbone.inverse(action.act(g, y)))
        torch.testing.assert_close(found[g], written)
        assert torch.equal(fits[g], model.chosen(found[g]) == g)
        gives = (model(found[g]) - y).abs().flatten(1).amax(1) < 1e-9
        assert torch.equal(gives, fits[g])
    assert bool(fits.gather(0, chosen[None]).all())
    several = fits.sum(0) > 1
    assert bool(several.any())  # maps at random send orbits anywhere
    assert bool((~several).any())
    torch.testing.assert_close(model.inverse(y[~several]), x[~several])
    with pytest.raises(ValueError, match=r"that one input gives, but sample \d+ has several, by \w+"):
        model.inverse(y)
    anything = torch.randn(200, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    none = ~model.preimages(anything)[1].any(0)
    assert bool(none.any())
    with pytest.raises(ValueError, match="sample 0 has no input that gives it"):
        model.inverse(anything[none])


def test_there_is_one_where_the_backbone_keeps_the_domain() -> None:
    """Outputs tell what was chosen: then the model is a bijection, and what it inverts to is equivariant."""
    action = CASES["cyclic"][0]
    model = EquiZero(Ordered(), action, action, lambda y: y.argmax(-1).double())
    y = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    x = model.inverse(y)
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(model.inverse(model(y)), y)
    assert bool((model.preimages(y)[1].sum(0) == 1).all())
    for g in range(3):
        torch.testing.assert_close(model.inverse(action.act(g, y)), action.act(g, x))
    assert model.inverse(y[:0]).shape == (0, 3)
    assert not torch.equal(model(y), model.backbone(y))


def test_rectangles_and_parts() -> None:
    class Pointwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sinh()

        def inverse(self, y: Tensor) -> Tensor:
            return y.asinh()

    x = torch.randn(16, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for views in (None, 1, 3):
        model = EquiZero(Pointwise(), "d4", "d4", lambda y: y[..., 0, 0].sum(-1), views_per_forward=views)
        torch.testing.assert_close(model.inverse(model(x)), x)
        chosen = model.chosen(x)
        assert {int(g) % 2 for g in chosen} == {0, 1}  # upright and lying ones are chosen in one batch
        torch.testing.assert_close(model.inverse(model(x), chosen), x)
        assert model.inverse(model(x)[:0], chosen[:0]).shape == (0, 2, 4, 6)
    flat = EquiZero(Pointwise(), "d4", "trivial", lambda y: y[..., 0, 0].sum(-1))
    with pytest.raises(ValueError, match=r"y: expected outputs whose shape says which way their inputs lie"):
        flat.inverse(x)


class Logistic(nn.Module):
    """Onto what lies between 0 and 1, on which alone its inverse is defined."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def inverse(self, y: Tensor) -> Tensor:
        return y.logit()


class Square(nn.Module):
    """Of numbers from 0 on; of others its inverse is not defined, nor is the derivative of that."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()

    def inverse(self, y: Tensor) -> Tensor:
        return y.sqrt()


@pytest.mark.parametrize("backbone", [Logistic(), Square()])
def test_candidates_on_which_the_inverse_is_not_defined_are_none(backbone: nn.Module) -> None:
    sign = matrix([[[1.0]], [[-1.0]]])
    model = EquiZero(backbone, sign, sign, lambda y: -y[..., 0], gradient="selected")
    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    y = model(x).detach().requires_grad_()
    found, fits = model.preimages(y)
    assert fits.tolist() == [[True, True], [False, False]]
    assert found[1].isnan().all()
    back = model.inverse(y)
    torch.testing.assert_close(back, x)
    (slope,) = torch.autograd.grad(back.sum(), y)
    assert torch.autograd.gradcheck(model.inverse, (y,))
    assert bool(slope.isfinite().all())


def test_inputs_that_views_leave_alone() -> None:
    """Their views tie: what they agree on goes back, and what is averaged of them has no input that gives it."""
    symmetric = torch.tensor([[0.0, 1, 0], [1, 3, 1], [0, 1, 0]], dtype=torch.float64).view(1, 1, 3, 3)
    agreeing = EquiZero(Affine(9), "c4", "c4", by_sum)
    agreeing.backbone.get_buffer("w").copy_(torch.eye(9) * 2)
    agreeing.backbone.get_buffer("b").fill_(0.5)
    y = agreeing(symmetric)
    torch.testing.assert_close(agreeing.inverse(y, agreeing.chosen(symmetric)), symmetric)
    model = EquiZero(Affine(9), "c4", "c4", by_sum)
    y = model(symmetric)
    torch.testing.assert_close(y.rot90(1, (-2, -1)), y)
    with pytest.raises(ValueError, match=r"sample 0 has no input that gives it; .* ties and rounding can hide them"):
        model.inverse(y)


def test_derivatives_are_inverse_to_each_other() -> None:
    action = turns(3)
    model = EquiZero(Affine(2), action, action, by_sum, gradient="selected")
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y, chosen = model(x).detach(), model.chosen(x)
    one = model.preimages(y)[1].sum(0) == 1
    for k in one.nonzero().flatten().tolist():
        ahead = torch.autograd.functional.jacobian(lambda t: model(t[None])[0], x[k])  # type: ignore[no-untyped-call]
        for given in (None, chosen[k : k + 1]):
            back = torch.autograd.functional.jacobian(lambda t, g=given: model.inverse(t[None], g)[0], y[k])  # type: ignore[no-untyped-call]
            torch.testing.assert_close(back @ ahead, torch.eye(2, dtype=torch.float64))
    assert bool(one.any())


def test_what_has_no_inverse_is_refused() -> None:
    y = torch.randn(3, 1, 4, 4)
    with pytest.raises(TypeError, match="backbone: expected one with a method inverse, got Identity"):
        EquiZero(nn.Identity(), "c4", "c4").inverse(y)
    model = EquiZero(Affine(16), "c4", {"map": "c4"}, by_sum)
    with pytest.raises(TypeError, match="inverse: expected a model of one input and one output"):
        model.inverse(y)
    model = EquiZero(Affine(16), "c4", "c4", by_sum)
    with pytest.raises(TypeError, match=r"y: expected a tensor \(B, …\), got list"):
        model.inverse([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"y: expected a tensor \(B, …\), got list"):
        model.inverse([1.0], torch.zeros(1, dtype=torch.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chosen: expected"):
        model.inverse(y.double(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"chosen: expected an element for each sample, \(B,\)"):
        model.inverse(y.double(), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"y: expected a batch \(B, …\) that 'c4' acts on, got shape \(4, 4\)"):
        model.inverse(y[0, 0].double())
    with pytest.raises(TypeError, match=r"chosen: expected"):
        model.inverse(y.double(), torch.zeros(3))
    model.backbone.inverse = lambda y: y[:1]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"backbone.inverse: expected a batch of 3"):
        model.inverse(y.double())
