"""Every operator, forward and backward, against the copy of its bytes, eager torch and ``torch.compile``.

A provider's result is compared with float64 first; what is wrong fails and is not timed. No time is asserted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench.ops.cases import FUSED, MERGE_SHAPE, Case, all_cases, error
from bench.ops.device import seconds
from bench.ops.fields import field_cases
from bench.ops.memory import peak
from bench.ops.operators import Tensors
from bench.ops.providers import Compiler, bind, in_our_order, missing, poison, serve
from bench.ops.report import Ledger
from bench.ops.timing import GRAPH_CALLS, Interleaved, Ring, captured, copies_of, once, summary
from bench.ops.words import word_cases
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

SECONDS = (0.15, 0.25)  # for the rounds of one benchmark, copies included: of others, of equikern
FEWEST = (3, 9)
MOST = 50


def _counted(case: Case) -> bool:
    """Peak memory is proportional to the shape: on a CPU, where counting takes long, one shape and D4 tell."""
    if case.device == "cpu":
        return case.shape == MERGE_SHAPE and case.group == "d4"
    return case.state != "graph"


@functools.lru_cache(maxsize=1)  # the providers of a case follow each other
def expected(case: Case) -> Tensors:
    return case.expected()


def check(case: Case, provider: str, result: Tensor | Tensors) -> float:
    """The largest error of the results, which must be small."""
    results = (result,) if isinstance(result, Tensor) else result
    wanted = expected(replace(case, state=""))
    if provider == "toolbelt":
        results = tuple(in_our_order(got, want) for got, want in zip(results, wanted, strict=True))
    worst = max(error(got, want) for got, want in zip(results, wanted, strict=True))
    limit = case.tolerance
    assert worst <= limit, f"relative error {worst:.1e} against float64, expected at most {limit:.0e}: not timed"
    return worst


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, only = metafunc.config.option.device, metafunc.config.option.only
    families: dict[str, Callable[[str], Sequence[Case]]] = {
        "images": all_cases,
        "fields": field_cases,
        "logits": word_cases,
    }
    cases = [case for family, cases_of in families.items() if only in (None, family) for case in cases_of(device)]
    found = [pytest.param(case, name, id=f"{case.id}-{name}") for case in cases for name in case.providers]
    metafunc.parametrize(("case", "provider"), found)


def test_operator(case: Case, provider: str, benchmark: BenchmarkFixture, ledger: Ledger, compiler: Compiler) -> None:
    reason = missing(provider, case.device)
    if reason is not None:
        pytest.skip(f"{provider}: {reason}")
    with torch.set_grad_enabled(case.direction != "forward"), serve(provider):
        _measure(case, provider, benchmark, ledger, compiler)


def _rings(case: Case, provider: str, compiler: Compiler) -> tuple[Ring, Ring]:
    """The calls to time, each with right results behind it, and the copies; in a CUDA graph ``GRAPH_CALLS`` a call."""
    copies: list[Callable[[], Any]] = [*copies_of(case)]
    if case.state != "graph":
        calls = [bind(case, provider, compiler, fresh=k > 0) for k in range(case.buffers)]
        return Ring(calls, case.device), Ring(copies, case.device)
    try:
        replay = captured(lambda: bind(case, provider, compiler))
    except RuntimeError as failure:
        if provider in FUSED:
            raise
        pytest.skip(f"{provider}: not captured in a CUDA graph: {failure}")
    results = replay()
    for t in (results,) if isinstance(results, Tensor) else results:
        poison(t.detach())  # so that the next replay must write it
    return Ring([replay], case.device), Ring([captured(lambda: copies[0])], case.device)


def _measure(case: Case, provider: str, benchmark: BenchmarkFixture, ledger: Ledger, compiler: Compiler) -> None:
    benchmark.group = case.id
    ring, copy = _rings(case, provider, compiler)
    worst = 0.0
    for _ in range(case.buffers):
        ring()
        worst = max(worst, check(case, provider, ring.last))
        copy()  # first touch of its memory
    step = once(ring)
    # Hot: each directly after itself. Cold: the ring has been through the other buffers.
    copies = Interleaved(copy) if case.state == "cold" else Interleaved(copy, copy, ring)
    mine = provider in FUSED
    rounds = min(MOST, max(FEWEST[mine], int(SECONDS[mine] / (step + once(copies)))))
    copies.seconds.clear()
    benchmark.pedantic(ring, setup=copies, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    calls = GRAPH_CALLS if case.state == "graph" else 1
    row = ledger.row(case)
    row.errors[provider] = worst
    if case.device == "cuda":  # with the host's clock, as above, what is measured of a short call is its launch
        there, copied = seconds(ring.calls, case.device, provider not in FUSED), seconds(copy.calls, case.device)
        times, reference = summary(there.rounds, calls), summary(copied.rounds, calls)
        if calls == 1:  # a graph has one launch for all of its calls
            row.hosts[provider] = there.host
    else:
        times, reference = summary(benchmark.stats.stats.data, calls), summary(copies.seconds, calls)
    row.times[provider], row.copies[provider] = times, reference
    if _counted(case):
        row.peaks[provider] = peak(ring.calls[0], case.device)
    benchmark.extra_info.update(
        bytes=case.bytes,
        calls_per_round=calls,
        gigabytes_per_second=case.bytes / times.median / 1e9,
        percent_of_copy=100 * reference.median / times.median,
        copy=reference.as_dict(),
        p20=times.p20,
        p80=times.p80,
        relative_error=worst,
    )
