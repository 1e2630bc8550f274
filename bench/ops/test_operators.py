"""Every operator, forward and backward, against the copy of its bytes, eager torch and ``torch.compile``.

A provider's result is compared with float64 first; what is wrong fails and is not timed. No time is asserted.
"""

from __future__ import annotations

import functools
import gc
import time

import pytest
import torch
from cases import PROVIDERS, TOLERANCE, Case, all_cases, error
from conftest import devices
from operators import Tensors
from providers import Compiler, bind
from pytest_benchmark.fixture import BenchmarkFixture
from report import Ledger
from timing import Interleaved, copy_of, once, summary, synchronize
from torch import Tensor

SECONDS = {"equikern": 0.3, "eager": 0.2, "compile": 0.2}  # for the rounds of one benchmark, copies included
FEWEST = {"equikern": 9, "eager": 3, "compile": 3}
MOST = 50
CASES = [
    pytest.param(case, provider, id=f"{case.id}-{provider}")
    for device in devices()
    for case in all_cases(device)
    for provider in PROVIDERS
]


@functools.lru_cache(maxsize=1)  # the providers of a case follow each other
def expected(case: Case) -> Tensors:
    return case.expected()


def check(case: Case, result: Tensor | Tensors) -> float:
    """The largest error of the results, which must be small."""
    results = (result,) if isinstance(result, Tensor) else result
    worst = max(error(got, want) for got, want in zip(results, expected(case), strict=True))
    limit = TOLERANCE[case.dtype]
    assert worst <= limit, f"relative error {worst:.1e} against float64, expected at most {limit:.0e}: not timed"
    return worst


@pytest.mark.parametrize(("case", "provider"), CASES)
def test_operator(case: Case, provider: str, benchmark: BenchmarkFixture, ledger: Ledger, compiler: Compiler) -> None:
    with torch.set_grad_enabled(case.direction == "backward"):
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
    rounds = min(MOST, max(FEWEST[provider], int(SECONDS[provider] / (step + once(copy)))))
    copies = Interleaved(copy)
    gc.collect(0)
    benchmark.pedantic(timed, setup=copies, rounds=rounds)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    row = ledger.row(case)
    row.errors[provider] = worst
    row.times[provider] = mine = summary(benchmark.stats.stats.data)
    row.copies[provider] = reference = summary(copies.seconds)
    benchmark.extra_info.update(
        bytes=case.bytes,
        gigabytes_per_second=case.bytes / mine.median / 1e9,
        percent_of_copy=100 * reference.median / mine.median,
        copy=reference.as_dict(),
        p20=mine.p20,
        p80=mine.p80,
        relative_error=worst,
    )
