"""The benchmarks: a real small run, its results file and pictures, the page's figures."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import equikern
import equikern.__main__
import pytest
import torch
from bench import page
from bench.ops import machine
from helpers.repository import ROOT, environment, python

BENCH = ROOT / "bench"
PAGE = ROOT / "docs" / "benchmarks.md"
needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("ttach") is None,
    reason='the extra "bench" is not installed',
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real run of a few small cases wrote."""
    path = tmp_path_factory.mktemp("bench") / "machine.json"
    which = "cpu and cold and not compile and test_operator and 8x1280x7x7 and float32 and d4 and mean-"
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
    assert run["settings"]["complete"] is False  # a part of the grid never reaches the page
    assert {"cpu", "torch", "triton", "equikern", "commit", "time"} <= set(run["machine"])
    rows = [row for row in run["kernels"] if row["device"] == "cpu"]
    assert {row["direction"] for row in rows} == {"forward", "backward", "both"}
    assert {row["state"] for row in rows} >= {"cold"}
    others = {"eager", "ttach"} | ({"toolbelt"} if importlib.util.find_spec("pytorch_toolbelt") else set())
    for row in rows:
        assert set(row["seconds"]) == {"equikern", *others}
        assert set(row["over_equikern"]) == others
        assert max(row["relative_error"].values()) <= 1e-5
        times, copy = row["seconds"]["equikern"], row["copy_seconds"]["equikern"]
        assert 0 < times["p20"] <= times["median"] <= times["p80"]
        assert row["percent_of_copy"] == pytest.approx(100 * copy["median"] / times["median"])
        assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / times["median"] / 1e9)
        assert row["bytes"] == (18 if row["direction"] == "both" else 9) * 8 * 1280 * 7 * 7 * 4


