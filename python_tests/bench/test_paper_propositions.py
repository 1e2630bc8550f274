"""bench/papers/propositions: a short run and what must hold in it, how it goes on, the README's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.repository import ROOT, without_packages

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("transformers")
pytest.importorskip("bench.papers", reason="bench/ is not here")

from bench.papers import figures
from bench.papers.propositions import command, report

FOLDER = ROOT / "bench" / "papers" / "propositions"


def check(results: dict[str, Any]) -> None:
    """What holds however long the flows were trained."""
    quick = results["settings"] == json.loads(json.dumps(command.QUICK))
    for run in results["flow"].values():
        free, signed = run.values()
        for found in (free, signed):
            assert found["equivariance error"] == 0
            assert found["inverse error"] < 1e-8
            assert found["log|det| error"] < 1e-6
            assert found["density's change"] < 1e-9
            assert abs(found["integral"] - 1) < (0.05 if quick else 0.01)
            assert found["samples apart"] < 1.5 * found["samples apart by chance"] + 0.02
            assert sum(found["inputs of an output"]) == pytest.approx(1)
        assert signed["inputs of an output"][0] == 1  # a bijection
        assert signed["data without input"] == 0
        assert free["inputs of an output"][0] < 1
    for run in results["sequences"].values():
        assert max(run["sums"].values()) < 1e-12
        assert run["asymmetry"]["plain"] > 0.1
        assert run["asymmetry"]["EquiLM"] < 1e-6
        assert run["asymmetry"]["EquiZeroLM"] < 1e-6
        assert run["greedy moves along"]
        assert run["samples move along"]
        assert run["samples apart"] < 1.3 * run["samples apart by chance"]
    for row in (*results["ranks"]["several inputs"], *results["ranks"]["product"]):
        assert row["null space"] == row["characterised"] == row["layers"] < row["free"], row["case"]
    for row in results["ranks"]["several inputs"]:
        if " and " not in row["case"] and row["wrapper"] is not None:
            assert row["wrapper"] == row["null space"], row["case"]
    for row in results["ranks"]["product"]:
        assert row["wrapper"] == row["through invariants"] <= row["null space"], row["case"]


def test_a_short_run_that_goes_on_and_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["--quick", f"--output={tmp_path}"]) == 0
    results = json.loads((tmp_path / "quick.json").read_text())
    check(results)
    assert (tmp_path / "quick.png").stat().st_size > 1000
    assert "MultiInputEquiTune" in capsys.readouterr().out
    saved = (tmp_path / "quick.checkpoint.jsonl").read_text()
    assert command.run(["--quick", f"--output={tmp_path}"]) == 0
    assert (tmp_path / "quick.checkpoint.jsonl").read_text() == saved
    again = json.loads((tmp_path / "quick.json").read_text())
    assert {**again, "machine": 0} == {**results, "machine": 0}
    page = figures.rendered(f"a\n{figures.BEGIN}\nold\n{figures.END}\nb\n", report.figures(results, "x.png"))
    assert "old" not in page
    assert page.count("|---|") == 5


def test_the_readme_has_the_results_figures() -> None:
    text, path = (FOLDER / "README.md").read_text(encoding="utf-8"), FOLDER / "results" / "propositions.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    assert figures.rendered(text, report.figures(results, "results/propositions.png")) == text
    if results is not None:
        check(results)
        assert path.with_suffix(".png").exists()


def test_missing_packages_are_named() -> None:
    run = without_packages(str(FOLDER))
    assert run.returncode == 2
    assert "transformers" in run.stderr
