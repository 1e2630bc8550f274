"""The Triton kernels compile for GPUs that are not here, and their machine code for Hopper is what it should be.

``EQUIKERN_EXTRA_TRITONS`` may name directories, separated as in PATH, with further Triton releases to compile with.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from audits import EXTRA, TARGETS, audit, machine_code, script

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def hopper() -> dict[str, dict[str, Any]]:
    return {record["case"]: record for record in machine_code() if record["target"] == "sm_90"}


def failures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "error" in record]


def test_compiles_for_every_target() -> None:
    assert failures(machine_code()) == []


@pytest.mark.parametrize("path", EXTRA)
def test_compiles_with_other_releases(path: str) -> None:
    assert failures(audit("--few", "--compile", *TARGETS, triton=path)) == []


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_launches_are_what_was_audited(path: str | None) -> None:
    found = script("triton_launches.py", triton=path)
    for call, record in found.items():
        assert (record["repeats"], record["repeating"], record["audited"]) == (True, True, True), call
    # What a profiler is told: a view has 2·3·7² entries of 2 bytes; weights are 4·2 in float32, an index 2 in int64.
    view = 2 * 3 * 7 * 7 * 2
    assert {call: found[f"{call} 7"]["bytes"] for call in ("mean", "orbit", "select")} == {
        "mean": 5 * view,
        "orbit": 5 * view,
        "select": 2 * view + 4 * 2 * 4 + 2 * 8,
    }
    assert found["mean 7"]["name"] == "equikern_reduce_points_sum_bf16 4x2x3x7x7"
    assert found["select 32"]["name"] == "equikern_select_tiles_bf16 4x2x3x32x32"


def test_no_spills_no_atomics() -> None:
    for record in machine_code():
        assert record.get("error") is None, record
        assert record["spills"] == record["stack"] == record["local"] == record["atomics"] == 0, record


def test_aligned_shapes_move_16_bytes_at_a_time() -> None:
    views = {"d4": 8, "c4": 4, "flips": 4, "still": 8}
    for case, record in hopper().items():
        kind, group, *_ = case.split(" ")
        count = views.get(group, 0)
        expected = {
            "mean": (count, 1),
            "weighted": (count, 1),
            "orbit": (1, count),
            "dot": (count + 1, count),
            "select": (1, 1),
        }.get(kind)
        if case in aligned() and expected is not None:
            assert (record["loads"].get("128"), record["stores"].get("128")) == expected, record
            if kind in ("mean", "orbit"):
                assert (list(record["loads"]), list(record["stores"])) == (["128"], ["128"]), record


def aligned() -> list[str]:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from triton_audit import ALIGNED
    finally:
        sys.path.pop(0)
    return list(ALIGNED)


def test_rows_of_logits_move_16_bytes_at_a_time_wherever_they_start() -> None:
    """Rows of 50,257 entries of two bytes too; single entries are the row's ends, the listed ones and the target's."""
    expected = {
        "softmax-probs": (4, 1),
        "backward-probs": (6, 2),
        "loss-logits": (4, 2),
        "loss-probs": (4, 2),
        "loss-logs": (4, 2),
        "score-entropy": (1, 0),
    }
    found = hopper()
    for kind, counts in expected.items():
        for size in (49152, 50257, 151936):
            record = found[f"{kind} few2 bf16 {size}"]
            assert (record["loads"].get("128", 0), record["stores"].get("128", 0)) == counts, record
    for size in (49152, 50257, 151936):
        # The chosen view is moved by a loop that the compiler unrolls: one load for each store, and one that scores.
        record = found[f"scored-entropy few2 bf16 {size}"]
        assert record["loads"]["128"] == record["stores"]["128"] + 1, record


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_a_row_has_one_score(path: str | None) -> None:
    """What scores, and what scores and selects, add in the same order: so they agree to the bit."""
    found = script("score_layouts.py", triton=path)
    assert len(found) == 4
    for case, (score, score_select) in found.items():
        assert len(score) >= 4, case
        assert score == score_select, case


def test_mean_needs_two_mirrorings_and_one_transposition() -> None:
    record = hopper()["mean d4 bf16 224x224"]
    assert record["warps"] == 4
    assert record["barriers"] <= 3
    assert record["shuffles"] <= 32
    assert record["registers"] <= 40


def test_orbit_mirrors_and_transposes_once() -> None:
    for dtype in ("bf16", "fp32"):
        record = hopper()[f"orbit d4 {dtype} 224x224"]
        assert record["barriers"] <= 5
        assert record["registers"] <= 40
