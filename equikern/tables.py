"""Permutations of one dim, as the kernels take them.

A kernel is told what every view reads by one string of words (``actions.py``). For a view that permutes a dim the word
is ``p<dim>:<digest>``, for one that maps token ids ``t:<digest>``: the digest names an entry of this module's register,
so that an operator's schema needs no tensors for it, a compiled function takes it as a constant, and every device gets
one copy. Entries are made from their contents: the same permutation has the same word in every process.

A permutation is kept as the entries that it moves where that is shorter than the whole, as it is for the word swaps of
a vocabulary: a few dozen of 50,000.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Moved(NamedTuple):
    """One view: ``view[positions[i]] = x[sources[i]]``, or its negative where ``sources[i] = ~source`` is below zero.

    Everything else stays where it is. int32, on the CPU, positions in rising order.
    """

    size: int
    positions: Tensor
    sources: Tensor


@dataclass(eq=False)
class Table:
    """All the views of one action on a dim of ``size`` entries; what ``table`` returns for a string of words.

    Attributes:
        order: the number of views.
        size: the entries of the permuted dim (of the vocabulary, for tokens).
        dim: the permuted dim, counted from the end: −1 is the last. 0 for maps of token ids.
        positions: (m,) int32, rising: the entries that some view moves. All of them where ``dense``.
        sources: (order, m) int32: ``view_g[positions[i]] = x[sources[g, i]]``; ``~source`` (below 0) stands for minus
            that entry. For tokens, id ``positions[i]`` becomes ``sources[g, i]``.
        dense: whether positions are all of 0 … size − 1.
        signed: whether some view changes a sign.
    """

    order: int
    size: int
    dim: int
    positions: Tensor
    sources: Tensor
    dense: bool
    signed: bool
    _copies: dict[torch.device, Table] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> Table:
        """The same with its tensors on a device; copied there once."""
        if device.type == "cpu":
            return self
        found = self._copies.get(device)
        if found is None:
            positions, sources = self.positions.to(device), self.sources.to(device)
            found = Table(self.order, self.size, self.dim, positions, sources, self.dense, self.signed)
            self._copies[device] = found
        return found

    @cached_property
    def whole(self) -> Tensor:
        """(order, size) int32: the sources of every entry, not just of the moved ones."""
        full = torch.arange(self.size, dtype=torch.int32, device=self.positions.device).repeat(self.order, 1)
        full[:, self.positions.long()] = self.sources
        return full


_entries: dict[str, Moved] = {}
_tables: dict[str, Table | None] = {}


def register(kind: str, sources: Tensor) -> str:
    """The word of one view, given the source of each entry (below zero: ~source, with a minus).

    ``kind`` is ``p<dim>`` for a permutation of a dim, ``t`` for a map of token ids.
    """
    whole = sources.to(device="cpu", dtype=torch.int32).contiguous()
    word = f"{kind}:{hashlib.blake2b(whole.numpy().tobytes(), digest_size=12).hexdigest()}"
    if word not in _entries:
        positions = (whole != torch.arange(len(whole), dtype=torch.int32, device="cpu")).nonzero().flatten()
        if 2 * len(positions) >= len(whole):
            positions = torch.arange(len(whole), device="cpu")
        _entries[word] = Moved(len(whole), positions.to(torch.int32), whole[positions])
    return word


def is_registered(word: str) -> bool:
    """Whether this process has made the permutation that a word names."""
    return word in _entries


def permutes(maps: str) -> bool:
    """Whether the words are permutations of a dim or maps of tokens, rather than of a grid."""
    return maps[0] in "pt"


def moved_dim(word: str) -> int:
    """The dim that a word permutes, counted from the end; 0 for maps of token ids."""
    return int(word[1 : word.index(":")] or 0)


def table(maps: str) -> Table | None:
    """What the kernels need to know of a string of words; None where they move a grid, or nothing."""
    try:
        return _tables[maps]
    except KeyError:
        found = _tables[maps] = _combined(maps.split(" ")) if permutes(maps) else None
        return found


def entry(word: str) -> Moved:
    """One view's permutation.

    Raises:
        LookupError: no action of this process has it, as after loading a program that was exported elsewhere.
    """
    try:
        return _entries[word]
    except KeyError:
        raise LookupError(
            f"no permutation {word!r} in this process: make the action (equikern.permutation or tokens) before "
            "loading a program that was exported with it"
        ) from None


def _combined(words: list[str]) -> Table:
    views = [entry(word) for word in words]
    size, dim = views[0].size, moved_dim(words[0])
    positions = torch.unique(torch.cat([view.positions for view in views]))  # sorted
    order = len(views)
    dense = (order + 1) * len(positions) >= order * size
    if dense:
        positions = torch.arange(size, dtype=torch.int32, device="cpu")
    sources = positions.repeat(order, 1)
    for g, view in enumerate(views):
        sources[g, torch.searchsorted(positions, view.positions)] = view.sources
    return Table(order, size, dim, positions, sources, dense, bool((sources < 0).any()))
