"""Tensors that span gigabytes, read and written by the kernels' machine code: every element once, and nothing else.

There is no memory behind the addresses; what is tested are the addresses, in 32 bits and beyond.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from equikern.backends.triton.layout import Operand
from equikern.views import of
from helpers.emulated import compiled, triton_parameters
from helpers.looped import each
from helpers.machine_code import cuobjdump
from helpers.warps import Launch, Memory
from numpy.typing import NDArray

pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(cuobjdump() is None, reason="no tools to read machine code"),
]

C4 = of("hw Wh HW wH")
FLIPS_3D = of("dhw dhW dHw dHW Dhw DhW DHw DHW")


class Recorded(Memory):
    """Nothing but addresses: those that were read and written, by the tensor they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[NDArray[np.int64]]] = {}

    def load(self, at: NDArray[np.int64], size: int, block: int) -> NDArray[np.uint8]:
        self.keep(at, size)
        return super().load(at, size, block)

    def store(self, at: NDArray[np.int64], value: NDArray[np.uint8], block: int) -> None:
        self.keep(at, value.shape[1])
        super().store(at, value, block)

    def keep(self, at: NDArray[np.int64], size: int) -> None:
        for byte in range(size):
            self.seen.setdefault(int(at[0] >> 44), []).append(at + byte)


def addresses(o: Operand, start: int) -> NDArray[np.int64]:
    """Of all bytes of a tensor."""
    found = np.array([start], np.int64)
    for size, step in zip(o.shape, o.stride, strict=True):
        found = (found[:, None] + np.arange(size, dtype=np.int64) * step * o.dtype.itemsize).reshape(-1)
    return np.unique(found[:, None] + np.arange(o.dtype.itemsize))


def orbit(far: Operand, views: Any) -> tuple[Any, list[Operand | None]]:
    from equikern.backends.triton import orbits

    out = dense(far.dtype, views.order, *far.shape)
    return orbits.plan(views, 1.0, far, out, None, None), [far, out, None, None, None]


def total(far: Operand, views: Any) -> tuple[Any, list[Operand | None]]:
    from equikern.backends.triton import reductions

    y = far._replace(shape=(views.order, *far.shape), stride=(2**34, *far.stride))
    out = dense(far.dtype, *far.shape)
    return reductions.plan(views, "sum", 1.0, y, out, None, None, None), [y, out, None, None, None, None]


def put(far: Operand, views: Any) -> tuple[Any, list[Operand | None]]:
    from equikern.backends.triton import selection

    y, index = dense(far.dtype, views.order, *far.shape), dense(torch.int64, far.shape[0])
    return selection.plan(views, True, y, far, None, index), [None, far, None, index, None]


def dense(dtype: torch.dtype, *shape: int) -> Operand:
    return Operand(shape, torch.empty(shape, device="meta").stride(), dtype, True)


# Shapes and strides, the dtype, and whether offsets must be wide.
FAR: dict[str, tuple[tuple[int, ...], tuple[int, ...], torch.dtype, Any, bool]] = {
    "rows of tiles": ((1, 1, 64, 64), (1, 1, 2**24 - 8, 1), torch.bfloat16, C4, False),
    "far rows of tiles": ((1, 1, 64, 64), (1, 1, 2**26, 1), torch.bfloat16, C4, True),
    "columns of tiles": ((1, 1, 64, 64), (1, 1, 1, 2**24 - 8), torch.float32, C4, False),
    "far columns of tiles": ((1, 1, 64, 64), (1, 1, 1, 2**26), torch.float32, C4, True),
    "odd tiles": ((1, 1, 47, 47), (1, 1, 2**24, 2**13), torch.bfloat16, C4, False),
    "planes of tiles": ((1, 3, 64, 64), (1, 2**32 + 1, 64, 1), torch.bfloat16, C4, False),
    "small planes": ((1, 64, 7, 7), (1, 2**24, 7, 1), torch.bfloat16, C4, False),
    "far small planes": ((1, 64, 7, 7), (1, 2**26, 7, 1), torch.bfloat16, C4, True),
    "samples of small planes": ((2, 64, 7, 7), (2**33, 49, 7, 1), torch.bfloat16, C4, False),
    "pixels": ((1, 64, 5, 5), (1, 1, 2**28, 64), torch.bfloat16, C4, False),
    "far pixels": ((1, 64, 5, 5), (1, 1, 2**29, 64), torch.bfloat16, C4, True),
    "volumes": ((1, 1, 3, 4, 5), (1, 1, 2**28, 2**20, 1), torch.float32, FLIPS_3D, False),
    "far volumes": ((1, 1, 3, 4, 5), (1, 1, 2**31, 2**20, 1), torch.float32, FLIPS_3D, True),
}


CALLS: list[Callable[[Operand, Any], tuple[Any, list[Operand | None]]]] = [orbit, total, put]


@each(("name", "number"), [(name, (k + n) % 3) for k, name in enumerate(FAR) for n in range(2)])
def test_far_tensors(name: str, number: int) -> None:
    shape, strides, dtype, views, wide = FAR[name]
    plan, operands = CALLS[number](Operand(shape, strides, dtype, True), views)
    assert plan.constants["WIDE" if "TI" in plan.constants else "BIG"] == wide
    code, shared, types = compiled(plan.kernel, plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    memory, starts = Recorded(), list[int | None]()
    for k, (o, pointer) in enumerate(zip(operands, plan.pointers, strict=True)):
        start = (k + 1) << 44
        starts.append(None if pointer is None else start)
        if o is not None:
            span = 1 + sum((size - 1) * step for size, step in zip(o.shape, o.stride, strict=True))
            memory.add(start, span * o.dtype.itemsize, None)
        elif pointer is not None:  # of which one view is read
            memory.add(start, 1 << 43, None)
    given = triton_parameters(starts, types, plan.scalars)
    Launch(code, given, plan.grid[0], 32 * plan.num_warps, shared).run(memory, range(plan.grid[0]))
    for k, o in enumerate(operands, 1):
        if o is not None:
            seen = np.unique(np.concatenate(memory.seen[k]))
            assert np.array_equal(seen, addresses(o, k << 44)), f"{name}: tensor {k}"
