"""``orbit_dot``: both gradients of a weighted mean from one read of its gradient and its views.

Profilers see the kernels under names such as ``equikern_dot_tiles_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import torch
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
from .launch import (
    FEW_VIEWS,
    Plan,
    accumulator,
    forms,
    next_power_of_two,
    on_copies,
    plan_gather,
    plan_tiles,
    run_dots,
    use_tiles,
)
from .layout import Known, Operand, contiguous_views, known, normalize, operand
from .orbits import orbit
from .tables import CHANNELS, channels

__all__ = ["orbit_dot", "plan"]


@jit_kernel
def dot_tiles(
    x, y, out, weights, partial, channels, units: tl.int32, tiles: tl.int32, across: tl.int32, nb: tl.int32,
    na: tl.int64, H: tl.int64, W: tl.int64, rt: tl.int64, ra: tl.int64, rb: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xh: tl.int64, xw: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64,
    CODES: tl.constexpr, COUNT: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr,
    VEC_H: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, FORMS: tl.constexpr,
    GP: tl.constexpr,
):  # fmt: skip
    """One block of x against every view of y; the block's |G| sums go to their own places in ``partial``."""
    pid, i0, j0, a, b, h, w = tile_at(tiles, across, nb, H, W, TI, TJ, VEC, VEC_H, rt, ra, rb, WIDE)
    x += a * (xa * VEC) + b * (xb * VEC)
    y += a * (ya * VEC) + b * (yb * VEC)
    ptrs, mask = tile(x, i0, j0, h, w, xh * VEC, xw, TI, TJ, False, False, UNIT)
    plain, flipped, turned, both = arrangements(tl.load(ptrs, mask=mask, other=0), FORMS, UNIT)
    # Sums within rows first, beside one another: then one exchange between the warps serves all views.
    views = tl.arange(0, GP)[None, :]
    totals = tl.zeros([TI, GP], ACC)
    for g in tl.static_range(len(CODES)):
        v = form(plain, flipped, turned, both, CODES[g]).to(ACC)
        beside = y + g * (yg * VEC)
        if channels is not None:
            step, minus = channel_of(channels, len(CODES) + g, b, 1, COUNT)
            v = signed(v, minus)
            beside += step * (yb * VEC)
        ptrs, mask = placed_tile(beside, i0, j0, h, w, yh * VEC, yw, CODES[g], TI, TJ, UNIT)
        product = v * tl.load(ptrs, mask=mask, other=0).to(ACC)
        totals = tl.where(views == g, tl.sum(product, 1)[:, None], totals)
        if out is not None:
            if weights is not None:
                v = v * tl.load(weights + g * wg + a * wa + b * wb)
            at = out + a * (oa * VEC) + b * (ob * VEC) + g * (og * VEC)
            if channels is not None:
                at += step * (ob * VEC)
            ptrs, mask = placed_tile(at, i0, j0, h, w, oh * VEC, ow, CODES[g], TI, TJ, UNIT)
            tl.store(ptrs, v.to(out.dtype.element_ty), mask=mask)
    view = tl.arange(0, GP)
    tl.store(partial + view * (na * units) + pid, tl.sum(totals, 0), mask=view < len(CODES))


