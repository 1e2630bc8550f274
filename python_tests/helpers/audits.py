"""What the audit scripts beside this file print, each in a process of its own: one Triton a process, no interpreter."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def audit(*options: str, triton: str | None = None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = script("triton_audit", "--json", *options, triton=triton)
    assert records
    return records


@functools.cache
def machine_code() -> list[dict[str, Any]]:
    """Every case for every target, compiled once for all tests."""
    return audit("--targets", *TARGETS)


def interpreted(tests: str) -> None:
    """A file's tests in Triton's interpreter, which is chosen when Triton is imported: so in a process of their own."""
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
