"""What the views of one output are merged into: all at once by the fused operators, or part by part as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..coordinates import Coordinates
from ..core import checks
from ..core.functions import functional
from ..ops import orbit_reduce, orbit_select
from ..ops.checked import orbit_sum
from ..ops.select import agree, tied
from ..reductions import REDUCTIONS
from ..views import accumulator
from ..views.grid import compose, inverse_word, turn_grid, upright
from ..views.maps import Maps

__all__ = ["Extremum", "Gathered", "Merge", "Output", "Selected", "Summed", "Weighted"]

Normalize = Literal["sum", "softmax"] | None


def unturned(words: Sequence[str]) -> list[str]:
    """What is left to undo of some views where their sides have been put upright."""
    turned_back = inverse_word(upright(words[0]))
    return [compose(word, turned_back) for word in words]


class Output:
    """How one output of the backbone transforms, for images of one size.

    Attributes:
        action: the action on it, with the tables where the model is; of coordinates that on what is measured from the
            middle of the image.
        coordinates: those that it is, or None.
        size: (H, W) of the image that it is about.
        turned: whether views come in several shapes, upright and turned.
        dtypes: what it may be made of.
        name: where in the backbone's outputs it is, such as ``['logits']``.
    """

    name = ""

    def __init__(
        self,
        action: Action,
        coordinates: Coordinates | None,
        size: tuple[int, int],
        turned: bool,
        dtypes: frozenset[torch.dtype],
    ) -> None:
        self.action, self.coordinates, self.size, self.turned = action, coordinates, size, turned
        self.dtypes = dtypes
        self._shape: tuple[int, ...] | None = None

    def upright(self, y: Tensor, elements: Sequence[int]) -> tuple[Tensor, Maps]:
        """Some views (n, B, …) in one shape for all, and the maps that then take each of them back."""
        action = self.action
        if y.dtype not in self.dtypes:
            kind = "an integer dtype" if self.dtypes is checks.INTEGERS else "a floating-point dtype"
            raise TypeError(f"backbone: expected outputs of {kind} to merge, got {y.dtype}")
        if self.coordinates is not None:
            y = self.coordinates.from_middle(y, elements, self.size)
        checks.moved_dim("output", y, action)
        if y.dim() < 2 + action.dims:
            raise ValueError(
                f"out: expected outputs (B, …, {checks.moved(action)}) for {action.name!r} to act on, but got "
                f"{tuple(y.shape[1:])} from the backbone; "
                'an output without spatial dims takes "trivial"'
            )
        back = action.inverse_maps.subset(elements)
        if not self.turned and not action.views.keeps(y.shape):
            sides = "cubic" if action.sides == 3 else "square"
            raise ValueError(
                f"backbone: expected {sides} outputs for a {sides} input under {action.name!r}, got "
                f"{'×'.join(map(str, y.shape[-action.sides :]))}"
            )
        if self.turned and action.sides:
            # Turned views are laid beside the upright ones by exchanging their sides: that leaves only flips to undo.
            y = turn_grid(y, upright(back.views.words[0]))
            back = self.back(elements)
        shape = tuple(y.shape[1:])
        if self.turned and self._shape is not None and self._shape != shape:
            raise ValueError(
                f"backbone: expected the same output shape for an image and the turned image (turned back), got "
                f"{' and '.join(map(str, sorted([self._shape, shape])))}"
            )
        self._shape = shape
        return y, back

    def back(self, elements: Sequence[int]) -> Maps:
        """The maps that take some views, in one shape for all, back."""
        back = self.action.inverse_maps.subset(elements)
        return back.with_words(unturned(back.views.words)) if self.turned and self.action.sides else back

    def finished(self, merged: Tensor) -> Tensor:
        """The merged output as the user knows it."""
        return merged if self.coordinates is None else self.coordinates.from_corner(merged, self.size)


class Merge(ABC):
    """Takes the views of one output part by part, in any order of the elements, and gives what they merge into."""

    def __init__(self, output: Output) -> None:
        self.output = output

    @abstractmethod
    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        """Some views (n, B, …), and beside them their weights or scores (n, B)."""

    @abstractmethod
    def result(self) -> Any:
        """What they merged into."""


def _action(name: str, back: Maps) -> Action:
    return Action(name, back.inverse)


class Gathered(Merge):
    """All views in one tensor, merged by one call: ``merge(y, action, beside)``."""

    def __init__(self, output: Output, merge: Callable[[Tensor, Action, Tensor | None, list[int]], Any]) -> None:
        super().__init__(output)
        self.merge = merge
        self.parts: list[tuple[Tensor, list[int], Tensor | None]] = []
        self.words: list[str] = []

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        y, back = self.output.upright(y, elements)
        self.words += back.views.words
        self.parts.append((y, list(elements), beside))

    def result(self) -> Any:
        ys, groups, besides = zip(*self.parts, strict=True)
        self.parts = []
        elements = [g for group in groups for g in group]
        back = self.output.action.inverse_maps.subset(elements).with_words(self.words)
        y = ys[0] if len(ys) == 1 else torch.cat(ys)
        del ys
        beside = None if besides[0] is None else torch.cat(cast("tuple[Tensor, ...]", besides))
        merged = self.merge(y, _action(self.output.action.name, back), beside, elements)
        return self.output.finished(merged) if self.output.coordinates is not None else merged


class _Streamed(Merge):
    """What can be merged as it comes, in the accumulator's dtype."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self.dtype: torch.dtype | None = None
        self.total: Tensor | None = None

    def _wide(self, y: Tensor, elements: Sequence[int]) -> tuple[Tensor, Maps]:
        self.dtype = y.dtype
        y, back = self.output.upright(y, elements)
        return y.to(accumulator(y)), back

    def _plus(self, term: Tensor) -> None:
        if self.total is None:
            self.total = term
        elif self.total.requires_grad or term.requires_grad or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self.total = self.total + term
        else:
            self.total += term

    def _given(self, total: Tensor) -> Tensor:
        assert self.dtype is not None
        return self.output.finished(total).to(self.dtype)


