"""A chosen result with the gradient of one that is weighted: what estimators of ``orbit_select`` are made of."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ..views.maps import Maps, Placed
from .autograd import adjoint, dots_by, tangent, total_by
from .functions import Differentiable, needs_grad

__all__ = ["estimated"]


def estimated(result: Tensor, y: Tensor, weights: Tensor, maps: Maps) -> Tensor:
    """``result`` as it is, with the gradient in the weights that ``Σ_g w_g · map_g(y_g)`` would have in its place."""
    if not needs_grad(result, weights):
        return result
    return cast(Tensor, _Estimated.call(result, y.detach(), weights, maps.placed(y)))


class _Estimated(
    Differentiable,
    schema="estimated(Tensor result, Tensor y, Tensor weights, str views, Tensor? table) -> Tensor",
    tuples={3: 2},
):
    @staticmethod
    def forward(result: Tensor, y: Tensor, weights: Tensor, placed: Placed) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, y, weights, placed = inputs
        ctx.call = adjoint(placed), weights.dim()
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, weight_dims = ctx.call
        (y,) = ctx.saved_tensors
        grad_w = dots_by(grad, y, back, weight_dims) if ctx.needs_input_grad[2] else None
        return grad, None, grad_w, None

    @staticmethod
    def jvp(ctx: Any, result_t: Tensor | None, _y: None, weights_t: Tensor | None, *_: Any) -> Tensor | None:
        (y,) = ctx.saved_tensors
        placed = adjoint(ctx.call[0])
        return tangent((result_t, Tensor.clone), (weights_t, lambda t: total_by(y, placed, 1.0, t)))
