"""Fields whose channels matrices mix: the operators on tensors (items, channels, *sides), point by point.

A program has all channels of a field at P points of the views' grid: it gathers them for every view and multiplies
them by the view's matrix. Profilers see the kernels under names such as ``equikern_mixed_orbit_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import triton.language as tl
from torch import Tensor

from ...views import Views
from ...views.grid import numbers
from ..base import Maybe
from .compat import jit_kernel
from .device import alone, combine, finish, map_offset, outcome, prepare, unravel
from .launch import Plan, ceil_div, make_plan, run, run_dots, view_sizes
from .layout import Known, Operand, known, operand
from .matrices import constants_of, times
from .selection import best
from .tables import padded

__all__ = ["orbit", "orbit_dot", "plan_dot", "plan_orbit", "plan_reduce", "plan_select", "reduce", "select"]

WARPS = 4


@jit_kernel
def mixed_orbit(
    x, out, mats, weights, index, scale: tl.float64, points: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xe: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    WORDS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P points."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < points
    mask = inside[None, :] & (j < D)
    f, p0, p1, p2 = unravel(r, m0, m1, m2, 3)
    a = f // nb
    b = f % nb
    put = (a * oa + b * ob + p0 * o0 + p1 * o1 + p2 * o2)[None, :] + j * oe
    if index is not None:
        chosen = tl.load(index + r // per, mask=inside, other=0)
    for g in tl.static_range(len(WORDS)):
        offset = a * xa + b * xb + map_offset(p0, p1, p2, n0, n1, n2, x0, x1, x2, WORDS[g], 3, False)
        v = tl.load(x + offset[None, :] + j * xe, mask=mask, other=0).to(ACC)
        view = times(v, mats, g, DP, P) * tl.full([], scale, ACC)
        if weights is not None:
            view = view * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if index is not None:
            view = tl.where((chosen == g)[None, :], view, tl.zeros_like(view))
        tl.store(out + g * og + put, view.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def mixed_reduce(
    y, out, plus, spread, mats, weights, scale: tl.float64, points: tl.int64, nb: tl.int64, per: tl.int64,
    columns: tl.int64, n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    pg: tl.int64, pa: tl.int64, pb: tl.int64, pe: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    WORDS: tl.constexpr, OP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P points, mapped back and joined as they come."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < points
    mask = inside[None, :] & (j < D)
    f, p0, p1, p2 = unravel(r, m0, m1, m2, 3)
    a = f // nb
    b = f % nb
    for g in tl.static_range(len(WORDS)):
        offset = g * yg + a * ya + b * yb + map_offset(p0, p1, p2, n0, n1, n2, y0, y1, y2, WORDS[g], 3, False)
        v = tl.load(y + offset[None, :] + j * ye, mask=mask, other=0).to(ACC)
        if plus is not None:
            beside = a * pa + b * pb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORDS[g], 3, False)
            v += tl.load(plus + beside[None, :] + j * pe, mask=mask, other=0).to(ACC)
        v = prepare(times(v, mats, g, DP, P), OP)
        if weights is not None:
            v = v * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if g == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, g, t, n, 1, OP)
    put = (a * oa + b * ob + p0 * o0 + p1 * o1 + p2 * o2)[None, :] + j * oe
    tl.store(out + put, outcome(s, m, scale, len(WORDS), OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        put = (a * pa + b * pb + p0 * s0 + p1 * s1 + p2 * s2)[None, :] + j * pe
        second = finish(m, scale, len(WORDS), "std")
        tl.store(spread + put, second.to(spread.dtype.element_ty), mask=mask)


@jit_kernel
def mixed_dot(
    x, y, out, mats, weights, partial, units: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xe: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    WORDS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P points of one item: their dots go to a place of their own in ``partial``."""
    pid = tl.program_id(0).to(tl.int64)
    a = pid // units
    k = pid % units * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    mask = (k < per)[None, :] & (j < D)
    b, p0, p1, p2 = unravel(k, m0, m1, m2, 3)
    beside = (a * ya + b * yb + p0 * y0 + p1 * y1 + p2 * y2)[None, :] + j * ye
    put = (a * oa + b * ob + p0 * o0 + p1 * o1 + p2 * o2)[None, :] + j * oe
    for g in tl.static_range(len(WORDS)):
        offset = a * xa + b * xb + map_offset(p0, p1, p2, n0, n1, n2, x0, x1, x2, WORDS[g], 3, False)
        v = times(tl.load(x + offset[None, :] + j * xe, mask=mask, other=0).to(ACC), mats, g, DP, P)
        other = tl.load(y + g * yg + beside, mask=mask, other=0).to(ACC)
        # What lies behind a field's last channel may be 0 · ∞.
        products = tl.sum(tl.where(mask, v * other, tl.zeros_like(v)), 0)
        tl.store(partial + (g * columns + a) * units + pid % units, tl.sum(products, 0))
        if out is not None:
            if weights is not None:
                v = v * tl.load(weights + g * columns + a)
            tl.store(out + g * og + put, v.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def mixed_select(
    y, out, mats, scores, index, points: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    MINIMUM: tl.constexpr, WORDS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P points of the views that their items chose."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < points
    mask = inside[None, :] & (j < D)
    f, p0, p1, p2 = unravel(r, m0, m1, m2, 3)
    a = f // nb
    b = f % nb
    if scores is not None:
        chosen = best(scores + r // per, columns, inside, len(WORDS), MINIMUM)
        tl.store(index + r // per, chosen, mask=inside & (r % per == 0))  # an item's first point says so
    else:
        chosen = tl.load(index + r // per, mask=inside, other=0)
        chosen = tl.minimum(tl.maximum(chosen, 0), len(WORDS) - 1)
    offset = tl.zeros_like(chosen)
    for g in tl.static_range(len(WORDS)):
        at = map_offset(p0, p1, p2, n0, n1, n2, y0, y1, y2, WORDS[g], 3, False)
        offset = tl.where(chosen == g, at, offset)
    offset += chosen * yg + a * ya + b * yb
    v = tl.load(y + offset[None, :] + j * ye, mask=mask, other=0).to(ACC)
    put = (a * oa + b * ob + p0 * o0 + p1 * o1 + p2 * o2)[None, :] + j * oe
    tl.store(out + put, times(v, mats, chosen, DP, P).to(out.dtype.element_ty), mask=mask)


def _steps(name: str, o: Operand, group: bool, count: int, sides: int) -> dict[str, int]:
    """The strides of a tensor (items, channels, *sides): of views, items, fields, channels, and sides."""
    items, channel, *rest = o.stride[group:]
    last = [0] * (3 - sides) + rest
    prefix = "s" if name == "p" else name
    return {
        f"{name}g": o.stride[0] if group else 0,
        f"{name}a": items,
        f"{name}b": channel * count,
        f"{name}e": channel,
        **{f"{prefix}{k}": step for k, step in enumerate(last)},
    }


def _plan(
    kernel: Any, views: Views, operands: tuple[Known, ...], moving: Mapping[str, tuple[Operand, bool]],
    scalars: Mapping[str, int | float], constants: Mapping[str, object],
) -> tuple[Plan, int]:  # fmt: skip
    """The launch, and how many programs an item takes; ``moving``: the tensors, first one that the views look at."""
    words, count = numbers(views.words).words, views.size
    first, grouped = next(iter(moving.values()))
    items, channels, *rest = first.shape[grouped:]
    d, h, w = (*(1,) * (3 - views.sides), *rest)
    inside = d, h, w
    shown = view_sizes(inside, words[0])
    own = {**constants_of(count, views.order, first.dtype), "WORDS": words, **constants}
    per = channels // count * d * h * w
    values: dict[str, int | float] = {"points": items * per, "nb": channels // count, "per": per, "columns": items}
    values |= {f"n{k}": n for k, n in enumerate(inside)} | {f"m{k}": m for k, m in enumerate(shown)}
    for name, (o, group) in moving.items():
        values |= _steps(name, o, group, count, views.sides)
    units = ceil_div(per, own["P"])
    programs = items * units if kernel is mixed_dot else ceil_div(items * per, own["P"])
    return make_plan(kernel, programs, operands, {**values, **scalars, "units": units}, own, WARPS), units


@lru_cache(maxsize=1024)
def plan_orbit(
    views: Views, scale: float, x: Operand, out: Operand, mats: Operand, weights: Known, index: Known
) -> Plan:
    """The launch for operands such as these."""
    moving = {"x": (x, False), "o": (out, True)}
    return _plan(mixed_orbit, views, (x, out, mats, weights, index), moving, {"scale": scale}, {})[0]


@lru_cache(maxsize=1024)
def plan_reduce(
    views: Views, op: str, scale: float, y: Operand, out: Operand, plus: Known, spread: Known, mats: Operand,
    weights: Known,
) -> Plan:  # fmt: skip
    """The launch for operands such as these; plus and spread never come together and share their strides."""
    moving = {"y": (y, True), "o": (out, False), "p": (plus or spread or out, False)}
    operands = (y, out, plus, spread, mats, weights)
    return _plan(mixed_reduce, views, operands, moving, {"scale": scale}, {"OP": op})[0]


@lru_cache(maxsize=1024)
def plan_dot(
    views: Views, x: Operand, y: Operand, out: Known, mats: Operand, weights: Known, dots: Operand
) -> tuple[Plan, int]:
    """The launch and the number of partial sums of a dot."""
    moving = {"x": (x, False), "y": (y, True), "o": (out or y, True)}
    return _plan(mixed_dot, views, (x, y, out, mats, weights, dots), moving, {}, {})


@lru_cache(maxsize=1024)
def plan_select(
    views: Views, minimum: bool, y: Operand, out: Operand, mats: Operand, scores: Known, index: Operand
) -> Plan:
    """The launch for operands such as these."""
    moving = {"y": (y, True), "o": (out, False)}
    operands = (y, out, mats, scores, index)
    return _plan(mixed_select, views, operands, moving, {}, {"MINIMUM": minimum})[0]


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``; weights and index are given for every item."""
    mats = padded(views, table)
    plan = plan_orbit(views, scale, operand(x), operand(out), operand(mats), known(weights), known(index))
    run(plan, x, out, mats, weights, index)


def reduce(
    y: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    op: str,
    scale: float,
    weights: Maybe,
    plus: Maybe,
    spread: Maybe,
) -> None:
    """See ``Backend.reduce``; weights are given for every item."""
    mats = padded(views, table)
    beside = known(plus), known(spread)
    plan = plan_reduce(views, op, scale, operand(y), operand(out), *beside, operand(mats), known(weights))
    run(plan, y, out, plus, spread, mats, weights)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``; dots and weights are given for every item."""
    mats = padded(views, table)
    found = plan_dot(views, operand(x), operand(y), known(out), operand(mats), known(weights), operand(dots))
    run_dots(*found, dots, (), x, y, out, mats, weights)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; scores and index are given for every item."""
    mats = padded(views, table)
    plan = plan_select(views, minimum, operand(y), operand(out), operand(mats), known(scores), operand(index))
    run(plan, y, out, mats, scores, index)
