"""The Triton kernels compile for GPUs that are not here, and their machine code for Hopper is what it should be.

``EQUIKERN_EXTRA_TRITONS`` may name directories, separated as in PATH, with further Triton releases to compile with.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

TARGETS = ("sm_80", "sm_100", "gfx942")
EXTRA = [path for path in os.environ.get("EQUIKERN_EXTRA_TRITONS", "").split(os.pathsep) if path]


def script(name: str, *options: str, triton: str | None = None) -> Any:
    """What a script beside this file prints, in a process of its own: one Triton a process, never the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if triton is not None:
        environment["PYTHONPATH"] = triton
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(name)), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def audit(*options: str, triton: str | None = None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = script("triton_audit.py", "--json", *options, triton=triton)
    assert records
    return records


@functools.cache
def hopper() -> dict[str, dict[str, Any]]:
    return {record["case"]: record for record in audit()}


def failures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "error" in record]


def test_compiles_for_every_target() -> None:
    assert failures(audit("--compile", *TARGETS)) == []


@pytest.mark.parametrize("path", EXTRA)
def test_compiles_with_other_releases(path: str) -> None:
    assert failures(audit("--few", "--compile", "sm_90", *TARGETS, triton=path)) == []


@pytest.mark.parametrize("path", [None, *EXTRA])
def test_launches_are_what_was_audited(path: str | None) -> None:
    for call, found in script("triton_launches.py", triton=path).items():
        assert found == {"repeats": True, "repeating": True, "audited": True}, call


def test_no_spills_no_atomics() -> None:
    for record in hopper().values():
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
            assert (record["loads_128"], record["stores_128"]) == expected, record
            if kind in ("mean", "orbit"):
                assert (record["loads"], record["stores"]) == expected, record


def aligned() -> list[str]:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from triton_audit import ALIGNED
    finally:
        sys.path.pop(0)
    return list(ALIGNED)


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
