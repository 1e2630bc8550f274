"""``score``: how unsure a model is of each row of logits, in one pass; ``score_select``: the surest view of each row.

The second scores all views of a row in one program and then writes the best, of which the cache still has the most. Its
blocks are those of the first, whose sums follow them: both find the same scores, to the bit.

Profilers see the kernels under names such as ``equikern_score_rows_entropy_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...views import Views, accumulator, still
from ..base import Maybe
from . import permuted, selection
from .arithmetic import expm1, log1p
from .compat import jit_kernel
from .exponentials import exponent, lowest, natural, raised
from .launch import Plan, ceil_div, make_plan, next_power_of_two, run, strides
from .layout import Known, Operand, known, operand
from .rows import (
    LISTED,
    at_places,
    block_count,
    dense,
    described,
    edge,
    edges,
    inside,
    lane_edges,
    listed_sources,
    load_block,
    moved_entries,
    offsets,
    plan_rows,
    program_rows,
    row_start,
    softened,
    started,
    store_block,
    vector_start,
    view_at,
    view_block,
)
from .tables import listed_count, lists
from .tiles import permuted_loops

__all__ = ["plan", "score", "score_select", "select_plan"]

# From here on every multiprocessor has a program or more. Fewer long rows leave it to ``score`` to look at their views
# side by side.
PROGRAMS = 128


# Where exponentials are 0 in any dtype: a distance to the largest logit counts as no more, so that 0 · −∞ is 0.
FAR = tl.constexpr(-1100.0)


@triton.jit
def with_nan(a, b):
    """The larger of two, NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def lane_entries(
    y, base, off, lane, i, V, yn, within, N: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr,
    SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What one lane of each row read in N blocks from the i-th on."""
    k = (i + tl.arange(0, N))[None, :, None] * (J * E)
    if VEC > 1:
        first = k + lane[:, None, None] * VEC
        c = first + tl.arange(0, E)[None, None, :]
    else:
        c = k + lane[:, None, None] + tl.arange(0, E)[None, None, :] * J
        first = c
    mask = inside(first, off, V, within, VEC, SHIFT)
    return tl.load(y + offsets(base, c, yn, UNIT), mask=mask, other=float("-inf")).to(ACC)


@triton.jit
def beside(v, highest, ACC: tl.constexpr):
    """Of entries: how many are a row's largest logit, Σ exp of the others' distances from it, the largest of them."""
    d = v - highest[:, None, None]
    found = d == 0.0
    others = tl.where(found, 0.0, tl.exp(d))
    second = tl.where(found, lowest(ACC), v)
    return tl.sum(found.to(ACC), 2), tl.sum(others, 2), tl.max(second, 2)


@triton.jit
def row_losses(
    y, base, off, V, yn, within, OP: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr, NEAR: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The loss of each row, from each lane's largest logit m, Σ exp(v − m) and, of the entropy, Σ (v − m) exp(v − m).

    A score that does not saturate needs the row's sum without its largest logit itself, beside which a small rest would
    be lost. So the lane that has it is read again, NEAR of its vectors at a time: from it comes the second, too.
    """
    if OP == "max":
        largest = lane_edges(y, base, off, V, yn, within, R, J, VEC, SHIFT, UNIT, ACC)
        for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
            v = load_block(y, base, off, k, V, yn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC)
            largest = with_nan(largest, tl.reduce(v, 2, with_nan))
        return -tl.reduce(largest, 1, with_nan)
    moment = tl.zeros([R], ACC)
    if WHOLE:
        row = load_block(y, base, off, 0, V, yn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC)
        highest = tl.maximum(tl.max(tl.max(row, 2), 1), lowest(ACC))
        count, others, second = beside(row, highest, ACC)
        equal = tl.sum(count, 1)
        rest = tl.sum(others, 1)
        runner_up = tl.max(second, 1)
        if OP == "entropy":
            d = tl.maximum(exponent(row - highest[:, None, None]), FAR)
            moment = tl.sum(tl.sum(d * raised(d), 2), 1)
    else:
        top, total = started(lane_edges(y, base, off, V, yn, within, R, J, VEC, SHIFT, UNIT, ACC), ACC)
        moments = tl.zeros([R, J], ACC)
        for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
            v = load_block(y, base, off, k, V, yn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC)
            if OP == "entropy":
                higher = tl.maximum(top, tl.max(v, 2))
                drop = tl.maximum(exponent(top - higher), FAR)
                left = raised(drop)
                # NaN stays: no other lane may see it again.
                t = tl.maximum(exponent(v - higher[:, :, None]), FAR, propagate_nan=tl.PropagateNan.ALL)
                e = raised(t)
                moments = left * (moments + drop * total) + tl.sum(t * e, 2)
                total = left * total + tl.sum(e, 2)
                top = higher
            else:
                top, total = softened(v, top, total)
        highest, lane = tl.max(top, 1, return_indices=True)
        chosen = tl.arange(0, J)[None, :] == lane[:, None]
        from_top = top - highest[:, None]
        joining = tl.exp(from_top)
        rest = tl.sum(tl.where(chosen, 0.0, total * joining), 1)
        runner_up = tl.max(tl.where(chosen, lowest(ACC), top), 1)
        if OP == "entropy":
            moment = tl.sum(joining * (moments + tl.maximum(exponent(from_top), FAR) * total), 1)
        equal = tl.zeros([R], ACC)
        for i in range(0, block_count(V, J, E, VEC, SHIFT, False), NEAR):
            near = lane_entries(y, base, off, lane, i, V, yn, within, NEAR, J, E, VEC, SHIFT, UNIT, ACC)
            near_count, near_others, near_second = beside(near, highest, ACC)
            equal += tl.sum(near_count, 1)
            rest += tl.sum(near_others, 1)
            runner_up = tl.maximum(runner_up, tl.max(near_second, 1))
        if SHIFT:
            place, at_edge = edge(lane[:, None], off, V, within, VEC)
            alone = tl.load(y + at_places(base, off, place, yn, UNIT), mask=at_edge, other=float("-inf")).to(ACC)
            edge_count, edge_others, edge_second = beside(alone[:, :, None], highest, ACC)
            equal += tl.sum(edge_count, 1)
            rest += tl.sum(edge_others, 1)
            runner_up = tl.maximum(runner_up, tl.max(edge_second, 1))
    rest += equal - 1.0
    rest = tl.where(rest == -1.0, float("nan"), rest)  # no logit above −∞: no distribution
    result = log1p(rest)  # −log of the largest probability
    if OP == "entropy":
        result -= natural(moment) / (1.0 + rest)
    elif OP == "margin":
        gap = tl.where(equal > 1.0, 0.0, runner_up - highest)  # p_2nd / p_1st in logarithm: both ends keep their digits
        result -= tl.where(gap < -1.0, log1p(-tl.exp(gap)), tl.log(-expm1(gap)))
    return result


@jit_kernel
def score_rows(
    y, out, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32,
    ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64,
    OP: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, NEAR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The loss of each row."""
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    result = row_losses(y, base, off, V, yn, within, OP, R, J, E, VEC, SHIFT, UNIT, WHOLE, NEAR, ACC)
    tl.store(out + a * oa + b * ob + x * ox, result, mask=within)


@jit_kernel
def score_select_rows(
    y, out, index, positions, sources, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    OP: tl.constexpr, MINIMUM: tl.constexpr, ORDER: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr,
    J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr, NEAR: tl.constexpr,
    OUT_VEC: tl.constexpr, OUT_SHIFT: tl.constexpr, OUT_UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Score every view of a row, then move the best one's bits into the result, the listed entries last."""
    a, b, x, within = program_rows(rows, nb, nx, R)
    winner = tl.zeros([R], tl.int32)
    best = tl.zeros([R], ACC) + float("nan")
    for g in range(ORDER):
        base, off = vector_start(g * yg + a * ya + b * yb + x * yx, VEC, SHIFT)
        loss = row_losses(y, base, off, V, yn, within, OP, R, J, E, VEC, SHIFT, UNIT, WHOLE, NEAR, ACC)
        better = loss < best if MINIMUM else loss > best
        better = better | ((best != best) & (loss == loss))
        winner = tl.where(better, g, winner)
        best = tl.where(better, loss, best)
    winner = winner.to(tl.int64)
    tl.store(index + (a * nb + b) * nx + x, winner, mask=within)
    come, away = vector_start(winner * yg + a * ya + b * yb + x * yx, VEC, SHIFT)
    if OUT_VEC == 1:  # entry by entry: the result's rows start elsewhere within a vector, or have gaps
        come = come + away
        away = away * 0
    put, _ = row_start(a, b, x, oa, ob, ox, OUT_VEC, OUT_SHIFT)
    table = sources + winner[:, None, None] * V if DENSE else None
    for k in range(0, V + (OUT_VEC - 1 if OUT_SHIFT else 0), J * E):
        v = view_block(
            y, come, away, table, k, V, yn, within, None, DENSE, J, E, OUT_VEC, OUT_SHIFT, UNIT, y.dtype.element_ty,
        )  # fmt: skip
        store_block(out, put, away, k, V, on, within, v, J, E, OUT_VEC, OUT_SHIFT, OUT_UNIT)
    if OUT_SHIFT:
        edge, at_edge = edges(away, V, within, OUT_VEC)
        here = sources + winner[:, None] * V + edge if DENSE else None
        w = view_at(y, come, away, yn, listed_sources(here, edge, at_edge), at_edge, UNIT, y.dtype.element_ty)
        tl.store(out + at_places(put, away, edge, on, OUT_UNIT), w, mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, _listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            src = tl.load(sources + winner[:, None] * M + some, mask=wanted, other=0)
            u = view_at(y, come, away, yn, src, wanted, UNIT, y.dtype.element_ty)
            tl.store(out + at_places(put, away, moved, on, OUT_UNIT), u, mask=wanted)


@lru_cache(maxsize=1024)
def plan(kind: str, logits: Operand, out: Operand) -> Plan | None:
    """The launch of ``score``, or None if the logits must be copied first."""
    moving, fixed = [(logits, False)], [(out, False)]
    return plan_rows(score_rows, still(1), None, "y", moving, "o", fixed, (), {}, {"OP": kind}, passes=1)


@lru_cache(maxsize=1024)
def select_plan(
    views: Views, table: Known, kind: str, minimum: bool, y: Operand, out: Operand, index: Operand
) -> Plan | None:
    """The launch of ``score_select``, or None where ``score`` and ``select`` are to be called one after the other."""
    each = operand(torch.empty(y.shape[:-1], device="meta"))
    alone = plan.__wrapped__(kind, y, each)
    loops = permuted_loops(-1, [(y, True), (out, False)], (), None)
    if alone is None or loops is None:
        return None
    block = alone.constants
    rows, v = loops.a * loops.b * loops.x, loops.n
    programs = ceil_div(rows, block["R"])
    if programs < PROGRAMS and v > block["J"] * block["E"]:
        return None
    (yg, *from_y, yn), (_, *into, on) = loops.moving
    vec, shift, unit = block["VEC"], block["SHIFT"], on == 1 or v == 1
    # Whether the result's rows start as far into a vector as those of every view.
    alike = yg % vec == 0 and all((s - t) % vec == 0 for s, t in zip(into, from_y, strict=True))
    out_vec = vec if unit and alike and out.aligned else 1
    out_shift = shift if out_vec > 1 else False
    count = listed_count(views, table)
    values: dict[str, int | float] = {"rows": rows, "nb": loops.b, "nx": loops.x, "V": v, "M": count}
    values |= strides("y", "gabxn", [[*(s if shift else s // vec for s in (yg, *from_y)), yn]])
    values |= strides("o", "abxn", [[*(s if out_shift else s // out_vec for s in into), on]])
    return make_plan(
        score_select_rows,
        programs,
        [y, out, index, *described(views, table)],
        values,
        {
            **block,
            "MINIMUM": minimum,
            "ORDER": y.shape[0],
            "DENSE": dense(views, table),
            "OUT_VEC": out_vec,
            "OUT_SHIFT": out_shift,
            "OUT_UNIT": unit,
            "KM": min(LISTED, next_power_of_two(count)),
        },
        alone.num_warps,
    )


def score(logits: Tensor, out: Tensor, kind: str) -> None:
    """See ``Backend.score``."""
    found = plan(kind, operand(logits), operand(out))
    if found is not None:
        run(found, logits, out)
    else:  # more leading dims than loops: only then is anything copied
        score(logits.contiguous(), out, kind)


def score_select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool) -> None:
    """See ``Backend.score_select``."""
    found = select_plan(views, known(table), kind, minimum, operand(y), operand(out), operand(index))
    if found is not None:
        return run(found, y, out, index, *lists(views, table))
    scores = torch.empty(y.shape[:-1], dtype=accumulator(y), device=y.device)
    score(y, scores, kind)
    if table is None:
        selection.select(y, out, index, views, None, scores, minimum)
    else:
        permuted.select(y, out, index, views, table, scores, minimum)
