"""Reduces tensors of any rank and strides to the few loops the kernels have: (A, B, D, H, W, C).

A and B are merged leading dims, D×H×W are the dims a view permutes, C is a vector that lies contiguous in memory:
the channels of a channels-last pixel, or a run of entries that no view moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ... import field_tables

__all__ = [
    "CHANNELS",
    "Layout",
    "Operand",
    "Views",
    "as_words",
    "channels_table",
    "merge",
    "normalize",
    "operand",
    "parse_maps",
]

_AXES = "dhw"

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


def as_words(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same bits in types kernels can move; 16-byte values become a contiguous vector of two."""
    if source.dtype.is_complex:
        source, target = torch.view_as_real(source), torch.view_as_real(target)
        return source.movedim(-1, -3), target.movedim(-1, -3)
    integer = _SUBSTITUTES.get(source.dtype)
    return (source, target) if integer is None else (source.view(integer), target.view(integer))


CHANNELS = Operand((), (), torch.int32, True)  # the table of a field's channels


def channels_table(maps: str, device: torch.device) -> Tensor | None:
    """(2, |G|, n) int32: what each channel of each view shows, and where it shows each one; None without fields."""
    if not field_tables.is_field(maps):
        return None
    key = maps, device
    found = _channels.get(key)
    if found is None:
        found = _channels[key] = torch.stack((field_tables.sources(maps), field_tables.targets(maps))).to(device)
    return found


_channels: dict[tuple[str, torch.device], Tensor] = {}


def operand(t: Tensor) -> Operand:
    """The operand a tensor is; aligned if it starts on 16 bytes."""
    return Operand(tuple(t.shape), t.stride(), t.dtype, t.data_ptr() % 16 == 0)


@dataclass(frozen=True)
class Views:
    """The views of one maps string.

    Attributes:
        dims: how many trailing dims the words have.
        words: per view three bits for each of the output axes d, h, w: the input axis it reads, and 4 if reversed.
        codes: per view bit 0 transposed, bit 1 input rows reversed, bit 2 input columns reversed; of h and w alone.
        planar: no view moves the axis d.
        moves: some view is not the identity.
        channels: of one field, whose views permute them, or 0.
    """

    dims: int
    words: tuple[int, ...]
    codes: tuple[int, ...]
    planar: bool
    moves: bool
    channels: int = 0


@lru_cache(maxsize=256)
def parse_maps(maps: str) -> Views:
    """Read a maps string, one word per view: the input axis each output axis reads, a capital if reversed."""
    if field_tables.is_field(maps):
        grid = parse_maps(field_tables.grids(maps))
        return replace(grid, channels=field_tables.size(maps.partition(" ")[0]), planar=grid.dims == 2, moves=True)
    names = maps.split(" ")
    dims = 0 if names[0] == "." else len(names[0])
    if dims > 3:
        raise ValueError(f"maps: expected words of at most 3 letters, got {names[0]!r}")
    words, codes = [], []
    for name in names:
        letters = _AXES[: 3 - dims] + (name if dims else "")
        axes = [_AXES.index(letter.lower()) for letter in letters]
        flipped = [letter.isupper() for letter in letters]
        words.append(
            sum((axis + 4 * flip) << (3 * k) for k, (axis, flip) in enumerate(zip(axes, flipped, strict=True)))
        )
        codes.append((axes[1] == 2) + 2 * ("H" in letters) + 4 * ("W" in letters))
    identity = sum(axis << (3 * axis) for axis in range(3))
    return Views(
        dims=dims,
        words=tuple(words),
        codes=tuple(codes),
        planar=all(word & 7 == 0 for word in words),
        moves=any(word != identity for word in words),
    )


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
    fixed: Sequence[tuple[Operand | None, bool]],
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
    if views.channels:
        split = 1
    # An axis no view moves is one more leading dim.
    dims = 0 if not views.moves else 2 if views.planar else 3
    dims = min(dims, views.dims)
    shape = moving[0][0].shape[1:] if moving[0][1] else moving[0][0].shape
    lead = len(shape) - dims
    spatial = (1,) * (3 - dims) + shape[lead:]

    def lead_strides(o: Operand | None, group: bool, k: int) -> int:
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
    if tail and not views.channels and all(s == 1 for s in tail[-1][1][:n]) and not any(tail[-1][1][n:]):
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
