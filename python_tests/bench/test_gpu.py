"""bench/gpu: the one call on a GPU, as far as a CPU can rehearse it."""

from __future__ import annotations

import doctest
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench.gpu import bandwidth, worst
from bench.ops.device import seconds
from helpers.repository import ROOT, environment

SCRIPT = str(ROOT / "bench" / "gpu" / "run.sh")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@needs_bash
def test_a_dry_run_says_the_steps() -> None:
    done = subprocess.run(["bash", SCRIPT, "--dry-run"], capture_output=True, text=True, timeout=60)
    steps = [line.split(": ") for line in done.stdout.splitlines() if not line.startswith("build")]
    names = ["info", "smoke", "tests", "gpu_tests", "memcheck", "racecheck", "bandwidth", "ncu1", "ncu2", "ncu3"]
    assert sorted(name for name, *_ in steps) == sorted(names)  # both sanitizers run at once
    assert [name for name, *_ in steps if "check" not in name] == [name for name in names if "check" not in name]
    assert all(0 < int(rest[0].split()[0]) <= 220 for _, *rest in steps)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["bash", SCRIPT, "--other"], capture_output=True, timeout=60).returncode == 2


def proxied(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"PROXY_DEVICE": "cpu", "PROXY_BACKEND": "reference", "FAILURES": str(tmp_path / "failed"), **variables}
    call = ("-m", "pytest", "-p", "bench.gpu.proxy", "-q", "-p", "no:cacheprovider", *arguments)
    started = environment() | variables  # from the start: what is in PYTHONPATH is a plugin here
    return subprocess.run([sys.executable, *call], env=started, cwd=ROOT, capture_output=True, text=True)


def test_tests_run_through_the_proxy(tmp_path: Path) -> None:
    """All tests of the backend "cpu", no others; memory laid out as it was, and results that come back."""
    done = proxied(tmp_path, "python_tests/ops/test_layouts.py", "-k", "any_layout or empty")
    assert done.returncode == 0, done.stdout
    calls = int(done.stdout.partition("kernel calls through the proxy: ")[2].split()[0])
    assert calls > 300
    assert not (tmp_path / "failed").exists()


def test_a_kernel_that_does_nothing_fails_through_the_proxy(tmp_path: Path) -> None:
    """So that the proxy's tests can fail, and every failure is written at once."""
    (tmp_path / "lazy.py").write_text(
        "import bench.gpu.proxy as proxy\n"
        "class Lazy(type(proxy.equikern.backends._load('reference'))):\n"
        "    def orbit(self, *arguments): pass\n"
        "load = proxy.equikern.backends._load\n"
        "proxy.equikern.backends._load = lambda name: Lazy() if name == proxy.NAME else load(name)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    done = proxied(tmp_path, "-p", "lazy", "python_tests/ops/test_orbit.py", "-k", "every_dtype", PYTHONPATH=path)
    assert done.returncode == 1, done.stdout
    assert "test_orbit_in_every_dtype" in (tmp_path / "failed").read_text()


def test_property_tests_draw_as_many_examples_as_asked_for(tmp_path: Path) -> None:
    """And calls of all processes are counted."""
    call = ("python_tests/ops/test_orbit.py", "-k", "test_orbit_is_torch_bit_for_bit and (c4 or d4)", "-n", "1")
    found = []
    for examples in ("1", "12"):
        done = proxied(tmp_path, *call, PROXY_EXAMPLES=examples, EQUIKERN_THOROUGH="")
        assert done.returncode == 0, done.stdout
        found.append(int(done.stdout.partition("kernel calls through the proxy: ")[2].split()[0]))
    assert found[0] * 4 < found[1] <= found[0] * 12


def test_bfloat16_comes_first_and_every_case_once() -> None:
    cases = bandwidth.cases("cpu")
    assert cases[0].dtype == torch.bfloat16
    assert len({case.id for case in cases}) == len(cases)
    assert {type(case).__name__ for case in cases} == {"Case", "FieldCase", "WordCase"}


def test_a_short_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [case for case in bandwidth.cases("cpu") if case.shape == (8, 1280, 7, 7) and case.name == "mean"]
    monkeypatch.setattr(bandwidth, "cases", lambda device: some[:2])
    rows = bandwidth.run(tmp_path / "found.json", 60.0, "cpu")
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    assert [row["id"] for row in rows] == [case.id for case in some[:2]]
    assert all(row["percent_of_copy"] > 0 and row["relative_error"] < 2e-2 for row in rows)
    assert "2 of 2 cases" in capsys.readouterr().out
    assert len(worst.worst(rows, 1)) == 1


def test_a_wrong_result_is_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [case for case in bandwidth.cases("cpu") if case.shape == (8, 1280, 7, 7) and case.name == "mean"][:1]
    monkeypatch.setattr(bandwidth, "cases", lambda device: some)
    monkeypatch.setattr(bandwidth, "error", lambda got, want: float("nan"))
    (row,) = bandwidth.run(tmp_path / "found.json", 60.0, "cpu")
    assert "relative error nan" in row["failure"]
    assert "FAILED mean" in capsys.readouterr().out


class Clock:
    """In the place of a GPU's event: the time when it is recorded."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False  # it waits behind the sleep

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Clock) -> float:
        return 1e3 * (other.at - self.at)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_seconds_of_a_call(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take turns; on a GPU those that are timed are queued behind a sleep as long as queueing takes."""
    slept: list[int] = []
    turns: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append, raising=False)

    def call(k: int) -> None:
        turns.append(k)
        time.sleep(0.002)

    found = seconds([functools.partial(call, k) for k in (0, 1)], device)
    assert all(0.002 <= t < 0.1 for t in (*found.rounds, found.device, found.host))
    assert turns == [k % 2 for k in range(len(turns))]
    assert len(slept) == (len(found.rounds) if device == "cuda" else 0)
    assert all(cycles > 2e9 * 3 * 0.002 for cycles in slept)


def test_a_device_that_does_not_wait_is_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first call began before the last was queued, launches would be measured."""
    monkeypatch.setattr(Clock, "query", lambda self: True)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None, raising=False)
    with pytest.raises(RuntimeError, match="could not be queued"):
        seconds([lambda: None], "cuda")
    found = seconds([lambda: time.sleep(0.002)], "cuda", may_wait=True)  # somebody else's: by the host's clock
    assert all(0.002 <= t < 0.1 for t in found.rounds)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(worst)
    assert result.attempted > 0
    assert result.failed == 0
