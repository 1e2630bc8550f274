"""The part of ``cross_entropy`` where log q counts at every entry: the mean of probabilities, smoothed labels."""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

import triton
import triton.language as tl

from .exponentials import log_chance, lowest, natural, raised
from .rows import (
    at_places,
    block_count,
    counted,
    edges,
    entries,
    inside,
    listed_sources,
    moved_entries,
    offsets,
    sources_block,
    store_block,
    unmoved,
    view_at,
    view_block,
)

__all__ = ["mixture_gradients", "mixture_sums"]


@triton.jit
def mixture(chances, ORDER: tl.constexpr, ACC: tl.constexpr):
    """From the views' log-probabilities the largest, every view's probability in it, and their sum."""
    best = tl.zeros_like(chances[0]) + lowest(ACC)
    for g in tl.static_range(ORDER):
        best = tl.maximum(best, chances[g])
    total = tl.zeros_like(best)
    parts = ()
    for g in tl.static_range(ORDER):
        part = raised(chances[g] - best)
        total += part
        parts = parts + (part,)
    return best, parts, total


@triton.jit
def reciprocal(total):
    """What parts are multiplied by, to be parts of the sum; where every view says 0, so are the parts."""
    return 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def times(a, b):
    """A product, for ``tl.reduce``."""
    return a * b


