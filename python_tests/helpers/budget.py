"""How many warp instructions a kernel issues for every useful byte, counted by executing its machine code.

A byte is useful that the operator must move: each input read once, each output written once. A multiprocessor issues
four warp instructions a clock, so a kernel whose ratio is above 1 is bound by its instructions, not by memory. The
ratio predicts, it is no measurement: what waits for what, only a GPU tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from helpers.emulated import compiled, triton_parameters
from helpers.warps import Counts, Launch, Memory

__all__ = ["COPY", "ISSUE", "budget", "of_plan", "useful"]

ISSUE = 966e9  # warp instructions a second of an H200: 132 multiprocessors × 4 × 1.83 GHz
COPY = 4.3e12  # bytes a second that a copy moves there
SAMPLE = 8  # neighbouring blocks that are executed for all

# Reads and writes of a view's size: by (|G| views, others).
_MOVED = {
    **dict.fromkeys(("mean", "weighted", "max", "gmean", "hmean", "tsharpen", "logodd", "log1p", "median"), (1, 1)),
    **dict.fromkeys(("vote", "sum", "std", "min", "gather", "softmax", "scored"), (1, 1)),
    **dict.fromkeys(("orbit", "scaled", "adjoint", "permute", "ids"), (1, 1)),
    **dict.fromkeys(("plus", "mean_std"), (1, 2)),
    **dict.fromkeys(("dot", "products", "backward", "loss"), (2, 1)),
    **dict.fromkeys(("select", "take", "choose", "chosen"), (0, 2)),
    "symmetrize": (0, 2),
    "put": (1, 1),
    "each": (2, 0),
    "score": (1, 0),
}


def useful(kind: str, order: int, elements: int, itemsize: int) -> int:
    """Bytes that a kind of case must move, of so many elements a view."""
    views, others = _MOVED[kind.partition("-")[0]]
    if kind.startswith("loss"):  # logits in, gradients out; the losses are nothing beside them
        others = 0
    return (views * order + others) * elements * itemsize


def budget(counts: Counts, blocks: int, moved: int) -> dict[str, float]:
    """A record: instructions for a byte, and the ratio of issue to memory."""
    each = counts.warp_instructions / counts.blocks * blocks / moved
    return {"instructions per byte": round(each, 4), "issue/memory": round(each * COPY / ISSUE, 3)}


def sampled(launch: Launch, memory: Memory, blocks: int) -> Counts:
    """Execute blocks in the middle, or all where there are few."""
    first = max(0, blocks // 2 - SAMPLE // 2)
    return launch.run(memory, range(first, min(blocks, first + SAMPLE)))


def nowhere(aligned: Sequence[bool], itemsizes: Sequence[int | None]) -> tuple[Memory, list[int | None]]:
    """Memory that reads as zeros for so many pointers, and their addresses."""
    memory, addresses = Memory(), list[int | None]()
    for k, (yes, size) in enumerate(zip(aligned, itemsizes, strict=True)):
        start = (k + 1) << 44
        memory.add(start, 1 << 43, None)
        addresses.append(None if size is None else start + (1 << 42) + (0 if yes else size))
    return memory, addresses


def of_plan(plan: Any, moved: int) -> dict[str, float]:
    """The budget of a planned launch of a Triton kernel."""
    code, shared, types = compiled(plan.kernel, plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    memory, addresses = nowhere(plan.aligned, [t and t.itemsize for t in plan.pointers])
    launch = Launch(code, triton_parameters(addresses, types, plan.scalars), plan.grid[0], 32 * plan.num_warps, shared)
    return budget(sampled(launch, memory, plan.grid[0]), plan.grid[0], moved)


def total(parts: Iterable[Counts]) -> Counts:
    """Counts of several launches together."""
    whole = Counts()
    for part in parts:
        whole.warp_instructions += part.warp_instructions
        whole.blocks += part.blocks
    return whole
