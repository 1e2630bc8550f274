"""What a call costs apart from the work: every operator at (1, 3, 8, 8) beside the eager expression it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
import torch
from bench.ops.cases import ORDERS, Case, error
from bench.ops.operators import OPERATORS
from bench.ops.report import CallRow, Ledger
from bench.ops.timing import Interleaved, summary, synchronize
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

SHAPE = (1, 3, 8, 8)
MODES = ("off", "forward", "forward+backward")
CALLS = 20  # a round: shorter than what other processes take when they interrupt
ROUNDS = 75


def _expression(case: Case, mode: str, function: Callable[..., Any]) -> Callable[[], Any]:
    """One call; with autograd its inputs require grad, and ``forward+backward`` asks for their gradients."""
    tensors = case.tensors(requires_grad=mode != "off")
    if mode != "forward+backward":
        return lambda: function(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    upstream = case.upstream()

    def forward_and_backward() -> tuple[Tensor, ...]:
        result = function(*tensors)
        return torch.autograd.grad((result,) if isinstance(result, Tensor) else result, wanted, upstream)

    return forward_and_backward


def _many(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in repeat(None, CALLS):
            call()

    return calls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", list(ORDERS))
@pytest.mark.parametrize("name", list(OPERATORS))
def test_call(name: str, group: str, mode: str, device: str, benchmark: BenchmarkFixture, ledger: Ledger) -> None:
    case = Case(name, "backward" if mode == "forward+backward" else "forward", group, SHAPE, torch.float32, device)
    mine = _expression(case, mode, functools.partial(case.operator.fused, case.action))
    eager = _expression(case, mode, functools.partial(case.operator.eager, case.order))
    for call in (mine, eager):
        result = call()
        results = (result,) if isinstance(result, Tensor) else result
        for got, want in zip(results, case.expected(), strict=True):
            assert error(got, want) <= 1e-5, "wrong result: not timed"
    benchmark.group = f"{name}-{group}-{mode}"
    _many(mine)()
    wait = functools.partial(synchronize, device)  # the launches of others; a round launches and does not wait
    other = Interleaved(_many(eager), wait, wait)
    other()
    other.seconds.clear()
    benchmark.pedantic(_many(mine), setup=other, rounds=ROUNDS)
    if benchmark.stats is None:  # --benchmark-disable
        return
    row = CallRow(name, group, mode, summary(benchmark.stats.stats.data, CALLS), summary(other.seconds, CALLS))
    ledger.calls.append(row)
    benchmark.extra_info.update(calls_per_round=CALLS, time_over_eager=row.ratio, eager=row.eager.as_dict())
