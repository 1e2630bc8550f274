"""Derivatives of the registered operators, made of the same operators, so that every order exists.

With map_g the views of an action, everything linear comes from one trilinear form

    F(x, y, w) = Σ_g w_g ⟨map_g(x), y_g⟩

whose partial derivatives are the kernels: ∂F/∂y is the (weighted) orbit, ∂F/∂x the (weighted) sum of the adjoint
views, ∂F/∂w the dots. So each one's gradient is a pair of the others. ``take`` and ``put`` (the chosen view, and its
adjoint) are the same pair for a selection; ``each``, which maps every view by its own element, is its own. ``maps``
always names the views x → y, ``adjoint`` those of y → x: each is the adjoint of the other. For views that only move
entries, and for orthogonal matrices, that is the inverse; for other matrices the transpose.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import library

_Grads = tuple[Tensor | None, ...]
_NONE: Any = (None, None)  # what a Function without weights saved: nothing, which is faster than two Nones


def needs_grad(t: Tensor, other: Tensor | None = None) -> bool:
    """Whether autograd must see a call with these inputs.

    In forward mode too, although the Functions have no forward derivative: they say so, where the operators below them
    would drop it silently.
    """
    if torch.is_grad_enabled() and (t.requires_grad or (other is not None and other.requires_grad)):
        return True
    return in_forward_mode()


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative may be under way."""
    return getattr(forward_ad, "_current_level", -1) >= 0  # torch has no public way to ask


def laid_out(grad: Tensor, channels_last: int) -> Tensor:
    """A gradient of one view in the forward's layout: poolings send contiguous or expanded ones, whatever they got.

    ``channels_last`` is ``library.channels_dim`` of what the forward got.
    """
    if not channels_last or library.channels_dim(grad) == channels_last:
        return grad
    return grad.movedim(channels_last, -1).contiguous().movedim(-1, channels_last)


def orbit(x: Tensor, maps: str, adjoint: str, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``scale · w_g · map_g(x)`` for every g: (*lead, H, W) → (|G|, *lead, H, W)."""
    if needs_grad(x, weights):
        return cast(Tensor, _Orbit.apply(x, weights, maps, adjoint, scale))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.orbit(x, maps, scale, weights, None))


def total(y: Tensor, maps: str, adjoint: str, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``scale · Σ_g w_g · adjoint_g(y_g)``: (|G|, *lead, H, W) → (*lead, H, W)."""
    if needs_grad(y, weights):
        return cast(Tensor, _Total.apply(y, weights, maps, adjoint, scale))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.reduce(y, adjoint, "sum", scale, weights))


def mean_plus(y: Tensor, plus: Tensor, maps: str, adjoint: str) -> Tensor:
    """``1/|G| Σ_g adjoint_g(y_g + plus)``: the mean of the views and the symmetrised ``plus`` in one pass."""
    if needs_grad(y, plus):
        return cast(Tensor, _MeanPlus.apply(y, plus, maps, adjoint))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.mean_plus(y, plus, adjoint))


def symmetrize(x: Tensor, maps: str, adjoint: str) -> Tensor:
    """``1/|G| Σ_g adjoint_g(x)``: one tensor seen |G| times, so that the mean of its views is one kernel."""
    if needs_grad(x):
        return cast(Tensor, _Symmetrize.apply(x, maps, adjoint))  # type: ignore[no-untyped-call]
    return _symmetrized(x, adjoint)


def _symmetrized(x: Tensor, adjoint: str) -> Tensor:
    order = adjoint.count(" ") + 1
    return cast(Tensor, library.reduce(x.expand(order, *x.shape), adjoint, "sum", 1.0 / order, None))


def weighted_mean(y: Tensor, weights: Tensor, maps: str, adjoint: str) -> Tensor:
    """``Σ_g w_g · adjoint_g(y_g) / Σ_g w_g``, the division done by the same kernel."""
    if needs_grad(y, weights):
        return cast(Tensor, _WeightedMean.apply(y, weights, maps, adjoint))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.reduce(y, adjoint, "weighted_mean", 1.0, weights))


