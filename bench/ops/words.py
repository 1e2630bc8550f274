"""Operators on logits: the mean of views of a vocabulary, of their softmaxes, and the losses, beside the eager chains.

The group exchanges words: ``swap2`` is C2 with 20 pairs, ``cycle3`` C3 with 20 triples. Every chain takes the table
of the permutation as a tensor, as a model would keep it in a buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import equikern
import torch
from bench.ops.cases import FUSED, PROVIDERS, Case, one_thread, states
from bench.ops.operators import Result, Tensors
from equikern import Action
from torch import Tensor

GROUPS = {"swap2": 2, "cycle3": 3}
MOVED = 20  # cycles of words
SHAPES = {
    "cpu": ((128, 49_152), (8, 262_144), (16_384, 8)),
    "cuda": ((2048, 50_257), (1024, 151_936), (256, 49_152), (262_144, 8)),
}
DTYPES = (torch.float32, torch.bfloat16)


def undone(y: Tensor, perm: Tensor) -> Tensor:
    """Every view transformed back, (g⁻¹y)[v] = y[perm[g, v]]."""
    return torch.stack([y[g].index_select(-1, perm[g]) for g in range(y.shape[0])])


def chain(name: str) -> Callable[..., Tensor]:
    """What is written today for each operator; |G| comes first, unused, as for the other chains."""

    def mean(order: int, y: Tensor, perm: Tensor) -> Tensor:
        return undone(y, perm).mean(0)

    def probs(order: int, y: Tensor, perm: Tensor) -> Tensor:
        return undone(y.softmax(-1), perm).mean(0)

    def log_probs(order: int, y: Tensor, perm: Tensor) -> Tensor:
        return undone(y.log_softmax(-1), perm).mean(0)

    def loss(order: int, y: Tensor, perm: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(undone(y, perm).mean(0), target)

    def loss_of_probs(order: int, y: Tensor, perm: Tensor, target: Tensor) -> Tensor:
        mean_of = undone(y.softmax(-1), perm).mean(0)
        return torch.nn.functional.nll_loss(mean_of.log(), target)

    def select_by_max(order: int, y: Tensor, perm: Tensor) -> Tensor:
        best = y.amax(-1).argmax(0)
        chosen = y.gather(0, best[None, :, None].expand(1, -1, y.shape[-1])).squeeze(0)
        return chosen.gather(-1, perm[best])

    def entropy(order: int, y: Tensor) -> Tensor:
        log_p = y.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    chains: dict[str, Callable[..., Tensor]] = {
        "word mean": mean,
        "mean probs": probs,
        "mean log-probs": log_probs,
        "word loss": loss,
        "word loss of probs": loss_of_probs,
        "entropy": entropy,
        "select by max": select_by_max,
    }
    return chains[name]


def _mean(space: Literal["probs", "log_probs"] | None) -> Callable[..., Any]:
    return lambda action, y, perm, out=None: equikern.orbit_mean(y, action, space, out=out)


def _loss(space: Literal["probs"] | None) -> Callable[..., Any]:
    return lambda action, y, perm, target: equikern.orbit_cross_entropy(y, target, action, space)


@dataclass(frozen=True)
class WordOperator:
    """One operator: what it takes, equikern's call, and the elements that each direction must read and write.

    ``elements`` gives (reads, writes) in multiples of one view, given |G|; a direction that it lacks is not measured.
    ``takes_out``: whether a forward writes to memory given to it.
    """

    takes: tuple[str, ...]
    fused: Callable[..., Any]
    eager: Callable[..., Result]
    elements: dict[str, Callable[[int], tuple[int, int]]]
    goals: tuple[float | None, float]
    takes_out: bool = False
    results: int = 1


_OF_MEAN = {
    "forward": lambda order: (order, 1),
    "backward": lambda order: (1, order),
    "both": lambda order: (order + 1, order + 1),
}
_OF_SOFTMAX = {
    "forward": lambda order: (order, 1),
    "backward": lambda order: (order + 1, order),
    "both": lambda order: (2 * order + 1, order + 1),
}
# The gradient comes with the loss: both together read and write every view once.
_OF_LOSS = {"forward": lambda order: (order, 0), "both": lambda order: (order, order)}
BOUND = (1.3, 1.0)  # by the bytes: at most 1.3 times the copy
HALF = (None, 2.0)  # by exp: at most half of eager torch's time

WORD_OPERATORS = {
    "word mean": WordOperator(("y", "perm"), _mean(None), chain("word mean"), _OF_MEAN, BOUND, True),
    "mean probs": WordOperator(("y", "perm"), _mean("probs"), chain("mean probs"), _OF_SOFTMAX, HALF, True),
    "mean log-probs": WordOperator(("y", "perm"), _mean("log_probs"), chain("mean log-probs"), _OF_SOFTMAX, HALF, True),
    "word loss": WordOperator(("y", "perm", "target"), _loss(None), chain("word loss"), _OF_LOSS, HALF),
    "word loss of probs": WordOperator(
        ("y", "perm", "target"), _loss("probs"), chain("word loss of probs"), _OF_LOSS, HALF
    ),
    "entropy": WordOperator(
        ("y",),
        lambda action, y: equikern.orbit_score(y, "entropy"),
        chain("entropy"),
        {"forward": lambda order: (order, 0)},
        HALF,
    ),
    # Of the scores the one of which every precision gives the same choice.
    "select by max": WordOperator(
        ("y", "perm"),
        lambda action, y, perm, out=None: equikern.orbit_select(y, "max", action, out=out),
        chain("select by max"),
        {"forward": lambda order: (order, 1)},
        BOUND,
        True,
    ),
}


@dataclass(frozen=True)
class WordCase(Case):
    """One thing to time, on logits (|G|, rows, V); ``shape`` is (rows, V)."""

    @property
    def operator(self) -> Any:
        return WORD_OPERATORS[self.name]

    @property
    def order(self) -> int:
        return GROUPS[self.group]

    @property
    def action(self) -> Action:
        return equikern.permutation(table(self.group, self.shape[1], "cpu"))

    @property
    def elements(self) -> tuple[int, int]:
        reads, writes = self.operator.elements[self.direction](self.order)
        n = self.shape[0] * self.shape[1]
        return reads * n, writes * n

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(p for p in PROVIDERS[self.device] if p in (*FUSED, "eager", "compile"))

    @property
    def tolerance(self) -> float:
        """Ten times as loose: a softmax in float32 over 262,144 words is off by more than 1e-5 in eager torch."""
        return 10 * super().tolerance

    @property
    def quick(self) -> bool:
        return self.shape == SHAPES[self.device][0] and self.dtype == torch.float32 and self.group == "swap2"

    @property
    def goals(self) -> tuple[float | None, float]:
        """As ``Case.goals``; none for short rows, of which no goal speaks."""
        goals: tuple[float | None, float] = self.operator.goals
        return goals if self.shape[1] > 1000 else (None, 1.0)

    def tensors(self, requires_grad: bool = False, fresh: bool = False) -> Tensors:
        memory = _memory(self.group, self.shape, self.dtype, self.device)
        found = []
        for name in self.operator.takes:
            t = memory[name].clone() if fresh else memory[name].detach()
            found.append(t.requires_grad_() if requires_grad and name == "y" else t)
        return tuple(found)

    def upstream(self, fresh: bool = False) -> Tensors:
        if "loss" in self.name:
            return (torch.ones((), device=self.device),)
        t = _memory(self.group, self.shape, self.dtype, self.device)["x"]
        return (t.clone() if fresh else t,)

    def _expected(self, first: int, rows: int) -> Tensors:
        """The eager chain in float64 on some rows."""
        tensors = [
            t.narrow(-2, first, rows) if name == "y" else t.narrow(0, first, rows) if name == "target" else t
            for name, t in zip(self.operator.takes, self.tensors(), strict=True)
        ]
        wide = tensors[0].double().requires_grad_(self.direction != "forward")
        result = self.operator.eager(self.order, wide, *tensors[1:])
        part = rows / self.shape[0] if "loss" in self.name else 1.0
        if self.direction == "forward":
            return (result.detach() * part,)
        upstream = self.upstream()[0]
        upstream = upstream.double() if upstream.dim() == 0 else upstream.narrow(0, first, rows).double()
        (gradient,) = torch.autograd.grad(result * part, wide, upstream)
        return (gradient,) if self.direction == "backward" else (result.detach() * part, gradient)

    def expected(self) -> Tensors:
        """The right results, a few rows at a time."""
        rows = max(1, (1 << (21 if self.device == "cpu" else 26)) // self.shape[1])
        parts: list[Tensors] = []
        for first in range(0, self.shape[0], rows):
            with one_thread():
                found = self._expected(first, min(rows, self.shape[0] - first))
            parts.append(tuple(t.float() for t in found))
        return tuple(_joined(column, self.shape[0]) for column in zip(*parts, strict=True))


def _joined(parts: tuple[Tensor, ...], rows: int) -> Tensor:
    """Rows side by side; losses, which are shares of one mean, added."""
    if parts[0].dim() == 0:
        return torch.stack(parts).double().sum()
    dim = 1 if parts[0].dim() == 3 or (parts[0].dim() == 2 and parts[0].shape[0] < 4 < rows) else 0
    return torch.cat(parts, dim)


@functools.cache
def table(group: str, size: int, device: str) -> Tensor:
    """(|G|, V): cycles of words spread over the vocabulary, everything else where it is."""
    order = GROUPS[group]
    cycles = min(MOVED, size // order)
    places = torch.arange(order * cycles) * (size // (order * cycles))
    perm = torch.arange(size).repeat(order, 1)
    turns = places.view(cycles, order)
    for g in range(order):
        perm[g, places] = turns.roll(-g, 1).flatten()
    return perm.to(device)


@functools.lru_cache(maxsize=1)  # the cases of one shape and dtype follow each other
def _memory(group: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random logits, a gradient, the table and targets."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    order, (rows, size) = GROUPS[group], shape
    y = torch.randn((order + 1, rows, size), generator=generator, device=device).mul_(3).to(dtype)
    target = torch.randint(size, (rows,), generator=generator, device=device)
    return {"y": y[:order], "x": y[order], "perm": table(group, size, device), "target": target}


def word_cases(device: str) -> list[WordCase]:
    """Every case, in an order that keeps those of one compiled chain together."""
    cases = []
    for name, operator in WORD_OPERATORS.items():
        for group in GROUPS if name != "entropy" else ("swap2",):
            for dtype in DTYPES:
                every = group == "swap2" and (dtype == torch.float32 or device == "cuda")
                for shape in SHAPES[device] if every else SHAPES[device][:1]:
                    for direction in operator.elements:
                        case = WordCase(name, direction, group, shape, dtype, device)
                        cases += [replace(case, state=state) for state in states(case)]
    return cases
