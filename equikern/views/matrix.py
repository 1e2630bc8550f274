"""Views that multiply the vectors of the last dim by small matrices: ``matrix 3: x x x``.

The table (4, |G|, d, d), float64 beside float64 and otherwise float32, holds the matrices, their transposes, their
inverses and the transposes of those: what adjoint and inverse maps multiply by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Kind, Views, parts, size_in

__all__ = ["LARGEST", "Matrix", "matrix_table", "multiplied", "table_part"]

LARGEST = 64  # entries of a vector: beyond that a matrix product is not a matter of memory


def matrix_table(mats: Tensor, inverse: Tensor) -> Tensor:
    """The table of matrices (|G|, d, d) and their inverses, float64 on the CPU."""
    return torch.stack((mats, mats.mT, inverse, inverse.mT)) + 0.0  # −0.0 becomes 0.0


def multiplied(x: Tensor, rows: Tensor) -> Tensor:
    """A matrix times every vector of the last dim, in the matrix's dtype and rounded once."""
    # Not matmul, which autocast and TF32 would round.
    return (x.to(rows.dtype).unsqueeze(-2) * rows).sum(-1).to(x.dtype)


def table_part(views: Views, table: Tensor) -> int:
    """The address of the matrices that views multiply by."""
    part = 2 * views.inverse + views.adjoint
    size = 8 if table.dtype is torch.float64 else 4
    return table.data_ptr() + part * views.order * views.size * views.size * size


class Matrix(Kind):
    """Matrices on the last dim."""

    name = "matrix"
    triton = "matrices"
    computes = True

    def parse(self, code: str) -> Views:
        head, words = parts(code)
        size = size_in(head)
        if not size or head[2:] not in _FLAGS or set(words) != {"x"}:
            raise ValueError(f"views: expected such as 'matrix 3: x x', got {code[:80]!r}")
        return Views(
            code,
            self,
            words,
            dims=1,
            dim=-1,
            size=size,
            signed=True,
            adjoint="adjoint" in head,
            inverse="inverse" in head,
            codes=bytes(len(words)),
        )

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return f"{self.name} {views.size}{' inverse' * inverse}{' adjoint' * adjoint}: {' '.join(words)}"

    def inverted(self, views: Views) -> str:
        return self.written(views, views.words, views.adjoint, not views.inverse)

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        return 4, views.order, views.size, views.size

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        assert table is not None
        return multiplied(x, self.rows(views, table)[g])

    def lacks(self, views: Views, shape: Sequence[int], skip: int, action: str) -> str | None:
        if len(shape) > skip and shape[-1] == views.size:
            return None
        n = views.size
        return f"…, {n}), whose last dim {action!r} multiplies by {n}×{n} matrices"

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        assert table is not None
        return 0, views.codes, views.size, table_part(views, table), 0


_FLAGS: tuple[list[str], ...] = ([], ["adjoint"], ["inverse"], ["inverse", "adjoint"])
