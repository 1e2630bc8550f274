"""``orbit`` of token ids: each id looked up in the table of every view.

Profilers see the kernel as ``equikern_orbit_ids_i64``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from ...tables import table
from ...tuning import RULE, Choice
from .compat import jit_kernel
from .launch import FLAT, MOST_WARPS, Plan, ceil_div, make_plan, run, times_two, warps
from .layout import Operand, operand
from .tiles import TABLE

__all__ = ["orbit", "plan"]


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


@lru_cache(maxsize=1024)
def plan(order: int, size: int, ids: Operand, out: Operand, choice: Choice = RULE) -> Plan:
    """The launch for ids and views of such shapes, both contiguous."""
    count = 1
    for n in ids.shape:
        count *= n
    block = times_two(FLAT, choice.block, 2 * FLAT)
    return make_plan(
        orbit_ids,
        ceil_div(count, block),
        (ids, out, TABLE),
        {"count": count, "size": size},
        {"ORDER": order, "P": block},
        times_two(warps(block, 1, order), choice.warps, 2 * MOST_WARPS),
        lambda other: plan(order, size, ids, out, other),
    )


def orbit(x: Tensor, out: Tensor, maps: str) -> None:
    """Write out[g] = the ids that g maps those of x to.

    Args:
        x: int32 or int64, any shape and strides.
        out: (|G|, *x.shape) of the same dtype, any strides.
        maps: one word per view.

    Raises:
        ValueError: an id outside the vocabulary. To ask, the queue of a GPU has to be waited for. While a CUDA graph
            is being captured that is not possible: such ids then become −1, at which the embedding behind it fails.
    """
    found = table(maps)
    assert found is not None, "the words map token ids"
    if out.numel() == 0:
        return
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        low, high = torch.stack(x.aminmax()).tolist()
        if low < 0 or high >= found.size:
            wrong = int(x[(x < 0) | (x >= found.size)][0])
            raise ValueError(f"x: expected token ids from 0 to {found.size - 1}, got {wrong}")
    ids, into = (
        x.contiguous(),
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format),
    )
    run(plan(found.order, found.size, operand(ids), operand(into)), ids, into, found.on(x.device).whole)
    if into is not out:
        out.copy_(into)
