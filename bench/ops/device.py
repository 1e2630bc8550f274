"""Times that are the GPU's own: events around calls that were queued behind a sleeping kernel.

With the host's clock a kernel as fast as the copy shows slower than it: what is measured is the launch. Here everything
is queued before the first kernel starts, so that no launch is between two events.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROUNDS = 5
ROUND = 0.004  # seconds of one round, about
MOST_CALLS = 100  # of one round
CYCLES = 4e9  # of a GPU in a second, and more than any has
TRIES = 5
SLACK = 2e-4  # seconds that the device sleeps beyond what queueing takes


@dataclass(frozen=True)
class Seconds:
    """Of one call: on the device in each round, and until the host has it queued."""

    rounds: tuple[float, ...]
    host: float

    @property
    def device(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


def seconds(calls: Sequence[Callable[[], Any]], device: str, may_wait: bool = False) -> Seconds:
    """Calls that take turns; on a CPU both are the host's clock.

    ``may_wait``: calls that are not ours may wait for the device, so that they cannot be queued; then the host's clock
    counts, until the device is done.

    Raises:
        RuntimeError: a call that waits for the device and must not.
    """
    ring = _turns(calls)
    if device == "cpu":
        return _by_the_clock(ring, len(calls))
    for _ in range(2 * len(calls)):
        next(ring)()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in calls:
        next(ring)()
    host = (time.perf_counter() - start) / len(calls)
    torch.cuda.synchronize()
    whole = (time.perf_counter() - start) / len(calls)
    count = max(3, min(MOST_CALLS, int(ROUND / whole)))
    found = []
    for _ in range(ROUNDS):
        for _ in range(TRIES):
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            sleep(count * host + SLACK)
            before.record()
            for _ in range(count):
                next(ring)()
            after.record()
            asleep = not before.query()
            after.synchronize()
            if asleep:
                break
            # The host was slower than it had been, or waited for room in the queue: fewer calls, and a longer sleep.
            count, host = max(1, count // 2), 2 * host
        else:
            if may_wait:
                return _until_done(ring, len(calls))
            raise RuntimeError("calls could not be queued before the device began with them")
        found.append(before.elapsed_time(after) / 1e3 / count)
    return Seconds(tuple(found), host)


def _turns(calls: Sequence[Callable[[], Any]]) -> Iterator[Callable[[], None]]:
    """The calls in turn, for ever; what each returned is kept until its next turn, so that results rotate as well."""
    results: list[Any] = [None] * len(calls)

    def turn(k: int) -> None:
        results[k] = None
        results[k] = calls[k]()

    return itertools.cycle([functools.partial(turn, k) for k in range(len(calls))])


def _by_the_clock(ring: Iterator[Callable[[], None]], count: int) -> Seconds:
    found = []
    for _ in range(count + ROUNDS):
        start = time.perf_counter()
        next(ring)()
        found.append(time.perf_counter() - start)
    rounds = tuple(found[count:])
    return Seconds(rounds, statistics.median(rounds))


def _until_done(ring: Iterator[Callable[[], None]], count: int) -> Seconds:
    def call() -> None:
        next(ring)()
        torch.cuda.synchronize()

    return _by_the_clock(itertools.repeat(call), count)


def sleep(duration: float) -> None:
    """Keeps the device busy for so many seconds, or longer, while the host goes on."""
    spin = getattr(torch.cuda, "_sleep", None)  # what torch's own tests wait with; it has no public name
    if spin is not None:
        spin(int(CYCLES * duration))
        return
    busy = torch.empty(1 << 26, device="cuda")  # 256 MiB: at 5 TB/s written in 50 µs
    for _ in range(1 + int(duration / 5e-5)):
        busy.zero_()
