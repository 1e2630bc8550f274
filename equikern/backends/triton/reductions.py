"""``reduce``: one pass over the views, each mapped back, into one tensor (two for the mean with its spread).

Profilers see the kernels under names such as ``equikern_reduce_tiles_sum_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reductions import REDUCTIONS
from ...views import Views
from ..base import Maybe
from .arithmetic import alone, combine, deviation, outcome, prepare
from .compat import jit_kernel
from .device import (
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
    view_tile,
)
from .launch import FEW_VIEWS, Plan, accumulator, on_copies, plan_gather, plan_tiles, run, use_tiles
from .layout import Known, Operand, as_words, contiguous_views, known, loops, normalize, operand
from .symmetrize import symmetrize
from .tables import CHANNELS, channels

__all__ = ["plan", "reduce", "wide"]


@triton.jit
def _class_of_views(
    y, plus, weights, channels, yg, wg, b, yb, pb, i0, j0, h, w, yh, yw, ph, pw, CODES: tl.constexpr,
    COUNT: tl.constexpr, MEMBERS: tl.constexpr, OP: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reduce the views whose blocks must later be arranged in the same way."""
    for k in tl.static_range(len(MEMBERS)):
        at = y + MEMBERS[k] * yg
        if channels is not None:
            step, minus = channel_of(channels, MEMBERS[k], b, yb, COUNT)
            at += step
        ptrs, mask = view_tile(at, i0, j0, h, w, yh, yw, CODES[MEMBERS[k]], TI, TJ, UNIT)
        v = tl.load(ptrs, mask=mask, other=0).to(ACC)
        if plus is not None:
            at = plus
            if channels is not None:
                step, minus = channel_of(channels, MEMBERS[k], b, pb, COUNT)
                at += step
            ptrs, mask = view_tile(at, i0, j0, h, w, ph, pw, CODES[MEMBERS[k]], TI, TJ, UNIT)
            v += tl.load(ptrs, mask=mask, other=0).to(ACC)
        if channels is not None:
            v = signed(v, minus)
        v = prepare(v, OP)
        if weights is not None:
            v = v * tl.load(weights + MEMBERS[k] * wg)
        if k == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, k, t, n, 1, OP)
    return s, m


@triton.jit
def _arranged(s, m, HOW: tl.constexpr, UNIT: tl.constexpr, OP: tl.constexpr):
    """Partial results of a block that is mirrored or turned; where all values are kept, each of them."""
    if OP == "median" or OP == "vote":
        found = ()
        for k in tl.static_range(len(s)):
            found = found + (mirrored(s[k], UNIT) if HOW == "mirror" else tl.trans(s[k]),)  # noqa: RUF005
        return found, found[0]
    else:
        t = mirrored(s, UNIT) if HOW == "mirror" else tl.trans(s)
        n = t
        if OP == "std" or OP == "mean_std":
            n = mirrored(m, UNIT) if HOW == "mirror" else tl.trans(m)
        return t, n


