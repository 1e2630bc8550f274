"""Ranges for profilers, and the programs in bench/profile that use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from equikern import backends
from equikern.backends import nvtx
from equikern.backends.reference import Reference
from helpers import fresh

RUN = Path(__file__).parents[2] / "bench" / "profile" / "run.py"

CALLS = """
import json, torch, equikern
from equikern import grid, trivial, orbit, orbit_mean, orbit_select, orbit_weighted_mean
from torch.profiler import profile
x, c4 = torch.randn(2, 3, 8, 8, requires_grad=True), grid("c4")
weights = torch.ones(4, 2, requires_grad=True)
with profile() as seen:
    orbit_weighted_mean(orbit(x, c4), weights, c4).sum().backward()
    orbit_select(orbit(x.detach(), c4), torch.rand(4, 2), c4)
    orbit_select(orbit(x.detach(), c4)[..., 0], "max", trivial(c4.group))
print(json.dumps([e.name for e in sorted(seen.events(), key=lambda e: e.time_range.start) if "equikern." in e.name]))
"""


def ranges(**variables: str) -> list[str]:
    done = fresh.run("-c", CALLS, **variables)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(torch.version.cuda is not None or torch.version.hip is not None, reason="ranges go to NVTX")
def test_every_kernel_has_a_range() -> None:
    view = 2 * 3 * 8 * 8 * 4
    assert ranges(EQUIKERN_NVTX="1", EQUIKERN_BACKEND="reference") == [
        f"equikern.reference.orbit 2x3x8x8 float32 views [hw Wh HW wH] {5 * view} bytes",
        f"equikern.reference.reduce(weighted_mean) 4x2x3x8x8 float32 views [hw wH HW Wh] {5 * view + 32} bytes",
        # the upstream gradient of a sum is one number, expanded
        f"equikern.reference.orbit_dot 4x2x3x8x8 float32 views [hw Wh HW wH] {8 * view + 4 + 64} bytes",
        f"equikern.reference.reduce(sum) 4x2x3x8x8 float32 views [hw wH HW Wh] {5 * view} bytes",
        f"equikern.reference.orbit 2x3x8x8 float32 views [hw Wh HW wH] {5 * view} bytes",
        f"equikern.reference.select 4x2x3x8x8 float32 views [hw wH HW Wh] {2 * view + 32 + 16} bytes",
        f"equikern.reference.orbit 2x3x8x8 float32 views [hw Wh HW wH] {5 * view} bytes",
        f"equikern.reference.score_select(max) 4x2x3x8 float32 views [. . . .] {5 * view // 8 + 6 * 8} bytes",
    ]


def test_off_there_is_nothing_in_the_path_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQUIKERN_NVTX", raising=False)
    with backends.use_backend("reference"):
        assert type(backends.kernels(torch.zeros(1))) is Reference
    assert ranges(EQUIKERN_NVTX="0") == []


def test_bytes_of_distinct_elements() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert nvtx.moved(x, None, x.expand(4, 2, 3), x[:, :0], x[:, ::2]) == 48 + 48 + 0 + 32


@pytest.mark.skipif(not RUN.exists(), reason="bench/ is not here")
@pytest.mark.parametrize(
    "arguments",
    [
        "mean 2,3,16,16 bfloat16 d4",
        "weighted 2,3,16,16 float32 c4 --direction backward --backend reference",
        "equitune 2,1,32,32 float32 c4",
    ],
)
def test_profile_targets_run(arguments: str) -> None:
    done = fresh.run(str(RUN), *arguments.split(), "--device", "cpu", "--calls", "1", "--warmup", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 calls of")
    if arguments.startswith("mean"):
        assert f"{9 * 2 * 3 * 16 * 16 * 2 / 1e6:.3f} MB" in done.stdout
