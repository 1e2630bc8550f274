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
from .launch import Plan, on_copies, run
from .layout import Known, Operand, contiguous_views, known, operand
from .mixtures import mixture_gradients, mixture_sums
from .rows import (
    at_places,
    counted,
    described,
    edges,
    entries,
    joined,
    listed_sources,
    load_block,
    lowest,
    moved_entries,
    offsets,
    plan_rows,
    program_rows,
    row_start,
    softened,
    sources_block,
    statistics,
    store_block,
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
def slope(p, place, target, p_factor, every, once, good, otherwise):
    """A gradient: a probability times its factor, less what every entry gets and what the target's does."""
    d = p * p_factor - every - tl.where(place == target, once, 0.0)
    return tl.where(good, d, otherwise)


@jit_kernel
def cross_entropy_mean_rows(
    y, grad, target, loss, scale, positions, sources, whole, skip,
    rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32, width: tl.int32, ignore: tl.int64,
    smoothing: tl.float64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    ta: tl.int64, tb: tl.int64, tx: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, SMOOTH: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """log q = log softmax of the views' mean logits; the entries that views move are summed and written on their own.

    The first pass leaves those out, the second writes them last, to where each view was read.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    t, good, otherwise = row_targets(target, a, b, x, ta, tb, tx, within, ignore, V)
    each = good[:, None]
    t_at = whole + t[:, None] if whole is not None else None
    z_t = tl.sum(mean_at(y, yg, base, off, yn, t[:, None], t_at, V, each, each, ORDER, VEC, UNIT, ACC), 1)
    pivot = pivot_of(z_t)
    top = tl.zeros([R, J], ACC) + lowest(ACC)
    total = tl.zeros([R, J], ACC)
    sums = tl.zeros([R, J], ACC)
    blocks = tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)
    for i in range(blocks):
        k = i * (J * E)
        z = mean_block(
            y, yg, base, off, sources, k, V, yn, good, float("-inf"), ORDER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        if SMOOTH:
            v = entries(k, J, E, VEC)[0] - off[:, None, None]
            sums += tl.sum(tl.where((v >= 0) & (v < V), z - pivot[:, None, None], 0.0), 2)
        if skip is not None:
            z = tl.where(counted(skip, off, k, V, width, good, J, E, VEC, SHIFT), z, float("-inf"))
        top, total = softened(z, top, total)
    top, total = joined(top, total)
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
        total = total * tl.exp(top - higher) + listed_total * tl.exp(listed_top - higher)
        top = higher
    log = tl.log(total)
    once = tl.full([], 1.0, ACC)
    every = tl.full([], 0.0, ACC)
    found = -((z_t - top) - log)
    if SMOOTH:
        once = tl.full([], 1.0 - smoothing, ACC)
        every = tl.full([], smoothing, ACC) / V
        found = weighed(once, found) - every * (tl.sum(sums, 1) + V * (pivot - top) - V * log)
    tl.store(loss + a * la + b * lb + x * lx, tl.where(good, found, otherwise), mask=within)
    if grad is not None:
        put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
        factor = tl.full([], 1.0 / ORDER, ACC)
        if scale is not None:
            factor = factor * tl.load(scale).to(ACC)
        every = every * factor
        once = once * factor
        p_factor = factor / total
        for i in range(blocks):
            k = (blocks - 1 - i) * (J * E)
            z = mean_block(
                y, yg, base, off, sources, k, V, yn, good, None, ORDER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
            )  # fmt: skip
            v = entries(k, J, E, VEC)[0] - off[:, None, None]
            d = slope(
                tl.exp(z - top[:, None, None]), v, t[:, None, None], p_factor[:, None, None], every, once,
                good[:, None, None], otherwise[:, None, None],
            ).to(grad.dtype.element_ty)  # fmt: skip
            for g in tl.static_range(ORDER):
                into = grad + g * (og * VEC)
                if DENSE:
                    src, mask = sources_block(sources + g * V, off, k, V, within, J, E, VEC)
                    tl.store(into + offsets(put + off, src, on, UNIT), d, mask=mask)
                else:
                    store_block(into, put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
        if SHIFT and not DENSE:
            edge, at_edge = edges(off, V, within, VEC)
            edge_z = mean_at(
                y, yg, base, off, yn, edge, None, 0, at_edge, at_edge & good[:, None], ORDER, VEC, UNIT, ACC
            )
            edge_d = slope(
                tl.exp(edge_z - top[:, None]), edge, t[:, None], p_factor[:, None], every, once, good[:, None],
                otherwise[:, None],
            ).to(grad.dtype.element_ty)  # fmt: skip
            for g in tl.static_range(ORDER):
                tl.store(grad + g * (og * VEC) + at_places(put, off, edge, on, UNIT), edge_d, mask=at_edge)
        if positions is not None:
            tl.debug_barrier()
            for i in range(0, M, KM):
                some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
                moved_z = mean_at(
                    y, yg, base, off, yn, moved, sources + some, M, listed, wanted & good[:, None], ORDER, VEC, UNIT,
                    ACC,
                )  # fmt: skip
                moved_d = slope(
                    tl.exp(moved_z - top[:, None]), moved, t[:, None], p_factor[:, None], every, once, good[:, None],
                    otherwise[:, None],
                ).to(grad.dtype.element_ty)  # fmt: skip
                for g in tl.static_range(ORDER):
                    moved_src = tl.load(sources + g * M + some, mask=listed, other=0)
                    tl.store(grad + g * (og * VEC) + at_places(put, off, moved_src, on, UNIT), moved_d, mask=wanted)


@jit_kernel
def cross_entropy_views_rows(
    y, grad, target, loss, scale, positions, sources, whole, skip,
    rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32, width: tl.int32, ignore: tl.int64,
    smoothing: tl.float64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    ta: tl.int64, tb: tl.int64, tx: tl.int64, la: tl.int64, lb: tl.int64, lx: tl.int64,
    ORDER: tl.constexpr, SMOOTH: tl.constexpr, LOG: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr,
    J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, KM: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """log q from the views' own softmaxes: only at the target does it matter what a view moves.

    But for smoothed probabilities, whose log q counts everywhere: those take a pass more.
    """
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    t, good, otherwise = row_targets(target, a, b, x, ta, tb, tx, within, ignore, V)
    tops, totals = statistics(y, yg, base, off, V, yn, good, ORDER, R, J, E, VEC, SHIFT, UNIT, ACC)
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
    blocks = tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)
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
                        y + g * (yg * VEC), base, off, k, V, yn, good, None, J, E, VEC, SHIFT, UNIT, ACC,
                    )  # fmt: skip
                    place = entries(k, J, E, VEC)[0] - off[:, None, None]
                    sums += tl.sum(tl.where((place >= 0) & (place < V), v - pivot[:, None, None], 0.0), 2)
                everywhere += tl.sum(sums, 1) + V * (pivot - tops[g]) - V * logs[g]
            found -= every * (everywhere * tl.full([], 1.0 / ORDER, ACC))
        else:
            everywhere, parts = mixture_sums(
                y, yg, base, off, positions, sources, skip, V, M, width, yn, tops, logs, good, ORDER, DENSE, R, J, E,
                VEC, SHIFT, UNIT, KM, ACC,
            )  # fmt: skip
            found -= every * everywhere
            weights = ()
            for g in tl.static_range(ORDER):
                weights = weights + (every * parts[g] + once * shares[g],)
    tl.store(loss + a * la + b * lb + x * lx, tl.where(good, found, otherwise), mask=within)
    if grad is not None:
        put, _ = row_start(a, b, x, oa, ob, ox, VEC, SHIFT)
        factor = tl.full([], 1.0, ACC)
        if scale is not None:
            factor = tl.load(scale).to(ACC)
        if LOG:
            factor = factor * tl.full([], 1.0 / ORDER, ACC)
        every = every * factor
        once = once * factor
        if SMOOTH and not LOG:
            mixture_gradients(
                y, yg, base, off, grad, og, put, positions, sources, V, M, yn, on, tops, logs, weights, t, every, once,
                factor, within, good, otherwise, ORDER, DENSE, J, E, VEC, SHIFT, UNIT, KM, ACC,
            )  # fmt: skip
        else:
            for i in range(blocks):
                k = (blocks - 1 - i) * (J * E)
                place = entries(k, J, E, VEC)[0] - off[:, None, None]
                for g in tl.static_range(ORDER):
                    v = load_block(
                        y + g * (yg * VEC), base, off, k, V, yn, good, None, J, E, VEC, SHIFT, UNIT, ACC,
                    )  # fmt: skip
                    p_factor = factor * weights[g] / totals[g]
                    d = slope(
                        tl.exp(v - tops[g][:, None, None]), place, read[g][:, None, None], p_factor[:, None, None],
                        every, (once * shares[g])[:, None, None], good[:, None, None], otherwise[:, None, None],
                    )  # fmt: skip
                    store_block(grad + g * (og * VEC), put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
            if SHIFT:
                edge, at_edge = edges(off, V, within, VEC)
                for g in tl.static_range(ORDER):
                    read_edge = at_edge & good[:, None]
                    edge_v = view_at(y + g * (yg * VEC), base, off, yn, edge, read_edge, UNIT, ACC)
                    edge_factor = factor * weights[g] / totals[g]
                    edge_d = slope(
                        tl.exp(edge_v - tops[g][:, None]), edge, read[g][:, None], edge_factor[:, None], every,
                        (once * shares[g])[:, None], good[:, None], otherwise[:, None],
                    )  # fmt: skip
                    put_at = at_places(put, off, edge, on, UNIT)
                    tl.store(grad + g * (og * VEC) + put_at, edge_d.to(grad.dtype.element_ty), mask=at_edge)


@lru_cache(maxsize=1024)
def plan(
    views: Views, table: Known, space: str, ignore_index: int, smoothing: float, y: Operand,
    grad: Known, target: Operand, loss: Operand, scale: Known,
) -> Plan | None:  # fmt: skip
    """The launch for operands such as these, or None if the tensors must be copied first."""
    moving, fixed = [(y, True), (grad, True)], [(target, False), (loss, False)]
    constants = {"SMOOTH": smoothing > 0, **({} if space == "logits" else {"LOG": space == "log_probs"})}
    tables = described(views, table)
    others = [scale, *tables, TABLE if tables[1] else None, SKIP if tables[0] else None]
    kernel = cross_entropy_mean_rows if space == "logits" else cross_entropy_views_rows
    scalars = {"ignore": ignore_index, "smoothing": smoothing}
    return plan_rows(kernel, views, table, "yo", moving, "tl", fixed, others, scalars, constants)


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
) -> None:
    """See ``Reference.cross_entropy``; here a target that is none makes its loss and its gradient NaN."""
    given = operand(y), known(grad), operand(target), operand(loss), known(scale)
    found = plan(views, known(table), space, ignore_index, smoothing, *given)
    if found is not None:
        sources = lists(views, table)
        return run(found, y, grad, target, loss, scale, *sources, whole(views, table), skipped(views, table))
    options = views, table, space, ignore_index, smoothing, scale
    on_copies(lambda to: cross_entropy(contiguous_views(y), target, loss, to, *options), grad)
