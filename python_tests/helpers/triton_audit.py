"""Compile the Triton kernels for GPUs this machine does not have, and read the machine code they become.

``PYTHONPATH=python_tests python -m helpers.triton_audit`` prints a table for Hopper, ``--targets sm_80 gfx942 …`` for
others: registers, spills, occupancy, barriers, shuffles, the widths of global accesses. What is compiled are the plans
that the launches use.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from equikern.backends.triton.launch import Plan
from equikern.backends.triton.layout import Operand
from equikern.views import Views, of
from helpers.compiling import MAIN, SCOPES, compiled, jobs
from helpers.vocabulary_audit import VOCABULARY, dense
from helpers.vocabulary_audit import build as build_vocabulary

D4 = "hw Wh HW wH hW wh Hw WH"
C4 = "hw Wh HW wH"
FLIPS = "hw hW Hw HW"
OCTANTS = "dhw dhW dHw dHW Dhw DhW DHw DHW"
CUBE = " ".join(  # 24 of the cube's 48
    "".join(a.upper() if k >> n & 1 else a for n, a in enumerate(axes))
    for axes in ("dhw", "hwd", "wdh")
    for k in range(8)
)
STILL = ". . . . . . . ."

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "u8": torch.uint8,
    "i32": torch.int32,
}


def channels_last(shape: Iterable[int], dtype: torch.dtype) -> Operand:
    """The same with the channels of a pixel next to one another."""
    *lead, c, h, w = shape
    inner = dense((*lead, h, w, c), dtype).stride
    return Operand((*lead, c, h, w), (*inner[:-3], 1, inner[-3], inner[-2]), dtype, True)


Describe = Callable[[Iterable[int], torch.dtype], Operand]


def _mean(views: Views, y: Operand, out: Operand, op: str = "sum", weighted: bool = False) -> Plan | None:
    from equikern.backends.triton import reductions

    weights = dense(y.shape[:2], _wide(y.dtype)) if weighted else None
    return reductions.plan.__wrapped__(views, op, 0.125, y, out, None, out if op == "mean_std" else None, weights)


def _plus(views: Views, y: Operand, x: Operand) -> Plan | None:
    from equikern.backends.triton import reductions, symmetrize

    found = symmetrize.plan.__wrapped__(views, 0.125, x, x, y)
    return found or reductions.plan.__wrapped__(views, "sum", 0.125, y, x, x, None, None)


def _symmetrized(views: Views, x: Operand) -> Plan | None:
    from equikern.backends.triton import symmetrize

    return symmetrize.plan.__wrapped__(views, 0.125, x, x)


def _orbit(views: Views, x: Operand, out: Operand, scale: float = 1.0, factors: bool = False) -> Plan | None:
    from equikern.backends.triton import orbits

    weights = dense(out.shape[:2], _wide(x.dtype)) if factors else None
    return orbits.plan.__wrapped__(views, scale, x, out, weights, dense(x.shape[:1], torch.int64) if factors else None)


def _dot(views: Views, x: Operand, y: Operand) -> Plan | None:
    from equikern.backends.triton import dots

    weights = dense(y.shape[:2], _wide(y.dtype))
    found = dots.plan.__wrapped__(views, x, y, y, weights, weights)
    return found[0] if found else None


def _select(views: Views, y: Operand, out: Operand, scored: bool) -> Plan | None:
    from equikern.backends.triton import selection

    scores = dense(y.shape[:2], torch.float32) if scored else None
    return selection.plan.__wrapped__(views, True, y, out, scores, dense(y.shape[1:2], torch.int64))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _shares(views: Views, y: Operand, x: Operand, op: str) -> Plan | None:
    from equikern.backends.triton import shares

    return shares.plan.__wrapped__(views, op, x, x if op == "mean_std" else None, y, y)


def _variance(views: Views, y: Operand, backward: bool) -> Plan | None:
    from equikern.backends.triton import shares

    of_each = dense(y.shape[1:2], _wide(y.dtype))
    if backward:
        return shares.plan.__wrapped__(views, "variance", None, None, y, y, of_each)
    found = shares.variance_plan.__wrapped__(views, y, of_each)
    return found[0] if found else None


def build(case: str) -> Plan:
    """The plan of a case such as ``"mean d4 bf16 224x224 cl"``: kernel, group, dtype, size, channels-last."""
    kind, group, kernel_dtype, size, *rest = case.split(" ")
    if case in VOCABULARY:
        return build_vocabulary(kind, group, DTYPES[kernel_dtype], int(size))
    views = of({"d4": D4, "c4": C4, "flips": FLIPS, "octants": OCTANTS, "cube": CUBE, "still": STILL}[group])
    describe: Describe = channels_last if rest else dense
    dtype = DTYPES[kernel_dtype]
    sizes = tuple(map(int, size.split("x")))
    shape = (4, 64, *sizes)
    x, y = describe(shape, dtype), describe((views.order, *shape), dtype)
    found = {
        "mean": lambda: _mean(views, y, x),
        "weighted": lambda: _mean(views, y, x, weighted=True),
        "plus": lambda: _plus(views, y, x),
        "max": lambda: _mean(views, y, x, "max"),
        "gmean": lambda: _mean(views, y, x, "gmean"),
        "hmean": lambda: _mean(views, y, x, "hmean"),
        "tsharpen": lambda: _mean(views, y, x, "tsharpen"),
        "logodd": lambda: _mean(views, y, x, "logodd"),
        "log1p": lambda: _mean(views, y, x, "log1p"),
        "median": lambda: _mean(views, y, x, "median"),
        "vote": lambda: _mean(views, y, x, "vote"),
        "mean_std": lambda: _mean(views, y, x, "mean_std"),
        "symmetrize": lambda: _symmetrized(views, x),
        "orbit": lambda: _orbit(views, x, y),
        "scaled": lambda: _orbit(views, x, y, 0.125),
        "adjoint": lambda: _orbit(views, x, y, 0.125, True),
        "dot": lambda: _dot(views, x, y),
        "select": lambda: _select(views, y, x, True),
        "take": lambda: _select(views, y, x, False),
        "of_max": lambda: _shares(views, y, x, "max"),
        "of_min": lambda: _shares(views, y, x, "min"),
        "of_std": lambda: _shares(views, y, x, "std"),
        "variance": lambda: _variance(views, y, False),
        "of_variance": lambda: _variance(views, y, True),
        "of_mean_std": lambda: _shares(views, y, x, "mean_std"),
    }[kind]()
    assert found is not None, f"{case}: would be copied first"
    return found


KERNELS = ("mean", "plus", "weighted", "orbit", "dot", "select")

# Shapes whose rows are whole vectors: here the machine code must move 16 bytes at a time.
ALIGNED = [
    f"{kind} d4 {dtype} 224x224{layout}" for kind in KERNELS for dtype in ("bf16", "fp32") for layout in ("", " cl")
]
ALIGNED += ["mean c4 fp16 56x56", "orbit flips bf16 56x56", "mean still bf16 8x8"]

OTHERS = [
    "plus d4 fp32 7x7",
    "max d4 fp16 224x224",
    "mean_std d4 bf16 224x224",
    "gmean c4 fp32 224x224",
    "hmean c4 fp16 14x14",
    "tsharpen c4 fp64 224x224",
    "logodd c4 fp64 7x7",
    "log1p c4 fp32 224x224",
    "median d4 bf16 224x224",
    "median d4 fp16 56x56 cl",
    "median octants fp64 8x16x16",
    "vote d4 u8 224x224",
    "vote c4 i32 37x37",
    "symmetrize d4 bf16 224x224",
    "symmetrize d4 fp32 224x224",
    "symmetrize c4 fp64 224x224",
    "symmetrize flips fp16 224x160",
    "symmetrize d4 bf16 37x37",
    "symmetrize c4 fp32 23x23",
    "symmetrize d4 fp16 16x16",
    "symmetrize d4 fp32 7x7",
    "scaled d4 fp64 224x224",
    "adjoint c4 bf16 224x224",
    "adjoint c4 fp16 7x7",
    "take d4 u8 224x224",
    "mean d4 bf16 37x37",
    "mean d4 fp32 7x7",
    "mean flips bf16 37x53",
    "orbit d4 bf16 37x37",
    "orbit d4 fp16 7x7",
    "orbit octants fp32 8x16x16",
    "dot d4 bf16 37x37",
    "dot c4 fp64 224x224",
    "dot d4 fp32 7x7",
    "dot still fp32 8x8",
    "dot cube fp32 8x8x8",
    "select c4 fp64 37x37",
    "select d4 fp16 7x7",
    "mean octants fp32 8x16x16",
    "of_max d4 bf16 224x224",
    "of_max d4 fp32 224x224",
    "of_max d4 bf16 224x224 cl",
    "of_min c4 fp16 37x37",
    "of_max d4 fp32 7x7",
    "of_max still bf16 8x8",
    "of_std d4 fp32 224x224",
    "of_std octants fp64 8x16x16",
    "of_mean_std d4 bf16 224x224",
    "variance d4 bf16 224x224",
    "variance d4 fp32 224x224",
    "variance c4 bf16 7x7",
    "variance octants fp64 8x16x16",
    "of_variance d4 bf16 224x224",
    "of_variance d4 fp32 224x224",
    "of_variance d4 fp32 7x7",
    "of_mean_std cube fp32 8x8x8",
]

CASES = ALIGNED + OTHERS + VOCABULARY


def audit_all(targets: Iterable[str], scope: str = "all") -> list[dict[str, Any]]:
    """The records of what ``compiling.jobs`` says."""
    return compiled(build, jobs(CASES, build, targets, scope))


COLUMNS = ("warps", "registers", "spills", "shared", "occupancy", "loads", "stores", "barriers", "shuffles")


def table(records: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Records by name as a Markdown table; accesses as count × bits."""

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(f"{count}×{width}" for width, count in value.items()) or "0"
        return "?" if value is None else f"{value:.0%}" if isinstance(value, float) else str(value)

    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, record in records.items():
        cells = [record["error"]] if "error" in record else [cell(record[column]) for column in columns]
        if not record.get("asked", True):  # a CUDA kernel of which no launch was planned
            cells[columns.index("occupancy")] = "≤ " + cells[columns.index("occupancy")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=[MAIN], help="whose machine code to read (%(default)s)")
    parser.add_argument("--cases", choices=SCOPES, default="all", help="which: see compiling.jobs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print records instead of a table")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("the interpreter replaces the kernels: unset TRITON_INTERPRET")
    records = audit_all(options.targets, options.cases)
    print(json.dumps(records) if options.json else table({f"{r['case']} {r['target']}": r for r in records}))


if __name__ == "__main__":
    main()
