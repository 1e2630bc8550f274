"""The machine code of every kernel is no worse than the tables in bench/results/static say.

After a change that is meant: ``python bench/static_audit.py`` writes the tables anew.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from audits import EXTRA, audit, machine_code

SCRIPT = Path(__file__).parent.parent / "bench" / "static_audit.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="bench/ is not here")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("static_audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(script: ModuleType, fresh: dict[str, Any]) -> None:
    found, unknown = script.check(fresh)
    assert not found, "\n".join([*found, script.UPDATE])
    if unknown:
        pytest.skip("; ".join(unknown))


@needs_triton
def test_triton_kernels(script: ModuleType) -> None:
    compare(script, script.triton_tables(machine_code()))


@pytest.mark.parametrize("path", EXTRA)
def test_triton_kernels_of_other_releases(script: ModuleType, path: str) -> None:
    code = "import triton; print(triton.__version__)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    version = done.stdout.strip()
    assert version, done.stderr
    records = audit("--targets", "sm_90", triton=path)
    compare(script, {t: {f"triton {version}": v} for t, v in script.by_target(records).items()})


def test_cuda_kernels(script: ModuleType) -> None:
    found = script.cuda_tables()
    if isinstance(found, str):
        pytest.skip(found)
    assert found
    compare(script, found)


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
    assert script.regressions({}, {"k": RECORD}) == ["k: not in the table"]


def test_tables_are_whole(script: ModuleType) -> None:
    """Every target has a table by each compiler, with the same kernels, and its page tells them all."""
    for target in script.TARGETS:
        tables = script.read(target)
        assert any(compiler.startswith("triton") for compiler in tables), target
        page = (script.RESULTS / f"{target}.md").read_text()
        for table in tables.values():
            assert all(f"| {name} |" in page for name in table)
            assert json.dumps(table).count("error") == 0