@triton.jit
def _mirrored(
    y, plus, weights, channels, yg, wg, b, yb, pb, i0, j0, h, w, yh, yw, ph, pw, CODES: tl.constexpr,
    COUNT: tl.constexpr, PLAIN: tl.constexpr, FLIPPED: tl.constexpr, OP: tl.constexpr, TI: tl.constexpr,
    TJ: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Two classes that differ in the direction of the columns: one mirroring in registers serves all their views."""
    if len(FLIPPED) == 0:
        return _class_of_views(
            y, plus, weights, channels, yg, wg, b, yb, pb, i0, j0, h, w, yh, yw, ph, pw, CODES, COUNT, PLAIN, OP, TI,
            TJ, UNIT, ACC,
        )  # fmt: skip
    else:
        t, n = _class_of_views(
            y, plus, weights, channels, yg, wg, b, yb, pb, i0, j0, h, w, yh, yw, ph, pw, CODES, COUNT, FLIPPED, OP,
            TI, TJ, UNIT, ACC,
        )  # fmt: skip
        t, n = _arranged(t, n, "mirror", UNIT, OP)
        if len(PLAIN) == 0:
            return t, n
        else:
            s, m = _class_of_views(
                y, plus, weights, channels, yg, wg, b, yb, pb, i0, j0, h, w, yh, yw, ph, pw, CODES, COUNT, PLAIN, OP,
                TI, TJ, UNIT, ACC,
            )  # fmt: skip
            return combine(s, m, len(PLAIN), t, n, len(FLIPPED), OP)


@jit_kernel
def reduce_tiles(
    y, out, plus, spread, weights, channels, scale: tl.float64, tiles: tl.int32, across: tl.int32, nb: tl.int32,
    H: tl.int64, W: tl.int64, rt: tl.int64, ra: tl.int64, rb: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    pa: tl.int64, pb: tl.int64, ph: tl.int64, pw: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, STRAIGHT: tl.constexpr, MIRRORED: tl.constexpr, TURNED: tl.constexpr,
    BOTH: tl.constexpr, OP: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, VEC_H: tl.constexpr,
    UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = S + flip(M) + transpose(T + flip(B)): at most two mirrorings and one transposition a tile."""
    _pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    y += a * (ya * VEC) + b * (yb * VEC)
    out += a * (oa * VEC) + b * (ob * VEC)
    if plus is not None:
        plus += a * (pa * VEC) + b * (pb * VEC)
    if weights is not None:
        weights += a * wa + b * wb
    if len(STRAIGHT) + len(MIRRORED) > 0:
        s, m = _mirrored(
            y, plus, weights, channels, yg * VEC, wg, b, yb * VEC, pb * VEC, i0, j0, h, w, yh * VEC, yw, ph * VEC, pw,
            CODES, COUNT, STRAIGHT, MIRRORED, OP, TI, TJ, UNIT, ACC,
        )  # fmt: skip
    if len(TURNED) + len(BOTH) > 0:
        t, n = _mirrored(
            y, plus, weights, channels, yg * VEC, wg, b, yb * VEC, pb * VEC, i0, j0, h, w, yh * VEC, yw, ph * VEC, pw,
            CODES, COUNT, TURNED, BOTH, OP, TI, TJ, UNIT, ACC,
        )  # fmt: skip
        t, n = _arranged(t, n, "turn", UNIT, OP)
        if len(STRAIGHT) + len(MIRRORED) > 0:
            s, m = combine(s, m, len(STRAIGHT) + len(MIRRORED), t, n, len(TURNED) + len(BOTH), OP)
        else:
            s = t
            m = n
        # A turned rectangle's view is W×H; views that mix both kinds are square.
        rows = w
        cols = h
    else:
        rows = h
        cols = w
    ptrs, mask = tile(out, i0, j0, rows, cols, oh * VEC, ow, TI, TJ, False, False, UNIT)
    tl.store(ptrs, outcome(s, m, scale, len(CODES), OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        spread += a * (pa * VEC) + b * (pb * VEC)
        ptrs, mask = tile(spread, i0, j0, rows, cols, ph * VEC, pw, TI, TJ, False, False, UNIT)
        tl.store(ptrs, deviation(s, m, len(CODES)).to(spread.dtype.element_ty), mask=mask)


@triton.jit
def _class_at_points(
    y, plus, weights, channels, mask, within, c, yg, wg, wb, r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys,
    pb, p0, p1, p2, ps, WORDS: tl.constexpr, COUNT: tl.constexpr, MEMBERS: tl.constexpr, DIMS: tl.constexpr,
    DENSE: tl.constexpr, SHARED: tl.constexpr, CB: tl.constexpr, OP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reduce the views of one class."""
    for k in tl.static_range(len(MEMBERS)):
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys, WORDS[MEMBERS[k]], DIMS, DENSE[0], False, CB,
        )  # fmt: skip
        if channels is not None:
            step, minus = channel_of(channels, MEMBERS[k], b, yb, COUNT)
            offset += step
        v = tl.load(y + MEMBERS[k] * yg + (offset + c), mask=mask, other=0).to(ACC)
        if plus is not None:
            offset = point_offset(
                r, b, q0, q1, q2, n0, n1, n2, pb, p0, p1, p2, ps, WORDS[MEMBERS[k]], DIMS, DENSE[2], False, CB,
            )  # fmt: skip
            if channels is not None:
                step, minus = channel_of(channels, MEMBERS[k], b, pb, COUNT)
                offset += step
            v += tl.load(plus + (offset + c), mask=mask, other=0).to(ACC)
        if channels is not None:
            v = signed(v, minus)
        v = prepare(v, OP)
        if weights is not None:
            v = v * of_items(weights + MEMBERS[k] * wg, b, wb, within, SHARED)
        if k == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, k, t, n, 1, OP)
    return s, m


@triton.jit
def _pair_at_points(
    y, plus, weights, channels, mask, within, c, yg, wg, wb, r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys,
    pb, p0, p1, p2, ps, WORDS: tl.constexpr, COUNT: tl.constexpr, PLAIN: tl.constexpr, FLIPPED: tl.constexpr,
    DIMS: tl.constexpr, DENSE: tl.constexpr, SHARED: tl.constexpr, CB: tl.constexpr, OP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Two classes, joined as ``_mirrored`` joins them."""
    if len(FLIPPED) > 0:
        t, n = _class_at_points(
            y, plus, weights, channels, mask, within, c, yg, wg, wb, r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys,
            pb, p0, p1, p2, ps, WORDS, COUNT, FLIPPED, DIMS, DENSE, SHARED, CB, OP, ACC,
        )  # fmt: skip
    if len(PLAIN) > 0:
        s, m = _class_at_points(
            y, plus, weights, channels, mask, within, c, yg, wg, wb, r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys,
            pb, p0, p1, p2, ps, WORDS, COUNT, PLAIN, DIMS, DENSE, SHARED, CB, OP, ACC,
        )  # fmt: skip
        if len(FLIPPED) > 0:
            s, m = combine(s, m, len(PLAIN), t, n, len(FLIPPED), OP)
        return s, m
    else:
        return t, n


@jit_kernel
def reduce_points(
    y, out, plus, spread, weights, channels, scale: tl.float64, row_blocks: tl.int32, column_blocks: tl.int32,
    R: tl.int64, C: tl.int64, n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    pa: tl.int64, pb: tl.int64, p0: tl.int64, p1: tl.int64, p2: tl.int64, ps: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, STRAIGHT: tl.constexpr, MIRRORED: tl.constexpr, TURNED: tl.constexpr,
    BOTH: tl.constexpr, DIMS: tl.constexpr, OP: tl.constexpr, P: tl.constexpr, CB: tl.constexpr, VEC: tl.constexpr,
    VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr, SHARED: tl.constexpr,
    CUBES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reduce P points of the result, each of CB entries, in the order of ``reduce_tiles``: to the same bits."""
    _pid, a, r, c, within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, q0, q1, q2, within, mask = unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    if weights is not None:
        weights += a * wa
    a *= VEC * VEC_R
    y += a * ya
    if plus is not None:
        plus += a * pa
    if len(STRAIGHT) + len(MIRRORED) > 0:
        s, m = _pair_at_points(
            y, plus, weights, channels, mask, within, c, yg * (VEC * VEC_R), wg, wb, r, b, q0, q1, q2, n0, n1, n2,
            yb * VEC, y0 * VEC, y1 * VEC, y2 * VEC, ys * VEC, pb * VEC, p0 * VEC, p1 * VEC, p2 * VEC, ps * VEC, WORDS,
            COUNT, STRAIGHT, MIRRORED, DIMS, DENSE, SHARED, CB, OP, ACC,
        )  # fmt: skip
    if len(TURNED) + len(BOTH) > 0:
        t, n = _pair_at_points(
            y, plus, weights, channels, mask, within, c, yg * (VEC * VEC_R), wg, wb, r, b, q0, q1, q2, n0, n1, n2,
            yb * VEC, y0 * VEC, y1 * VEC, y2 * VEC, ys * VEC, pb * VEC, p0 * VEC, p1 * VEC, p2 * VEC, ps * VEC, WORDS,
            COUNT, TURNED, BOTH, DIMS, DENSE, SHARED, CB, OP, ACC,
        )  # fmt: skip
        if len(STRAIGHT) + len(MIRRORED) > 0:
            s, m = combine(s, m, len(STRAIGHT) + len(MIRRORED), t, n, len(TURNED) + len(BOTH), OP)
        else:
            s = t
            m = n
    offset = point_offset(
        r, b, q0, q1, q2, n0, n1, n2, ob * VEC, o0 * VEC, o1 * VEC, o2 * VEC, os * VEC, 136, DIMS, DENSE[1],
        False, CB,
    )  # fmt: skip
    tl.store(out + a * oa + (offset + c), outcome(s, m, scale, len(WORDS), OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, pb * VEC, p0 * VEC, p1 * VEC, p2 * VEC, ps * VEC, 136, DIMS, DENSE[2],
            False, CB,
        )  # fmt: skip
        second = deviation(s, m, len(WORDS))
        tl.store(spread + a * pa + (offset + c), second.to(spread.dtype.element_ty), mask=mask)


def _classes(views: Views) -> dict[str, tuple[int, ...]]:
    kinds = {"STRAIGHT": 0, "MIRRORED": 4, "TURNED": 1, "BOTH": 5}
    codes = loops(views).codes
    return {name: tuple(g for g, code in enumerate(codes) if code & 5 == kind) for name, kind in kinds.items()}


def wide(op: str, dtype: torch.dtype) -> tl.dtype:
    """The type that values are read in: what asks how wide they were, or keeps them all, takes them as they are."""
    as_they_are = op in ("median", "vote", "std", "mean_std")
    return getattr(tl, str(dtype).removeprefix("torch.")) if as_they_are else accumulator(dtype)


@lru_cache(maxsize=1024)
def plan(
    views: Views, op: str, scale: float, y: Operand, out: Operand, plus: Known, spread: Known, weights: Known
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first.

    One tensor for all views, or beside them, takes the same launch where ``symmetrize`` has none: every element is
    asked for |G| times.
    Programs follow planes, and what runs at once covers a few megabytes, more than one plane of 512×512 fp32 (1 MiB):
    all but the first read should come from the L2 cache, so memory moves 2n elements and L2 (|G| + 1)n.

    plus and spread never come together, so the kernels know one set of strides for both.
    """
    layout = normalize(views, [(y, True), (out, False), (plus or spread or out, False)], [(weights, True)])
    if layout is None:
        return None
    constants = {"OP": op, "ACC": wide(op, y.dtype), **_classes(views)}
    operands = (y, out, plus, spread, weights, CHANNELS if views.size else None)
    scalars, at_once = {"scale": scale}, REDUCTIONS[op].combine in ("median", "vote")
    if use_tiles(layout, views):
        spreads = at_once or op in ("std", "mean_std") or plus is not None
        return plan_tiles(reduce_tiles, layout, views, operands, "yop", "w", scalars, constants, True, spreads)
    streams = views.order + at_once * FEW_VIEWS
    return plan_gather(reduce_points, layout, views, operands, "yop", "w", scalars, constants, True, streams)


def reduce(
    y: Tensor,
    out: Tensor,
    views: Views,
    table: Maybe,
    op: str,
    scale: float,
    weights: Maybe,
    plus: Maybe,
    spread: Maybe,
) -> None:
    """See ``Backend.reduce``: in float32 (float64 for float64), votes in y's own dtype."""
    if op == "vote":
        y, out = as_words(y, out)
    if op == "sum" and weights is None:
        if plus is not None and symmetrize(plus, out, views, scale, y):
            return None
        if plus is None and y.stride(0) == 0 and symmetrize(y[0], out, views, scale):
            return None
    found = plan(views, op, scale, operand(y), operand(out), known(plus), known(spread), known(weights))
    if found is not None:
        return run(found, y, out, plus, spread, weights, channels(views, table))
    y, plus = contiguous_views(y), plus if plus is None else plus.contiguous()
    on_copies(lambda to, second: reduce(y, to, views, table, op, scale, weights, plus, second), out, spread)
