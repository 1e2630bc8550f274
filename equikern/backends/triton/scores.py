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
from .compat import jit_kernel
from .device import expm1, log1p
from .launch import Plan, ceil_div, make_plan, next_power_of_two, run, strides
from .layout import Known, Operand, known, operand
from .rows import (
    LISTED,
    at_places,
    dense,
    described,
    edges,
    listed_sources,
    load_block,
    lowest,
    moved_entries,
    plan_rows,
    program_rows,
    row_start,
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


@triton.jit
def moved_by(drop, rest):
    """What a higher top adds to the moment of those below; finite below −10,000, too, where exp(drop) is 0."""
    return tl.where(rest == -1.0, 0.0, tl.maximum(drop, -10000.0) * (1.0 + rest))


@triton.jit
def row_losses(
    y, base, off, V, yn, within, OP: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per lane the largest logit m, Σ exp(v − m) without m itself, in which a small rest would be lost, and what the
    kind asks for: Σ (v − m) exp(v − m) or the second.
    """
    least = lowest(ACC)
    top = tl.zeros([R, J], ACC) + (float("-inf") if OP == "max" else least)
    rest = tl.zeros([R, J], ACC) - (0.0 if OP == "max" else 1.0)  # −1: no logit above −∞ so far
    third = tl.zeros([R, J], ACC)
    if OP == "margin":
        third += least
    for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
        v = load_block(y, base, off, k, V, yn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC)
        if OP == "max":
            top = tl.maximum(top, tl.max(v, 2))
            rest += tl.sum((v != v).to(ACC), 2)
        else:
            if OP == "margin":
                # The second of the lane's first two and of the vector's: equal largest ones count twice.
                best = tl.max(v, 2)
                twice = tl.sum((v == best[:, :, None]).to(tl.int32), 2) > 1
                after = tl.max(tl.where(v == best[:, :, None], least, v), 2)
                third = tl.maximum(tl.maximum(third, tl.minimum(top, best)), tl.where(twice, best, after))
            higher = tl.maximum(top, tl.max(v, 2))
            drop = top - higher
            d = v - higher[:, :, None]
            e = tl.exp(d)
            if OP == "entropy":
                # −∞ adds nothing: 0 · −∞ would be NaN.
                terms = tl.where(e == 0.0, 0.0, d * e)
                third = tl.exp(drop) * (third + moved_by(drop, rest)) + tl.sum(terms, 2)
            here = tl.sum((d == 0.0).to(ACC), 2) - (drop < 0.0).to(ACC)  # beside m, which is not counted
            kept = tl.where(drop < 0.0, (1.0 + rest) * tl.exp(drop), rest)
            rest = kept + (here + tl.sum(tl.where(d == 0.0, 0.0, e), 2))
            top = higher
    highest = tl.max(top, 1)
    if OP == "max":  # tl.max leaves NaN out
        return tl.where(tl.sum(rest, 1) > 0.0, float("nan"), -highest)
    else:
        drop = top - highest[:, None]
        first = drop == 0.0
        lanes = tl.sum(first.to(ACC), 1)
        others = tl.sum(tl.where(first, rest, (1.0 + rest) * tl.exp(drop)), 1) + (lanes - 1.0)
        others = tl.where(others == -1.0, float("nan"), others)  # no logit above −∞: no distribution
        result = log1p(others)  # −log of the largest probability
        if OP == "entropy":
            moment = tl.sum(tl.exp(drop) * (third + moved_by(drop, rest)), 1)
            result -= moment / (1.0 + others)
        elif OP == "margin":
            second = tl.where(lanes > 1.0, highest, tl.max(tl.where(first, third, top), 1))
            gap = second - highest  # p_2nd / p_1st in logarithm, of which both ends keep their digits
            result -= tl.where(gap < -1.0, log1p(-tl.exp(gap)), tl.log(-expm1(gap)))
        return result


@jit_kernel
def score_rows(
    y, out, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32,
    ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64,
    OP: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The loss of each row."""
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    result = row_losses(y, base, off, V, yn, within, OP, R, J, E, VEC, SHIFT, UNIT, ACC)
    tl.store(out + a * oa + b * ob + x * ox, result, mask=within)


@jit_kernel
def score_select_rows(
    y, out, index, positions, sources, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32, M: tl.int32,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64,
    oa: tl.int64, ob: tl.int64, ox: tl.int64, on: tl.int64,
    OP: tl.constexpr, MINIMUM: tl.constexpr, ORDER: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr,
    J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr,
    OUT_VEC: tl.constexpr, OUT_SHIFT: tl.constexpr, OUT_UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Score every view of a row, then move the best one's bits into the result, the listed entries last."""
    a, b, x, within = program_rows(rows, nb, nx, R)
    winner = tl.zeros([R], tl.int32)
    best = tl.zeros([R], ACC) + float("nan")
    for g in range(ORDER):
        base, off = vector_start(g * yg + a * ya + b * yb + x * yx, VEC, SHIFT)
        loss = row_losses(y, base, off, V, yn, within, OP, R, J, E, VEC, SHIFT, UNIT, ACC)
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
    return plan_rows(score_rows, still(1), None, "y", moving, "o", fixed, (), {}, {"OP": kind})


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
