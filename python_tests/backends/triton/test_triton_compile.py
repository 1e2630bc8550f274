"""Launches are what was audited, and what scores adds in one order.

``EQUIKERN_EXTRA_TRITONS`` may name directories, separated as in PATH, with further Triton releases to compile with.
"""

from __future__ import annotations

import importlib.util

import pytest
from helpers.audits import EXTRA, script

pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_launches_are_what_was_audited(path: str | None) -> None:
    found = script("triton_launches", triton=path)
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


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_a_row_has_one_score(path: str | None) -> None:
    """What scores, and what scores and selects, add in the same order: so they agree to the bit."""
    found = script("score_layouts", triton=path)
    assert len(found) == 4
    for case, (score, score_select) in found.items():
        assert len(score) >= 2, case
        assert score == score_select, case
