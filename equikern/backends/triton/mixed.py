"""Fields whose channels matrices mix: the operators on tensors (items, channels, *sides), point by point.

A program has all channels of a field at P points of the views' grid: it gathers them for every view and multiplies
them by the view's matrix. Profilers see the kernels under names such as ``equikern_mixed_orbit_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...field_tables import grids, matrices, size
from .actions import constants_of, padded, times
from .compat import jit_kernel
from .device import combine, finish, map_offset, prepare, unravel
from .launch import Plan, ceil_div, make_plan, run
from .layout import Operand, operand, parse_maps
from .selection import best

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
    y, out, other, mats, weights, scale: tl.float64, points: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
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
        if OP == "sum" and other is not None:
            beside = a * pa + b * pb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORDS[g], 3, False)
            v += tl.load(other + beside[None, :] + j * pe, mask=mask, other=0).to(ACC)
        v = prepare(times(v, mats, g, DP, P), OP)
        if weights is not None:
            v = v * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if g == 0:
            s = v
            m = tl.zeros_like(v)
        else:
            s, m = combine(s, m, g, v, tl.zeros_like(v), 1, OP)
    if OP == "std":
        s = m
    put = (a * oa + b * ob + p0 * o0 + p1 * o1 + p2 * o2)[None, :] + j * oe
    tl.store(out + put, finish(s, scale, len(WORDS), OP).to(out.dtype.element_ty), mask=mask)
    if OP == "mean_std":
        put = (a * pa + b * pb + p0 * s0 + p1 * s1 + p2 * s2)[None, :] + j * pe
        spread = finish(m, scale, len(WORDS), "std")
        tl.store(other + put, spread.to(other.dtype.element_ty), mask=mask)


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
    kernel: Any,
    maps: str,
    operands: tuple[Operand | None, ...],
    moving: Mapping[str, tuple[Operand, bool]],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, object],
) -> tuple[Plan, int]:
    """The launch, and how many programs an item takes; ``moving``: the tensors, first one that the views look at."""
    views, count = parse_maps(grids(maps)), size(maps.partition(" ")[0])
    first, grouped = next(iter(moving.values()))
    items, channels, *rest = first.shape[grouped:]
    inside = (*(1,) * (3 - views.dims), *rest)
    shown = tuple(inside[(views.words[0] >> (3 * k)) & 3] for k in range(3))
    own: dict[str, Any] = {**constants_of(count, len(views.words), first.dtype), "WORDS": views.words}
    per = channels // count * inside[0] * inside[1] * inside[2]
    values: dict[str, int | float] = {"points": items * per, "nb": channels // count, "per": per, "columns": items}
    values |= {f"n{k}": n for k, n in enumerate(inside)} | {f"m{k}": m for k, m in enumerate(shown)}
    for name, (o, group) in moving.items():
        values |= _steps(name, o, group, count, views.dims)
    units = ceil_div(per, own["P"])
    programs = items * units if kernel is mixed_dot else ceil_div(items * per, own["P"])
    kept = {name: value for name, value in {**own, **constants}.items() if name in kernel.arg_names}
    return make_plan(kernel, programs, operands, {**values, **scalars, "units": units}, kept, WARPS, None), units  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def plan_orbit(
    maps: str, scale: float, x: Operand, out: Operand, mats: Operand, weights: Operand | None, index: Operand | None
) -> Plan:
    """The launch for operands such as these."""
    moving = {"x": (x, False), "o": (out, True)}
    return _plan(mixed_orbit, maps, (x, out, mats, weights, index), moving, {"scale": scale}, {})[0]


@lru_cache(maxsize=1024)
def plan_reduce(
    maps: str, op: str, scale: float, y: Operand, out: Operand, other: Operand | None, mats: Operand,
    weights: Operand | None,
) -> Plan:  # fmt: skip
    """The launch for operands such as these."""
    moving = {"y": (y, True), "o": (out, False), "p": (other or out, False)}
    operands = (y, out, other, mats, weights)
    return _plan(mixed_reduce, maps, operands, moving, {"scale": scale}, {"OP": op})[0]


@lru_cache(maxsize=1024)
def plan_dot(
    maps: str, x: Operand, y: Operand, out: Operand | None, mats: Operand, weights: Operand | None, dots: Operand
) -> tuple[Plan, int]:
    """The launch and the number of partial sums of a dot."""
    moving = {"x": (x, False), "y": (y, True), "o": (out or y, True)}
    return _plan(mixed_dot, maps, (x, y, out, mats, weights, dots), moving, {}, {})


@lru_cache(maxsize=1024)
def plan_select(
    maps: str, minimum: bool, y: Operand, out: Operand, mats: Operand, scores: Operand | None, index: Operand
) -> Plan:
    """The launch for operands such as these."""
    moving = {"y": (y, True), "o": (out, False)}
    operands = (y, out, mats, scores, index)
    return _plan(mixed_select, maps, operands, moving, {}, {"MINIMUM": minimum})[0]


def _known(t: Tensor | None) -> Operand | None:
    return None if t is None else operand(t)


def _matrices(maps: str, t: Tensor) -> Tensor:
    return padded(matrices(maps), t)


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``; weights and index are given for every item."""
    mats = _matrices(maps, x)
    plan = plan_orbit(maps, scale, operand(x), operand(out), operand(mats), _known(weights), _known(index))
    run(plan, x, out, mats, weights, index)


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``; weights are given for every item."""
    mats = _matrices(maps, y)
    plan = plan_reduce(maps, op, scale, operand(y), operand(out), _known(other), operand(mats), _known(weights))
    run(plan, y, out, other, mats, weights)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``; dots and weights are given for every item."""
    mats = _matrices(maps, x)
    plan, units = plan_dot(maps, operand(x), operand(y), _known(out), operand(mats), _known(weights), operand(dots))
    partial = dots if units == 1 else dots.new_empty((*dots.shape, units))
    run(plan, x, y, out, mats, weights, partial)
    if units > 1:
        torch.sum(partial, -1, out=dots)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``; scores and index are given for every item."""
    mats = _matrices(maps, y)
    plan = plan_select(maps, minimum, operand(y), operand(out), operand(mats), _known(scores), operand(index))
    run(plan, y, out, mats, scores, index)
