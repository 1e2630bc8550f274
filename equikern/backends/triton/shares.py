"""What needs the values of all views at once: ``variance``, and what each view gets of a gradient by
``reduce_backward`` and ``variance_backward``.

The values that meet in an element of the result are in registers together: what they reduce to is found again, and what
each of them gets of the gradient goes back to where it came from.

Profilers see the kernels under names such as ``equikern_reduce_backward_tiles_max_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

import math
from dataclasses import replace
from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .arithmetic import keep_variance, shares
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
from .launch import FEW_VIEWS, Plan, accumulator, on_copies, plan_gather, plan_tiles, run, run_dots, use_tiles
from .layout import Known, Operand, contiguous_views, known, normalize, operand
from .tables import CHANNELS, channels

__all__ = ["plan", "reduce_backward", "share", "variance", "variance_backward", "variance_plan"]


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


@triton.jit
def blocks(
    y, channels, i0, j0, b, h, w, yg, yb, yh, yw, CODES: tl.constexpr, COUNT: tl.constexpr, TI: tl.constexpr,
    TJ: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The blocks that meet in a block of the result, each arranged as the result is."""
    values = ()
    for g in tl.static_range(len(CODES)):
        at = y + g * yg
        if channels is not None:
            step, minus = channel_of(channels, g, b, yb, COUNT)
            at += step
        ptrs, mask = view_tile(at, i0, j0, h, w, yh, yw, CODES[g], TI, TJ, UNIT)
        v = arranged(tl.load(ptrs, mask=mask, other=0), CODES[g], UNIT, False).to(ACC)
        if channels is not None:
            v = signed(v, minus)
        values = values + (v,)
    return values


