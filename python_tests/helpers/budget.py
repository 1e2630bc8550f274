"""How many warp instructions a kernel issues for every useful byte, counted by executing its machine code for Hopper.

``PYTHONPATH=python_tests python -m helpers.budget`` prints what it finds of the cases of ``triton_audit``,
``matrix_audit`` and ``field_audit``, and of a call of every class of ``backends/choice.py`` on Triton's kernels and on
CUDA's; with ``--few`` what the tests read.

A byte is useful that the operator must move: each input read once, each output written once. A multiprocessor issues
four warp instructions a clock, so a kernel whose ratio is above 1 is bound by its instructions, not by memory. The
ratio predicts, it is no measurement: what waits for what, only a GPU tells. Likewise for the L1 cache with shared
memory: it serves one line of 128 bytes a clock, or a word of every bank.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import equikern
import pytest
import torch
from equikern import permutation
from equikern.backends import choice, cuda
from equikern.views import accumulator, of
from equikern.views.maps import Maps
from helpers.cuda_blocks import NOWHERE, Blocks, call, compile_blocks
from helpers.emulated import compiled, cuda_codes, cuda_launch, memory_of, triton_parameters
from helpers.warps import Counts, Launch, Memory
from torch import Tensor

__all__ = ["BITS", "COPY", "ISSUE", "L2", "REALS", "budgets", "calls", "markdown", "row_calls"]

ISSUE = 966e9  # warp instructions a second of an H200: 132 multiprocessors × 4 × 1.83 GHz
L1 = 241.6e9  # accesses a second of its L1 caches and shared memories: 132 × 1.83 GHz
COPY = 4.3e12  # bytes a second that a copy moves there
VALUES = 0.375, 0.5, 0.625  # that real numbers in memory have in turn
L2 = 50 * 2**20  # bytes of its L2 cache
MULTIPROCESSORS = 132
WARPS = 32  # of neighbouring blocks that are executed in the place of all

Budget = dict[str, float]

# Reads and writes of a view's size: of |G| views, and others.
_MOVED = {
    **dict.fromkeys(("mean", "weighted", "max", "gmean", "hmean", "tsharpen", "logodd", "log1p", "median"), (1, 1)),
    **dict.fromkeys(("vote", "sum", "gather", "softmax", "scored"), (1, 1)),
    **dict.fromkeys(("orbit", "scaled", "adjoint", "put", "permute", "ids", "std"), (1, 1)),
    **dict.fromkeys(("plus", "mean_std"), (1, 2)),
    **dict.fromkeys(("dot", "each", "orbit_dot", "products", "backward"), (2, 1)),
    **dict.fromkeys(("of_max", "of_min", "of_std"), (2, 1)),
    "of_variance": (2, 0),
    "of_mean_std": (2, 2),
    **dict.fromkeys(("select", "take", "choose", "chosen", "symmetrize"), (0, 2)),
    **dict.fromkeys(("loss", "weighed"), (2, 0)),
    **dict.fromkeys(("score", "variance"), (1, 0)),
}


def useful(kind: str, order: int, elements: int, itemsize: int) -> int:
    """Bytes that a kind of case must move, of so many elements a view."""
    views, others = _MOVED[re.split(r"[- ]", kind)[0]]
    return (views * order + others) * elements * itemsize


def budget(instructions: float, wavefronts: float, moved: int) -> Budget:
    return {
        "instructions per byte": round(instructions / moved, 4),
        "issue/memory": round(instructions / moved * COPY / ISSUE, 3),
        "L1/memory": round(wavefronts / moved * COPY / L1, 3),
    }


def sampled(launch: Launch, memory: Memory, blocks: int) -> tuple[float, float]:
    """The warp instructions of a launch, and what the L1 cache and shared memory serve it.

    Of blocks in its middle, or of all where there are few.
    """
    count = min(blocks, max(1, WARPS * 32 // launch.threads))
    first = (blocks - count) // 2
    counts: Counts = launch.run(memory, range(first, first + count))
    return counts.warp_instructions / count * blocks, counts.wavefronts / count * blocks


def filling(dtype: torch.dtype | None) -> bytes:
    """What memory repeats: numbers that no arithmetic treats in a way of its own, as it does 1 / 0; 0 of integers."""
    if dtype is None or not dtype.is_floating_point:
        return b"\0"
    return torch.tensor(VALUES, dtype=dtype).view(torch.uint8).numpy().tobytes()


def of_plan(*plans: Any, moved: int) -> Budget:
    """The budget of planned launches of Triton kernels, on memory of ``VALUES``."""
    parts = [executed(plan) for plan in plans]
    return budget(sum(issued for issued, _ in parts), sum(met for _, met in parts), moved)


def executed(plan: Any) -> tuple[float, float]:
    """What ``sampled`` counts of a planned launch."""
    code, shared, types = compiled(plan.kernel, plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    memory, addresses = Memory(), list[int | None]()
    for k, (aligned, dtype) in enumerate(zip(plan.aligned, plan.pointers, strict=True)):
        start = (k + 1) << 44
        memory.add(start, 1 << 43, None, filling(dtype))
        addresses.append(None if dtype is None else start + (1 << 42) + (0 if aligned else dtype.itemsize))
    given = triton_parameters(addresses, types, plan.scalars)
    launch = Launch(code, given, plan.grid[0], 32 * plan.num_warps, shared)
    return sampled(launch, memory, plan.grid[0])


def small_vectors() -> dict[str, tuple[Any, str]]:
    """By a name such as "matrix sum 3 bf16" a case of ``matrix_audit`` or ``field_audit``, and what builds it."""
    from helpers import field_audit, matrix_audit

    return {
        f"{name} {case}": (module.build, case)
        for name, module in (("matrix", matrix_audit), ("field", field_audit))
        for case in module.CASES
    }


def of_small_vectors(name: str) -> Budget:
    """The budget of such a case."""
    build, case = small_vectors()[name]
    plan = build(case)
    views = next(k for k in ("WORDS", "CODES") if k in plan.constants)
    order, (family, first, second, *_) = len(plan.constants[views]), name.split(" ")
    if family == "matrix":
        kind, elements = first, 32 * 500 * int(second)
    else:
        kind, elements = second, 4 * 3 * 32**3 if first == "volumes" else 8 * 4 * 224**2
    return of_plan(plan, moved=useful(kind, order, elements, plan.pointers[0].itemsize))


def of_case(case: str) -> Budget:
    """The budget of a case of ``triton_audit``, or of ``small_vectors``."""
    from helpers import triton_audit
    from helpers.vocabulary_audit import IDS, ROWS, VOCABULARY, build_before

    if case in small_vectors():
        return of_small_vectors(case)
    kind, group, name, size, *_ = case.split(" ")
    itemsize, plans = triton_audit.DTYPES[name].itemsize, list[Any]([triton_audit.build(case)])
    if case in VOCABULARY:
        order, rows, entries = int(group[-1]), math.prod(ROWS), int(size)
        plans.insert(0, build_before(kind, group, triton_audit.DTYPES[name], entries))
        if kind in ("ids", "chosen"):
            rows, entries, itemsize = math.prod(IDS), 1, 8
        elif kind.startswith("scored"):
            rows *= 2
        elements = rows * entries
    else:
        order = {"d4": 8, "c4": 4, "flips": 4, "octants": 8, "cube": 24, "still": 8}[group]
        elements = 4 * 64 * math.prod(map(int, size.split("x")))
    return of_plan(*filter(None, plans), moved=useful(kind, order, elements, itemsize))


# A call of every class of the choice between CUDA C++ and Triton

MAPS = {"c4": "hw Wh HW wH", "d4": "hw Wh HW wH hW wh Hw WH"}
SIDES = (7, 16, 23, 24, 37, 64, 225, 224)  # the first and the last that fit a class stand for it
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
REALS = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}

Call = tuple[tuple[str, int, str, str], str, int]  # an entry of choice.TABLE, a group, a side


def calls() -> dict[str, Call]:
    """By a name such as "sum 2 bytes odd staged d4 37×37"."""
    found = {}
    for key in choice.TABLE:
        operator, size, alignment, plane = key
        for group, maps in MAPS.items():
            order = of(maps).order
            sides = [
                side
                for side in SIDES
                if choice.plane_class(operator, side * side, size, order) == plane
                and choice.alignment_class(side, size) == alignment
            ]
            for side in dict.fromkeys((*sides[:1], *sides[-1:])):
                found[f"{operator} {size} bytes {alignment} {plane} {group} {side}×{side}"] = key, group, side
    return found


def operands(operator: str, size: int, side: int, views: int) -> tuple[Tensor, Tensor]:
    """An image and its views, of which there is only the description."""
    dtype = (BITS if operator in ("orbit", "select") else REALS)[size]
    # As many planes as fill a GPU with full blocks.
    image = torch.empty(128, min(512, 2**20 // side**2), side, side, dtype=dtype, device="meta")
    if operator == "symmetrize":
        return image, image.expand(views, *image.shape)
    return image, torch.empty(views, *image.shape, dtype=dtype, device="meta")


def triton_plan(operator: str, maps: str, image: Tensor, views: Tensor) -> Any:
    """Triton's launch of a call."""
    from equikern.backends.triton import dots, orbits, reductions, selection, symmetrize
    from equikern.backends.triton.layout import as_words, operand

    if operator in ("orbit", "select"):
        image, views = as_words(image, views)
    x, y = (operand(t)._replace(aligned=True) for t in (image, views))
    if operator in ("orbit", "scaled orbit"):
        return orbits.plan(of(maps), 1.0 if operator == "orbit" else 0.5, x, y, None, None)
    if operator == "symmetrize":
        return symmetrize.plan(of(maps), 1.0, x, x)
    if operator == "sum":
        return reductions.plan(of(maps), "sum", 1.0, y, x, None, None, None)
    if operator == "orbit_dot":
        found = dots.plan(of(maps), x, y, y, None, operand(torch.zeros(len(views), dtype=accumulator(image))))
        return found[0] if found else None
    return selection.plan(of(maps), True, y, x, None, operand(torch.zeros(128, dtype=torch.int64)))


