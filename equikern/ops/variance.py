"""``orbit_variance``: how far views are from agreeing, as a loss of symmetry while training."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks, library
from ..core.functions import Differentiable, needs_grad
from ..views import accumulator, of
from ..views.maps import Placed

__all__ = ["orbit_variance"]


def orbit_variance(y: Tensor, action: Action, dims: int = 0) -> Tensor:
    """The variance of the views transformed back, averaged over their elements: zero where a model is equivariant.

    ``1/n Σ_i 1/|G| Σ_g (v_g − mean)²`` with ``v_g = g⁻¹ y[g]``, n elements to a view. Added to a loss, it trains a
    backbone towards symmetry; on its own it measures what is missing.

    One pass: reads |G|n elements, and nothing of a view's size is written or kept. So is the backward,
    ``∂L/∂y[g] = 2/(|G| n) (y[g] − g·mean)``, which reads |G|n and writes |G|n: the mean is found again from the views.
    They are compared with one another before anything is squared, so that nothing cancels where they nearly agree far
    from zero. Sums are in a fixed order, on a CPU whatever the threads. (Under actions that multiply, by matrices of
    coordinates or of a field's channels, the standard deviation is written, and read again. Under those and under
    actions that change signs, and for derivatives of higher order, the backward is composed of operators.)

    Args:
        y: (|G|, \\*lead, H, W), the backbone's output for every view, any strides; float16, bfloat16, float32 or
            float64. Square where the action turns by 90°; a permutation's n entries on the dim that it permutes,
            whatever is behind it.
        action: how the group acts on one output; ``trivial(group)`` for an invariant one such as class logits.
        dims: how many of the leading dims keep a variance of their own: 0 for one number, 1 for one of each sample.

    Returns:
        lead[:dims] in float32 (float64 for float64), in which deviations are squared. NaN for no elements, as of
        torch's means.

    Raises:
        TypeError: y is not a dense float tensor, action is not an action, or dims is no whole number.
        ValueError: dim 0 is not |G|, wrong rank or size, not square under a 90° rotation, or more dims than y has in
            front of those that the action moves.

    Example:
        >>> import torch
        >>> from equikern import grid, orbit
        >>> y = torch.tensor([[[1.0, 2.0]], [[5.0, 3.0]]], requires_grad=True)
        >>> loss = orbit_variance(y, grid("hflip"))  # 3, 5 flipped back lie beside 1, 2
        >>> loss.backward()
        >>> loss.item(), y.grad.tolist()
        (1.625, [[[-0.5, -0.75]], [[0.75, 0.5]]])
        >>> orbit_variance(orbit(torch.rand(2, 3, 4, 4), grid("d4")), grid("d4"), dims=1).tolist()
        [0.0, 0.0]
    """
    y, action = checks.views("y", y, action)
    dims = checks.whole("dims", dims, 0)
    most = y.dim() - 1 - action.dims
    if dims > most:
        raise ValueError(
            f"dims: expected at most {most}, the dims of y {tuple(y.shape)} between its views and what {action.name!r} "
            f"moves, got {dims}"
        )
    placed = action.inverse_maps.placed(y)
    if needs_grad(y):
        return cast(Tensor, _Variance.call(y, placed, dims))
    return cast(Tensor, library.variance(y, *placed, dims))


class _Variance(
    Differentiable, schema="variance(Tensor y, str views, Tensor? table, int dims) -> Tensor", tuples={1: 2}
):
    @staticmethod
    def forward(y: Tensor, placed: Placed, dims: int) -> Tensor:
        return cast(Tensor, library.variance(y, *placed, dims))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, *ctx.call = inputs
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        placed, dims = ctx.call
        factors = grad * 2.0 / _count(y, dims)  # the slope is so many times the deviation
        if torch.is_grad_enabled() or of(placed[0]).signed:  # else somebody wants the second derivative
            each = factors.reshape((*factors.shape, *(1,) * (y.dim() - 1 - dims)))
            return (_slope(y, placed) * each).to(y.dtype), None, None
        return library.variance_backward(factors, y, *placed), None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        placed, dims = ctx.call
        products = _slope(y, placed) * y_t
        if y.dim() > 1 + dims:
            products = products.flatten(1 + dims).sum(-1)
        return products.sum(0) * 2.0 / _count(y, dims)


def _count(y: Tensor, dims: int) -> int:
    """``|G| n``, n the elements that are averaged."""
    return y.shape[0] * math.prod(y.shape[1 + dims :])


def _slope(saved: Tensor, placed: Placed) -> Tensor:
    """``y[g] − g·mean`` in the accumulator's dtype, made of operators that differentiate again.

    Of matrices, whose inverse is not their adjoint, the adjoint of what takes views back of ``v_g − mean``.
    """
    y, forth = saved.to(accumulator(saved)), autograd.adjoint(placed)
    if of(placed[0]).kind.computes:
        views = autograd.each_by(y, 0, placed)
        return autograd.each_by(views - views.mean(0), 0, forth)
    for _ in range(2):  # the second time takes away how the mean was rounded
        y = y - autograd.orbit_by(autograd.total_by(y, placed, 1.0 / y.shape[0]), forth, 1.0)
    return y
