"""Launch plans: which kernel, with which constants, on which grid: by a rule, and in tuned mode by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from ..tuning import RULE, Choice, is_tuned
from . import tune
from .compat import interpreting, launch
from .layout import Known, Layout, dense_like, loops
from .plan import Plan

__all__ = [
    "Plan",
    "accumulator",
    "ceil_div",
    "column_block",
    "forms",
    "gather_block",
    "make_plan",
    "next_power_of_two",
    "on_copies",
    "plan_gather",
    "plan_tiles",
    "run",
    "run_dots",
    "strides",
    "tile_block",
    "times_two",
    "use_tiles",
    "vector_length",
    "view_sizes",
    "warps",
]

# The numbers that tune: a program handles ELEMENTS values of one view: 16 bytes a thread at 128 threads of bf16.
ELEMENTS = {1: 4096, 2: 1024, 4: 1024, 8: 1024}  # by bytes per value
SIDE = {1: 64, 2: 32, 4: 32, 8: 32}  # of the square tiles that transposing views need
MOST_WARPS = 8
LANES = 64 if torch.version.hip else 32  # threads of a warp; CDNA's wavefronts are twice as wide
SMALL_PLANE = 256  # up to here a tile is mostly padding, and a plane fits in a few cache lines
ODD_PLANE = 2048  # up to here tiles pad planes whose rows are no vectors by half, and a few programs read one whole
FLAT = 256  # values per program where each is addressed on its own: two a thread
# Up to here the order of the group changes no launch: views are taken one after another, and registers leave room for
# about half the warps. Beyond, one value a thread: compiled for sm_90 that raises the occupancy of dot_points from 31 %
# to 50 % for 16 views of 7×7 planes, and from 19 % to 38 % for the cube's 48.
FEW_VIEWS = 8
# Of single points a thread takes as many as keep so many registers, in which the loads of all views wait, or so many.
WAITING = 32
MOST_POINTS = 8
VECTORS = 4  # that a thread of pixels with their channels has in registers, of all views together
CUBE = 8  # the side of cubes in which volumes are walked through: see ``device.unravel_cubes``
THREADS = 128  # of a program that does, twice as many beyond small planes: then it reads most of one

LARGE = 2**31  # offsets from here on are 64 bits wide
MOST_ROWS = 2**30  # and row numbers from here on: see ``device.quotient``

_PROGRAMS = 2**31 - 1  # grid axis 0; axes 1 and 2 stop at 65,535
_VECTOR_BYTES = 16


def make_plan(
    kernel: Any,
    programs: int,
    operands: Sequence[Known],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, Any],
    num_warps: int,
    variant: Callable[[Choice], Plan] | None = None,
) -> Plan:
    """Order a kernel's scalars as its signature does: pointers, scalars, constants."""
    if programs > _PROGRAMS:
        raise ValueError(f"expected at most {_PROGRAMS} blocks of work in one call, got {programs}; split the batch")
    names = kernel.arg_names[len(operands) :]
    return Plan(
        kernel=kernel,
        grid=(programs,),
        pointers=tuple(o and o.dtype for o in operands),
        aligned=tuple(o is not None and o.aligned for o in operands),
        scalars=tuple(scalars[name] for name in names if name not in constants),
        constants={name: constants[name] for name in names if name in constants},
        num_warps=num_warps,
        variant=variant,
    )


def strides(names: str, axes: str, rows: Sequence[Sequence[int]]) -> dict[str, int]:
    """Each tensor's strides as a kernel's scalars: its letter and the axis'."""
    return {
        f"{name}{axis}": step
        for name, row in zip(names, rows, strict=True)
        for axis, step in zip(axes, row, strict=True)
    }


def run(plan: Plan, first: Tensor, *others: Maybe) -> None:
    """Launch on the device the tensors are on, in its current stream."""
    device = first.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(plan, device.index, (first, *others))
    else:
        _launch(plan, device.index or 0, (first, *others))


def run_dots(plan: Plan, units: int, dots: Tensor, behind: Sequence[Maybe], first: Tensor, *others: Maybe) -> None:
    """Run a kernel that cuts every dot product into so many parts, which are added in a fixed order.

    ``behind``: the tensors that it takes behind the dots.
    """
    partial = dots if units == 1 else dots.new_empty((*dots.shape, units))
    run(plan, first, *others, partial, *behind)
    if units > 1:
        torch.sum(partial, -1, out=dots)


def on_copies(call: Callable[..., None], *outputs: Maybe) -> None:
    """Call on memory without gaps in the outputs' place: where leading dims do not merge into a kernel's loops.

    Only then is anything copied. The call sees to its inputs.
    """
    dense = [dense_like(out) for out in outputs]
    call(*dense)
    for out, copied in zip(outputs, dense, strict=True):
        if out is not None and copied is not None:
            out.copy_(copied)


