"""More than 2³¹ elements: offsets and counts are 64 bits wide."""

from __future__ import annotations

import os

import pytest
import torch
from equikern import grid, orbit, orbit_mean

SHAPE = (3, 30_000, 24_000)  # 2.16e9 elements
NEEDED = 12 << 30


def _free_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 0


@pytest.mark.skipif(_free_memory() < NEEDED, reason="needs 12 GiB of free memory")
def test_orbit_and_mean_of_more_than_two_to_the_31_elements() -> None:
    action = grid("c2")
    row = torch.randint(-128, 128, (SHAPE[1] + SHAPE[2],), dtype=torch.int8)
    x = row.unfold(0, SHAPE[2], 1)[: SHAPE[1]].expand(SHAPE).contiguous()
    x[-1, -1] += 1  # the planes differ, so that a wrapped offset shows
    assert x.numel() > 2**31
    views = orbit(x, action)
    assert torch.equal(views[0], x)
    for plane in range(SHAPE[0]):
        assert torch.equal(views[1, plane], x[plane].flip((-2, -1)))
    del views, x
    rows = torch.arange(36_000, dtype=torch.float16) % 64
    y = rows.expand(2, 1, 30_001, 36_000)  # 2.16e9 elements that take no memory
    mean = orbit_mean(y, action)
    assert torch.equal(mean[0, 0], (rows + rows.flip(0)) / 2)
    assert torch.equal(mean[0, -1], mean[0, 0])
    assert torch.equal(mean[0, 15_000], mean[0, 0])
