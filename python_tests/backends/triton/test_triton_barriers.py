"""Kernels that write some entries a second time do so behind a barrier, in AMD's machine code too.

NVIDIA's is executed (``test_machine_code.py``), where a write past another warp without a barrier is an error.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.looped import each

pytest.importorskip("triton")

pytestmark = pytest.mark.audit

CASES = ["softmax-probs", "backward-probs", "loss-logits", "loss-smooth", "scored-entropy"]
_ORDERED = re.compile(r"^\s*(s_barrier\b|(?:global|buffer|flat)_store_)")


def barriers_and_stores(assembly: str, file: str) -> list[tuple[str, int]]:
    """What there is of both, in order, each with the line of a file that it comes from, or 0."""
    found, line = list[tuple[str, int]](), 0
    for text in assembly.splitlines():
        if text.lstrip().startswith(".loc"):
            place = re.search(rf"\b{file}:(\d+):", text)  # where it is, and behind it what that was inlined into
            line = int(place[1]) if place is not None else 0
        elif what := _ORDERED.match(text):
            found.append(("barrier" if what[1] == "s_barrier" else "store", line))
    return found


def written_in(kernel: Any) -> list[tuple[str, int]]:
    """The file and the line of each barrier of a kernel, and of the device function that may end it."""
    from equikern.backends.triton import mixtures

    found = []
    for function in (kernel.fn, mixtures.mixture_gradients.fn):
        lines, first = inspect.getsourcelines(function)
        file = Path(inspect.getfile(function)).name
        found += [(file, first + k) for k, text in enumerate(lines) if text.strip() == "tl.debug_barrier()"]
    return found


@each("kind", CASES)
def test_entries_are_written_anew_behind_a_barrier(kind: str) -> None:
    """That the barrier stands between the stores is all that CDNA needs. The waves of a block are on one compute unit,
    which keeps the order of their accesses: as long as blocks are not split (``tg_split``), LLVM's memory model has no
    wait for stores in a release to a block's threads.
    """
    from equikern.backends.triton.compat import compile_kernel
    from helpers.triton_audit import build

    plan = build(f"{kind} few2 bf16 50257")
    binary = compile_kernel(plan.kernel, "gfx942", plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    assembly = binary.asm["amdgcn"]
    assert re.search(r"^\s*\.amdhsa_tg_split 0$", assembly, re.MULTILINE)
    seen = [(line, barriers_and_stores(assembly, file)) for file, line in written_in(plan.kernel)]
    ((barrier, found),) = ((line, found) for line, found in seen if ("barrier", line) in found)  # others are left out
    assert found.count(("barrier", barrier)) == 1
    at = found.index(("barrier", barrier))
    # Those of the function that has the barrier; a loss is written by the kernel that ends with it.
    stores = [(place > at, line > barrier) for place, (what, line) in enumerate(found) if what == "store" and line]
    assert {*stores} == {(False, False), (True, True)}, f"{plan.kernel.__name__}: {found}"
