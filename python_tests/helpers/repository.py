"""The repository around the tests, and processes that run in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import equikern
from helpers import fresh

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Ours, for a process that finds this equikern; benchmarks are off where pytest thinks itself one of several."""
    path = os.pathsep.join([str(Path(equikern.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**kept, "PYTHONPATH": path}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of Python in the repository's root, with what it printed."""
    return fresh.runs([arguments], environment(), ROOT)[0]


def without_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same without site-packages."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
