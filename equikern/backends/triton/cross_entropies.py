"""``cross_entropy``: the loss of the mean prediction and its gradient, from two passes over the logits of a row.

Profilers see the kernels as ``equikern_cross_entropy_mean_rows_bf16``, where logits are averaged, and
``equikern_cross_entropy_views_rows_bf16``, where (log-)probabilities are.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .compat import jit_kernel
from .exponentials import exponent, lowest, power, relative, scale_of
from .launch import Plan, on_copies, run
from .layout import Known, Operand, contiguous_views, known, operand
from .mixtures import mixture_gradients, mixture_sums
from .rows import (
    at_places,
    block_count,
    counted,
    described,
    edges,
    entries,
    inside,
    joined,
    lane_edge_places,
    listed_sources,
    load_block,
    moved_entries,
    offsets,
    plan_rows,
    program_rows,
    row_start,
    softened,
    sources_block,
    started,
    statistics,
    store_block,
    unmoved,
    view_at,
    view_block,
)
from .tables import SKIP, TABLE, lists, skipped, whole

__all__ = ["cross_entropy", "plan"]


@triton.jit
def row_targets(target, a, b, x, ta, tb, tx, within, ignore, V):
    """Each row's target (0 where it is not one), which rows count, and what the others' loss and gradient are.

    Rows that are ignored give 0, targets outside the vocabulary NaN: to ask for them would stop the queue.
    """
    t = tl.load(target + a * ta + b * tb + x * tx, mask=within, other=0)
    kept = t != ignore
    good = within & kept & (t >= 0) & (t < V)
    return tl.where(good, t, 0).to(tl.int32), good, tl.where(kept, float("nan"), 0.0)


@triton.jit
def mean_block(
    y, yg, base, off, sources, k, V, yn, good, OTHER: tl.constexpr, ORDER: tl.constexpr, DENSE: tl.constexpr,
    J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A block of the mean of the views' logits."""
    for g in tl.static_range(ORDER):
        at = sources + g * V if DENSE else None
        v = view_block(
            y + g * (yg * VEC), base, off, at, k, V, yn, good, OTHER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        if g == 0:
            z = v
        else:
            z += v
    return z * tl.full([], 1.0 / ORDER, ACC)


@triton.jit
def mean_at(
    y, yg, base, off, yn, place, sources, stride, listed, mask, ORDER: tl.constexpr, VEC: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same at some positions."""
    for g in tl.static_range(ORDER):
        at = sources + g * stride if sources is not None else None
        v = view_at(y + g * (yg * VEC), base, off, yn, listed_sources(at, place, listed), mask, UNIT, ACC)
        if g == 0:
            z = v
        else:
            z += v
    return z * tl.full([], 1.0 / ORDER, ACC)


@triton.jit
def pivot_of(v):
    """What the sum of a row's logits is taken relative to, so that it rounds like a sum of differences."""
    return tl.where((v == v) & (tl.abs(v) != float("inf")), v, 0.0)


@triton.jit
def weighed(weight, log_q):
    """weight · log q, nothing where the weight is 0."""
    return tl.where(weight == 0.0, 0.0, weight * log_q)


@triton.jit
def row_scale(scale, a, b, x, ta, tb, tx, within, EACH: tl.constexpr, ACC: tl.constexpr):
    """What gradients are multiplied by: one number, or each row's, where its target lies."""
    if EACH:
        return tl.load(scale + a * ta + b * tb + x * tx, mask=within, other=0).to(ACC)
    else:
        return tl.load(scale).to(ACC)


@triton.jit
def steepness(z_loss, lse, ACC: tl.constexpr):
    """The derivative of z · Z² in Z."""
    return tl.full([], 2.0 * z_loss, ACC) * lse


@triton.jit
def units_of(logs, ORDER: tl.constexpr):
    """The views' log Σ in the unit of ``raised``."""
    found = ()
    for g in tl.static_range(ORDER):
        found = found + (exponent(logs[g]),)
    return found


@triton.jit
def where_good(good, otherwise, p_factor, every):
    """A row's factor of its probabilities and what every entry loses: those that give a row without a target's."""
    return tl.where(good, p_factor, 0.0), tl.where(good, every, 0.0 - otherwise)


@jit_kernel
def cross_entropy_mean_rows(
    y, grad, target, loss, scale, positions, sources, whole, skip,
    rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32, width: tl.int32, ignore: tl.int64,
    smoothing: tl.float64, z_loss: tl.float64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    ta: tl.int64, tb: tl.int64, tx: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, SMOOTH: tl.constexpr, SQUARES: tl.constexpr, EACH: tl.constexpr, DENSE: tl.constexpr,
    R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """log q = log softmax of the views' mean logits; the entries that views move are summed and written on their own.

    The first pass leaves those out, the second writes them last, to where each view was read; and so the target's.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    t, good, otherwise = row_targets(target, a, b, x, ta, tb, tx, within, ignore, V)
    each = good[:, None]
    t_at = whole + t[:, None] if whole is not None else None
    z_t = tl.sum(mean_at(y, yg, base, off, yn, t[:, None], t_at, V, each, each, ORDER, VEC, UNIT, ACC), 1)
    pivot = pivot_of(z_t)
    blocks = block_count(V, J, E, VEC, SHIFT, WHOLE)
    sums = tl.zeros([R, J], ACC)
    if SHIFT:
        first, at_first = lane_edge_places(off, V, good, J, VEC)
        first_at = sources + first if DENSE else None
        first_z = mean_at(y, yg, base, off, yn, first, first_at, V, at_first, at_first, ORDER, VEC, UNIT, ACC)
        if SMOOTH:
            sums = tl.where(at_first, first_z - pivot[:, None], 0.0)
        first_z = tl.where(unmoved(skip, first, at_first), first_z, float("-inf"))
    else:
        first_z = tl.full([R, J], float("-inf"), ACC)
    tops, totals = started(first_z, ACC)
    top = tl.zeros([R], ACC)
    total = tl.zeros([R], ACC)
    for i in range(blocks):
        k = i * (J * E)
        z = mean_block(
            y, yg, base, off, sources, k, V, yn, good, float("-inf"), ORDER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        if SMOOTH:
            counts = inside(entries(k, J, E, VEC)[1], off, V, good, VEC, SHIFT)
            sums += tl.sum(tl.where(counts, z - pivot[:, None, None], 0.0), 2)
        if skip is not None:
            z = tl.where(counted(skip, off, k, V, width, good, J, E, VEC, SHIFT), z, float("-inf"))
        if WHOLE:
            top = tl.maximum(tl.max(tl.max(z, 2), 1), lowest(ACC))
            unit, shift, rounding = scale_of(top)
            e = relative(z, unit[:, None, None], shift[:, None, None])
            total = tl.sum(tl.sum(e, 2), 1) * rounding
        else:
            tops, totals = softened(z, tops, totals)
    if not WHOLE:
        top, total = joined(tops, totals)
    if positions is not None:
        listed_top = tl.zeros([R, KM], ACC) + lowest(ACC)
        listed_total = tl.zeros([R, KM], ACC)
        for i in range(0, M, KM):
            some = i + tl.arange(0, KM)[None, :]
            listed = some < M
            mask = good[:, None] & listed
            listed_z = mean_at(y, yg, base, off, yn, some, sources + some, M, listed, mask, ORDER, VEC, UNIT, ACC)
            listed_z = tl.where(mask, listed_z, float("-inf"))
            listed_top, listed_total = softened(listed_z[:, :, None], listed_top, listed_total)
        listed_top, listed_total = joined(listed_top, listed_total)
        higher = tl.maximum(top, listed_top)
        total = total * power(top - higher) + listed_total * power(listed_top - higher)
        top = higher
    log = tl.log(total)
    once = tl.full([], 1.0, ACC)
    every = tl.full([], 0.0, ACC)
    found = -((z_t - top) - log)
    if SMOOTH:
        once = tl.full([], 1.0 - smoothing, ACC)
        every = tl.full([], smoothing, ACC) / V
        found = weighed(once, found) - every * (tl.sum(sums, 1) + V * (pivot - top) - V * log)
    if SQUARES:
        lse = top + log
        found += tl.full([], z_loss, ACC) * (lse * lse)
    if grad is not None:
        put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
        factor = tl.full([], 1.0 / ORDER, ACC)
        if scale is not None:
            factor = factor * row_scale(scale, a, b, x, ta, tb, tx, within, EACH, ACC)
        top = tl.where(good, top, 0.0)
        row_unit, row_shift, row_rounding = scale_of(top)
        p_factor = row_rounding * factor / total
        if SQUARES:
            p_factor *= 1.0 + steepness(z_loss, lse, ACC)
        p_factor, every = where_good(good, otherwise, p_factor, every * factor)
        once = once * factor
        for i in range(blocks):
            k = (blocks - 1 - i) * (J * E)
            z = mean_block(
                y, yg, base, off, sources, k, V, yn, good, float("-inf") if WHOLE else 0.0, ORDER, DENSE, J, E, VEC,
                SHIFT, UNIT, ACC,
            )  # fmt: skip
            e = relative(z, row_unit[:, None, None], row_shift[:, None, None])
            d = tl.fma(e, p_factor[:, None, None], -every[:, None, None]).to(grad.dtype.element_ty)
            for g in tl.static_range(ORDER):
                into = grad + g * (og * VEC)
                if DENSE:
                    src, inside_row = sources_block(sources + g * V, off, k, V, within, J, E, VEC, SHIFT)
                    tl.store(into + offsets(put + off, src, on, UNIT), d, mask=inside_row)
                else:
                    store_block(into, put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
        if SHIFT:
            edge, at_edge = edges(off, V, within, VEC)
            edge_at = sources + edge if DENSE else None
            edge_z = mean_at(
                y, yg, base, off, yn, edge, edge_at, V, at_edge, at_edge & good[:, None], ORDER, VEC, UNIT, ACC
            )
            edge_e = relative(edge_z, row_unit[:, None], row_shift[:, None])
            edge_d = tl.fma(edge_e, p_factor[:, None], -every[:, None]).to(grad.dtype.element_ty)
            for g in tl.static_range(ORDER):
                edge_src = listed_sources(sources + g * V + edge if DENSE else None, edge, at_edge)
                tl.store(grad + g * (og * VEC) + at_places(put, off, edge_src, on, UNIT), edge_d, mask=at_edge)
        tl.debug_barrier()
        if positions is not None:
            for i in range(0, M, KM):
                some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
                moved_z = mean_at(
                    y, yg, base, off, yn, moved, sources + some, M, listed, wanted & good[:, None], ORDER, VEC, UNIT,
                    ACC,
                )  # fmt: skip
                moved_e = relative(moved_z, row_unit[:, None], row_shift[:, None])
                moved_d = tl.fma(moved_e, p_factor[:, None], -every[:, None])
                # The target's is written below, by other threads.
                others = wanted & ((moved != t[:, None]) | (good == 0)[:, None])
                moved_d = tl.where(good[:, None], moved_d, otherwise[:, None]).to(grad.dtype.element_ty)
                for g in tl.static_range(ORDER):
                    moved_src = tl.load(sources + g * M + some, mask=listed, other=0)
                    tl.store(grad + g * (og * VEC) + at_places(put, off, moved_src, on, UNIT), moved_d, mask=others)
        t_d = tl.fma(relative(z_t, row_unit, row_shift), p_factor, -every) - once
        for g in tl.static_range(ORDER):
            t_src = listed_sources(whole + g * V + t[:, None] if whole is not None else None, t[:, None], each)
            t_put = at_places(put, off, t_src, on, UNIT)
            tl.store(grad + g * (og * VEC) + t_put, t_d[:, None].to(grad.dtype.element_ty), mask=each)
    tl.store(loss + a * la + b * lb + x * lx, tl.where(good, found, otherwise), mask=within)


@jit_kernel
def cross_entropy_views_rows(
    y, grad, target, loss, scale, positions, sources, whole, skip,
    rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32, width: tl.int32, ignore: tl.int64,
    smoothing: tl.float64, z_loss: tl.float64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    ta: tl.int64, tb: tl.int64, tx: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, SMOOTH: tl.constexpr, SQUARES: tl.constexpr, EACH: tl.constexpr, LOG: tl.constexpr,
    DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """log q from the views' own softmaxes: only at the target does it matter what a view moves.

    But for smoothed probabilities, whose log q counts everywhere: those take a pass more.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    t, good, otherwise = row_targets(target, a, b, x, ta, tb, tx, within, ignore, V)
    tops, totals = statistics(
        y, yg, base, off, sources, V, yn, good, ORDER, DENSE and SMOOTH and not LOG, R, J, E, VEC, SHIFT, UNIT, WHOLE,
        ACC,
    )  # fmt: skip
    once = tl.full([], 1.0, ACC)
    every = tl.full([], 0.0, ACC)
    if SMOOTH:
        once = tl.full([], 1.0 - smoothing, ACC)
        every = tl.full([], smoothing, ACC) / V
    # Of each view the target's source and its log-probability.
    read = ()
    values = ()
    logs = ()
    chances = ()
    best = tl.zeros([R], ACC) + lowest(ACC)
    for g in tl.static_range(ORDER):
        wanted = t[:, None]
        t_at = whole + g * V + wanted if whole is not None else None
        t_src = listed_sources(t_at, wanted, good[:, None])
        t_v = view_at(y + g * (yg * VEC), base, off, yn, t_src, good[:, None], UNIT, ACC)
        log = tl.log(totals[g])
        t_v = tl.sum(t_v, 1)
        chance = (t_v - tops[g]) - log
        best = tl.maximum(best, chance)
        read = read + (tl.sum(t_src, 1),)
        values = values + (t_v,)
        logs = logs + (log,)
        chances = chances + (chance,)
    shares = ()
    if LOG:
        log_q = tl.zeros([R], ACC)
        for g in tl.static_range(ORDER):
            log_q += chances[g]
            shares = shares + (tl.full([R], 1.0, ACC),)
        log_q = log_q * tl.full([], 1.0 / ORDER, ACC)
    else:
        mixed = tl.zeros([R], ACC)
        for g in tl.static_range(ORDER):
            mixed += tl.exp(chances[g] - best)
        log_q = best + tl.log(mixed * tl.full([], 1.0 / ORDER, ACC))
        for g in tl.static_range(ORDER):
            shares = shares + (tl.where(mixed == 0.0, 0.0, tl.exp(chances[g] - best) / mixed),)
    found = -log_q
    weights = shares
    blocks = block_count(V, J, E, VEC, SHIFT, WHOLE)
    if SMOOTH:
        found = weighed(once, found)
        if LOG:
            everywhere = tl.zeros([R], ACC)
            for g in tl.static_range(ORDER):
                pivot = pivot_of(values[g])
                sums = tl.zeros([R, J], ACC)
                for i in range(blocks):
                    k = i * (J * E)
                    v = load_block(
                        y + g * (yg * VEC), base, off, k, V, yn, good, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC,
                    )  # fmt: skip
                    counts = inside(entries(k, J, E, VEC)[1], off, V, good, VEC, SHIFT)
                    sums += tl.sum(tl.where(counts, v - pivot[:, None, None], 0.0), 2)
                if SHIFT:
                    first, at_first = lane_edge_places(off, V, good, J, VEC)
                    first_v = view_at(y + g * (yg * VEC), base, off, yn, first, at_first, UNIT, ACC)
                    sums += tl.where(at_first, first_v - pivot[:, None], 0.0)
                everywhere += tl.sum(sums, 1) + V * (pivot - tops[g]) - V * logs[g]
            found -= every * (everywhere * tl.full([], 1.0 / ORDER, ACC))
        else:
            everywhere, parts = mixture_sums(
                y, yg, base, off, positions, sources, skip, V, M, width, yn, tops, units_of(logs, ORDER), good, ORDER,
                DENSE, R, J, E, VEC, SHIFT, UNIT, WHOLE, KM, ACC,
            )  # fmt: skip
            found -= every * everywhere
            weights = ()
            for g in tl.static_range(ORDER):
                weights = weights + (every * parts[g] + once * shares[g],)
    if SQUARES:
        squares = tl.zeros([R], ACC)
        steeper = ()
        for g in tl.static_range(ORDER):
            lse = tops[g] + logs[g]
            squares += lse * lse
            steep = steepness(z_loss, lse, ACC)
            if not LOG:
                steep = steep * tl.full([], 1.0 / ORDER, ACC)
            steeper = steeper + (weights[g] + steep,)
        weights = steeper
        found += tl.full([], z_loss, ACC) * (squares * tl.full([], 1.0 / ORDER, ACC))
    if grad is not None:
        put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
        factor = tl.full([], 1.0, ACC)
        if scale is not None:
            factor = row_scale(scale, a, b, x, ta, tb, tx, within, EACH, ACC)
        if LOG:
            factor = factor * tl.full([], 1.0 / ORDER, ACC)
        every = every * factor * tl.full([R], 1.0, ACC)
        once = once * factor
        if SMOOTH and not LOG:
            mixture_gradients(
                y, yg, base, off, grad, og, put, positions, sources, V, M, yn, on, tops, units_of(logs, ORDER), weights,
                t, shares, read, every, once, factor, within, good, otherwise, ORDER, DENSE, J, E, VEC, SHIFT, UNIT,
                WHOLE, KM, ACC,
            )  # fmt: skip
        else:
            units = ()
            shifts = ()
            factors = ()
            for g in tl.static_range(ORDER):
                unit, shift, rounding = scale_of(tl.where(good, tops[g], 0.0))
                p_factor, lost = where_good(good, otherwise, rounding * factor * weights[g] / totals[g], every)
                units = units + (unit,)
                shifts = shifts + (shift,)
                factors = factors + (p_factor,)
            for i in range(blocks):
                k = (blocks - 1 - i) * (J * E)
                for g in tl.static_range(ORDER):
                    v = load_block(
                        y + g * (yg * VEC), base, off, k, V, yn, good, float("-inf") if WHOLE else 0.0, J, E, VEC,
                        SHIFT, UNIT, ACC,
                    )  # fmt: skip
                    e = relative(v, units[g][:, None, None], shifts[g][:, None, None])
                    d = tl.fma(e, factors[g][:, None, None], -lost[:, None, None])
                    store_block(grad + g * (og * VEC), put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
            if SHIFT:
                edge, at_edge = edges(off, V, within, VEC)
                for g in tl.static_range(ORDER):
                    read_edge = at_edge & good[:, None]
                    edge_v = view_at(y + g * (yg * VEC), base, off, yn, edge, read_edge, UNIT, ACC)
                    edge_e = relative(edge_v, units[g][:, None], shifts[g][:, None])
                    edge_d = tl.fma(edge_e, factors[g][:, None], -lost[:, None]).to(grad.dtype.element_ty)
                    put_at = at_places(put, off, edge, on, UNIT)
                    tl.store(grad + g * (og * VEC) + put_at, edge_d, mask=at_edge)
            tl.debug_barrier()
            for g in tl.static_range(ORDER):
                t_e = relative(values[g], units[g], shifts[g])
                t_d = tl.fma(t_e, factors[g], -lost) - once * shares[g]
                t_put = at_places(put, off, read[g][:, None], on, UNIT)
                tl.store(grad + g * (og * VEC) + t_put, t_d[:, None].to(grad.dtype.element_ty), mask=good[:, None])
    tl.store(loss + a * la + b * lb + x * lx, tl.where(good, found, otherwise), mask=within)


@lru_cache(maxsize=1024)
def plan(
    views: Views, table: Known, space: str, ignore_index: int, smoothing: float, z_loss: float, y: Operand,
    grad: Known, target: Operand, loss: Operand, scale: Known,
) -> Plan | None:  # fmt: skip
    """The launch for operands such as these, or None if the tensors must be copied first."""
    moving, fixed = [(y, True), (grad, True)], [(target, False), (loss, False)]
    each = scale is not None and len(scale.shape) > 0
    asked = {"SMOOTH": smoothing > 0, "SQUARES": z_loss > 0, "EACH": each}
    constants = {**asked, **({} if space == "logits" else {"LOG": space == "log_probs"})}
    tables = described(views, table)
    others = [scale, *tables, TABLE if tables[1] else None, SKIP if tables[0] else None]
    # Of mixtures every view's share is kept beside its logit.
    kernel, live = (cross_entropy_mean_rows, 1) if space == "logits" else (cross_entropy_views_rows, 3)
    scalars = {"ignore": ignore_index, "smoothing": smoothing, "z_loss": z_loss}
    return plan_rows(kernel, views, table, "yo", moving, "tl", fixed, others, scalars, constants, live=live)


def cross_entropy(
    y: Tensor,
    target: Tensor,
    loss: Tensor,
    grad: Maybe,
    views: Views,
    table: Maybe,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Maybe,
    z_loss: float,
) -> None:
    """See ``Reference.cross_entropy``; here a target that is none makes its loss and its gradient NaN."""
    given = operand(y), known(grad), operand(target), operand(loss), known(scale)
    found = plan(views, known(table), space, ignore_index, smoothing, z_loss, *given)
    if found is not None:
        sources = lists(views, table)
        return run(found, y, grad, target, loss, scale, *sources, whole(views, table), skipped(views, table))
    options = views, table, space, ignore_index, smoothing, scale, z_loss
    on_copies(lambda to: cross_entropy(contiguous_views(y), target, loss, to, *options), grad)
