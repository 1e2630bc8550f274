"""Matrices that multiply small vectors: those of the last dim, or the channels of a field at every point of its grid.

A program has P vectors of D entries, each in a thread's registers, and multiplies them by every view's matrix: vectors
of the last dim are read once for that, those of a field are gathered at the P points of each view. Fields come as
tensors (items, channels, *sides), weights and the like given for every item. Profilers see the kernels under names such
as ``equikern_matrix_orbit_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ...views.grid import numbers
from ..base import Maybe
from . import launch
from .arithmetic import deviation, outcome
from .compat import jit_kernel
from .device import map_offset, narrow, quotient, unravel
from .launch import (
    MOST_ROWS,
    Plan,
    accumulator,
    ceil_div,
    make_plan,
    next_power_of_two,
    on_copies,
    reciprocal,
    run,
    run_dots,
    strides,
    view_sizes,
)
from .layout import Known, Operand, contiguous_views, known, merge, operand
from .orbits import same_lead
from .selection import best
from .tables import part
from .vectors import added, dotted, entries, joined, only, prepared, scaled, times, write

__all__ = ["orbit", "orbit_dot", "plan_dot", "plan_orbit", "plan_reduce", "plan_select", "reduce", "select"]

THREADS = 128  # of a program
ENTRIES = 8  # of a thread's vectors of one view, in words: it loads a matrix once for all of them
LOOPS = 8  # blocks of vectors of one partial dot, at most


@triton.jit
def vectors_at(
    vectors, nb, m0, m1, m2, rn, r0, r1, r2, P: tl.constexpr, DIMS: tl.constexpr, BIG: tl.constexpr,
):  # fmt: skip
    """This program's vectors, which of them there are, and where each lies in the views."""
    pid = tl.program_id(0)
    if BIG:
        pid = pid.to(tl.int64)
    r = pid * P + tl.arange(0, P)
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    f, p0, p1, p2 = unravel(r, m0, m1, m2, DIMS, r0, r1, r2)
    a, b = split(f, nb, rn)
    return r, r < vectors, a, b, p0, p1, p2


@triton.jit
def split(r, nb, rn):
    """Quotient and remainder by ``nb``, with its reciprocal."""
    nb = nb.to(r.dtype)
    a = quotient(r, nb, rn)
    return a, r - a * nb


@triton.jit
def placed(a, b, p0, p1, p2, sa, sb, s0, s1, s2):
    """Offsets of the vectors at points of a view."""
    return a * sa + b * sb + p0 * s0 + p1 * s1 + p2 * s2


