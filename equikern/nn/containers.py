"""Containers of what models take and return: dicts, tuples, lists and dataclasses, and what puts them together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["DROPPED", "leaves", "parts_of", "rebuilds"]

DROPPED = object()  # in the place of a part that is left out


def leaves(tree: Any) -> list[Any]:
    """What the containers of an output hold, in their order."""
    parts = parts_of(tree)
    return [tree] if parts is None else [leaf for part in parts.values() for leaf in leaves(part)]


def parts_of(container: Any) -> dict[Any, Any] | None:
    """What a dict, tuple, list or dataclass holds, by name or position; None for what is none of them."""
    if container is None or isinstance(container, (Tensor, bool, int, float, str)):
        return None
    if isinstance(container, Mapping):
        return dict(container.items())
    if isinstance(container, (tuple, list)):
        return dict(enumerate(container))
    if dataclasses.is_dataclass(container) and not isinstance(container, type):
        return {field.name: getattr(container, field.name) for field in dataclasses.fields(container)}
    return None


def rebuilds(container: Any) -> Callable[[dict[Any, Any]], Any]:
    """What puts other parts into a container of the same kind: of dicts those dropped are left out, elsewhere None."""
    kind = type(container)
    if dataclasses.is_dataclass(container):
        late = [field.name for field in dataclasses.fields(container) if not field.init]
        return lambda parts: _dataclass(kind, parts, late)
    if kind is dict or (isinstance(container, Mapping) and not isinstance(container, MutableMapping)):
        return _kept
    if isinstance(container, Mapping):
        empty: Any = copy.copy(container)  # what a subclass keeps beside its items comes along
        for key in container:
            empty[key] = None
        return lambda parts: _filled(empty, parts)
    if hasattr(container, "_fields"):
        return lambda parts: kind(*_nones(parts))
    return lambda parts: kind(_nones(parts))


def _kept(parts: dict[Any, Any]) -> dict[Any, Any]:
    return {key: part for key, part in parts.items() if part is not DROPPED}


def _nones(parts: dict[Any, Any]) -> Sequence[Any]:
    return [None if part is DROPPED else part for part in parts.values()]


def _dataclass(kind: Any, parts: dict[Any, Any], late: list[str]) -> Any:
    values = dict(zip(parts, _nones(parts), strict=True))
    made = kind(**{key: value for key, value in values.items() if key not in late})
    for key in late:
        object.__setattr__(made, key, values[key])
    return made


def _filled(empty: Any, parts: dict[Any, Any]) -> Any:
    filled = copy.copy(empty)
    for key, part in parts.items():  # some subclasses have no update
        if part is DROPPED:
            del filled[key]
        else:
            filled[key] = part
    return filled