@triton.jit
def chances_block(
    y, yg, base, off, sources, k, V, yn, tops, logs, good, OTHER: tl.constexpr, ORDER: tl.constexpr,
    DENSE: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The views' log-probabilities in a block."""
    chances = ()
    for g in tl.static_range(ORDER):
        at = sources + g * V if DENSE else None
        v = view_block(
            y + g * (yg * VEC), base, off, at, k, V, yn, good, OTHER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        chances = chances + (log_chance(v, tops[g][:, None, None], logs[g][:, None, None]),)
    return chances


@triton.jit
def chances_at(
    y, yg, base, off, yn, tops, logs, place, sources, stride, listed, mask, ORDER: tl.constexpr, VEC: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same at some positions, and where each view reads them."""
    chances = ()
    read = ()
    for g in tl.static_range(ORDER):
        at = sources + g * stride if sources is not None else None
        src = listed_sources(at, place, listed)
        v = view_at(y + g * (yg * VEC), base, off, yn, src, mask, UNIT, ACC)
        chances = chances + (log_chance(v, tops[g][:, None], logs[g][:, None]),)
        read = read + (src,)
    return chances, read


@triton.jit
def added(sums, chances, counts, ORDER: tl.constexpr, AXIS: tl.constexpr, ACC: tl.constexpr):
    """Σ log(|G| · q) over some entries, and Σ of each view's part in q, added to the sums so far.

    The logarithm is taken of their product: of at most |G|⁸, where each factor is between 1 and |G|.
    """
    best, parts, total = mixture(chances, ORDER, ACC)
    logs = tl.log(tl.reduce(tl.where(counts, total, 1.0), AXIS, times))
    found = (sums[0] + (natural(tl.sum(tl.where(counts, best, 0.0), AXIS)) + logs),)
    inverse = reciprocal(total)
    for g in tl.static_range(ORDER):
        found = found + (sums[g + 1] + tl.sum(tl.where(counts, parts[g] * inverse, 0.0), AXIS),)
    return found


@triton.jit
def added_at(
    sums, y, yg, base, off, yn, tops, logs, place, sources, stride, listed, counts, ORDER: tl.constexpr,
    VEC: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same of some positions of every row."""
    chances, _read = chances_at(
        y, yg, base, off, yn, tops, logs, place, sources, stride, listed, counts, ORDER, VEC, UNIT, ACC,
    )  # fmt: skip
    alone = ()
    for g in tl.static_range(ORDER):
        alone = alone + (chances[g][:, :, None],)
    zeros = ()
    for _g in tl.static_range(ORDER + 1):
        zeros = zeros + (tl.zeros_like(chances[0]),)
    more = added(zeros, alone, counts[:, :, None], ORDER, 2, ACC)
    found = ()
    for g in tl.static_range(ORDER + 1):
        found = found + (sums[g] + tl.sum(more[g], 1),)
    return found


@triton.jit
def mixture_sums(
    y, yg, base, off, positions, sources, skip, V, M, width, yn, tops, logs, good, ORDER: tl.constexpr,
    DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Each row's Σ log q, and Σ of each view's part in q."""
    lanes = ()
    for _g in tl.static_range(ORDER + 1):
        lanes = lanes + (tl.zeros([R, J], ACC),)
    for i in range(block_count(V, J, E, VEC, SHIFT, WHOLE)):
        k = i * (J * E)
        counts = inside(entries(k, J, E, VEC)[1], off, V, good, VEC, SHIFT)
        if skip is not None:
            counts = counts & counted(skip, off, k, V, width, good, J, E, VEC, SHIFT)
        chances = chances_block(
            y, yg, base, off, sources, k, V, yn, tops, logs, good, float("-inf") if WHOLE else 0.0, ORDER, DENSE, J,
            E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        lanes = added(lanes, chances, counts, ORDER, 2, ACC)
    sums = ()
    for g in tl.static_range(ORDER + 1):
        sums = sums + (tl.sum(lanes[g], 1),)
    if SHIFT:
        edge, at_edge = edges(off, V, good, VEC)
        table = sources + edge if DENSE else None
        sums = added_at(
            sums, y, yg, base, off, yn, tops, logs, edge, table, V, at_edge, unmoved(skip, edge, at_edge), ORDER, VEC,
            UNIT, ACC,
        )  # fmt: skip
    if positions is not None:
        for i in range(0, M, KM):
            some = i + tl.arange(0, KM)[None, :]
            listed = some < M
            sums = added_at(
                sums, y, yg, base, off, yn, tops, logs, some, sources + some, M, listed, good[:, None] & listed, ORDER,
                VEC, UNIT, ACC,
            )  # fmt: skip
    found = ()
    for g in tl.static_range(ORDER):
        found = found + (sums[g + 1],)
    return sums[0] - V * tl.log(tl.full([], 1.0 * ORDER, ACC)), found


@triton.jit
def mixture_slopes(chances, weights, every, factor, ORDER: tl.constexpr, DIMS: tl.constexpr, ACC: tl.constexpr):
    """The views' gradients: p · Σ of its shares, less the share of the entry, but for the target's."""
    best, parts, total = mixture(chances, ORDER, ACC)
    largest = raised(best)
    lost = reciprocal(total) * (every[:, None, None] if DIMS == 3 else every[:, None])
    slopes = ()
    for g in tl.static_range(ORDER):
        weight = factor * weights[g]
        weight = weight[:, None, None] if DIMS == 3 else weight[:, None]
        slopes = slopes + (parts[g] * tl.fma(largest, weight, -lost),)
    return slopes


@triton.jit
def mixture_gradients(
    y, yg, base, off, grad, og, put, positions, sources, V, M, yn, on, tops, logs, weights, t, shares, read, every,
    once, factor, within, good, otherwise, ORDER: tl.constexpr, DENSE: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr, KM: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Every view's gradient where the view was read, the moved entries last, and then the target's."""
    blocks = block_count(V, J, E, VEC, SHIFT, WHOLE)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        chances = chances_block(
            y, yg, base, off, sources, k, V, yn, tops, logs, good, float("-inf") if WHOLE else 0.0, ORDER, DENSE, J,
            E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        slopes = mixture_slopes(chances, weights, every, factor, ORDER, 3, ACC)
        for g in tl.static_range(ORDER):
            d = tl.where(good[:, None, None], slopes[g], otherwise[:, None, None])
            into = grad + g * (og * VEC)
            if DENSE:
                src, mask = sources_block(sources + g * V, off, k, V, within, J, E, VEC, SHIFT)
                tl.store(into + offsets(put + off, src, on, UNIT), d.to(grad.dtype.element_ty), mask=mask)
            else:
                store_block(into, put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
    if SHIFT:
        edge, at_edge = edges(off, V, within, VEC)
        edge_chances, edge_read = chances_at(
            y, yg, base, off, yn, tops, logs, edge, sources + edge if DENSE else None, V, at_edge,
            at_edge & good[:, None], ORDER, VEC, UNIT, ACC,
        )  # fmt: skip
        edge_slopes = mixture_slopes(edge_chances, weights, every, factor, ORDER, 2, ACC)
        for g in tl.static_range(ORDER):
            edge_d = tl.where(good[:, None], edge_slopes[g], otherwise[:, None])
            at = at_places(put, off, edge_read[g], on, UNIT)
            tl.store(grad + g * (og * VEC) + at, edge_d.to(grad.dtype.element_ty), mask=at_edge)
    tl.debug_barrier()
    if positions is not None:
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            moved_chances, moved_read = chances_at(
                y, yg, base, off, yn, tops, logs, moved, sources + some, M, listed, wanted & good[:, None], ORDER, VEC,
                UNIT, ACC,
            )  # fmt: skip
            moved_slopes = mixture_slopes(moved_chances, weights, every, factor, ORDER, 2, ACC)
            for g in tl.static_range(ORDER):
                moved_d = tl.where(good[:, None], moved_slopes[g], otherwise[:, None])
                moved_at = at_places(put, off, moved_read[g], on, UNIT)
                # The target's is written below, by other threads.
                others = wanted & ((moved != t[:, None]) | (good == 0)[:, None])
                tl.store(grad + g * (og * VEC) + moved_at, moved_d.to(grad.dtype.element_ty), mask=others)
    t_chances = ()
    for g in tl.static_range(ORDER):
        t_v = view_at(y + g * (yg * VEC), base, off, yn, read[g][:, None], good[:, None], UNIT, ACC)
        t_chances = t_chances + (log_chance(t_v, tops[g][:, None], logs[g][:, None]),)
    t_slopes = mixture_slopes(t_chances, weights, every, factor, ORDER, 2, ACC)
    for g in tl.static_range(ORDER):
        t_d = t_slopes[g] - (once * shares[g])[:, None]
        t_at = at_places(put, off, read[g][:, None], on, UNIT)
        tl.store(grad + g * (og * VEC) + t_at, t_d.to(grad.dtype.element_ty), mask=good[:, None])
