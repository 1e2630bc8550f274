"""GPU time of every operator against the copy of its bytes: ``python -m bench.gpu.bandwidth OUT.json SECONDS cuda``.

Images, fields, volumes and logits, those first that matter most: bfloat16 and D4. Times are the GPU's, see
``bench/ops/device.py``; the host's time of a call stands beside them. A result that is wrong is reported and not timed.
The file is written after every case, so that a run that is killed leaves what it has. With cpu in the place of cuda a
rehearsal.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench.ops.cases import SHAPES, Case, error
from bench.ops.device import seconds
from bench.ops.fields import SHAPES as FIELDS
from bench.ops.fields import FieldCase
from bench.ops.operators import OPERATORS
from bench.ops.providers import Compiler, bind, missing, serve
from bench.ops.timing import copies_of
from bench.ops.words import SHAPES as WORDS
from bench.ops.words import WORD_OPERATORS, WordCase
from torch import Tensor

CHECKED = 30_000_000  # elements of a view up to which results are compared with float64: that takes longer than timing
BROKEN = "CUDA error"  # nothing works in a process from there on
FIELD_OPERATORS = ("orbit", "mean", "weighted", "select")


def cases(device: str) -> list[Case]:
    """What is measured, the most important first."""
    return [case for _, case in sorted(_ranked(device), key=lambda pair: pair[0])]


def _ranked(device: str) -> Iterator[tuple[int, Case]]:
    shapes = [*SHAPES[device]["large"][:2], *SHAPES[device].get("odd", SHAPES[device]["small"])]
    for dtype in (torch.bfloat16, torch.float32):
        late = 2 * (dtype == torch.float32)
        for shape in shapes:
            for name in OPERATORS:
                for group in ("d4", "c4"):
                    for direction in ("backward",) if name == "selected" else ("forward", "backward"):
                        rank = (group == "c4") + late + 2 * (shape != shapes[0])
                        yield rank, Case(name, direction, group, shape, dtype, device, "cold")
        for group, of_group in FIELDS[device].items():
            for name in FIELD_OPERATORS:
                for direction in ("forward", "backward"):
                    yield 1 + late, FieldCase(name, direction, group, of_group[0], dtype, device, "cold")
        for name, operator in WORD_OPERATORS.items():
            for direction in operator.elements:
                yield 1 + late, WordCase(name, direction, "swap2", WORDS[device][0], dtype, device, "cold")


def providers(case: Case) -> list[str]:
    """The choice by table, and where there are both kinds of kernels, those from which the table is made."""
    both = case.device == "cuda" and (type(case) is Case or case.name in ("mean probs", "mean log-probs"))
    return [name for name in ("equikern", "triton", "cuda")[: 3 if both else 1] if missing(name, case.device) is None]


def measure(case: Case, compiler: Compiler) -> list[dict[str, Any]]:
    """One row for every provider."""
    rows: list[dict[str, Any]] = []
    copy = seconds(copies_of(case), case.device)
    with torch.set_grad_enabled(case.direction != "forward"):
        for provider in providers(case):
            row: dict[str, Any] = {"id": case.id, "provider": provider}
            rows.append(row)
            try:
                with serve(provider):
                    row |= _timed(case, provider, compiler, copy.device)
            except Exception as failure:  # the others are still worth measuring
                row["failure"] = f"{type(failure).__name__}: {failure}"[:300]
                if BROKEN in row["failure"]:
                    break
    return rows


def _timed(case: Case, provider: str, compiler: Compiler, copy: float) -> dict[str, Any]:
    calls = [bind(case, provider, compiler, fresh=k > 0) for k in range(case.buffers)]
    result = calls[-1]()
    worst = None
    if math.prod(case.shape) < CHECKED:
        results = (result,) if isinstance(result, Tensor) else result
        worst = max(error(got, want) for got, want in zip(results, case.expected(), strict=True))
        if not worst <= case.tolerance:
            raise AssertionError(f"relative error {worst:.1e}, expected at most {case.tolerance:.0e}")
    found = seconds(calls, case.device)
    return {
        "microseconds": 1e6 * found.device,
        "host_microseconds": 1e6 * found.host,
        "gigabytes_per_second": case.bytes / found.device / 1e9,
        "percent_of_copy": 100 * copy / found.device,
        "relative_error": worst,
    }


def run(path: Path, limit: float, device: str) -> list[dict[str, Any]]:
    """Measures until the time is over, and prints the table."""
    start = time.perf_counter()
    todo, rows, done, compiler = cases(device), [], 0, Compiler("dynamic")
    for case in todo:
        if time.perf_counter() - start > limit:
            break
        try:
            found = measure(case, compiler)
        except Exception as failure:  # of the copy
            found = [{"id": case.id, "provider": "copy", "failure": f"{type(failure).__name__}: {failure}"[:300]}]
        rows += found
        done += 1
        path.write_text(json.dumps(rows, indent=1))
        if any(BROKEN in row.get("failure", "") for row in found):
            break
    for row in rows:
        if "failure" in row:
            print(f"FAILED {row['id']} by {row['provider']}: {row['failure']}")
    mine = [row for row in rows if row["provider"] == "equikern" and "failure" not in row]
    for row in sorted(mine, key=lambda row: float(row["percent_of_copy"])):
        print(
            f"{row['percent_of_copy']:6.1f} % {row['microseconds']:9.1f} µs {row['gigabytes_per_second']:8.0f} GB/s "
            f"host {row['host_microseconds']:6.1f} µs  {row['id']}"
        )
    left = f"; left out from {todo[done].id} on" if done < len(todo) else ""
    print(f"{done} of {len(todo)} cases in {time.perf_counter() - start:.0f} s{left}")
    return rows


def main() -> None:
    path, limit, device = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    rows = run(path, limit, device)
    sys.exit(any("failure" in row for row in rows))


if __name__ == "__main__":
    main()
