"""``reduce_backward``: what each view gets of a reduction's gradient, from one read of the views.

The values that meet in an element of the result are in registers together: what they reduce to is found again, and what
each of them gets of the gradient goes back to where it came from.

Profilers see the kernels under names such as ``equikern_reduce_backward_tiles_max_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .arithmetic import shares
from .compat import jit_kernel
from .device import channel_of, mirrored, narrow, point_offset, points_at, tile, tile_at, unravel_points, view_tile
from .launch import FEW_VIEWS, Plan, accumulator, on_copies, plan_gather, plan_tiles, run, use_tiles
from .layout import Known, Operand, contiguous_views, known, normalize, operand
from .tables import CHANNELS, channels

__all__ = ["plan", "reduce_backward"]


@triton.jit
def arranged(v, CODE: tl.constexpr, UNIT: tl.constexpr, BACK: tl.constexpr):
    """A view's block as the result has it, or if BACK the other way round."""
    if CODE & 1 and BACK:
        v = tl.trans(v)
    if CODE & 4:
        v = mirrored(v, UNIT)
    if CODE & 1 and not BACK:
        v = tl.trans(v)
    return v


@jit_kernel
def reduce_backward_tiles(
    y, out, grad, spread, channels, tiles: tl.int32, across: tl.int32, nb: tl.int32, H: tl.int64, W: tl.int64,
    rt: tl.int64, ra: tl.int64, rb: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    ga: tl.int64, gb: tl.int64, gh: tl.int64, gw: tl.int64,
    sa: tl.int64, sb: tl.int64, sh: tl.int64, sw: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, OP: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The blocks that meet in a block of the result, each arranged as the result is, and its share as it was."""
    _pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    y += a * (ya * VEC) + b * (yb * VEC)
    out += a * (oa * VEC) + b * (ob * VEC)
    values = ()
    for g in tl.static_range(len(CODES)):
        at = y + g * (yg * VEC)
        if channels is not None:
            step, _minus = channel_of(channels, g, b, yb * VEC, COUNT)
            at += step
        ptrs, mask = view_tile(at, i0, j0, h, w, yh * VEC, yw, CODES[g], TI, TJ, UNIT)
        v = tl.load(ptrs, mask=mask, other=0)
        values = values + (arranged(v, CODES[g], UNIT, False).to(ACC),)
    # A turned rectangle's view is W×H; views that mix both kinds are square.
    rows = h
    cols = w
    if CODES[0] & 1:
        rows = w
        cols = h
    ptrs, mask = tile(
        grad + a * (ga * VEC) + b * (gb * VEC), i0, j0, rows, cols, gh * VEC, gw, TI, TJ, False, False, UNIT,
    )  # fmt: skip
    first = tl.load(ptrs, mask=mask, other=0).to(ACC)
    second = first
    if spread is not None:
        ptrs, mask = tile(
            spread + a * (sa * VEC) + b * (sb * VEC), i0, j0, rows, cols, sh * VEC, sw, TI, TJ, False, False, UNIT,
        )  # fmt: skip
        second = tl.load(ptrs, mask=mask, other=0).to(ACC)
    found = shares(values, first, second, OP)
    for g in tl.static_range(len(CODES)):
        v = arranged(found[g].to(out.dtype.element_ty), CODES[g], UNIT, True)
        at = out + g * (og * VEC)
        if channels is not None:
            step, _minus = channel_of(channels, g, b, ob * VEC, COUNT)
            at += step
        ptrs, mask = view_tile(at, i0, j0, h, w, oh * VEC, ow, CODES[g], TI, TJ, UNIT)
        tl.store(ptrs, v, mask=mask)


@jit_kernel
def reduce_backward_points(
    y, out, grad, spread, channels, row_blocks: tl.int32, column_blocks: tl.int32, R: tl.int64, C: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    ga: tl.int64, gb: tl.int64, g0: tl.int64, g1: tl.int64, g2: tl.int64, gs: tl.int64,
    sa: tl.int64, sb: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64, ss: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, OP: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr,
    CUBES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same for P points of the result, each of CB entries."""
    _pid, a, r, c, _within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    a *= VEC * VEC_R
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, q0, q1, q2, _within, mask = unravel_points(r, _within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    values = ()
    for g in tl.static_range(len(WORDS)):
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, yb * VEC, y0 * VEC, y1 * VEC, y2 * VEC, ys * VEC, WORDS[g], DIMS, DENSE[0],
            False, CB,
        )  # fmt: skip
        if channels is not None:
            step, _minus = channel_of(channels, g, b, yb, COUNT)
            offset += step
        v = tl.load(y + a * ya + g * (yg * (VEC * VEC_R)) + (offset + c), mask=mask, other=0)
        values = values + (v.to(ACC),)
    offset = point_offset(
        r, b, q0, q1, q2, n0, n1, n2, gb * VEC, g0 * VEC, g1 * VEC, g2 * VEC, gs * VEC, 136, DIMS, DENSE[2], False, CB,
    )  # fmt: skip
    first = tl.load(grad + a * ga + (offset + c), mask=mask, other=0).to(ACC)
    second = first
    if spread is not None:
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, sb * VEC, s0 * VEC, s1 * VEC, s2 * VEC, ss * VEC, 136, DIMS, DENSE[3],
            False, CB,
        )  # fmt: skip
        second = tl.load(spread + a * sa + (offset + c), mask=mask, other=0).to(ACC)
    found = shares(values, first, second, OP)
    for g in tl.static_range(len(WORDS)):
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, ob * VEC, o0 * VEC, o1 * VEC, o2 * VEC, os * VEC, WORDS[g], DIMS, DENSE[1],
            False, CB,
        )  # fmt: skip
        if channels is not None:
            step, _minus = channel_of(channels, g, b, ob, COUNT)
            offset += step
        at = out + a * oa + g * (og * (VEC * VEC_R))
        tl.store(at + (offset + c), found[g].to(out.dtype.element_ty), mask=mask)


@lru_cache(maxsize=1024)
def plan(views: Views, op: str, grad: Operand, spread: Known, y: Operand, out: Operand) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    layout = normalize(views, [(y, True), (out, True), (grad, False), (spread or grad, False)], [])
    if layout is None:
        return None
    constants = {"OP": op, "ACC": accumulator(y.dtype)}
    operands = (y, out, grad, spread, CHANNELS if views.size else None)
    # Blocks of more views would not fit into registers.
    if use_tiles(layout, views) and views.order <= FEW_VIEWS:
        return plan_tiles(reduce_backward_tiles, layout, views, operands, "yogs", "", {}, constants, True, True)
    streams = views.order + FEW_VIEWS
    return plan_gather(reduce_backward_points, layout, views, operands, "yogs", "", {}, constants, True, streams, 2)


def reduce_backward(grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str) -> None:
    """See ``Backend.reduce_backward``."""
    found = plan(views, op, operand(grad), known(spread), operand(y), operand(out))
    if found is not None:
        return run(found, y, out, grad, spread, channels(views, table))
    grad, spread, y = grad.contiguous(), None if spread is None else spread.contiguous(), contiguous_views(y)
    on_copies(lambda to: reduce_backward(grad, spread, y, to, views, table, op), out)
