"""Nothing is kept of actions that are gone: memory stays flat over thousands of calls, all with other contents."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fresh
from helpers.thorough import THOROUGH

CODE = """
import ctypes, gc, itertools, json, os, sys
import torch
from equikern import (
    EquiTune, field, grid, matrix, orbit, orbit_act, orbit_mean, orbit_reduce, permutation, tokens, use_backend
)
from equikern.views import of

torch.set_num_threads(1)
torch.manual_seed(0)
numbers = itertools.count()
FLIP, D4 = grid("hflip"), grid("d4")

def swap(n):
    "A permutation of n entries that has not been there, of two of them."
    k = next(numbers)
    i = k % n
    j = (i + 1 + k // n % (n - 1)) % n
    rows = torch.arange(n).repeat(2, 1)
    rows[1, i], rows[1, j] = j, i
    return rows

def mirror():
    "A reflection at a line that has not been there."
    angle = torch.tensor(0.37 * next(numbers), dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    return torch.stack((torch.eye(2, dtype=torch.float64), torch.stack((c, s, s, -c)).view(2, 2)))

def permutations():
    action = permutation(swap(200))
    x = torch.ones(3, 200, requires_grad=True)
    orbit_mean(orbit(x, action), action).sum().backward()

def matrices():
    action = matrix(mirror())
    x = torch.ones(40, 2, requires_grad=True)
    orbit_mean(orbit(x, action), action).sum().backward()

def poses():
    "No group: as many samples as there are in a batch."
    action = matrix(torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(8, 3, 3), closed=False)
    x = torch.ones(8, 50, 3)
    orbit_act(x, torch.arange(8), action, inverse=True)

def fields():
    action = field(FLIP, matrix(mirror()))
    x = torch.ones(2, 4, 6, 6, requires_grad=True)
    orbit_mean(orbit(x, action), action).sum().backward()

def planes():
    action = field(FLIP, permutation(swap(12)))
    orbit_reduce(orbit(torch.ones(12, 5, 5), action), action, "median")

def words():
    action = tokens(swap(500))
    ids = torch.arange(500)
    orbit(ids, action), orbit(torch.ones(2, 500), action.logits)

def elsewhere():
    "Copies of the tables on another device are gone with them."
    action = permutation(swap(3000))
    orbit(torch.ones(2, 3000, device="meta"), action)

def models():
    action = permutation(swap(64))
    model = EquiTune(torch.nn.Identity(), action, action, views_per_forward=1)
    model(torch.ones(2, 64))

def grids():
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    orbit_act(orbit_mean(orbit(x, D4), D4), torch.tensor([3, 5]), D4).sum().backward()

def codes():
    "Each of a size that has not been there: codes are kept up to a number, see equikern.views."
    of(f"permutation -1 {2 + next(numbers)}: . x")

def resident():
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # as glibc has it
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

call, warm, count = globals()[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
with use_backend(sys.argv[4]):
    for _ in range(warm):
        call()
    before = resident()
    for _ in range(count):
        call()
    print(json.dumps(resident() - before))
"""
# 20,000 calls on the C++ kernels, and some on plain torch; without the audits a quarter of both, in a quarter of 5 MiB.
CALLS = {
    "permutations": 4000,
    "matrices": 2500,
    "poses": 2500,
    "fields": 2000,
    "planes": 2000,
    "words": 2000,
    "elsewhere": 1000,
    "models": 1000,
    "grids": 3000,
}
PART = 1 if THOROUGH else 4


def grown(name: str, warm: int, count: int, backend: str = "cpu") -> float:
    """MiB that a process has grown by in so many calls, after others."""
    done = fresh.run("-c", CODE, name, str(warm), str(count), backend)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 2**20


needs_statm = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/self/statm")


@needs_statm
@pytest.mark.parametrize("name", CALLS)
def test_memory_stays_flat(name: str) -> None:
    assert grown(name, 300, CALLS[name] // PART) < 5 / PART


@needs_statm
@pytest.mark.parametrize("name", ["permutations", "matrices", "fields"])
def test_memory_stays_flat_in_plain_torch(name: str) -> None:
    assert grown(name, 200, 600 // PART, "reference") < 5 / PART


@needs_statm
def test_codes_are_kept_up_to_a_number() -> None:
    assert grown("codes", 5000, 20_000) < 5  # 40,000 codes, of which 4,096 are kept: all of them take 33 MiB
