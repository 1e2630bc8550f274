"""Outputs are merged as they come: what a forward holds at its peak, in outputs of one view."""

from __future__ import annotations

import sys

import pytest
from helpers import fresh

# A volume of one channel, outputs of 64: 64 MiB each. The backbone itself needs no more than its output.
PEAK = """
import sys, torch
from equikern import CanonicalEquiTune, EquiTune, EquiZero, LambdaEquiTune

SIDE, CHANNELS = 64, 64
wrapper, parts, sides = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3]

class Backbone(torch.nn.Module):
    def forward(self, x):
        return x.expand(-1, CHANNELS, *x.shape[2:]) + 1.0

score = lambda y: y.flatten(2)[..., ::4096].mean(-1)
model = {
    "mean": lambda: EquiTune(Backbone(), sides, sides, views_per_forward=parts),
    "max": lambda: EquiTune(Backbone(), sides, sides, reduce="max", views_per_forward=parts),
    "weighted": lambda: LambdaEquiTune(
        Backbone(), sides, sides, 1, features=lambda v: v.flatten(1)[:, :1], views_per_forward=parts
    ),
    "zero": lambda: EquiZero(Backbone(), sides, sides, loss=score, views_per_forward=parts),
    "canonical mean": lambda: CanonicalEquiTune(Backbone(), sides, sides, views=6, views_per_forward=parts),
    "canonical softmax": lambda: CanonicalEquiTune(
        Backbone(), sides, sides, views=6, reduce="softmax", views_per_forward=parts
    ),
    "canonical zero": lambda: CanonicalEquiTune(
        Backbone(), sides, sides, views=6, reduce=score, views_per_forward=parts
    ),
}[wrapper]()

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10

with torch.no_grad():
    model(torch.rand(1, 1, 8, 8, 8))
    x = torch.rand(1, 1, SIDE, SIDE, SIDE)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    model(x)
    print((status("VmHWM") - before) / (4 * CHANNELS * SIDE**3))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("wrapper", "parts", "group", "most"),
    [
        ("mean", 1, "flips3d", 3.5),
        ("mean", 0, "flips3d", 10),
        ("mean", 1, "rot3d", 3.5),
        ("max", 1, "flips3d", 4.5),
        ("weighted", 1, "flips3d", 4.5),
        ("zero", 1, "flips3d", 4.5),
        ("canonical mean", 1, "flips3d", 4.5),
        ("canonical softmax", 1, "flips3d", 4.5),
        ("canonical zero", 1, "flips3d", 5.5),
        ("canonical mean", 0, "flips3d", 13),
    ],
)
def test_peak(wrapper: str, parts: int, group: str, most: float) -> None:
    run = fresh.run("-c", PEAK, wrapper, str(parts), group)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= most, run.stdout
