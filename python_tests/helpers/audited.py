"""When the audits run: the tests that see the kernels for GPUs alone, and take minutes.

They compile them for every target, read their machine code, or run them on the CPU, in Triton's interpreter or CUDA's
threads one after the other.

``.ci/run`` sets ``EQUIKERN_AUDITS=1`` and runs them all. Elsewhere an audit runs when something that it reads changed
since it passed here or, if it never ran here, since the first run of any test in a clone that nobody has changed: what
is cloned has passed ``.ci/run``, with the versions of torch and Triton in constraints.txt. With others it runs.
Pytest's cache keeps for every audit the digest of what it passed with, so a partial run counts for what it ran.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import equikern
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "csrc/*.h",
    "csrc/cuda/*",
    "equikern/backends/**/*.py",
    "equikern/actions/*.py",
    "equikern/core/*.py",
    "equikern/views/*.py",
    "equikern/groups.py",
    "equikern/reductions.py",
    "python_tests/conftest.py",
    "python_tests/backends/**/*.py",
    "python_tests/helpers/*",
    "python_tests/helpers/sass/*",
    "bench/static_audit.py",
    "bench/results/static/*.json",
)
KEY = "equikern/audits"
THOROUGH = os.environ.get("EQUIKERN_AUDITS") == "1"  # where tests that draw or count take all, and elsewhere a part
FIRST = ""  # in the place of an audit's name: the digest of the clone


@functools.cache
def digest() -> str:
    """Of the kernels, of what compiles, launches or interprets them, and of what judges them."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    for package in ("triton", "torch", "numpy"):
        try:
            found.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            found.update(f"no {package}".encode())
    info = equikern.build_info()
    found.update(f"{info.cuda} {info.nvcc} {info.cuda_archs} {sys.version}".encode())
    return found.hexdigest()


@functools.cache
def is_as_cloned() -> bool:
    """Whether all that audits read is as it was committed; without git that is not known."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", *(f":(glob){pattern}" for pattern in SOURCES)]
    try:
        return not subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False


def is_pinned() -> bool:
    """Whether torch and Triton are of the versions that ``.ci/run`` installs."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    try:
        return all(f"{name}=={version(name).partition('+')[0]}" in pinned for name in ("torch", "triton"))
    except PackageNotFoundError:
        return False


def passed(config: pytest.Config) -> dict[str, str]:
    """What each audit last passed with; empty on a fresh clone and without pytest's cache."""
    cache = getattr(config, "cache", None)
    return dict(cache.get(KEY, {})) if cache else {}


def skip_needless(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as skipped the audits that nothing can have changed."""
    if THOROUGH:
        return
    known = passed(config)
    first = known.get(FIRST, digest() if is_as_cloned() and is_pinned() else "no clone as it was tested")
    for item in items:
        if item.get_closest_marker("audit") and known.get(item.nodeid, first) == digest():
            since = "it passed" if item.nodeid in known else "it was cloned"
            reason = f"an audit, and nothing that it reads changed since {since}; EQUIKERN_AUDITS=1 runs it"
            # Minutes of compilers that would repeat what they said of the same sources; ``.ci/run`` skips none.
            item.add_marker(pytest.mark.skip(reason=reason))


class Recorder:
    """Notes what passes and fails, in the process that hears of every test."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "audit" in report.keywords and (report.failed or (report.when == "call" and report.passed)):
            self.found[report.nodeid] = digest() if report.passed else "failed"

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self.config, "cache", None)
        if cache:
            first = {FIRST: digest()} if is_as_cloned() and is_pinned() else {}
            cache.set(KEY, {**first, **passed(self.config), **self.found})
