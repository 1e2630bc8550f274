"""Tuned mode of the launches: what counts as one kind of problem, and the time of a launch on the GPU.

The choice itself and the cache on disk are in ``equikern.backends.tuning``.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache

import torch

from ...version import __version__
from ..base import Maybe
from ..tuning import RULE, Winners, bucket, candidates, driver_version, fastest, when_switched
from . import compat
from .plan import Plan

__all__ = ["choose", "environment", "problem", "same_launch", "seconds"]

_BLOCKS = ("TI", "TJ", "P", "CB", "PN", "PX")  # what a choice changes, directly or by the shape within one bucket
_SIZES = ("nb", "H", "W", "R", "C", "n0", "n1", "n2", "M", "X", "count")
_TUNED = {
    **dict.fromkeys(("orbits", "reductions", "selection", "shares", "symmetrize"), ("plan",)),
    "ids": ("plan", "select_plan"),
    "permuted": ("orbit_plan", "reduce_plan", "select_plan", "reduce_backward_plan"),
}

Tensors = tuple[Maybe, ...]


def problem(plan: Plan) -> str:
    """The key of a winner: the kernel, its types and constants, and its sizes to powers of two.

    The plan has to be the rule's.
    """
    constants = " ".join(f"{name}={value}" for name, value in plan.constants.items() if name not in _BLOCKS)
    types = " ".join(str(dtype).removeprefix("torch.") for dtype in plan.pointers)
    names = [name for name in plan.kernel.arg_names[len(plan.pointers) :] if name not in plan.constants]
    sizes = " ".join(
        f"{name}={bucket(int(value))}" for name, value in zip(names, plan.scalars, strict=True) if name in _SIZES
    )
    return f"{plan.kernel.fn.__name__} ({types}) {plan.aligned} {constants} {sizes} programs={bucket(plan.grid[0])}"


def same_launch(a: Plan, b: Plan) -> bool:
    """Whether two plans of one problem are the same launch."""
    return (a.grid, a.constants, a.num_warps) == (b.grid, b.constants, b.num_warps)


def seconds(plan: Plan, tensors: Tensors) -> float | None:
    """The least time of a launch in the current stream, or None if the GPU has not the resources for it.

    Launches write the right results, so they may run on the caller's tensors.
    """
    try:
        repeat = compat.launch(plan.kernel, plan.grid, (*tensors, *plan.scalars), plan.constants, plan.num_warps)
    except compat.LaunchError:
        return None
    if repeat is None:
        return None
    arguments = (*tensors, *plan.scalars, *plan.constants.values())
    best = float("inf")
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            repeat(*arguments)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e4)
    return best


def environment(gpu: str) -> list[str]:
    """What winners depend on besides the problem: the GPU's name, and the versions of all that makes or runs code."""
    runtime = f"hip{torch.version.hip}" if torch.version.hip else f"cuda{torch.version.cuda}"
    return [gpu, f"driver{driver_version()}", runtime, f"triton{compat.full_version()}", f"equikern{__version__}"]


@lru_cache(maxsize=64)
def winners(device: int) -> Winners:
    """What is known of a GPU."""
    return Winners(environment(torch.cuda.get_device_name(device)))


def choose(
    plan: Plan,
    tensors: Tensors,
    known: Winners,
    timer: Callable[[Plan, Tensors], float | None] = seconds,
    capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing,
) -> tuple[Plan, bool]:
    """The launch to use for a problem, and whether that is settled: under CUDA-graph capture nothing is measured."""
    if plan.variant is None:
        return plan, True
    key = problem(plan)
    choice = known.get(key)
    if choice is None:
        if capturing():
            return plan, False
        choice = fastest(candidates(plan.variant, same_launch), lambda candidate: timer(candidate, tensors))
        known.keep(key, choice)
    return (plan if choice == RULE else plan.variant(choice)), True


def _forget() -> None:
    winners.cache_clear()
    for name, plans in _TUNED.items():
        module = sys.modules.get(f"{__package__}.{name}")
        if module is not None:
            for plan in plans:
                getattr(module, plan).cache_clear()


when_switched(_forget)
