"""What the wrappers share: a backbone run on every view of a batch, its outputs walked and merged view by view."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..actions import Action, GroupAction, apply_word, compose, grid, trivial, view_shape
from ..coordinates import Coordinates
from ..field_tables import is_field, parts
from ..fields import FieldAction
from ..ops import autograd, checks

ActionSpec = GroupAction | str
OutputSpec = ActionSpec | Coordinates | Sequence["OutputSpec"] | Mapping[str, "OutputSpec"]
MergeOne = Callable[[Tensor, Action], "Tensor | tuple[Tensor, Tensor]"]


class OrbitModule(nn.Module):
    """A backbone run on the |G| views of a batch; subclasses say how its outputs are merged.

    Attributes:
        backbone: the wrapped model.
        inp: the action on the input.
        out: the action on every output, in the containers they come in.
        views_per_forward: the most views of one forward, or None.
    """

    def __init__(
        self, backbone: Callable[[Tensor], Any], inp: ActionSpec, out: OutputSpec, views_per_forward: int | None
    ) -> None:
        super().__init__()
        if not callable(backbone):
            raise TypeError(f"backbone: expected a module or a callable, got {type(backbone).__name__}")
        if views_per_forward is not None:
            if isinstance(views_per_forward, bool) or not isinstance(views_per_forward, int):
                raise TypeError(
                    f"views_per_forward: expected a whole number or None, got {type(views_per_forward).__name__}"
                )
            if views_per_forward < 1:
                raise ValueError(f"views_per_forward: expected 1 or more views, got {views_per_forward}")
        self.backbone = backbone
        self.inp = action_of("inp", inp, None)
        self.out = _actions(out, self.inp)
        self.views_per_forward = views_per_forward

    def views(self, x: Tensor) -> Any:
        """Every view's output, transformed back and not merged: (|G|, B, …) for each output, in the group's order.

        What the merged output is made of: for looking at single views, or a merge of your own.
        """
        outputs, buckets = self._plain_outputs(x)
        return self._merged(x, outputs, buckets, lambda y, action: _undone(y, action, buckets))

    def _plain_outputs(self, x: Tensor) -> tuple[list[list[Any]], list[list[int]]]:
        """``_outputs`` without what a subclass adds to them."""
        return self._outputs(x)

    def _outputs(self, x: Tensor) -> tuple[list[list[Any]], list[list[int]]]:
        """The outputs of every part of every bucket of views, and the elements of each bucket."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        if x.dim() < self.inp.dims + 1:
            raise ValueError(
                f"x: expected a batch (B, …, {checks.moved(self.inp)}) for {self.inp.name!r}, got shape "
                f"{tuple(x.shape)}"
            )
        buckets = _buckets(self.inp, x)
        return [[self._run(x, part) for part in self._parts(bucket)] for bucket in buckets], buckets

    def _parts(self, bucket: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self.views_per_forward or len(bucket)
        for start in range(0, len(bucket), size):
            yield bucket[start : start + size]

    def _run(self, x: Tensor, elements: Sequence[int]) -> Any:
        """The backbone's output for some elements' views, with the group axis split off again."""
        return _split_batch(self._call(self._views_of(x, elements)), len(elements), x.shape[0])

    def _views_of(self, x: Tensor, elements: Sequence[int]) -> Tensor:
        """Some elements' views as one batch."""
        maps = " ".join(self.inp.words[g] for g in elements)
        adjoint = " ".join(self.inp.adjoint_words[g] for g in elements)
        x, _ = checks.image("x", x, self.inp, checks.EXACT, turns=True)  # a rectangle's views come bucket by bucket
        return autograd.orbit(x, maps, adjoint).flatten(0, 1)

    def _call(self, views: Tensor) -> Any:
        """The model on one batch of views."""
        return self.backbone(views)

    @property
    def _averages(self) -> bool:
        """Whether merged coordinates do not depend on where they are counted from."""
        return True

    def _merged(self, x: Tensor, outputs: list[list[Any]], buckets: list[list[int]], merge_one: MergeOne) -> Any:
        def merge_output(parts: list[list[Tensor]], spec: Any) -> Any:
            if isinstance(spec, Coordinates):
                if not self._averages:
                    raise ValueError(f"out: {spec!r} takes a mean or the choice of a view, got {self.extra_repr()}")
                size, elements = (x.shape[-2], x.shape[-1]), [g for bucket in buckets for g in bucket]
                y, action = _gather(parts, spec.linear, buckets)
                merged = merge_one(spec.from_middle(y, elements, size), action)
                assert isinstance(merged, Tensor)
                return spec.from_corner(merged, size)
            checks.moved_dim("output", parts[0][0], spec)  # what is made of a rectangle's views has words alone
            return merge_one(*_gather(parts, spec, buckets))

        return _merge(outputs, self.out, merge_output)


def per_view(parts: list[list[Tensor]]) -> Tensor:
    """(|G|, B) from what each part gave, in the order in which the views of an output are gathered."""
    return torch.cat([t for bucket in parts for t in bucket])


def in_group_order(t: Tensor, buckets: list[list[int]], axis: int = 0) -> Tensor:
    """A group axis in the order of the group's elements, from the order of the buckets."""
    if len(buckets) == 1:
        return t
    order = torch.tensor([g for bucket in buckets for g in bucket]).argsort()
    return t.index_select(axis, order.to(t.device))


def _undone(y: Tensor, action: Action, buckets: list[list[int]]) -> Tensor:
    y, action = checks.views("output", y, action)
    return in_group_order(autograd.each(y, 0, action.inverse_maps, action.inverse_adjoint_maps), buckets)


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


def _buckets(inp: GroupAction, x: Tensor) -> list[list[int]]:
    """Elements whose views have one shape: all of them, or upright and turned ones where x is a rectangle."""
    if not inp.square:
        return [list(range(inp.order))]
    buckets: dict[tuple[int, ...], list[int]] = {}
    for g, word in enumerate(inp.words):
        buckets.setdefault(view_shape(x.shape, word), []).append(g)
    return list(buckets.values())


def _split_batch(output: Any, order: int, batch: int) -> Any:
    """(|G|·B, …) → (|G|, B, …) for every tensor of the backbone's output."""
    if isinstance(output, Mapping):
        return _rebuilt(output, {key: _split_batch(value, order, batch) for key, value in output.items()})
    if isinstance(output, (tuple, list)):
        return _rebuilt(output, [_split_batch(value, order, batch) for value in output])
    if not isinstance(output, Tensor):
        raise TypeError(f"backbone: expected it to return a tensor, tuple or dict, got {type(output).__name__}")
    if output.dim() == 0 or output.shape[0] != order * batch:
        raise ValueError(
            f"backbone: expected an output whose first dim is the batch {order * batch} ({order} views of {batch}), "
            f"got shape {tuple(output.shape)}"
        )
    return output.unflatten(0, (order, batch))  # type: ignore[no-untyped-call]


def _rebuilt(container: Any, values: Any) -> Any:
    """The values in a container of the same kind: dicts and their subclasses, named tuples, tuples and lists."""
    if isinstance(container, Mapping):
        if not isinstance(container, dict):
            return dict(values)
        rebuilt = copy.copy(container)  # what a subclass keeps beside its items comes along
        for key, value in values.items():  # some subclasses have no update
            rebuilt[key] = value
        return rebuilt
    return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)


