"""Every registered operator in aten operators alone: exact where it moves entries, to rounding where it computes.

The table that ``equikern.portable`` passes to ``torch.export``. Operators ``traced_…`` are decomposed into those they
call, in ``functions.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends import plain
from ..reductions import best_view
from ..views import accumulator, of
from . import library, rows
from .library import decompositions

__all__ = ["decompositions"]

Maybe = Tensor | None


def _laid_out(result: Tensor, like: Tensor, skip: int) -> Tensor:
    """A result of like's dtype in the memory layout that the operator gives it, see ``library.empty_like_views``."""
    return library.strided_as_views(result.to(like.dtype), like, skip)


def _orbit(x: Tensor, code: str, table: Maybe, scale: float, weights: Maybe, index: Maybe) -> Tensor:
    return _laid_out(plain.orbit(x, of(code), table, scale, weights, index), x, 0)


def _act(x: Tensor, elements: Tensor, code: str, table: Maybe) -> Tensor:
    views = of(code)
    wide = x.to(accumulator(x)) if views.kind.computes else x
    return _laid_out(plain.chosen(plain.orbit(wide, views, table), elements), x, 0)


def _reduce(y: Tensor, code: str, table: Maybe, op: str, scale: float, weights: Maybe) -> Tensor:
    return _laid_out(plain.reduce(y, of(code), table, op, scale, weights)[0], y, 1)


def _mean_plus(y: Tensor, plus: Tensor, code: str, table: Maybe) -> Tensor:
    return _laid_out(plain.reduce(y, of(code), table, "sum", 1.0 / y.shape[0], None, plus)[0], y, 1)


def _mean_std(y: Tensor, code: str, table: Maybe) -> tuple[Tensor, Tensor]:
    mean, std = plain.reduce(y, of(code), table, "mean_std")
    return _laid_out(mean, y, 1), _laid_out(std, y, 1)


def _orbit_dot(x: Tensor, y: Tensor, code: str, table: Maybe, weights: Tensor) -> tuple[Tensor, Tensor]:
    found, dots = plain.orbit_dot(x, y, of(code), table, weights, weights.dim())
    return _laid_out(found, y, 1), dots.contiguous()


def _dot(x: Tensor, y: Tensor, code: str, table: Maybe, weight_dims: int) -> Tensor:
    return plain.orbit_dot(x, y, of(code), table, None, weight_dims)[1].contiguous()


def _reduce_backward(grad: Tensor, spread: Maybe, y: Tensor, code: str, table: Maybe, op: str) -> Tensor:
    return _laid_out(plain.reduce_backward(grad, spread, y, of(code), table, op), y, 1)


def _variance(y: Tensor, code: str, table: Maybe, dims: int) -> Tensor:
    return plain.variance(y, of(code), table, dims).contiguous()


def _variance_backward(factors: Tensor, y: Tensor, code: str, table: Maybe) -> Tensor:
    return _laid_out(plain.variance_backward(factors, y, of(code), table), y, 1)


def _take(y: Tensor, index: Tensor, code: str, table: Maybe) -> Tensor:
    views = of(code)
    v = plain.mapped(y.to(accumulator(y)) if views.kind.computes else y, views, table)
    return _laid_out(plain.chosen(v, index), y, 1)


def _select(y: Tensor, scores: Tensor, code: str, table: Maybe, minimum: bool) -> tuple[Tensor, Tensor]:
    index = best_view(scores, minimum)
    return _take(y, index, code, table), index


def _score_select(y: Tensor, kind: str, code: str, table: Maybe, minimum: bool) -> tuple[Tensor, Tensor]:
    return _select(y, plain.score(y, kind), code, table, minimum)


def _softmax_mean(y: Tensor, code: str, table: Maybe, space: str) -> tuple[Tensor, Tensor]:
    mean, lse = plain.softmax_mean(y, of(code), table, space)
    return mean.to(y.dtype).contiguous(), lse.contiguous()


def _softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, code: str, table: Maybe, space: str) -> Tensor:
    return plain.softmax_mean_backward(grad, y, lse, of(code), table, space).to(y.dtype).contiguous()


def _score(logits: Tensor, kind: str) -> Tensor:
    return plain.score(logits, kind).contiguous()


def _cross_entropy(
    y: Tensor,
    target: Tensor,
    code: str,
    table: Maybe,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Maybe,
    gradient: bool,
    *terms: Any,
) -> tuple[Tensor, Tensor]:
    call = space, ignore_index, smoothing, scale, gradient, *terms
    loss, slopes = plain.cross_entropy(y, target, of(code), table, *call)
    return loss.contiguous(), y.new_empty(0) if slopes is None else slopes.to(y.dtype).contiguous()


decompositions.update(
    {
        library.orbit: _orbit,
        library.act: _act,
        library.reduce: _reduce,
        library.mean_plus: _mean_plus,
        library.mean_std: _mean_std,
        library.orbit_dot: _orbit_dot,
        library.dot: _dot,
        library.reduce_backward: _reduce_backward,
        library.variance: _variance,
        library.variance_backward: _variance_backward,
        library.select: _select,
        library.take: _take,
        rows.softmax_mean: _softmax_mean,
        rows.softmax_mean_backward: _softmax_mean_backward,
        rows.score: _score,
        rows.score_select: _score_select,
        rows.cross_entropy: _cross_entropy,
        rows.weighed_cross_entropy: _cross_entropy,
    }
)
