"""The operators on permutations of one dim, by a table of sources.

A vocabulary's permutation moves a few dozen of 50,000 entries. Then all but ``orbit_dot`` are two launches: the kernel
for views that move nothing, and one over the moved entries alone, which writes those again. A single kernel would have
to go row by row and look every entry up. The first of the two sees the rows as one run, so it moves 16 bytes at a time
also where a row is 50,257 entries long, and it touches the same bytes as a plain mean; the second reads and writes a
32-byte sector for each moved entry, 3 % more for 100 of 50,000. Where most entries move, the same kernels gather all of
them. ``orbit_dot`` and ``variance`` always do: sums cannot be written again.

Profilers see the kernels under names such as ``equikern_reduce_permuted_sum_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...views import Views, still
from ..base import Maybe
from . import orbits, reductions, selection
from . import shares as still_shares
from .arithmetic import alone, combine, deviation, keep_variance, outcome, prepare, shares
from .compat import jit_kernel
from .device import entry, signed, source, tile_position
from .launch import accumulator, next_power_of_two, on_copies, run, run_dots
from .layout import Known, Operand, as_words, contiguous_views, known, operand
from .tables import lists, whole
from .tiles import TilePlan, plan_permuted

__all__ = ["orbit", "orbit_dot", "reduce", "reduce_backward", "select", "variance", "variance_backward"]


@triton.jit
def signed_bits(v, minus, SIGN: tl.constexpr):
    """Minus a value of which only the bits are known: those of a float ("float"), of an integer, or never asked for."""
    if SIGN == "float":
        top = tl.full([], 1, v.dtype) << (v.dtype.primitive_bitwidth - 1)
        return tl.where(minus, v ^ top, v)
    elif SIGN == "integer":
        return tl.where(minus, (0 - v).to(v.dtype), v)
    else:
        return v


@jit_kernel
def orbit_permuted(
    x, out, weights, index, positions, sources, scale: tl.float64,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xx: tl.int64, xn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64, wx: tl.int64, kg: tl.int64, ka: tl.int64, kb: tl.int64, kx: tl.int64,
    ORDER: tl.constexpr, EXACT: tl.constexpr, SIGN: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr,
    PN: tl.constexpr, PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view's entries at some positions, gathered from x."""
    a, b, k, place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    mask = listed & within
    x += a * (xa * VEC) + b * (xb * VEC)
    put = out + a * (oa * VEC) + b * (ob * VEC) + entry(place, r, on, ox, INNER, UNIT, VEC)
    if index is not None:
        chosen = tl.load(index + a * ka + b * kb + r * kx, mask=within, other=0)
    for g in tl.static_range(ORDER):
        src, minus = source(sources, g * row, k, listed, SIGN != "none")
        v = tl.load(x + entry(src, r, xn, xx, INNER, UNIT, VEC), mask=mask, other=0)
        if EXACT:
            v = signed_bits(v, minus, SIGN)
        else:
            factor = tl.full([], scale, ACC)
            if weights is not None:
                factor = factor * tl.load(weights + g * wg + a * wa + b * wb + r * wx, mask=within, other=0)
            v = v.to(ACC)
            if SIGN != "none":
                v = tl.where(minus, -1.0 * v, v)
            v = (v * factor).to(out.dtype.element_ty)
        if index is not None:
            v = tl.where(chosen == g, v, tl.zeros_like(v))
        tl.store(put + g * (og * VEC), v, mask=mask)


