"""Views that multiply the vectors of the last dim by small matrices: all four operators, any number of entries.

A program has P vectors of D entries and makes every view of them from one read. Profilers see the kernels under names
such as ``equikern_matrix_orbit_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .compat import jit_kernel
from .device import alone, combine, finish, outcome, prepare
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
)
from .layout import Known, Operand, contiguous_views, known, merge, operand
from .orbits import same_lead
from .selection import best
from .tables import padded

__all__ = ["orbit", "orbit_dot", "reduce", "select"]

PRODUCTS = 2048  # terms of matrix products that a program has in registers
VECTORS = 128  # most of one program
LOOPS = 8  # blocks of vectors of one partial dot
WARPS = 4


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


@jit_kernel
def matrix_orbit(
    x, out, mats, weights, index, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    xa: tl.int64, xb: tl.int64, xe: tl.int64, og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Read P vectors once, write them times every matrix."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < vectors
    mask = inside[None, :] & (j < D)
    a = (r // nb)[None, :]
    b = (r % nb)[None, :]
    v = tl.load(x + a * xa + b * xb + j * xe, mask=mask, other=0).to(ACC)
    out += a * oa + b * ob + j * oe
    if index is not None:
        chosen = tl.load(index + r // per, mask=inside, other=0)
    for g in tl.static_range(COUNT):
        view = times(v, mats, g, DP, P) * tl.full([], scale, ACC)
        if weights is not None:
            view = view * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if index is not None:
            view = tl.where((chosen == g)[None, :], view, tl.zeros_like(view))
        tl.store(out + g * og, view.to(out.dtype.element_ty), mask=mask)


@jit_kernel
def matrix_reduce(
    y, out, plus, spread, mats, weights, scale: tl.float64, vectors: tl.int64, nb: tl.int64, per: tl.int64,
    columns: tl.int64, yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    pa: tl.int64, pb: tl.int64, pe: tl.int64,
    OP: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view of P vectors times its matrix, joined as they come."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < vectors
    mask = inside[None, :] & (j < D)
    a = (r // nb)[None, :]
    b = (r % nb)[None, :]
    y += a * ya + b * yb + j * ye
    if plus is not None:
        beside = tl.load(plus + a * pa + b * pb + j * pe, mask=mask, other=0).to(ACC)
    for g in tl.static_range(COUNT):
        v = tl.load(y + g * yg, mask=mask, other=0).to(ACC)
        if plus is not None:
            v += beside
        v = prepare(times(v, mats, g, DP, P), OP)
        if weights is not None:
            v = v * tl.load(weights + g * columns + r // per, mask=inside, other=0)[None, :]
        if g == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, g, t, n, 1, OP)
    tl.store(out + a * oa + b * ob + j * oe, outcome(s, m, scale, COUNT, OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        second = finish(m, scale, COUNT, "std")
        tl.store(spread + a * pa + b * pb + j * pe, second.to(spread.dtype.element_ty), mask=mask)


@jit_kernel
def matrix_dot(
    x, y, out, mats, weights, dots, units: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    xa: tl.int64, xb: tl.int64, xe: tl.int64, yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, EACH: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One unit of a weight's vectors, STEPS blocks of P; EACH: every vector has a weight, and a dot, of its own."""
    pid = tl.program_id(0).to(tl.int64)
    column = pid // units
    j = tl.arange(0, DP)[:, None]
    for g in tl.static_range(COUNT):
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
def matrix_select(
    y, out, mats, scores, index, vectors: tl.int64, nb: tl.int64, per: tl.int64, columns: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, ye: tl.int64, oa: tl.int64, ob: tl.int64, oe: tl.int64,
    MINIMUM: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P vectors of the view that each chose, times that view's matrix."""
    r = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    j = tl.arange(0, DP)[:, None]
    inside = r < vectors
    mask = inside[None, :] & (j < D)
    a = (r // nb)[None, :]
    b = (r % nb)[None, :]
    if scores is not None:
        chosen = best(scores + r // per, columns, inside, COUNT, MINIMUM)
        tl.store(index + r // per, chosen, mask=inside & (r % per == 0))  # a column's first vector says so
    else:
        chosen = tl.load(index + r // per, mask=inside, other=0)
        chosen = tl.minimum(tl.maximum(chosen, 0), COUNT - 1)
    v = tl.load(y + chosen[None, :] * yg + a * ya + b * yb + j * ye, mask=mask, other=0).to(ACC)
    view = times(v, mats, chosen, DP, P)
    tl.store(out + a * oa + b * ob + j * oe, view.to(out.dtype.element_ty), mask=mask)


def _strides(names: str, operands: list[tuple[Operand, bool]]) -> tuple[int, dict[str, int]] | None:
    """The inner of two loops over the vectors, and each tensor's strides; None if they take more loops."""
    first, grouped = operands[0]
    lead = first.shape[grouped:-1]
    merged = merge([(size, tuple(o.stride[k + group] for o, group in operands)) for k, size in enumerate(lead)])
    if len(merged) > 2:
        return None
    none = (1, (0,) * len(operands))
    (_, outer), (inner, within) = [none, none, *merged][-2:]
    own = [o.stride[0] if group else 0 for o, group in operands]
    last = [o.stride[-1] for o, _ in operands]
    return inner, strides(names, "gabe", [*zip(own, outer, within, last, strict=True)])


def constants_of(size: int, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel of ``count`` matrices must know of them when it is compiled."""
    rows = next_power_of_two(size)
    vectors = max(1, min(VECTORS, PRODUCTS // rows**2))
    return {"COUNT": count, "D": size, "DP": rows, "P": vectors, "ACC": accumulator(dtype)}


def _plan(
    kernel: Any, operands: tuple[Known, ...], names: str, moving: list[tuple[Operand, bool]], keep: int,
    scalars: Mapping[str, int | float], constants: Mapping[str, object],
) -> tuple[Plan, int] | None:  # fmt: skip
    """The launch, and how many programs the vectors of one weight take; None if the tensors must be copied first.

    ``keep``: of how many of the leading dims weights are given.
    """
    found = _strides(names, moving)
    if found is None:
        return None
    nb, steps = found
    ys = next(o for o, group in moving if group)
    shape = ys.shape[1:]
    own = {**constants_of(shape[-1], ys.shape[0], ys.dtype), **constants}
    columns, vectors = prod(shape[:keep]), prod(shape[:-1])
    per = max(1, vectors // max(1, columns))
    values = {"vectors": vectors, "per": per, "columns": columns, "nb": nb, **steps, **scalars}
    if kernel is not matrix_dot:
        return make_plan(kernel, ceil_div(vectors, own["P"]), operands, values, own, WARPS), 1
    each = per == 1
    length = columns if each else per
    own |= {"EACH": each, "STEPS": 1 if each or length <= own["P"] else LOOPS}
    units = ceil_div(length, own["P"] * own["STEPS"])
    programs, parts = (units, 1) if each else (units * columns, units)
    return make_plan(kernel, programs, operands, {**values, "units": units}, own, WARPS), parts


@lru_cache(maxsize=1024)
def plan_orbit(scale: float, x: Operand, out: Operand, mats: Operand, weights: Known, index: Known) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    moving, keep = [(x, False), (out, True)], len(weights.shape) - 1 if weights else len(index.shape) if index else 0
    found = _plan(matrix_orbit, (x, out, mats, weights, index), "xo", moving, keep, {"scale": scale}, {})
    return found and found[0]


@lru_cache(maxsize=1024)
def plan_reduce(
    op: str, scale: float, y: Operand, out: Operand, plus: Known, spread: Known, mats: Operand, weights: Known
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first.

    plus and spread never come together, so the kernel knows one set of strides for both.
    """
    moving, keep = [(y, True), (out, False), (plus or spread or out, False)], len(weights.shape) - 1 if weights else 0
    operands = (y, out, plus, spread, mats, weights)
    found = _plan(matrix_reduce, operands, "yop", moving, keep, {"scale": scale}, {"OP": op})
    return found and found[0]


@lru_cache(maxsize=1024)
def plan_dot(
    x: Operand, y: Operand, out: Known, mats: Operand, weights: Known, dots: Operand
) -> tuple[Plan, int] | None:
    """The launch and the number of partial sums of a dot, or None if the tensors must be copied first."""
    moving, operands = [(x, False), (y, True), (out or y, True)], (x, y, out, mats, weights, dots)
    return _plan(matrix_dot, operands, "xyo", moving, len(dots.shape) - 1, {}, {})


@lru_cache(maxsize=1024)
def plan_select(minimum: bool, y: Operand, out: Operand, mats: Operand, scores: Known, index: Operand) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    moving, operands = [(y, True), (out, False)], (y, out, mats, scores, index)
    found = _plan(matrix_select, operands, "yo", moving, len(index.shape), {}, {"MINIMUM": minimum})
    return found and found[0]


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``."""
    if weights is not None and index is not None:
        weights, index = same_lead(weights, index)
    mats = padded(views, table)
    found = plan_orbit(scale, operand(x), operand(out), operand(mats), known(weights), known(index))
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
    found = plan_reduce(op, scale, operand(y), operand(out), *beside, operand(mats), known(weights))
    if found is not None:
        return run(found, y, out, plus, spread, mats, weights)
    y, plus = contiguous_views(y), plus if plus is None else plus.contiguous()
    on_copies(lambda to, second: reduce(y, to, views, table, op, scale, weights, plus, second), out, spread)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``."""
    mats = padded(views, table)
    found = plan_dot(operand(x), operand(y), known(out), operand(mats), known(weights), operand(dots))
    if found is not None:
        return run_dots(*found, dots, (), x, y, out, mats, weights)
    on_copies(lambda to: orbit_dot(x.contiguous(), contiguous_views(y), to, dots, views, table, weights), out)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    mats = padded(views, table)
    found = plan_select(minimum, operand(y), operand(out), operand(mats), known(scores), operand(index))
    if found is not None:
        return run(found, y, out, mats, scores, index)
    on_copies(lambda to: select(contiguous_views(y), to, index, views, table, scores, minimum), out)
