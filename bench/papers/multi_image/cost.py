"""What a product of two groups costs: the whole product, and the sum of its factors' forwards."""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import torch
from bench.ops.memory import peak
from equikern import EquiTune, PermutationAction, ProductEquiTune, cyclic_group, permutation, product_action
from torch import nn

SIDE, BATCH, HIDDEN = 32, 8, 1024
ORDERS = [(m, n) for m in (2, 4, 8, 16) for n in (2, 8)] + [(16, 16)]
QUICK = [(2, 2), (4, 2)]


def shifts(order: int, axis: int) -> PermutationAction:
    """C_order shifting the rows (0) or columns (1) of flattened SIDE × SIDE images cyclically; the two commute."""
    pixels = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    rows = [pixels.roll(-g * (SIDE // order), axis).flatten() for g in range(order)]
    return permutation(torch.stack(rows), group=cyclic_group(order))


def measure(orders: list[tuple[int, int]], repeats: int) -> list[dict[str, Any]]:
    """Forwards, seconds (median) and peak memory of one call on a batch, for both constructions."""
    torch.manual_seed(0)
    pixels = SIDE * SIDE
    backbone = nn.Sequential(nn.Linear(pixels, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, pixels)).eval()
    x = torch.randn(BATCH, pixels)
    found = []
    for m, n in orders:
        rows, columns = shifts(m, 0), shifts(n, 1)
        both = product_action(rows, columns)
        models = {
            "whole product": EquiTune(backbone, both, both),
            "sum": ProductEquiTune(backbone, [rows, columns], [rows, columns]),
        }
        record: dict[str, Any] = {"orders": [m, n], "forwards": {"whole product": m * n, "sum": m + n}}
        with torch.no_grad():
            for name, model in models.items():
                model(x)
                times = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    model(x)
                    times.append(time.perf_counter() - start)
                record.setdefault("seconds", {})[name] = statistics.median(times)
                record.setdefault("bytes", {})[name] = peak(functools.partial(model, x), "cpu")
        found.append(record)
    return found