@jit_kernel
def reduce_permuted(
    y, out, plus, spread, weights, positions, sources, scale: tl.float64,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    pg: tl.int64, pa: tl.int64, pb: tl.int64, px: tl.int64, pn: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64, wx: tl.int64,
    ORDER: tl.constexpr, OP: tl.constexpr, SIGN: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr,
    PN: tl.constexpr, PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reduce the views at some positions, in the order of ``reduce_points``: to the same bits."""
    a, b, k, place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    mask = listed & within
    y += a * (ya * VEC) + b * (yb * VEC)
    if plus is not None:
        plus += a * (pa * VEC) + b * (pb * VEC)
    for g in tl.static_range(ORDER):
        src, minus = source(sources, g * row, k, listed, SIGN != "none")
        v = tl.load(y + g * (yg * VEC) + entry(src, r, yn, yx, INNER, UNIT, VEC), mask=mask, other=0).to(ACC)
        if plus is not None:
            v += tl.load(plus + entry(src, r, pn, px, INNER, UNIT, VEC), mask=mask, other=0).to(ACC)
        if SIGN != "none":
            v = signed(v, minus)
        v = prepare(v, OP)
        if weights is not None:
            v = v * tl.load(weights + g * wg + a * wa + b * wb + r * wx, mask=within, other=0)
        if g == 0:
            s, m = alone(v, OP)
        else:
            t, n = alone(v, OP)
            s, m = combine(s, m, g, t, n, 1, OP)
    put = a * (oa * VEC) + b * (ob * VEC) + entry(place, r, on, ox, INNER, UNIT, VEC)
    tl.store(out + put, outcome(s, m, scale, ORDER, OP).to(out.dtype.element_ty), mask=mask)
    if spread is not None:
        put = a * (pa * VEC) + b * (pb * VEC) + entry(place, r, pn, px, INNER, UNIT, VEC)
        tl.store(spread + put, deviation(s, m, ORDER).to(spread.dtype.element_ty), mask=mask)


@jit_kernel
def dot_permuted(
    x, y, out, weights, partial, positions, sources, units: tl.int32,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    na: tl.int64,
    xg: tl.int64, xa: tl.int64, xb: tl.int64, xx: tl.int64, xn: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    wg: tl.int64, wa: tl.int64, wb: tl.int64, wx: tl.int64,
    ORDER: tl.constexpr, GP: tl.constexpr, SIGN: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr,
    PN: tl.constexpr, PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view of x against y; the tile's |G| sums go to their own places in ``partial``."""
    a, b, k, place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    mask = listed & within
    x += a * (xa * VEC) + b * (xb * VEC)
    at = y + a * (ya * VEC) + b * (yb * VEC) + entry(place, r, yn, yx, INNER, UNIT, VEC)
    views = tl.arange(0, GP)[None, :]
    totals = tl.zeros([PX if INNER else PN, GP], ACC)
    for g in tl.static_range(ORDER):
        src, minus = source(sources, g * row, k, listed, SIGN != "none")
        v = tl.load(x + entry(src, r, xn, xx, INNER, UNIT, VEC), mask=mask, other=0).to(ACC)
        if SIGN != "none":
            v = tl.where(minus, -1.0 * v, v)
        product = v * tl.load(at + g * (yg * VEC), mask=mask, other=0).to(ACC)
        totals = tl.where(views == g, tl.sum(product, 1)[:, None], totals)
        if out is not None:
            if weights is not None:
                v = v * tl.load(weights + g * wg + a * wa)
            put = a * (oa * VEC) + b * (ob * VEC) + g * (og * VEC) + entry(place, r, on, ox, INNER, UNIT, VEC)
            tl.store(out + put, v.to(out.dtype.element_ty), mask=mask)
    view = tl.arange(0, GP)
    tl.store(partial + (view * na + a) * units + tl.program_id(0) % units, tl.sum(totals, 0), mask=view < ORDER)


@jit_kernel
def select_permuted(
    y, out, index, positions, sources,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    kg: tl.int64, ka: tl.int64, kb: tl.int64, kx: tl.int64,
    ORDER: tl.constexpr, SIGN: tl.constexpr, MINIMUM: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr,
    PN: tl.constexpr, PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The chosen views' entries at some positions; no other view is read."""
    a, b, k, place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    mask = listed & within
    chosen = tl.load(index + a * ka + b * kb + r * kx, mask=within, other=0)
    chosen = tl.minimum(tl.maximum(chosen, 0), ORDER - 1)
    src, minus = source(sources, chosen * row, k, mask, SIGN != "none")
    y += a * (ya * VEC) + b * (yb * VEC)
    v = tl.load(y + chosen * (yg * VEC) + entry(src, r, yn, yx, INNER, UNIT, VEC), mask=mask, other=0)
    put = a * (oa * VEC) + b * (ob * VEC) + entry(place, r, on, ox, INNER, UNIT, VEC)
    tl.store(out + put, signed_bits(v, minus, SIGN), mask=mask)


@triton.jit
def found_in(
    y, sources, row, k, r, listed, mask, yg, yn, yx, ORDER: tl.constexpr, SIGNED: tl.constexpr, INNER: tl.constexpr,
    UNIT: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the views have at some positions of the result."""
    values = ()
    for g in tl.static_range(ORDER):
        src, minus = source(sources, g * row, k, listed, SIGNED)
        v = tl.load(y + g * yg + entry(src, r, yn, yx, INNER, UNIT, VEC), mask=mask, other=0).to(ACC)
        if SIGNED:
            v = signed(v, minus)
        values = values + (v,)  # noqa: RUF005  (kernels join tuples, they do not unpack them)
    return values


@jit_kernel
def variance_permuted(
    y, partial, positions, sources, scale: tl.float64,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    ORDER: tl.constexpr, SIGN: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr, PN: tl.constexpr,
    PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The variances at some positions of the result, added up to one number."""
    a, b, k, _place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    y += a * (ya * VEC) + b * (yb * VEC)
    values = found_in(
        y, sources, row, k, r, listed, listed & within, yg * VEC, yn, yx, ORDER, SIGN != "none", INNER, UNIT, VEC, ACC,
    )  # fmt: skip
    keep_variance(partial + tl.program_id(0), values, scale)


@jit_kernel
def reduce_backward_permuted(
    y, out, grad, spread, factors, positions, sources,
    nblocks: tl.int32, xblocks: tl.int32, nb: tl.int32, M: tl.int64, N: tl.int64, X: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    ga: tl.int64, gb: tl.int64, gx: tl.int64, gn: tl.int64,
    sa: tl.int64, sb: tl.int64, sx: tl.int64, sn: tl.int64, fa: tl.int64, fb: tl.int64, fx: tl.int64,
    ORDER: tl.constexpr, OP: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr, PN: tl.constexpr,
    PX: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the values at some positions of the result get of its gradient, put where they were."""
    a, b, k, place, r, listed, within, row = tile_position(
        positions, nblocks, xblocks, nb, M, X, INNER, PN, PX, VEC,
    )  # fmt: skip
    mask = listed & within
    y += a * (ya * VEC) + b * (yb * VEC)
    out += a * (oa * VEC) + b * (ob * VEC)
    values = found_in(y, sources, row, k, r, listed, mask, yg * VEC, yn, yx, ORDER, False, INNER, UNIT, VEC, ACC)
    if factors is not None:
        first = tl.load(factors + a * fa + b * fb + r * fx, mask=within, other=0)
    else:
        at = grad + a * (ga * VEC) + b * (gb * VEC) + entry(place, r, gn, gx, INNER, UNIT, VEC)
        first = tl.load(at, mask=mask, other=0).to(ACC)
    second = first
    if spread is not None:
        at = spread + a * (sa * VEC) + b * (sb * VEC) + entry(place, r, sn, sx, INNER, UNIT, VEC)
        second = tl.load(at, mask=mask, other=0).to(ACC)
    found = shares(values, first, second, OP)
    for g in tl.static_range(ORDER):
        src, _minus = source(sources, g * row, k, listed, False)
        put = out + g * (og * VEC) + entry(src, r, on, ox, INNER, UNIT, VEC)
        tl.store(put, found[g].to(out.dtype.element_ty), mask=mask)


_PLAIN_SIGN = {False: "none", True: "float"}


@lru_cache(maxsize=1024)
def orbit_plan(
    views: Views, table: Operand, scale: float, sign: str, x: Operand, out: Operand, weights: Known, index: Known
) -> TilePlan | None:
    """The gathering launch of ``orbit``, or None if the tensors must be copied first."""
    constants = {"EXACT": scale == 1.0 and weights is None, "SIGN": sign, "ACC": accumulator(x.dtype)}
    moving, fixed = [(x, False), (out, True)], [(weights, True), (index, False)]
    operands = (x, out, weights, index)
    return plan_permuted(orbit_permuted, views, table, operands, "xo", moving, "wk", fixed, {"scale": scale}, constants)


@lru_cache(maxsize=1024)
def reduce_plan(
    views: Views,
    table: Operand,
    op: str,
    scale: float,
    y: Operand,
    out: Operand,
    plus: Known,
    spread: Known,
    weights: Known,
) -> TilePlan | None:
    """The gathering launch of ``reduce``, or None if the tensors must be copied first."""
    constants = {"OP": op, "SIGN": _PLAIN_SIGN[views.signed], "ACC": reductions.wide(op, y.dtype)}
    # plus and spread never come together: the kernel knows one set of strides for both.
    moving, fixed = [(y, True), (out, False), (plus or spread, False)], [(weights, True)]
    operands, scalars = (y, out, plus, spread, weights), {"scale": scale}
    return plan_permuted(reduce_permuted, views, table, operands, "yop", moving, "w", fixed, scalars, constants)


@lru_cache(maxsize=1024)
def dot_plan(
    views: Views, table: Operand, x: Operand, y: Operand, out: Known, weights: Known, dots: Operand
) -> TilePlan | None:
    """The launch of ``orbit_dot``, or None if the tensors must be copied first."""
    constants = {
        "SIGN": _PLAIN_SIGN[views.signed],
        "ACC": accumulator(y.dtype),
        "GP": next_power_of_two(y.shape[0]),
    }
    moving, fixed = [(x, False), (y, True), (out, True)], [(weights, True)]
    operands = (x, y, out, weights, dots)
    return plan_permuted(dot_permuted, views, table, operands, "xyo", moving, "w", fixed, {}, constants, dots)


@lru_cache(maxsize=1024)
def select_plan(views: Views, table: Operand, sign: str, y: Operand, out: Operand, index: Operand) -> TilePlan | None:
    """The gathering launch of ``select``, or None if the tensors must be copied first."""
    constants = {"SIGN": sign, "MINIMUM": True, "ACC": tl.float32}
    moving, fixed = [(y, True), (out, False)], [(index, False)]
    return plan_permuted(select_permuted, views, table, (y, out, index), "yo", moving, "k", fixed, {}, constants)


@lru_cache(maxsize=1024)
def reduce_backward_plan(
    views: Views, table: Operand, op: str, grad: Known, spread: Known, y: Operand, out: Operand, factors: Known = None
) -> TilePlan | None:
    """The gathering launch of ``reduce_backward``, or None if the tensors must be copied first."""
    constants = {"OP": op, "ACC": accumulator(y.dtype)}
    moving, fixed = [(y, True), (out, True), (grad, False), (spread or grad, False)], [(factors, False)]
    operands = (y, out, grad, spread, factors)
    return plan_permuted(reduce_backward_permuted, views, table, operands, "yogs", moving, "f", fixed, {}, constants)


@lru_cache(maxsize=1024)
def variance_plan(views: Views, table: Operand, y: Operand, out: Operand) -> TilePlan | None:
    """The launch of ``variance``, or None if the tensors must be copied first."""
    constants = {"SIGN": _PLAIN_SIGN[views.signed], "ACC": accumulator(y.dtype)}
    scalars, sums = {"scale": still_shares.share(y, out)}, out._replace(shape=(1, *out.shape))
    given = [(y, True)]
    return plan_permuted(variance_permuted, views, table, (y, out), "y", given, "", [], scalars, constants, sums)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _dense(views: Views, table: Tensor) -> bool:
    """Whether every entry is listed."""
    return table.shape[1] == views.size


def _words(source: Tensor, target: Tensor, views: Views) -> tuple[str, Tensor, Tensor]:
    """The sign's kind, and the same bits in types kernels can move; for complex numbers with one more dim."""
    dtype = source.dtype
    if dtype.is_complex:
        source, target = (torch.view_as_real(t).movedim(-1, views.dim - 1) for t in (source, target))
    if not views.signed:
        return ("none", *as_words(source, target))
    kind = "float" if dtype.is_complex or dtype.is_floating_point else "integer"
    bits = _BITS[source.element_size()]
    return kind, source.view(bits), target.view(bits)


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``."""
    if not _dense(views, table):
        orbits.orbit(x, out, still(views.order), None, scale, weights, index)
        if table.shape[1] == 0:
            return
    sign, words, into = _PLAIN_SIGN[views.signed], x, out
    if scale == 1.0 and weights is None:
        sign, words, into = _words(x, out, views)
    described = operand(words), operand(into), known(weights), known(index)
    plan = orbit_plan(views, operand(table), scale, sign, *described)
    if plan is not None:
        return run(plan.launch, words, into, weights, index, *lists(views, table))
    if weights is not None and index is not None:
        weights, index = orbits.same_lead(weights, index)
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
    if not _dense(views, table):
        reductions.reduce(y, out, still(views.order), None, op, scale, weights, plus, spread)
        if table.shape[1] == 0:
            return
    if op == "vote":
        y, out = as_words(y, out)
    described = operand(y), operand(out), known(plus), known(spread), known(weights)
    plan = reduce_plan(views, operand(table), op, scale, *described)
    if plan is not None:
        return run(plan.launch, y, out, plus, spread, weights, *lists(views, table))
    y, plus = contiguous_views(y), plus if plus is None else plus.contiguous()
    on_copies(lambda to, second: reduce(y, to, views, table, op, scale, weights, plus, second), out, spread)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``."""
    plan = dot_plan(views, operand(table), operand(x), operand(y), known(out), known(weights), operand(dots))
    if plan is not None:
        return run_dots(*plan, dots, (None, whole(views, table)), x, y, out, weights)
    on_copies(lambda to: orbit_dot(x.contiguous(), contiguous_views(y), to, dots, views, table, weights), out)


def reduce_backward(grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Tensor, op: str) -> None:
    """See ``Backend.reduce_backward``: listed entries come from listed ones, and are put there."""
    if not _dense(views, table):
        still_shares.reduce_backward(grad, spread, y, out, still(views.order), None, op)
        if table.shape[1] == 0:
            return
    plan = reduce_backward_plan(views, operand(table), op, operand(grad), known(spread), operand(y), operand(out))
    if plan is not None:
        return run(plan.launch, y, out, grad, spread, None, *lists(views, table))
    grad, spread, y = grad.contiguous(), None if spread is None else spread.contiguous(), contiguous_views(y)
    on_copies(lambda to: reduce_backward(grad, spread, y, to, views, table, op), out)


def variance(y: Tensor, out: Tensor, views: Views, table: Tensor) -> None:
    """See ``Backend.variance``: every entry is gathered."""
    plan = variance_plan(views, operand(table), operand(y), operand(out))
    if plan is None:
        return variance(contiguous_views(y), out, views, table)
    run_dots(*plan, out, (None, whole(views, table)), y)


def variance_backward(factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Tensor) -> None:
    """See ``Backend.variance_backward``, as ``reduce_backward``."""
    if not _dense(views, table):
        still_shares.variance_backward(factors, y, out, still(views.order), None)
        if table.shape[1] == 0:
            return
    described = operand(y), operand(out), operand(factors)
    plan = reduce_backward_plan(views, operand(table), "variance", None, None, *described)
    if plan is not None:
        return run(plan.launch, y, out, None, None, factors, *lists(views, table))
    on_copies(lambda to: variance_backward(factors, contiguous_views(y), to, views, table), out)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    if not _dense(views, table):
        selection.select(y, out, index, still(views.order), None, scores, minimum)
        if table.shape[1] == 0:
            return
    elif scores is not None:
        selection.index_alone(scores, index, minimum)
    sign, words, into = _words(y, out, views)
    plan = select_plan(views, operand(table), sign, operand(words), operand(into), operand(index))
    if plan is not None:
        return run(plan.launch, words, into, index, *lists(views, table))
    on_copies(lambda to: select(contiguous_views(y), to, index, views, table, None, minimum), out)
