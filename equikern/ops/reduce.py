"""``orbit_reduce``: the other ways of merging views that test-time augmentation uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks, library
from ..core.functions import Differentiable, needs_grad, transposed
from ..reductions import REDUCTIONS, Spread, Total, of_std
from ..views import FLOATS, accumulator, of, still
from ..views.maps import Maps, Placed

__all__ = ["orbit_reduce"]

Op = Literal["sum", "max", "min", "gmean", "hmean", "std", "mean_std", "tsharpen", "logodd", "log1p", "median", "vote"]


def orbit_reduce(
    y: Tensor, action: Action, op: Op, *, out: Tensor | tuple[Tensor, Tensor] | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Undo each view's transform and merge the |G| values of every element, in one pass.

    With ``v_g = g⁻¹ y[g]``:

    ======== ============================================= ======== =============================================
    op       result                                        op       result
    ======== ============================================= ======== =============================================
    sum      Σ_g v_g                                       std      (1/|G| Σ_g (v_g − mean)²)^½
    max, min largest, smallest; NaN if any view is NaN     mean_std the pair (mean, std)
    gmean    (Π_g v_g)^(1/|G|), values ≥ 0                 tsharpen 1/|G| Σ_g √v_g, values ≥ 0
    hmean    |G| / Σ_g 1/v_g                               logodd   sigmoid of the mean logit; values clamped to
                                                                    1e-6 … 1 − 1e-6
    log1p    expm1(1/|G| Σ_g log1p(v_g)), values > −1      median   the middle value, of an even number the mean of
                                                                    the two middle ones; NaN if any view is NaN
    vote     the most frequent value, the smallest of several: of integer dtypes and bool, such as label maps
    ======== ======================================================================================================

    Ties share the gradient of max, min and median evenly; where std is zero its gradient is zero; vote has none.
    Outside the range named above gmean, tsharpen and log1p give NaN, as logarithm and root do.
    Deviations are squared in float32 at least (float64 for float64), for bfloat16 too: std holds for deviations
    between 1e-18 and 1e18, and mean and std for views whose sizes add up to less than 3.4e38 (1.8e308 for float64).

    Args:
        y: (|G|, \\*lead, H, W), any strides; float16, bfloat16, float32 or float64 (for vote an integer dtype or bool,
            under actions that only move). Square where the action turns by
            90°; a permutation's n entries on the dim that it permutes, whatever is behind it.
        action: how the group acts on one output.
        op: one of the names above.
        out: optional memory for the result, (\\*lead, H, W) of y's dtype (a pair for ``mean_std``); without grad.

    Returns:
        (\\*lead, H, W) in y's dtype, computed in float32 (float64 for float64) and rounded once, or a pair for
        ``mean_std``; channels-last if y is.

    Raises:
        TypeError: y is not a dense float tensor, or action is not an action.
        ValueError: an unknown op, dim 0 not |G|, wrong rank, not square under a 90° rotation, or an out that does
            not fit.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> y = torch.tensor([[[1.0, 2.0]], [[5.0, 3.0]]])
        >>> mean, std = orbit_reduce(y, grid("hflip"), "mean_std")
        >>> mean.tolist(), std.tolist()
        ([[2.0, 3.5]], [[1.0, 1.5]])
    """
    checks.choice("op", op, tuple(REDUCTIONS))
    reduction = REDUCTIONS[op]
    y, action = checks.views("y", y, action, checks.INTEGERS if reduction.integers else FLOATS)
    back = action.inverse_maps
    if out is not None:
        return _into(y, back, op, out)
    if op == "sum":
        return autograd.total(y, back, 1.0)
    if needs_grad(y) and not reduction.integers:
        if back.views.signed:
            return _of_changed(y, back, op)
        return _differentiable(y, back, op)
    if reduction.results == 2:
        return cast(tuple[Tensor, Tensor], library.mean_std(y, *back.placed(y)))
    return cast(Tensor, library.reduce(y, *back.placed(y), op, 1.0, None))


def _differentiable(y: Tensor, back: Maps, op: str) -> Tensor | tuple[Tensor, Tensor]:
    if op == "mean_std":
        return cast(tuple[Tensor, Tensor], _MeanStd.call(y, back.placed(y)))
    return cast(Tensor, _Reduce.call(y, back.placed(y), op))


def _of_changed(y: Tensor, back: Maps, op: str) -> Tensor | tuple[Tensor, Tensor]:
    """Differentiable in two steps: every view transformed back, in wide precision but where entries of a dim only move,
    then the reduction of what lies there. The derivatives need to know values that the kernel keeps to itself.
    """
    wide = y if back.views.kind.permutes else y.to(accumulator(y))
    views = autograd.each(wide, 0, back)
    found = _differentiable(views, Maps(still(y.shape[0]).code), op)
    return (found[0].to(y.dtype), found[1].to(y.dtype)) if isinstance(found, tuple) else found.to(y.dtype)


