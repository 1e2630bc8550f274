"""What the kernels with a softmax share: rows of logits, read in whole vectors wherever they start.

A program takes one long row, or several short ones. Its tile is (rows, lanes, entries): a lane reads 16 bytes at a
time and keeps a largest logit and a sum of exponentials of its own for every view, joined once at the row's end. So an
entry costs one exponential, a vector one more, and the row one exchange between threads.

Rows of 50,257 two-byte entries start anywhere within 16 bytes. Vectors that lie wholly within the row are moved as
such, the few entries before and behind them one by one. That works where the rows of all tensors and views start
equally far into a vector, as those of contiguous tensors do if there are a multiple of 8 rows; elsewhere single entries
are moved.

A row whose views fit into the registers of its program (``WHOLE``) is one block: what a second pass over it reads and
computes again, the compiler takes from the first, as long as nothing is stored in between. Of longer rows the second
pass goes backwards, so that it meets first what the cache saw last: those in flight may be more than L2 holds.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ...views import Views
from . import launch
from .exponentials import lowest, power, relative, scale_of
from .launch import Plan, accumulator, ceil_div, make_plan, next_power_of_two
from .layout import Known, Operand
from .tables import TABLE, listed_count, skip_width
from .tiles import Given, permuted_loops

__all__ = ["described", "plan_rows"]

THREADS = ((1 << 11, 128), (1 << 15, 256), (1 << 17, 512))  # of a program, by the bytes of a row up to which
MOST_THREADS = 1024  # where the views of a row are so long that few rows at a time may be in flight
SHIFTED = 1024  # entries: shorter rows that are no multiple of a vector are moved entry by entry
LISTED = 64  # moved entries at a time
AGAIN = 16  # vectors of a lane at a time that are read again
LIVE = 32  # registers of a thread, of the 64 that each of 1,024 has, for the entries that it has read
KEPT = 64  # registers of a thread that hold the logits of its rows


@triton.jit
def program_rows(rows, nb, nx, R: tl.constexpr):
    """This program's rows as (a, b, x), and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    q = row // nx
    return q // nb, q % nb, row % nx, row < rows


@triton.jit
def row_start(a, b, x, sa, sb, sx, VEC: tl.constexpr, SHIFT: tl.constexpr):
    """Offset of the vectors that hold each row, and how far into the first of them it starts."""
    return vector_start(a * sa + b * sb + x * sx, VEC, SHIFT)


@triton.jit
def vector_start(start, VEC: tl.constexpr, SHIFT: tl.constexpr):
    """The same from where rows start, counted in entries where they may lie anywhere, else in vectors."""
    if SHIFT:
        return start // VEC * VEC, (start % VEC).to(tl.int32)
    else:
        return start * VEC, (start * 0).to(tl.int32)


@triton.jit
def entries(k, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr):
    """The entries of a block that starts at k, counted from its first vector, and where their vectors start."""
    if VEC > 1:
        first = k + tl.arange(0, J)[None, :, None] * VEC
        return first + tl.arange(0, E)[None, None, :], first
    else:
        c = k + tl.arange(0, J)[None, :, None] + tl.arange(0, E)[None, None, :] * J
        return c, c


@triton.jit
def offsets(base, c, sn, UNIT: tl.constexpr):
    """Where entries c of each row lie."""
    if UNIT:
        return base[:, None, None] + c
    else:
        return base[:, None, None] + c.to(tl.int64) * sn


@triton.jit
def inside(first, off, V, within, VEC: tl.constexpr, SHIFT: tl.constexpr):
    """Which vectors belong to the row alone, by where they start."""
    if SHIFT:
        return within[:, None, None] & ((first - off[:, None, None]).to(tl.uint32) <= (V - VEC).to(tl.uint32))
    else:
        return within[:, None, None] & (first < V)


