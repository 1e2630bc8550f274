"""Reduces tensors of any rank and strides to the few loops the kernels have: (A, B, D, H, W, C).

A and B are merged leading dims, D×H×W are the dims a view permutes, C is a vector that lies contiguous in memory:
the channels of a channels-last pixel, or a run of entries that no view moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from ...views import Views
from ...views.grid import Numbers, numbers
from ..base import Maybe

__all__ = [
    "Known",
    "Layout",
    "Operand",
    "as_words",
    "contiguous_views",
    "dense_like",
    "known",
    "loops",
    "merge",
    "normalize",
    "operand",
]

_SUBSTITUTES = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


class Operand(NamedTuple):
    """What a launch depends on besides the data: hashable, so that launches are planned once."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool


Known: TypeAlias = Operand | None  # of a tensor that may be missing
T = TypeVar("T", Tensor, Maybe)  # what is there stays there


def as_words(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same bits in types kernels can move; 16-byte values become a contiguous vector of two."""
    if source.dtype.is_complex:
        source, target = torch.view_as_real(source), torch.view_as_real(target)
        return source.movedim(-1, -3), target.movedim(-1, -3)
    integer = _SUBSTITUTES.get(source.dtype)
    return (source, target) if integer is None else (source.view(integer), target.view(integer))


def operand(t: Tensor) -> Operand:
    """The operand a tensor is; aligned if it starts on 16 bytes."""
    return Operand(tuple(t.shape), t.stride(), t.dtype, t.data_ptr() % 16 == 0)


def known(t: Maybe) -> Known:
    """The operand that a tensor is, if there is one."""
    return None if t is None else operand(t)


def loops(views: Views) -> Numbers:
    """What views do to the axes, as far as loops are concerned: those behind a field's channels are no leading dims."""
    found = numbers(views.words)
    return found._replace(planar=views.sides == 2, moves=True) if views.size else found


def contiguous_views(y: Tensor) -> Tensor:
    """The same views without gaps; one tensor that is seen for every view is copied once."""
    return y.contiguous() if y.stride(0) or y.numel() == 0 else y[0].contiguous().expand(y.shape)


def dense_like(t: T) -> T:
    """Memory for the same without gaps, if there is one."""
    return None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Layout:
    """Loop sizes (spatial ones of the input) and, per tensor, the strides (group, a, b, d, h, w, c).

    Tensors without spatial dims, such as weights, have the strides (group, a, b) only.
    """

    a: int
    b: int
    d: int
    h: int
    w: int
    c: int
    moving: tuple[tuple[int, int, int, int, int, int, int], ...]
    fixed: tuple[tuple[int, int, int], ...]

    @property
    def rows(self) -> int:
        """Points of one step of A."""
        return self.b * self.d * self.h * self.w

    def by_item(self) -> Layout:
        """The same loops with the steps of B as those of A, which has one."""
        return replace(
            self,
            a=self.b,
            b=1,
            moving=tuple((s[0], s[2], 0, *s[3:]) for s in self.moving),
            fixed=tuple((s[0], s[2], 0) for s in self.fixed),
        )


def merge(dims: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    """Join neighbouring dims (size, strides of every tensor) that all tensors walk through as one; drop size 1."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for size, strides in dims:
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, strides)
        else:
            merged.append((size, strides))
    return merged


def normalize(
    views: Views,
    moving: Sequence[tuple[Operand, bool]],
    fixed: Sequence[tuple[Known, bool]],
    split: int | None = None,
) -> Layout | None:
    """Find the loops, or None when the leading dims do not merge into two and the caller has to copy.

    Args:
        moving: tensors with leading and spatial dims, each with whether a group axis comes first; the first of them
            is on the views' input side, so its spatial dims count.
        fixed: contiguous tensors over the first of the leading dims (weights, scores, indices), likewise.
        split: make A exactly the first ``split`` leading dims, the ones a sum runs within. Of fields A is the first
            leading dim and B the channels.
    """
    if views.size:
        split = 1
    # An axis no view moves is one more leading dim.
    axes = loops(views)
    dims = 0 if not axes.moves else 2 if axes.planar else 3
    shape = moving[0][0].shape[1:] if moving[0][1] else moving[0][0].shape
    lead = len(shape) - dims
    spatial = (1,) * (3 - dims) + shape[lead:]

    def lead_strides(o: Known, group: bool, k: int) -> int:
        if o is None:
            return 0
        strides = o.stride[1:] if group else o.stride
        return strides[k] if k < len(strides) else 0

    tensors = [*moving, *fixed]
    table = [(shape[k], tuple(lead_strides(o, group, k) for o, group in tensors)) for k in range(lead)]
    head = merge(table[:split]) if split else []
    tail = merge(table[split or 0 :])
    if split is not None and len(head) > 1:
        return None
    c: tuple[int, tuple[int, ...]] = (1, (0,) * len(tensors))
    n = len(moving)
    if tail and not views.size and all(s == 1 for s in tail[-1][1][:n]) and not any(tail[-1][1][n:]):
        columns = [o.stride[-1] for o, _ in moving] if dims else []
        if all(s != 1 for s in columns) or spatial[2] == 1:
            c = tail.pop()
    none = (1, (0,) * len(tensors))
    if split is None:
        if len(tail) > 2:
            return None
        a, b = [none, none, *tail][-2:]
    else:
        if len(tail) > 1:
            return None
        a, b = (head or [none])[0], (tail or [none])[0]

    def strides(position: int, o: Operand, group: bool) -> tuple[int, int, int, int, int, int, int]:
        own = (0,) * (3 - dims) + (o.stride[len(o.stride) - dims :])
        return (
            o.stride[0] if group else 0,
            a[1][position],
            b[1][position],
            own[0],
            own[1],
            own[2],
            c[1][position],
        )

    return Layout(
        a=a[0],
        b=b[0],
        d=spatial[0],
        h=spatial[1],
        w=spatial[2],
        c=c[0],
        moving=tuple(strides(k, o, group) for k, (o, group) in enumerate(moving)),
        fixed=tuple(
            (o.stride[0] if o is not None and group else 0, a[1][n + k], b[1][n + k])
            for k, (o, group) in enumerate(fixed)
        ),
    )