def _launch(plan: Plan, device: int, tensors: tuple[Maybe, ...]) -> None:
    known = plan.repeat.get(device)
    if known is not None:
        repeat, behind = known
        repeat(*tensors, *behind)
        return
    chosen, settled = plan, True
    if is_tuned() and not interpreting():
        chosen, settled = tune.choose(plan, tensors, tune.winners(device))
    checked = launch(chosen.kernel, chosen.grid, (*tensors, *chosen.scalars), chosen.constants, chosen.num_warps)
    if checked is not None and settled:
        plan.repeat[device] = checked, (*chosen.scalars, *chosen.constants.values())


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Sums run in float32, or in float64 for float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up."""
    return -(-n // d)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def column_block(n: int, limit: int) -> int:
    """The largest power of two up to the limit that pads n by at most a quarter, and at least 16 where n is."""
    block = min(next_power_of_two(n), limit)
    while block > 16 and ceil_div(n, block) * block > 1.25 * n:
        block //= 2
    return block


def warps(elements: int, vector: int, views: int) -> int:
    """Enough warps that every thread moves one vector of the block at a time; or two values where there is none, one
    where there are many views: each keeps an address or a sum of its own in registers."""
    return max(1, min(MOST_WARPS, elements // (LANES * max(vector, 2 if views <= FEW_VIEWS else 1))))


def times_two(n: int, times: int, most: int) -> int:
    """n doubled so many times (halved if negative), at least 1; n itself where that would pass ``most``."""
    return min(n << times, max(n, most)) if times > 0 else max(n >> -times, 1)


def tile_block(h: int, w: int, itemsize: int, transposes: bool) -> tuple[int, int]:
    """Rows and columns of a tile of an h×w plane."""
    if transposes:
        side = SIDE[itemsize]
        while side > 16:
            area, smaller = (ceil_div(h, s) * ceil_div(w, s) * s * s for s in (side, side // 2))
            if area <= 1.5 * smaller:
                break
            side //= 2
        return side, side
    # A row of at most 256 bytes stays within one warp, which then mirrors it without shared memory.
    columns = column_block(w, 256 // itemsize)
    return min(next_power_of_two(h), max(1, ELEMENTS[itemsize] // columns)), columns


def gather_block(rows: int, c: int, elements: int) -> tuple[int, int]:
    """Points and entries per point of one program, which takes so many elements."""
    entries = column_block(c, elements)
    return min(next_power_of_two(rows), max(1, elements // entries)), entries


def vector_length(itemsize: int, values: Sequence[int]) -> int:
    """How many values one access can move when all these sizes and strides are multiples of it: 16 bytes at most."""
    length = _VECTOR_BYTES // itemsize
    while length > 1 and any(v % length for v in values):
        length //= 2
    return length


def forms(views: Views) -> int:
    """Which arrangements of an input block its views are made of; see ``device.arrangements``."""
    bits = 0
    for code in loops(views).codes:
        if code & 1:
            bits |= 4 if code & 2 else 2
        elif code & 4:
            bits |= 1
    return bits


def use_tiles(layout: Layout, views: Views) -> bool:
    """Whether planes are cut into tiles; otherwise every point is addressed on its own.

    Small and odd planes stay on single accesses. Flat runs of them, loaded in vectors and turned by ``tl.gather``, were
    compiled for sm_90 under D4: 16 bytes an access, but 13 barriers instead of none, no better occupancy (38 to 75 %
    against 62 to 75 %), and thousands of spills where 37×37 planes fill up a power of two. CUDA C++ does this.
    """
    axes = loops(views)
    if not axes.moves or layout.c != 1 or not axes.planar or layout.h * layout.w <= SMALL_PLANE:
        return False
    if layout.w % 4 == 0 and layout.h % 4 == 0:
        return True
    # Without transposed views neighbours stay neighbours: rows that are no multiple of a vector gain from flat runs.
    # With them columns are read that the first-level cache must hold until their other entries are asked for.
    if any(code & 1 for code in axes.codes):
        return layout.h * layout.w > ODD_PLANE
    return layout.w % 4 == 0


def plan_tiles(
    kernel: Any,
    layout: Layout,
    views: Views,
    operands: Sequence[Known],
    names: str,
    fixed_names: str,
    scalars: Mapping[str, int | float],
    constants: Mapping[str, Any],
    by_view: bool,
    double: bool = False,
    choice: Choice = RULE,
) -> Plan:
    """Plan a kernel over tiles of planes.

    Args:
        operands: all pointers in the kernel's order.
        names: one letter per tensor of ``layout.moving``; its strides are the scalars ``<letter>g``, ``<letter>a`` …
        fixed_names: likewise for ``layout.fixed``, whose strides are never scaled.
        by_view: tiles cut the views (rows and columns swapped where they are transposed), not the input.
        double: a thread keeps twice as much of each value: in float64, or of two tensors.
        choice: other than the rule's block and warps, for tuning.
    """
    itemsize = max(o.dtype.itemsize for o in operands[: len(names)] if o is not None)
    codes = loops(views).codes
    transposes = any(code & 1 for code in codes)
    h, w = layout.h, layout.w
    rows, cols = (w, h) if by_view and transposes else (h, w)
    ti, tj = tile_block(rows, cols, 2 if double and itemsize == 1 else itemsize, transposes)  # of bytes all are kept
    if transposes:  # square tiles
        ti = tj = times_two(ti, choice.block, 2 * SIDE[itemsize])
    else:
        ti = times_two(ti, choice.block, next_power_of_two(rows))
    unit = all(s[5] == 1 for s in layout.moving)
    divisors = [w, h if transposes else 0, *(v for s in layout.moving for v in (*s[:3], s[4]))]
    vec = vector_length(itemsize, divisors) if unit else 1
    across = ceil_div(cols, tj)
    tiles = ceil_div(rows, ti) * across
    programs = layout.a * layout.b * tiles
    # Of a thread: two vectors, or as many single values as fill one, but no more than eight.
    each = min(2 * _VECTOR_BYTES // itemsize, vec * min(8, _VECTOR_BYTES // itemsize)) // (2 if double else 1)
    padded = max(h, w) + 2 * max(ti, tj)  # what tiles at the edge may name in front of and behind a plane
    reach = max(_reach((padded, padded), s[4:6]) for s in layout.moving)
    values: dict[str, int | float] = {
        "tiles": tiles,
        "across": across,
        "nb": layout.b,
        "H": h // vec if transposes else h,
        "W": w // vec,
        "rt": reciprocal(tiles),
        "ra": reciprocal(across),
        "rb": reciprocal(layout.b),
        **scalars,
        **strides(names, "gabhw", [(*(v // vec for v in (*s[:3], s[4])), s[5]) for s in layout.moving]),
        **strides(fixed_names, "gab", layout.fixed),
    }
    return make_plan(
        kernel,
        programs,
        operands,
        values,
        {
            **constants,
            "CODES": codes,
            "COUNT": views.size,
            "TI": ti,
            "TJ": tj,
            "VEC": vec,
            "VEC_H": vec if transposes else 1,
            "UNIT": vec if unit else 0,
            "WIDE": reach >= LARGE or programs >= MOST_ROWS,
        },
        times_two(warps(ti * tj, each, views.order), choice.warps, 2 * MOST_WARPS),
        partial(plan_tiles, kernel, layout, views, operands, names, fixed_names, scalars, constants, by_view, double),
    )


def plan_gather(
    kernel: Any,
    layout: Layout,
    views: Views,
    operands: Sequence[Known],
    names: str,
    fixed_names: str,
    scalars: Mapping[str, int | float],
    constants: Mapping[str, Any],
    by_view: bool,
    streams: int,
    inputs: int = 1,
    choice: Choice = RULE,
) -> Plan:
    """Plan a kernel that addresses every point (a, b, d, h, w) on its own and moves its C entries as a vector.

    See ``plan_tiles`` for the arguments.

    Args:
        streams: how many values of each point are in registers at the same time.
        inputs: so many of the moving tensors have the input's sizes, the others those of a view.
    """
    itemsize = max(o.dtype.itemsize for o in operands[: len(names)] if o is not None)
    axes = loops(views)
    single = layout.c == 1 and axes.moves
    inside = (layout.d, layout.h, layout.w)
    waiting = WAITING // (streams * max(1, itemsize // 4))
    each = max(1, min(MOST_POINTS, next_power_of_two(waiting + 1) // 2))  # points of a thread
    sizes = view_sizes((layout.d, layout.h, layout.w), axes.words[0])
    # Cube after cube, points that lie together in a view do so in all of them, whichever axis is the last in memory.
    cubes = single and "CUBES" in kernel.arg_names and _gains_from_cubes(axes.words, sizes)
    divided = tuple(ceil_div(size, CUBE) for size in sizes) if cubes else sizes if by_view else inside
    rows = layout.b * math.prod(divided) * CUBE**3 if cubes else layout.rows
    threads = THREADS if layout.h * layout.w <= SMALL_PLANE else 2 * THREADS
    if cubes:  # a whole one, by no more threads than registers allow
        each = max(each, 2)
        threads = CUBE**3 // each
    vectors = max(1, VECTORS // streams)  # of a thread
    points, entries = gather_block(rows, layout.c, threads * each if single else ELEMENTS[itemsize] * vectors)
    points = times_two(points, choice.block, next_power_of_two(rows))
    # Points that follow one another in memory need no division for their offset.
    each_sizes = [inside if k < inputs else sizes for k in range(len(layout.moving))]
    steps = tuple(None if cubes else _step(layout, s, n) for s, n in zip(layout.moving, each_sizes, strict=True))
    if layout.c > 1:
        vec = vector_length(itemsize, [layout.c, *(v for s in layout.moving for v in s[:6])])
        vec_rows = 1
    else:
        vec = 1
        # Views that move nothing are runs. Others are gathered, best by neighbouring threads value by value.
        divisors = [rows, *(v for s in layout.moving for v in s[:2])]
        vec_rows = 1 if axes.moves or None in steps else vector_length(itemsize, divisors)
    moving = [
        (*(v // (vec * vec_rows if k < 2 else vec) for k, v in enumerate(s[:6])), (step or 0) // vec)
        for s, step in zip(layout.moving, steps, strict=True)
    ]
    row_blocks, column_blocks = ceil_div(rows, points), ceil_div(layout.c, entries)
    padded = layout.b + points // math.prod(inside) + 1  # the items that a program's last rows may name
    reach = max(_reach((padded, *n, layout.c), s[2:]) for s, n in zip(layout.moving, each_sizes, strict=True))
    values: dict[str, int | float] = {
        "row_blocks": row_blocks,
        "column_blocks": column_blocks,
        "R": rows // vec_rows,
        "C": layout.c // vec,
        "n0": layout.d,
        "n1": layout.h,
        "n2": layout.w,
        "m0": sizes[0],
        "m1": sizes[1],
        "m2": sizes[2],
        "rr": reciprocal(row_blocks),
        **{f"r{k}": reciprocal(size) for k, size in enumerate(divided)},
        **scalars,
        **strides(names, "gab012s", moving),
        **strides(fixed_names, "gab", layout.fixed),
    }
    return make_plan(
        kernel,
        layout.a * row_blocks * column_blocks,
        operands,
        values,
        {
            **constants,
            "WORDS": axes.words,
            "COUNT": views.size,
            "DIMS": 0 if not axes.moves else (2 if axes.planar else 3),
            "P": points,
            "CB": entries,
            "VEC": vec,
            "VEC_R": vec_rows,
            "DENSE": tuple(step is not None for step in steps),
            "BIG": rows + points >= MOST_ROWS or layout.a * row_blocks >= MOST_ROWS or reach >= LARGE,
            "CUBES": cubes,
            "SHARED": not any(s[2] for s in layout.fixed),
            **({"PARTS": max(1, entries // (LANES * vec))} if "PARTS" in kernel.arg_names else {}),
        },
        times_two(
            max(1, points // (LANES * each)) if single else warps(points * entries // vectors, vec * vec_rows, streams),
            choice.warps,
            2 * MOST_WARPS,
        ),
        partial(
            plan_gather,
            kernel,
            layout,
            views,
            operands,
            names,
            fixed_names,
            scalars,
            constants,
            by_view,
            streams,
            inputs,
        ),
    )


def _gains_from_cubes(words: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether views give a volume another last axis, and cubes neither pad it much nor hold it whole."""
    points, padded = math.prod(sizes), math.prod(ceil_div(size, CUBE) * CUBE for size in sizes)
    return any(word >> 6 & 3 != 2 for word in words) and points > 2 * CUBE**3 and padded <= 1.25 * points


