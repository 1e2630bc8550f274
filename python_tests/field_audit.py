"""Compile the Triton kernels of fields for the targets given as arguments, and count spills, atomics and accesses."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from equikern import field, grid, matrix
from equikern.backends.triton import launch
from equikern.backends.triton.layout import Operand
from machine_code import cuda_kernels

CASES = [
    *(f"vector {kind}" for kind in ("orbit", "sum", "dot", "select")),
    "volumes orbit",
    *(f"mixed {kind}" for kind in ("orbit", "sum", "dot", "select")),
]


def dense(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Operand:
    return Operand(shape, torch.empty(shape, device="meta").stride(), dtype, True)


def build(case: str) -> launch.Plan:
    """The plan of a case such as ``"vector sum"``: which field, and what is done with it."""
    from equikern.backends.triton import dots, mixed, orbits, reductions, selection

    kind, name = case.split(" ")
    if kind == "volumes":
        maps = field(grid("flips3d", dims=3), "vector").maps
        return _planned(orbits.plan(maps, 1.0, dense((4, 3, 32, 32, 32)), dense((8, 4, 3, 32, 32, 32)), None, None))
    x, y = dense((8, 4, 224, 224)), dense((4, 8, 4, 224, 224))
    weights, index = dense((4, 8), torch.float32), dense((8,), torch.int64)
    if kind == "vector":
        maps = field(grid("c4"), "vector").maps
        if name == "orbit":
            return _planned(orbits.plan(maps, 1.0, x, y, None, None))
        if name == "sum":
            return _planned(reductions.plan(maps, "sum", 0.25, y, x, None, weights))
        if name == "dot":
            found = dots.plan(maps, x, y, y, weights, weights)
            return _planned(found[0] if found else None)
        return _planned(selection.plan(maps, True, y, x, weights, index))
    mats = dense((4, 2, 2), torch.float32)
    turn = [[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]]
    maps = field(grid("c4"), matrix(turn)).maps
    if name == "orbit":
        return mixed.plan_orbit(maps, 0.5, x, y, mats, weights, None)
    if name == "sum":
        return mixed.plan_reduce(maps, "sum", 0.25, y, x, None, mats, weights)
    if name == "dot":
        return mixed.plan_dot(maps, x, y, y, mats, weights, weights)[0]
    return mixed.plan_select(maps, True, y, x, mats, weights, index)


def _planned(plan: launch.Plan | None) -> launch.Plan:
    assert plan is not None, "would be copied first"
    return plan


def audit(job: tuple[str, str]) -> dict[str, Any]:
    """Compile one case for one target."""
    from equikern.backends.triton.compat import compile_kernel

    case, target = job
    plan = build(case)
    try:
        binary = compile_kernel(plan.kernel, target, plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    except Exception as error:  # a compiler may raise anything; the report says which case it was
        return {"case": case, "target": target, "error": f"{type(error).__name__}: {error}"[-2000:]}
    code = {}
    if "cubin" in binary.asm:
        (code,) = cuda_kernels(binary.asm["cubin"], binary.metadata.shared).values()
    return {"case": case, "target": target, **code}


def main() -> None:
    jobs = [(case, target) for target in sys.argv[1:] for case in CASES]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        print(json.dumps(list(pool.map(audit, jobs, chunksize=4))))


if __name__ == "__main__":
    main()
