"""Loops and launches of the kernels that follow a table of sources: (A, B, X, N) with N the permuted dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...views import Views
from ..tuning import RULE, Choice
from .launch import (
    ELEMENTS,
    MOST_WARPS,
    Plan,
    ceil_div,
    column_block,
    make_plan,
    next_power_of_two,
    strides,
    times_two,
    vector_length,
    warps,
)
from .layout import Known, Operand, merge
from .tables import TABLE, listed_count

__all__ = ["Loops", "TilePlan", "permuted_loops", "plan_permuted"]

COLUMNS = 128  # of a tile that gathers along its rows: its other rows use the same sources again

Given = tuple[Known, bool]  # and whether a group axis comes first


class TilePlan(NamedTuple):
    """A launch, and into how many partial sums it cuts each dot product."""

    launch: Plan
    units: int


class Loops(NamedTuple):
    """Sizes of the loops, and per tensor its strides (group, a, b, x, n); (group, a, b, x) for weights and the like."""

    a: int
    b: int
    x: int
    n: int
    moving: tuple[tuple[int, ...], ...]
    fixed: tuple[tuple[int, ...], ...]


def permuted_loops(dim: int, moving: Sequence[Given], fixed: Sequence[Given], split: int | None) -> Loops | None:
    """Merge the dims before and behind the permuted one, or None where that leaves more of them than loops.

    X is what lies behind the permuted dim if anything does, otherwise the last of the leading dims.

    Args:
        dim: the permuted dim, counted from the end.
        moving: tensors with all dims; None has the strides of the first.
        fixed: contiguous tensors over the first of the leading dims.
        split: make A exactly the first ``split`` leading dims, the ones a sum runs within.
    """
    first, grouped = moving[0]
    assert first is not None
    shape = first.shape[1:] if grouped else first.shape
    lead = len(shape) + dim
    tensors = [*((o or first, group if o else grouped) for o, group in moving), *fixed]
    count = len(moving)

    def stride(position: int, k: int) -> int:
        o, group = tensors[position]
        strides = () if o is None else o.stride[1:] if group else o.stride
        return strides[k] if k < len(strides) else 0

    def merged(dims: range) -> list[tuple[int, tuple[int, ...]]]:
        return merge([(shape[k], tuple(stride(position, k) for position in range(len(tensors)))) for k in dims])

    none = (1, (0,) * len(tensors))
    head, tail, behind = merged(range(split or 0)), merged(range(split or 0, lead)), merged(range(lead + 1, len(shape)))
    x = behind.pop() if behind else tail.pop() if tail else none
    if behind or len(head) > 1 or len(tail) > (2 if split is None else 1):
        return None
    if split is None:
        a, b = [none, none, *tail][-2:]
    else:
        a, b = (head or [none])[0], (tail or [none])[0]

    def strides(position: int) -> tuple[int, ...]:
        o, group = tensors[position]
        return o.stride[0] if o is not None and group else 0, a[1][position], b[1][position], x[1][position]

    return Loops(
        a[0],
        b[0],
        x[0],
        shape[lead],
        tuple((*strides(k), stride(k, lead)) for k in range(count)),
        tuple(strides(k) for k in range(count, len(tensors))),
    )


def plan_permuted(
    kernel: Any,
    views: Views,
    table: Operand,
    operands: Sequence[Known],
    names: str,
    moving: Sequence[Given],
    fixed_names: str,
    fixed: Sequence[Given],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, Any],
    dots: Known = None,
    choice: Choice = RULE,
) -> TilePlan | None:
    """Plan a kernel over the listed entries of a table, over all of them where it is dense or dot products are made.

    Args:
        operands: all pointers in the kernel's order, but for the positions and the sources that come last.
        names: one letter per tensor of ``moving``; its strides are the scalars ``<letter>g``, ``<letter>a`` …
        fixed_names: likewise for ``fixed``, whose strides are never scaled.
        dots: the dot products, over the leading dims that no sum runs along.
        choice: other than the rule's block and warps, for tuning.
    """
    loops = permuted_loops(views.dim, moving, fixed, None if dots is None else len(dots.shape) - 1)
    if loops is None:
        return None
    count = listed_count(views, table)
    listed = count > 0 and dots is None
    m = count if listed else views.size
    itemsize = max(o.dtype.itemsize for o, _ in moving if o is not None)
    unit_n = all(s[4] == 1 for s in loops.moving) or loops.n == 1
    unit_x = all(s[3] == 1 for s in loops.moving)
    inner = unit_n or not unit_x
    unit = unit_n if inner else unit_x
    elements = ELEMENTS[itemsize]
    if inner:
        pn = min(next_power_of_two(m), COLUMNS)
        px = times_two(min(next_power_of_two(loops.x), max(1, elements // pn)), choice.block, 1)
    else:
        px = column_block(loops.x, elements)
        pn = times_two(min(next_power_of_two(m), max(1, elements // px)), choice.block, next_power_of_two(m))
    # Every stride but that within a tile's row is counted in vectors, and so is the length of the row.
    outer = [v for s in loops.moving for v in (*s[:3], s[3] if inner else s[4])]
    vec = vector_length(itemsize, [m if inner else loops.x, *outer]) if unit and not (inner and listed) else 1
    scaled = [
        (*(v // vec for v in s[:3]), s[3] // (vec if inner else 1), s[4] // (1 if inner else vec)) for s in loops.moving
    ]
    nblocks, xblocks = ceil_div(m, pn), ceil_div(loops.x, px)

    def variant(other: Choice) -> Plan:
        call = (kernel, views, table, operands, names, moving, fixed_names, fixed, scalars, constants, None, other)
        found = plan_permuted(*call)
        assert found is not None, "the rule's launch is one"
        return found.launch

    values: dict[str, int | float] = {
        "nblocks": nblocks,
        "xblocks": xblocks,
        "nb": loops.b,
        "M": m // vec if inner else m,
        "N": loops.n,
        "X": loops.x if inner else loops.x // vec,
        "na": loops.a,
        "units": loops.b * nblocks * xblocks,
        **scalars,
        **strides(names, "gabxn", scaled),
        **strides(fixed_names, "gabx", loops.fixed),
    }
    launch = make_plan(
        kernel,
        loops.a * loops.b * nblocks * xblocks,
        [*operands, TABLE if listed else None, TABLE],
        values,
        {**constants, "ORDER": views.order, "INNER": inner, "UNIT": unit, "PN": pn, "PX": px, "VEC": vec},
        times_two(warps(pn * px, vec, views.order), choice.warps, 2 * MOST_WARPS),
        variant if dots is None else None,  # dots follow the block
    )
    return TilePlan(launch, loops.b * nblocks * xblocks)
