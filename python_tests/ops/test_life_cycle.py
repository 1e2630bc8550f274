"""Threads, forks, interrupts and ends of processes: no call disturbs another, and none leaves anything behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from equikern import EquiTune, field, grid, matrix, orbit, orbit_mean, permutation, symmetrize, use_backend
from helpers import fresh
from torch import Tensor, nn

ACTIONS = [
    grid("d4"),
    grid("c4"),
    permutation([[*range(6)], [1, 0, *range(2, 6)]]),
    permutation([[*range(6)], [5, 4, 3, 2, 1, 0]], [[1] * 6, [-1] * 6]),
    matrix([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    field(grid("flips"), "vector"),
    field(grid("c4"), "regular"),
    grid("hflip"),
]
SHAPES = [(3, 9, 9), (2, 3, 16, 16), (5, 6), (4, 6), (50, 2), (2, 4, 7, 9), (8, 6, 6), (3, 5, 8)]


def numbers(k: int, seed: int) -> Tensor:
    return torch.randn(SHAPES[k], generator=torch.Generator().manual_seed(seed))


def test_eight_threads_with_their_own_actions() -> None:
    """400 calls a thread, while the number of torch's threads changes: every result is that of one thread alone."""
    expected = [[symmetrize(numbers(k, seed), ACTIONS[k]) for seed in range(10)] for k in range(8)]
    threads = torch.get_num_threads()

    def work(k: int) -> int:
        wrong = 0
        for n in range(400):
            if n % 50 == 0:
                torch.set_num_threads(1 + (n // 50 + k) % 3)
            wrong += not torch.equal(symmetrize(numbers(k, n % 10), ACTIONS[k]), expected[k][n % 10])
        return wrong

    try:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(work, range(8))) == 0
    finally:
        torch.set_num_threads(threads)


def test_eight_threads_with_their_own_backends() -> None:
    """Blocks that overlap leave nothing behind, and results are right under both."""
    from equikern import active_backend

    before = active_backend("cpu")

    def work(k: int) -> int:
        wrong = 0
        for n in range(200):
            with use_backend("reference" if n % 2 else None):
                found = orbit(numbers(k, n % 10), ACTIONS[k])
            one = ACTIONS[k].act(1, numbers(k, n % 10))
            wrong += not torch.allclose(found[1], one, atol=1e-6)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert active_backend("cpu") == before


FORKED = """
import multiprocessing, sys, torch
from equikern import grid, matrix, orbit_mean, orbit, permutation

SWAP = permutation([[*range(6)], [1, 0, *range(2, 6)]])

def work(k):
    x = torch.arange(6.0 * 64).reshape(64, 6) + k
    y = orbit(x, SWAP)
    return float(orbit_mean(y, SWAP).sum() - x.sum())

if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has none of OpenMP's threads
    work(0)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(work, range(60)) == [0.0] * 60
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_processes(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FORKED)
    done = fresh.run(str(script), how)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import signal, time, torch
from equikern import grid, orbit, orbit_mean
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
torch.set_num_threads(2)
x = torch.rand(64, 3, 256, 256)
D4 = grid("d4")
right = orbit_mean(orbit(x[:2], D4), D4)
out = torch.empty(8, *x.shape)
print("ready", flush=True)
try:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        orbit(x, D4, out=out)
    raise AssertionError("no interrupt came")
except KeyboardInterrupt:
    pass
assert torch.equal(orbit_mean(orbit(x[:2], D4), D4), right)
print("fine", flush=True)
"""


def test_an_interrupt_in_a_long_kernel() -> None:
    """It is raised when the kernel is done, and the next call is as ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "fine\n"), errors


def test_a_process_that_ends_with_live_tensors() -> None:
    code = """
import torch, threading
from equikern import EquiTune, grid, orbit, orbit_mean, permutation, use_backend
action = permutation([[*range(6)], [1, 0, *range(2, 6)]])
x = torch.rand(3, 6, requires_grad=True)
loss = orbit_mean(orbit(x, action), action).sum()
choice = use_backend("reference")
model = EquiTune(torch.nn.Identity(), action, action)
thread = threading.Thread(target=lambda: [orbit(torch.rand(200, 6), action) for _ in range(2000)], daemon=True)
thread.start()
"""
    done = fresh.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_errors_in_a_backbone_leave_nothing() -> None:
    """The forward behind one that failed is the one that would have been."""

    class Fails(nn.Module):
        fail = False

        def forward(self, x: Tensor) -> Tensor:
            if self.fail:
                raise RuntimeError("no")
            return x * 2

    net, x = Fails(), torch.rand(2, 3, 6, 6)
    for model in (EquiTune(net, "d4", "d4"), EquiTune(net, "d4", "d4", views_per_forward=3)):
        net.fail = False
        before, state = model(x), dict(vars(model))
        net.fail = True
        with pytest.raises(RuntimeError, match="no"):
            model(x)
        net.fail = False
        assert torch.equal(model(x), before)
        assert dict(vars(model)) == state
    assert orbit_mean(orbit(x, grid("d4")), grid("d4")).shape == x.shape