class Summed(_Streamed):
    """``finish(scale · Σ_g g⁻¹ prepare(y[g]))``."""

    def __init__(
        self,
        output: Output,
        scale: float,
        prepare: Callable[[Tensor, Action], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(output)
        self.scale, self.prepare, self.finish = scale, prepare, finish

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        y, back = self._wide(y, elements)
        acting = _action(self.output.action.name, back)
        if self.prepare is not None:
            y = self.prepare(y, acting)
        self._plus(orbit_sum(y, acting, self.scale))

    def result(self) -> Tensor:
        assert self.total is not None
        return self._given(self.total if self.finish is None else self.finish(self.total))


class Extremum(_Streamed):
    """The largest or the smallest value of all views."""

    def __init__(self, output: Output, op: Literal["max", "min"]) -> None:
        super().__init__(output)
        self.op = op

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        y, back = self._wide(y, elements)
        best = cast(Tensor, orbit_reduce(y, _action(self.output.action.name, back), self.op))
        join = torch.maximum if self.op == "max" else torch.minimum
        self.total = best if self.total is None else join(self.total, best)

    def result(self) -> Tensor:
        assert self.total is not None
        return self._given(self.total)


class Weighted(_Streamed):
    """``Σ_g λ_g g⁻¹ y[g] / Σ_g λ_g``, with λ (n, B) or its logarithm beside the views."""

    def __init__(self, output: Output, normalize: Normalize) -> None:
        super().__init__(output)
        self.normalize = normalize
        self.weight: Tensor | None = None  # Σ λ
        self.top: Tensor | None = None  # the largest logarithm so far, from which exponentials are counted

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        assert beside is not None
        y, back = self._wide(y, elements)
        weights = beside.to(y.dtype)
        if self.normalize == "softmax":
            top = weights.detach().amax(0)
            if self.top is not None:
                top = torch.maximum(top, self.top)
                fades = (self.top - top).exp()
                assert self.total is not None
                assert self.weight is not None
                self.total = self.total * _each_sample(fades, self.total)
                self.weight = self.weight * fades
            self.top, weights = top, (weights - top).exp()
        self._plus(orbit_sum(y, _action(self.output.action.name, back), 1.0, weights))
        whole = weights.sum(0)
        self.weight = whole if self.weight is None else self.weight + whole

    def result(self) -> Tensor:
        assert self.total is not None
        assert self.weight is not None
        return self._given(self.total if self.normalize is None else self.total / _each_sample(self.weight, self.total))


def _each_sample(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(*t.shape, *(1,) * (like.dim() - t.dim()))


class Selected(Merge):
    """The view of the smallest score (n, B), or the mean of those that tie, without a gradient; NaN never wins."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self.best: Tensor | None = None
        self.score: Tensor | None = None  # of the best, NaN where all are
        self.count: Tensor | None = None  # how many views tie with it

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        assert beside is not None
        y, back = self.output.upright(y, elements)
        acting = _action(self.output.action.name, back)
        found, index = cast(
            "tuple[Tensor, Tensor]",
            orbit_select(y, beside, acting, gradient=None, ties="mean", return_index=True),
        )
        beside = beside.to(torch.promote_types(beside.dtype, torch.float32))
        score = beside.gather(0, index.unsqueeze(0)).squeeze(0)
        count = tied(beside).sum(0).clamp(min=1)
        if self.best is None:
            self.best, self.score, self.count = found, score, count
            return
        assert self.score is not None
        assert self.count is not None
        ahead = (score < self.score) | (self.score.isnan() & ~score.isnan())
        least = torch.where(ahead, score, self.score)
        both = agree(score, least) & agree(self.score, least)
        best = torch.where(_each_sample(ahead, found), found, self.best)
        written = not functional(best)
        if not written or not best.is_cpu or bool(both.any()):
            share = _each_sample((count / (count + self.count)).to(found.dtype), found)
            # Views may be large: what is not needed any more takes the results.
            mean = torch.lerp(self.best, found, share, out=found) if written else torch.lerp(self.best, found, share)
            alike = _each_sample(both, best)
            best = torch.where(alike, mean, best, out=best) if written else torch.where(alike, mean, best)
        self.count = torch.where(both, self.count + count, torch.where(ahead, count, self.count))
        self.best, self.score = best, least

    def result(self) -> Tensor:
        assert self.best is not None
        return self.output.finished(self.best)


def reduced(output: Output, op: str, parts: int, order: int, joined: bool = False) -> Merge:
    """The merge of ``orbit_reduce``'s ops: as they come where that is possible and there is more than one part.

    ``joined`` is whether other processes have some of the views: then the extrema of each give no gradient.
    """
    reduction = REDUCTIONS[op]
    shared = joined and torch.is_grad_enabled() and reduction.combine in ("max", "min")
    if parts == 1 or not reduction.streams or shared:
        return Gathered(output, lambda y, action, *_: orbit_reduce(y, action, cast(Any, op)))
    if reduction.combine in ("max", "min"):
        return Extremum(output, cast(Any, op))
    prepare = reduction.prepare
    return Summed(
        output,
        1.0 if reduction.combine == "sum" else 1.0 / order,
        None if prepare is None else lambda y, _: prepare(y),
        reduction.finish,
    )
