"""Matrices that multiply small vectors: those of the last dim, or the channels of a field at every point of its grid.

A program has P vectors of D entries and multiplies them by every view's matrix: vectors of the last dim are read once
for that, those of a field are gathered at the P points of each view. Fields come as tensors (items, channels, *sides),
weights and the like given for every item. Profilers see the kernels under names such as ``equikern_matrix_orbit_bf16``.
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
from .arithmetic import alone, combine, finish, outcome, prepare
from .compat import jit_kernel
from .device import map_offset, unravel
from .launch import (
    Plan,
    accumulator,
    ceil_div,
    make_plan,
    next_power_of_two,
    on_copies,
    run,
    run_dots,
    strides,
    view_sizes,
)
from .layout import Known, Operand, contiguous_views, known, merge, operand
from .orbits import same_lead
from .selection import best
from .tables import padded

__all__ = ["orbit", "orbit_dot", "plan_dot", "plan_orbit", "plan_reduce", "plan_select", "reduce", "select"]

PRODUCTS = 2048  # terms of matrix products that a program has in registers
VECTORS = 128  # most of one program, a thread's each: one that has a part of a vector asks others for the rest
LOOPS = 8  # blocks of vectors of one partial dot


@triton.jit
def times(v, mats, g, DP: tl.constexpr, P: tl.constexpr):
    """Matrix g times each of the vectors v [DP, P]. g is a number, or P of them.

    The vectors are the fastest axis, so that a thread has whole ones and sums without its neighbours. It loads the
    matrix's entries itself: they are the same for all threads and stay in the cache.
    """
    row = tl.arange(0, DP)[:, None, None]
    col = tl.arange(0, DP)[None, :, None]
    at = g * (DP * DP) + tl.zeros([P], tl.int32)
    m = tl.load(mats + (at[None, None, :] + (row * DP + col)))
    return tl.sum(m * v[None, :, :], 1)


@triton.jit
def vectors_at(vectors, nb, m0, m1, m2, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, DIMS: tl.constexpr):
    """This program's vectors, which of them there are, the mask of their entries, and where each lies in the views."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    inside = r < vectors
    f, p0, p1, p2 = unravel(r, m0, m1, m2, DIMS)
    return r, inside, inside[None, :] & (tl.arange(0, DP)[:, None] < D), f // nb, f % nb, p0, p1, p2


@triton.jit
def entries_at(a, b, p0, p1, p2, sa, sb, se, s0, s1, s2, DP: tl.constexpr):
    """Offsets of the entries of vectors at points of a view."""
    return (a * sa + b * sb + p0 * s0 + p1 * s1 + p2 * s2)[None, :] + tl.arange(0, DP)[:, None] * se


