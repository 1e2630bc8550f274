"""``softmax_mean``: the mean of the views' softmaxes or log-softmaxes, and its gradient.

Profilers see the kernels under names such as ``equikern_softmax_mean_rows_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment, var-annotated"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .compat import jit_kernel
from .exponentials import relative, scale_of
from .launch import Plan, on_copies, run
from .layout import Known, Operand, contiguous_views, known, operand
from .rows import (
    at_places,
    block_count,
    counted,
    described,
    edges,
    listed_sources,
    load_block,
    moved_entries,
    offsets,
    plan_rows,
    program_rows,
    row_start,
    sources_block,
    statistics,
    store_block,
    unmoved,
    view_at,
    view_block,
)
from .tables import SKIP, lists, skipped

__all__ = ["backward_plan", "mean_plan", "softmax_mean", "softmax_mean_backward"]


@triton.jit
def with_view(total, v, unit, shift, factor, LOG: tl.constexpr):
    """The sum of the views with one more: its probability, or its logit less the largest one."""
    if LOG:
        return total + (v - shift)
    else:
        return tl.fma(relative(v, unit, shift), factor, total)


@triton.jit
def mean_at(
    y, yg, base, off, yn, units, shifts, factors, level, place, sources, stride, listed, mask, ORDER: tl.constexpr,
    LOG: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The result at some positions."""
    total = tl.zeros_like(mask.to(ACC))
    for g in tl.static_range(ORDER):
        at = sources + g * stride if sources is not None else None
        v = view_at(y + g * (yg * VEC), base, off, yn, listed_sources(at, place, listed), mask, UNIT, ACC)
        total = with_view(total, v, units[g][:, None], shifts[g][:, None], factors[g][:, None], LOG)
    return finished(total, level[:, None], ORDER, LOG)


@triton.jit
def finished(total, level, ORDER: tl.constexpr, LOG: tl.constexpr):
    """The mean from the sum: factors of probabilities have the |G| in them, logarithms their log Σ still to lose."""
    if LOG:
        return total * tl.full([], 1.0 / ORDER, total.dtype) - level
    else:
        return total


