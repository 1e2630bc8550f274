"""What the wrappers share: a backbone run on every view of a batch, its outputs walked and merged view by view."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..actions import Action, FieldAction, GroupAction, grid, trivial
from ..coordinates import Coordinates
from ..core import checks
from ..core.act import listed
from ..ops.checked import orbit_some, undo_each
from ..views import FLOATS
from .merging import Gathered, Merge, Output
from .tables import ActionTables

ActionSpec = GroupAction | str
OutputSpec = ActionSpec | Coordinates | Sequence["OutputSpec"] | Mapping[str, "OutputSpec"]
MakeMerge = Callable[[Output], Merge]
Call = Callable[[Tensor], "tuple[Any, Tensor | None]"]


class OrbitModule(nn.Module):
    """A backbone run on the |G| views of a batch; subclasses say how its outputs are merged.

    Attributes:
        backbone: the wrapped model.
        inp: the action on the input.
        out: the action on every output, in the containers they come in.
        views_per_forward: the most views of one forward, or None.
    """

    def __init__(
        self, backbone: Callable[[Tensor], Any], inp: ActionSpec, out: OutputSpec, views_per_forward: int | None = None
    ) -> None:
        super().__init__()
        if not callable(backbone):
            raise TypeError(f"backbone: expected a module or a callable, got {type(backbone).__name__}")
        self.backbone = backbone
        self.inp = action_of("inp", inp, None)
        self.out = _actions(out, self.inp)
        outputs = [spec.linear if isinstance(spec, Coordinates) else spec for spec in leaves(self.out)]
        self._tables = ActionTables([self.inp, *outputs])
        check_views(views_per_forward)
        self.views_per_forward = views_per_forward

    def views(self, x: Tensor) -> Any:
        """Every view's output, transformed back and not merged: (|G|, B, …) for each output, in the group's order.

        What the merged output is made of: for looking at single views, or a merge of your own.
        """
        return self._merged(x, lambda output: Gathered(output, _undone))

    def _call(self, views: Tensor) -> tuple[Any, Tensor | None]:
        """The model on one batch of views, and what it says of each of them, (n·B,), that the merge needs."""
        return self.backbone(views), None

    def _beside(self, outputs: Any, beside: Tensor | None) -> Tensor | None:
        """What the merge needs beside the outputs (n, B, …) of some views: (n, B)."""
        return beside

    def _parts(self, x: Tensor) -> list[list[int]]:
        """The elements of every forward: views of one shape, as many as are allowed."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        if x.dim() < self.inp.dims + 1:
            raise ValueError(
                f"x: expected a batch (B, …, {checks.moved(self.inp)}) for {self.inp.name!r}, got shape "
                f"{tuple(x.shape)}"
            )
        found = []
        for bucket in buckets(self.inp, x.shape):
            size = self.views_per_forward or len(bucket)
            found += [bucket[start : start + size] for start in range(0, len(bucket), size)]
        return found

    def _forwards(
        self, x: Tensor, parts: list[list[int]], call: Call | None = None
    ) -> Iterator[tuple[list[int], Any, Tensor | None]]:
        """For every part its elements, the outputs (n, B, …) and what is beside them."""
        inp, call = self._tables(self.inp), call or self._call
        for elements in parts:
            # Nothing here may hold an output while the next one is made.
            yield elements, *self._split(*self._run(call, orbit_some(x, inp, elements).flatten(0, 1), x), elements, x)

    def _run(self, call: Call, views: Tensor, x: Tensor) -> tuple[Any, Tensor | None]:
        if x.dim() > self.inp.dims + 1 or not self.inp.sides or torch.compiler.is_compiling():
            return call(views)
        try:
            return call(views)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if type(error) not in (RuntimeError, ValueError, TypeError, IndexError):  # such as torch.OutOfMemoryError
                raise
            raise ValueError(
                f"x: {tuple(x.shape)} was taken for a batch of {len(x)} ({checks.moved(self.inp)}), with which the "
                f"backbone fails; a single image with channels is x[None]. It says: {error}"
            ) from error

    def _split(self, outputs: Any, beside: Tensor | None, elements: list[int], x: Tensor) -> tuple[Any, Tensor | None]:
        outputs = _split_batch(outputs, len(elements), x.shape[0])
        if beside is not None:
            beside = beside.unflatten(0, (len(elements), x.shape[0]))  # type: ignore[no-untyped-call]
        return outputs, self._beside(outputs, beside)

    def _merged(
        self, x: Tensor, make: MakeMerge, dtypes: frozenset[torch.dtype] = FLOATS, call: Call | None = None
    ) -> Any:
        """The merged outputs for a batch x: every output's views go to the merge that ``make`` gives for it."""
        parts = self._parts(x)
        turned = not self.inp.views.keeps(x.shape)
        skeleton, merges = None, None
        for elements, outputs, beside in self._forwards(x, parts, call):
            if merges is None:
                skeleton = mapped(outputs, lambda _: None)
                merges = [make(self._output(spec, x, turned, dtypes)) for _, spec in fitting(outputs, self.out)]
            _add(merges, fitting(outputs, self.out), elements, beside)
            del outputs, beside
        assert merges is not None
        results = iter([merge.result() for merge in merges])
        return mapped(skeleton, lambda _: next(results))

    def _output(self, spec: Any, x: Tensor, turned: bool, dtypes: frozenset[torch.dtype]) -> Output:
        size = (x.shape[-2], x.shape[-1]) if x.dim() > 1 else (1, 1)
        if not isinstance(spec, Coordinates):
            return Output(self._tables(spec), None, size, turned, dtypes)
        if not self._averages:
            raise ValueError(f"out: {spec!r} takes a mean or the choice of a view, got {self.extra_repr()}")
        return Output(self._tables(spec.linear), spec, size, turned, dtypes)

    @property
    def _averages(self) -> bool:
        """Whether merged coordinates do not depend on where they are counted from."""
        return True

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inp={self.inp!r}, out={self.out!r}"


