"""Compile the Triton kernels of matrices for the targets given as arguments, and count spills and atomics."""

from __future__ import annotations

from itertools import product

import torch
from equikern.backends.triton import launch
from equikern.backends.triton.layout import Operand
from equikern.views import of
from helpers.compiling import report

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
CASES = [
    *(f"{kind} {size} bf16" for kind, size in product(("orbit", "put", "sum", "dot", "select"), (2, 3, 4))),
    *("std 3 fp16", "mean_std 2 fp32", "gmean 3 fp64", "logodd 4 bf16", "max 5 fp32", "median 3 bf16", "log1p 3 fp32"),
    *("each 3 fp32", "take 3 bf16", "orbit 7 fp64", "dot 4 fp64"),
]


def dense(shape: tuple[int, ...], dtype: torch.dtype) -> Operand:
    return Operand(shape, torch.empty(shape, device="meta").stride(), dtype, True)


def build(case: str) -> launch.Plan:
    """The plan of a case such as ``"sum 3 bf16"``: what, entries of a vector, dtype."""
    from equikern.backends.triton import matrices

    kind, size, name = case.split(" ")
    d, dtype = int(size), DTYPES[name]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, y, mats = dense((32, 500, d), dtype), dense((6, 32, 500, d), dtype), dense((6, d, d), wide)
    weights, index = dense((6, 32), wide), dense((32,), torch.int64)
    views = of(f"matrix {d}: x x x x x x")
    plan: launch.Plan | None
    if kind == "orbit":
        plan = matrices.plan_orbit.__wrapped__(views, 0.5, x, y, mats, weights, None)
    elif kind == "put":
        plan = matrices.plan_orbit.__wrapped__(views, 1.0, x, y, mats, None, index)
    elif kind in ("dot", "each"):
        found = matrices.plan_dot.__wrapped__(
            views, x, y, y, mats, *[dense((6, 32, 500)[: 2 + (kind == "each")], wide)] * 2
        )
        plan = found[0] if found else None
    elif kind in ("select", "take"):
        plan = matrices.plan_select.__wrapped__(views, True, y, x, mats, weights if kind == "select" else None, index)
    else:
        pair, weighted = kind == "mean_std", kind == "sum"
        plan = matrices.plan_reduce.__wrapped__(
            views, kind, 0.5, y, x, None, x if pair else None, mats, weights if weighted else None
        )
    assert plan is not None, case
    return plan


if __name__ == "__main__":
    report(CASES, build)
