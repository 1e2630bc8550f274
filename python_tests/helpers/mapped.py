"""Views one at a time, and views that are no group's, for tests that go below the actions."""

from __future__ import annotations

import torch
from equikern.views.maps import Maps, Tables
from equikern.views.permutation import permutation_table
from torch import Tensor


def shown(maps: Maps, x: Tensor, g: int) -> Tensor:
    """map_g(x) in plain torch."""
    return maps.views.kind.apply(x, maps.views, maps.table(x), g)


def undone(sources: Tensor) -> Tensor:
    """The sources of the inverse permutations (order, n), ``~source`` for minus an entry in both."""
    minus = sources < 0
    entries = torch.arange(sources.shape[1]).expand_as(sources)
    return torch.empty_like(sources).scatter_(
        1, torch.where(minus, ~sources, sources), torch.where(minus, ~entries, entries)
    )


def permuting(sources: Tensor, dim: int = -1) -> Maps:
    """Views that show entry ``sources[g, i]`` at i, ``~source`` for minus that one, whether or not they are a group."""
    kinds = (sources != torch.arange(sources.shape[1])).any(1).int() + (sources < 0).any(1).int()
    words = " ".join(".x~"[kind] for kind in kinds.tolist())
    table = Tables.made(permutation_table(sources, undone(sources)))
    return Maps(f"permutation {dim} {sources.shape[1]}: {words}", table)


def of_ids(becomes: Tensor) -> Maps:
    """Views of token ids: id v becomes ``becomes[g, v]``."""
    words = " ".join(".x"[moves] for moves in (becomes != torch.arange(becomes.shape[1])).any(1).tolist())
    table = torch.stack((becomes, undone(becomes))).to(torch.int32)
    return Maps(f"tokens {becomes.shape[1]}: {words}", Tables.made(table))
