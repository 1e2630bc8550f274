"""Derivatives of the registered operators, made of the same operators, so that every order exists.

With map_g the views of an action, everything linear comes from one trilinear form

    F(x, y, w) = Σ_g w_g ⟨map_g(x), y_g⟩

whose partial derivatives are the kernels: ∂F/∂y is the (weighted) orbit, ∂F/∂x the (weighted) sum of the adjoint
views, ∂F/∂w the dots. So each one's gradient
is a pair of the others. ``take`` and ``put`` (the chosen view, and its adjoint) are the same pair for a selection;
``each``, which maps every view by its own element, is its own, and so is ``act``, which maps every sample by its own.

No scale has a default: the compiler takes a float that it finds there for one that may change.

A function takes one ``Maps``, whose adjoint is ``.T``. A Function gets them placed: the code and the table as one
argument, since autograd spends microseconds on every tensor that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..views import of
from ..views import transposed as transposed_code
from ..views.maps import Maps, Placed
from . import library
from .functions import Differentiable, in_forward_mode, needs_grad

_Grads = tuple[Tensor | None, ...]
_NONE: Any = (None, None)  # what a Function saved that has nothing to save, which is faster than Nones


def adjoint(placed: Placed) -> Placed:
    """The adjoint maps, which have the same table."""
    return transposed_code(placed[0]), placed[1]


def laid_out(grad: Tensor, channels_last: int) -> Tensor:
    """A gradient of one view in the forward's layout: poolings send contiguous or expanded ones, whatever they got.

    ``channels_last`` is ``library.channels_dim`` of what the forward got.
    """
    if not channels_last or library.channels_dim(grad) == channels_last:
        return grad
    return grad.movedim(channels_last, -1).contiguous().movedim(-1, channels_last)


def tangent(*terms: tuple[Tensor | None, Callable[[Tensor], Tensor]]) -> Tensor | None:
    """The tangent of a result: the sum of what it gets from each argument's tangent, None where one has none."""
    found = [by(t) for t, by in terms if t is not None]
    return None if not found else found[0] if len(found) == 1 else found[0] + found[1]


def orbit(x: Tensor, maps: Maps, scale: float, weights: Tensor | None = None) -> Tensor:
    """``scale · w_g · map_g(x)`` for every g: (*lead, H, W) → (|G|, *lead, H, W)."""
    return orbit_by(x, maps.placed(x), scale, weights)


def total(y: Tensor, maps: Maps, scale: float, weights: Tensor | None = None) -> Tensor:
    """``scale · Σ_g w_g · map_g(y_g)``: (|G|, *lead, H, W) → (*lead, H, W)."""
    return total_by(y, maps.placed(y), scale, weights)


def mean_plus(y: Tensor, plus: Tensor, maps: Maps) -> Tensor:
    """``1/|G| Σ_g map_g(y_g + plus)``: the mean of the views and the symmetrised ``plus`` in one pass."""
    placed = maps.placed(y)
    if needs_grad(y, plus):
        return cast(Tensor, _MeanPlus.call(y, plus, placed))
    return cast(Tensor, library.mean_plus(y, plus, *placed))


def symmetrize(x: Tensor, maps: Maps) -> Tensor:
    """``1/|G| Σ_g map_g(x)``: one tensor seen |G| times, so that the mean of its views is one kernel."""
    return symmetrize_by(x, maps.placed(x))


def weighted_mean(y: Tensor, weights: Tensor, maps: Maps) -> Tensor:
    """``Σ_g w_g · map_g(y_g) / Σ_g w_g``, the division done by the same kernel."""
    placed = maps.placed(y)
    if needs_grad(y, weights):
        return cast(Tensor, _WeightedMean.call(y, weights, placed))
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


def orbit_by(x: Tensor, placed: Placed, scale: float, weights: Tensor | None = None) -> Tensor:
    """``orbit`` by placed maps, as Functions hold them: (*lead, H, W) → (|G|, *lead, H, W)."""
    if needs_grad(x, weights):
        return cast(Tensor, _Orbit.call(x, weights, placed, scale))
    return cast(Tensor, library.orbit(x, *placed, scale, weights, None))


