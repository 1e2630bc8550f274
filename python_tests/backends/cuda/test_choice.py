"""The table that chooses between CUDA C++ and Triton says what counting the instructions of both says.

bench/results/static/issue.json holds the counts of calls of every entry's class.
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
from equikern.views import accumulator, still
from helpers import budget
from helpers.looped import each

STATIC = Path(__file__).parents[3] / "bench" / "results" / "static"
TARGETS = ("sm_80", "sm_90", "sm_100")
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


def moves_vectors(record: dict[str, Any], writes: bool) -> bool:
    """Whether elements are read and written 16 bytes at a time; weights, scores and indices are narrower."""
    return "128" in record["loads"] and (not writes or "128" in record["stores"])


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
                    writes = not case.startswith("variance ")  # which is one number
                    assert moves_vectors(record, writes) == plans_vectors(triton_audit.build(case)), (target, case)


def test_the_table_has_every_class() -> None:
    classes = {(a, p) for a in ("aligned", "odd") for p in ("small", "staged", "large")}
    for operator in OPERATORS:
        sizes = {key[1] for key in choice.TABLE if key[0] == operator}
        assert sizes == ({*budget.BITS} if operator in ("orbit", "select") else {*budget.REALS})
        for size in sizes:
            found = {key[2:] for key in choice.TABLE if key[:2] == (operator, size)}
            assert found == {(a, p) for a, p in classes if size < 16 or a == "aligned"}
    assert {key[0] for key in choice.TABLE} == {*OPERATORS}


@each("key", choice.TABLE)
def test_every_entry_follows_from_the_counts(key: tuple[str, int, str, str]) -> None:
    """CUDA C++ where it is predicted to be faster by a twentieth: a call takes as long as memory, the issue of its
    instructions or the L1 cache, whatever is the longest."""
    written = json.loads((STATIC / "issue.json").read_text())
    names = [name for name, (entry, _, _) in budget.calls().items() if entry == key]
    assert names, "no call is of this class"

    def predicted(compiler: str) -> float:
        (table,) = (found for name, found in written.items() if name.startswith(compiler))
        return sum(max(1.0, table[name]["issue/memory"], table[name]["L1/memory"]) for name in names)

    faster = predicted("nvcc") < 0.95 * predicted("triton")
    assert choice.TABLE[key] == ("cuda" if faster else "triton"), names


@each("key", choice.ROWS)
def test_every_entry_for_rows_follows_from_the_counts(key: tuple[str, int, bool, str]) -> None:
    """The same of means of softmaxes and their gradients, where Triton may have to move some bytes twice."""
    written = json.loads((STATIC / "issue.json").read_text())
    names = [name for name, (entry, _) in budget.row_calls().items() if entry == key]
    assert names, "no call is of this class"
    assert all(choice.row_class(budget.row_calls()[name][1], key[1], 2) == key[3] for name in names)

    def predicted(compiler: str) -> float:
        (table,) = (found for name, found in written.items() if name.startswith(compiler))
        return sum(max(table[name][part] for part in ("memory", "issue/memory", "L1/memory")) for name in names)

    faster = predicted("nvcc") < 0.95 * predicted("triton")
    assert choice.ROWS[key] == ("cuda" if faster else "triton"), names


@each("size", budget.REALS)
def test_long_rows_are_those_that_triton_does_not_hold(size: int) -> None:
    """As its plan says; those that the L2 cache holds are short in any case."""
    from equikern.backends.triton import softmaxes
    from equikern.backends.triton.layout import operand

    lengths = [
        5,
        999,
        1000,
        4000,
        4001,
        8000,
        8192,
        12000,
        16384,
        20000,
        30000,
        32000,
        32768,
        50257,
        60000,
        65536,
        128256,
    ]
    for order in (1, 2, 3, 4, 8, 16):
        for entries in lengths:
            y = torch.empty(order, 64, entries, dtype=budget.REALS[size], device="meta")
            lse = torch.empty(order, 64, dtype=accumulator(y), device="meta")
            described = (operand(t)._replace(aligned=True) for t in (y, y[0], lse))
            plan = softmaxes.mean_plan.__wrapped__(still(order), None, "probs", *described)
            assert plan is not None
            again = not plan.constants["WHOLE"] and y[:, 0].nbytes > 108 * 1024
            other = "small" if entries * size < 8000 else "short"
            assert choice.row_class(entries, size, order) == ("long" if again else other), (order, entries)