def _into(y: Tensor, back: Maps, op: str, out: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    shape = tuple(y.shape[1:])
    if op == "mean_std":
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"out: expected a pair of tensors (mean, std) for op 'mean_std', got {type(out).__name__}")
        mean = checks.output("out[0]", out[0], shape, y)
        std = checks.output("out[1]", out[1], shape, y, mean)
        library.mean_std_out(y, *back.placed(y), mean, std)
        return mean, std
    out = checks.output("out", out, shape, y)
    library.reduce_out(y, *back.placed(y), op, 1.0, None, out)
    return out


class _Reduce(Differentiable, schema="reduce(Tensor y, str views, Tensor? table, str op) -> Tensor", tuples={1: 2}):
    @staticmethod
    def forward(y: Tensor, placed: Placed, op: str) -> Tensor:
        return cast(Tensor, library.reduce(y, *placed, op, 1.0, None))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, *ctx.call = inputs
        ctx.save_for_backward(y, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved_y, saved_result = ctx.saved_tensors
        placed, op = ctx.call
        reduction = REDUCTIONS[op]
        grad = autograd.laid_out(grad, library.channels_dim(saved_y, 1))
        if reduction.fused and not torch.is_grad_enabled():  # else somebody wants the second derivative
            return library.reduce_backward(grad, None, saved_y, *placed, op), None, None
        return _gradient(saved_y, saved_result, grad, placed, op), None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        y, result = ctx.saved_tensors
        return transposed(lambda v: _gradient(y, result, v, *ctx.call), result, y_t)


def _gradient(saved_y: Tensor, saved_result: Tensor, grad: Tensor, placed: Placed, op: str) -> Tensor:
    """The gradient from parts that differentiate again."""
    reduction, wide = REDUCTIONS[op], accumulator(saved_y)
    y, result, grad = saved_y.to(wide), saved_result.to(wide), grad.to(wide)
    if reduction.shares is not None:
        grad_y = _of_shares(reduction.shares, y.detach(), grad, placed)
    else:
        assert reduction.gradient is not None
        grad_y = reduction.gradient(y, result, grad, *_there_and_back(placed))
    return grad_y.to(saved_y.dtype)


def _there_and_back(placed: Placed) -> tuple[Spread, Total]:
    """What spreads a tensor over the views, and what adds views up; see ``reductions``."""
    forth = autograd.adjoint(placed)
    return (
        lambda t: autograd.orbit_by(t, forth, 1.0),
        lambda t, scale: autograd.total_by(t, placed, scale),
    )


def _of_shares(shares: Callable[[Tensor], Tensor], y: Tensor, grad: Tensor, placed: Placed) -> Tensor:
    """What each view gets of the gradient, found where its values lie and moved back with it."""
    elements = torch.arange(y.shape[0], device=y.device)
    moves = of(placed[0]).dims > 0
    v = library.act(y, elements, *placed) if moves else y
    parts = shares(v) * grad
    return autograd.act_by(parts, elements, autograd.adjoint(placed)) if moves else parts


class _MeanStd(
    Differentiable, schema="mean_std(Tensor y, str views, Tensor? table) -> (Tensor, Tensor)", tuples={1: 2}
):
    @staticmethod
    def forward(y: Tensor, placed: Placed) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], library.mean_std(y, *placed))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        y, placed = inputs
        ctx.save_for_backward(y)
        ctx.call = placed, library.channels_dim(y, 1)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_std: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        placed, channels_last = ctx.call
        grad_mean = autograd.laid_out(grad_mean, channels_last)
        if not torch.is_grad_enabled():
            grad_std = autograd.laid_out(grad_std, channels_last)
            return library.reduce_backward(grad_mean, grad_std, saved, *placed, "mean_std"), None
        wide = accumulator(saved)
        y = saved.to(wide)
        grad_y = autograd.orbit_by(grad_mean.to(wide), autograd.adjoint(placed), 1.0 / y.shape[0])
        grad_y = grad_y + of_std(y, y, grad_std.to(wide), *_there_and_back(placed))
        return grad_y.to(saved.dtype), None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, _: None) -> tuple[Tensor, Tensor]:
        (y,), (placed, _last) = ctx.saved_tensors, ctx.call
        mean = autograd.total_by(y_t, placed, 1.0 / y.shape[0])
        wide = y.to(accumulator(y))
        std = transposed(
            lambda v: of_std(wide, wide, v, *_there_and_back(placed)), mean.to(wide.dtype), y_t.to(wide.dtype)
        )
        return mean, std.to(mean.dtype)
