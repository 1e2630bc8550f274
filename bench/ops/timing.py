"""The copy that everything is measured against, and the statistics of repeated timings."""

from __future__ import annotations

import functools
import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import machine
import torch
from cases import Case
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


@functools.cache
def _bytes(count: int, device: str) -> Tensor:
    memory = torch.empty(count, dtype=torch.uint8, device=device)
    return memory.random_()  # every page there, and no page the zero page


def _buffer(which: int, elements: int, dtype: torch.dtype, device: str) -> Tensor:
    """Memory that all copies share, source (0) or target (1), grown to a power of two."""
    size = 1 << (elements * dtype.itemsize - 1).bit_length()
    return _bytes(size + which, device)[: elements * dtype.itemsize].view(dtype)


def copy_of(case: Case) -> Callable[[], None]:
    """A copy that moves as many bytes as the case must: half of reads plus writes, read once and written once.

    Forward it writes to memory that is there already, as an operator with ``out=`` does. A backward allocates the
    gradients, and fresh pages cost the system more than the kernel: so there the copy allocates as many bytes as the
    gradients have and writes to every page of them.
    """
    reads, writes = case.elements
    half = (reads + writes) // 2
    source = _buffer(0, half, case.dtype, case.device)
    if case.direction == "forward":  # which has its memory given
        target = _buffer(1, half, case.dtype, case.device)

        def copy() -> None:
            target.copy_(source)
            synchronize(case.device)

        return copy
    fresh = min(half, writes)  # what is copied to fresh pages; the rest, if any, to memory that is there
    rest = _buffer(1, half - fresh, case.dtype, case.device) if half > fresh else None
    page = mmap.PAGESIZE // case.dtype.itemsize

    def allocate_and_copy() -> None:
        gradient = torch.empty(writes, dtype=case.dtype, device=case.device)
        gradient[:fresh].copy_(source[:fresh])
        if rest is not None:
            rest.copy_(source[fresh:])
        gradient[fresh::page].zero_()  # pages beyond the copied bytes, touched once each
        synchronize(case.device)

    return allocate_and_copy


def evict(device: str) -> None:
    """Leave nothing of what the caches hold: twice their size is written."""
    _bytes(2 * machine.last_level_cache(device), device).add_(1)
    synchronize(device)


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