def _described(name: str) -> tuple[str, str, Tensor, Tensor, int]:
    (operator, size, *_), group, side = calls()[name]
    maps = MAPS[group]
    image, views = operands(operator, size, side, of(maps).order)
    return operator, maps, image, views, useful(operator, of(maps).order, image.numel(), size)


def of_triton_call(name: str) -> Budget:
    """What Triton's kernel issues for a call."""
    operator, maps, image, views, moved = _described(name)
    return of_plan(triton_plan(operator, maps, image, views), moved=moved)


def of_cuda_call(library: Path, name: str) -> Budget:
    """What the CUDA kernels issue for a call, both where there are two."""
    operator, maps, image, views, moved = _described(name)
    planner, codes = Blocks(library, plan_only=True), cuda_codes()
    assert not isinstance(codes, str), codes
    assert call(planner, operator, maps, image, views) > 0, f"{name}: no kernel"
    memory = Memory()
    memory.add(NOWHERE, 1 << 43, None)
    address, size = planner.partials()
    if size:
        memory.add(address, size, None)
    parts = [sampled(cuda_launch(one, codes), memory, one.blocks) for one in planner.parameters()]
    return budget(sum(issued for issued, _ in parts), sum(met for _, met in parts), moved)


# A mean of softmaxes of every class of that choice