@needs_plots
def test_pictures(results: Path) -> None:
    from bench import plots

    pictures = plots.draw(results)
    assert {p.name.partition("-cpu-")[2] for p in pictures} >= {"copy.png", "providers.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


@needs_plots
@pytest.mark.parametrize("path", sorted((BENCH / "results").glob("*.json")), ids=lambda path: path.stem)
def test_pictures_of_what_was_measured_before(path: Path, tmp_path: Path) -> None:
    from bench import plots

    drawn = plots.draw(Path(shutil.copy(path, tmp_path)))
    assert {picture.name for picture in drawn} == {picture.name for picture in path.parent.glob(f"{path.stem}-*.png")}


@needs_plots
def test_pictures_of_many_operators(results: Path, tmp_path: Path) -> None:
    from bench import plots

    run: dict[str, Any] = json.loads(results.read_text())
    run["kernels"] = [row | {"operator": f"operator {k}"} for row in run["kernels"] for k in range(20)]
    (tmp_path / "many.json").write_text(json.dumps(run))
    assert len(plots.draw(tmp_path / "many.json")) == 2


@needs_plots
def test_what_is_measured_where(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.ops.cases import all_cases

    cache = 50 << 20
    monkeypatch.setattr(machine, "last_level_cache", lambda device: cache)
    cases = [case for device in ("cpu", "cuda") for case in all_cases(device)]
    large = [c for c in cases if c.bytes > cache]
    assert all(c.state != "cold" or c.buffers * c.bytes >= 2 * cache for c in cases)
    assert {(c.device, c.state) for c in large} == {("cpu", "cold"), ("cuda", "cold")}
    assert {c.state for c in cases if c.device == "cpu"} == {"hot", "cold"}
    graphs = [c for c in cases if c.state == "graph"]
    assert {c.id.split("-")[3] for c in graphs} == {"16x64x56x56", "8x1280x7x7", "64x3x32x32"}
    assert all(c.buffers == 1 for c in cases if c.state != "cold")
    for device in ("cpu", "cuda"):
        mine = [c for c in cases if c.device == device]
        combinations = {(c.name, c.direction, c.dtype_name) for c in mine}
        one_word = "orbit act mean weighted select symmetrize max mean_std variance median log1p".split()
        for operator in (*one_word, "mean plus"):
            for dtype in ("float16", "bfloat16", "float32", "float64"):
                assert (operator, "forward", dtype) in combinations
                assert (operator, "backward", dtype) in combinations
            assert (operator, "both", "float32") in combinations
        assert {("orbit", "forward", "int8"), ("act", "forward", "int8")} <= combinations
        beside = {(c.name, c.direction): set(c.providers) for c in mine if c.dtype == torch.float32}
        assert beside["act", "forward"] >= {"equikern", "eager"}
        assert "compile" not in beside["act", "forward"]  # a loop that reads the elements
        assert beside["median", "forward"] >= {"equikern", "eager", "compile"}
        assert not beside["median", "backward"] & {"eager", "compile"}  # which give a tie's gradient to one view
        assert {"ttach", "toolbelt"} <= {p for c in mine if c.name == "orbit" for p in c.providers}
    quick = {c.id.split("-")[3] for c in cases if c.device == "cuda" and c.quick}
    assert {"256x3x224x224", "512x1280x7x7"} <= quick


@needs_plots
def test_cold_buffers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.ops.cases import Case
    from bench.ops.providers import Compiler, bind
    from bench.ops.timing import Ring, copies_of

    monkeypatch.setattr(machine, "last_level_cache", lambda device: 1 << 20)
    case = Case("mean", "forward", "c4", (2, 3, 32, 32), torch.float32, state="cold")
    assert case.buffers == math.ceil((2 << 20) / (5 * 2 * 3 * 32 * 32 * 4))
    calls = [bind(case, "equikern", Compiler("dynamic"), fresh=k > 0) for k in range(case.buffers)]
    ring, copies = Ring(calls, "cpu"), Ring(copies_of(case), "cpu")
    for turning in (ring, copies):
        where = []
        for _ in range(2 * case.buffers):
            turning()
            where.append(turning.last.data_ptr())
        assert len(set(where)) == case.buffers
        assert where[: case.buffers] == where[case.buffers :]
    sources = [call.args[0].data_ptr() for call in copies.calls]
    assert len(set(sources)) == case.buffers
    assert min(b - a for a, b in pairwise(sources)) >= case.bytes // 2


@needs_plots
def test_every_provider_has_a_column() -> None:
    from bench.ops.cases import Case
    from bench.ops.report import Ledger, kernel_table
    from bench.ops.timing import Times

    ledger = Ledger()
    row = ledger.row(Case("mean", "forward", "d4", (64, 3, 32, 32), torch.float32, "cuda", "graph"))
    for provider, seconds in {
        "equikern": 1e-3,
        "triton": 2e-3,
        "cuda": 3e-3,
        "eager": 4e-3,
        "toolbelt": 0.5e-3,
    }.items():
        row.times[provider] = row.copies[provider] = Times(seconds, seconds, seconds, 1)
    table = kernel_table(ledger, 1)
    head = table[0].split()
    assert [word for word in head if word.endswith("/time")] == "eager/time triton/time cuda/time toolbelt/time".split()
    assert table[2].split()[5] == "graph"
    assert "4.0 " in table[2]
    assert "2.0 " in table[2]
    assert "3.0 " in table[2]
    assert "0.5 ✗" in table[2]


@needs_plots
def test_a_time_limit_says_what_it_left_out(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    done = python(
        *("-m", "pytest", "bench/ops", "--benchmark-only", "-q", "-p", "no:cacheprovider"),
        *("-k", "test_call and mean-c4", "--time-limit=0.001", f"--results={path}"),
    )
    assert "left out: 3 measurements" in done.stdout, done.stdout + done.stderr
    settings = json.loads(path.read_text())["settings"]
    assert settings["complete"] is False
    assert settings["left_out"] == [f"test_call[mean-c4-{mode}]" for mode in ("off", "forward", "forward+backward")]


@needs_plots
def test_a_killed_run_leaves_its_results(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    command = [sys.executable, "-m", "pytest", "bench/ops", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        [*command, "-k", "test_call", f"--results={path}"], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    ) as run:
        for _ in range(1200):
            if path.exists() or run.poll() is not None:
                break
            time.sleep(0.1)
        run.kill()
    results = json.loads(path.read_text())
    assert results["settings"]["complete"] is False
    assert results["settings"]["left_out"]
    assert results["calls"] or results["kernels"]


def test_peak_memory_counts_what_torch_allocates() -> None:
    from bench.ops.memory import peak

    x = torch.zeros(1000, 1000)
    out = torch.empty_like(x)
    none, one, two = (
        peak(call, "cpu") for call in (lambda: torch.add(x, 1, out=out), lambda: x + 1, lambda: (x + 1) + 1)
    )
    assert none < 1000
    assert 4_000_000 <= one < 4_001_000
    assert 8_000_000 <= two < 8_001_000


def test_the_page_and_the_results_agree() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page.figures.rendered(text, page.section(BENCH / "results")) == text


@needs_plots
def test_the_newest_complete_results_reach_the_page(results: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = json.loads(results.read_text())
    assert "CPU: no results yet" in page.section(tmp_path)
    for name, complete, when in (("a", True, "2001"), ("b", True, "2003"), ("c", True, "2002"), ("d", False, "2004")):
        run["settings"]["complete"] = complete
        run["machine"] |= {"time": when, "cpu": f"machine {name}"}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    section = page.section(tmp_path)
    assert "CPU, images: machine b" in section
    assert "| mean | forward | cold |" in section
    target = tmp_path / "page.md"
    shutil.copy(PAGE, target)
    assert page.update(target, tmp_path) == 0
    assert section in target.read_text()
    before = target.read_text()
    assert page.update(target, tmp_path) == 0
    assert target.read_text() == before


def test_a_page_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.md"
    target.write_text("mine")
    assert page.update(target, tmp_path) == 2
    assert "expected the markers" in capsys.readouterr().err
    assert target.read_text() == "mine"


@needs_plots
def test_results_of_the_same_commit_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / machine.slug(machine.name(machine.devices()[0]), "quick")
    path.write_text("precious")
    done = python("-m", "equikern", "bench", "--quick", "--output", str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert f"{path} exists; choose another folder" in done.stderr
    assert path.read_text() == "precious"


def test_without_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("equikern.__main__.__file__", str(tmp_path / "equikern" / "__main__.py"))
    with pytest.raises(SystemExit, match="not of the installed package"):
        equikern.__main__.main(["bench"])
