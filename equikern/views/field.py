"""Views that turn a grid and mix the channels in front of it, such as flows, gradients and group features.

A tensor (…, C, H, W), or (…, C, D, H, W), holds C / n fields one behind the other, n channels each. The words are those
of the grid. ``field 8: hw Wh`` permutes a field's channels (``field 8 signed: …`` with signs): its table (2, |G|, n),
int32, holds the channel that each one of a view shows, ``~channel`` for minus that one, and the same of the inverses.
``mixed 3: hw Wh`` multiplies them by matrices, whose table is that of ``matrix.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Kind, Views, parts, size_in
from .grid import Grid, axes_of, grid_code, grid_words, inverse_word, turn_grid
from .matrix import multiplied, table_part
from .permutation import permuted

__all__ = ["MOST_MIXED", "Field", "Mixed"]

MOST_MIXED = 16  # channels that a matrix may mix: beyond, a product of matrices is not a matter of memory


class _Fields(Kind):
    """What both kinds of fields share."""

    triton = "fields"

    def _parsed(self, code: str, flags: Sequence[Sequence[str]], **more: bool) -> Views:
        head, _ = parts(code)
        size = size_in(head)
        if not size or head[2:] not in flags:
            raise ValueError(f"views: expected such as '{self.name} 3: hw Wh', got {code[:80]!r}")
        words = grid_words(code, code.partition(": ")[2])
        sides = len(words[0])
        return Views(
            code,
            self,
            words,
            sides,
            sides + 1,
            -sides - 1,
            size,
            signed=self.computes or "signed" in head,
            adjoint="adjoint" in head,
            inverse="inverse" in head,
            axes=tuple(map(axes_of, words)),
            codes=self._codes(words),
        )

    def _codes(self, words: tuple[str, ...]) -> bytes:
        return bytes(map(grid_code, words))

    def of_grid(self, views: Views) -> Views:
        return Grid().parse(" ".join(views.words))

    def transposed(self, views: Views) -> str:
        return self.written(views, [*map(inverse_word, views.words)], not views.adjoint, views.inverse)


class Field(_Fields):
    """Fields whose channels are permuted, with signs or without: planes are only moved."""

    name = "field"

    def parse(self, code: str) -> Views:
        return self._parsed(code, ([], ["signed"], ["adjoint"], ["signed", "adjoint"]))

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        flags = " signed" * views.signed + " adjoint" * adjoint
        return f"{self.name} {views.size}{flags}: {' '.join(words)}"

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        return 2, views.order, views.size

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        assert table is not None
        turned = turn_grid(x, views.words[g])
        fields = turned.unflatten(views.dim, (turned.shape[views.dim] // views.size, views.size))  # type: ignore[no-untyped-call]
        shown: Tensor = permuted(fields, self.rows(views, table)[g], None, views.dim)
        return shown.flatten(views.dim - 1, views.dim)

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        assert table is not None
        half = 4 * views.order * views.size
        return views.sides, views.codes, views.size, table.data_ptr() + half * (views.adjoint != spreads), 0


class Mixed(_Fields):
    """Fields whose channels are multiplied by matrices."""

    name = "mixed"
    computes = True

    def parse(self, code: str) -> Views:
        return self._parsed(code, ([], ["adjoint"], ["inverse"], ["inverse", "adjoint"]))

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return f"{self.name} {views.size}{' inverse' * inverse}{' adjoint' * adjoint}: {' '.join(words)}"

    def inverted(self, views: Views) -> str:
        return self.written(views, [*map(inverse_word, views.words)], views.adjoint, not views.inverse)

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        return 4, views.order, views.size, views.size

    def _codes(self, words: tuple[str, ...]) -> bytes:
        return bytes(grid_code(word.rjust(3, "d")) for word in words)  # C++ takes images for volumes of one plane

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        assert table is not None
        turned = turn_grid(x, views.words[g])
        fields = turned.unflatten(views.dim, (-1, views.size)).movedim(views.dim, -1)  # type: ignore[no-untyped-call]
        mixed: Tensor = multiplied(fields, self.rows(views, table)[g]).movedim(-1, views.dim)
        return mixed.flatten(views.dim - 1, views.dim)

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        assert table is not None
        return views.sides, views.codes, views.size, table_part(views, table), 0
