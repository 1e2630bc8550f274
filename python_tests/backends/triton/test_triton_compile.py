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


@pytest.mark.parametrize("kind", ["hmean", "log1p", "of_max", "of_std", "of_mean_std", "mean_std"])
def test_quotients_and_roots_are_rounded_to_nearest(kind: str) -> None:
    """As the accuracy asks that README states: Triton's own division may be off by two units of the last place."""
    from equikern.backends.triton.compat import compile_kernel
    from helpers.triton_audit import CASES, build

    cases = [case for case in CASES if case.startswith(f"{kind} ") and " fp64 " not in case]
    assert cases
    for case in cases[:1]:
        plan = build(case)
        binary = compile_kernel(plan.kernel, "sm_90", plan.pointers, plan.aligned, plan.constants, plan.num_warps)
        code = binary.asm["ptx"]
        assert "div.full" not in code, case
        assert "div.approx" not in code, case
        assert "sqrt.approx" not in code, case
        assert ("div.rn" in code or "sqrt.rn" in code) == (kind != "log1p"), case  # which divides nothing


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_a_row_has_one_score(path: str | None) -> None:
    """What scores, and what scores and selects, add in the same order: so they agree to the bit."""
    found = script("score_layouts", triton=path)
    assert len(found) == 4
    for case, (score, score_select) in found.items():
        assert len(score) >= (2 if case.startswith("max ") else 4), case
        assert score == score_select, case
