"""The ways to make a classifier invariant, and what is asked of each: answers, forwards, time, invariance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from equikern import CanonicalEquiTune, EquiTune, EquiZero, GridAction, orbit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .names import COUNTS, STATISTICS, TRAINED

CHUNK = 125


class System(NamedTuple):
    """One row of the results.

    Attributes:
        method, k: its curve, and where it is on it.
        forwards: of the backbone, for each image; None: the model says.
        cost: by what costs are called which ranking or weighting of poses it takes; None: none.
        model: from images to logits.
    """

    method: str
    k: int | None
    forwards: int | None
    cost: str | None
    model: nn.Module


def plain(backbone: nn.Module) -> System:
    """The backbone as it is."""
    return System("plain", None, 1, None, backbone)


def untrained(backbone: nn.Module, action: GridAction, every: bool) -> Iterator[System]:
    """What needs no training; statistics with one view, or with ``every`` with each count of views."""
    order = action.order
    yield System("EquiTune", None, order, None, EquiTune(backbone, action, "trivial"))
    yield System("EquiZero", None, order, None, EquiZero(backbone, action, "trivial", loss="max_prob"))
    for name in STATISTICS:
        for k in COUNTS[action.name] if every else (1,):
            yield System(name, k, k, name, CanonicalEquiTune(backbone, action, "trivial", name, k))  # type: ignore[arg-type]


def ranked(backbone: nn.Module, action: GridAction, energy: nn.Module, size: int | None) -> Iterator[System]:
    """``CanonicalEquiTune`` by an energy: so many views, merged in two ways, and as many as it takes."""

    def model(views: Any, reduce: Any, agree: int | None = None) -> nn.Module:
        return CanonicalEquiTune(backbone, action, "trivial", energy, views, reduce, size=size, agree=agree).eval()

    for reduce in ("mean", "softmax"):
        for k in COUNTS[action.name]:
            yield System(f"{TRAINED}, {reduce}", k, k, TRAINED, model(k, reduce))
    yield System(f"{TRAINED}, two that agree", None, None, TRAINED, model("auto", "mean", 2))
    yield System(f"{TRAINED}, softmax, auto", None, None, TRAINED, model("auto", "softmax"))


@torch.inference_mode()
def forwards(system: System, x: Tensor) -> float:
    """Forwards for each image, the mean."""
    if system.forwards is not None:
        return float(system.forwards)
    assert isinstance(system.model, CanonicalEquiTune)
    return float(torch.cat([system.model.counted(some)[1] for some in x.split(CHUNK)]).double().mean())


@torch.inference_mode()
def deviation(model: Callable[[Tensor], Tensor], x: Tensor, action: GridAction) -> float:
    """The largest change of an image's outputs under the group, of the size of its largest output."""
    worst = 0.0
    for some in x.split(CHUNK):
        y, *others = (model(view) for view in orbit(some, action))
        size = y.abs().amax(1)
        worst = max([worst, *(float(((other - y).abs().amax(1) / size).max()) for other in others)])
    return worst


def multiply_adds(call: Callable[[Tensor], Any], x: Tensor) -> float:
    """Those of a call's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counted:
        call(x)
    return float(counted.get_total_flops()) / 2


@torch.inference_mode()
def cost(
    x: Tensor,
    backbone: Callable[[Tensor], Any],
    ranking: Callable[[Tensor], Any],
    whole: Callable[[Tensor], Any],
    rounds: int,
) -> dict[str, float]:
    """What ranking the poses of a batch takes over one forward of the backbone, and so what a whole call does.

    Times are the process's CPU time, which others on the machine change little; medians of so many rounds, in each of
    which all three run.
    """
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([])
        for call in (backbone, ranking, whole):
            start = time.process_time()
            call(x)
            times[-1].append(time.process_time() - start)
    one, rank, all_of_it = (statistics.median(each) for each in zip(*times[1:], strict=True))
    return {
        "seconds of a forward": one,
        "time": rank / one,
        "whole time": all_of_it / one,
        "multiply-adds": multiply_adds(ranking, x) / multiply_adds(backbone, x),
    }