def reciprocal(d: int) -> int:
    """What ``device.quotient`` multiplies by in the place of a division by d: 2³¹⁺ᵏ/d rounded up, and k above it.

    2ᵏ is the largest power of two up to d, so the factor has 32 bits; (2n · factor) >> 32 + k is n // d for n < 2³⁰.
    The upper half is k + 32, as Triton's interpreter misreads numbers from 2³¹ to 2³².
    """
    shift = d.bit_length() - 1
    return (shift + 32) << 32 | ceil_div(1 << (31 + shift), d)


def _reach(sizes: Sequence[int], steps: Sequence[int]) -> int:
    """The largest distance of two elements of a block of such sizes, and of all sums on the way to an offset."""
    return sum(size * abs(step) for size, step in zip(sizes, steps, strict=True))


def view_sizes(sizes: tuple[int, int, int], word: int) -> tuple[int, int, int]:
    """The sides of a view of a d×h×w input; all views of a call have the same."""
    return sizes[word & 3], sizes[word >> 3 & 3], sizes[word >> 6 & 3]


def _step(layout: Layout, s: Sequence[int], sizes: tuple[int, int, int]) -> int | None:
    """The distance of consecutive points of one step of A, if there is one: 1 where C is 1."""
    step, count = None, 1
    for size, stride in zip((sizes[2], sizes[1], sizes[0], layout.b), (s[5], s[4], s[3], s[2]), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != step * count:
            return None
        count *= size
    if step is None:
        return 1
    return None if layout.c == 1 and step != 1 else step