@jit_kernel
def softmax_mean_rows(
    y, out, lse, positions, sources, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64, lg: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, LOG: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr, KM: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Read every row of every view once for its sum, and once more, backwards, for the result.

    The entries that some view moves are written again, behind a barrier: the same thread need not write both.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
    tops, totals = statistics(
        y, yg, base, off, sources, V, yn, within, ORDER, DENSE, R, J, E, VEC, SHIFT, UNIT, WHOLE, ACC,
    )  # fmt: skip
    units = ()
    shifts = ()
    factors = ()
    logs = ()
    level = tl.zeros([R], ACC)
    for g in tl.static_range(ORDER):
        unit, shift, factor = scale_of(tops[g])
        log = tl.log(totals[g])
        units = units + (unit,)
        shifts = shifts + (tops[g] if LOG else shift,)
        factors = factors + (factor / (totals[g] * ORDER),)
        logs = logs + (log,)
        level += log * tl.full([], 1.0 / ORDER, ACC)
    blocks = block_count(V, J, E, VEC, SHIFT, WHOLE)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        mean = tl.zeros([R, J, E], ACC)
        for g in tl.static_range(ORDER):
            at = sources + g * V if DENSE else None
            v = view_block(
                y + g * (yg * VEC), base, off, at, k, V, yn, within, float("-inf") if WHOLE else 0.0, DENSE, J, E,
                VEC, SHIFT, UNIT, ACC,
            )  # fmt: skip
            mean = with_view(
                mean, v, units[g][:, None, None], shifts[g][:, None, None], factors[g][:, None, None], LOG,
            )  # fmt: skip
        mean = finished(mean, level[:, None, None], ORDER, LOG)
        store_block(out, put, off, k, V, on, within, mean, J, E, VEC, SHIFT, UNIT)
    for g in tl.static_range(ORDER):
        tl.store(lse + g * lg + a * la + b * lb + x * lx, tops[g] + logs[g], mask=within)
    if SHIFT:
        edge, at_edge = edges(off, V, within, VEC)
        table = sources + edge if DENSE else None
        result = mean_at(
            y, yg, base, off, yn, units, shifts, factors, level, edge, table, V, edge < V, at_edge, ORDER, LOG, VEC,
            UNIT, ACC,
        )  # fmt: skip
        tl.store(out + at_places(put, off, edge, on, UNIT), result.to(out.dtype.element_ty), mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            again = mean_at(
                y, yg, base, off, yn, units, shifts, factors, level, moved, sources + some, M, listed, wanted, ORDER,
                LOG, VEC, UNIT, ACC,
            )  # fmt: skip
            tl.store(out + at_places(put, off, moved, on, UNIT), again.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def slope(e, spread, factor, total, LOG: tl.constexpr, ORDER: tl.constexpr):
    """∂L/∂logit of a probability e · factor, spread being ∂L/∂ its (log-)probability.

    total is its row's Σ p · ∂L; of the logarithm factor · Σ ∂L.
    """
    if LOG:
        return tl.fma(-e, total, spread) * tl.full([], 1.0 / ORDER, e.dtype)
    else:
        return (e * (factor * tl.full([], 1.0 / ORDER, e.dtype))) * (spread - total)


@triton.jit
def products_at(
    y, grad, base, come, off, yn, dn, unit, shift, place, sources, listed, mask, UNIT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Σ p · ∂L over some positions of a view, but for the row's factor."""
    d = view_at(grad, come, off, dn, place, mask, UNIT, ACC)
    v = view_at(y, base, off, yn, listed_sources(sources, place, listed), mask, UNIT, ACC)
    return tl.sum(tl.where(mask, relative(v, unit[:, None], shift[:, None]) * d, 0.0), 1)


@jit_kernel
def softmax_mean_backward_rows(
    y, grad, out, lse, positions, sources, skip, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    width: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    da: tl.int64, db: tl.int64, dx: tl.int64, dn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    lg: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, LOG: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr, KM: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sum p · ∂L (∂L alone for the logarithm), then write every view's gradient where the view was read.

    Moved entries are left out of the first pass over whole vectors, summed from their list, and written last.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    come, _ = row_start(a, b, x, da, db, dx, VEC, SHIFT)
    put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
    sums = ()
    units = ()
    shifts = ()
    factors = ()
    for g in tl.static_range(ORDER):
        sums = sums + (tl.zeros([R, J], ACC),)
        unit, shift, factor = scale_of(tl.load(lse + g * lg + a * la + b * lb + x * lx, mask=within, other=0))
        units = units + (unit,)
        shifts = shifts + (shift,)
        factors = factors + (factor,)
    blocks = block_count(V, J, E, VEC, SHIFT, WHOLE)
    for i in range(blocks):
        k = i * (J * E)
        d = load_block(grad, come, off, k, V, dn, within, 0.0, J, E, VEC, SHIFT, UNIT, ACC)
        if skip is not None and not LOG:
            d = tl.where(counted(skip, off, k, V, width, within, J, E, VEC, SHIFT), d, 0.0)
        added = ()
        for g in tl.static_range(ORDER):
            term = d
            if not LOG:
                at = sources + g * V if DENSE else None
                v = view_block(
                    y + g * (yg * VEC), base, off, at, k, V, yn, within, float("-inf"), DENSE, J, E, VEC, SHIFT, UNIT,
                    ACC,
                )  # fmt: skip
                term = relative(v, units[g][:, None, None], shifts[g][:, None, None]) * d
            added = added + (sums[g] + tl.sum(term, 2),)
        sums = added
    totals = ()
    for g in tl.static_range(ORDER):
        total = tl.sum(sums[g], 1)
        view = y + g * (yg * VEC)
        if SHIFT:
            edge, at_edge = edges(off, V, within, VEC)
            if LOG:
                total += tl.sum(view_at(grad, come, off, dn, edge, at_edge, UNIT, ACC), 1)
            else:
                counts = unmoved(skip, edge, at_edge)
                table = sources + g * V + edge if DENSE else None
                total += products_at(
                    view, grad, base, come, off, yn, dn, units[g], shifts[g], edge, table, counts, counts, UNIT, ACC,
                )  # fmt: skip
        if positions is not None and not LOG:
            for i in range(0, M, KM):
                some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
                total += products_at(
                    view, grad, base, come, off, yn, dn, units[g], shifts[g], moved, sources + g * M + some, listed,
                    wanted, UNIT, ACC,
                )  # fmt: skip
        totals = totals + (total * factors[g],)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        d = load_block(grad, come, off, k, V, dn, within, 0.0, J, E, VEC, SHIFT, UNIT, ACC)
        for g in tl.static_range(ORDER):
            view = y + g * (yg * VEC)
            into = out + g * (og * VEC)
            row_unit = units[g][:, None, None]
            row_shift = shifts[g][:, None, None]
            row_factor = factors[g][:, None, None]
            row_total = totals[g][:, None, None]
            if DENSE:
                src, mask = sources_block(sources + g * V, off, k, V, within, J, E, VEC, SHIFT)
                v = tl.load(view + offsets(base + off, src, yn, UNIT), mask=mask, other=float("-inf")).to(ACC)
                w = slope(relative(v, row_unit, row_shift), d, row_factor, row_total, LOG, ORDER)
                tl.store(into + offsets(put + off, src, on, UNIT), w.to(out.dtype.element_ty), mask=mask)
            else:
                v = load_block(
                    view, base, off, k, V, yn, within, float("-inf") if WHOLE else 0.0, J, E, VEC, SHIFT, UNIT, ACC,
                )  # fmt: skip
                w = slope(relative(v, row_unit, row_shift), d, row_factor, row_total, LOG, ORDER)
                store_block(into, put, off, k, V, on, within, w, J, E, VEC, SHIFT, UNIT)
    if SHIFT:
        edge, at_edge = edges(off, V, within, VEC)
        edge_d = view_at(grad, come, off, dn, edge, at_edge, UNIT, ACC)
        for g in tl.static_range(ORDER):
            edge_src = listed_sources(sources + g * V + edge if DENSE else None, edge, at_edge)
            edge_v = view_at(y + g * (yg * VEC), base, off, yn, edge_src, at_edge, UNIT, ACC)
            edge_w = slope(
                relative(edge_v, units[g][:, None], shifts[g][:, None]), edge_d, factors[g][:, None],
                totals[g][:, None], LOG, ORDER,
            )  # fmt: skip
            edge_put = at_places(put, off, edge_src, on, UNIT)
            tl.store(out + g * (og * VEC) + edge_put, edge_w.to(out.dtype.element_ty), mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            moved_d = view_at(grad, come, off, dn, moved, wanted, UNIT, ACC)
            for g in tl.static_range(ORDER):
                moved_src = tl.load(sources + g * M + some, mask=listed, other=0)
                moved_v = view_at(y + g * (yg * VEC), base, off, yn, moved_src, wanted, UNIT, ACC)
                moved_w = slope(
                    relative(moved_v, units[g][:, None], shifts[g][:, None]), moved_d, factors[g][:, None],
                    totals[g][:, None], LOG, ORDER,
                )  # fmt: skip
                moved_put = at_places(put, off, moved_src, on, UNIT)
                tl.store(out + g * (og * VEC) + moved_put, moved_w.to(out.dtype.element_ty), mask=wanted)


@lru_cache(maxsize=1024)
def mean_plan(views: Views, table: Known, space: str, y: Operand, out: Operand, lse: Operand) -> Plan | None:
    """The launch of ``softmax_mean``, or None if the tensors must be copied first."""
    moving, fixed = [(y, True), (out, False)], [(lse, True)]
    constants, others = {"LOG": space == "log_probs"}, described(views, table)
    return plan_rows(softmax_mean_rows, views, table, "yo", moving, "l", fixed, others, {}, constants)


@lru_cache(maxsize=1024)
def backward_plan(
    views: Views, table: Known, space: str, y: Operand, grad: Operand, out: Operand, lse: Operand
) -> Plan | None:
    """The launch of ``softmax_mean_backward``, or None if the tensors must be copied first."""
    moving, fixed = [(y, True), (grad, False), (out, True)], [(lse, True)]
    tables = described(views, table)
    constants, others = {"LOG": space == "log_probs"}, [*tables, SKIP if tables[0] else None]
    return plan_rows(softmax_mean_backward_rows, views, table, "ydo", moving, "l", fixed, others, {}, constants)


def softmax_mean(y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
    """See ``Backend.softmax_mean``; lse[g] = log Σ exp y[g]."""
    plan = mean_plan(views, known(table), space, operand(y), operand(out), operand(lse))
    if plan is not None:
        return run(plan, y, out, lse, *lists(views, table))
    on_copies(lambda to: softmax_mean(contiguous_views(y), to, lse, views, table, space), out)


def softmax_mean_backward(
    grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
) -> None:
    """See ``Backend.softmax_mean_backward``; lse is that of ``softmax_mean``."""
    plan = backward_plan(views, known(table), space, operand(y), operand(grad), operand(out), operand(lse))
    if plan is not None:
        return run(plan, y, grad, out, lse, *lists(views, table), skipped(views, table))
    grad, y = grad.contiguous(), contiguous_views(y)
    on_copies(lambda to: softmax_mean_backward(grad, y, lse, to, views, table, space), out)
