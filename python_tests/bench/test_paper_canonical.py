"""The SO(2)-invariant regression of bench/papers/canonical: a short run of it, and the figures in its README."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.repository import ROOT, python

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

FOLDER = ROOT / "bench/papers/canonical"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "__main__.py"), run_name="canonical")


def test_a_short_run(tmp_path: Path) -> None:
    options = "--seeds 2 --epochs 2 --samples 200 --batch 20 --theta 2 3 --threads 1".split()
    done = python(str(FOLDER), *options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "canonical.json").read_text())
    behind = ["canonical, {}", "canonical-λ, {}, |Θ| = 2", "canonical-λ, {}, |Θ| = 3"]
    assert list(record["systems"]) == ["plain", *(name.format(frame) for frame in ("first", "sum") for name in behind)]
    assert not (tmp_path / "canonical.partial.json").exists()
    assert record["settings"]["seeds"] == [0, 1]
    for name, runs in record["systems"].items():
        assert [run["seed"] for run in runs] == [0, 1]
        for run in runs:
            assert len(run["test error by epoch"]) == 2
            assert (run["change under a turn"] < 1e-4) == (name != "plain")
    assert (tmp_path / "canonical.png").stat().st_size > 1000


def test_training_helps_and_repeats(program: dict[str, Any]) -> None:
    options = program["parsed"](["--samples", "300", "--batch", "30", "--epochs", "8"])
    for name in ("plain", "canonical, first", "canonical-λ, sum, |Θ| = 3"):
        run = program["train"](name, 0, options, lambda: None)
        assert run["test error by epoch"][-1] < 0.8 * run["test error by epoch"][0]
        assert program["train"](name, 0, options, lambda: None) == run


def test_the_networks_have_the_papers_parameters(program: dict[str, Any]) -> None:
    counts = {name: sum(p.numel() for p in program["system"](name).parameters()) for name in program["names"]([4])}
    assert counts["plain"] == counts["canonical, sum"] == 162_001
    assert counts["canonical-λ, first, |Θ| = 4"] == 161_990


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, program: dict[str, Any]) -> None:
    options = ["--epochs=1", "--samples=60", "--batch=30", "--theta=2", f"--threads={torch.get_num_threads()}"]
    program["main"]([*options, "--seeds=1", f"--output={tmp_path}"])
    whole = json.loads((tmp_path / "canonical.json").read_text())
    settings = {key: value for key, value in whole["settings"].items() if key != "seeds"}
    kept = {**whole["systems"]["plain"][0], "kept": True}
    (tmp_path / "canonical.partial.json").write_text(json.dumps({"settings": settings, "runs": [kept]}))
    program["main"]([*options, "--seeds=1", f"--output={tmp_path}"])
    again = json.loads((tmp_path / "canonical.json").read_text())
    assert again["systems"]["plain"][0].pop("kept")
    assert again["systems"] == whole["systems"]


def test_the_function_is_the_papers(program: dict[str, Any]) -> None:
    x, y = program["data"](5, torch.Generator().manual_seed(0))
    for (a, b), value in zip(x.double(), y, strict=True):
        expected = a.norm().sin() - b.norm() ** 3 / 2 + a.dot(b) / (a.norm() * b.norm())
        torch.testing.assert_close(value[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_readme_has_the_results_figures(program: dict[str, Any]) -> None:
    record = json.loads((FOLDER / "results/canonical.json").read_text())
    text = (FOLDER / "README.md").read_text()
    assert program["with_figures"](text, record) == text
