"""What the audit scripts beside this file print, each in a process of its own: one Triton a process, no interpreter."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import fresh
from helpers.repository import ROOT

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Directories with further Triton releases, separated as in PATH.
EXTRA = [path for path in os.environ.get("EQUIKERN_EXTRA_TRITONS", "").split(os.pathsep) if path]


def script(name: str, *options: str, triton: str | None = None) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [triton, *map(str, Path(__file__).parents[1:3]), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-W", "ignore", "-m", f"helpers.{name}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def scope(triton: str | None) -> str:
    """Which cases the tests compile, of ``compiling.SCOPES``; ``bench/static_audit.py`` compiles all."""
    return "kernels" if triton else "main"


def family(name: str, triton: str | None) -> list[dict[str, Any]]:
    """The records of a script of ``compiling.report``."""
    records: list[dict[str, Any]] = script(name, scope(triton), *TARGETS, triton=triton)
    return records


def audit(triton: str | None = None) -> list[dict[str, Any]]:
    options = "--json", "--cases", scope(triton), "--targets", *TARGETS
    records: list[dict[str, Any]] = script("triton_audit", *options, triton=triton)
    assert records
    return records


@functools.cache
def machine_code() -> list[dict[str, Any]]:
    """The cases that tests compile, compiled once for all of them."""
    return audit()


@functools.cache
def static_audit() -> ModuleType:
    """``bench/static_audit.py``; its tests are skipped where there is none."""
    path = ROOT / "bench" / "static_audit.py"
    if not path.exists():
        pytest.skip("bench/ is not here")
    spec = importlib.util.spec_from_file_location("static_audit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(fresh_tables: dict[str, Any], whole: bool = True) -> None:
    """Fail where a kernel is worse than the written tables say, skip where they do not know the compiler."""
    found, unknown = static_audit().check(fresh_tables, whole)
    assert not found, "\n".join([*found, static_audit().UPDATE])
    if unknown:
        pytest.skip("; ".join(unknown))


def interpreted(tests: str) -> None:
    """A file's tests in Triton's interpreter, which is chosen when Triton is imported: so in a process of their own."""
    done = fresh.run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
