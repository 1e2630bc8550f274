"""The mean of the views' softmaxes, or of their logarithms: ``orbit_mean`` with a space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks
from ..core import rows as kernels
from ..core.functions import Differentiable, needs_grad, transformed
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
    if needs_grad(rows):
        result = _SoftmaxMean.call(rows, placed, space)
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
    if transformed():  # which has levels of its own, and where torch.autograd.grad is none of them
        places = [i for i, (t, asked) in enumerate(zip(inputs, wanted, strict=True)) if t is not None and asked]

        def of_wanted(*some: Tensor) -> Tensor:
            return call(*(some[places.index(i)] if i in places else t for i, t in enumerate(inputs)))

        back: Any = torch.func.vjp(of_wanted, *(inputs[i] for i in places))[1]
        slopes = dict(zip(places, back(grad), strict=True))
        return tuple(slopes.get(i) for i in range(len(inputs)))
    with torch.enable_grad():
        aliases = [_alias(t) if t is not None and asked else t for t, asked in zip(inputs, wanted, strict=True)]
        asked_for = [t for t, asked in zip(aliases, wanted, strict=True) if t is not None and asked]
        found = iter(torch.autograd.grad(call(*aliases), asked_for, grad, create_graph=True))
    return tuple(next(found) if t is not None and asked else None for t, asked in zip(inputs, wanted, strict=True))


def _alias(t: Tensor) -> Tensor:
    """The same numbers, so that what else depends on a tensor stays out of a gradient in it."""
    alias = t.view_as(t)
    # Behind a transform that has ended, as in what torch.func.vjp returns, nothing requires grad any more.
    return alias if alias.requires_grad else alias.detach().requires_grad_()


def tangent(call: Callable[..., Tensor], inputs: Sequence[Tensor | None], tangents: Sequence[Tensor | None]) -> Tensor:
    """The tangent of ``call(*inputs)``: its gradient, transposed, since torch nests no forward modes."""
    places = [i for i, t in enumerate(tangents) if t is not None]

    def of_moving(*some: Tensor) -> Tensor:
        return call(*(some[places.index(i)] if i in places else t for i, t in enumerate(inputs)))

    result, back = cast(Any, torch.func.vjp(of_moving, *(inputs[i] for i in places)))
    forth: Any = torch.func.vjp(back, torch.zeros_like(result))[1]
    return cast(Tensor, forth(tuple(tangents[i] for i in places))[0])


class _SoftmaxMean(
    Differentiable,
    schema="softmax_mean(Tensor y, str views, Tensor? table, str space) -> (Tensor, Tensor)",
    tuples={1: 2},
):
    hidden = 1

    @staticmethod
    def forward(y: Tensor, placed: Placed, space: str) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], kernels.softmax_mean(y, *placed, space))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        y, *ctx.call = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(y, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, lse = ctx.saved_tensors
        placed, space = ctx.call
        if torch.is_grad_enabled():  # somebody wants the second derivative

            def call(t: Tensor) -> Tensor:
                return mean_in_torch(t, placed, space).to(t.dtype)

            return (*gradients(call, (y,), (True,), grad), None, None)
        return kernels.softmax_mean_backward(grad, y, lse, *placed, space), None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        y, _lse = ctx.saved_tensors
        placed, space = ctx.call
        return tangent(lambda t: mean_in_torch(t, placed, space).to(t.dtype), (y,), (y_t,))
