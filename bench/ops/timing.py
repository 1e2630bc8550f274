"""The copy that everything is measured against, and the statistics of repeated timings."""

from __future__ import annotations

import functools
import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bench.ops.cases import Case
from torch import Tensor


@dataclass(frozen=True)
class Times:
    """Seconds: the median, the 20th and the 80th percentile of so many rounds."""

    median: float
    p20: float
    p80: float
    rounds: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summary(seconds: Sequence[float], calls: int = 1) -> Times:
    """Statistics per call of rounds of so many calls."""
    each = [s / calls for s in seconds]
    fifths = statistics.quantiles(each, n=5, method="inclusive") if len(each) > 1 else each * 4
    return Times(statistics.median(each), fifths[0], fifths[3], len(each))


def synchronize(device: str) -> None:
    """Wait until the device has done its work; the CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


class Ring:
    """Calls that take turns, each with buffers of its own.

    What a call returned is freed within the measured time of its next turn, so that results rotate as well.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]], device: str) -> None:
        self.calls, self._device = calls, device
        self._results: list[Any] = [None] * len(calls)
        self._turn = 0

    def __call__(self) -> None:
        self._turn = (self._turn + 1) % len(self.calls)
        self._results[self._turn] = None
        self._results[self._turn] = self.calls[self._turn]()
        synchronize(self._device)

    @property
    def last(self) -> Any:
        """What the last call returned."""
        return self._results[self._turn]


GRAPH_CALLS = 20  # in one CUDA graph, so that its own launch and the waiting for it hardly count


def captured(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """A CUDA graph of ``GRAPH_CALLS`` calls of what ``make`` makes: replays it, and returns the last call's result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()  # here, because a backward runs on the stream that its forward ran on
        for _ in range(3):  # what is compiled, tuned or loaded at the first calls
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(GRAPH_CALLS):
            result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


_POOL: dict[tuple[str, int], Tensor] = {}


def _buffers(which: int, count: int, elements: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """So many buffers of memory that all copies share: sources (which = 0) or targets (1)."""
    line = 64
    each = -(-elements * dtype.itemsize // line) * line
    pool = _POOL.get((device, which))
    if pool is None or pool.numel() < count * each:
        pool = _POOL[device, which] = torch.ones(count * each, dtype=torch.uint8, device=device)  # every page there
    return [pool[k * each :][: elements * dtype.itemsize].view(dtype) for k in range(count)]


def copies_of(case: Case) -> list[Callable[[], Tensor]]:
    """Copies that move as many bytes as the case must, half of reads plus writes read once and written once.

    As many copies, each with buffers of its own, as the case itself has buffers.

    Forward they write to memory that is there already, as an operator with ``out=`` does. A backward allocates the
    gradients, and fresh pages cost the system more than the kernel: so there the copy allocates as many bytes as the
    gradients have and writes to every page of them.
    """
    reads, writes = case.elements
    half = (reads + writes) // 2
    fresh = 0 if case.direction == "forward" else min(half, writes)  # what is copied to fresh pages
    sources = _buffers(0, case.buffers, half, case.dtype, case.device)
    targets = _buffers(1, case.buffers, half - fresh, case.dtype, case.device)
    page = mmap.PAGESIZE // case.dtype.itemsize

    def copy(source: Tensor, target: Tensor) -> Tensor:
        if fresh == 0:
            return target.copy_(source)
        gradient = torch.empty(writes, dtype=case.dtype, device=case.device)
        gradient[:fresh].copy_(source[:fresh])
        if fresh < half:
            target.copy_(source[fresh:])
        if fresh < writes:
            gradient[fresh::page].zero_()  # pages beyond the copied bytes, touched once each
        return gradient

    return [functools.partial(copy, *pair) for pair in zip(sources, targets, strict=True)]


class Interleaved:
    """A reference timed once before every round of what it is compared with, so that noise hits both alike.

    ``before`` and ``after`` the reference, untimed, the caches are brought to the state that both are to find.
    """

    def __init__(
        self,
        reference: Callable[[], None],
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._reference, self._before, self._after = reference, before, after
        self.seconds: list[float] = []

    def __call__(self) -> None:
        if self._before:
            self._before()
        start = time.perf_counter()
        self._reference()
        self.seconds.append(time.perf_counter() - start)
        if self._after:
            self._after()


def once(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
