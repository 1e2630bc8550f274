"""Launch the Triton kernels on a driver that only takes notes: what would reach the GPU, without one.

Prints a JSON record per call: whether a repeated launch hands over what Triton's own checked launch does, whether
the code is what ``triton_audit.py`` reads (compared as PTX: binaries carry the time of the source file), and the name
and bytes that profilers see.

``--time`` prints microseconds instead: what a call costs this process, of the kernels alone and, with checks, torch's
dispatcher and autograd, of the public operators. C's part of a launch and what asks for the current device and stream
of a GPU are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

launches: list[tuple[Any, ...]] = []


class Utilities:
    """What Triton asks a driver when it loads a binary."""

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, *_: Any) -> None: ...

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}


class Launcher:
    """Takes the place of the compiled C function that calls cuLaunchKernel."""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, *args: Any) -> None:
        launches.append(args)


class Silent(Launcher):
    """Takes no notes, which cost time."""

    def __call__(self, *args: Any) -> None: ...


class Driver:
    """A Hopper GPU as far as Triton's Python sees one."""

    utils = Utilities()
    launcher_cls = Launcher

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return device

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def calls() -> dict[str, tuple[Callable[[], None], Callable[[], Any]]]:
    """Per kernel: a call, and the plan it follows."""
    from equikern.backends.triton import dots, orbits, reductions, selection
    from equikern.backends.triton.layout import operand
    from equikern.views import of

    c4 = of("hw Wh HW wH")
    found: dict[str, tuple[Callable[[], None], Callable[[], Any]]] = {}
    for size in (32, 7):
        x, y = (
            torch.zeros(2, 3, size, size, dtype=torch.bfloat16),
            torch.zeros(4, 2, 3, size, size, dtype=torch.bfloat16),
        )
        weights, index = torch.zeros(4, 2), torch.zeros(2, dtype=torch.int64)
        a, b, w, i = operand(x), operand(y), operand(weights), operand(index)
        found |= {
            f"mean {size}": (
                lambda x=x, y=y: reductions.reduce(y, x, c4, None, "sum", 0.25, None, None, None),  # type: ignore[misc]
                lambda a=a, b=b: reductions.plan(c4, "sum", 0.25, b, a, None, None, None),  # type: ignore[misc]
            ),
            f"orbit {size}": (
                lambda x=x, y=y: orbits.orbit(x, y, c4, None, 1.0, None, None),  # type: ignore[misc]
                lambda a=a, b=b: orbits.plan(c4, 1.0, a, b, None, None),  # type: ignore[misc]
            ),
            f"dot {size}": (
                lambda x=x, y=y, w=weights: dots.orbit_dot(x, y, y, w, c4, None, w),  # type: ignore[misc]
                lambda a=a, b=b, w=w: dots.plan(c4, a, b, b, w, w)[0],  # type: ignore[misc, index]
            ),
            f"select {size}": (
                lambda x=x, y=y, w=weights, i=index: selection.select(y, x, i, c4, None, w, True),  # type: ignore[misc]
                lambda a=a, b=b, w=w, i=i: selection.plan(c4, True, b, a, w, i),  # type: ignore[misc]
            ),
        }
    return found


def operators() -> dict[str, Callable[[], Any]]:
    """Calls of the public operators on tensors of the CPU, which Triton's kernels are to serve."""
    from equikern import backends, grid, orbit, orbit_mean, orbit_select
    from equikern.backends.triton import Triton

    backends._active["cpu"] = Triton()
    action, x, y, scores = grid("d4"), torch.zeros(2, 3, 32, 32), torch.zeros(8, 2, 3, 32, 32), torch.zeros(8, 2)
    leaf = x.clone().requires_grad_()
    return {
        "orbit()": lambda: orbit(x, action),
        "orbit_mean()": lambda: orbit_mean(y, action),
        "orbit_select()": lambda: orbit_select(y, scores, action),
        "orbit() and its gradient": lambda: torch.autograd.grad(orbit(leaf, action), leaf, y),
    }


def microseconds(call: Callable[[], Any]) -> float:
    """Of this process, the least of some rounds: others on its cores count for nothing."""
    call()
    rounds = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(1000):
            call()
        rounds.append((time.process_time() - start) * 1e3)
    return round(min(rounds), 1)


def alike(a: Any, b: Any) -> bool:
    """Whether two launches hand over the same argument; partial sums are a fresh tensor in every call."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype)
    return a is b or type(a).__name__ == "LazyDict" == type(b).__name__ or bool(a == b)  # the dict is for profilers


def check(call: Callable[[], None], plan: Any) -> dict[str, Any]:
    from equikern.backends.triton.compat import compile_kernel

    del launches[:]
    for _ in range(3):
        call()
    first, second, third = launches
    metadata = next(argument for argument in first if type(argument).__name__ == "LazyDict").get()
    same = all(len(first) == len(other) and all(map(alike, first, other)) for other in (second, third))
    warm = plan.kernel.warmup(
        *(None if d is None else torch.empty(16, dtype=d) for d in plan.pointers),
        *plan.scalars,
        grid=plan.grid,
        **plan.constants,
        num_warps=plan.num_warps,
        enable_fp_fusion=False,
    )
    audited = compile_kernel(plan.kernel, "sm_90", plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    return {
        "repeats": same,
        "repeating": bool(plan.repeat),
        "audited": warm.asm["ptx"] == audited.asm["ptx"],
        "bytes": metadata["bytes"],
        "name": metadata["name"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="microseconds of Python per call")
    options = parser.parse_args()
    from triton.runtime import driver

    if not options.time:
        os.environ["EQUIKERN_NVTX"] = "1"  # which gives launches what profilers see
    else:
        Driver.launcher_cls = Silent
        torch.set_num_threads(1)
    driver.set_active(Driver())
    if options.time:
        every = {**{name: call for name, (call, _) in calls().items()}, **operators()}
        result: dict[str, Any] = {name: microseconds(call) for name, call in every.items()}
    else:
        result = {name: check(call, plan()) for name, (call, plan) in calls().items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
