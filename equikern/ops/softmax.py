"""The mean of the views' softmaxes, or of their logarithms: ``orbit_mean`` with a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..actions import Action
from ..core import autograd, checks
from ..core import rows as kernels
from ..views import accumulator
from ..views.maps import Placed


def mean(y: object, action: Action, space: str, out: Tensor | None) -> Tensor:
    """See ``orbit_mean``."""
    rows, back = checks.logits("y", y, action)
    dim = -action.dims or -1
    placed = back.placed(rows)
    if out is not None:
        out = checks.output("out", out, tuple(cast(Tensor, y).shape[1:]), rows)
        kernels.softmax_mean_out(rows, *placed, space, out.movedim(dim, -1))
        return out
    if autograd.needs_grad(rows):
        result = _SoftmaxMean.apply(rows, placed, space)  # type: ignore[no-untyped-call]
    else:
        result, _ = kernels.softmax_mean(rows, *placed, space)
    return cast(Tensor, result if dim == -1 else result.movedim(-1, dim))


def mean_in_torch(y: Tensor, placed: Placed, space: str | None) -> Tensor:
    """The same in the accumulator's dtype from parts that differentiate to every order; None averages y itself."""
    p = y.to(accumulator(y))
    if space is not None:
        p = p.softmax(-1) if space == "probs" else p.log_softmax(-1)
    return autograd.total_by(p, placed, 1.0 / y.shape[0])


def gradients(
    call: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of ``call(*inputs)`` in those wanted, such that they can be differentiated again."""
    with torch.enable_grad():
        # An alias of each, so that what else depends on the inputs stays out of it.
        aliases = [t.view_as(t) if t is not None and asked else t for t, asked in zip(inputs, wanted, strict=True)]
        asked_for = [t for t, asked in zip(aliases, wanted, strict=True) if t is not None and asked]
        found = iter(torch.autograd.grad(call(*aliases), asked_for, grad, create_graph=True))
    return tuple(next(found) if t is not None and asked else None for t, asked in zip(inputs, wanted, strict=True))


class _SoftmaxMean(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, placed: Placed, space: str) -> Tensor:
        out, lse = kernels.softmax_mean(y, *placed, space)
        ctx.save_for_backward(y, lse)
        ctx.call = placed, space
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, lse = ctx.saved_tensors
        placed, space = ctx.call
        if torch.is_grad_enabled():  # somebody wants the second derivative

            def call(t: Tensor) -> Tensor:
                return mean_in_torch(t, placed, space).to(t.dtype)

            return (*gradients(call, (y,), (True,), grad), None, None)
        return kernels.softmax_mean_backward(grad, y, lse, *placed, space), None, None
