"""Derivatives of the registered operators, made of the same operators, so that every order exists.

With map_g the views of an action, everything linear comes from one trilinear form

    F(x, y, w) = Σ_g w_g ⟨map_g(x), y_g⟩

whose partial derivatives are the kernels: ∂F/∂y is the (weighted) orbit, ∂F/∂x the (weighted) sum of the adjoint
views, ∂F/∂w the dots. So each one's gradient
is a pair of the others. ``take`` and ``put`` (the chosen view, and its adjoint) are the same pair for a selection;
``each``, which maps every view by its own element, is its own, and so is ``act``, which maps every sample by its own.

A function takes one ``Maps``, whose adjoint is ``.T``. A Function gets them placed: the code and the table as one
argument, since autograd spends microseconds on every tensor that it is given.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..views import of, transposed
from ..views.maps import Maps, Placed
from . import library

_Grads = tuple[Tensor | None, ...]
_NONE: Any = (None, None)  # what a Function saved that has nothing to save, which is faster than Nones


def adjoint(placed: Placed) -> Placed:
    """The adjoint maps, which have the same table."""
    return transposed(placed[0]), placed[1]


def needs_grad(t: Tensor, other: Tensor | None = None) -> bool:
    """Whether autograd must see a call with these inputs.

    In forward mode too, although the Functions have no forward derivative: they say so, where the operators below them
    would drop it silently.
    """
    if (t.requires_grad or (other is not None and other.requires_grad)) and torch.is_grad_enabled():
        # A trace records operators, and takes no Function of Python's.
        return not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
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


def orbit(x: Tensor, maps: Maps, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``scale · w_g · map_g(x)`` for every g: (*lead, H, W) → (|G|, *lead, H, W)."""
    return orbit_by(x, maps.placed(x), scale, weights)


def total(y: Tensor, maps: Maps, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``scale · Σ_g w_g · map_g(y_g)``: (|G|, *lead, H, W) → (*lead, H, W)."""
    return total_by(y, maps.placed(y), scale, weights)


def mean_plus(y: Tensor, plus: Tensor, maps: Maps) -> Tensor:
    """``1/|G| Σ_g map_g(y_g + plus)``: the mean of the views and the symmetrised ``plus`` in one pass."""
    placed = maps.placed(y)
    if needs_grad(y, plus):
        return cast(Tensor, _MeanPlus.apply(y, plus, placed))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.mean_plus(y, plus, *placed))


def symmetrize(x: Tensor, maps: Maps) -> Tensor:
    """``1/|G| Σ_g map_g(x)``: one tensor seen |G| times, so that the mean of its views is one kernel."""
    return symmetrize_by(x, maps.placed(x))


def weighted_mean(y: Tensor, weights: Tensor, maps: Maps) -> Tensor:
    """``Σ_g w_g · map_g(y_g) / Σ_g w_g``, the division done by the same kernel."""
    placed = maps.placed(y)
    if needs_grad(y, weights):
        return cast(Tensor, _WeightedMean.apply(y, weights, placed))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.reduce(y, *placed, "weighted_mean", 1.0, weights))


def dots(x: Tensor, y: Tensor, maps: Maps, weight_dims: int) -> Tensor:
    """``⟨map_g(x), y_g⟩`` over all but the first weight_dims dims of y."""
    return dots_by(x, y, maps.placed(y), weight_dims)


def take(y: Tensor, index: Tensor, maps: Maps) -> Tensor:
    """``map_i(y_i)`` for the chosen i = index."""
    return take_by(y, index, maps.placed(y))


def put(x: Tensor, index: Tensor, maps: Maps) -> Tensor:
    """The adjoint of take by the adjoint maps: ``map_i(x)`` at i = index and zero at every other view."""
    return put_by(x, index, maps.placed(x))


def act(x: Tensor, elements: Tensor, maps: Maps) -> Tensor:
    """``map_i(x)`` with i = elements, one for each entry of the dims that elements has: a sample's own element."""
    return act_by(x, elements, maps.placed(x))


def each(y: Tensor, axis: int, maps: Maps) -> Tensor:
    """``map_g(y_g)`` for every g, with the group axis where it is: (*lead, |G|, *rest, *moved) → the same shape."""
    return each_by(y, axis, maps.placed(y))


def each_by(y: Tensor, axis: int, placed: Placed) -> Tensor:
    """``each`` by placed maps."""
    if of(placed[0]).kind.still:
        return y
    elements = torch.arange(y.shape[axis], device=y.device).expand(y.shape[: axis + 1]).contiguous()
    return act_by(y, elements, placed)


def orbit_by(x: Tensor, placed: Placed, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``orbit`` by placed maps, as Functions hold them: (*lead, H, W) → (|G|, *lead, H, W)."""
    if needs_grad(x, weights):
        return cast(Tensor, _Orbit.apply(x, weights, placed, scale))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.orbit(x, *placed, scale, weights, None))


def total_by(y: Tensor, placed: Placed, scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """``total`` by placed maps: (|G|, *lead, H, W) → (*lead, H, W)."""
    if needs_grad(y, weights):
        return cast(Tensor, _Total.apply(y, weights, placed, scale))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.reduce(y, *placed, "sum", scale, weights))


def symmetrize_by(x: Tensor, placed: Placed) -> Tensor:
    """``symmetrize`` by placed maps: like x in shape."""
    if needs_grad(x):
        return cast(Tensor, _Symmetrize.apply(x, placed))  # type: ignore[no-untyped-call]
    return _symmetrized(x, placed)


def _symmetrized(x: Tensor, placed: Placed) -> Tensor:
    order = of(placed[0]).order
    return cast(Tensor, library.reduce(x.expand(order, *x.shape), *placed, "sum", 1.0 / order, None))


def dots_by(x: Tensor, y: Tensor, placed: Placed, weight_dims: int) -> Tensor:
    """``dots`` by placed maps: x (*lead, H, W), y (|G|, *lead, H, W) → y.shape[:weight_dims], wide."""
    if needs_grad(x, y):
        return cast(Tensor, _Dots.apply(x, y, placed, weight_dims))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.dot(x, y, *placed, weight_dims))


def orbit_dot_by(x: Tensor, y: Tensor, placed: Placed, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted orbit of x, like y in shape, and the dots of the plain one with y, like weights, in one pass."""
    if needs_grad(x, y) or needs_grad(weights):
        return cast(tuple[Tensor, Tensor], _OrbitDot.apply(x, y, weights, placed))  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, *placed, weights))