LENGTHS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"small": (2000,), "short": (4001,), "long": (49152, 50257)},
    4: {"small": (1000,), "short": (4001,), "long": (25128,)},
    8: {"small": (500,), "short": (1001,), "long": (12563,)},
}

RowCall = tuple[tuple[str, int, bool, str], int]  # an entry of choice.ROWS, the entries of a row


def row_calls() -> dict[str, RowCall]:
    """By a name such as "softmax 2 bytes few long 50257": of two views that exchange few entries, or all."""
    return {
        f"{key[0]} {key[1]} bytes {'all' if key[2] else 'few'} {key[3]} {entries}": (key, entries)
        for key in choice.ROWS
        for entries in LENGTHS[key[1]][key[3]]
    }


def _described_rows(name: str) -> tuple[str, Maps, Tensor, Tensor, int]:
    """The maps, logits and log Σ, of which there is only the description, and the useful bytes."""
    (operator, size, dense, _), entries = row_calls()[name]
    order, rows = 2, 1024
    pairs = torch.randperm(entries, generator=torch.Generator().manual_seed(0))
    pairs = pairs[: entries // 2 * 2 if dense else 40].view(-1, 2)
    exchanged = torch.arange(entries).index_copy_(0, pairs.flatten(), pairs.flip(1).flatten())
    maps = permutation(torch.stack([torch.arange(entries), exchanged])).inverse_maps
    y = torch.empty(order, rows, entries, dtype=REALS[size], device="meta")
    lse = torch.empty(order, rows, dtype=accumulator(y), device="meta")
    kind = "backward" if operator == "softmax gradient" else "softmax"
    return operator, maps, y, lse, useful(kind, order, rows * entries, size)


def of_triton_rows(name: str) -> Budget:
    """What Triton's kernel issues for a mean of softmaxes or its gradient, and how often it moves bytes of memory.

    A second reading finds in the L2 cache what of the rows in flight that holds, if registers do not hold the row.
    """
    from equikern.backends.triton import softmaxes
    from equikern.backends.triton.layout import operand

    operator, maps, y, lse, moved = _described_rows(name)
    x, views, each, table = (operand(t)._replace(aligned=True) for t in (y[0], y, lse, maps.tables.own[0]))
    plan: Any
    if operator == "softmax":
        plan, read = softmaxes.mean_plan(maps.views, table, "probs", views, x, each), y.nbytes
    else:
        plan = softmaxes.backward_plan(maps.views, table, "probs", views, x, views, each)
        read = y.nbytes + y[0].nbytes
    row = read // y.shape[1]
    found = min(1.0, L2 / (MULTIPROCESSORS * (64 // plan.num_warps) * plan.constants["R"] * row))
    again = 0.0 if plan.constants["WHOLE"] else (1 - found) * read / moved
    return {**of_plan(plan, moved=moved), "memory": round(1 + again, 3)}


def on_a_line(t: Tensor) -> Tensor:
    """A copy that starts where a GPU's memory would: wherever a CPU's does, the same lines of the cache are counted."""
    room = torch.empty(t.nbytes + 512, dtype=torch.uint8)
    return room[-room.data_ptr() % 512 :][: t.nbytes].view(t.dtype).view(t.shape).copy_(t)


def of_cuda_rows(library: Path, name: str) -> Budget:
    """What the CUDA kernel issues for it."""
    operator, maps, y, lse, moved = _described_rows(name)
    planner, codes = Blocks(library, plan_only=True), cuda_codes()
    assert not isinstance(codes, str), codes
    table = maps.tables.own[0]
    listed = tuple(None if t is None else on_a_line(t) for t in cuda._listed(maps.views, table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_listed", lambda *_: listed)
        if operator == "softmax":
            ran = planner.softmax_mean(y, y[0], lse, maps.views, table, "probs")
        else:
            ran = planner.softmax_mean_backward(y[0], y, lse, y, maps.views, table, "probs")
        assert ran > 0, f"{name}: no kernel"
    memory = memory_of(listed)
    memory.add(NOWHERE, 1 << 43, None)
    (one,) = planner.parameters()
    return {**budget(*sampled(cuda_launch(one, codes), memory, one.blocks), moved), "memory": 1.0}


def _first_of_each(classes: Iterable[tuple[str, Any]]) -> list[str]:
    """The first name of every class."""
    found: dict[Any, str] = {}
    for name, key in classes:
        found.setdefault(key, name)
    return [*found.values()]


def budgets(library: Path | None, few: bool = False) -> dict[str, dict[str, Budget]]:
    """By compiler and case.

    Args:
        library: what ``compile_blocks`` made; without it, or a build with CUDA, there is none of nvcc's.
        few: each of Triton's kernels once; of the choice's calls, CUDA's first of each class, of two bytes, under D4.
    """
    import triton
    from helpers.compiling import of_each_kernel
    from helpers.triton_audit import CASES, build

    found: dict[str, dict[str, Budget]] = {}
    others = small_vectors()
    some = [*CASES, *others]
    if few:
        some = of_each_kernel(CASES, build) + of_each_kernel(others, lambda name: others[name][0](others[name][1]))
    named, rows = [*calls()], [*row_calls()]
    if few:
        named = _first_of_each((name, key) for name, (key, group, _) in calls().items() if (group, key[1]) == ("d4", 2))
        rows = _first_of_each((name, key) for name, (key, _) in row_calls().items() if key[1] == 2)
    fork = get_context("fork")  # see compiling.compiled
    with ProcessPoolExecutor(2, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        table = dict(zip(some, pool.map(of_case, some, chunksize=2), strict=True))
        if not few:
            table |= zip(named, pool.map(of_triton_call, named, chunksize=2), strict=True)
            table |= zip(rows, pool.map(of_triton_rows, rows), strict=True)
        found[f"triton {triton.__version__}"] = table
        if library is not None and not isinstance(cuda_codes(), str):
            release = re.search(r"release (\d+\.\d+)", equikern.build_info().nvcc or "")
            of_call = functools.partial(of_cuda_call, library)
            name = f"nvcc {release[1]}" if release else "nvcc"
            found[name] = dict(zip(named, pool.map(of_call, named, chunksize=2), strict=True))
            found[name] |= zip(rows, pool.map(functools.partial(of_cuda_rows, library), rows), strict=True)
    return found


def markdown(tables: Mapping[str, Mapping[str, Budget]]) -> Iterable[str]:
    """A line for every case, a column for every compiler."""
    yield "| | " + " | ".join(tables) + " |"
    yield "|---" + "|---:" * len(tables) + "|"
    for case in dict.fromkeys(name for table in tables.values() for name in table):
        yield f"| {case} | " + " | ".join(_cell(table.get(case)) for table in tables.values()) + " |"


def _cell(found: Budget | None) -> str:
    if found is None:
        return ""
    issue, served = found["issue/memory"], found["L1/memory"]
    return f"{issue:.2f}" if served <= issue else f"{issue:.2f} ({served:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", action="store_true", help="what the tests read")
    parser.add_argument("--blocks", type=Path, help="what compile_blocks made (else made here, in a minute)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = budgets(options.blocks or compile_blocks(Path(folder)), options.few)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
