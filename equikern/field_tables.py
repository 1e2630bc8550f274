"""Words of fields, which turn a grid and mix the channels in front of it, as the kernels take them.

The word of a view is ``f:<channels>*<grid>``: what happens to the channels, a word ``p-3:…`` (``p-4:…`` for volumes)
of the register in ``tables.py`` for a signed permutation or ``m:…`` of ``matrix_tables.py``, and the word of the grid.
A tensor has any number of such fields one behind the other, so its channels are a multiple of the word's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from . import matrix_tables, tables


def is_field(maps: str) -> bool:
    """Whether the words are fields."""
    return maps[0] == "f"


def mixes(maps: str) -> bool:
    """Whether the channels are multiplied by matrices, rather than permuted."""
    return maps.startswith("f:m")


def computes(maps: str) -> bool:
    """Whether views are made by arithmetic, of fields or of the last dim, rather than by moving entries."""
    return maps[0] == "m" or mixes(maps)


def changes(maps: str) -> bool:
    """Whether the words are fields that change values, by signs or matrices, and do not only move them."""
    return is_field(maps) and (mixes(maps) or bool((sources(maps) < 0).any()))


def word(channels: str, grid: str) -> str:
    """The word of both together."""
    return f"f:{channels}*{grid}"


def parts(word: str) -> tuple[str, str]:
    """The word of the channels and that of the grid."""
    channels, _, grid = word[2:].partition("*")
    return channels, grid


@lru_cache(maxsize=1024)
def grids(maps: str) -> str:
    """What the words do to the grid."""
    return " ".join(parts(word)[1] for word in maps.split(" "))


@lru_cache(maxsize=1024)
def matrices(maps: str) -> str:
    """What the words do to the channels, as words of matrices."""
    return " ".join(parts(word)[0] for word in maps.split(" "))


def is_registered(word: str) -> bool:
    """Whether this process has made what a word's channels name."""
    channels, grid = parts(word)
    return grid != "" and (tables.is_registered(channels) or matrix_tables.is_registered(channels))


def size(word: str) -> int:
    """The channels of one field."""
    channels, _ = parts(word)
    return len(matrix_tables.entry(channels)) if channels[0] == "m" else tables.entry(channels).size


@lru_cache(maxsize=1024)
def sources(maps: str) -> Tensor:
    """(|G|, n) int32: the channel that each channel of each view shows, ``~channel`` for minus that one."""
    found = tables.table(matrices(maps))
    assert found is not None, "the words permute channels"
    return found.whole


@lru_cache(maxsize=1024)
def targets(maps: str) -> Tensor:
    """(|G|, n) int32: the channel of each view that shows each channel, ``~channel`` where with a minus."""
    source = sources(maps).long()
    minus = source < 0
    channel = torch.where(minus, ~source, source)
    shown = torch.arange(source.shape[1], device="cpu").expand_as(source)
    where = torch.empty_like(source).scatter_(1, channel, torch.where(minus, ~shown, shown))
    return where.to(torch.int32)


def after(outer: str, inner: str) -> str:
    """The word of the channels of doing inner first, then outer, both words of channels."""
    if outer[0] == "m":
        return matrix_tables.register(matrix_tables.entry(outer) @ matrix_tables.entry(inner))
    first, second = (tables.table(word) for word in (inner, outer))
    assert first is not None
    assert second is not None
    via = second.whole[0].long()
    shown = first.whole[0].long()[torch.where(via < 0, ~via, via)]
    return tables.register(f"p{first.dim}", torch.where(via < 0, ~shown, shown))


def adjoint(word: str, inverse: str) -> str:
    """The word of the adjoint of a view whose inverse is known."""
    channels, _ = parts(word)
    back, grid = parts(inverse)
    return f"f:{matrix_tables.adjoint(channels) if channels[0] == 'm' else back}*{grid}"
