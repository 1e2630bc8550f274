"""How users say what a group does to the inputs and outputs of a model, and the actions that this means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..actions import FieldAction, GroupAction, MatrixSamples, grid, trivial
from ..coordinates import Coordinates
from ..core import checks

__all__ = [
    "SHARED",
    "ActionSpec",
    "InputSpec",
    "OutputSpec",
    "Together",
    "acting",
    "action_of",
    "input_actions",
    "mapped",
    "output_actions",
    "places",
    "together",
]

SHARED = "shared"  # what every view has in common, such as a table or a temperature
ActionSpec = GroupAction | str
InputSpec = ActionSpec | None | Sequence["InputSpec"] | Mapping[str, "InputSpec"]
OutputSpec = ActionSpec | Coordinates | None | Sequence["OutputSpec"] | Mapping[str, "OutputSpec"]


def action_of(name: str, spec: object, like: GroupAction | None) -> GroupAction:
    """The action that a spec names: itself, or a grid's name; "trivial" is that of the group of ``like``.

    Raises:
        TypeError, ValueError: no action or unknown name, or a group other than that of ``like``; called ``name``.
    """
    if isinstance(spec, str):
        try:
            action: GroupAction = trivial(like.group) if like is not None and spec == "trivial" else grid(spec)
        except ValueError as error:
            still = " ('trivial' for what does not change)" if name.startswith("out") else ""
            raise ValueError(f"{name}{str(error).removeprefix('name')}{still}") from None
    elif isinstance(spec, GroupAction):
        action = spec
    else:
        instead = (
            "; samples, which are no group, are for CanonicalLambdaEquiTune" if isinstance(spec, MatrixSamples) else ""
        )
        raise TypeError(f"{name}: expected an action or a name such as 'd4', got {type(spec).__name__}{instead}")
    if like is not None and action.group != like.group:
        raise ValueError(
            f"{name}: expected an action of the input's group {like.group!r} ({like.name!r}), got {action.name!r} "
            f"of {action.group!r}"
        )
    return action


def input_actions(name: str, spec: object) -> tuple[Any, GroupAction]:
    """The input specs as actions, in the containers they came in, and the action that leads.

    That is the first one on a grid, or the first, if none is.
    """
    if not isinstance(spec, (Mapping, tuple, list)):
        action = action_of(name, spec, None)
        return action, action
    named = [(at, leaf) for at, leaf in _leaves(spec, name) if leaf is not None and leaf != SHARED]
    if not named:
        raise ValueError(f"{name}: expected an action for one input at least, got {spec!r}")
    first = next((pair for pair in named if pair[1] != "trivial"), named[0])
    like = action_of(*first, None)
    made = _made(spec, name, lambda at, leaf: leaf if leaf is None or leaf == SHARED else action_of(at, leaf, like))
    found = acting(made)
    return made, next((action for action in found if action.sides), found[0])


def output_actions(spec: object, inp: GroupAction, name: str = "out") -> Any:
    """The output specs as actions, in the containers they came in."""

    def leaf(at: str, given: object) -> Any:
        if at != name and (given is None or given == SHARED):
            return given
        if isinstance(given, Coordinates):
            if given.action != (inp.grid if isinstance(inp, FieldAction) else inp):
                raise ValueError(f"{at}: expected one made for the input's {inp!r}, got {given!r}")
            return given
        return action_of(at, given, inp)

    return _made(spec, name, leaf)


class Together:
    """How several groups act on one output."""

    __slots__ = ("actions",)

    def __init__(self, actions: Sequence[GroupAction]) -> None:
        self.actions = tuple(actions)

    def __repr__(self) -> str:
        return " and ".join(map(repr, self.actions))


def together(name: str, specs: Sequence[Any]) -> Any:
    """The actions of several groups on the same outputs, in the containers that all of them have.

    Raises:
        TypeError: coordinates, which one group measures from the middle of its image.
        ValueError: containers that differ, or an output that is dropped or shared for one group alone.
    """
    first = specs[0]
    if isinstance(first, (dict, tuple)):
        keys = [*first] if isinstance(first, dict) else [*range(len(first))]
        for spec in specs[1:]:
            if type(spec) is not type(first) or set(spec if isinstance(spec, dict) else range(len(spec))) != set(keys):
                raise ValueError(f"{name}: expected the outputs of {first!r} for every group, got {spec!r}")
        parts = {key: together(f"{name}[…][{key!r}]", [spec[key] for spec in specs]) for key in keys}
        return parts if isinstance(first, dict) else tuple(parts.values())
    if all(isinstance(spec, GroupAction) for spec in specs):
        return Together(specs)
    if any(isinstance(spec, Coordinates) for spec in specs):
        raise TypeError(f"{name}: expected actions, got coordinates among {list(specs)!r}")
    if any(spec != first for spec in specs):
        raise ValueError(f"{name}: expected the same for every group, None, {SHARED!r} or actions, got {list(specs)!r}")
    return first


def places(specs: Any, names: Sequence[str]) -> dict[tuple[int | str, ...], GroupAction]:
    """The actions on inputs by where these are: the input's name, or position without one, and where in it."""
    if isinstance(specs, GroupAction):
        specs = (specs,)
    found: dict[tuple[int | str, ...], GroupAction] = {}

    def walk(at: tuple[int | str, ...], spec: Any) -> None:
        if isinstance(spec, (dict, tuple)):
            for key, part in spec.items() if isinstance(spec, dict) else enumerate(spec):
                named = not at and isinstance(key, int) and key < len(names)
                walk((*at, names[key] if named else key), part)
        elif isinstance(spec, GroupAction):
            found[at] = spec

    walk((), specs)
    return found


def mapped(name: str, specs: Any, known: Mapping[str, Any]) -> Any:
    """The specs with what is known for their words, in the containers they came in."""

    def leaf(at: str, given: object) -> Any:
        if at != name and (given is None or given == SHARED):
            return given
        checks.choice(at, given, tuple(known))
        return known[given]  # type: ignore[index]

    return _made(specs, name, leaf)


def acting(specs: Any) -> list[Any]:
    """The actions and coordinates of specs, in their order, without what is dropped, repeated or shared."""
    return [leaf for _, leaf in _leaves(specs, "") if leaf is not None and not isinstance(leaf, str)]


def _leaves(specs: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(specs, Mapping):
        for key, value in specs.items():
            yield from _leaves(value, f"{name}[{key!r}]")
    elif isinstance(specs, (tuple, list)):
        for i, value in enumerate(specs):
            yield from _leaves(value, f"{name}[{i}]")
    else:
        yield name, specs


def _made(specs: Any, name: str, leaf: Callable[[str, Any], Any]) -> Any:
    if isinstance(specs, Mapping):
        return {key: _made(value, f"{name}[{key!r}]", leaf) for key, value in specs.items()}
    if isinstance(specs, (tuple, list)):
        return tuple(_made(value, f"{name}[{i}]", leaf) for i, value in enumerate(specs))
    return leaf(name, specs)
