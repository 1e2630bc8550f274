"""Token ids: each one looked up in the table of every view, or of the view that its sequence chose.

Profilers see the kernels as ``equikern_orbit_ids_i64`` and ``equikern_select_ids_i64``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from ..tuning import RULE, Choice
from .compat import jit_kernel
from .launch import FLAT, MOST_WARPS, Plan, ceil_div, make_plan, run, times_two, warps
from .layout import Operand, contiguous_views, dense_like, operand
from .selection import index_alone
from .tables import TABLE, part

__all__ = ["orbit", "plan", "select", "select_plan"]


@jit_kernel
def orbit_ids(ids, out, sources, count: tl.int64, size: tl.int64, ORDER: tl.constexpr, P: tl.constexpr):
    """P ids in every view; an id outside the vocabulary becomes −1 in all of them."""
    i = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    mask = i < count
    token = tl.load(ids + i, mask=mask, other=0)
    inside = mask & (token >= 0) & (token < size)
    for g in tl.static_range(ORDER):
        moved = tl.load(sources + g * size + token, mask=inside, other=-1)
        tl.store(out + g * count + i, moved.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def select_ids(
    y, out, index, sources, count: tl.int64, size: tl.int64, per: tl.int64, yg: tl.int64, ORDER: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """P ids of the views that they chose, ``per`` of them each; no other is read."""
    i = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    mask = i < count
    chosen = tl.load(index + i // per, mask=mask, other=0)
    chosen = tl.minimum(tl.maximum(chosen, 0), ORDER - 1)
    token = tl.load(y + chosen * yg + i, mask=mask, other=0)
    inside = mask & (token >= 0) & (token < size)
    moved = tl.load(sources + chosen * size + token, mask=inside, other=-1)
    tl.store(out + i, moved.to(out.dtype.element_ty), mask=mask)


def _plan(
    kernel: Any, operands: tuple[Operand, ...], scalars: dict[str, int], order: int, views: int, choice: Choice
) -> Plan:
    block = times_two(FLAT, choice.block, 2 * FLAT)
    return make_plan(
        kernel,
        ceil_div(scalars["count"], block),
        (*operands, TABLE),
        scalars,
        {"ORDER": order, "P": block},
        times_two(warps(block, 1, views), choice.warps, 2 * MOST_WARPS),
        lambda other: _plan(kernel, operands, scalars, order, views, other),
    )


@lru_cache(maxsize=1024)
def plan(views: Views, ids: Operand, out: Operand) -> Plan:
    """The launch for ids and views of such shapes, both contiguous."""
    scalars = {"count": torch.Size(ids.shape).numel(), "size": views.size}
    return _plan(orbit_ids, (ids, out), scalars, views.order, views.order, RULE)


@lru_cache(maxsize=1024)
def select_plan(views: Views, y: Operand, out: Operand, index: Operand) -> Plan:
    """The launch for views without gaps in each of them."""
    count = torch.Size(out.shape).numel()
    per = count // torch.Size(index.shape).numel()
    scalars = {"count": count, "size": views.size, "per": per, "yg": y.stride[0]}
    return _plan(select_ids, (y, out, index), scalars, views.order, 1, RULE)


def _check(x: Tensor, size: int) -> None:
    """That ids are words.

    To ask, the queue of a GPU has to be waited for. While a CUDA graph is being captured that is not possible: such ids
    then become −1, at which the embedding behind it fails.
    """
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        low, high = torch.stack(x.aminmax()).tolist()
        if low < 0 or high >= size:
            wrong = int(x[(x < 0) | (x >= size)][0])
            raise ValueError(f"x: expected token ids from 0 to {size - 1}, got {wrong}")


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``.

    Raises:
        ValueError: an id outside the vocabulary, but see ``_check``.
    """
    _check(x, views.size)
    ids, into = x.contiguous(), out if out.is_contiguous() else dense_like(out)
    run(plan(views, operand(ids), operand(into)), ids, into, part(views, table))
    if into is not out:
        out.copy_(into)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs.

    Raises:
        ValueError: an id outside the vocabulary, but see ``_check``.
    """
    _check(y if y.stride(0) else y[0], views.size)
    if scores is not None:
        index_alone(scores, index, minimum)
    ids, into = contiguous_views(y), out if out.is_contiguous() else dense_like(out)
    run(select_plan(views, operand(ids), operand(into), operand(index)), ids, into, index, part(views, table))
    if into is not out:
        out.copy_(into)
