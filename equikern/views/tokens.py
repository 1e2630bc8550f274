"""Views of token ids: each id becomes another one, ``tokens 50257: . x``.

The table (2, |G|, V), int32, holds what every id becomes, and the same for the inverse maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Kind, Views, parts, size_in

__all__ = ["IDS", "Tokens"]

IDS = frozenset((torch.int32, torch.int64))


class Tokens(Kind):
    """Maps of a vocabulary."""

    name = "tokens"
    triton = "ids"
    ids = True

    def parse(self, code: str) -> Views:
        head, words = parts(code)
        size = size_in(head)
        if not size or head[2:] not in ([], ["adjoint"]) or not set(words) <= set(".x"):
            raise ValueError(f"views: expected such as 'tokens 50257: . x', got {code[:80]!r}")
        return Views(code, self, words, size=size, adjoint=head[-1] == "adjoint", codes=bytes(len(words)))

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return f"{self.name} {views.size}{' adjoint' * adjoint}: {' '.join(words)}"

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        return 2, views.order, views.size

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        assert table is not None
        row = self.rows(views, table)[g]
        if type(x) is not Tensor:  # a program in the making asks nothing: ids below zero become one that is none
            return row[torch.where(x < 0, views.size, x).long()].to(x.dtype)
        outside = (x < 0) | (x >= views.size)
        if bool(outside.any()):
            raise ValueError(f"x: expected token ids from 0 to {views.size - 1}, got {int(x[outside][0])}")
        return row[x.long()].to(x.dtype)

    def dtypes(self, views: Views) -> frozenset[torch.dtype]:
        return IDS

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        assert table is not None
        half = 4 * views.order * views.size
        return 0, views.codes, views.size, table.data_ptr() + half * views.adjoint, 0
