"""What launches take of the tables of views: the parts that kernels follow, and what is derived from them.

It is kept as long as its table is: nothing here holds the table, and all is gone with it. Launches are planned without
looking at a table, whose shape says what is listed; so nothing is read back from a device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor

from ...views import Views
from ..base import Maybe
from .layout import Known, Operand

__all__ = [
    "CHANNELS",
    "SKIP",
    "TABLE",
    "channels",
    "listed_count",
    "lists",
    "part",
    "skip_width",
    "skipped",
    "whole",
]

CHANNELS = TABLE = Operand((), (), torch.int32, True)  # sizes are scalars
SKIP = Operand((), (), torch.int8, True)

_T = TypeVar("_T")


class _Kept(NamedTuple):
    table: ref[Tensor]
    state: tuple[int, int]  # of the table, when this was made
    made: dict[Hashable, Any]


_kept: dict[int, _Kept] = {}  # by the table's id


def _state(table: Tensor) -> tuple[int, int]:
    return table.data_ptr(), -1 if table.is_inference() else table._version


def _forget(kept: dict[int, _Kept], number: int, gone: ref[Tensor]) -> None:
    """Given all it needs: when Python ends, modules have lost their names."""
    entry = kept.get(number)
    if entry is not None and entry.table is gone:
        del kept[number]


def _of(table: Tensor, key: Hashable, make: Callable[[], _T]) -> _T:
    """What ``make`` gives, kept with the table; while a CUDA graph is captured it is the graph's own."""
    number, state = id(table), _state(table)
    entry = _kept.get(number)
    if entry is not None and entry.table() is table and entry.state == state:
        found: _T | None = entry.made.get(key)
        if found is not None:
            return found
    else:
        entry = None
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        return make()
    found = make()
    if table.is_cuda:
        torch.cuda.current_stream(table.device).synchronize()  # other streams will read it, too
    if entry is None:
        entry = _kept[number] = _Kept(ref(table, partial(_forget, _kept, number)), state, {})
    entry.made[key] = found
    return found


def _aligned(t: Tensor) -> Tensor:
    t = t.detach()  # a view would hold the table
    return t if t.data_ptr() % 16 == 0 else t.clone()


def part(views: Views, table: Tensor) -> Tensor:
    """(|G|, …): what the maps follow, starting on 16 bytes."""
    return _of(table, ("part", views.adjoint, views.inverse), lambda: _aligned(views.kind.rows(views, table)))


def channels(views: Views, table: Maybe) -> Maybe:
    """(2, |G|, n): the channel that each one of a view shows, and which of a view's shows it; None without fields."""
    if table is None:
        return None
    return _of(table, ("channels", views.adjoint), lambda: _aligned(table.flip(0) if views.adjoint else table))


class Lists(NamedTuple):
    """What a permutation moves: positions (m,), None where every entry is listed, and the sources (|G|, m)."""

    positions: Maybe
    sources: Maybe


_NO_LISTS = Lists(None, None)


def listed_count(views: Views, table: Known) -> int:
    """How many entries are listed: none where all are."""
    return 0 if table is None or table.shape[1] == views.size else table.shape[1]


def lists(views: Views, table: Maybe) -> Lists:
    """The entries that some view moves: no positions where all of them are listed, nothing where none is."""
    if table is None:
        return _NO_LISTS

    def make() -> Lists:
        positions = None if table.shape[1] in (0, views.size) else _aligned(table[0])
        return Lists(positions, _aligned(views.kind.rows(views, table)))

    return _of(table, ("lists", views.adjoint, views.size), make)


def whole(views: Views, table: Maybe) -> Maybe:
    """(|G|, size): the sources of every entry; None where nothing is permuted."""
    if table is None:
        return None

    def make() -> Tensor:
        positions, sources = lists(views, table)
        assert sources is not None
        if positions is None and table.shape[1]:
            return sources
        full = torch.arange(views.size, dtype=torch.int32, device=table.device).repeat(views.order, 1)
        return full if positions is None else full.index_copy_(1, positions.long(), sources)

    return _of(table, ("whole", views.adjoint, views.size), make)


def skip_width(size: int) -> int:
    """The length of a row of ``skipped``: 16 entries and more behind those of a row of logits, whole vectors."""
    return (size + 31) // 16 * 16


def skipped(views: Views, table: Maybe) -> Maybe:
    """A row for each start of logits within a vector: 1 where an entry is listed; None where nothing is."""
    if table is None or table.shape[1] in (0, views.size):
        return None

    def make() -> Tensor:
        skip = torch.zeros((8, skip_width(views.size)), dtype=torch.int8, device=table.device)
        starts = torch.arange(8, device=table.device)[:, None]
        return skip.index_put_((starts, starts + table[0].long()), skip.new_ones(()))

    return _of(table, ("skipped", views.size), make)
