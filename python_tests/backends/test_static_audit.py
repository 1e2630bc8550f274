"""The kernels compile for GPUs that are not here; their machine code is what it should be, and no worse than the tables
in bench/results/static say.

After a change that is meant: ``python bench/static_audit.py`` writes the tables anew.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from helpers import audits
from helpers.audits import EXTRA, audit, compare, machine_code, static_audit
from helpers.cuda_blocks import Blocks

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return static_audit()


@pytest.mark.audit
@needs_triton
def test_triton_kernels(script: ModuleType) -> None:
    compare(script.triton_tables(machine_code()), whole=False)


@pytest.mark.audit
@pytest.mark.parametrize("path", EXTRA)
def test_triton_kernels_of_other_releases(script: ModuleType, path: str) -> None:
    code = "import triton; print(triton.__version__)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    version = done.stdout.strip()
    assert version, done.stderr
    tables = script.by_target(audit(triton=path))
    compare({target: {f"triton {version}": table} for target, table in tables.items()}, whole=False)


@pytest.mark.audit
@needs_triton
def test_no_kernel_issues_more_instructions(script: ModuleType, cuda_blocks: Blocks) -> None:
    """Warp instructions a byte, counted by executing the machine code: see ``helpers/budget.py``."""
    fresh = audits.script("budget", "--few", "--blocks", str(cuda_blocks.library))
    written = script.read_issue()
    found = script.issues_more(fresh, written)
    assert not found, "\n".join([*found, script.UPDATE])
    if not fresh.keys() & written.keys():
        pytest.skip(f"no table for {' and '.join(fresh)}, only for {' and '.join(written)}")


def test_more_instructions_are_seen(script: ModuleType) -> None:
    def of(issue: float, served: float) -> dict[str, float]:
        return {"issue/memory": issue, "L1/memory": served}

    written = {"nvcc": {"sum": of(1.0, 0.2)}}
    assert script.issues_more({"nvcc": {"sum": of(1.04, 0.2)}}, written) == []
    assert script.issues_more({"nvcc": {"sum": of(1.2, 0.4)}}, written) == [
        "nvcc: sum: issue/memory 1.0 → 1.2",
        "nvcc: sum: L1/memory 0.2 → 0.4",
    ]
    assert script.issues_more({"nvcc": {"new": of(1.0, 0.0)}}, written) == ["nvcc: new: not in the table"]
    assert script.issues_more({"another": {"sum": of(9.0, 9.0)}}, written) == []


RECORD = {
    "spills": 0,
    "stack": 0,
    "local": 0,
    "barriers": 3,
    "atomics": 0,
    "loads": {"128": 8, "32": 1},
    "stores": {"128": 1},
    "occupancy": 0.75,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spills": 2}, "spills 0 → 2"),
        ({"barriers": 4}, "barriers 3 → 4"),
        ({"loads": {"64": 16, "32": 1}}, "loads narrower than 128 bits 1 → 17"),
        ({"stores": {"16": 8}}, "stores narrower than 32 bits 0 → 8"),
        ({"occupancy": 0.5}, "occupancy 75% → 50%"),
        ({"error": "no"}, "does not compile"),
    ],
)
def test_regressions_are_seen(script: ModuleType, change: dict[str, Any], said: str) -> None:
    assert any(said in line for line in script.regressions({"k": RECORD}, {"k": {**RECORD, **change}}))


def test_improvements_are_no_regressions(script: ModuleType) -> None:
    better = {**RECORD, "barriers": 1, "loads": {"128": 16}, "occupancy": 1.0}
    assert script.regressions({"k": RECORD}, {"k": better}) == []
    assert script.regressions({"k": RECORD}, {}) == ["k: in the table, but no such kernel"]
    assert script.regressions({"k": RECORD}, {}, whole=False) == []
    assert script.regressions({}, {"k": RECORD}) == ["k: not in the table"]


def test_tables_are_whole(script: ModuleType) -> None:
    """Every target has tables by each compiler, of the cases that there are, and its page tells them all."""
    for target in script.TARGETS:
        tables = script.read(target)
        cases = [table.keys() for compiler, table in tables.items() if compiler.startswith("triton")]
        largest = max(cases, key=len)
        assert all(some <= largest for some in cases), target
        if importlib.util.find_spec("triton") is not None:
            from helpers.triton_audit import CASES

            assert largest == {*CASES}, target
        page = (script.RESULTS / f"{target}.md").read_text()
        for table in tables.values():
            assert all(f"| {name} |" in page for name in table)
            assert json.dumps(table).count("error") == 0


def hopper() -> dict[str, dict[str, Any]]:
    return {record["case"]: record for record in machine_code() if record["target"] == "sm_90"}


@pytest.mark.audit
@needs_triton
def test_compiles_for_every_target() -> None:
    assert [record for record in machine_code() if "error" in record] == []


@pytest.mark.audit
@needs_triton
def test_no_spills_no_atomics() -> None:
    for record in machine_code():
        assert record.get("error") is None, record
        assert record["spills"] == record["stack"] == record["local"] == record["atomics"] == 0, record


@pytest.mark.audit
@needs_triton
def test_aligned_shapes_move_16_bytes_at_a_time() -> None:
    """And each vector once: a thread has one or two, or four of a channels-last selection."""
    from helpers.triton_audit import ALIGNED

    views = {"d4": 8, "c4": 4, "flips": 4, "still": 8}
    for case, record in hopper().items():
        kind, group, *_ = case.split(" ")
        order = views.get(group, 0)
        expected = {
            "mean": (order, 1),
            "weighted": (order, 1),
            "orbit": (1, order),
            "dot": (order + 1, order),
            "select": (1, 1),
        }.get(kind)
        if case in ALIGNED and expected is not None:
            found = record["loads"].get("128"), record["stores"].get("128")
            counts = (1, 2, 4) if kind == "select" and case.endswith(" cl") else (1, 2)
            assert found in [(count * expected[0], count * expected[1]) for count in counts], record
            if kind in ("mean", "orbit"):
                assert (list(record["loads"]), list(record["stores"])) == (["128"], ["128"]), record


@pytest.mark.audit
@needs_triton
def test_rows_of_logits_move_16_bytes_at_a_time_wherever_they_start() -> None:
    """Rows of 50,257 entries of two bytes too; single entries are the row's ends, the listed ones and the target's."""
    expected = {
        "softmax-probs": (4, 1),
        "backward-probs": (6, 2),
        "loss-logits": (4, 2),
        "loss-probs": (4, 2),
        "loss-logs": (4, 2),
    }
    found = hopper()
    for kind, counts in expected.items():
        for size in (49152, 50257, 151936):
            record = found[f"{kind} few2 bf16 {size}"]
            assert (record["loads"].get("128", 0), record["stores"].get("128", 0)) == counts, record
    for size in (49152, 50257, 151936):
        # A row is read once, and one lane of it again, by the same load or by another.
        record = found[f"score-entropy few2 bf16 {size}"]
        assert record["loads"]["128"] in (1, 2), record
        assert "128" not in record["stores"], record
        # The chosen view is moved by a loop that the compiler unrolls: one load for each store, and those that score.
        record = found[f"scored-entropy few2 bf16 {size}"]
        assert record["loads"]["128"] - record["stores"]["128"] in (1, 2), record


@pytest.mark.audit
@needs_triton
def test_mean_needs_two_mirrorings_and_one_transposition() -> None:
    record = hopper()["mean d4 bf16 224x224"]
    assert record["warps"] == 2  # of two vectors a thread
    assert record["barriers"] <= 3
    assert record["shuffles"] <= 2 * 32
    assert record["registers"] <= 48


@pytest.mark.audit
@needs_triton
def test_orbit_mirrors_and_transposes_once() -> None:
    # Vectors are mirrored in a thread's registers: of two bytes a few more of these, for a third of the shuffles.
    for dtype, registers in (("bf16", 56), ("fp32", 48)):
        record = hopper()[f"orbit d4 {dtype} 224x224"]
        assert record["barriers"] <= 7  # of two vectors a thread
        assert record["shuffles"] <= 16
        assert record["registers"] <= registers
