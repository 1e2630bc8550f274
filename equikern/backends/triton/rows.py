"""What the kernels with a softmax share: rows of logits, read in whole vectors wherever they start.

A program takes one long row, or several short ones. Its tile is (rows, lanes, entries): a lane reads 16 bytes at a
time and keeps a largest logit and a sum of exponentials of its own for every view, joined once at the row's end. So an
entry costs one exponential, a vector one more, and the row one exchange between threads.

Rows of 50,257 two-byte entries start anywhere within 16 bytes. They are read from the vector that their first entry
lies in to the one that their last does; what these two hold of the neighbouring rows does not count. Vectors that lie
wholly within the row are written as such, the few entries before and behind them one by one. That works where the rows
of all tensors and views start equally far into a vector, as those of contiguous tensors do if there are a multiple of 8
rows; elsewhere single entries are moved. Where a tensor does not end with a vector, ``SHIFT`` is 2 instead of True:
the last program reads the last block of its rows entry by entry, so that nothing beyond the tensor is read.

The second pass over a row goes backwards, so that it meets first what the cache saw last: the rows in flight may be
more than the L2 cache holds.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005, B007  (kernels join tuples, they do not unpack them)

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from ...views import Views
from . import launch
from .launch import Plan, accumulator, ceil_div, make_plan, next_power_of_two
from .layout import Known, Operand
from .tables import TABLE, listed_count, skip_width
from .tiles import Given, permuted_loops

__all__ = ["described", "plan_rows"]

THREADS = ((1 << 11, 128), (1 << 15, 256), (1 << 17, 512))  # of a program, by the bytes of a row up to which
MOST_THREADS = 1024  # where the views of a row are so long that few rows at a time may be in flight
SHIFTED = 1024  # entries: shorter rows that are no multiple of a vector are moved entry by entry
LISTED = 64  # moved entries at a time


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
def load_block(
    ptr, base, off, k, V, sn, within, OTHER: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr,
    SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A block of every row, OTHER outside of it; anything at all where OTHER is None, which spares the comparisons."""
    c, first = entries(k, J, E, VEC)
    mask = within[:, None, None] & (first < V + off[:, None, None])
    at = ptr + offsets(base, c, sn, UNIT)
    if SHIFT == 2:
        if (k + J * E >= V) & (tl.program_id(0) == tl.num_programs(0) - 1):
            inside = within[:, None, None] & ((c - off[:, None, None]).to(tl.uint32) < V.to(tl.uint32))
            v = tl.load(at, mask=inside, other=0.0 if OTHER is None else OTHER).to(ACC)
        else:
            v = tl.load(at, mask=mask, other=0.0 if OTHER is None else OTHER).to(ACC)
    else:
        v = tl.load(at, mask=mask, other=0.0 if OTHER is None else OTHER).to(ACC)
    if SHIFT and OTHER is not None:
        v = tl.where((c - off[:, None, None]).to(tl.uint32) < V.to(tl.uint32), v, OTHER)
    return v


