"""The benchmarks: a real small run, its results file and pictures, the README's figures, the GPU script."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import equikern
import equikern.__main__
import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
README = ROOT / "README.md"
needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("ttach") is None,
    reason='the extra "bench" is not installed',
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(equikern.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real run of three small cases wrote."""
    path = tmp_path_factory.mktemp("bench") / "machine.json"
    which = "cpu and not compile and test_operator and 8x1280x7x7 and float32 and c4 and mean-"
    done = python(
        *("-m", "pytest", "bench/ops", "--benchmark-only", "-q", "-p", "no:cacheprovider"),
        *("-k", which, f"--results={path}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"results: {path}" in done.stdout
    return path


@needs_plots
def test_a_run_measures_checks_and_says_where(results: Path) -> None:
    run = json.loads(results.read_text())
    assert run["settings"]["complete"] is False  # a part of the grid never reaches the README
    assert {"cpu", "torch", "triton", "equikern", "commit", "time"} <= set(run["machine"])
    rows = [row for row in run["kernels"] if row["device"] == "cpu"]
    assert {row["direction"] for row in rows} == {"forward", "backward"}
    assert {row["state"] for row in rows} >= {"cold"}
    for row in rows:
        assert set(row["seconds"]) == {"equikern", "eager", "ttach"}
        assert set(row["over_equikern"]) == {"eager", "ttach"}
        assert max(row["relative_error"].values()) <= 1e-5
        times, copy = row["seconds"]["equikern"], row["copy_seconds"]["equikern"]
        assert 0 < times["p20"] <= times["median"] <= times["p80"]
        assert row["percent_of_copy"] == pytest.approx(100 * copy["median"] / times["median"])
        assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / times["median"] / 1e9)
        assert row["bytes"] == 5 * 8 * 1280 * 7 * 7 * 4


@needs_plots
def test_pictures(results: Path) -> None:
    pictures = load("plots").draw(results)
    assert {p.name.partition("-cpu-")[2] for p in pictures} >= {"copy.png", "providers.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_peak_memory_counts_what_torch_allocates() -> None:
    code = """
import sys
sys.path.insert(0, "bench/ops")
import torch
from memory import peak
x = torch.zeros(1000, 1000)
out = torch.empty_like(x)
print(peak(lambda: torch.add(x, 1, out=out), "cpu"), peak(lambda: x + 1, "cpu"), peak(lambda: (x + 1) + 1, "cpu"))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    none, one, two = map(int, done.stdout.splitlines()[-1].split())
    assert none < 1000
    assert 4_000_000 <= one < 4_001_000
    assert 8_000_000 <= two < 8_001_000


def test_the_readme_and_the_results_agree() -> None:
    text = README.read_text()
    assert load("readme").rendered(text, BENCH / "results") == text


@needs_plots
def test_the_newest_complete_results_reach_the_readme(results: Path, tmp_path: Path) -> None:
    readme = load("readme")
    run: dict[str, Any] = json.loads(results.read_text())
    assert "CPU: no results yet" in readme.section(tmp_path)
    for name, complete, time in (("a", True, "2001"), ("b", True, "2003"), ("c", True, "2002"), ("d", False, "2004")):
        run["settings"]["complete"] = complete
        run["machine"] |= {"time": time, "cpu": f"machine {name}"}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    section = readme.section(tmp_path)
    assert "CPU: machine b" in section
    assert "| mean | forward |" in section
    target = tmp_path / "README.md"
    shutil.copy(README, target)
    assert readme.update(target, tmp_path) == 0
    assert section in target.read_text()
    assert readme.rendered(target.read_text(), tmp_path) == target.read_text()


def test_a_readme_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = load("readme")
    target = tmp_path / "README.md"
    target.write_text("mine")
    assert readme.update(target, tmp_path) == 2
    assert "expected the markers" in capsys.readouterr().err
    assert target.read_text() == "mine"


@needs_plots
def test_results_of_the_same_commit_are_not_overwritten(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'bench/ops'); import machine; print(machine.slug(machine.name(), 'quick'))"
    path = tmp_path / python("-c", code).stdout.strip()
    path.write_text("precious")
    done = python("-m", "equikern", "bench", "--quick", "--output", str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert f"{path} exists; choose another folder" in done.stderr
    assert path.read_text() == "precious"


def test_without_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("equikern.__main__.__file__", str(tmp_path / "equikern" / "__main__.py"))
    with pytest.raises(SystemExit, match="in a checkout"):
        equikern.__main__.main(["bench"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_gpu_script_says_its_steps() -> None:
    script = str(BENCH / "gpu.sh")
    done = subprocess.run(["bash", script, "--dry-run"], capture_output=True, text=True, timeout=60)
    steps = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert steps == ["build", "info", "test", "memcheck", "racecheck", "initcheck", "bench"]
    assert done.returncode == 0
    assert subprocess.run(["bash", script, "--other"], capture_output=True, timeout=60).returncode == 2
