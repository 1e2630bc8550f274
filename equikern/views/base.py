"""What every kind of view has: a short code that says all that is static, and a table of what the views contain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["EXACT", "FLOATS", "UNSIGNED", "Kind", "Views", "accumulator", "parts", "size_in"]

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
# What can be moved.
EXACT = FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
UNSIGNED = (torch.bool, torch.uint8)


def accumulator(t: Tensor) -> torch.dtype:
    """Weights, scores, sums and products are float32, or float64 beside float64."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Views:
    """The |G| views of a call, as far as they are known before it: made by ``views.of`` from a code, and kept.

    Attributes:
        code: the string that an operator's schema has for them.
        kind: what kind they are of, one for all views.
        words: one word a view: what it does to the grid, else ``x`` (``~`` where it changes signs), and ``.`` for a
            view that leaves everything in place.
        sides: the trailing dims of the grid: 0, 2 or 3.
        dims: the trailing dims that views act on: the grid's, one more for a field, 1 for matrices, and for a
            permutation as many as there are from its dim on.
        dim: the dim that is permuted or multiplied, or that holds a field's channels, counted from the end; else 0.
        size: entries of that dim, of one field or of the vocabulary; 0 without a table.
        signed: whether some view changes signs.
        adjoint, inverse: which part of the table is theirs, see ``Maps``.
        axes: for each view the dim that each of its sides shows, counted from the end; None where all stay.
        order: |G|, the number of views.
        turns: whether some view exchanges sides.
        upright: whether view 0, whose shape results have, leaves the sides in their order.
        dtypes: what views can be made of.
        back, undo: the codes of the adjoint and of the inverse maps.
        table_shape: of the table, see ``Kind.table_shape``.
        codes: one number a view, as C++ and Triton know it: what it does to an image (``csrc/grid_index.h``) or to a
            volume (``csrc/cpu/boxes.h``); of permutations 0 where nothing moves, 1 where something does, 2 with signs.
    """

    code: str
    kind: Kind
    words: tuple[str, ...]
    sides: int = 0
    dims: int = 0
    dim: int = 0
    size: int = 0
    signed: bool = False
    adjoint: bool = False
    inverse: bool = False
    axes: tuple[tuple[int, ...] | None, ...] = ()
    codes: bytes = b""

    # Found from the others, once: the compiler follows attributes, but no property that keeps its value.
    order: int = field(init=False)
    turns: bool = field(init=False)
    upright: bool = field(init=False)
    dtypes: frozenset[torch.dtype] = field(init=False)
    back: str = field(init=False)
    undo: str = field(init=False)
    table_shape: tuple[int | None, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", len(self.words))
        object.__setattr__(self, "turns", any(self.axes))
        object.__setattr__(self, "upright", not self.axes or self.axes[0] is None)
        object.__setattr__(self, "dtypes", self.kind.dtypes(self))
        object.__setattr__(self, "table_shape", self.kind.table_shape(self))

    def link(self, back: str, undo: str) -> None:
        """Name the adjoint and the inverse maps."""
        object.__setattr__(self, "back", back)
        object.__setattr__(self, "undo", undo)

    def with_words(self, words: Sequence[str]) -> str:
        """The code of such views with other words."""
        return self.kind.written(self, words, self.adjoint, self.inverse)

    @property
    def grid(self) -> Views:
        """What these views do to the grid, without its channels."""
        return self.kind.of_grid(self)

    def shape(self, shape: Sequence[int], g: int = 0) -> Sequence[int]:
        """The shape of view g of a tensor: sides change places where a rectangle is turned."""
        order = self.axes[g] if self.axes else None
        return shape if order is None else (*shape[: -len(order)], *(shape[axis] for axis in order))

    def keeps(self, shape: Sequence[int]) -> bool:
        """Whether all views of a tensor have its shape: sides that change places are of one length."""
        if not self.turns:
            return True
        last = shape[-1]  # small calls are counted: the common answer without a loop
        if last == shape[-2] and (self.sides == 2 or last == shape[-3]):
            return True
        return all(shape[axis] == shape[k - self.sides] for order in self.axes if order for k, axis in enumerate(order))


def parts(code: str) -> tuple[list[str], tuple[str, ...]]:
    """The head of a code, before the colon, and its words."""
    head, _, words = code.partition(": ")
    return head.split(" "), tuple(words.split(" "))


def size_in(head: Sequence[str]) -> int:
    """The size behind a kind's name in the head of a code; 0 where there is none.

    Example:
        >>> size_in(["matrix", "3", "adjoint"]), size_in(["matrix", "-3"]), size_in(["matrix"])
        (3, 0, 0)
    """
    return int(head[1]) if len(head) > 1 and head[1].isdecimal() else 0


class Kind(ABC):
    """One kind of views: its language, its table, what it means in plain torch, and how kernels are told.

    Attributes:
        name: the first word of its codes; its entry of ``_C.KINDS``.
        triton: the module of ``backends/triton`` that has its kernels; empty: plain torch serves it there.
        still: whether views leave everything in place.
        ids: whether views are of token ids, and of no other numbers.
        permutes: whether views only move the entries of one dim, so that rows of logits stay such rows.
        computes: whether views are made by arithmetic, in the accumulator's dtype and rounded once, rather than by
            moving entries bit for bit.
    """

    name: ClassVar[str]
    triton: ClassVar[str] = ""
    still: ClassVar[bool] = False
    ids: ClassVar[bool] = False
    permutes: ClassVar[bool] = False
    computes: ClassVar[bool] = False

    @abstractmethod
    def parse(self, code: str) -> Views:
        """The views of a code, or a ValueError that says what is wrong with it."""

    @abstractmethod
    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        """The code of such views with other words and another part of the table."""

    def transposed(self, views: Views) -> str:
        """The code of the adjoint maps."""
        return self.written(views, views.words, not views.adjoint, views.inverse)

    def inverted(self, views: Views) -> str:
        """The code of the inverse maps: the adjoint ones, where views only move entries."""
        return self.transposed(views)

    def subtable(self, table: Tensor, elements: Sequence[int]) -> Tensor:
        """The table of some of the views."""
        return torch.stack([table[:, g] for g in elements], 1)

    def rows(self, views: Views, table: Tensor) -> Tensor:
        """(|G|, …): the part of the table that these maps follow."""
        return table[2 * views.inverse + views.adjoint]

    def table_shape(self, views: Views) -> tuple[int | None, ...] | None:
        """The shape of the table: None for views without one, and in place of a last size that may be any."""
        return None

    def check_table(self, views: Views, table: Tensor | None, like: Tensor) -> None:
        """That an operator got the table that belongs to the views, where ``like`` is."""
        shape = views.table_shape
        if shape is None:
            if table is not None:
                raise ValueError(f"table: expected none for the views {views.code!r}, got one")
            return
        dtype = accumulator(like) if self.computes else torch.int32
        if (  # the cheapest questions: small calls are counted
            table is not None
            and table.dtype is dtype
            and ((table.is_cpu and like.is_cpu) or table.device == like.device)
            and table.is_contiguous()
        ):
            found = table.shape  # faster than one of its sizes
            if found == shape if shape[-1] is not None else len(found) == 2 and found[0] == shape[0]:
                return
        got = "none" if table is None else f"{table.dtype} {tuple(table.shape)} on {table.device}"
        raise ValueError(
            f"table: expected a contiguous one of {dtype} and shape {shape} on {like.device} for the views "
            f"{views.code[:60]!r}, got {got}"
        )

    def of_grid(self, views: Views) -> Views:
        """See ``Views.grid``."""
        return views

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        """View g of x (*lead, *dims) in plain torch: a view of x where strides allow, a copy where they do not."""
        return x

    def dtypes(self, views: Views) -> frozenset[torch.dtype]:
        """What views can be made of."""
        if self.computes:
            return FLOATS
        return EXACT - set(UNSIGNED) if views.signed else EXACT

    def lacks(self, views: Views, shape: Sequence[int], skip: int, action: str) -> str | None:
        """What a tensor of that shape lacks to have such views, as an error says it, or None: ``(…) with …``.

        ``shape`` is that of (*group, *lead, *dims) with ``skip`` dims of the group; ``action`` is what the error calls
        the action.
        """
        return None

    @abstractmethod
    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        """What ``equikern._C`` takes behind the kind's number: sides, codes, size and the addresses of the table and
        of the positions. ``spreads``: for kernels that go through the channels of a source rather than of its views.
        """
