"""``select``: map back one view per item, chosen by its score, reading no other view.

Profilers see the kernels under names such as ``equikern_select_tiles_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...views import Views, still
from ..base import Maybe
from .compat import jit_kernel
from .device import (
    backwards,
    channel_of,
    mirrored,
    narrow,
    of_items,
    point_offset,
    points_at,
    signed,
    tile,
    tile_at,
    unravel_points,
)
from .launch import ELEMENTS, Plan, on_copies, plan_gather, plan_tiles, run, use_tiles
from .layout import Known, Operand, as_words, contiguous_views, known, loops, normalize, operand
from .tables import CHANNELS, channels

__all__ = ["index_alone", "plan", "select"]


@triton.jit
def best(scores, step, mask, COUNT: tl.constexpr, MINIMUM: tl.constexpr):
    """Index of the best score: NaN never wins, all NaN gives 0, ties the lowest index."""
    least = tl.load(scores, mask=mask, other=0)
    winner = tl.zeros_like(least).to(tl.int32)
    for g in tl.static_range(1, COUNT):
        score = tl.load(scores + g * step, mask=mask, other=0)
        better = score < least if MINIMUM else score > least
        better = better | ((least != least) & (score == score))
        winner = tl.where(better, g, winner)
        least = tl.where(better, score, least)
    return winner


@triton.jit
def mirrored_if(flag, v, UNIT: tl.constexpr):
    """A tile with its columns reversed where the chosen view asks for it."""
    if flag:
        v = mirrored(v, UNIT)
    return v


@triton.jit
def turned_if(flag, v):
    """A tile transposed where the chosen view asks for it."""
    if flag:
        v = tl.trans(v)
    return v


@jit_kernel
def select_tiles(
    y, out, scores, index, channels, tiles: tl.int32, across: tl.int32, nb: tl.int32,
    H: tl.int64, W: tl.int64, rt: tl.int64, ra: tl.int64, rb: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    sg: tl.int64, sa: tl.int64, sb: tl.int64, kg: tl.int64, ka: tl.int64, kb: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, MINIMUM: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, TURNS: tl.constexpr,
    MIRRORS: tl.constexpr,
):  # fmt: skip
    """One tile of the result. The view is known at run time only: its code steers addresses, one mirroring, one
    transposition."""
    _pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    if scores is not None:
        chosen = best(scores + a * sa + b * sb, sg, True, len(CODES), MINIMUM)
        # Every program of an item finds the same view; the item's first tile says so.
        tl.store(index + a * ka + b * kb, chosen.to(tl.int64), mask=(i0 + j0) == 0)
    else:
        chosen = tl.minimum(tl.maximum(tl.load(index + a * ka + b * kb), 0), len(CODES) - 1).to(tl.int32)
    code = tl.full([], 0, tl.int32)
    for g in tl.static_range(len(CODES)):
        code = tl.where(chosen == g, CODES[g], code)
    r0 = i0
    c0 = j0
    if TURNS:
        r0 = tl.where((code & 1) != 0, j0, i0)
        c0 = tl.where((code & 1) != 0, i0, j0)
    y += a * (ya * VEC) + b * (yb * VEC) + chosen * (yg * VEC)
    if channels is not None:
        shift, minus = channel_of(channels, chosen, b, yb * VEC, COUNT)
        y += shift
    row = tl.arange(0, TI)[:, None]
    col = tl.arange(0, TJ)[None, :]
    if MIRRORS:
        col = tl.where((code & 4) != 0, backwards(col, TJ, UNIT), col)
    first = tl.where((code & 4) != 0, w - c0 - TJ, c0)
    mask = (row < tl.minimum(h - r0, TI).to(tl.int32)) & (col >= tl.maximum(-first, 0).to(tl.int32))
    mask = mask & (col < tl.minimum(w - first, TJ).to(tl.int32))
    down = (yh * VEC).to(i0.dtype)
    step = 1 if UNIT else yw.to(i0.dtype)
    y += tl.where((code & 2) != 0, h - 1 - r0, r0) * down + first * step
    v = tl.load(y + (row * tl.where((code & 2) != 0, -down, down) + col * step), mask=mask, other=0)
    if channels is not None:
        v = signed(v, minus)
    if MIRRORS:
        v = mirrored_if((code & 4) != 0, v, UNIT)
    rows = h
    cols = w
    if TURNS:
        v = turned_if((code & 1) != 0, v)
        rows = tl.where((code & 1) != 0, w, h)
        cols = tl.where((code & 1) != 0, h, w)
    out += a * (oa * VEC) + b * (ob * VEC)
    ptrs, mask = tile(out, i0, j0, rows, cols, oh * VEC, ow, TI, TJ, False, False, UNIT)
    tl.store(ptrs, v, mask=mask)


@triton.jit
def walked(p, word, n0, n1, n2, s0, s1, s2, K: tl.constexpr, DIMS: tl.constexpr):
    """Output axis K's part of ``chosen_offset``: the start, and p steps of the input's axis, forwards or backwards."""
    axis = word >> (3 * K) & 3
    size = tl.where(axis == 1, n1, n2)
    step = tl.where(axis == 1, s1, s2)
    if DIMS == 3:
        size = tl.where(axis == 0, n0, size)
        step = tl.where(axis == 0, s0, step)
    back = (word & (4 << (3 * K))) != 0
    return p * tl.where(back, -step, step) + tl.where(back, (size - 1) * step, 0)


@triton.jit
def chosen_offset(
    chosen, r, b, p0, p1, p2, n0, n1, n2, sb, s0, s1, s2, WORDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """``map_offset`` within item b for a view whose number is known at run time only."""
    s0, s1, s2 = s0.to(r.dtype), s1.to(r.dtype), s2.to(r.dtype)
    offset = b * sb.to(r.dtype)
    if DIMS == 0:
        return offset
    else:
        word = chosen * 0 + WORDS[0]
        for g in tl.static_range(1, len(WORDS)):
            word = tl.where(chosen == g, WORDS[g], word)
        if DIMS == 3:
            offset += walked(p0, word, n0, n1, n2, s0, s1, s2, 0, DIMS)
        offset += walked(p1, word, n0, n1, n2, s0, s1, s2, 1, DIMS)
        return offset + walked(p2, word, n0, n1, n2, s0, s1, s2, 2, DIMS)


@jit_kernel
def select_points(
    y, out, scores, index, channels, row_blocks: tl.int32, column_blocks: tl.int32, R: tl.int64, C: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    sg: tl.int64, sa: tl.int64, sb: tl.int64, kg: tl.int64, ka: tl.int64, kb: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, MINIMUM: tl.constexpr, DIMS: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr,
    SHARED: tl.constexpr, CUBES: tl.constexpr,
):  # fmt: skip
    """P points of the result, each read from the view its item chose; one view for all of them where it is shared."""
    pid, a, r, c, within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, q0, q1, q2, within, mask = unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    if SHARED:
        items, there, first = 0, True, pid == a * row_blocks * column_blocks
    else:
        # An item's first point writes; its other points found the same.
        column = pid % column_blocks if CB > 1 else 0
        items, there, first = b, within, within & (q0 + q1 + q2 + column == 0)
    if scores is not None:
        chosen = best(scores + a * sa + items * sb, sg, there, len(WORDS), MINIMUM)
        tl.store(index + a * ka + items * kb, chosen.to(tl.int64), mask=first)
    else:
        chosen = of_items(index + a * ka, b, kb, within, SHARED)
        chosen = tl.minimum(tl.maximum(chosen, 0), len(WORDS) - 1).to(tl.int32)
    if DENSE[0] and DIMS == 0:
        offset = r * (ys * VEC).to(r.dtype)
    else:
        offset = chosen_offset(
            chosen, r, b, q0, q1, q2, n0, n1, n2, yb * VEC, y0 * VEC, y1 * VEC, y2 * VEC, WORDS, DIMS,
        )  # fmt: skip
    y += a * (ya * (VEC * VEC_R)) + chosen * (yg * (VEC * VEC_R))
    if channels is not None:
        shift, minus = channel_of(channels, chosen, b, yb * VEC, COUNT)
        y += shift
    v = tl.load(y + (offset + c), mask=mask, other=0)
    if channels is not None:
        v = signed(v, minus)
    put = point_offset(
        r, b, q0, q1, q2, n0, n1, n2, ob * VEC, o0 * VEC, o1 * VEC, o2 * VEC, os * VEC, 136, DIMS, DENSE[1],
        False, CB,
    )  # fmt: skip
    tl.store(out + a * (oa * (VEC * VEC_R)) + (put + c), v, mask=mask)


@lru_cache(maxsize=1024)
def plan(views: Views, minimum: bool, y: Operand, out: Operand, scores: Known, index: Operand) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    layout = normalize(views, [(y, True), (out, False)], [(scores, True), (index, False)])
    if layout is None:
        return None
    # Programs within one item look for its view once.
    if layout.a == 1 and not views.size and layout.rows // layout.b * layout.c >= ELEMENTS[y.dtype.itemsize]:
        layout = layout.by_item()
    operands = (y, out, scores, index, CHANNELS if views.size else None)
    constants = {"MINIMUM": minimum}
    if use_tiles(layout, views):
        codes = loops(views).codes
        kinds = {"TURNS": any(c & 1 for c in codes), "MIRRORS": any(c & 4 for c in codes)}
        return plan_tiles(select_tiles, layout, views, operands, "yo", "sk", {}, {**constants, **kinds}, True)
    return plan_gather(select_points, layout, views, operands, "yo", "sk", {}, constants, True, 1)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    y, out = as_words(y, out)
    found = plan(views, minimum, operand(y), operand(out), known(scores), operand(index))
    if found is not None:
        return run(found, y, out, scores, index, channels(views, table))
    on_copies(lambda to: select(contiguous_views(y), to, index, views, table, scores, minimum), out)


def index_alone(scores: Tensor, index: Tensor, minimum: bool) -> None:
    """Choose for items that have no entries, or whose entries another kernel moves."""
    if index.numel():
        blank = scores.new_zeros(()).expand(scores.shape)
        select(blank, torch.empty_like(scores[0]), index, still(len(scores)), None, scores, minimum)
