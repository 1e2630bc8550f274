"""Views that permute the entries of one dim, and may change their signs.

The code ``permutation -1 50257: . x`` names the dim, its size, and for each view whether it moves something (``x``, or
``~`` where a sign changes, too). The table (1 + 2·|G|, m), int32, holds the m entries that some view moves, in rising
order; then for every view where it reads each of them, ``~source`` (below zero) for minus that entry; then the same of
the inverses, which move the same entries. Where half of the entries or more move, all are listed. So the word swaps of
a vocabulary take a few dozen of 50,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .base import Kind, Views, parts

__all__ = ["Permutation", "permutation_table", "permuted"]


def permutation_table(sources: Tensor, inverse: Tensor) -> Tensor:
    """The table of permutations given by their sources (|G|, n) and those of their inverses, int64 on the CPU.

    Example:
        >>> permutation_table(torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]), torch.tensor([[0, 1, 2, 3, 4],
        ...     [1, 0, 2, 3, 4]])).tolist()
        [[0, 1], [0, 1], [1, 0], [0, 1], [1, 0]]
    """
    every = torch.arange(sources.shape[1], device="cpu")
    listed = (sources != every).any(0).nonzero().flatten()
    if 2 * len(listed) >= len(every):
        listed = every
    return torch.cat((listed[None], sources[:, listed], inverse[:, listed])).to(torch.int32)


def permuted(x: Tensor, source: Tensor, positions: Tensor | None, dim: int) -> Tensor:
    """One view: entry positions[i] of a dim (every i where there are none) shows source[i], ~source with a minus."""
    minus = source < 0
    moved = x.index_select(dim, torch.where(minus, ~source, source).long())
    # Whether there is a minus may not be asked of a device; but integers without a sign have none.
    if x.dtype not in (torch.bool, torch.uint8):
        moved = torch.where(minus.reshape(-1, *(1,) * (-dim - 1)), -moved, moved)
    return moved if positions is None else x.index_copy(dim, positions.long(), moved)


class Permutation(Kind):
    """Views of one dim, counted from the end."""

    name = "permutation"
    triton = "permuted"
    permutes = True

    def parse(self, code: str) -> Views:
        head, words = parts(code)
        try:
            dim, size = int(head[1]), int(head[2])
        except (IndexError, ValueError):
            dim = size = 0
        if dim >= 0 or size < 1 or head[3:] not in ([], ["adjoint"]) or not set(words) <= set(".x~"):
            raise ValueError(f"views: expected such as 'permutation -1 12: . x', got {code[:80]!r}")
        return Views(
            code,
            self,
            words,
            dims=-dim,
            dim=dim,
            size=size,
            signed="~" in words,
            adjoint=head[-1] == "adjoint",
            codes=bytes(map(".x~".index, words)),
        )

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return f"{self.name} {views.dim} {views.size}{' adjoint' * adjoint}: {' '.join(words)}"

    @staticmethod
    def along(views: Views, dim: int) -> str:
        """The code of the same permutations of another dim."""
        return views.kind.written(replace(views, dim=dim), views.words, views.adjoint, False)

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        return 1 + 2 * views.order, None

    def subtable(self, table: Tensor, elements: Sequence[int]) -> Tensor:
        order = len(table) // 2
        return torch.stack([table[row] for row in (0, *(1 + g for g in elements), *(1 + order + g for g in elements))])

    def rows(self, views: Views, table: Tensor) -> Tensor:
        order = views.order
        return table[1 + order :] if views.adjoint else table[1 : 1 + order]

    def positions(self, views: Views, table: Tensor) -> Tensor | None:
        """The entries that are listed; None where all are."""
        return None if table.shape[1] == views.size else table[0]

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        assert table is not None
        if views.words[g] == ".":
            return x
        return permuted(x, self.rows(views, table)[g], self.positions(views, table), views.dim)

    def lacks(self, views: Views, shape: Sequence[int], skip: int, action: str) -> str | None:
        if len(shape) >= views.dims + skip and shape[views.dim] == views.size:
            return None
        return f"…) with {views.size} entries on dim {views.dim}, which {action!r} permutes"

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        assert table is not None
        order = views.order
        m = table.numel() // (1 + 2 * order)
        address = table.data_ptr()
        rows = 1 + order if views.adjoint else 1
        return views.dims, views.codes, m, address + 4 * m * rows, address
