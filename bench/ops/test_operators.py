"""Every operator, forward and backward, against the copy of its bytes, eager torch and ``torch.compile``.

A provider's result is compared with float64 first; what is wrong fails and is not timed. No time is asserted.
"""

from __future__ import annotations

import functools
import gc
import time
from dataclasses import replace

import machine
import pytest
import torch
from cases import MERGE_SHAPE, TOLERANCE, Case, all_cases, error
from conftest import devices
from equikern.backends import unavailable
from memory import peak
from operators import Tensors
from providers import FUSED, Compiler, bind, serve
from pytest_benchmark.fixture import BenchmarkFixture
from report import Ledger
from timing import Interleaved, copy_of, evict, once, summary, synchronize
from torch import Tensor

SECONDS = (0.15, 0.25)  # for the rounds of one benchmark, copies included: of others, of equikern
FEWEST = (3, 9)
MOST = 50
CASES = [
    pytest.param(case, provider, id=f"{case.id}-{provider}")
    for device in devices()
    for case in all_cases(device)
    for provider in case.providers
]


def _counted(case: Case) -> bool:
    """Peak memory is proportional to the shape: on a CPU, where counting takes long, one shape tells."""
    return case.device == "cuda" or case.shape == MERGE_SHAPE


@functools.lru_cache(maxsize=1)  # the providers of a case follow each other
def expected(case: Case) -> Tensors:
    return case.expected()


def check(case: Case, result: Tensor | Tensors) -> float:
    """The largest error of the results, which must be small."""
    results = (result,) if isinstance(result, Tensor) else result
    worst = max(error(got, want) for got, want in zip(results, expected(replace(case, state="")), strict=True))
    limit = TOLERANCE[case.dtype]
    assert worst <= limit, f"relative error {worst:.1e} against float64, expected at most {limit:.0e}: not timed"
    return worst


@pytest.mark.parametrize(("case", "provider"), CASES)
def test_operator(case: Case, provider: str, benchmark: BenchmarkFixture, ledger: Ledger, compiler: Compiler) -> None:
    if provider in FUSED[1:]:
        reason = unavailable(provider, torch.device(case.device))
        if reason is not None:
            pytest.skip(f"{provider}: {reason}")
    with torch.set_grad_enabled(case.direction != "forward"), serve(provider):
        _measure(case, provider, benchmark, ledger, compiler)


def _measure(case: Case, provider: str, benchmark: BenchmarkFixture, ledger: Ledger, compiler: Compiler) -> None:
    benchmark.group = case.id
    call, outs = bind(case, provider, compiler)

    def timed() -> None:
        call()  # its result is freed inside the measured time, as the copy's is
        synchronize(case.device)

    start = time.perf_counter()
    result = call()
    step = time.perf_counter() - start
    worst = check(case, result if outs is None else outs)
    del result
    copy = copy_of(case)
    once(copy)  # first touch of its memory
    if provider == "compile":  # whose first call compiled
        step = once(timed)
    if case.state == "hot":  # each directly after itself
        copies = Interleaved(copy, copy, timed)
    elif case.bytes > machine.last_level_cache(case.device):  # each evicts the other
        copies = Interleaved(copy)
    else:
        flush = functools.partial(evict, case.device)
        copies = Interleaved(copy, flush, flush)
    mine = provider in FUSED
    rounds = min(MOST, max(FEWEST[mine], int(SECONDS[mine] / (step + once(copies)))))
    copies.seconds.clear()
    gc.collect(0)
    benchmark.pedantic(timed, setup=copies, rounds=rounds)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    row = ledger.row(case)
    row.errors[provider] = worst
    row.peaks[provider] = peak(call, case.device) if _counted(case) else None
    row.times[provider] = times = summary(benchmark.stats.stats.data)
    row.copies[provider] = reference = summary(copies.seconds)
    benchmark.extra_info.update(
        bytes=case.bytes,
        gigabytes_per_second=case.bytes / times.median / 1e9,
        percent_of_copy=100 * reference.median / times.median,
        copy=reference.as_dict(),
        p20=times.p20,
        p80=times.p80,
        relative_error=worst,
    )