@triton.jit
def sources_block(
    sources, off, k, V, within, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The entries of the row that a block of a view consists of."""
    v = entries(k, J, E, VEC)[0] - off[:, None, None]
    mask = within[:, None, None] & (v >= 0) & (v < V)
    return tl.load(sources + v, mask=mask, other=0), mask


@triton.jit
def store_block(
    ptr, base, off, k, V, sn, within, v, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Write a block but for the vectors that the row shares with its neighbours, see ``edges``."""
    c, first = entries(k, J, E, VEC)
    mask = within[:, None, None] & (first + (VEC if SHIFT else 1) <= V + off[:, None, None])
    if SHIFT:
        mask = mask & (first >= off[:, None, None])
    tl.store(ptr + offsets(base, c, sn, UNIT), v.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def edges(off, V, within, VEC: tl.constexpr):
    """Positions within the row of what ``store_block`` leaves out: at most VEC − 1 at either end."""
    i = tl.arange(0, 2 * VEC)[None, :]
    head = (VEC - off) % VEC
    tail = (V + off) % VEC
    place = tl.where(i < VEC, i, V - 2 * VEC + i)
    left_out = ((i < VEC) & (i < head[:, None])) | ((i >= VEC) & (place >= V - tail[:, None]))
    return place, within[:, None] & left_out


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
        src, mask = sources_block(sources, off, k, V, within, J, E, VEC)
        return tl.load(y + offsets(base + off, src, sn, UNIT), mask=mask, other=0.0 if OTHER is None else OTHER).to(ACC)
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
def lowest(ACC: tl.constexpr):
    """The least finite number: a largest logit to start from, of which none has to ask whether it is −∞."""
    if ACC == tl.float64:  # noqa: SIM300
        return tl.full([], -1.7976931348623157e308, ACC)
    else:
        return tl.full([], -3.4028234663852886e38, ACC)


@triton.jit
def softened(v, top, total):
    """A lane's largest logit and sum of exponentials after one more vector."""
    higher = tl.maximum(top, tl.max(v, 2))
    return higher, total * tl.exp(top - higher) + tl.sum(tl.exp(v - higher[:, :, None]), 2)


@triton.jit
def joined(top, total):
    """Those of the row from those of its lanes."""
    highest = tl.max(top, 1)
    return highest, tl.sum(total * tl.exp(top - highest[:, None]), 1)


@triton.jit
def statistics(
    y, yg, base, off, V, sn, within, ORDER: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    VEC: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per view, every row's largest logit and its sum of exponentials of the differences to it.

    All views are read side by side, as the second pass reads them.
    """
    tops = ()
    totals = ()
    for g in tl.static_range(ORDER):
        tops = tops + (tl.zeros([R, J], ACC) + lowest(ACC),)
        totals = totals + (tl.zeros([R, J], ACC),)
    for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
        higher = ()
        sums = ()
        for g in tl.static_range(ORDER):
            v = load_block(
                y + g * (yg * VEC), base, off, k, V, sn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC,
            )  # fmt: skip
            top, total = softened(v, tops[g], totals[g])
            higher = higher + (top,)
            sums = sums + (total,)
        tops = higher
        totals = sums
    highest = ()
    sums = ()
    for g in tl.static_range(ORDER):
        top, total = joined(tops[g], totals[g])
        highest = highest + (top,)
        sums = sums + (total,)
    return highest, sums


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
) -> Plan | None:
    """Plan a kernel over rows of logits, or None if the tensors must be copied first.

    Args:
        names: one letter per tensor of ``moving``, (…, V); its strides are the scalars ``<letter>g``, ``<letter>a`` …
        fixed_names: likewise for ``fixed``, which have one entry a row.
        others: the pointers behind them: those of ``described``, say.
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
    if shift and any(_end(o) % vec for o, _ in moving if o is not None):
        sizes = loops.a, loops.b, loops.x
        shared = (size > 1 and step < vec for row in loops.moving for size, step in zip(sizes, row[1:4], strict=True))
        vec, shift = (1, False) if any(shared) else (vec, 2)  # rows that share memory end where it ends, too
    e = 16 // itemsize
    order, listed = views.order, listed_count(views, table)
    threads = MOST_THREADS
    if order * v * itemsize <= THREADS[-1][0] * 2:
        threads = next((count for most, count in THREADS if v * itemsize <= most), THREADS[-1][1])
    j = min(next_power_of_two(ceil_div(v, e)), threads)
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
            "KM": min(LISTED, next_power_of_two(listed)),
            "ACC": accumulator(first.dtype),
        },
        max(1, min(r * j, threads) // launch.LANES),  # and no other launch is tried: sums follow the block
    )


def _end(o: Operand) -> int:
    """How many entries behind the first one the memory of a tensor ends."""
    return 1 + sum((size - 1) * step for size, step in zip(o.shape, o.stride, strict=True))


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
