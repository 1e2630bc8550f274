"""What a backbone returns: split off the batch, every tensor beside its action, and put together again once merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .containers import DROPPED, parts_of, rebuilds
from .specs import SHARED

__all__ = ["Fitted", "Made", "MergedOutputs"]

Made = Callable[[Iterator[Any]], Any]  # an output, from its merged tensors in their order
_UNLISTED = object()


class Fitted:
    """The outputs of one forward, fitted to the specs that are given for them.

    Attributes:
        tree: the outputs with every tensor of the batch as (n, B, …), for what looks at all of them.
        pairs: every tensor that is merged, (n, B, …), and its spec.
        names: where in the outputs each of them is, such as ``['logits']``.
        shape: (n, B).
        made: what puts merged tensors where theirs were, and holds none of them itself.
    """

    __slots__ = ("made", "names", "pairs", "shape", "tree")

    def __init__(self, outputs: Any, spec: Any, order: int, batch: int, strict: bool) -> None:
        self.shape = order, batch
        self.pairs: list[tuple[Tensor, Any]] = []
        self.names: list[str] = []
        if isinstance(outputs, Tensor) and not isinstance(spec, (dict, tuple)):
            self.tree = _split(outputs, order, batch, "")
            self.pairs.append((self.tree, spec))
            self.names.append("")
            self.made: Made = next
        else:
            self.tree, self.made = _Fit(self, order, batch, strict).fit(outputs, spec, "")


class MergedOutputs(NamedTuple):
    """Every merged output with its spec and name, and what puts all into the containers of the backbone's outputs."""

    tensors: list[Any]
    specs: list[Any]
    names: list[str]
    made: Made

    def whole(self) -> Any:
        return self.made(iter(self.tensors))


class _Fit:
    def __init__(self, found: Fitted, order: int, batch: int, strict: bool) -> None:
        self.found, self.order, self.batch, self.strict = found, order, batch, strict

    def fit(self, output: Any, spec: Any, name: str) -> tuple[Any, Made]:
        """An output's tree, and what makes it again."""
        parts = parts_of(output)
        if spec is None or spec is _UNLISTED or isinstance(spec, str):
            tree = self._unmerged(output)
            return tree, (lambda _: DROPPED) if spec is None or spec is _UNLISTED else (lambda _: output)
        if parts is None:
            return self._leaf(output, spec, name)
        specs = self._specs(output, parts, spec, name)
        fits = {key: self.fit(value, specs[key], f"{name}[{key!r}]") for key, value in parts.items()}
        rebuild = rebuilds(output)
        makers = {key: make for key, (_, make) in fits.items()}
        tree = rebuild({key: part for key, (part, _) in fits.items()})
        return tree, lambda merged: rebuild({key: make(merged) for key, make in makers.items()})

    def _leaf(self, output: Any, spec: Any, name: str) -> tuple[Any, Made]:
        if isinstance(output, Tensor):
            if isinstance(spec, (dict, tuple)):
                raise ValueError(f"out{name}: expected one action, since the backbone returns one tensor, got {spec!r}")
            y = _split(output, self.order, self.batch, name)
            self.found.pairs.append((y, spec))
            self.found.names.append(name)
            return y, next
        if output is None and name:
            return None, lambda _: None
        at = f" at {name}" if name else ""
        raise TypeError(f"backbone: expected it to return a tensor, tuple or dict{at}, got {type(output).__name__}")

    def _specs(self, output: Any, parts: dict[Any, Any], spec: Any, name: str) -> dict[Any, Any]:
        """For every part its spec; what holds no tensor needs none."""
        by_name = not isinstance(output, (tuple, list))
        kind = "dict" if by_name else "tuple"
        fits = isinstance(spec, dict if by_name else tuple)
        given = (dict(spec) if by_name else dict(enumerate(spec))) if fits else {}
        listed = [key for key in parts if key in given]
        missing = [key for key, part in given.items() if key not in parts and part is not None]
        unlisted = [key for key, part in parts.items() if key not in given and not _plain(part)]
        if not fits or missing or (unlisted and self.strict):
            wrong = [f"not listed: {unlisted}"] * bool(unlisted and fits) + [f"not returned: {missing}"] * bool(missing)
            raise ValueError(
                f"out{name}: the backbone returns a {type(output).__name__} with {list(parts)}; expected a {kind} with "
                f"an action for each, None to drop one, or strict=False to drop what is not listed"
                f"{''.join('; ' + w for w in wrong)};"
                f" got {spec!r}"
            )
        rest = SHARED if self.strict else _UNLISTED
        return {key: given[key] if key in listed else rest for key in parts}

    def _unmerged(self, output: Any) -> Any:
        """What is not merged, split off the batch where it has one: a loss of views may want to see it."""
        parts = parts_of(output)
        if parts is not None:
            return rebuilds(output)({key: self._unmerged(part) for key, part in parts.items()})
        if isinstance(output, Tensor) and output.dim() and output.shape[0] == self.order * self.batch:
            return output.unflatten(0, (self.order, self.batch))  # type: ignore[no-untyped-call]
        return output


def _split(output: Tensor, order: int, batch: int, name: str) -> Tensor:
    """(|G|·B, …) → (|G|, B, …)."""
    if output.dim() == 0 or output.shape[0] != order * batch:
        at = f" at {name}" if name else ""
        raise ValueError(
            f"backbone: expected an output{at} whose first dim is the batch {order * batch} ({order} views of "
            f"{batch}), got shape {tuple(output.shape)}; a single sample is x[None]"
        )
    return output.unflatten(0, (order, batch))  # type: ignore[no-any-return, no-untyped-call]


def _plain(value: Any) -> bool:
    """Whether it holds numbers, words and None alone, no tensor and nothing unknown."""
    parts = parts_of(value)
    if parts is not None:
        return all(_plain(part) for part in parts.values())
    return value is None or isinstance(value, (Number, str, torch.SymInt, torch.SymFloat, torch.SymBool))