def take_by(y: Tensor, index: Tensor, placed: Placed) -> Tensor:
    """``take`` by placed maps: (|G|, *lead, H, W) and an int64 index lead[:k] → (*lead, H, W)."""
    if needs_grad(y):
        return cast(Tensor, _Take.apply(y, index, placed))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.take(y, index, *placed))


def put_by(x: Tensor, index: Tensor, placed: Placed) -> Tensor:
    """``put`` by placed maps: (*lead, H, W) and an int64 index lead[:k] → (|G|, *lead, H, W)."""
    if needs_grad(x):
        return cast(Tensor, _Put.apply(x, index, placed))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.orbit(x, *placed, 1.0, None, index))


def act_by(x: Tensor, elements: Tensor, placed: Placed) -> Tensor:
    """``act`` by placed maps: (*lead, H, W) and int64 elements lead[:k], k ≥ 1 → like x in shape."""
    if needs_grad(x):
        return cast(Tensor, _Act.apply(x, elements, placed))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.act(x, elements, *placed))


class _Orbit(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, placed: Placed, scale: float) -> Tensor:
        ctx.call = adjoint(placed), scale, library.channels_dim(x)
        if weights is not None:
            ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.orbit(x, *placed, scale, weights, None))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, scale, channels_last = ctx.call
        x, weights = ctx.saved_tensors or _NONE
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = laid_out(total_by(grad, back, scale, weights), channels_last)
        if ctx.needs_input_grad[1]:
            grad_w = dots_by(x, grad, adjoint(back), weights.dim()) * scale
        return grad_x, grad_w, None, None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor | None, placed: Placed, scale: float) -> Tensor:
        ctx.call = adjoint(placed), scale, library.channels_dim(y, 1)
        if weights is not None:
            ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.reduce(y, *placed, "sum", scale, weights))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, scale, channels_last = ctx.call
        grad = laid_out(grad, channels_last)
        y, weights = ctx.saved_tensors or _NONE
        grad_y: Tensor | None = None
        grad_w: Tensor | None = None
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and scale == 1.0:
            grad_y, grad_w = orbit_dot_by(grad, y, back, weights)
        else:
            if ctx.needs_input_grad[0]:
                grad_y = orbit_by(grad, back, scale, weights)
            if ctx.needs_input_grad[1]:
                grad_w = dots_by(grad, y, back, weights.dim()) * scale
        return grad_y, grad_w, None, None


