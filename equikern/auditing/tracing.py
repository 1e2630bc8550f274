"""What every submodule takes and gives, compared from one forward to the next by hooks; nothing stays on the model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..actions import GridAction
from ..nn.containers import leaves
from .fits import Candidate, actions_for
from .frames import Frame, relative, tolerance_of

__all__ = ["Call", "Trace", "Value", "first_loss", "first_overflow"]

_Key = tuple[str, int, str, int]  # the submodule, which of its calls, whether it takes or gives, and which tensor


@dataclass
class Value:
    """A tensor that submodules take or give, and how far it is from moving as each candidate says.

    Attributes:
        first: what it is for the input as it is.
        candidates: ways to move, simplest first.
        tolerance: the residual up to which one fits.
        errors: for each of them the squared relative errors added up over the elements.
        seen: how many elements were compared.
    """

    first: Tensor
    candidates: list[Candidate]
    tolerance: float
    errors: list[float] = field(default_factory=list)
    seen: int = 0

    def compare(self, g: int, t: Tensor) -> None:
        """Note what it is under an element."""
        self.seen += 1
        for k, candidate in enumerate(self.candidates):
            try:
                error = relative(t, candidate.move(g, self.first))[0]
            except (ValueError, TypeError, RuntimeError):
                error = torch.inf
            self.errors[k] += error * error

    @property
    def best(self) -> tuple[str, float]:
        """The candidate that fits best, the simplest of equals, and its residual."""
        if not self.seen:
            return self.candidates[0].name, 0.0
        found = [(error / self.seen) ** 0.5 for error in self.errors]
        least = max(1.01 * min(found), 1e-2 * self.tolerance)
        k = next((k for k, error in enumerate(found) if error <= least), 0)
        return self.candidates[k].name, found[k]


@dataclass
class Call:
    """One call of a submodule.

    Attributes:
        name, module: which.
        takes, gives: its tensors.
    """

    name: str
    module: nn.Module
    takes: list[Value]
    gives: list[Value]


class Trace:
    """Records one forward of a model, and compares others with it.

    Args:
        model: whose submodules are listened to.
        frame: the group and the input.
        tolerance: the residual up to which a candidate fits; None: by the dtype of each tensor.
    """

    def __init__(self, model: nn.Module, frame: Frame, tolerance: float | None) -> None:
        self.model, self.frame, self.tolerance = model, frame, tolerance
        self.values: dict[_Key, Value] = {}
        self.calls: list[Call] = []
        self._flat: dict[int, list[tuple[int, ...]]] = {}  # the shapes of grids, by their numbers of entries

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The forward that the others are compared with."""
        with self._hooked(lambda key, t, alias: self._record(key, t, alias), self._ended):
            yield

    @contextmanager
    def comparing(self, g: int) -> Iterator[None]:
        """A forward of the input as an element sees it."""

        def compare(key: _Key, t: Tensor, alias: _Key | None) -> None:
            value = self.values.get(key)
            if value is not None and (alias is None or self.values.get(alias) is not value):
                value.compare(g, t)

        with self._hooked(compare):
            yield

    @contextmanager
    def differing(self, found: list[tuple[str, nn.Module]]) -> Iterator[None]:
        """Lists submodules that give something else for the same, or for fewer samples."""
        fine: dict[tuple[str, int], bool] = {}

        def compare(key: _Key, t: Tensor, alias: _Key | None) -> None:
            name, call, way, _ = key
            value = self.values.get(key)
            if value is None:
                return
            kept = value.first[: len(t)] if t.dim() and value.first.dim() else value.first
            same = relative(t, kept)[0] <= value.tolerance
            if way == "takes":
                fine[name, call] = fine.get((name, call), True) and same
            elif not same and fine.get((name, call), True) and all(name != other for other, _ in found):
                found.append((name, self.model.get_submodule(name)))

        with self._hooked(compare):
            yield

    def _record(self, key: _Key, t: Tensor, alias: _Key | None) -> None:
        if alias is not None and alias in self.values:
            self.values[key] = self.values[alias]
            return
        first = t.detach().clone()
        candidates = [*actions_for(first, self.frame), *self._of_views(first), *self._reshaped(first)]
        self.values[key] = Value(first, candidates, self.tolerance or tolerance_of(t.dtype), [0.0] * len(candidates))
        sides = len(self.frame.sides)
        if sides and t.dim() == sides + 2:
            shapes = self._flat.setdefault(t[0].numel() if len(t) else 0, [])
            if tuple(t.shape[1:]) not in shapes:
                shapes.append(tuple(t.shape[1:]))

    def _ended(self, name: str, number: int, module: nn.Module) -> None:
        def of(way: str) -> list[Value]:
            return [value for key, value in self.values.items() if key[:3] == (name, number, way)]

        self.calls.append(Call(name, module, of("takes"), of("gives")))

    def _of_views(self, t: Tensor) -> Iterator[Candidate]:
        """A batch of all views, as inside of a wrapper: those of g·x are those of x in another order."""
        order, batch = self.frame.order, self.frame.batch
        if order > 1 and t.dim() and t.shape[0] == order * batch:
            table = self.frame.group.multiply

            def move(g: int, t: Tensor) -> Tensor:
                return t.unflatten(0, (order, batch))[table[:, g].to(t.device)].flatten(0, 1)  # type: ignore[no-untyped-call, no-any-return]

            yield Candidate("all views in one batch", move)

    def _reshaped(self, t: Tensor) -> Iterator[Candidate]:
        """A flattened grid that was there before."""
        grid = self.frame.grid
        if grid is None or t.dim() != 2 or not len(t):
            return
        for shape in self._flat.get(t.shape[1], [])[-2:]:

            def move(g: int, t: Tensor, grid: GridAction = grid, shape: tuple[int, ...] = shape) -> Tensor:
                whole: Tensor = t.unflatten(1, shape)  # type: ignore[no-untyped-call]
                return grid.act(g, whole).flatten(1)

            yield Candidate(f"flattened grid {'×'.join(map(str, shape))}", move)

    @contextmanager
    def _hooked(self, see: Any, ended: Any = None) -> Iterator[None]:
        counts: dict[str, int] = {}
        running: list[tuple[str, int]] = []
        known: dict[int, tuple[weakref.ref[Tensor], int, _Key]] = {}  # whose values were seen, and are as they were

        def each(name: str, number: int, way: str, tree: Any) -> None:
            for k, t in enumerate(leaves(tree)):
                if isinstance(t, Tensor) and t.is_floating_point() and t.layout is torch.strided:
                    key = name, number, way, k
                    entry = known.get(id(t))
                    version = -1 if t.is_inference() else t._version  # which those do not count
                    same = entry is not None and entry[0]() is t and entry[1] == version >= 0
                    see(key, t, entry[2] if same and entry is not None else None)
                    if not same:
                        known[id(t)] = weakref.ref(t), version, key

        handles = []
        for name, module in self.model.named_modules():

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                number = counts[name] = counts.get(name, -1) + 1
                running.append((name, number))
                each(name, number, "takes", [args, kwargs])

            def after(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                while running and running[-1][0] != name:  # what ended by an error that was caught
                    running.pop()
                if running:
                    number = running.pop()[1]
                    each(name, number, "gives", output)
                    if ended is not None:
                        ended(name, number, module)

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def first_overflow(calls: Sequence[Call]) -> Call | None:
    """The first submodule that makes infinities or NaN of finite numbers."""
    for call in calls:
        if all(_finite(value) for value in call.takes) and not all(_finite(value) for value in call.gives):
            return call
    return None


def _finite(value: Value) -> bool:
    return bool(value.first.isfinite().all())


def first_loss(calls: Sequence[Call]) -> Call | None:
    """The first submodule, by when it ends, that gets what moves with the input and gives what does not."""
    for call in calls:
        if call.takes and all(_fits(value) for value in call.takes) and not all(_fits(value) for value in call.gives):
            return call
    return None


def _fits(value: Value) -> bool:
    return value.best[1] <= value.tolerance
