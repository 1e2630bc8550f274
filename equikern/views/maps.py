"""Linear maps, one for each element of a group: what the operators take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from . import of
from .base import Views

__all__ = ["Acting", "Maps", "Placed", "Tables", "captures"]

Placed = tuple[str, Tensor | None]  # the code of maps, and their table where a tensor is: what an operator takes


class Tables:
    """The table of a set of views, one copy a device, gone with its owner.

    What views compute with is given in float64 and in float32; other tables are int32.
    """

    __slots__ = ("_copies", "on_cpu", "own")

    def __init__(self, *own: Tensor) -> None:
        self.own = own
        self.on_cpu = len(own) > 0 and own[0].is_cpu
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}

    @staticmethod
    def made(table: Tensor) -> Tables:
        """Those of a table on the CPU: integers, or float64."""
        with torch.inference_mode(False), torch.no_grad():  # what was made in a mode could not be used outside of it
            table = table.detach().clone(memory_format=torch.contiguous_format)
            return Tables(table, table.float()) if table.is_floating_point() else Tables(table)

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on a device; copied there once."""
        own = self.own
        if not own or own[0].device == device:
            return own
        found = self._copies.get(device)
        if found is None:
            if device.type == "cuda" and not torch.compiler.is_compiling() and captures():
                raise ValueError(
                    f"action: expected one whose table is on {device} already, since a CUDA graph that is captured can "
                    "copy none there; call the operator once before the capture, or warmup"
                )
            with torch.inference_mode(False), torch.no_grad():
                found = tuple(t.to(device) for t in own)
            if not torch.compiler.is_compiling():
                self._copies[device] = found
        return found


def captures() -> bool:
    """Whether a CUDA graph is being captured: by no process that has not used a GPU."""
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return used and torch.cuda.is_current_stream_capturing()


_NONE = Tables()


class Maps:
    """|G| linear maps x ↦ map_g(x): what is static about them, and the table of what they contain.

    The table has the parts of the adjoint and of the inverse maps, too, and the code says which is meant: so one object
    leads to the others, and nobody has to pass the right pair.

    Attributes:
        views: what is static.
        tables: what they contain.

    Example:
        >>> turns = Maps("hw Wh")
        >>> turns.T.code, turns.T.T.code == turns.code, turns.inverse.code
        ('hw wH', True, 'hw wH')
    """

    __slots__ = ("code", "tables", "views")

    def __init__(self, code: str, tables: Tables | None = None) -> None:
        self.code = code
        self.views: Views = of(code)
        self.tables = _NONE if tables is None else tables

    @property
    def T(self) -> Maps:  # noqa: N802  (torch's name)
        """The adjoint maps, ⟨map_g(x), y⟩ = ⟨x, T_g(y)⟩: what gradients go through."""
        return Maps(self.views.back, self.tables)

    @property
    def inverse(self) -> Maps:
        """The inverse maps."""
        return Maps(self.views.undo, self.tables)

    def table(self, t: Tensor) -> Tensor | None:
        """What an operator takes beside the code for a tensor: on its device, in the dtype of its accumulator."""
        own = self.tables.own
        if not own:
            return None
        narrow = len(own) > 1 and t.dtype is not torch.float64
        if self.tables.on_cpu and type(t) is Tensor and t.is_cpu:  # the most frequent; small calls are counted
            return own[1] if narrow else own[0]  # torch 2.11 traces no index that is a bool
        own = self.tables.on(t.device)
        found = own[1] if narrow else own[0]
        return found if torch.compiler.is_compiling() else _beside(t, found)

    def placed(self, t: Tensor) -> Placed:
        """The code and the table for a tensor."""
        return self.code, self.table(t) if self.tables.own else None

    def subset(self, elements: Sequence[int]) -> Maps:
        """The maps of some elements, in their order."""
        views = self.views
        if len(elements) == views.order and list(elements) == list(range(views.order)):
            return self
        own = (views.kind.subtable(t, elements) for t in self.tables.own)
        return Maps(views.with_words([views.words[g] for g in elements]), Tables(*own))

    def with_words(self, words: Sequence[str]) -> Maps:
        """The same with other words for the grid."""
        return Maps(self.views.with_words(words), self.tables)

    def with_tables(self, *own: Tensor) -> Maps:
        """The same with the table somewhere else, as in a module's buffers."""
        return Maps(self.code, Tables(*own)) if own else self

    def __eq__(self, other: object) -> bool:
        """The same maps, whatever memory their tables are in."""
        if not isinstance(other, Maps) or self.code != other.code:
            return False
        pairs = zip(self.tables.own, other.tables.own, strict=True)
        return all(a is b or torch.equal(a.cpu(), b.cpu()) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self.code)

    def __repr__(self) -> str:
        return f"Maps({self.code[:60]!r})"


def _beside(t: Tensor, table: Tensor) -> Tensor:
    """A table as fake as the tensor that it goes with, where their mode does not see to that."""
    module = sys.modules.get("torch._subclasses.fake_tensor")  # which has no public name, and is slow to import
    if module is None or not isinstance(t, module.FakeTensor) or t.fake_mode.allow_non_fake_inputs:
        return table
    fake: Tensor = t.fake_mode.from_tensor(table)
    return fake


class Acting:
    """What the operators need to know of an action: a list of maps, and what undoes each of them.

    Attributes:
        name: what error messages call it.
        maps: g, for every element g.
        inverse_maps: g⁻¹, in the order of g.
        views: what is static about maps.
        order: |G|, the size of the group axis.
        dims: how many trailing dims the action moves: 2 or 3 for a grid, 1 for matrices and for a permutation of the
            last dim (3 for one of the third last, which moves all that is behind it), one more than its grid for a
            field, 0 for the trivial action and for token ids.
        sides: how many of them are a grid's.
        square: whether some view swaps height and width (or two sides of a volume), so that the image must be square.
    """

    def __init__(self, name: str, maps: Maps) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")
        if not isinstance(maps, Maps):
            raise TypeError(f"maps: expected Maps, such as another action's, got {type(maps).__name__}")
        self.name = name
        self.maps = maps
        self.inverse_maps = maps.inverse
        self.views = views = maps.views
        self.order, self.dims, self.sides, self.square = views.order, views.dims, views.sides, views.turns
