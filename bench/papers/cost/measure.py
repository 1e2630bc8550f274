"""Time and peak memory of every system in every way, in rounds in which they take turns."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from bench.ops.memory import peak
from torch import Tensor

from .names import STEPS, WAYS
from .networks import NETWORKS
from .systems import Job, called, difference, jobs, parameters

TOLERANCE = 1e-3  # of float32 through a whole network and back
SIZE = 224


def seconds(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call: between two events on a GPU, by the clock on a CPU."""
    if device == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Case:
    """A network under a group, with a batch of random images.

    Args:
        name: of ``NETWORKS``.
        group: ``"c4"`` or ``"d4"``.
        batch: how many images.
        device: where.
    """

    def __init__(self, name: str, group: str, batch: int, device: str) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name]().to(device).eval()
        self.title = f"{name}, {group.upper()}, {batch} image{'s' * (batch > 1)}"
        self.jobs = jobs(network, group)
        self._device = device
        self._x = torch.randn(batch, 3, SIZE, SIZE, device=device)
        with torch.no_grad():
            self._labels = torch.arange(batch, device=device) % network(self._x[:1]).shape[1]

    def call(self, job: Job, way: str) -> list[Tensor]:
        """One call of a job, in one of its ways."""
        return called(job, way, self._x, self._labels)

    def checked(self, job: Job, advance: Callable[[], None]) -> dict[str, dict[str, Any]]:
        """Every way's peak memory, and how far its result is from that of the eager loop, which is the first.

        Raises:
            AssertionError: it is another one.
        """
        found: dict[str, dict[str, Any]] = {}
        expected: list[Tensor] = []
        for way in job.ways:
            results: list[Tensor] = []
            most = peak(
                functools.partial(lambda kept, way: kept.extend(self.call(job, way)), results, way), self._device
            )
            expected = expected or results
            error = difference(results, expected)
            assert error < TOLERANCE, f"{self.title}, {job.step}, {job.system}, {way}: relative error {error:.1e}"
            found[way] = {"bytes": most, "parameters": parameters(job, way), "error": error, "seconds": []}
            advance()
        return found

    def timed(self, job: Job, way: str) -> float:
        """Seconds of one call."""
        return seconds(lambda: self.call(job, way), self._device)


Found = dict[str, dict[str, dict[str, dict[str, dict[str, Any]]]]]


def one_round(cases: list[Case], found: Found, shift: int, advance: Callable[[], None]) -> None:
    """Every job of all cases once in every way, beginning with another one each time: adds to what was found."""
    turns = [(case, job, way) for case in cases for job in case.jobs for way in job.ways]
    shift = shift * 11 % len(turns)
    for case, job, way in turns[shift:] + turns[:shift]:
        found[case.title][job.step][job.system][way]["seconds"].append(case.timed(job, way))
        advance()


def measured(settings: dict[str, Any], device: str, progress: Any) -> tuple[Found, int]:
    """Checks and memory first, then the rounds; none begins after the settings' seconds. Returns their number, too."""
    start = time.perf_counter()
    cases, found = [], {}
    count = sum(map(len, STEPS.values())) * len(WAYS) * len(settings["cases"])
    task = progress.add_task("results compared, memory", total=count)
    for name, group, batch in settings["cases"]:
        case = Case(name, group, batch, device)
        cases.append(case)
        steps: dict[str, dict[str, dict[str, dict[str, Any]]]] = {step: {} for step in STEPS}
        for job in case.jobs:
            steps[job.step][job.system] = case.checked(job, lambda: progress.advance(task))
        found[case.title] = steps
    task = progress.add_task("rounds", total=count * settings["rounds"])
    done = 0
    while done < settings["rounds"] and (not done or time.perf_counter() - start < settings["seconds"]):
        one_round(cases, found, done, lambda: progress.advance(task))
        done += 1
    return found, done