def dots(x: Tensor, y: Tensor, maps: str, adjoint: str, weight_dims: int) -> Tensor:
    """``⟨map_g(x), y_g⟩`` over all but the first weight_dims dims of y."""
    if needs_grad(x, y):
        return cast(Tensor, _Dots.apply(x, y, maps, adjoint, weight_dims))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.dot(x, y, maps, weight_dims))


def orbit_dot(x: Tensor, y: Tensor, maps: str, adjoint: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted orbit of x and its dots with y, in one pass over both."""
    if needs_grad(x, y) or needs_grad(weights):
        return cast(tuple[Tensor, Tensor], _OrbitDot.apply(x, y, weights, maps, adjoint))  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, maps, weights))


def take(y: Tensor, index: Tensor, maps: str, adjoint: str) -> Tensor:
    """``adjoint_i(y_i)`` for the chosen i = index."""
    if needs_grad(y):
        return cast(Tensor, _Take.apply(y, index, maps, adjoint))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.take(y, index, adjoint))


def put(x: Tensor, index: Tensor, maps: str, adjoint: str) -> Tensor:
    """The adjoint of take: ``map_i(x)`` at i = index and zero at every other view."""
    if needs_grad(x):
        return cast(Tensor, _Put.apply(x, index, maps, adjoint))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.orbit(x, maps, 1.0, None, index))


def each(y: Tensor, axis: int, maps: str, adjoint: str) -> Tensor:
    """``map_g(y_g)`` for every g, with the group axis where it is: (*lead, |G|, *rest, *moved) → the same shape."""
    if maps[0] == ".":
        return y
    if needs_grad(y):
        return cast(Tensor, _Each.apply(y, axis, maps, adjoint))  # type: ignore[no-untyped-call]
    return _each(y, axis, maps)


def _each(y: Tensor, axis: int, maps: str) -> Tensor:
    # y seen |G| times: entry g of its group axis is taken from the g-th time, so that map_g is what moves it.
    order = y.shape[axis]
    lead = y.shape[: axis + 1]
    index = torch.arange(order, device=y.device).expand(lead).contiguous()
    return cast(Tensor, library.take(y.expand(order, *y.shape), index, maps))


class _Orbit(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, maps: str, adjoint: str, scale: float) -> Tensor:
        ctx.call = maps, adjoint, scale, library.channels_dim(x)
        if weights is not None:
            ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.orbit(x, maps, scale, weights, None))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, scale, channels_last = ctx.call
        x, weights = ctx.saved_tensors or _NONE
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = laid_out(total(grad, maps, adjoint, scale, weights), channels_last)
        grad_w = dots(x, grad, maps, adjoint, weights.dim()) * scale if ctx.needs_input_grad[1] else None
        return grad_x, grad_w, None, None, None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor | None, maps: str, adjoint: str, scale: float) -> Tensor:
        ctx.call = maps, adjoint, scale, library.channels_dim(y, 1)
        if weights is not None:
            ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.reduce(y, adjoint, "sum", scale, weights))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, scale, channels_last = ctx.call
        grad = laid_out(grad, channels_last)
        y, weights = ctx.saved_tensors or _NONE
        grad_y: Tensor | None = None
        grad_w: Tensor | None = None
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and scale == 1.0:
            grad_y, grad_w = orbit_dot(grad, y, maps, adjoint, weights)
        else:
            if ctx.needs_input_grad[0]:
                grad_y = orbit(grad, maps, adjoint, scale, weights)
            if ctx.needs_input_grad[1]:
                grad_w = dots(grad, y, maps, adjoint, weights.dim()) * scale
        return grad_y, grad_w, None, None, None


class _Symmetrize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: str, adjoint: str) -> Tensor:
        ctx.call = maps, adjoint, library.channels_dim(x)
        return _symmetrized(x, adjoint)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, channels_last = ctx.call
        return symmetrize(laid_out(grad, channels_last), adjoint, maps), None, None


class _MeanPlus(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, plus: Tensor, maps: str, adjoint: str) -> Tensor:
        ctx.call = maps, adjoint, library.channels_dim(y, 1), library.channels_dim(plus)
        return cast(Tensor, library.mean_plus(y, plus, adjoint))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, y_last, plus_last = ctx.call
        grad_y = grad_plus = None
        if ctx.needs_input_grad[0]:
            grad_y = orbit(laid_out(grad, y_last), maps, adjoint, 1.0 / (maps.count(" ") + 1))
        if ctx.needs_input_grad[1]:
            grad_plus = symmetrize(laid_out(grad, plus_last), adjoint, maps)
        return grad_y, grad_plus, None, None


class _WeightedMean(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, maps: str, adjoint: str) -> Tensor:
        ctx.call = maps, adjoint, library.channels_dim(y, 1)
        ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.reduce(y, adjoint, "weighted_mean", 1.0, weights))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, channels_last = ctx.call
        grad = laid_out(grad, channels_last)
        y, weights = ctx.saved_tensors
        whole = weights.sum(0)
        shares = weights / whole
        grad_y: Tensor | None = None
        if not ctx.needs_input_grad[1]:
            return orbit(grad, maps, adjoint, 1.0, shares), None, None, None
        if ctx.needs_input_grad[0]:
            grad_y, grad_shares = orbit_dot(grad, y, maps, adjoint, shares)
        else:
            grad_shares = dots(grad, y, maps, adjoint, weights.dim())
        return grad_y, (grad_shares - (grad_shares * shares).sum(0)) / whole, None, None


class _Dots(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, maps: str, adjoint: str, weight_dims: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.maps, ctx.adjoint = maps, adjoint
        return cast(Tensor, library.dot(x, y, maps, weight_dims))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        x, y = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = total(y, ctx.maps, ctx.adjoint, 1.0, grad) if ctx.needs_input_grad[0] else None
        grad_y = orbit(x, ctx.maps, ctx.adjoint, 1.0, grad) if ctx.needs_input_grad[1] else None
        return grad_x, grad_y, None, None, None


class _OrbitDot(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, maps: str, adjoint: str) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, weights)
        ctx.maps, ctx.adjoint = maps, adjoint
        return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, maps, weights))

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_dots: Tensor) -> _Grads:
        x, y, weights = ctx.saved_tensors
        maps, adjoint = ctx.maps, ctx.adjoint
        grad_dots = grad_dots.contiguous()
        grad_x = grad_y = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = total(grad_out, maps, adjoint, 1.0, weights) + total(y, maps, adjoint, 1.0, grad_dots)
        if ctx.needs_input_grad[1]:
            grad_y = orbit(x, maps, adjoint, 1.0, grad_dots)
        if ctx.needs_input_grad[2]:
            grad_w = dots(x, grad_out, maps, adjoint, weights.dim())
        return grad_x, grad_y, grad_w, None, None


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, index: Tensor, maps: str, adjoint: str) -> Tensor:
        ctx.save_for_backward(index)
        ctx.call = maps, adjoint, library.channels_dim(y, 1)
        return cast(Tensor, library.take(y, index, adjoint))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        maps, adjoint, channels_last = ctx.call
        return put(laid_out(grad, channels_last), ctx.saved_tensors[0], maps, adjoint), None, None, None


class _Put(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, maps: str, adjoint: str) -> Tensor:
        ctx.save_for_backward(index)
        ctx.maps, ctx.adjoint = maps, adjoint
        return cast(Tensor, library.orbit(x, maps, 1.0, None, index))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        return take(grad, ctx.saved_tensors[0], ctx.maps, ctx.adjoint), None, None, None


class _Each(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, axis: int, maps: str, adjoint: str) -> Tensor:
        ctx.call = axis, maps, adjoint
        return _each(y, axis, maps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        axis, maps, adjoint = ctx.call
        return each(grad, axis, adjoint, maps), None, None, None
