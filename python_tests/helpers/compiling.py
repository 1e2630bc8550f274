"""What the audit scripts share: cases compiled for targets, and what their machine code has."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from equikern.backends.triton import launch
from equikern.backends.triton.launch import Plan
from helpers.machine_code import amd_kernel, cuda_kernels, dumped

Build = Callable[[str], Plan]
MAIN = "sm_90"
SCOPES = ("all", "main", "kernels")


def of_each_kernel(cases: Iterable[str], build: Build) -> list[str]:
    """The first case of every kernel."""
    found: dict[str, str] = {}
    for case in cases:
        found.setdefault(build(case).kernel.__name__, case)
    return list(found.values())


def jobs(cases: Sequence[str], build: Build, targets: Iterable[str], scope: str = "all") -> list[tuple[str, str]]:
    """Every case for every target; of scope ``"main"`` each kernel once for all but the main target, and of scope
    ``"kernels"`` for that too: what differs there is the compiler alone.
    """
    once = cases if scope == "all" else of_each_kernel(cases, build)
    return [(case, target) for target in targets for case in (cases if (target, scope) == (MAIN, "main") else once)]


def _compiled(build: Build, job: tuple[str, str]) -> tuple[dict[str, Any], bytes | None, int]:
    """One case for one target: a record, and for NVIDIA's GPUs the binary and its shared memory."""
    from equikern.backends.triton.compat import compile_kernel

    case, target = job
    record: dict[str, Any] = {"case": case, "target": target}
    launch.LANES = 64 if target.startswith("gfx") else 32  # as a torch build for the target would set it
    plan = build(case)
    try:
        binary = compile_kernel(plan.kernel, target, plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    except Exception as error:  # a compiler may raise anything; the report says which case it was
        return {**record, "error": f"{type(error).__name__}: {error}"[-2000:]}, None, 0
    record |= {"kernel": binary.metadata.name, "warps": plan.num_warps}
    if "amdgcn" in binary.asm:
        return {**record, **amd_kernel(binary.asm["amdgcn"], binary.metadata.shared)}, None, 0
    return record, binary.asm["cubin"], binary.metadata.shared


def compiled(build: Build, work: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The records of cases and targets, compiled in two processes."""
    # One thread: those that OpenMP started in this process are not in a fork, which would wait for them for ever.
    fork = get_context("fork")
    with ProcessPoolExecutor(2, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        done = list(pool.map(functools.partial(_compiled, build), work, chunksize=4))
    dumps = iter(dumped(cubin for _, cubin, _ in done if cubin is not None))
    for record, cubin, shared in done:
        if cubin is not None:
            (code,) = cuda_kernels(next(dumps), shared).values()
            record.update(code)
    return [record for record, _, _ in done]


def report(cases: Sequence[str], build: Build) -> None:
    """Print the records of cases for a scope and targets, which the command line names, as JSON."""
    scope, *targets = sys.argv[1:]
    print(json.dumps(compiled(build, jobs(cases, build, targets, scope))))
