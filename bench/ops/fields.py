"""Fields, whose channels change with the grid, and volumes: orbit, means and select."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import equikern
import torch
from bench.ops.cases import FUSED, PROVIDERS, Case, states
from bench.ops.operators import OPERATORS, Operator, Tensors, per_sample
from equikern import Action
from torch import Tensor

ACTIONS: dict[str, Callable[[], Action]] = {
    "c4 vector": lambda: equikern.field(equikern.grid("c4"), "vector"),
    "d4 regular": lambda: equikern.field(equikern.grid("d4"), "regular"),
    "flips3d": lambda: equikern.grid("flips3d", dims=3),
    "rot3d": lambda: equikern.grid("rot3d", dims=3),
}
# By device and group: a shape that outgrows the caches, and one of small planes or volumes.
SHAPES = {
    "cpu": {
        "c4 vector": ((16, 2, 384, 384), (32, 16, 28, 28)),
        "d4 regular": ((8, 64, 56, 56), (8, 64, 14, 14)),
        "flips3d": ((4, 8, 48, 64, 64), (8, 16, 16, 16, 16)),
        "rot3d": ((1, 4, 96, 96, 96), (8, 8, 16, 16, 16)),
    },
    "cuda": {
        "c4 vector": ((64, 2, 512, 512), (256, 16, 28, 28)),
        "d4 regular": ((64, 256, 56, 56), (64, 256, 14, 14)),
        "flips3d": ((16, 8, 96, 128, 128), (64, 16, 16, 16, 16)),
        "rot3d": ((4, 4, 128, 128, 128), (32, 8, 32, 32, 32)),
    },
}
GOALS = {"c4 vector": 1.3, "d4 regular": 1.3, "flips3d": 1.6, "rot3d": 1.6}  # times of the copy
NAMES = ("orbit", "mean", "mean plus", "weighted", "select")
DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def action_of(group: str) -> Action:
    """Made once, as a model would."""
    return ACTIONS[group]()


def chain(group: str, name: str) -> Callable[..., Tensor]:
    """What is written today: every view by torch's permute, flip and index_select, then one reduction."""
    action = action_of(group)

    def orbit(order: int, x: Tensor) -> Tensor:
        return torch.stack([action.act(g, x) for g in range(order)])

    def undone(y: Tensor) -> Tensor:
        inverse = action.group.inverse.tolist()  # type: ignore[attr-defined]
        return torch.stack([action.act(inverse[g], view) for g, view in enumerate(y)])

    def mean(order: int, y: Tensor) -> Tensor:
        return undone(y).mean(0)

    def mean_plus(order: int, y: Tensor, x: Tensor) -> Tensor:
        return undone(y).mean(0) + orbit(order, x).mean(0)

    def weighted(order: int, y: Tensor, weights: Tensor) -> Tensor:
        return (per_sample((weights / weights.sum(0)).to(y.dtype), y) * undone(y)).sum(0)

    def select(order: int, y: Tensor, scores: Tensor) -> Tensor:
        views = undone(y)
        chosen = views[scores.argmin(0), torch.arange(y.shape[1], device=y.device)]
        if y.requires_grad and torch.is_grad_enabled():
            stand_in = views.mean(0)
            return stand_in + (chosen - stand_in).detach()
        return chosen

    chains: dict[str, Callable[..., Tensor]] = {"mean plus": mean_plus, "weighted": weighted, "select": select}
    return {"orbit": orbit, "mean": mean, **chains}[name]


@dataclass(frozen=True)
class FieldCase(Case):
    """One thing to time; ``shape`` is that of one view, samples first."""

    @property
    def operator(self) -> Operator:
        return replace(OPERATORS[self.name], eager=chain(self.group, self.name))

    @property
    def order(self) -> int:
        return self.action.order

    @property
    def action(self) -> Action:
        return action_of(self.group)

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(p for p in PROVIDERS[self.device] if p in (*FUSED, "eager"))

    @property
    def quick(self) -> bool:
        return self.shape == SHAPES[self.device][self.group][0] and self.dtype == torch.float32

    @property
    def goals(self) -> tuple[float | None, float]:
        large = self.shape == SHAPES[self.device][self.group][0]
        return (GOALS[self.group] if large and self.device == "cpu" else None), 1.0

    def tensors(self, requires_grad: bool = False, fresh: bool = False) -> Tensors:
        memory = _memory(self.group, self.shape, self.dtype, self.device)
        found = []
        for name in self.operator.takes:
            t = memory[name].clone() if fresh else memory[name].detach()
            found.append(t.requires_grad_() if requires_grad and name != "scores" else t)
        return tuple(found)

    def upstream(self, fresh: bool = False) -> Tensors:
        name = {"orbit": "y", "mean plus": "x2"}.get(self.name, "x")
        t = _memory(self.group, self.shape, self.dtype, self.device)[name]
        return (t.clone() if fresh else t,)

    def expected(self) -> Tensors:
        """The chain in float64."""
        wide = [t.double() if t.is_floating_point() else t for t in self.tensors()]
        leaves = [t for name, t in zip(self.operator.takes, wide, strict=True) if name != "scores"]
        if self.direction != "forward":
            for t in leaves:
                t.requires_grad_()
        result = self.operator.eager(self.order, *wide)
        assert isinstance(result, Tensor)
        if self.direction == "forward":
            return (result,)
        gradients = torch.autograd.grad(result, leaves, self.upstream()[0].double())
        return gradients if self.direction == "backward" else (result.detach(), *gradients)


@functools.lru_cache(maxsize=1)  # the cases of one shape and dtype follow each other
def _memory(group: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random inputs: a prime number of values, again and again."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    order, n, count = action_of(group).order, math.prod(shape), 1_000_003
    values = torch.randn(count, generator=generator, device=device).to(dtype)
    memory = values.repeat(math.ceil((order + 2) * n / count))[: (order + 2) * n].unflatten(0, (order + 2, *shape))
    weights, scores = torch.rand((2, order, shape[0]), generator=generator, device=device)
    return {
        "y": memory[:order],
        "x": memory[order],
        "x2": memory[order + 1],
        "weights": weights + 0.5,
        "scores": scores,
    }


def field_cases(device: str) -> list[FieldCase]:
    """Every case; bfloat16 for the larger shapes."""
    cases = []
    for group, shapes in SHAPES[device].items():
        for shape, dtype in ((shapes[0], DTYPES[0]), (shapes[0], DTYPES[1]), (shapes[1], DTYPES[0])):
            for name in NAMES:
                for direction in ("forward", "backward"):
                    case = FieldCase(name, direction, group, shape, dtype, device)
                    cases += [replace(case, state=state) for state in states(case)]
    return cases
