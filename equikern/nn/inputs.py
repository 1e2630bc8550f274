"""The inputs of a call: which of them the group acts on, what is repeated for every view, and what views share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..actions import Action
from ..core import checks
from ..ops.checked import orbit_some
from .containers import parts_of, rebuilds
from .models import parameters_of
from .specs import SHARED
from .tables import ActionTables

if TYPE_CHECKING:
    from ..distributed import Ranks

__all__ = ["NOT_GIVEN", "Given", "Inputs", "buckets", "repeated", "split"]


class _NotGiven:
    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN: Any = _NotGiven()  # None is something that can be given


class Given:
    """The inputs of one call.

    Attributes:
        x, action: the input that leads, and how the group acts on it: it says the batch and the image's size.
        batch: B.
        labels: what a loss of the merged output is computed of, or None.
        beside: what else goes into that loss.
        trains: whether the backbone gets labels itself, and so gives a loss of its views.
    """

    __slots__ = ("_acted", "_args", "_kwargs", "_specs", "action", "batch", "beside", "labels", "trains", "x")

    def __init__(
        self,
        x: Tensor,
        action: Action,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        specs: dict[int | str, Any],
        acted: Sequence[tuple[Action, Tensor]],
    ) -> None:
        self.x, self.action, self.batch = x, action, x.shape[0]
        self._args, self._kwargs, self._specs, self._acted = args, kwargs, specs, acted
        self.labels: Any = None
        self.beside: Mapping[str, Any] = {}
        self.trains = False

    @property
    def turned(self) -> bool:
        """Whether views come in several shapes."""
        return not all(action.views.keeps(t.shape) for action, t in self._acted)

    def parts(self, most: int | None, ranks: Ranks | None = None) -> list[list[int]]:
        """The elements of every forward: views of one shape and of one process, as many as are allowed."""
        return split(buckets(self._acted), most, ranks)

    def seen(self, elements: Sequence[int], tables: ActionTables) -> tuple[list[Any], dict[str, Any]]:
        """What the backbone is given for some elements: their views of one input behind the other, (n·B, …)."""

        def see(at: str, t: Tensor, action: Action) -> Tensor:
            return orbit_some(t, tables(action), elements, at).flatten(0, 1)

        return self.shown(see, len(elements))

    def shown(self, see: Callable[[str, Tensor, Action], Tensor], n: int) -> tuple[list[Any], dict[str, Any]]:
        """What the backbone is given for n views, of which ``see`` makes those of an input, (n·B, …)."""
        if not self._kwargs and len(self._args) == 1 and self._args[0] is self.x:
            return [see("x", self.x, self.action)], {}
        args, kwargs, specs, batch = self._args, self._kwargs, self._specs, self.batch

        def view(at: str, value: Any, spec: Any) -> Any:
            return see(at, value, spec) if isinstance(spec, Action) else _repeated(at, value, n, batch, spec)

        return (
            [_walked(_at(i, args), value, specs.get(i), view) for i, value in enumerate(args)],
            {key: _walked(key, value, specs.get(key), view) for key, value in kwargs.items()},
        )

    def changed(self, change: Callable[[str, Tensor, Action], Tensor]) -> Given:
        """The same with every input that the group acts on changed; change is told its name and the action on it."""

        def put(at: str, value: Any, spec: Any) -> Any:
            return change(at, value, spec) if isinstance(spec, Action) else value

        return self._changed(put)

    def each(self, change: Callable[[Tensor], Tensor]) -> Given:
        """The same with every tensor that the backbone is given changed, those that are repeated or shared too."""

        def put(_: str, value: Any, spec: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return self._changed(put)

    def some(self, samples: Tensor) -> Given:
        """The same call of some samples; labels stay those of all."""
        chosen: list[int] | None = None

        def put(_: str, value: Any, spec: Any) -> Any:
            nonlocal chosen
            if spec == SHARED or (isinstance(value, Tensor) and (value.dim() == 0 or value.shape[0] != self.batch)):
                return value
            if isinstance(value, Tensor):
                return value.index_select(0, samples)
            if isinstance(value, (tuple, list)) and len(value) == self.batch:
                chosen = samples.tolist() if chosen is None else chosen
                some = [value[b] for b in chosen]
                return some if isinstance(value, list) else tuple(some)
            return value

        return self._changed(put)

    def _changed(self, put: Callable[[str, Any, Any], Any]) -> Given:
        args = [_walked(_at(i, self._args), value, self._specs.get(i), put) for i, value in enumerate(self._args)]
        kwargs = {key: _walked(key, value, self._specs.get(key), put) for key, value in self._kwargs.items()}
        changed = _given(args, kwargs, self._specs)
        changed.labels, changed.beside, changed.trains = self.labels, self.beside, self.trains
        return changed

    def acted(self) -> dict[str, tuple[Tensor, Action]]:
        """Every input that the group acts on and how, by its name."""
        found: dict[str, tuple[Tensor, Action]] = {}

        def note(at: str, t: Tensor, action: Action) -> Tensor:
            found[at] = t, action
            return t

        self.changed(note)
        return found

    def under(self, inputs: Inputs) -> Given:
        """The same call under another group."""
        first = self._args[0] if self._args else NOT_GIVEN
        given = inputs.given(first, tuple(self._args[1:]), self._kwargs)
        if given.labels is None:
            given.labels, given.beside = self.labels, self.beside
        return given

    @property
    def may_lack_batch(self) -> bool:
        """Whether the input that leads has a grid alone behind its first dim, so that this may be one of channels."""
        return bool(self.action.sides) and self.x.dim() <= self.action.dims + 1


class Inputs:
    """How a group acts on a backbone's inputs.

    Args:
        actions: what ``input_actions`` made of the user's spec.
        backbone: whose parameters have the names.
        labels: whether ``labels`` are kept from the backbone, for a loss of the merged output.
    """

    def __init__(self, actions: Any, backbone: object, labels: bool) -> None:
        self.actions, self.labels = actions, labels
        self.names, self.known = parameters_of(backbone)
        if self.known is not None and isinstance(actions, dict):
            unknown = [name for name in actions if name not in self.known]
            if unknown:
                raise ValueError(
                    f"inp: expected names of the backbone's inputs, {', '.join(sorted(self.known))}, got {unknown}"
                )

    def given(self, x: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}) -> Given:
        """The inputs of a call, each with what is done to it.

        Raises:
            TypeError, ValueError: nothing that the group acts on, tensors of other batches.
        """
        if not args and not kwargs and isinstance(self.actions, Action) and x is not NOT_GIVEN:
            _check_acted("x", x, self.actions, None)
            return Given(x, self.actions, (x,), {}, {0: self.actions}, ((self.actions, x),))
        positional, named = [] if x is NOT_GIVEN else [x, *args], dict(kwargs)
        if not positional and "x" in named and self._ours():
            positional = [named.pop("x")]
        specs = self._placed(positional, named)
        at = self._labels_at(positional, named)
        labels = None
        if self.labels and at is not None and at not in specs:
            labels = named.pop(at) if isinstance(at, str) else positional[at]
            if isinstance(at, int):
                positional[at] = None
        given = _given(positional, named, specs)
        given.labels = labels
        given.beside = {key: named[key] for key in ("num_items_in_batch",) if key in named}
        given.trains = at is not None and labels is None
        return given

    def _ours(self) -> bool:
        """Whether a keyword x is the first input, as it is called here: where the backbone has none of that name."""
        if isinstance(self.actions, dict) and "x" in self.actions:
            return False
        return len(self.names) > 0 and "x" not in self.names and "x" not in (self.known or ())

    def _placed(self, positional: list[Any], named: dict[str, Any]) -> dict[int | str, Any]:
        """The specs by the places that their inputs have in this call."""
        actions, count = self.actions, len(positional)
        if isinstance(actions, Action):
            if positional:
                return {0: actions}
            if self.names and self.names[0] in named:
                return {self.names[0]: actions}
            if len(named) == 1:
                return {next(iter(named)): actions}
            raise ValueError(
                f"inp: expected a dict that says which input {actions.name!r} acts on, since none is given by position "
                f"and of {sorted(named)} none is the backbone's first, got {actions!r}"
            )
        specs: dict[int | str, Any] = {}
        for key, spec in enumerate(actions) if isinstance(actions, tuple) else actions.items():
            name = self.names[key] if isinstance(key, int) and key < len(self.names) else key
            if isinstance(key, int) and key < count:
                specs[key] = spec
            elif name in named:
                specs[name] = spec
            elif name in self.names[:count]:
                specs[self.names.index(name)] = spec
            elif isinstance(key, int) and key >= len(self.names) > 0:
                raise ValueError(
                    f"inp: expected an action for each input at most, got {len(actions)} for {count} by position of "
                    f"{', '.join(self.names)}"
                )
            elif isinstance(name, str) and name not in self.names and name not in (self.known or ()):
                raise ValueError(
                    f"inp: expected names of inputs, got {name!r}, which is neither given nor a parameter of the "
                    f"backbone's; given are {count} by position and {sorted(named)}"
                )
        return specs

    def _labels_at(self, positional: Sequence[Any], named: Mapping[str, Any]) -> int | str | None:
        """Where a call has labels, if it has."""
        place = self.names.index("labels") if "labels" in self.names else len(positional)
        if place < len(positional):
            return None if positional[place] is None else place
        return None if named.get("labels") is None else "labels"


def _given(args: list[Any], kwargs: dict[str, Any], specs: dict[int | str, Any]) -> Given:
    acted: list[tuple[Action, Tensor]] = []

    def note(at: str, value: Any, spec: Any) -> None:
        if isinstance(spec, Action):
            _check_acted(at, value, spec, acted[0][1].shape[0] if acted else None)
            acted.append((spec, value))

    for key, spec in specs.items():
        value = args[key] if isinstance(key, int) else kwargs[key]
        _walked(_at(key, args) if isinstance(key, int) else key, value, spec, note)
    if not acted:
        names = [key if isinstance(key, str) else f"position {key}" for key in specs]
        raise ValueError(f"inp: expected an input that the group acts on, got none among {names}")
    lead = ([pair for pair in acted if pair[0].sides] or acted)[0]
    return Given(lead[1], lead[0], args, kwargs, specs, acted)


def _at(i: int, args: Sequence[Any]) -> str:
    return "x" if i == 0 else f"args[{i - 1}]"


def _walked(at: str, value: Any, spec: Any, leaf: Callable[[str, Any, Any], Any]) -> Any:
    """An input with every leaf changed; of containers, what has no spec of its own has None."""
    parts = None if _words(value) else parts_of(value)
    if parts is not None:
        if isinstance(spec, Action):
            raise TypeError(f"{at}: expected a torch.Tensor for {spec.name!r}, got a {type(value).__name__}")
        by_name = not isinstance(value, (tuple, list))
        if isinstance(spec, (tuple, dict)):
            each = dict(spec) if isinstance(spec, dict) else dict(enumerate(spec))
            if isinstance(spec, dict) is not by_name or not set(each) <= set(parts):
                wanted = f"dict of some of {list(parts)}" if by_name else f"tuple of at most {len(parts)}"
                raise ValueError(f"inp: expected a {wanted} for {at}, got {spec!r}")
        else:
            each = dict.fromkeys(parts, spec)
        return rebuilds(value)(
            {key: _walked(f"{at}[{key!r}]", part, each.get(key), leaf) for key, part in parts.items()}
        )
    if isinstance(spec, (tuple, dict)) and value is not None:
        raise TypeError(f"{at}: expected a {type(spec).__name__} as in inp, got {type(value).__name__}")
    return None if value is None else leaf(at, value, spec)


def _words(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(word, str) for word in value)


def _repeated(at: str, value: Any, n: int, batch: int, spec: Any) -> Any:
    """What no element moves, for n views of a batch: as it is if it has none, or one that fits all."""
    if spec == SHARED:
        return value
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return value
        if value.shape[0] == batch:
            return value.repeat(n, *(1,) * (value.dim() - 1)) if n > 1 else value
        if value.shape[0] == 1:
            return value
        what = f"shape {tuple(value.shape)}"
    elif isinstance(value, (tuple, list)):
        if len(value) == batch:
            return type(value)(value * n)
        what = f"{len(value)} strings"
    else:
        return value
    raise ValueError(
        f"{at}: expected a first dim that is the batch {batch}, to be repeated for every view, got {what}; "
        f'"{SHARED}" for it in inp passes it on as it is'
    )


def repeated(args: Sequence[Any], kwargs: Mapping[str, Any], n: int, batch: int) -> tuple[list[Any], dict[str, Any]]:
    """What is given beside x, for n views of a batch."""

    def view(at: str, value: Any, spec: Any) -> Any:
        return _repeated(at, value, n, batch, spec)

    return (
        [_walked(f"args[{i}]", value, None, view) for i, value in enumerate(args)],
        {key: _walked(key, value, None, view) for key, value in kwargs.items()},
    )


def _check_acted(at: str, t: object, action: Action, batch: int | None) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{at}: expected a torch.Tensor, got {type(t).__name__}")
    if t.dim() < action.dims + 1:
        raise ValueError(
            f"{at}: expected a batch (B, …, {checks.moved(action)}) for {action.name!r}, got shape {tuple(t.shape)}"
        )
    if batch is not None and t.shape[0] != batch:
        raise ValueError(f"{at}: expected the batch of the other inputs, {batch}, got shape {tuple(t.shape)}")


def split(found: list[list[int]], most: int | None, ranks: Ranks | None) -> list[list[int]]:
    """Buckets of elements in parts that each are one process's, of as many as are allowed."""
    if ranks is not None:
        found = ranks.cut(found)
    if most is None:
        return found
    return [bucket[start : start + most] for bucket in found for start in range(0, len(bucket), most)]


def buckets(seen: Sequence[tuple[Action, Tensor]]) -> list[list[int]]:
    """Elements whose views of inputs have one shape each: all of them, or upright and turned ones of a rectangle.

    They follow from what the views do to the sides, and from which sides are equal, not from how long they are.
    """
    turning = [(action, t.shape) for action, t in seen if not action.views.keeps(t.shape)]
    order = seen[0][0].order
    if not turning:
        return [list(range(order))]
    alike = []
    for action, shape in turning:
        sides = range(-action.views.sides, 0)
        alike.append({axis: min(other for other in sides if shape[other] == shape[axis]) for axis in sides})
    found: dict[tuple[int, ...], list[int]] = {}
    for g in range(order):
        pairs = zip(turning, alike, strict=True)
        key = tuple(same[axis] for (action, _), same in pairs for axis in action.views.axes[g] or same)
        found.setdefault(key, []).append(g)
    return list(found.values())
