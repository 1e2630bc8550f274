"""The part of ``cross_entropy`` where log q counts at every entry: the mean of probabilities, smoothed labels."""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005, B007  (kernels join tuples, they do not unpack them)

import triton
import triton.language as tl

from .rows import (
    at_places,
    counted,
    edges,
    entries,
    listed_sources,
    lowest,
    moved_entries,
    offsets,
    sources_block,
    store_block,
    view_at,
    view_block,
)

__all__ = ["mixture_gradients", "mixture_sums"]


@triton.jit
def mixture(chances, ORDER: tl.constexpr, ACC: tl.constexpr):
    """From the views' log-probabilities log q of their mean, and what part of the mean each view is."""
    best = tl.zeros_like(chances[0]) + lowest(ACC)
    for g in tl.static_range(ORDER):
        best = tl.maximum(best, chances[g])
    total = tl.zeros_like(best)
    for g in tl.static_range(ORDER):
        total += tl.exp(chances[g] - best)
    divisor = tl.where(total == 0.0, 1.0, total)  # where every view says 0, so are the parts
    parts = ()
    for g in tl.static_range(ORDER):
        parts = parts + (tl.exp(chances[g] - best) / divisor,)
    return best + tl.log(total * tl.full([], 1.0 / ORDER, ACC)), parts


@triton.jit
def chances_block(
    y, yg, base, off, sources, k, V, yn, tops, logs, good, ORDER: tl.constexpr, DENSE: tl.constexpr, J: tl.constexpr,
    E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The views' log-probabilities in a block."""
    chances = ()
    for g in tl.static_range(ORDER):
        at = sources + g * V if DENSE else None
        v = view_block(
            y + g * (yg * VEC), base, off, at, k, V, yn, good, None, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        chances = chances + ((v - tops[g][:, None, None]) - logs[g][:, None, None],)
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
        chances = chances + ((v - tops[g][:, None]) - logs[g][:, None],)
        read = read + (src,)
    return chances, read


@triton.jit
def mixture_sums(
    y, yg, base, off, positions, sources, skip, V, M, width, yn, tops, logs, good, ORDER: tl.constexpr,
    DENSE: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Each row's Σ log q, and Σ of each view's part in q."""
    total = tl.zeros([R, J], ACC)
    sums = ()
    for g in tl.static_range(ORDER):
        sums = sums + (tl.zeros([R, J], ACC),)
    for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
        v = entries(k, J, E, VEC)[0] - off[:, None, None]
        counts = (v >= 0) & (v < V)
        if skip is not None:
            counts = counts & counted(skip, off, k, V, width, good, J, E, VEC, SHIFT)
        chances = chances_block(
            y, yg, base, off, sources, k, V, yn, tops, logs, good, ORDER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        log_q, parts = mixture(chances, ORDER, ACC)
        total += tl.sum(tl.where(counts, log_q, 0.0), 2)
        added = ()
        for g in tl.static_range(ORDER):
            added = added + (sums[g] + tl.sum(tl.where(counts, parts[g], 0.0), 2),)
        sums = added
    total = tl.sum(total, 1)
    found = ()
    for g in tl.static_range(ORDER):
        found = found + (tl.sum(sums[g], 1),)
    if positions is not None:
        for i in range(0, M, KM):
            some = i + tl.arange(0, KM)[None, :]
            listed = some < M
            mask = good[:, None] & listed
            listed_chances, _same = chances_at(
                y, yg, base, off, yn, tops, logs, some, sources + some, M, listed, mask, ORDER, VEC, UNIT, ACC,
            )  # fmt: skip
            listed_q, listed_parts = mixture(listed_chances, ORDER, ACC)
            total += tl.sum(tl.where(mask, listed_q, 0.0), 1)
            more = ()
            for g in tl.static_range(ORDER):
                more = more + (found[g] + tl.sum(tl.where(mask, listed_parts[g], 0.0), 1),)
            found = more
    return total, found


@triton.jit
def mixture_slope(chance, part, weight, place, target, every, once, factor, good, otherwise):
    """One view's gradient: p · Σ of its shares, less the share of the entry."""
    d = tl.exp(chance) * (factor * weight) - part * (every + tl.where(place == target, once, 0.0))
    return tl.where(good, d, otherwise)


@triton.jit
def mixture_gradients(
    y, yg, base, off, grad, og, put, positions, sources, V, M, yn, on, tops, logs, weights, t, every, once, factor,
    within, good, otherwise, ORDER: tl.constexpr, DENSE: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, KM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every view's gradient where the view was read, the moved entries last."""
    blocks = tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)
    for i in range(blocks):
        k = (blocks - 1 - i) * (J * E)
        v = entries(k, J, E, VEC)[0] - off[:, None, None]
        chances = chances_block(
            y, yg, base, off, sources, k, V, yn, tops, logs, good, ORDER, DENSE, J, E, VEC, SHIFT, UNIT, ACC,
        )  # fmt: skip
        _, parts = mixture(chances, ORDER, ACC)
        for g in tl.static_range(ORDER):
            d = mixture_slope(
                chances[g], parts[g], weights[g][:, None, None], v, t[:, None, None], every, once, factor,
                good[:, None, None], otherwise[:, None, None],
            )  # fmt: skip
            into = grad + g * (og * VEC)
            if DENSE:
                src, mask = sources_block(sources + g * V, off, k, V, within, J, E, VEC)
                tl.store(into + offsets(put + off, src, on, UNIT), d.to(grad.dtype.element_ty), mask=mask)
            else:
                store_block(into, put, off, k, V, on, within, d, J, E, VEC, SHIFT, UNIT)
    if SHIFT and not DENSE:
        edge, at_edge = edges(off, V, within, VEC)
        edge_chances, _read = chances_at(
            y, yg, base, off, yn, tops, logs, edge, None, 0, at_edge, at_edge & good[:, None], ORDER, VEC, UNIT, ACC,
        )  # fmt: skip
        edge_parts = mixture(edge_chances, ORDER, ACC)[1]
        for g in tl.static_range(ORDER):
            edge_d = mixture_slope(
                edge_chances[g], edge_parts[g], weights[g][:, None], edge, t[:, None], every, once, factor,
                good[:, None], otherwise[:, None],
            )  # fmt: skip
            at = at_places(put, off, edge, on, UNIT)
            tl.store(grad + g * (og * VEC) + at, edge_d.to(grad.dtype.element_ty), mask=at_edge)
    if positions is not None:
        tl.debug_barrier()
        for i in range(0, M, KM):
            some, listed, wanted, moved = moved_entries(positions, i, M, within, KM)
            moved_chances, read = chances_at(
                y, yg, base, off, yn, tops, logs, moved, sources + some, M, listed, wanted & good[:, None], ORDER, VEC,
                UNIT, ACC,
            )  # fmt: skip
            moved_parts = mixture(moved_chances, ORDER, ACC)[1]
            for g in tl.static_range(ORDER):
                moved_d = mixture_slope(
                    moved_chances[g], moved_parts[g], weights[g][:, None], moved, t[:, None], every, once, factor,
                    good[:, None], otherwise[:, None],
                )  # fmt: skip
                moved_at = at_places(put, off, read[g], on, UNIT)
                tl.store(grad + g * (og * VEC) + moved_at, moved_d.to(grad.dtype.element_ty), mask=wanted)