def total_by(y: Tensor, placed: Placed, scale: float, weights: Tensor | None = None) -> Tensor:
    """``total`` by placed maps: (|G|, *lead, H, W) → (*lead, H, W)."""
    if needs_grad(y, weights):
        return cast(Tensor, _Total.call(y, weights, placed, scale))
    return cast(Tensor, library.reduce(y, *placed, "sum", scale, weights))


def symmetrize_by(x: Tensor, placed: Placed) -> Tensor:
    """``symmetrize`` by placed maps: like x in shape."""
    if needs_grad(x):
        return cast(Tensor, _Symmetrize.call(x, placed))
    return _symmetrized(x, placed)


def _symmetrized(x: Tensor, placed: Placed) -> Tensor:
    order = of(placed[0]).order
    return cast(Tensor, library.reduce(x.expand(order, *x.shape), *placed, "sum", 1.0 / order, None))


def dots_by(x: Tensor, y: Tensor, placed: Placed, weight_dims: int) -> Tensor:
    """``dots`` by placed maps: x (*lead, H, W), y (|G|, *lead, H, W) → y.shape[:weight_dims], wide."""
    if needs_grad(x, y):
        return cast(Tensor, _Dots.call(x, y, placed, weight_dims))
    return cast(Tensor, library.dot(x, y, *placed, weight_dims))