@jit_kernel
def dot_points(
    x, y, out, weights, partial, channels, units: tl.int32, row_blocks: tl.int32, column_blocks: tl.int32, na: tl.int64,
    R: tl.int64, C: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    rr: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64, xs: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64, ys: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64, os: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64,
    WORDS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
    VEC: tl.constexpr, VEC_R: tl.constexpr, DENSE: tl.constexpr, BIG: tl.constexpr, SHARED: tl.constexpr,
    CUBES: tl.constexpr,
    PARTS: tl.constexpr, ACC: tl.constexpr, GP: tl.constexpr,
):  # fmt: skip
    """As ``orbit_points``: vectors follow x's order, single entries that of the views."""
    pid, a, r, c, within, mask = points_at(row_blocks, column_blocks, rr, R, C, P, CB, VEC, VEC_R, BIG)
    n0, n1, n2 = narrow(n0, n1, n2, BIG)
    x += a * (xa * (VEC * VEC_R))
    y += a * (ya * (VEC * VEC_R))
    if CB > 1:
        b, q0, q1, q2 = unravel(r, n0, n1, n2, DIMS, r0, r1, r2)
        offset = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, xb * VEC, x0 * VEC, x1 * VEC, x2 * VEC, xs * VEC, 136, DIMS, DENSE[0],
            False, CB,
        )  # fmt: skip
        v = tl.load(x + (offset + c), mask=mask, other=0).to(ACC)
    else:
        m0, m1, m2 = narrow(m0, m1, m2, BIG)
        b, q0, q1, q2, within, mask = unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS, CUBES)
    views = tl.arange(0, GP)[None, :]
    totals = tl.zeros([P * PARTS, GP], ACC)
    for g in tl.static_range(len(WORDS)):
        if CB == 1:
            offset = point_offset(r, b, q0, q1, q2, n0, n1, n2, xb, x0, x1, x2, xs, WORDS[g], DIMS, DENSE[0], False, CB)
            if channels is not None:
                step, minus = channel_of(channels, g, b, xb, COUNT)
                offset += step
            v = tl.load(x + (offset + c), mask=mask, other=0).to(ACC)
            if channels is not None:
                v = signed(v, minus)
        put = point_offset(
            r, b, q0, q1, q2, n0, n1, n2, yb * VEC, y0 * VEC, y1 * VEC, y2 * VEC, ys * VEC,
            WORDS[g] if CB > 1 else 136, DIMS, DENSE[1], CB > 1, CB,
        )  # fmt: skip
        product = v * tl.load(y + g * (yg * (VEC * VEC_R)) + (put + c), mask=mask, other=0).to(ACC)
        # Cut into what one warp holds, so that the sums within rows need no exchange between warps.
        product = tl.reshape(product, [P * PARTS, CB // PARTS])
        totals = tl.where(views == g, tl.sum(product, 1)[:, None], totals)
        if out is not None:
            value = v
            if weights is not None:
                value = v * of_items(weights + g * wg + a * wa, b, wb, within, SHARED)
            at = out + a * (oa * (VEC * VEC_R)) + g * (og * (VEC * VEC_R))
            put = point_offset(
                r, b, q0, q1, q2, n0, n1, n2, ob * VEC, o0 * VEC, o1 * VEC, o2 * VEC, os * VEC,
                WORDS[g] if CB > 1 else 136, DIMS, DENSE[2], CB > 1, CB,
            )  # fmt: skip
            tl.store(at + (put + c), value.to(out.dtype.element_ty), mask=mask)
    view = tl.arange(0, GP)
    tl.store(partial + view * (na * units) + pid, tl.sum(totals, 0), mask=view < len(WORDS))


@lru_cache(maxsize=1024)
def plan(views: Views, x: Operand, y: Operand, out: Known, weights: Known, dots: Operand) -> tuple[Plan, int] | None:
    """The launch and its number of partial sums per dot product, or None if the tensors must be copied first."""
    moving = [(x, False), (y, True), (out or y, True)]
    layout = normalize(views, moving, [(weights, True)], len(dots.shape) - 1)
    if layout is None:
        return None
    constants = {"ACC": accumulator(y.dtype), "GP": next_power_of_two(views.order)}
    operands = (x, y, out, weights, dots, CHANNELS if views.size else None)
    scalars = {"na": layout.a, "units": 0}
    if use_tiles(layout, views):
        constants["FORMS"] = forms(views)
        found = plan_tiles(dot_tiles, layout, views, operands, "xyo", "w", scalars, constants, False, True)
    else:
        found = plan_gather(
            dot_points,
            layout,
            views,
            operands,
            "xyo",
            "w",
            scalars,
            constants,
            layout.c == 1,
            max(FEW_VIEWS, views.order),
        )
    units = found.grid[0] // layout.a
    # ``units`` is the first scalar of both kernels, and known only now.
    return found.with_units(units), units


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``."""
    if y.numel() == dots.numel() and table is None:
        return _pointwise(x, y, out, dots, views, weights)
    found = plan(views, operand(x), operand(y), known(out), known(weights), operand(dots))
    if found is not None:
        return run_dots(*found, dots, [channels(views, table)], x, y, out, weights)
    on_copies(lambda to: orbit_dot(x.contiguous(), contiguous_views(y), to, dots, views, table, weights), out)


def _pointwise(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, weights: Maybe) -> None:
    """Sums of a single product: every plane is one point."""
    torch.mul(x.reshape(dots.shape[1:]).to(dots.dtype), y.reshape(dots.shape).to(dots.dtype), out=dots)
    if out is not None:
        orbit(x, out, views, None, 1.0, weights, None)
