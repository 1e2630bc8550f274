"""The table that chooses between CUDA C++ and Triton says what the machine-code counts say.

Both sides plan a call of every entry's class. The plan names the kernel, and bench/results/static holds its counts.
"""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from equikern.backends import choice
from helpers.cuda_blocks import RUNS, TILES, Blocks, call
from helpers.looped import each
from torch import Tensor

STATIC = Path(__file__).parents[3] / "bench" / "results" / "static"
TARGETS = ("sm_80", "sm_90", "sm_100")
GROUPS = {"c4": "hw Wh HW wH", "d4": "hw Wh HW wH hW wh Hw WH", "flips": "hw hW Hw HW"}
SIDES = (7, 16, 23, 24, 32, 37, 224, 225, 512)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
FLOATS = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
OPERATORS = ("orbit", "scaled orbit", "sum", "symmetrize", "orbit_dot", "select")

pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(not STATIC.exists(), reason="bench/ is not here"),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


@functools.cache
def tables(target: str, compiler: str) -> list[dict[str, dict[str, Any]]]:
    found = json.loads((STATIC / f"{target}.json").read_text())
    return [table for name, table in found.items() if name.startswith(compiler)]


def moves_vectors(record: dict[str, Any]) -> bool:
    """Whether elements are read and written 16 bytes at a time; weights, scores and indices are narrower."""
    return "128" in record["loads"] and "128" in record["stores"]


def plans_vectors(plan: Any) -> bool:
    """The same as Triton's plan promises it; what holds it to that is the first test."""
    return bool(plan.pointers[0].itemsize * plan.constants["VEC"] * plan.constants.get("VEC_R", 1) == 16)


def test_triton_keeps_its_plans_promise() -> None:
    """In all releases and for all targets; but channels-last and permutations, which CUDA C++ leaves to Triton."""
    from helpers import triton_audit
    from helpers.vocabulary_audit import VOCABULARY

    for target in TARGETS:
        for table in tables(target, "triton"):
            for case, record in table.items():
                if not case.endswith(" cl") and case not in VOCABULARY:
                    assert moves_vectors(record) == plans_vectors(triton_audit.build(case)), (target, case)


def operands(operator: str, size: int, side: int, views: int) -> tuple[Tensor, Tensor]:
    dtype = (BITS if operator in ("orbit", "select") else FLOATS)[size]
    # Enough small planes of one item to fill a block.
    image = torch.empty(2, 32 if side < 64 else 3, side, side, dtype=dtype, device="meta")
    if operator == "symmetrize":
        return image, image.expand(views, *image.shape)
    return image, torch.empty(views, *image.shape, dtype=dtype, device="meta")


def triton_plan(operator: str, maps: str, image: Tensor, views: Tensor) -> Any:
    from equikern.backends.triton import dots, orbits, reductions, selection
    from equikern.backends.triton.layout import as_words, operand
    from equikern.views import of

    if operator in ("orbit", "select"):
        image, views = as_words(image, views)
    x, y = (operand(t)._replace(aligned=True) for t in (image, views))
    if operator in ("orbit", "scaled orbit"):
        return orbits.plan(of(maps), 1.0 if operator == "orbit" else 0.5, x, y, None, None)
    if operator in ("sum", "symmetrize"):
        return reductions.plan(of(maps), "sum", 1.0, y, x, None, None, None)
    if operator == "orbit_dot":
        found = dots.plan(of(maps), x, y, y, None, operand(torch.zeros(len(views))))
        return found[0] if found else None
    return selection.plan(of(maps), True, y, x, None, operand(torch.zeros(2, dtype=torch.int64)))


def test_the_table_has_every_class() -> None:
    classes = {(a, p) for a in ("aligned", "odd") for p in ("small", "staged", "large")}
    for operator in OPERATORS:
        sizes = {key[1] for key in choice.TABLE if key[0] == operator}
        assert sizes == ({*BITS} if operator in ("orbit", "select") else {*FLOATS})
        for size in sizes:
            found = {key[2:] for key in choice.TABLE if key[:2] == (operator, size)}
            assert found == {(a, p) for a, p in classes if size < 16 or a == "aligned"}
    assert {key[0] for key in choice.TABLE} == {*OPERATORS}


@each("key", choice.TABLE)
@each("group", GROUPS)
def test_every_entry_follows_from_the_counts(key: tuple[str, int, str, str], group: str, cuda_blocks: Blocks) -> None:
    operator, size, alignment, plane = key
    maps = GROUPS[group]
    order = maps.count(" ") + 1
    planner = Blocks(cuda_blocks.library, plan_only=True)
    sides = [
        side
        for side in SIDES
        if choice.alignment_class(side, size) == alignment
        and choice.plane_class(operator, side * side, size, order) == plane
    ]
    assert sides, "no side of the list is of this class"
    for side in sides:
        image, views = operands(operator, size, side, order)
        planned = call(planner, operator, maps, image, views)
        assert planned > 0
        kernel = next(iter(planner.launches()))
        triton_vectors = plans_vectors(triton_plan(operator, maps, image, views))
        read_once = operator == "symmetrize" and RUNS <= planned < TILES
        for target in TARGETS:
            (counts,) = tables(target, "nvcc")
            wider = moves_vectors(counts[kernel]) and (read_once or not triton_vectors)
            assert choice.TABLE[key] == ("cuda" if wider else "triton"), (side, kernel, target)
