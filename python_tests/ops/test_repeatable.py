"""Bitwise the same result twice, and with one and two threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.calls import CALLS, Call, gradients, results
from helpers.looped import each
from helpers.oracles import CASES, Case
from helpers.strategies import FLOATS, bits
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
GROUPS = pytest.mark.parametrize("case", [CASES[name] for name in ("c4", "d4", "nothing")], ids=repr)
# (lead, side): many small planes, a few odd ones, one plane larger than a thread's share
SIZES = pytest.mark.parametrize(("lead", "side"), [((16, 8), 8), ((2, 3), 37), ((1,), 130)], ids=str)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(call: Call, case: Case, arguments: list[Tensor]) -> tuple[Tensor, ...]:
    if call.differentiable:
        return gradients(call, case.action, arguments)
    return results(call.run(case.action, *arguments))


@pytest.mark.parametrize("call", CALLS.values(), ids=repr)
@each(*GROUPS.args)
@each(*SIZES.args)
def test_one_and_two_threads_agree(call: Call, case: Case, lead: tuple[int, ...], side: int) -> None:
    arguments = call.tensors(case.action, lead, side)
    found = []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        found.append(run(call, case, arguments))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("k", [1, 2, 3])
def test_gradient_of_the_weights_is_repeatable(dtype: torch.dtype, k: int) -> None:
    """The one reduction over a whole plane and batch: its order may depend on the shape alone."""
    case = CASES["d4"]
    y = torch.randn(8, 3, 5, 61, 61, generator=torch.Generator().manual_seed(k)).to(dtype)
    weights = torch.rand(y.shape[:k], generator=torch.Generator().manual_seed(4), dtype=torch.float32) + 0.1
    weights = weights.double() if dtype == torch.float64 else weights
    found = []
    for threads in (1, 2, 3, 4, 2):
        torch.set_num_threads(threads)
        found.append(gradients(CALLS["weighted"], case.action, [y, weights]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))


@each("name", ["weighted", "weighted softmax", "weighted as is", "select index"])
@each("batch", [16, 1001, 20_001])
def test_many_weights(name: str, batch: int) -> None:
    """One weight for every sample of a large batch: normalising them must not depend on the threads either."""
    case, call = CASES["nothing"], CALLS[name]
    y = torch.randn(6, batch, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(6, batch, generator=torch.Generator().manual_seed(2)) + 0.1
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run(call, case, [y, weights]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))
