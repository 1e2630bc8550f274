"""The mean of the views' softmaxes, or of their logarithms: ``orbit_mean`` with a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..actions import Action
from . import autograd, checks, library


def mean(y: object, action: Action, space: str, out: Tensor | None) -> Tensor:
    """See ``orbit_mean``."""
    rows, last = checks.logits("y", y, action)
    dim = -action.dims or -1
    if out is not None:
        out = checks.output("out", out, tuple(cast(Tensor, y).shape[1:]), rows)
        library.softmax_mean_out(rows, last.inverse_maps, space, out.movedim(dim, -1))
        return out
    if autograd.needs_grad(rows):
        result = _SoftmaxMean.apply(rows, last.maps, last.inverse_maps, space)  # type: ignore[no-untyped-call]
    else:
        result, _ = library.softmax_mean(rows, last.inverse_maps, space)
    return cast(Tensor, result).movedim(-1, dim)


def mean_in_torch(y: Tensor, maps: str, inverse: str, space: str | None) -> Tensor:
    """The same in the accumulator's dtype from parts that differentiate to every order; None averages y itself."""
    p = y.to(library.accumulator(y))
    if space is not None:
        p = p.softmax(-1) if space == "probs" else p.log_softmax(-1)
    return autograd.total(p, maps, inverse, 1.0 / y.shape[0])


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
    def forward(ctx: Any, y: Tensor, maps: str, inverse: str, space: str) -> Tensor:
        out, lse = library.softmax_mean(y, inverse, space)
        ctx.save_for_backward(y, lse)
        ctx.call = maps, inverse, space
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, lse = ctx.saved_tensors
        maps, inverse, space = ctx.call
        if torch.is_grad_enabled():  # somebody wants the second derivative

            def call(t: Tensor) -> Tensor:
                return mean_in_torch(t, maps, inverse, space).to(t.dtype)

            return (*gradients(call, (y,), (True,), grad), None, None, None)
        return library.softmax_mean_backward(grad, y, lse, inverse, space), None, None, None