@triton.jit
def found_at(
    a, b, p0, p1, p2, n0, n1, n2, sa, sb, s0, s1, s2, WORD: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Offsets at which a view of a grid finds them."""
    return a * sa + b * sb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, DIMS, False)


@jit_kernel
def matrix_orbit(
    x, out, mats, weights, index, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    rn: tl.int64, rp: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xe: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    WORDS: tl.constexpr, DIMS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BIG: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P vectors."""
    r, inside, a, b, p0, p1, p2 = vectors_at(vectors, nb, m0, m1, m2, rn, r0, r1, r2, P, DIMS, BIG)
    column, _place = split(r, per, rp)
    put = placed(a, b, p0, p1, p2, oa, ob, o0, o1, o2)
    if index is not None:
        chosen = tl.load(index + column, mask=inside, other=0)
    for g in tl.static_range(len(WORDS)):
        if g == 0 or DIMS > 0:
            at = found_at(a, b, p0, p1, p2, n0, n1, n2, xa, xb, x0, x1, x2, WORDS[g], DIMS)
            v = entries(x, at, xe, inside, D, ACC)
        view = scaled(times(mats, g, v), tl.full([], scale, ACC))
        if weights is not None:
            view = scaled(view, tl.load(weights + g * columns + column, mask=inside, other=0))
        if index is not None:
            view = only(view, chosen == g)
        write(out + g * og, put, oe, view, inside)


@jit_kernel
def matrix_reduce(
    y, out, plus, spread, mats, weights, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64,
    columns: tl.int64, rn: tl.int64, rp: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    pg: tl.int64, pa: tl.int64, pb: tl.int64, pe: tl.int64, p0: tl.int64, p1: tl.int64, p2: tl.int64,
    WORDS: tl.constexpr, DIMS: tl.constexpr, OP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BIG: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P vectors, mapped back and joined as they come."""
    r, inside, a, b, q0, q1, q2 = vectors_at(vectors, nb, m0, m1, m2, rn, r0, r1, r2, P, DIMS, BIG)
    column, _place = split(r, per, rp)
    states = ()
    for g in tl.static_range(len(WORDS)):
        at = found_at(a, b, q0, q1, q2, n0, n1, n2, ya, yb, y0, y1, y2, WORDS[g], DIMS)
        v = entries(y + g * yg, at, ye, inside, D, ACC)
        if plus is not None:
            if g == 0 or DIMS > 0:
                at = found_at(a, b, q0, q1, q2, n0, n1, n2, pa, pb, p0, p1, p2, WORDS[g], DIMS)
                beside = entries(plus, at, pe, inside, D, ACC)
            v = added(v, beside)
        view = prepared(times(mats, g, v), OP)
        if weights is not None:
            view = scaled(view, tl.load(weights + g * columns + column, mask=inside, other=0))
        states = joined(states, g, view, OP)
    put = placed(a, b, q0, q1, q2, oa, ob, o0, o1, o2)
    if spread is not None:
        beside_put = placed(a, b, q0, q1, q2, pa, pb, p0, p1, p2)
    for i in tl.static_range(D):
        s = outcome(states[i][0], states[i][1], scale, len(WORDS), OP)
        tl.store(out + put + i * oe, s.to(out.dtype.element_ty), mask=inside)
        if spread is not None:
            m = deviation(states[i][0], states[i][1], len(WORDS))
            tl.store(spread + beside_put + i * pe, m.to(spread.dtype.element_ty), mask=inside)


@jit_kernel
def matrix_dot(
    x, y, out, mats, weights, dots, units: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64, ru: tl.int64,
    rn: tl.int64,
    xa: tl.int64, xb: tl.int64, xe: tl.int64, yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    WORDS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, EACH: tl.constexpr, GP: tl.constexpr,
    BIG: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One unit of a weight's vectors, STEPS blocks of P; EACH: every vector has a weight, and a dot, of its own."""
    pid = tl.program_id(0)
    if BIG:
        pid = pid.to(tl.int64)
    column, unit = split(pid, units, ru)
    views = tl.arange(0, GP)
    totals = tl.zeros([GP, P], ACC)
    for step in range(STEPS):
        k = (unit * STEPS + step) * P + tl.arange(0, P)  # within the column
        if EACH:
            r = k
            inside = k < columns
        else:
            r = column * per.to(k.dtype) + k
            inside = k < per
        a, b = split(r, nb, rn)
        v = entries(x, a * xa + b * xb, xe, inside, D, ACC)
        for g in tl.static_range(len(WORDS)):
            view = times(mats, g, v)
            products = dotted(view, entries(y + g * yg, a * ya + b * yb, ye, inside, D, ACC))
            if EACH:
                tl.store(dots + g * columns + k, products, mask=inside)
            else:
                # Of vectors that are not there: 0 · ∞ of a matrix.
                products = tl.where(inside, products, tl.zeros_like(products))
                totals = tl.where(views[:, None] == g, totals + products[None, :], totals)
            if out is not None:
                if weights is not None:
                    if EACH:
                        view = scaled(view, tl.load(weights + g * columns + k, mask=inside, other=0))
                    else:
                        view = scaled(view, tl.load(weights + g * columns + column))
                write(out + g * og, a * oa + b * ob, oe, view, inside)
    if not EACH:
        at = (views * columns + column) * units + unit
        tl.store(dots + at, tl.sum(totals, 1), mask=views < len(WORDS))


@jit_kernel
def field_dot(
    x, y, out, mats, weights, partial, units: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    ru: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xe: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    WORDS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, GP: tl.constexpr, BIG: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """P points of one item: their dots go to a place of their own in ``partial``."""
    pid = tl.program_id(0)
    if BIG:
        pid = pid.to(tl.int64)
    a, unit = split(pid, units, ru)
    k = unit * P + tl.arange(0, P)
    inside = k < per
    m0, m1, m2 = narrow(m0, m1, m2, BIG)
    b, p0, p1, p2 = unravel(k, m0, m1, m2, 3, r0, r1, r2)
    beside = placed(a, b, p0, p1, p2, ya, yb, y0, y1, y2)
    put = placed(a, b, p0, p1, p2, oa, ob, o0, o1, o2)
    views = tl.arange(0, GP)
    totals = tl.zeros([GP, P], ACC)
    for g in tl.static_range(len(WORDS)):
        at = found_at(a, b, p0, p1, p2, n0, n1, n2, xa, xb, x0, x1, x2, WORDS[g], 3)
        view = times(mats, g, entries(x, at, xe, inside, D, ACC))
        products = dotted(view, entries(y + g * yg, beside, ye, inside, D, ACC))
        # Of points that are not there: 0 · ∞ of a matrix.
        products = tl.where(inside, products, tl.zeros_like(products))
        totals = tl.where(views[:, None] == g, products[None, :], totals)
        if out is not None:
            if weights is not None:
                view = scaled(view, tl.load(weights + g * columns + a))
            write(out + g * og, put, oe, view, inside)
    tl.store(partial + (views * columns + a) * units + unit, tl.sum(totals, 1), mask=views < len(WORDS))


@jit_kernel
def matrix_select(
    y, out, mats, scores, index, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    rn: tl.int64, rp: tl.int64, r0: tl.int64, r1: tl.int64, r2: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    MINIMUM: tl.constexpr, WORDS: tl.constexpr, DIMS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BIG: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """P vectors of the view that each chose, times that view's matrix."""
    r, inside, a, b, p0, p1, p2 = vectors_at(vectors, nb, m0, m1, m2, rn, r0, r1, r2, P, DIMS, BIG)
    column, place = split(r, per, rp)
    if scores is not None:
        chosen = best(scores + column, columns, inside, len(WORDS), MINIMUM)
        tl.store(index + column, chosen, mask=inside & (place == 0))  # a column's first vector says so
    else:
        chosen = tl.load(index + column, mask=inside, other=0)
        chosen = tl.minimum(tl.maximum(chosen, 0), len(WORDS) - 1)
    offset = tl.zeros_like(chosen)
    for g in tl.static_range(len(WORDS) if DIMS > 0 else 0):
        at = map_offset(p0, p1, p2, n0, n1, n2, y0, y1, y2, WORDS[g], DIMS, False)
        offset = tl.where(chosen == g, at, offset)
    offset += chosen * yg + a * ya + b * yb
    view = times(mats, chosen, entries(y, offset, ye, inside, D, ACC))
    write(out, placed(a, b, p0, p1, p2, oa, ob, o0, o1, o2), oe, view, inside)


Moving = Sequence[tuple[Operand, bool]]


def _of_vectors(names: str, moving: Moving, keep: int) -> dict[str, int] | None:
    """The loops over vectors of the last dim, weights given for ``keep`` leading dims; None if they are too many."""
    first, grouped = moving[0]
    shape = first.shape[grouped:]
    merged = merge([(size, tuple(o.stride[k + group] for o, group in moving)) for k, size in enumerate(shape[:-1])])
    if len(merged) > 2:
        return None
    none = (1, (0,) * len(moving))
    (_, outer), (inner, within) = [none, none, *merged][-2:]
    rows = [
        (o.stride[0] if group else 0, outer[k], within[k], o.stride[-1], 0, 0, 0) for k, (o, group) in enumerate(moving)
    ]
    columns, vectors = prod(shape[:keep]), prod(shape[:-1])
    counts = {"vectors": vectors, "per": max(1, vectors // max(1, columns)), "columns": columns, "nb": inner}
    return {**counts, **strides("nm", "012", [(1, 1, 1)] * 2), **strides(names, "gabe012", rows)}


def _of_fields(views: Views, names: str, moving: Moving) -> dict[str, int]:
    """The loops over the points of (items, channels, *sides)."""
    first, grouped = moving[0]
    items, channels, *rest = first.shape[grouped:]
    flat = (0,) * (3 - views.sides)
    d, h, w = (*(1 for _ in flat), *rest)
    shown = view_sizes((d, h, w), numbers(views.words).words[0])
    rows = []
    for o, group in moving:
        item, channel, *sides = o.stride[group:]
        own = o.stride[0] if group else 0
        rows.append((own, item, channel * views.size, channel, *flat, *sides))
    nb = channels // views.size
    per = nb * d * h * w
    counts = {"vectors": items * per, "per": per, "columns": items, "nb": nb}
    return {**counts, **strides("nm", "012", [(d, h, w), shown]), **strides(names, "gabe012", rows)}


def _plan(
    kernel: Any, views: Views, operands: Sequence[Known], names: str, moving: Moving, keep: int,
    scalars: Mapping[str, int | float], constants: Mapping[str, object],
) -> Plan | None:  # fmt: skip
    """The launch, or None if the tensors must be copied first; ``keep``: of how many leading dims weights are given."""
    grid = bool(views.sides)
    values = _of_fields(views, names, moving) if grid else _of_vectors(names, moving, keep)
    if values is None:
        return None
    each = not grid and values["per"] == 1  # a weight, say, for every vector: neighbours' lie together
    dtype = moving[0][0].dtype
    few = each or constants.get("OP", "sum") not in ("sum", "max", "min")  # whose arithmetic fills the registers
    words = views.size * ceil_div(dtype.itemsize, 4)
    block = THREADS * (1 if few else max(1, next_power_of_two(ENTRIES // words + 1) // 2))
    forms = numbers(views.words if grid else (".",) * views.order).words
    own: dict[str, Any] = {"WORDS": forms, "DIMS": 3 * grid, "D": views.size, "P": block, **constants}
    own["ACC"] = accumulator(dtype)
    programs = ceil_div(values["vectors"], block)
    if kernel in (matrix_dot, field_dot):
        length = values["columns"] if each else values["per"]
        own |= {"EACH": each, "STEPS": 1 if grid or each else min(LOOPS, next_power_of_two(ceil_div(length, block)))}
        own["GP"] = next_power_of_two(views.order)
        values["units"] = ceil_div(length, block * own["STEPS"])
        programs = values["units"] * (1 if each else values["columns"])
    divisors = {"rn": "nb", "rp": "per", "ru": "units", "r0": "m0", "r1": "m1", "r2": "m2"}
    values |= {name: reciprocal(values[size]) for name, size in divisors.items() if size in values}
    own["BIG"] = max(values["vectors"] + own.get("STEPS", 1) * block, programs) >= MOST_ROWS
    return make_plan(kernel, programs, operands, {**values, **scalars}, own, THREADS // launch.LANES)


@lru_cache(maxsize=1024)
def plan_orbit(
    views: Views, scale: float, x: Operand, out: Operand, mats: Operand, weights: Known, index: Known
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    keep = len(weights.shape) - 1 if weights else len(index.shape) if index else 0
    moving, operands = [(x, False), (out, True)], (x, out, mats, weights, index)
    return _plan(matrix_orbit, views, operands, "xo", moving, keep, {"scale": scale}, {})


@lru_cache(maxsize=1024)
def plan_reduce(
    views: Views, op: str, scale: float, y: Operand, out: Operand, plus: Known, spread: Known, mats: Operand,
    weights: Known,
) -> Plan | None:  # fmt: skip
    """The launch for operands such as these, or None if the tensors must be copied first.

    plus and spread never come together, so the kernel knows one set of strides for both.
    """
    moving, keep = [(y, True), (out, False), (plus or spread or out, False)], len(weights.shape) - 1 if weights else 0
    operands = (y, out, plus, spread, mats, weights)
    return _plan(matrix_reduce, views, operands, "yop", moving, keep, {"scale": scale}, {"OP": op})


@lru_cache(maxsize=1024)
def plan_dot(
    views: Views, x: Operand, y: Operand, out: Known, mats: Operand, weights: Known, dots: Operand
) -> tuple[Plan, int] | None:
    """The launch and the number of partial sums of a dot, or None if the tensors must be copied first."""
    moving, operands = [(x, False), (y, True), (out or y, True)], (x, y, out, mats, weights, dots)
    kernel = field_dot if views.sides else matrix_dot
    found = _plan(kernel, views, operands, "xyo", moving, len(dots.shape) - 1, {}, {})
    # ``units`` is the first scalar of both kernels.
    return None if found is None else (found, 1 if found.constants.get("EACH") else int(found.scalars[0]))


@lru_cache(maxsize=1024)
def plan_select(
    views: Views, minimum: bool, y: Operand, out: Operand, mats: Operand, scores: Known, index: Operand
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    moving, operands = [(y, True), (out, False)], (y, out, mats, scores, index)
    return _plan(matrix_select, views, operands, "yo", moving, len(index.shape), {}, {"MINIMUM": minimum})


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``."""
    if weights is not None and index is not None:
        weights, index = same_lead(weights, index)
    mats = part(views, table)
    found = plan_orbit(views, scale, operand(x), operand(out), operand(mats), known(weights), known(index))
    if found is not None:
        return run(found, x, out, mats, weights, index)
    on_copies(lambda to: orbit(x.contiguous(), to, views, table, scale, weights, index), out)


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
    """See ``Backend.reduce``."""
    mats = part(views, table)
    beside = known(plus), known(spread)
    found = plan_reduce(views, op, scale, operand(y), operand(out), *beside, operand(mats), known(weights))
    if found is not None:
        return run(found, y, out, plus, spread, mats, weights)
    y, plus = contiguous_views(y), plus if plus is None else plus.contiguous()
    on_copies(lambda to, second: reduce(y, to, views, table, op, scale, weights, plus, second), out, spread)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``."""
    mats = part(views, table)
    found = plan_dot(views, operand(x), operand(y), known(out), operand(mats), known(weights), operand(dots))
    if found is not None:
        return run_dots(*found, dots, (), x, y, out, mats, weights)
    on_copies(lambda to: orbit_dot(x.contiguous(), contiguous_views(y), to, dots, views, table, weights), out)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    mats = part(views, table)
    found = plan_select(views, minimum, operand(y), operand(out), operand(mats), known(scores), operand(index))
    if found is not None:
        return run(found, y, out, mats, scores, index)
    on_copies(lambda to: select(contiguous_views(y), to, index, views, table, scores, minimum), out)