@triton.jit
def points(
    y, channels, mask, c, r, b, q0, q1, q2, n0, n1, n2, yg, yb, y0, y1, y2, ys, WORDS: tl.constexpr,
    COUNT: tl.constexpr, DIMS: tl.constexpr, DENSE: tl.constexpr, CB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the views have at points of the result."""
    values = ()
    for g in tl.static_range(len(WORDS)):
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, yb, y0, y1, y2, ys, WORDS[g], DIMS, DENSE, False, CB,
        )  # fmt: skip
        if channels is not None:
            step, minus = channel_of(channels, g, b, yb, COUNT)
            offset += step
        v = tl.load(y + g * yg + (offset + c), mask=mask, other=0).to(ACC)
        if channels is not None:
            v = signed(v, minus)
        values = values + (v,)
    return values


@jit_kernel
def variance_tiles(
    y, partial, channels, scale: tl.float64, tiles: tl.int32, across: tl.int32, nb: tl.int32, H: tl.int64, W: tl.int64,
    rt: tl.int64, ra: tl.int64, rb: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The variances of a block of the result, added up to one number."""
    pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    y += a * (ya * VEC) + b * (yb * VEC)
    values = blocks(y, channels, i0, j0, b, h, w, yg * VEC, yb * VEC, yh * VEC, yw, CODES, COUNT, TI, TJ, UNIT, ACC)
    keep_variance(partial + pid, values, scale)


@jit_kernel
def variance_points(
    y, partial, channels, scale: tl.float64, row_blocks: tl.int32, column_blocks: tl.int32, R: tl.int64, C: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr,
    CUBES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same of P points of the result, each of CB entries."""
    pid, a, r, c, _within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, q0, q1, q2, _within, mask = unravel_points(r, _within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    values = points(
        y + a * (ya * (VEC * VEC_R)), channels, mask, c, r, b, q0, q1, q2, n0, n1, n2, yg * (VEC * VEC_R), yb * VEC,
        y0 * VEC, y1 * VEC, y2 * VEC, ys * VEC, WORDS, COUNT, DIMS, DENSE[0], CB, ACC,
    )  # fmt: skip
    keep_variance(partial + pid, values, scale)


@jit_kernel
def reduce_backward_tiles(
    y, out, grad, spread, channels, factors, tiles: tl.int32, across: tl.int32, nb: tl.int32, H: tl.int64, W: tl.int64,
    rt: tl.int64, ra: tl.int64, rb: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    ga: tl.int64, gb: tl.int64, gh: tl.int64, gw: tl.int64,
    sa: tl.int64, sb: tl.int64, sh: tl.int64, sw: tl.int64, fa: tl.int64, fb: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, OP: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The share of each of the blocks that meet in a block of the result, arranged as the block was."""
    _pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    y += a * (ya * VEC) + b * (yb * VEC)
    out += a * (oa * VEC) + b * (ob * VEC)
    values = blocks(y, channels, i0, j0, b, h, w, yg * VEC, yb * VEC, yh * VEC, yw, CODES, COUNT, TI, TJ, UNIT, ACC)
    # A turned rectangle's view is W×H; views that mix both kinds are square.
    rows = h
    cols = w
    if CODES[0] & 1:
        rows = w
        cols = h
    if factors is not None:
        first = tl.load(factors + a * fa + b * fb)
    else:
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
    y, out, grad, spread, channels, factors, row_blocks: tl.int32, column_blocks: tl.int32, R: tl.int64, C: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    ga: tl.int64, gb: tl.int64, g0: tl.int64, g1: tl.int64, g2: tl.int64, gs: tl.int64,
    sa: tl.int64, sb: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64, ss: tl.int64, fa: tl.int64, fb: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, OP: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr,
    SHARED: tl.constexpr, CUBES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same for P points of the result, each of CB entries."""
    _pid, a, r, c, within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    if factors is not None:
        factors += a * fa
    a *= VEC * VEC_R
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, q0, q1, q2, within, mask = unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    values = points(
        y + a * ya, channels, mask, c, r, b, q0, q1, q2, n0, n1, n2, yg * (VEC * VEC_R), yb * VEC, y0 * VEC, y1 * VEC,
        y2 * VEC, ys * VEC, WORDS, COUNT, DIMS, DENSE[0], CB, ACC,
    )  # fmt: skip
    if factors is not None:
        first = of_items(factors, b, fb, within, SHARED)
    else:
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, gb * VEC, g0 * VEC, g1 * VEC, g2 * VEC, gs * VEC, 136, DIMS, DENSE[2], False,
            CB,
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
def plan(
    views: Views, op: str, grad: Known, spread: Known, y: Operand, out: Operand, factors: Known = None
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    beside = (y, True) if grad is None else (grad, False)
    second = beside if spread is None else (spread, False)
    layout = normalize(views, [(y, True), (out, True), beside, second], [(factors, False)])
    if layout is None:
        return None
    constants = {"OP": op, "ACC": accumulator(y.dtype)}
    operands = (y, out, grad, spread, CHANNELS if views.size else None, factors)
    # Blocks of more views would not fit into registers.
    if use_tiles(layout, views) and views.order <= FEW_VIEWS:
        return plan_tiles(reduce_backward_tiles, layout, views, operands, "yogs", "f", {}, constants, True, True)
    streams = views.order + FEW_VIEWS
    return plan_gather(reduce_backward_points, layout, views, operands, "yogs", "f", {}, constants, True, streams, 2)


def reduce_backward(grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str) -> None:
    """See ``Backend.reduce_backward``."""
    found = plan(views, op, operand(grad), known(spread), operand(y), operand(out))
    if found is not None:
        return run(found, y, out, grad, spread, channels(views, table), None)
    grad, spread, y = grad.contiguous(), None if spread is None else spread.contiguous(), contiguous_views(y)
    on_copies(lambda to: reduce_backward(grad, spread, y, to, views, table, op), out)


@lru_cache(maxsize=1024)
def variance_plan(views: Views, y: Operand, out: Operand) -> tuple[Plan, int] | None:
    """The launch and how many sums it leaves of each variance, or None if the tensors must be copied first."""
    layout = normalize(views, [(y, True)], [], len(out.shape))
    if layout is None:
        return None
    constants, scalars = {"ACC": accumulator(y.dtype)}, {"scale": share(y, out)}
    operands = (y, out, CHANNELS if views.size else None)
    if use_tiles(layout, views) and views.order <= FEW_VIEWS:
        found = plan_tiles(variance_tiles, layout, views, operands, "y", "", scalars, constants, True, True)
    else:
        found = plan_gather(variance_points, layout, views, operands, "y", "", scalars, constants, True, views.order)
    return replace(found, variant=None), found.grid[0] // layout.a  # another block would leave other sums


def share(y: Operand, out: Operand) -> float:
    """What the square of a deviation counts in an average."""
    return math.prod(out.shape) / math.prod(y.shape)


def variance(y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
    """See ``Backend.variance``, of views that only move entries or change their signs."""
    found = variance_plan(views, operand(y), operand(out))
    if found is None:
        return variance(contiguous_views(y), out, views, table)
    run_dots(*found, out, [channels(views, table)], y)


def variance_backward(factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
    """See ``Backend.variance_backward``."""
    found = plan(views, "variance", None, None, operand(y), operand(out), operand(factors))
    if found is not None:
        return run(found, y, out, None, None, channels(views, table), factors)
    on_copies(lambda to: variance_backward(factors, contiguous_views(y), to, views, table), out)