class _Symmetrize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, placed: Placed) -> Tensor:
        ctx.call = adjoint(placed), library.channels_dim(x)
        return _symmetrized(x, placed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        return symmetrize_by(laid_out(grad, channels_last), back), None


class _MeanPlus(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, plus: Tensor, placed: Placed) -> Tensor:
        ctx.call = adjoint(placed), library.channels_dim(y, 1), library.channels_dim(plus)
        return cast(Tensor, library.mean_plus(y, plus, *placed))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, y_last, plus_last = ctx.call
        grad_y = grad_plus = None
        if ctx.needs_input_grad[0]:
            grad_y = orbit_by(laid_out(grad, y_last), back, 1.0 / of(back[0]).order)
        if ctx.needs_input_grad[1]:
            grad_plus = symmetrize_by(laid_out(grad, plus_last), back)
        return grad_y, grad_plus, None


class _WeightedMean(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, placed: Placed) -> Tensor:
        ctx.call = adjoint(placed), library.channels_dim(y, 1)
        ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, weights)
        return cast(Tensor, library.reduce(y, *placed, "weighted_mean", 1.0, weights))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        grad = laid_out(grad, channels_last)
        y, weights = ctx.saved_tensors
        whole = weights.sum(0)
        shares = weights / whole
        grad_y: Tensor | None = None
        if not ctx.needs_input_grad[1]:
            return orbit_by(grad, back, 1.0, shares), None, None
        if ctx.needs_input_grad[0]:
            grad_y, grad_shares = orbit_dot_by(grad, y, back, shares)
        else:
            grad_shares = dots_by(grad, y, back, weights.dim())
        return grad_y, (grad_shares - (grad_shares * shares).sum(0)) / whole, None


class _Dots(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, placed: Placed, weight_dims: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.placed = placed
        return cast(Tensor, library.dot(x, y, *placed, weight_dims))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        x, y = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = total_by(y, adjoint(ctx.placed), 1.0, grad) if ctx.needs_input_grad[0] else None
        grad_y = orbit_by(x, ctx.placed, 1.0, grad) if ctx.needs_input_grad[1] else None
        return grad_x, grad_y, None, None


class _OrbitDot(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, placed: Placed) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, weights)
        ctx.placed = placed
        return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, *placed, weights))

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_dots: Tensor) -> _Grads:
        x, y, weights = ctx.saved_tensors
        placed, back = ctx.placed, adjoint(ctx.placed)
        grad_dots = grad_dots.contiguous()
        grad_x = grad_y = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = total_by(grad_out, back, 1.0, weights) + total_by(y, back, 1.0, grad_dots)
        if ctx.needs_input_grad[1]:
            grad_y = orbit_by(x, placed, 1.0, grad_dots)
        if ctx.needs_input_grad[2]:
            grad_w = dots_by(x, grad_out, placed, weights.dim())
        return grad_x, grad_y, grad_w, None


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, index: Tensor, placed: Placed) -> Tensor:
        ctx.save_for_backward(index)
        ctx.call = adjoint(placed), library.channels_dim(y, 1)
        return cast(Tensor, library.take(y, index, *placed))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        (index,) = ctx.saved_tensors
        return put_by(laid_out(grad, channels_last), index, back), None, None


class _Put(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, placed: Placed) -> Tensor:
        ctx.save_for_backward(index)
        ctx.back = adjoint(placed)
        return cast(Tensor, library.orbit(x, *placed, 1.0, None, index))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        (index,) = ctx.saved_tensors
        return take_by(grad, index, ctx.back), None, None


class _Act(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, elements: Tensor, placed: Placed) -> Tensor:
        ctx.save_for_backward(elements)
        ctx.call = adjoint(placed), library.channels_dim(x)
        return cast(Tensor, library.act(x, elements, *placed))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        (elements,) = ctx.saved_tensors
        return act_by(laid_out(grad, channels_last), elements, back), None, None
