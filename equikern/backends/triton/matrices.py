"""Views that multiply the vectors of the last dim by small matrices: all four operators, any number of entries.

A program has P vectors of D entries and makes every view of them from one read. Profilers see the kernels under names
such as ``equikern_matrix_orbit_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Mapping
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from .compat import jit_kernel
from .device import alone, combine, finish, outcome, prepare
from .launch import Plan, accumulator, ceil_div, make_plan, next_power_of_two, run
from .layout import Operand, contiguous_views, dense_like, known, operand
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
    lead = first.shape[1 if grouped else 0 : -1]
    merged: list[tuple[int, list[int]]] = []
    for k, size in enumerate(lead):
        steps = [o.stride[k + group] for o, group in operands]
        if size == 1:
            continue
        if merged and all(s == t * size for s, t in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = merged[-1][0] * size, steps
        else:
            merged.append((size, steps))
    if len(merged) > 2:
        return None
    none = (1, [0] * len(operands))
    (_, outer), (inner, within) = [none, none, *merged][-2:]
    values: dict[str, int] = {}
    for position, (name, (o, group)) in enumerate(zip(names, operands, strict=True)):
        values |= {f"{name}a": outer[position], f"{name}b": within[position], f"{name}e": o.stride[-1]}
        if group:
            values[f"{name}g"] = o.stride[0]
    return inner, values


def _plan(
    kernel: object, programs: int, operands: tuple[Operand | None, ...], scalars: Mapping[str, int | float],
    constants: Mapping[str, object],
) -> Plan:  # fmt: skip
    return make_plan(kernel, programs, operands, scalars, constants, WARPS, None)  # type: ignore[arg-type]


def constants_of(size: int, count: int, dtype: torch.dtype) -> dict[str, object]:
    """What a kernel of ``count`` matrices must know of them when it is compiled."""
    rows = next_power_of_two(size)
    acc = tl.float64 if accumulator(dtype) == torch.float64 else tl.float32
    return {"COUNT": count, "D": size, "DP": rows, "P": max(1, min(VECTORS, PRODUCTS // rows**2)), "ACC": acc}


def _counts(shape: tuple[int, ...], keep: int) -> dict[str, int]:
    """Vectors, those of one weight, and the weights of one view, from the shape of a sample."""
    columns = torch.Size(shape[:keep]).numel()
    vectors = torch.Size(shape[:-1]).numel()
    return {"vectors": vectors, "per": max(1, vectors // max(1, columns)), "columns": columns}


@lru_cache(maxsize=1024)
def plan_orbit(
    scale: float, x: Operand, out: Operand, mats: Operand, weights: Operand | None, index: Operand | None
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    strides = _strides("xo", [(x, False), (out, True)])
    if strides is None:
        return None
    keep = len(weights.shape) - 1 if weights else len(index.shape) if index else 0
    constants = constants_of(x.shape[-1], out.shape[0], x.dtype)
    counts = _counts(x.shape, keep)
    scalars = {"scale": scale, "nb": strides[0], **counts, **strides[1]}
    programs = ceil_div(counts["vectors"], int(str(constants["P"])))
    return _plan(matrix_orbit, programs, (x, out, mats, weights, index), scalars, constants)


@lru_cache(maxsize=1024)
def plan_reduce(
    op: str, scale: float, y: Operand, out: Operand, plus: Operand | None, spread: Operand | None, mats: Operand,
    weights: Operand | None,
) -> Plan | None:  # fmt: skip
    """The launch for operands such as these, or None if the tensors must be copied first.

    plus and spread never come together, so the kernel knows one set of strides for both.
    """
    strides = _strides("yop", [(y, True), (out, False), (plus or spread or out, False)])
    if strides is None:
        return None
    constants = {**constants_of(y.shape[-1], y.shape[0], y.dtype), "OP": op}
    counts = _counts(out.shape, len(weights.shape) - 1 if weights else 0)
    scalars = {"scale": scale, "nb": strides[0], **counts, **strides[1]}
    programs = ceil_div(counts["vectors"], int(str(constants["P"])))
    return _plan(matrix_reduce, programs, (y, out, plus, spread, mats, weights), scalars, constants)


@lru_cache(maxsize=1024)
def plan_dot(
    x: Operand, y: Operand, out: Operand | None, mats: Operand, weights: Operand | None, dots: Operand
) -> tuple[Plan, int] | None:
    """The launch and the number of partial sums of a dot, or None if the tensors must be copied first."""
    strides = _strides("xyo", [(x, False), (y, True), (out or y, True)])
    if strides is None:
        return None
    constants = constants_of(x.shape[-1], y.shape[0], x.dtype)
    counts = _counts(x.shape, len(dots.shape) - 1)
    block, each = int(str(constants["P"])), counts["per"] == 1
    length = counts["columns"] if each else counts["per"]
    constants |= {"EACH": each, "STEPS": 1 if each or length <= block else LOOPS}
    units = ceil_div(length, block * int(str(constants["STEPS"])))
    scalars = {"units": units, "nb": strides[0], **counts, **strides[1]}
    programs = units if each else units * counts["columns"]
    return _plan(matrix_dot, programs, (x, y, out, mats, weights, dots), scalars, constants), 1 if each else units


@lru_cache(maxsize=1024)
def plan_select(
    minimum: bool, y: Operand, out: Operand, mats: Operand, scores: Operand | None, index: Operand
) -> Plan | None:
    """The launch for operands such as these, or None if the tensors must be copied first."""
    strides = _strides("yo", [(y, True), (out, False)])
    if strides is None:
        return None
    constants = {**constants_of(y.shape[-1], y.shape[0], y.dtype), "MINIMUM": minimum}
    counts = _counts(out.shape, len(index.shape))
    scalars = {"nb": strides[0], **counts, **strides[1]}
    programs = ceil_div(counts["vectors"], int(str(constants["P"])))
    return _plan(matrix_select, programs, (y, out, mats, scores, index), scalars, constants)


def orbit(
    x: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    scale: float,
    weights: Tensor | None,
    index: Tensor | None,
) -> None:
    """See ``Backend.orbit``."""
    if out.numel() == 0:
        return
    if weights is not None and index is not None:
        weights, index = same_lead(weights, index)
    mats = padded(views, table)
    found = plan_orbit(scale, operand(x), operand(out), operand(mats), known(weights), known(index))
    if found is not None:
        run(found, x, out, mats, weights, index)
        return
    dense = dense_like(out)  # more leading dims than loops: only then is anything copied
    orbit(x.contiguous(), dense, views, table, scale, weights, index)
    out.copy_(dense)


def reduce(
    y: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    op: str,
    scale: float,
    weights: Tensor | None,
    plus: Tensor | None,
    spread: Tensor | None,
) -> None:
    """See ``Backend.reduce``."""
    if out.numel() == 0:
        return
    mats = padded(views, table)
    beside = known(plus), known(spread)
    found = plan_reduce(op, scale, operand(y), operand(out), *beside, operand(mats), known(weights))
    if found is not None:
        run(found, y, out, plus, spread, mats, weights)
        return
    dense, second = dense_like(out), dense_like(spread)
    dense_plus = None if plus is None else plus.contiguous()
    reduce(contiguous_views(y), dense, views, table, op, scale, weights, dense_plus, second)
    out.copy_(dense)
    if spread is not None and second is not None:
        spread.copy_(second)


def orbit_dot(
    x: Tensor,
    y: Tensor,
    out: Tensor | None,
    dots: Tensor,
    views: Views,
    table: Tensor,
    weights: Tensor | None,
) -> None:
    """See ``Backend.orbit_dot``. Sums are cut into fixed parts, added in a fixed order: results repeat bit by bit."""
    if dots.numel() == 0:
        return
    if y.numel() == 0:
        dots.zero_()
        return
    mats = padded(views, table)
    found = plan_dot(operand(x), operand(y), known(out), operand(mats), known(weights), operand(dots))
    if found is None:
        dense = dense_like(out)
        orbit_dot(x.contiguous(), contiguous_views(y), dense, dots, views, table, weights)
        if out is not None and dense is not None:
            out.copy_(dense)
        return
    launch, units = found
    if units == 1:
        run(launch, x, y, out, mats, weights, dots)
        return
    partial = dots.new_empty((*dots.shape, units))
    run(launch, x, y, out, mats, weights, partial)
    torch.sum(partial, -1, out=dots)


def select(
    y: Tensor,
    out: Tensor,
    index: Tensor,
    views: Views,
    table: Tensor,
    scores: Tensor | None,
    minimum: bool,
) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    mats = padded(views, table)
    found = plan_select(minimum, operand(y), operand(out), operand(mats), known(scores), operand(index))
    if found is not None:
        run(found, y, out, mats, scores, index)
        return
    dense = dense_like(out)
    select(contiguous_views(y), dense, index, views, table, scores, minimum)
    out.copy_(dense)
