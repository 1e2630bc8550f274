"""``orbit``: every view of a tensor from one read of it.

Profilers see the kernels under names such as ``equikern_orbit_tiles_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .compat import jit_kernel
from .device import (
    arrangements,
    channel_of,
    form,
    narrow,
    of_items,
    placed_tile,
    point_offset,
    points_at,
    signed,
    tile,
    tile_at,
    unravel,
    unravel_points,
)
from .launch import Plan, accumulator, forms, on_copies, plan_gather, plan_tiles, run, use_tiles
from .layout import Known, Operand, as_words, known, normalize, operand
from .tables import CHANNELS, channels

__all__ = ["orbit", "plan"]


@jit_kernel
def orbit_tiles(
    x, out, weights, index, channels, scale: tl.float64,
    tiles: tl.int32, across: tl.int32, nb: tl.int32, H: tl.int64, W: tl.int64,
    rt: tl.int64, ra: tl.int64, rb: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xh: tl.int64, xw: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64, kg: tl.int64, ka: tl.int64, kb: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, EXACT: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    FORMS: tl.constexpr,
):  # fmt: skip
    """Load a block once, mirror and transpose it once each, store it where every view keeps it."""
    _pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    x += a * (xa * VEC) + b * (xb * VEC)
    out += a * (oa * VEC) + b * (ob * VEC)
    ptrs, mask = tile(x, i0, j0, h, w, xh * VEC, xw, TI, TJ, False, False, UNIT)
    plain, flipped, turned, both = arrangements(tl.load(ptrs, mask=mask, other=0), FORMS, UNIT)
    if index is not None:
        chosen = tl.load(index + a * ka + b * kb)
    for g in tl.static_range(len(CODES)):
        v = form(plain, flipped, turned, both, CODES[g])
        at = out + g * (og * VEC)
        if channels is not None:
            step, minus = channel_of(channels, len(CODES) + g, b, ob * VEC, COUNT)
            v = signed(v, minus)
            at += step
        if not EXACT:
            factor = tl.full([], scale, ACC)
            if weights is not None:
                factor = factor * tl.load(weights + g * wg + a * wa + b * wb)
            v = (v.to(ACC) * factor).to(out.dtype.element_ty)
        if index is not None:
            v = tl.where(chosen == g, v, tl.zeros_like(v))
        ptrs, mask = placed_tile(at, i0, j0, h, w, oh * VEC, ow, CODES[g], TI, TJ, UNIT)
        tl.store(ptrs, v, mask=mask)


@jit_kernel
def orbit_points(
    x, out, weights, index, channels, scale: tl.float64, row_blocks: tl.int32, column_blocks: tl.int32, R: tl.int64,
    C: tl.int64, n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64, xs: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64, kg: tl.int64, ka: tl.int64, kb: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, EXACT: tl.constexpr, DIMS: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr,
    SHARED: tl.constexpr, CUBES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Vectors of C entries are read once and put where every view has them; single entries are fetched view by view,
    since their stores are the scattered side and would be the slower one."""
    _pid, a, r, c, within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    x += a * (xa * (VEC * VEC_R))
    out += a * (oa * (VEC * VEC_R))
    if CB > 1:
        b, q0, q1, q2 = unravel(r, n0, n1, n2, DIMS, r0, r1, r2)
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, xb * VEC, x0 * VEC, x1 * VEC, x2 * VEC, xs * VEC, 136, DIMS, DENSE[0],
            False, CB,
        )  # fmt: skip
        v = tl.load(x + (offset + c), mask=mask, other=0)
    else:
        m0, m1, m2 = narrow(m0, m1, m2, BIG)
        b, q0, q1, q2, within, mask = unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
        put = point_offset(r, b, q0, q1, q2, n0, n1, n2, ob, o0, o1, o2, os, 136, DIMS, DENSE[1], False, CB)
    if index is not None:
        chosen = of_items(index + a * ka, b, kb, within, SHARED)
    for g in tl.static_range(len(WORDS)):
        if CB > 1:
            put = point_offset(
                r, b, q0, q1, q2, n0, n1, n2, ob * VEC, o0 * VEC, o1 * VEC, o2 * VEC, os * VEC, WORDS[g], DIMS,
                DENSE[1], True, CB,
            )  # fmt: skip
        else:
            offset = point_offset(r, b, q0, q1, q2, n0, n1, n2, xb, x0, x1, x2, xs, WORDS[g], DIMS, DENSE[0], False, CB)
            if channels is not None:
                step, minus = channel_of(channels, g, b, xb, COUNT)
                offset += step
            v = tl.load(x + (offset + c), mask=mask, other=0)
        value = v
        if channels is not None:
            value = signed(v, minus)
        if not EXACT:
            factor = tl.full([], scale, ACC)
            if weights is not None:
                factor = factor * of_items(weights + g * wg + a * wa, b, wb, within, SHARED)
            value = (value.to(ACC) * factor).to(out.dtype.element_ty)
        if index is not None:
            value = tl.where(chosen == g, value, tl.zeros_like(value))
        tl.store(out + g * (og * (VEC * VEC_R)) + (put + c), value, mask=mask)


@lru_cache(maxsize=1024)
def plan(views: Views, scale: float, x: Operand, out: Operand, weights: Known, index: Known) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    layout = normalize(views, [(x, False), (out, True)], [(weights, True), (index, False)])
    if layout is None:
        return None
    constants = {"EXACT": scale == 1.0 and weights is None, "ACC": accumulator(x.dtype)}
    operands = (x, out, weights, index, CHANNELS if views.size else None)
    scalars = {"scale": scale}
    if use_tiles(layout, views):
        constants["FORMS"] = forms(views)
        return plan_tiles(orbit_tiles, layout, views, operands, "xo", "wk", scalars, constants, False)
    return plan_gather(
        orbit_points, layout, views, operands, "xo", "wk", scalars, constants, layout.c == 1, views.order
    )


def orbit(x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``."""
    if scale == 1.0 and weights is None:
        x, out = as_words(x, out)
    found = plan(views, scale, operand(x), operand(out), known(weights), known(index))
    if found is not None:
        return run(found, x, out, weights, index, channels(views, table))
    if weights is not None and index is not None:
        weights, index = same_lead(weights, index)
    on_copies(lambda to: orbit(x.contiguous(), to, views, table, scale, weights, index), out)


def same_lead(weights: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and an index broadcast to the same leading dims, so that copies have as few loops as the longer one."""
    shape = weights.shape[1:] if weights.dim() > index.dim() else index.shape
    weights = weights.reshape((*weights.shape, *(1,) * (len(shape) + 1 - weights.dim())))
    index = index.reshape((*index.shape, *(1,) * (len(shape) - index.dim())))
    return weights.expand(weights.shape[0], *shape).contiguous(), index.expand(shape).contiguous()