@triton.jit
def load_block(
    ptr, base, off, k, V, sn, within, OTHER: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr,
    SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A block of every row but for what ``edges`` lists, OTHER in its place and outside."""
    c, first = entries(k, J, E, VEC)
    mask = inside(first, off, V, within, VEC, SHIFT)
    return tl.load(ptr + offsets(base, c, sn, UNIT), mask=mask, other=OTHER).to(ACC)


@triton.jit
def sources_block(
    sources, off, k, V, within, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The entries of the row that a block of a view consists of."""
    c, first = entries(k, J, E, VEC)
    mask = inside(first, off, V, within, VEC, SHIFT)
    return tl.load(sources + (c - off[:, None, None]), mask=mask, other=0), mask


@triton.jit
def store_block(
    ptr, base, off, k, V, sn, within, v, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Write a block but for the vectors that the row shares with its neighbours, see ``edges``."""
    c, first = entries(k, J, E, VEC)
    mask = inside(first, off, V, within, VEC, SHIFT)
    tl.store(ptr + offsets(base, c, sn, UNIT), v.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def edges(off, V, within, VEC: tl.constexpr):
    """Positions within the row of what lies in no whole vector, and which there are: at most VEC − 1 at either end."""
    return edge(tl.arange(0, 2 * VEC)[None, :], off, V, within, VEC)


@triton.jit
def edge(i, off, V, within, VEC: tl.constexpr):
    """The i-th of them; there is none from 2 · VEC on."""
    head = (VEC - off[:, None]) % VEC
    tail = (V + off[:, None]) % VEC
    place = tl.where(i < VEC, i, V - 2 * VEC + i)
    left_out = ((i < VEC) & (i < head)) | ((i >= VEC) & (place >= V - tail) & (place < V))
    return place, within[:, None] & left_out


@triton.jit
def unmoved(skip, place, mask):
    """Which of some positions no view moves."""
    if skip is not None:
        return mask & (tl.load(skip + place, mask=mask, other=1) == 0)
    else:
        return mask


@triton.jit
def lane_edge_places(off, V, within, J: tl.constexpr, VEC: tl.constexpr):
    """They again, one of the first lanes for each."""
    return edge(tl.arange(0, J)[None, :], off, V, within, VEC)


@triton.jit
def lane_edges(
    y, base, off, V, yn, within, R: tl.constexpr, J: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Their logits, −∞ elsewhere."""
    if SHIFT:
        place, mask = lane_edge_places(off, V, within, J, VEC)
        return tl.load(y + at_places(base, off, place, yn, UNIT), mask=mask, other=float("-inf")).to(ACC)
    else:
        return tl.full([R, J], float("-inf"), ACC)


@triton.jit
def at_places(base, off, place, sn, UNIT: tl.constexpr):
    """Where positions (rows, count) of each row lie."""
    return (base + off)[:, None] + place.to(tl.int64) * (1 if UNIT else sn)


@triton.jit
def counted(
    skip, off, k, V, width, within, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Which entries of a block no view moves. The table has a row for each start within a vector: wide loads again."""
    c, first = entries(k, J, E, VEC)
    mask = within[:, None, None] & (first < V + off[:, None, None])
    if SHIFT:
        return tl.load(skip + (off * width * 16)[:, None, None] + c, mask=mask, other=1) == 0
    else:
        return tl.load(skip + c, mask=mask, other=1) == 0


@triton.jit
def view_block(
    y, base, off, sources, k, V, sn, within, OTHER: tl.constexpr, DENSE: tl.constexpr, J: tl.constexpr,
    E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A block of a view of every row, as it is where few entries move."""
    if DENSE:
        src, mask = sources_block(sources, off, k, V, within, J, E, VEC, SHIFT)
        return tl.load(y + offsets(base + off, src, sn, UNIT), mask=mask, other=OTHER).to(ACC)
    else:
        return load_block(y, base, off, k, V, sn, within, OTHER, J, E, VEC, SHIFT, UNIT, ACC)


@triton.jit
def view_at(y, base, off, yn, src, mask, UNIT: tl.constexpr, ACC: tl.constexpr):
    """Some entries of every row."""
    return tl.load(y + at_places(base, off, src, yn, UNIT), mask=mask, other=0).to(ACC)


@triton.jit
def listed_sources(sources, place, listed):
    """Where a view reads some positions, sources being where they begin in its table; None if nothing moves."""
    if sources is not None:
        return tl.load(sources, mask=listed, other=0)
    else:
        return place


@triton.jit
def moved_entries(positions, i, M, within, KM: tl.constexpr):
    """Entries i … i + KM − 1 of the list: their numbers, which there are, which count, and what positions they have."""
    some = i + tl.arange(0, KM)[None, :]
    listed = some < M
    return some, listed, within[:, None] & listed, tl.load(positions + some, mask=listed, other=0)


@triton.jit
def started(v, ACC: tl.constexpr):
    """A lane's largest logit and sum of exponentials of its first entry."""
    top = tl.maximum(v, lowest(ACC))
    return top, power(v - top)


@triton.jit
def softened(v, top, total):
    """The same after one more vector."""
    higher = tl.maximum(top, tl.max(v, 2))
    return higher, total * power(top - higher) + tl.sum(power(v - higher[:, :, None]), 2)


@triton.jit
def joined(top, total):
    """Those of the row from those of its lanes."""
    highest = tl.max(top, 1)
    return highest, tl.sum(total * power(top - highest[:, None]), 1)


@triton.jit
def statistics(
    y, yg, base, off, sources, V, sn, within, ORDER: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr,
    J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Per view, every row's largest logit and its sum of exponentials of the differences to it.

    All views are read side by side, as the second pass reads them.
    """
    highest = ()
    sums = ()
    if WHOLE:
        for g in tl.static_range(ORDER):
            at = sources + g * V if DENSE else None
            whole_v = view_block(
                y + g * (yg * VEC), base, off, at, 0, V, sn, within, float("-inf"), DENSE, J, E, VEC, SHIFT, UNIT, ACC,
            )  # fmt: skip
            largest = tl.maximum(tl.max(tl.max(whole_v, 2), 1), lowest(ACC))
            unit, shift, factor = scale_of(largest)
            e = relative(whole_v, unit[:, None, None], shift[:, None, None])
            highest = highest + (largest,)
            sums = sums + (tl.sum(tl.sum(e, 2), 1) * factor,)
    else:
        tops = ()
        totals = ()
        for g in tl.static_range(ORDER):
            edge = lane_edges(y + g * (yg * VEC), base, off, V, sn, within, R, J, VEC, SHIFT, UNIT, ACC)
            top, total = started(edge, ACC)
            tops = tops + (top,)
            totals = totals + (total,)
        for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
            read = ()
            for g in tl.static_range(ORDER):
                v = load_block(
                    y + g * (yg * VEC), base, off, k, V, sn, within, float("-inf"), J, E, VEC, SHIFT, UNIT,
                    y.dtype.element_ty,
                )  # fmt: skip
                read = read + (v,)
            higher = ()
            more = ()
            for g in tl.static_range(ORDER):
                top, total = softened(read[g].to(ACC), tops[g], totals[g])
                higher = higher + (top,)
                more = more + (total,)
            tops = higher
            totals = more
        for g in tl.static_range(ORDER):
            top, total = joined(tops[g], totals[g])
            highest = highest + (top,)
            sums = sums + (total,)
    return highest, sums


@triton.jit
def block_count(V, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr, WHOLE: tl.constexpr):
    """How many blocks a row has."""
    if WHOLE:
        return 1
    else:
        return tl.cdiv(V + (VEC - 1 if SHIFT else 0), J * E)


def plan_rows(
    kernel: Any,
    views: Views,
    table: Known,
    names: str,
    moving: Sequence[Given],
    fixed_names: str,
    fixed: Sequence[Given],
    others: Sequence[Known],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, Any],
    passes: int = 2,
    live: int = 1,
) -> Plan | None:
    """Plan a kernel over rows of logits, or None if the tensors must be copied first.

    Args:
        names: one letter per tensor of ``moving``, (…, V); its strides are the scalars ``<letter>g``, ``<letter>a`` …
        fixed_names: likewise for ``fixed``, which have one entry a row.
        others: the pointers behind them: those of ``described``, say.
        passes: over long rows. With one, few threads that read much each: nothing is to stay in the cache.
        live: how many numbers a thread keeps of each entry that it has read.
    """
    loops = permuted_loops(-1, moving, fixed, None)
    if loops is None:
        return None
    rows, v = loops.a * loops.b * loops.x, loops.n
    first = moving[0][0]
    assert first is not None
    itemsize = first.dtype.itemsize
    unit = all(s[4] == 1 for s in loops.moving) or v == 1
    vec, shift = _vectors([o for o, _ in moving if o is not None], loops.moving, v) if unit else (1, False)
    e = 16 // itemsize
    order, listed = views.order, listed_count(views, table)
    wide = 2 if first.dtype == torch.float64 else 1  # registers of a value
    threads = MOST_THREADS
    crowded = order * e * wide * live > LIVE
    if passes == 1 or crowded or order * v * itemsize <= THREADS[-1][0] * 2:
        threads = next((count for most, count in THREADS if v * itemsize <= most), THREADS[-1][1])
    if passes == 1:
        threads = max(THREADS[0][1], threads // 2)
    j = next_power_of_two(ceil_div(v, e))
    full = j <= threads or 5 * v >= 4 * j * e
    once = not shift and full and order * j * e * wide <= KEPT * threads
    if once:  # in few threads, which have less to exchange
        threads = max(64, min(threads, next_power_of_two(order * j * e * wide * 2 // KEPT)))
    else:
        j = min(j, threads)
    r = max(1, min(next_power_of_two(rows), threads // j))
    scaled = [(s[0] // vec, *(k if shift else k // vec for k in s[1:4]), s[4]) for s in loops.moving]
    values: dict[str, int | float] = {
        "rows": rows,
        "nb": loops.b,
        "nx": loops.x,
        "V": v,
        "M": listed,
        **scalars,
        **launch.strides(names, "gabxn", scaled),
        **launch.strides(fixed_names, "gabx", loops.fixed),
    }
    if "width" in kernel.arg_names:
        values["width"] = skip_width(v) // 16  # whose rows are therefore known to be aligned
    return make_plan(
        kernel,
        ceil_div(rows, r),
        [*(o for o, _ in moving), *(o for o, _ in fixed), *others],
        values,
        {
            **constants,
            "ORDER": order,
            "DENSE": dense(views, table),
            "R": r,
            "J": j,
            "E": e,
            "VEC": vec,
            "SHIFT": shift,
            "UNIT": unit,
            "WHOLE": once,
            **({"NEAR": next_power_of_two(min(AGAIN, ceil_div(v, j * e)))} if "NEAR" in kernel.arg_names else {}),
            "KM": min(LISTED, next_power_of_two(listed)),
            "ACC": accumulator(first.dtype),
        },
        max(1, min(r * j, threads) // launch.LANES),  # and no other launch is tried: sums follow the block
    )


def _vectors(operands: Sequence[Operand], strides: Sequence[Sequence[int]], v: int) -> tuple[int, int]:
    """How many entries an access moves, and whether rows start within a vector."""
    vec = 16 // operands[0].dtype.itemsize
    alike = all((s - t) % vec == 0 for row in strides for s, t in zip(row[1:4], strides[0][1:4], strict=True))
    if not alike or not all(o.aligned for o in operands) or any(row[0] % vec for row in strides):
        return 1, False
    if any(s % vec for s in strides[0][1:4]) or v % vec:
        return (vec, True) if v >= SHIFTED else (1, False)
    return vec, False


def dense(views: Views, table: Known) -> bool:
    """Whether a view's entries are all gathered from a list of sources."""
    return table is not None and table.shape[1] == views.size


def described(views: Views, table: Known) -> tuple[Known, Known]:
    """The operands of positions and sources that ``tables.lists`` gives."""
    return TABLE if listed_count(views, table) else None, None if table is None else TABLE
