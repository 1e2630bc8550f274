"""The loss from the last hidden state: its time and its peak memory beside eager torch, which holds all the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench.ops.cases import error
from bench.ops.memory import peak
from bench.ops.report import Ledger, LossRow
from bench.ops.timing import Interleaved, summary, synchronize
from bench.ops.words import table, undone
from equikern import linear_orbit_cross_entropy, permutation
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

SIZES = {"quick": (2, 256, 64, 8192), "full": (2, 2048, 576, 49_152)}  # |G|, rows, features, words
ROUNDS = 3


@pytest.mark.parametrize("size", SIZES)
def test_linear_loss(size: str, device: str, benchmark: BenchmarkFixture, ledger: Ledger) -> None:
    order, rows, features, words = SIZES[size]
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn((order, rows, features), generator=generator, device=device)
    weight = torch.randn((words, features), generator=generator, device=device) / features**0.5
    target = torch.randint(words, (rows,), generator=generator, device=device)
    perm = table("swap2", words, device)
    action = permutation(perm)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]

    def differentiated(loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            value = loss()
            return value.detach(), *torch.autograd.grad(value, leaves)

        return call

    def in_torch() -> Tensor:
        return torch.nn.functional.cross_entropy(undone(hidden @ weight.T, perm).mean(0), target)

    mine = differentiated(lambda: linear_orbit_cross_entropy(hidden, weight, target, action))
    eager = differentiated(in_torch)
    results, wanted = mine(), eager()
    worst = max(error(got, want) for got, want in zip(results, wanted, strict=True))
    assert worst <= 1e-5, f"relative error {worst:.1e} against eager torch: not timed"
    gradients = sum(t.numel() * t.element_size() for t in wanted)
    del results, wanted

    def timed() -> None:
        mine()
        synchronize(device)

    def timed_eager() -> None:
        eager()
        synchronize(device)

    other = Interleaved(timed_eager)
    benchmark.pedantic(timed, setup=other, rounds=ROUNDS)
    if benchmark.stats is None:  # --benchmark-disable
        return
    row = LossRow(
        size=SIZES[size],
        device=device,
        mine=summary(benchmark.stats.stats.data),
        eager=summary(other.seconds),
        logits_bytes=order * rows * words * 4,
        peaks={name: peak(call, device) - gradients for name, call in (("equikern", mine), ("eager", eager))},
    )
    ledger.losses.append(row)
    benchmark.extra_info.update(row.as_dict())