def _add(merges: list[Merge], pairs: list[tuple[Tensor, Any]], elements: list[int], beside: Tensor | None) -> None:
    for merge, (y, _) in zip(merges, pairs, strict=True):
        merge.add(y, elements, beside)


def check_views(views_per_forward: object) -> None:
    """None, or a whole number from 1."""
    if views_per_forward is None:
        return
    checks.whole("views_per_forward", views_per_forward, 1)


def in_group_order(t: Tensor, elements: Sequence[int], axis: int = 0) -> Tensor:
    """A group axis in the order of the group's elements, from the order that they came in."""
    if all(g == k for k, g in enumerate(elements)):
        return t
    places = sorted(range(len(elements)), key=elements.__getitem__)
    return t.index_select(axis, listed(places, t.device))


def _undone(y: Tensor, action: Action, _: Tensor | None, elements: list[int]) -> Tensor:
    return in_group_order(undo_each("output", y, action), elements)


def buckets(inp: GroupAction, shape: Sequence[int]) -> list[list[int]]:
    """Elements whose views of such a shape have one: all of them, or upright and turned ones of a rectangle.

    They follow from what the views do to the sides, and from which sides are equal, not from how long they are.
    """
    views = inp.views
    if views.keeps(shape):
        return [list(range(inp.order))]
    sides = range(-views.sides, 0)
    alike = {axis: min(other for other in sides if shape[other] == shape[axis]) for axis in sides}
    found: dict[tuple[int, ...], list[int]] = {}
    for g, axes in enumerate(views.axes):
        found.setdefault(tuple(alike[axis] for axis in axes or sides), []).append(g)
    return list(found.values())


def leaves(tree: Any) -> list[Any]:
    """What the containers of an output, or of its actions, hold."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, (tuple, list)) else [tree]


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with every leaf changed, in the order of ``leaves``."""
    if isinstance(tree, Mapping):
        return _rebuilt(tree, {key: mapped(value, change) for key, value in tree.items()})
    return (
        _rebuilt(tree, [mapped(value, change) for value in tree]) if isinstance(tree, (tuple, list)) else change(tree)
    )


