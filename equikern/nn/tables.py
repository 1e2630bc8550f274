"""The tables of a model's actions as its buffers, which move with it and are part of what is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..actions import Action, GroupAction

__all__ = ["ActionTables"]


class ActionTables(nn.Module):
    """Holds what permutations, matrices and fields of a model contain, as buffers that are not saved.

    Moving the model moves them, by the copies that the actions keep, one a device; their dtype and contents stay,
    whatever the model is cast to, and are there again after ``to_empty``.

    Args:
        actions: those that the model acts by.
    """

    def __init__(self, actions: Iterable[Action]) -> None:
        super().__init__()
        self.actions: list[Action] = []
        for action in actions:
            if action.maps.tables.own and not any(action is known for known in self.actions):
                self.actions.append(action)
        for k, action in enumerate(self.actions):
            for i, table in enumerate(action.maps.tables.own):
                self.register_buffer(f"table{k}_{i}", table, persistent=False)

    def forward(self, action: Action) -> Action:
        """The action with the tables that the model holds."""
        for k, known in enumerate(self.actions):
            if action is known:
                own = [getattr(self, f"table{k}_{i}") for i in range(len(action.maps.tables.own))]
                maps = action.maps.with_tables(*own)
                if isinstance(action, GroupAction):
                    return GroupAction(action.group, action.name, maps)
                return Action(action.name, maps)
        return action

    __call__ = forward  # without a module's hooks: calls are counted

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for k, action in enumerate(self.actions):
            for i in range(len(action.maps.tables.own)):
                # Where the function takes an empty part of a table, there the whole goes.
                device = fn(self.get_buffer(f"table{k}_{i}")[:0]).device
                setattr(self, f"table{k}_{i}", action.maps.tables.on(device)[i])
        return self

    def extra_repr(self) -> str:
        """Whose tables these are."""
        return ", ".join(repr(action) for action in self.actions)