@triton.jit
def read_at(
    a, b, p0, p1, p2, n0, n1, n2, sa, sb, se, s0, s1, s2, WORD: tl.constexpr, DP: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Offsets at which a view of a grid finds them."""
    offset = a * sa + b * sb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, DIMS, False)
    return offset[None, :] + tl.arange(0, DP)[:, None] * se


@jit_kernel
def matrix_orbit(
    x, out, mats, weights, index, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xe: tl.int64, x0: tl.int64, x1: tl.int64, x2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    WORDS: tl.constexpr, DIMS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P vectors."""
    r, inside, mask, a, b, p0, p1, p2 = vectors_at(vectors, nb, m0, m1, m2, D, DP, P, DIMS)
    put = entries_at(a, b, p0, p1, p2, oa, ob, oe, o0, o1, o2, DP)
    if index is not None:
        chosen = tl.load(index + r // per, mask=inside, other=0)
    for g in tl.static_range(len(WORDS)):
        if g == 0 or DIMS > 0:
            at = read_at(a, b, p0, p1, p2, n0, n1, n2, xa, xb, xe, x0, x1, x2, WORDS[g], DP, DIMS)
            v = tl.load(x + at, mask=mask, other=0).to(ACC)
        view = times(v, mats, g, DP, P) * tl.full([], scale, ACC)
        if weights is not None:
            view = view * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if index is not None:
            view = tl.where((chosen == g)[None, :], view, tl.zeros_like(view))
        tl.store(out + g * og + put, view.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def matrix_reduce(
    y, out, plus, spread, mats, weights, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64,
    columns: tl.int64, n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    pg: tl.int64, pa: tl.int64, pb: tl.int64, pe: tl.int64, p0: tl.int64, p1: tl.int64, p2: tl.int64,
    WORDS: tl.constexpr, DIMS: tl.constexpr, OP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P vectors, mapped back and joined as they come."""
    r, inside, mask, a, b, q0, q1, q2 = vectors_at(vectors, nb, m0, m1, m2, D, DP, P, DIMS)
    for g in tl.static_range(len(WORDS)):
        at = read_at(a, b, q0, q1, q2, n0, n1, n2, ya, yb, ye, y0, y1, y2, WORDS[g], DP, DIMS)
        v = tl.load(y + g * yg + at, mask=mask, other=0).to(ACC)
        if plus is not None:
            if g == 0 or DIMS > 0:
                at = read_at(a, b, q0, q1, q2, n0, n1, n2, pa, pb, pe, p0, p1, p2, WORDS[g], DP, DIMS)
                beside = tl.load(plus + at, mask=mask, other=0).to(ACC)
            v += beside
        v = prepare(times(v, mats, g, DP, P), OP)
        if weights is not None:
            v = v * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if g == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, g, t, n, 1, OP)
    put = entries_at(a, b, q0, q1, q2, oa, ob, oe, o0, o1, o2, DP)
    tl.store(out + put, outcome(s, m, scale, len(WORDS), OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        put = entries_at(a, b, q0, q1, q2, pa, pb, pe, p0, p1, p2, DP)
        tl.store(spread + put, finish(m, scale, len(WORDS), "std").to(spread.dtype.element_ty), mask=mask)


@jit_kernel
def matrix_dot(
    x, y, out, mats, weights, dots, units: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    xa: tl.int64, xb: tl.int64, xe: tl.int64, yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    WORDS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, EACH: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One unit of a weight's vectors, STEPS blocks of P; EACH: every vector has a weight, and a dot, of its own."""
    pid = tl.program_id(0).to(tl.int64)
    column = pid // units
    j = tl.arange(0, DP)[:, None]
    for g in tl.static_range(len(WORDS)):
        total = tl.zeros([P], ACC)
        if weights is not None and not EACH:
            factor = tl.load(weights + g * columns + column)
        for step in range(STEPS):
            k = ((pid % units) * STEPS + step) * P + tl.arange(0, P)  # within the column
            if EACH:
                r = k
                inside = k < columns
            else:
                r = column * per + k
                inside = k < per
            mask = inside[None, :] & (j < D)
            a = (r // nb)[None, :]
            b = (r % nb)[None, :]
            v = times(tl.load(x + a * xa + b * xb + j * xe, mask=mask, other=0).to(ACC), mats, g, DP, P)
            other = tl.load(y + g * yg + a * ya + b * yb + j * ye, mask=mask, other=0).to(ACC)
            # What lies behind a vector's end may be 0 · ∞.
            products = tl.sum(tl.where(mask, v * other, tl.zeros_like(v)), 0)
            if EACH:
                tl.store(dots + g * columns + k, products, mask=inside)
            else:
                total += products
            if out is not None:
                if weights is not None:
                    if EACH:  # noqa: SIM108
                        v = v * tl.load(weights + g * columns + k, mask=inside, other=0)[None, :]
                    else:
                        v = v * factor
                tl.store(out + g * og + a * oa + b * ob + j * oe, v.to(out.dtype.element_ty), mask=mask)
        if not EACH:
            tl.store(dots + (g * columns + column) * units + pid % units, tl.sum(total, 0))


@jit_kernel
def field_dot(
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
    mask = (k < per)[None, :] & (tl.arange(0, DP)[:, None] < D)
    b, p0, p1, p2 = unravel(k, m0, m1, m2, 3)
    beside = entries_at(a, b, p0, p1, p2, ya, yb, ye, y0, y1, y2, DP)
    put = entries_at(a, b, p0, p1, p2, oa, ob, oe, o0, o1, o2, DP)
    for g in tl.static_range(len(WORDS)):
        at = read_at(a, b, p0, p1, p2, n0, n1, n2, xa, xb, xe, x0, x1, x2, WORDS[g], DP, 3)
        v = times(tl.load(x + at, mask=mask, other=0).to(ACC), mats, g, DP, P)
        other = tl.load(y + g * yg + beside, mask=mask, other=0).to(ACC)
        # What lies behind a field's last channel may be 0 · ∞.
        products = tl.sum(tl.where(mask, v * other, tl.zeros_like(v)), 0)
        tl.store(partial + (g * columns + a) * units + pid % units, tl.sum(products, 0))
        if out is not None:
            if weights is not None:
                v = v * tl.load(weights + g * columns + a)
            tl.store(out + g * og + put, v.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def matrix_select(
    y, out, mats, scores, index, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    n0: tl.int64, n1: tl.int64, n2: tl.int64, m0: tl.int64, m1: tl.int64, m2: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, y0: tl.int64, y1: tl.int64, y2: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64, o0: tl.int64, o1: tl.int64, o2: tl.int64,
    MINIMUM: tl.constexpr, WORDS: tl.constexpr, DIMS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """P vectors of the view that each chose, times that view's matrix."""
    r, inside, mask, a, b, p0, p1, p2 = vectors_at(vectors, nb, m0, m1, m2, D, DP, P, DIMS)
    if scores is not None:
        chosen = best(scores + r // per, columns, inside, len(WORDS), MINIMUM)
        tl.store(index + r // per, chosen, mask=inside & (r % per == 0))  # a column's first vector says so
    else:
        chosen = tl.load(index + r // per, mask=inside, other=0)
        chosen = tl.minimum(tl.maximum(chosen, 0), len(WORDS) - 1)
    offset = tl.zeros_like(chosen)
    for g in tl.static_range(len(WORDS) if DIMS > 0 else 0):
        at = map_offset(p0, p1, p2, n0, n1, n2, y0, y1, y2, WORDS[g], DIMS, False)
        offset = tl.where(chosen == g, at, offset)
    offset += chosen * yg + a * ya + b * yb
    v = tl.load(y + offset[None, :] + tl.arange(0, DP)[:, None] * ye, mask=mask, other=0).to(ACC)
    put = entries_at(a, b, p0, p1, p2, oa, ob, oe, o0, o1, o2, DP)
    tl.store(out + put, times(v, mats, chosen, DP, P).to(out.dtype.element_ty), mask=mask)


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
    rows = next_power_of_two(views.size)
    block = max(1, min(VECTORS, PRODUCTS // rows**2))
    words = numbers(views.words if grid else (".",) * views.order).words
    own: dict[str, Any] = {"WORDS": words, "DIMS": 3 * grid, "D": views.size, "DP": rows, "P": block, **constants}
    own["ACC"] = accumulator(moving[0][0].dtype)
    programs = ceil_div(values["vectors"], block)
    if kernel in (matrix_dot, field_dot):
        each = values["per"] == 1 and not grid
        length = values["columns"] if each else values["per"]
        own |= {"EACH": each, "STEPS": 1 if grid or each or length <= block else LOOPS}
        values["units"] = ceil_div(length, block * own["STEPS"])
        programs = values["units"] * (1 if each else values["columns"])
    return make_plan(kernel, programs, operands, {**values, **scalars}, own, VECTORS // launch.LANES)


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
    mats = padded(views, table)
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
    mats = padded(views, table)
    beside = known(plus), known(spread)
    found = plan_reduce(views, op, scale, operand(y), operand(out), *beside, operand(mats), known(weights))
    if found is not None:
        return run(found, y, out, plus, spread, mats, weights)
    y, plus = contiguous_views(y), plus if plus is None else plus.contiguous()
    on_copies(lambda to, second: reduce(y, to, views, table, op, scale, weights, plus, second), out, spread)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``."""
    mats = padded(views, table)
    found = plan_dot(views, operand(x), operand(y), known(out), operand(mats), known(weights), operand(dots))
    if found is not None:
        return run_dots(*found, dots, (), x, y, out, mats, weights)
    on_copies(lambda to: orbit_dot(x.contiguous(), contiguous_views(y), to, dots, views, table, weights), out)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    mats = padded(views, table)
    found = plan_select(views, minimum, operand(y), operand(out), operand(mats), known(scores), operand(index))
    if found is not None:
        return run(found, y, out, mats, scores, index)
    on_copies(lambda to: select(contiguous_views(y), to, index, views, table, scores, minimum), out)
