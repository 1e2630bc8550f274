"""Compile the Triton kernels of fields for the targets given as arguments, and count spills, atomics and accesses."""

from __future__ import annotations

import torch
from equikern import field, grid, matrix
from equikern.backends.triton import launch
from equikern.backends.triton.layout import Operand
from helpers.compiling import report

CASES = [
    *(f"vector {kind}" for kind in ("orbit", "sum", "dot", "select")),
    "volumes orbit",
    *(f"mixed {kind}" for kind in ("orbit", "sum", "dot", "select")),
]


def dense(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Operand:
    return Operand(shape, torch.empty(shape, device="meta").stride(), dtype, True)


def build(case: str) -> launch.Plan:
    """The plan of a case such as ``"vector sum"``: which field, and what is done with it."""
    from equikern.backends.triton import dots, matrices, orbits, reductions, selection

    kind, name = case.split(" ")
    if kind == "volumes":
        views = field(grid("flips3d", dims=3), "vector").maps.views
        return _planned(
            orbits.plan.__wrapped__(views, 1.0, dense((4, 3, 32, 32, 32)), dense((8, 4, 3, 32, 32, 32)), None, None)
        )
    x, y = dense((8, 4, 224, 224)), dense((4, 8, 4, 224, 224))
    weights, index = dense((4, 8), torch.float32), dense((8,), torch.int64)
    if kind == "vector":
        views = field(grid("c4"), "vector").maps.views
        if name == "orbit":
            return _planned(orbits.plan.__wrapped__(views, 1.0, x, y, None, None))
        if name == "sum":
            return _planned(reductions.plan.__wrapped__(views, "sum", 0.25, y, x, None, None, weights))
        if name == "dot":
            found = dots.plan.__wrapped__(views, x, y, y, weights, weights)
            return _planned(found[0] if found else None)
        return _planned(selection.plan.__wrapped__(views, True, y, x, weights, index))
    mats = dense((4, 2, 2), torch.float32)
    turn: list[list[list[float]]] = [[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]]
    views = field(grid("c4"), matrix(turn)).maps.views
    if name == "orbit":
        return _planned(matrices.plan_orbit.__wrapped__(views, 0.5, x, y, mats, weights, None))
    if name == "sum":
        return _planned(matrices.plan_reduce.__wrapped__(views, "sum", 0.25, y, x, None, None, mats, weights))
    if name == "dot":
        found = matrices.plan_dot.__wrapped__(views, x, y, y, mats, weights, weights)
        return _planned(found[0] if found else None)
    return _planned(matrices.plan_select.__wrapped__(views, True, y, x, mats, weights, index))


def _planned(plan: launch.Plan | None) -> launch.Plan:
    assert plan is not None, "would be copied first"
    return plan


if __name__ == "__main__":
    report(CASES, build)
