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
from .launch import Plan, on_copies, run
from .layout import Known, Operand, contiguous_views, known, operand
from .rows import (
    at_places,
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
    view_at,
    view_block,
)
from .tables import SKIP, lists, skipped

__all__ = ["backward_plan", "mean_plan", "softmax_mean", "softmax_mean_backward"]


@triton.jit
def chance(v, top, factor, LOG: tl.constexpr):
    """A logit's probability, its factor being 1/Σ, or the logarithm of it, its factor being log Σ."""
    if LOG:
        return (v - top) - factor
    else:
        return tl.exp(v - top) * factor


@triton.jit
def mean_at(
    y, yg, base, off, yn, tops, factors, place, sources, stride, listed, mask, ORDER: tl.constexpr, LOG: tl.constexpr,
    VEC: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The result at some positions."""
    for g in tl.static_range(ORDER):
        at = sources + g * stride if sources is not None else None
        v = view_at(y + g * (yg * VEC), base, off, yn, listed_sources(at, place, listed), mask, UNIT, ACC)
        p = chance(v, tops[g][:, None], factors[g][:, None], LOG)
        if g == 0:
            total = p
        else:
            total += p
    return total * tl.full([], 1.0 / ORDER, ACC)


@jit_kernel
def softmax_mean_rows(
    y, out, lse, positions, sources, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64, lg: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, LOG: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Read every row of every view once for its sum, and once more, backwards, for the result.

    The entries that some view moves are written again, behind a barrier: the same thread need not write both.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
    tops, totals = statistics(y, yg, base, off, V, yn, within, ORDER, R, J, E, VEC, SHIFT, UNIT, ACC)
    factors = ()
    for g in tl.static_range(ORDER):
        log = tl.log(totals[g])
        tl.store(lse + g * lg + a * la + b * lb + x * lx, tops[g] + log, mask=within)
        factors = factors + (log if LOG else 1.0 / totals[g],)
    blocks = tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        for g in tl.static_range(ORDER):
            at = sources + g * V if DENSE else None
            v = view_block(
                y + g * (yg * VEC), base, off, at, k, V, yn, within, None, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
            )  # fmt: skip
            p = chance(v, tops[g][:, None, None], factors[g][:, None, None], LOG)
            if g == 0:
                total = p
            else:
                total += p
        total = total * tl.full([], 1.0 / ORDER, ACC)
        store_block(out, put, off, k, V, on, within, total, J, E, VEC, SHIFT, UNIT)
    if SHIFT:
        edge, at_edge = edges(off, V, within, VEC)
        table = sources + edge if DENSE else None
        result = mean_at(
            y, yg, base, off, yn, tops, factors, edge, table, V, edge < V, at_edge, ORDER, LOG, VEC, UNIT, ACC,
        )  # fmt: skip
        tl.store(out + at_places(put, off, edge, on, UNIT), result.to(out.dtype.element_ty), mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            again = mean_at(
                y, yg, base, off, yn, tops, factors, moved, sources + some, M, listed, wanted, ORDER, LOG, VEC, UNIT,
                ACC,
            )  # fmt: skip
            tl.store(out + at_places(put, off, moved, on, UNIT), again.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def slope(v, norm, spread, total, LOG: tl.constexpr, ORDER: tl.constexpr):
    """∂L/∂logit, spread being ∂L/∂ its (log-)probability and total its row's sum of ∂L (of p · ∂L)."""
    p = tl.exp(v - norm)
    if LOG:
        return (spread - p * total) * tl.full([], 1.0 / ORDER, v.dtype)
    else:
        return p * (spread - total) * tl.full([], 1.0 / ORDER, v.dtype)


@jit_kernel
def softmax_mean_backward_rows(
    y, grad, out, lse, positions, sources, skip, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    width: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    da: tl.int64, db: tl.int64, dx: tl.int64, dn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    lg: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, LOG: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum p · ∂L (∂L alone for the logarithm), then write every view's gradient where the view was read.

    Moved entries are left out of the first pass over whole vectors, summed from their list, and written last.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    come, _ = row_start(a, b, x, da, db, dx, VEC, SHIFT)
    put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
    sums = ()
    norms = ()
    for g in tl.static_range(ORDER):
        sums = sums + (tl.zeros([R, J], ACC),)
        norms = norms + (tl.load(lse + g * lg + a * la + b * lb + x * lx, mask=within, other=0),)
    blocks = tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)
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
                term = tl.exp(v - norms[g][:, None, None]) * d
            added = added + (sums[g] + tl.sum(term, 2),)
        sums = added
    totals = ()
    for g in tl.static_range(ORDER):
        total = tl.sum(sums[g], 1)
        if positions is not None and not LOG:
            for i in range(0, M, KM):
                some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
                spread = view_at(grad, come, off, dn, moved, wanted, UNIT, ACC)
                listed_src = tl.load(sources + g * M + some, mask=listed, other=0)
                moved_v = view_at(y + g * (yg * VEC), base, off, yn, listed_src, wanted, UNIT, ACC)
                total += tl.sum(tl.where(wanted, tl.exp(moved_v - norms[g][:, None]) * spread, 0.0), 1)
        totals = totals + (total,)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        d = load_block(grad, come, off, k, V, dn, within, None, J, E, VEC, SHIFT, UNIT, ACC)
        for g in tl.static_range(ORDER):
            view = y + g * (yg * VEC)
            into = out + g * (og * VEC)
            norm = norms[g][:, None, None]
            row_total = totals[g][:, None, None]
            if DENSE:
                src, mask = sources_block(sources + g * V, off, k, V, within, J, E, VEC)
                v = tl.load(view + offsets(base + off, src, yn, UNIT), mask=mask, other=0).to(ACC)
                w = slope(v, norm, d, row_total, LOG, ORDER).to(out.dtype.element_ty)
                tl.store(into + offsets(put + off, src, on, UNIT), w, mask=mask)
            else:
                v = load_block(view, base, off, k, V, yn, within, None, J, E, VEC, SHIFT, UNIT, ACC)
                w = slope(v, norm, d, row_total, LOG, ORDER)
                store_block(into, put, off, k, V, on, within, w, J, E, VEC, SHIFT, UNIT)
    if SHIFT and not DENSE:
        edge, at_edge = edges(off, V, within, VEC)
        edge_d = view_at(grad, come, off, dn, edge, at_edge, UNIT, ACC)
        for g in tl.static_range(ORDER):
            edge_v = view_at(y + g * (yg * VEC), base, off, yn, edge, at_edge, UNIT, ACC)
            edge_w = slope(edge_v, norms[g][:, None], edge_d, totals[g][:, None], LOG, ORDER).to(out.dtype.element_ty)
            tl.store(out + g * (og * VEC) + at_places(put, off, edge, on, UNIT), edge_w, mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            moved_d = view_at(grad, come, off, dn, moved, wanted, UNIT, ACC)
            for g in tl.static_range(ORDER):
                moved_src = tl.load(sources + g * M + some, mask=listed, other=0)
                moved_v = view_at(y + g * (yg * VEC), base, off, yn, moved_src, wanted, UNIT, ACC)
                moved_w = slope(moved_v, norms[g][:, None], moved_d, totals[g][:, None], LOG, ORDER).to(
                    out.dtype.element_ty
                )
                tl.store(out + g * (og * VEC) + at_places(put, off, moved_src, on, UNIT), moved_w, mask=wanted)


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
