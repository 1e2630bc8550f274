"""What the audit scripts of single families share: their cases compiled for the targets given as arguments."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from equikern.backends.triton.launch import Plan
from helpers.machine_code import cuda_kernels


def compiled(build: Callable[[str], Plan], job: tuple[str, str]) -> dict[str, Any]:
    """One case for one target: what its machine code has, or the error."""
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


def report(cases: Sequence[str], build: Callable[[str], Plan]) -> None:
    """Print the records of all cases for the targets on the command line, as JSON."""
    jobs = [(case, target) for target in sys.argv[1:] for case in cases]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        print(json.dumps(list(pool.map(functools.partial(compiled, build), jobs, chunksize=4))))
