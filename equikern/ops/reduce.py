"""``orbit_reduce``: the other ways of merging views that test-time augmentation uses."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..actions import Action
from ..backends.reference import LOGODD_EPS
from ..field_tables import changes
from ..matrix_tables import multiplies
from ..permutations import PermutationAction
from . import autograd, checks, library

__all__ = ["orbit_reduce"]

REDUCTIONS = ("sum", "max", "min", "gmean", "hmean", "std", "mean_std", "tsharpen", "logodd")


def orbit_reduce(
    y: Tensor,
    action: Action,
    op: Literal["sum", "max", "min", "gmean", "hmean", "std", "mean_std", "tsharpen", "logodd"],
    *,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
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
    ======== ============================================= ======== =============================================

    Ties share the gradient of max and min evenly; where std is zero its gradient is zero. Outside the range named
    above gmean and tsharpen give NaN, as logarithm and root do. Deviations are squared in float32 (float64 for
    float64), for bfloat16 too: std holds for deviations between 1e-18 and 1e18.

    Args:
        y: (|G|, \\*lead, H, W), any strides; float16, bfloat16, float32 or float64. Square where the action turns by
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
    y, action = checks.views("y", y, action)
    checks.choice("op", op, REDUCTIONS)
    signed = isinstance(action, PermutationAction) and action.signs is not None
    if signed and out is None and op != "sum" and autograd.needs_grad(y):
        y, action = _without_signs(y, action)  # the derivatives below are those of values that only move
    computed = multiplies(action.maps) or changes(action.maps)
    if computed and out is None and op != "sum" and autograd.needs_grad(y):
        return _of_products(y, action, op)
    maps, inverse = action.inverse_adjoint_maps, action.inverse_maps
    if out is not None:
        return _into(y, action, op, out)
    if op == "sum":
        return autograd.total(y, maps, inverse)
    if op == "mean_std":
        if autograd.needs_grad(y):
            return cast(tuple[Tensor, Tensor], _MeanStd.apply(y, maps, inverse))  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, Tensor], library.mean_std(y, inverse))
    if autograd.needs_grad(y):
        return cast(Tensor, _Reduce.apply(y, op, maps, inverse))  # type: ignore[no-untyped-call]
    return cast(Tensor, library.reduce(y, inverse, op, 1.0, None))


def _without_signs(y: Tensor, action: Action) -> tuple[Tensor, Action]:
    signs, twin = cast(PermutationAction, action).unsigned()
    signs = signs.to(y.device, y.dtype)
    return y * signs.reshape(action.order, *(1,) * (y.dim() - signs.dim()), *signs.shape[1:]), twin


def _of_products(y: Tensor, action: Action, op: str) -> Tensor | tuple[Tensor, Tensor]:
    """Differentiable in two steps: every view transformed back, in wide precision, then the reduction of what lies
    there. The derivatives below need to know values that the kernel keeps to itself where it does not only move them.
    """
    wide = y.to(library.accumulator(y))
    pairs = zip(action.inverse_adjoint_words, action.inverse_words, strict=True)
    views = torch.stack([autograd.total(view.unsqueeze(0), *pair) for view, pair in zip(wide, pairs, strict=True)])
    still = " ".join(["."] * action.order)
    if op == "mean_std":
        mean, std = _MeanStd.apply(views, still, still)  # type: ignore[no-untyped-call]
        return mean.to(y.dtype), std.to(y.dtype)
    return cast(Tensor, _Reduce.apply(views, op, still, still)).to(y.dtype)  # type: ignore[no-untyped-call]


def _into(y: Tensor, action: Action, op: str, out: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    shape = tuple(y.shape[1:])
    if op == "mean_std":
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"out: expected a pair of tensors (mean, std) for op 'mean_std', got {type(out).__name__}")
        mean = checks.output("out[0]", out[0], shape, y)
        std = checks.output("out[1]", out[1], shape, y, mean)
        library.mean_std_out(y, action.inverse_maps, mean, std)
        return mean, std
    out = checks.output("out", out, shape, y)
    library.reduce_out(y, action.inverse_maps, op, 1.0, None, out)
    return out


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, op: str, maps: str, inverse: str) -> Tensor:
        result = cast(Tensor, library.reduce(y, inverse, op, 1.0, None))
        ctx.save_for_backward(y, result)
        ctx.op, ctx.maps, ctx.inverse = op, maps, inverse
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved_y, saved_result = ctx.saved_tensors
        wide = library.accumulator(saved_y)
        grad = autograd.laid_out(grad, library.channels_dim(saved_y, 1))
        y, result, grad = saved_y.to(wide), saved_result.to(wide), grad.to(wide)
        op, maps, inverse = ctx.op, ctx.maps, ctx.inverse
        order = y.shape[0]

        def spread(t: Tensor) -> Tensor:
            return autograd.orbit(t, maps, inverse)

        if op in ("max", "min"):
            hit = (saved_y == library.orbit(saved_result, maps, 1.0, None, None)).to(wide)
            count = library.reduce(hit, inverse, "sum", 1.0, None)  # 0 where the result is NaN, as the gradient then is
            grad_y = hit * spread(grad / count)
        elif op == "gmean":
            grad_y = spread(grad * result / order) / y
        elif op == "hmean":
            grad_y = spread(grad * result.square() / order) / y.square()
        elif op == "tsharpen":
            grad_y = spread(grad * (0.5 / order)) / y.sqrt()
        elif op == "logodd":
            inside = (y >= LOGODD_EPS) & (y <= 1 - LOGODD_EPS)
            p = torch.where(inside, y, torch.full_like(y, 0.5))
            # sigmoid' at the mean logit, from the float32 logits rather than the rounded result
            mean = autograd.total(torch.logit(y, eps=LOGODD_EPS), maps, inverse, 1.0 / order)
            slope = torch.sigmoid(mean) * torch.sigmoid(-mean)
            grad_y = torch.where(inside, spread(grad * slope / order) / (p * (1 - p)), torch.zeros_like(y))
        else:
            grad_y = _std_gradient(y, grad, maps, inverse)
        return grad_y.to(saved_y.dtype), None, None, None


class _MeanStd(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, maps: str, inverse: str) -> tuple[Tensor, Tensor]:
        mean, std = library.mean_std(y, inverse)
        ctx.save_for_backward(y)
        ctx.call = maps, inverse, library.channels_dim(y, 1)
        return cast(Tensor, mean), cast(Tensor, std)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_std: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        wide = library.accumulator(saved)
        y = saved.to(wide)
        maps, inverse, channels_last = ctx.call
        grad_mean = autograd.laid_out(grad_mean, channels_last)
        grad_y = autograd.orbit(grad_mean.to(wide), maps, inverse, 1.0 / y.shape[0])
        grad_y = grad_y + _std_gradient(y, grad_std.to(wide), maps, inverse)
        return grad_y.to(saved.dtype), None, None


def _std_gradient(y: Tensor, grad: Tensor, maps: str, inverse: str) -> Tensor:
    """``∂/∂y[g]`` of the population std: ``(y[g] − g·mean) / (|G| g·std)``, zero where std is zero."""
    order = y.shape[0]
    centred = y
    for _ in range(2):  # the second time takes away how the mean was rounded, which counts where views nearly agree
        mean = autograd.total(centred, maps, inverse, 1.0 / order)
        centred = centred - autograd.orbit(mean, maps, inverse)
    # |G|² times the variance, from the centred values, in wide precision and differentiable once more.
    square = autograd.total(centred * centred, maps, inverse, float(order))
    flat = square <= 0
    factor = (grad / square.masked_fill(flat, 1.0).sqrt()).masked_fill(flat, 0.0)
    return centred * autograd.orbit(factor, maps, inverse)