def action_of(name: str, spec: object, like: GroupAction | None) -> GroupAction:
    """The action that a spec names: itself, or a grid's name; "trivial" is that of the group of ``like``.

    Raises:
        TypeError, ValueError: no action or unknown name, or a group other than that of ``like``; called ``name``.
    """
    if isinstance(spec, str):
        try:
            action: GroupAction = trivial(like.group) if like is not None and spec == "trivial" else grid(spec)
        except ValueError as error:
            raise ValueError(f"{name}{str(error).removeprefix('name')}") from None
    elif isinstance(spec, GroupAction):
        action = spec
    else:
        raise TypeError(f"{name}: expected an action or a name such as 'd4', got {type(spec).__name__}")
    if like is not None and action.group != like.group:
        raise ValueError(
            f"{name}: expected an action of the input's group {like.group!r} ({like.name!r}), got {action.name!r} "
            f"of {action.group!r}"
        )
    return action


def _actions(spec: object, inp: GroupAction, name: str = "out") -> Any:
    """The output specs as actions, in the containers they came in."""
    if isinstance(spec, Coordinates):
        if spec.action != (inp.grid if isinstance(inp, FieldAction) else inp):
            raise ValueError(f"{name}: expected one made for the input's {inp!r}, got {spec!r}")
        return spec
    if isinstance(spec, Mapping):
        return {key: _actions(value, inp, f"{name}[{key!r}]") for key, value in spec.items()}
    if isinstance(spec, (tuple, list)):
        return tuple(_actions(value, inp, f"{name}[{i}]") for i, value in enumerate(spec))
    return action_of(name, spec, inp)


def _split_batch(output: Any, order: int, batch: int, name: str = "") -> Any:
    """(|G|·B, …) → (|G|, B, …) for every tensor of the backbone's output; ``name`` is that of a part."""
    if isinstance(output, Mapping):
        return _rebuilt(output, {key: _split_batch(t, order, batch, f"{name}[{key!r}]") for key, t in output.items()})
    if isinstance(output, (tuple, list)):
        return _rebuilt(output, [_split_batch(t, order, batch, f"{name}[{i}]") for i, t in enumerate(output)])
    at = f" at {name}" if name else ""
    if not isinstance(output, Tensor):
        raise TypeError(f"backbone: expected it to return a tensor, tuple or dict{at}, got {type(output).__name__}")
    if output.dim() == 0 or output.shape[0] != order * batch:
        raise ValueError(
            f"backbone: expected an output{at} whose first dim is the batch {order * batch} ({order} views of "
            f"{batch}), got shape {tuple(output.shape)}"
        )
    return output.unflatten(0, (order, batch))  # type: ignore[no-untyped-call]


def _rebuilt(container: Any, values: Any) -> Any:
    """The values in a container of the same kind: dicts and their subclasses, named tuples, tuples and lists."""
    if isinstance(container, Mapping):
        if type(container) is dict or not isinstance(container, dict):
            return dict(values)
        rebuilt = copy.copy(container)  # what a subclass keeps beside its items comes along
        for key, value in values.items():  # some subclasses have no update
            rebuilt[key] = value
        return rebuilt
    return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)


def fitting(outputs: Any, spec: Any, name: str = "") -> list[tuple[Tensor, Any]]:
    """Every tensor of the backbone's outputs with the spec that is meant for it, in the order of ``leaves``."""
    if isinstance(outputs, Tensor):
        if isinstance(spec, (dict, tuple)):
            raise ValueError(f"out{name}: expected one action, since the backbone returns one tensor, got {spec!r}")
        return [(outputs, spec)]
    if isinstance(outputs, Mapping):
        keys, kind = list(outputs), "dict"
        fits = isinstance(spec, dict) and set(spec) == set(keys)
    else:
        keys, kind = list(range(len(outputs))), "tuple"
        fits = isinstance(spec, tuple) and len(spec) == len(keys)
    if not fits:
        raise ValueError(
            f"out{name}: the backbone returns a {kind} with {keys}; expected a {kind} with an action for each, got "
            f"{spec!r}"
        )
    return [pair for key in keys for pair in fitting(outputs[key], spec[key], f"{name}[{key!r}]")]
