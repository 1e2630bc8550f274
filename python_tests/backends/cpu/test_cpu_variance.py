"""``orbit_variance`` in C++: one pass, and the same bits whatever the threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from equikern import Action, field, grid, orbit_variance, permutation, use_backend
from torch import Tensor

SIDE = 72
# An action, and the shape of one view: of several units of work each.
CASES: dict[str, tuple[Action, tuple[int, ...]]] = {
    "turned tiles": (grid("d4"), (2, 3, SIDE, SIDE)),
    "flips": (grid("flips"), (2, 3, SIDE, SIDE)),
    "volumes": (grid("rot3d"), (2, 1, 20, 20, 20)),
    "fields": (field(grid("c4"), "regular"), (2, 8, 40, 40)),
    "permutations": (permutation([[*range(500)], [3, 1, 2, 0, *range(4, 500)]]), (2, 40, 500)),
}


@pytest.fixture(autouse=True)
def cpu() -> None:
    torch.manual_seed(0)


def allocated(call: Callable[[], object]) -> int:
    """The bytes of the largest tensor that was allocated, by whatever operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    return max(event.self_cpu_memory_usage for event in found.events())


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_view_is_written(name: str) -> None:
    """But the gradient itself, once."""
    action, shape = CASES[name]
    leaf = torch.randn(action.order, *shape, requires_grad=True)
    view = leaf[0].nbytes
    with use_backend("cpu"):
        orbit_variance(leaf, action, 1)
        assert allocated(lambda: orbit_variance(leaf, action, 1)) < view / 8
        losses = orbit_variance(leaf, action, 1)
        grads: list[Tensor] = []

        def backward() -> None:
            grads.extend(torch.autograd.grad(losses, leaf, torch.ones_like(losses)))

        assert allocated(backward) == grads[0].nbytes


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_whatever_the_threads(name: str) -> None:
    action, shape = CASES[name]
    leaf = torch.randn(action.order, *shape, requires_grad=True)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            with use_backend("cpu"):
                losses = orbit_variance(leaf, action, 1)
                found.append((losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    for losses, grad in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert torch.equal(grad, found[0][1])