def _merge(outputs: list[list[Any]], spec: Any, merge_output: Callable[[list[list[Tensor]], Any], Any]) -> Any:
    """Walk the output's containers and the specs side by side, and merge each tensor's views."""
    first = outputs[0][0]
    if isinstance(first, Tensor):
        if isinstance(spec, (dict, tuple)):
            raise ValueError(f"out: expected one action, since the backbone returns one tensor, got {spec!r}")
        return merge_output(outputs, spec)
    if isinstance(first, Mapping):
        keys, kind = list(first), "dict"
        fits = isinstance(spec, dict) and set(spec) == set(keys)
    else:
        keys, kind = list(range(len(first))), "tuple"
        fits = isinstance(spec, tuple) and len(spec) == len(keys)
    if not fits:
        raise ValueError(
            f"out: the backbone returns a {kind} with {keys}; expected a {kind} with an action for each, got {spec!r}"
        )
    merged = [_merge([[part[key] for part in bucket] for bucket in outputs], spec[key], merge_output) for key in keys]
    return _rebuilt(first, dict(zip(keys, merged, strict=True)) if kind == "dict" else merged)


def _gather(outputs: list[list[Tensor]], action: GroupAction, buckets: list[list[int]]) -> tuple[Tensor, Action]:
    """All views of one output on one group axis, and the action that transforms them back."""
    first = outputs[0][0]
    if first.dtype not in checks.FLOATS:
        raise TypeError(f"backbone: expected outputs of a floating-point dtype to merge, got {first.dtype}")
    if first.dim() < 2 + action.dims:
        raise ValueError(
            f"out: expected outputs (B, …, {checks.moved(action)}) for {action.name!r} to act on, but got "
            f"{tuple(first.shape[1:])} from the backbone; "
            'an output without spatial dims takes "trivial"'
        )
    if len(buckets) == 1:
        if not checks.keeps_shape(first.shape, action):
            sides = "cubic" if action.sides == 3 else "square"
            raise ValueError(
                f"backbone: expected {sides} outputs for a {sides} input under {action.name!r}, got "
                f"{'×'.join(map(str, first.shape[-len(_sides(action.words[0])) :]))}"
            )
        parts = outputs[0]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), action
    words: list[str] = []
    inverse_words: list[str] = []
    gathered: list[Tensor] = []
    for parts, bucket in zip(outputs, buckets, strict=True):
        # Turned views are laid beside the upright ones by exchanging their sides, which leaves only flips to undo.
        upright, back = _sides(action.inverse_words[bucket[0]]), _sides(action.words[bucket[0]])
        own, inverse = [action.words[g] for g in bucket], [action.inverse_words[g] for g in bucket]
        if upright == ".":
            words, inverse_words, gathered = words + own, inverse_words + inverse, gathered + parts
            continue
        words += [compose(upright, word) for word in own]
        inverse_words += [compose(word, back) for word in inverse]
        gathered += [apply_word(part, upright) for part in parts]
    _same_shapes(gathered)
    return torch.cat(gathered), Action(action.name, words, inverse_words)


def _sides(word: str) -> str:
    """What a view does to the sides of a grid, without its flips; "." where it has no grid."""
    if is_field(word):
        _, word = parts(word)
    return "." if word[0] in "ptm" else word.lower()


def _same_shapes(parts: list[Tensor]) -> None:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"backbone: expected the same output shape for an image and the turned image (turned back), got "
            f"{' and '.join(map(str, sorted(shapes)))}"
        )
