"""What every action has: its maps, and one element or many applied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

from torch import Tensor

from ..core import checks
from ..core.act import act
from ..groups import Group
from ..scalars import index
from ..views import EXACT
from ..views.maps import Acting, Maps

__all__ = ["Action", "GroupAction", "Tabled", "a_group", "check_rows", "element"]

T = TypeVar("T", bound="Tabled")


def element(name: str, g: object, order: int, action: str) -> int:
    """One element as a number, from an integer of Python, numpy or torch.

    Raises:
        TypeError: not a whole number.
        ValueError: not an element.
    """
    number = index(name, g)
    if not 0 <= number < order:
        raise ValueError(f"{name}: expected an element 0 … {order - 1} of {action!r}, got {number}")
    return number


def a_group(group: object) -> Group:
    """What is a group."""
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a Group, got {type(group).__name__}")
    return group


def check_rows(name: str, rows: int, group: object) -> None:
    """That a table has one row for each element of the group that it is given for, if it is for one."""
    if group is None:
        return
    group = a_group(group)
    if group.order != rows:
        raise ValueError(f"{name}: expected {group.order} rows, one per element of {group.name}, got {rows}")


class Action(Acting):
    """What the operators need to know: a linear map for each group element, and what undoes it.

    A list of views, which need not be a group's: ``GroupAction`` is the one whose maker has checked the laws. It does
    not change once made: copies are the action itself, equal actions are those of equal maps.

    Attributes:
        name: what error messages call the action.
        order: |G|, the size of the group axis.
        dims: how many trailing dims the action moves: 2 or 3 for a grid, 1 for matrices and for a permutation of the
            last dim (3 for one of the third last, which moves all that is behind it), one more than its grid for a
            field, 0 for the trivial action and for token ids.
        sides: how many of them are a grid's.
        words: what each element does to the grid, see ``equikern.views``.
        maps, inverse_maps: g and g⁻¹ for every element, in the group's order; each knows its adjoint, ``.T``.
        square: whether some view swaps height and width (or two sides of a volume), so that the image must be square.
    """

    @property
    def words(self) -> tuple[str, ...]:
        """What each element does to the grid, ``.`` for nothing; ``x`` or ``~`` for what has no grid."""
        return self.views.words

    def act(self, g: int | Tensor, x: Tensor) -> Tensor:
        """g·x: one element for all of x, or one for each sample.

        Args:
            g: an element, as a whole number of Python, numpy or torch; or (B,) int64 on x's device, one for each sample
                of x (B, …), as in ``orbit_act``.
            x: (\\*lead, \\*spatial), any dtype that ``orbit`` takes.

        Returns:
            The same shape; H and W swap with a quarter turn.

        Raises:
            TypeError: g is not a whole number, or x is not a tensor of a dtype that ``orbit`` takes.
            ValueError: g is not an element 0 … |G|−1, or x has too few dims or a dim of the wrong size.
        """
        if isinstance(g, Tensor) and g.dim():
            return act(x, g, self, name="g")
        g = element("g", g, self.order, self.name)
        checks.image("x", x, self, EXACT, turns=True)
        return self.views.kind.apply(x, self.views, self.maps.table(x), g)

    def __eq__(self, other: object) -> bool:
        """The same maps; names do not count."""
        return type(self) is type(other) and isinstance(other, Action) and self.maps == other.maps

    def __hash__(self) -> int:
        return hash(self.maps)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, order {self.order})"


class GroupAction(Action):
    """An action whose maker has checked that it is one: ``act(g∘h, x) = act(g, act(h, x))``.

    Attributes:
        group: the acting group.

    Example:
        >>> from equikern import grid
        >>> isinstance(grid("c4"), GroupAction), grid("c4").group.names
        (True, ('e', 'rot90', 'rot180', 'rot270'))
    """

    def __init__(self, group: Group, name: str, maps: Maps) -> None:
        super().__init__(name, maps)
        self.group = a_group(group)
        if group.order != maps.views.order:
            raise ValueError(f"maps: expected {group.order}, one per element of {group.name}, got {maps.views.order}")

    def __eq__(self, other: object) -> bool:
        """The same group acting by the same maps; names do not count."""
        return isinstance(other, GroupAction) and self.maps == other.maps and self.group == other.group

    def __hash__(self) -> int:
        return hash((self.maps, self.group))


class Tabled(GroupAction, ABC):
    """An action with a table of its own. Made directly it checks the table; ``made`` takes one that is right."""

    @abstractmethod
    def _set(self, group: Group, *contents: Any) -> None:
        """Take the contents as they are."""

    @classmethod
    def made(cls: type[T], group: Group, *contents: Any) -> T:
        """Of contents that are known to be right; also how a pickled one comes back."""
        action = cls.__new__(cls)
        action._set(group, *contents)
        return action