def orbit_dot_by(x: Tensor, y: Tensor, placed: Placed, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted orbit of x, like y in shape, and the dots of the plain one with y, like weights, in one pass."""
    if needs_grad(x, y) or needs_grad(weights):
        return cast(tuple[Tensor, Tensor], _OrbitDot.call(x, y, weights, placed))
    return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, *placed, weights))


def take_by(y: Tensor, index: Tensor, placed: Placed) -> Tensor:
    """``take`` by placed maps: (|G|, *lead, H, W) and an int64 index lead[:k] → (*lead, H, W)."""
    if needs_grad(y):
        return cast(Tensor, _Take.call(y, index, placed))
    return cast(Tensor, library.take(y, index, *placed))


def put_by(x: Tensor, index: Tensor, placed: Placed) -> Tensor:
    """``put`` by placed maps: (*lead, H, W) and an int64 index lead[:k] → (|G|, *lead, H, W)."""
    if needs_grad(x):
        return cast(Tensor, _Put.call(x, index, placed))
    return cast(Tensor, library.orbit(x, *placed, 1.0, None, index))


def act_by(x: Tensor, elements: Tensor, placed: Placed) -> Tensor:
    """``act`` by placed maps: (*lead, H, W) and int64 elements lead[:k], k ≥ 1 → like x in shape."""
    if needs_grad(x):
        return cast(Tensor, _Act.call(x, elements, placed))
    return cast(Tensor, library.act(x, elements, *placed))


class _Orbit(
    Differentiable,
    schema="orbit(Tensor x, Tensor? weights, str views, Tensor? table, float scale) -> Tensor",
    tuples={2: 2},
):
    @staticmethod
    def forward(x: Tensor, weights: Tensor | None, placed: Placed, scale: float) -> Tensor:
        return cast(Tensor, library.orbit(x, *placed, scale, weights, None))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weights, placed, scale = inputs
        ctx.call = adjoint(placed), scale, library.channels_dim(x)
        if weights is not None:
            ctx.save_for_backward(x if ctx.needs_input_grad[1] or in_forward_mode() else None, weights)

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

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weights_t: Tensor | None, *_: Any) -> Tensor | None:
        placed, scale = adjoint(ctx.call[0]), ctx.call[1]
        x, weights = ctx.saved_tensors or _NONE
        return tangent(
            (x_t, lambda t: orbit_by(t, placed, scale, weights)), (weights_t, lambda t: orbit_by(x, placed, scale, t))
        )


class _Total(
    Differentiable,
    schema="sum(Tensor y, Tensor? weights, str views, Tensor? table, float scale) -> Tensor",
    tuples={2: 2},
):
    @staticmethod
    def forward(y: Tensor, weights: Tensor | None, placed: Placed, scale: float) -> Tensor:
        return cast(Tensor, library.reduce(y, *placed, "sum", scale, weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, weights, placed, scale = inputs
        ctx.call = adjoint(placed), scale, library.channels_dim(y, 1)
        if weights is not None:
            ctx.save_for_backward(y if ctx.needs_input_grad[1] or in_forward_mode() else None, weights)

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

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor | None, weights_t: Tensor | None, *_: Any) -> Tensor | None:
        placed, scale = adjoint(ctx.call[0]), ctx.call[1]
        y, weights = ctx.saved_tensors or _NONE
        return tangent(
            (y_t, lambda t: total_by(t, placed, scale, weights)), (weights_t, lambda t: total_by(y, placed, scale, t))
        )


class _Symmetrize(Differentiable, schema="symmetrize(Tensor x, str views, Tensor? table) -> Tensor", tuples={1: 2}):
    @staticmethod
    def forward(x: Tensor, placed: Placed) -> Tensor:
        return _symmetrized(x, placed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, placed = inputs
        ctx.call = adjoint(placed), library.channels_dim(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        return symmetrize_by(laid_out(grad, channels_last), back), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: None) -> Tensor:
        return symmetrize_by(x_t, adjoint(ctx.call[0]))


class _MeanPlus(
    Differentiable, schema="mean_plus(Tensor y, Tensor plus, str views, Tensor? table) -> Tensor", tuples={2: 2}
):
    @staticmethod
    def forward(y: Tensor, plus: Tensor, placed: Placed) -> Tensor:
        return cast(Tensor, library.mean_plus(y, plus, *placed))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, plus, placed = inputs
        ctx.call = adjoint(placed), library.channels_dim(y, 1), library.channels_dim(plus)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, y_last, plus_last = ctx.call
        grad_y = grad_plus = None
        if ctx.needs_input_grad[0]:
            grad_y = orbit_by(laid_out(grad, y_last), back, 1.0 / of(back[0]).order)
        if ctx.needs_input_grad[1]:
            grad_plus = symmetrize_by(laid_out(grad, plus_last), back)
        return grad_y, grad_plus, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor | None, plus_t: Tensor | None, _: None) -> Tensor | None:
        placed = adjoint(ctx.call[0])
        return tangent((y_t, lambda t: total_by(t, placed, 1.0 / len(t))), (plus_t, lambda t: symmetrize_by(t, placed)))


class _WeightedMean(
    Differentiable, schema="weighted_mean(Tensor y, Tensor weights, str views, Tensor? table) -> Tensor", tuples={2: 2}
):
    @staticmethod
    def forward(y: Tensor, weights: Tensor, placed: Placed) -> Tensor:
        return cast(Tensor, library.reduce(y, *placed, "weighted_mean", 1.0, weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, weights, placed = inputs
        ctx.call = adjoint(placed), library.channels_dim(y, 1)
        ctx.save_for_backward(y if ctx.needs_input_grad[1] or in_forward_mode() else None, weights)

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

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor | None, weights_t: Tensor | None, _: None) -> Tensor | None:
        placed = adjoint(ctx.call[0])
        y, weights = ctx.saved_tensors
        whole = weights.sum(0)
        shares = weights / whole
        return tangent(
            (y_t, lambda t: total_by(t, placed, 1.0, shares)),
            (weights_t, lambda t: total_by(y, placed, 1.0, (t - shares * t.sum(0)) / whole)),  # shares add up to 1
        )


class _Dots(
    Differentiable,
    schema="dots(Tensor x, Tensor y, str views, Tensor? table, int weight_dims) -> Tensor",
    tuples={2: 2},
):
    @staticmethod
    def forward(x: Tensor, y: Tensor, placed: Placed, weight_dims: int) -> Tensor:
        return cast(Tensor, library.dot(x, y, *placed, weight_dims))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, y, *ctx.call = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        x, y = ctx.saved_tensors
        placed, _ = ctx.call
        grad = grad.contiguous()
        grad_x = total_by(y, adjoint(placed), 1.0, grad) if ctx.needs_input_grad[0] else None
        grad_y = orbit_by(x, placed, 1.0, grad) if ctx.needs_input_grad[1] else None
        return grad_x, grad_y, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, y_t: Tensor | None, *_: Any) -> Tensor | None:
        x, y = ctx.saved_tensors
        return tangent((x_t, lambda t: dots_by(t, y, *ctx.call)), (y_t, lambda t: dots_by(x, t, *ctx.call)))


class _OrbitDot(
    Differentiable,
    schema="orbit_dot(Tensor x, Tensor y, Tensor weights, str views, Tensor? table) -> (Tensor, Tensor)",
    tuples={3: 2},
):
    @staticmethod
    def forward(x: Tensor, y: Tensor, weights: Tensor, placed: Placed) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], library.orbit_dot(x, y, *placed, weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        x, y, weights, ctx.placed = inputs
        ctx.save_for_backward(x, y, weights)

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

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, y_t: Tensor | None, weights_t: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None]:
        x, y, weights = ctx.saved_tensors
        placed, dims = ctx.placed, weights.dim()
        moved = tangent(
            (x_t, lambda t: orbit_by(t, placed, 1.0, weights)), (weights_t, lambda t: orbit_by(x, placed, 1.0, t))
        )
        products = tangent((x_t, lambda t: dots_by(t, y, placed, dims)), (y_t, lambda t: dots_by(x, t, placed, dims)))
        zeros = torch.zeros_like
        return zeros(y) if moved is None else moved, zeros(weights) if products is None else products


class _Take(Differentiable, schema="take(Tensor y, Tensor index, str views, Tensor? table) -> Tensor", tuples={2: 2}):
    @staticmethod
    def forward(y: Tensor, index: Tensor, placed: Placed) -> Tensor:
        return cast(Tensor, library.take(y, index, *placed))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, index, placed = inputs
        ctx.save_for_backward(index)
        ctx.call = adjoint(placed), library.channels_dim(y, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        (index,) = ctx.saved_tensors
        return put_by(laid_out(grad, channels_last), index, back), None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        return take_by(y_t, ctx.saved_tensors[0], adjoint(ctx.call[0]))


class _Put(Differentiable, schema="put(Tensor x, Tensor index, str views, Tensor? table) -> Tensor", tuples={2: 2}):
    @staticmethod
    def forward(x: Tensor, index: Tensor, placed: Placed) -> Tensor:
        return cast(Tensor, library.orbit(x, *placed, 1.0, None, index))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, index, placed = inputs
        ctx.save_for_backward(index)
        ctx.back = adjoint(placed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        (index,) = ctx.saved_tensors
        return take_by(grad, index, ctx.back), None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: Any) -> Tensor:
        return put_by(x_t, ctx.saved_tensors[0], adjoint(ctx.back))


class _Act(Differentiable, schema="act(Tensor x, Tensor elements, str views, Tensor? table) -> Tensor", tuples={2: 2}):
    @staticmethod
    def forward(x: Tensor, elements: Tensor, placed: Placed) -> Tensor:
        return cast(Tensor, library.act(x, elements, *placed))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, elements, placed = inputs
        ctx.save_for_backward(elements)
        ctx.call = adjoint(placed), library.channels_dim(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        back, channels_last = ctx.call
        (elements,) = ctx.saved_tensors
        return act_by(laid_out(grad, channels_last), elements, back), None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: Any) -> Tensor:
        return act_by(x_t, ctx.saved_tensors[0], adjoint(ctx.call[0]))
