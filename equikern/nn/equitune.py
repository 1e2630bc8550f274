"""``EquiTune``: a pretrained model made equivariant by averaging over the group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..actions import Action, GroupAction, compose, grid, transposes, trivial
from ..ops import autograd, checks, orbit_mean, orbit_reduce
from ..ops.reduce import REDUCTIONS

__all__ = ["EquiTune"]

ActionSpec = GroupAction | str
OutputSpec = ActionSpec | Sequence["OutputSpec"] | Mapping[str, "OutputSpec"]


class EquiTune(nn.Module):
    """Make a backbone equivariant: ``M_G(x) = 1/|G| Σ_g g⁻¹ M(g x)`` (equi-tuning, arXiv 2210.06475).

    The backbone sees the |G| views of a batch as one batch of |G|·B samples; its outputs are transformed back and
    merged in one pass. A rectangle under a group with 90° rotations is run as two batches, upright and turned. Nothing
    is added to learn, so the wrapper works zero-shot, and it can be fine-tuned: gradients reach the backbone.

    Args:
        backbone: a module, or any callable from a (B, …, H, W) tensor to a tensor, tuple or dict of tensors whose
            first dim is the batch. It is reachable as ``.backbone``; state_dict keys have the prefix ``backbone.``.
        inp: how the group acts on the input: an action, or its name such as ``"d4"``.
        out: how it acts on the output: an action of the same group, its name, or ``"trivial"`` for an output that the
            group leaves alone, such as class logits. A tuple or dict of these, nested as its outputs
            are, for a backbone with several outputs.
        reduce: ``"mean"``, or one of ``orbit_reduce``'s ops; ``"mean_std"`` returns a pair for every output.
        views_per_forward: run the backbone on at most so many views at a time, to cap the memory of one forward; all
            of them by default. (While gradients are recorded every forward's activations are kept all the same.
            Batch statistics of a backbone in training mode are then those of each part.)

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch, equivariant: ``model(g x) = g model(x)``.

    Raises:
        TypeError: a backbone that cannot be called, or a spec that is not an action.
        ValueError: actions of different groups, an unknown name or reduce, views_per_forward below 1; in the forward,
            an x without a batch dim or an output that does not fit ``out``.

    Example:
        >>> conv = nn.Conv2d(3, 4, 3, padding=1)
        >>> model = EquiTune(conv, "c4", "c4")
        >>> x = torch.randn(2, 3, 8, 8)
        >>> bool((model(x.rot90(1, (-2, -1))) - model(x).rot90(1, (-2, -1))).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Any],
        inp: ActionSpec,
        out: OutputSpec,
        reduce: str = "mean",
        views_per_forward: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(backbone):
            raise TypeError(f"backbone: expected a module or a callable, got {type(backbone).__name__}")
        checks.choice("reduce", reduce, ("mean", *REDUCTIONS))
        if views_per_forward is not None:
            if isinstance(views_per_forward, bool) or not isinstance(views_per_forward, int):
                raise TypeError(
                    f"views_per_forward: expected a whole number or None, got {type(views_per_forward).__name__}"
                )
            if views_per_forward < 1:
                raise ValueError(f"views_per_forward: expected 1 or more views, got {views_per_forward}")
        self.backbone = backbone
        self.inp = _action("inp", inp, None)
        self.out = _actions(out, self.inp)
        self.reduce = reduce
        self.views_per_forward = views_per_forward

    def forward(self, x: Tensor) -> Any:
        """The merged output for a batch x (B, \\*, H, W); see the class."""
        checks.choice("reduce", self.reduce, ("mean", *REDUCTIONS))
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        if x.dim() < self.inp.dims + 1:
            raise ValueError(f"x: expected a batch (B, …, H, W) for {self.inp.name!r}, got shape {tuple(x.shape)}")
        buckets = _buckets(self.inp, x)
        outputs = [[self._run(x, part) for part in self._parts(bucket)] for bucket in buckets]
        return _merge(outputs, self.out, buckets, self._merge_one)

    def _parts(self, bucket: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self.views_per_forward or len(bucket)
        for start in range(0, len(bucket), size):
            yield bucket[start : start + size]

    def _run(self, x: Tensor, elements: Sequence[int]) -> Any:
        """The backbone's output for some elements' views, with the group axis split off again."""
        maps = " ".join(self.inp.words[g] for g in elements)
        inverse = " ".join(self.inp.inverse_words[g] for g in elements)
        x, _ = checks.image("x", x, _without_square(self.inp), checks.EXACT)
        views = autograd.orbit(x, maps, inverse)
        return _split_batch(self.backbone(views.flatten(0, 1)), len(elements), x.shape[0])

    def _merge_one(self, y: Tensor, action: Action) -> Tensor | tuple[Tensor, Tensor]:
        if self.reduce == "mean":
            return orbit_mean(y, action)
        return orbit_reduce(y, action, cast(Any, self.reduce))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inp={self.inp!r}, out={self.out!r}, reduce={self.reduce!r}"


def _action(name: str, spec: object, like: GroupAction | None) -> GroupAction:
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
    if isinstance(spec, Mapping):
        return {key: _actions(value, inp, f"{name}[{key!r}]") for key, value in spec.items()}
    if isinstance(spec, (tuple, list)):
        return tuple(_actions(value, inp, f"{name}[{i}]") for i, value in enumerate(spec))
    return _action(name, spec, inp)


def _buckets(inp: GroupAction, x: Tensor) -> list[list[int]]:
    """Elements whose views have one shape: all of them, or upright and turned ones where x is a rectangle."""
    elements = list(range(inp.order))
    if not inp.square or x.shape[-1] == x.shape[-2]:
        return [elements]
    turned = [g for g in elements if transposes(inp.words[g])]
    return [[g for g in elements if g not in turned], turned]


def _without_square(action: Action) -> Action:
    """The same rank and order, but a rectangle is welcome: its views are made bucket by bucket."""
    return Action(action.name, ["hw"] * action.order, ["hw"] * action.order) if action.square else action


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


def _merge(outputs: list[list[Any]], spec: Any, buckets: list[list[int]], merge_one: Callable[..., Any]) -> Any:
    """Walk the output's containers and the specs side by side, and merge each tensor's views."""
    first = outputs[0][0]
    if isinstance(first, Tensor):
        if not isinstance(spec, GroupAction):
            raise ValueError(f"out: expected one action, since the backbone returns one tensor, got {spec!r}")
        y, action = _gather(outputs, spec, buckets)
        return merge_one(y, action)
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
    merged = [
        _merge([[part[key] for part in bucket] for bucket in outputs], spec[key], buckets, merge_one) for key in keys
    ]
    return _rebuilt(first, dict(zip(keys, merged, strict=True)) if kind == "dict" else merged)


def _gather(outputs: list[list[Tensor]], action: GroupAction, buckets: list[list[int]]) -> tuple[Tensor, Action]:
    """All views of one output on one group axis, and the action that transforms them back."""
    first = outputs[0][0]
    if first.dtype not in checks.FLOATS:
        raise TypeError(f"backbone: expected outputs of a floating-point dtype to merge, got {first.dtype}")
    if first.dim() < 2 + action.dims:
        raise ValueError(
            f"out: expected outputs (B, …, H, W) for {action.name!r} to act on, but got {tuple(first.shape[1:])} from "
            'the backbone; an output without spatial dims takes "trivial"'
        )
    if len(buckets) == 1:
        if action.square and first.shape[-1] != first.shape[-2]:
            raise ValueError(
                f"backbone: expected square outputs for a square input under {action.name!r}, got "
                f"{first.shape[-2]}×{first.shape[-1]}"
            )
        parts = outputs[0]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), action
    upright = outputs[0]
    elements = buckets[0] + buckets[1]
    words = [action.inverse_words[g] for g in elements]
    if not action.square:
        _same_shapes([*upright, *outputs[1]])
        return torch.cat([*upright, *outputs[1]]), Action(action.name, [action.words[g] for g in elements], words)
    # The turned views are laid beside the upright ones by a transposition, which leaves only flips to undo.
    turned = [part.transpose(-1, -2) for part in outputs[1]]
    _same_shapes([*upright, *turned])
    words = [compose(word, "wh") if transposes(word) else word for word in words]
    return torch.cat([*upright, *turned]), Action(action.name, words, words)


def _same_shapes(parts: list[Tensor]) -> None:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"backbone: expected the same output shape for an image and the turned image (turned back), got "
            f"{' and '.join(map(str, sorted(shapes)))}"
        )
