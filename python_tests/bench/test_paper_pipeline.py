"""bench/papers/pipeline: the clock, the shares and verdicts, a short run, the README's figures."""

from __future__ import annotations

import copy
import doctest
import itertools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.papers import figures
from bench.papers.pipeline import clock, command, report
from equikern import EquiTune, grid
from helpers.repository import ROOT, python
from torch import nn

FOLDER = ROOT / "bench" / "papers" / "pipeline"
NAMES = ("equitune", "equizero", "λ-equitune")


@pytest.mark.parametrize("module", [clock, report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_clock_counts_every_forward_of_the_backbone_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EquiTune(backbone, "c4", "trivial", views_per_forward=2)
    clocks = {"a": clock.Clock(model.backbone, "cpu")}
    ticks = itertools.count()
    monkeypatch.setattr(clock, "now", lambda _: float(next(ticks)))  # a second passes between two looks at the clock
    model(torch.zeros(1, 1, 4, 4))  # counts for no round
    advanced: list[int] = []
    for shift in range(2):
        times = clock.one_round({"a": model}, clocks, torch.zeros(1, 1, 4, 4), "cpu", shift, lambda: advanced.append(1))
        assert times == {"a": {"total": 5.0, "backbone": 2.0}}  # two forwards of two views
    assert advanced == [1, 1]


def test_check_refuses_what_is_not_equivariant() -> None:
    conv, x, action = nn.Conv2d(3, 3, 3, padding=1), torch.randn(1, 3, 8, 8), grid("c4")
    clock.check(EquiTune(conv, action, action), x, True, action)
    with pytest.raises(AssertionError, match="equivariance error"):
        clock.check(conv, x, True, action)


def results(extra: float, ratio: float) -> dict[str, Any]:
    """Three rounds in which the wrappers take extra of the backbone's second, λ-equitune ratio of equitune's time."""
    rounds = {name: [{"total": 1 + extra, "backbone": 1.0}] * 3 for name in NAMES}
    rounds["λ-equitune"] = [{"total": ratio * (1 + extra), "backbone": ratio}] * 3
    operators = {name: [0.001, 0.002, 0.001] for name in ("orbit of the images", *report.MERGES.values())}
    settings = {"batch": 32, "size": 224, "rounds": 3, "device": "cpu", "complete": True, "views_per_forward": 2}
    settings["pages_kept"] = True
    machine = {
        "cpu": "a CPU",
        "threads": 2,
        "load_at_start": 0.0,
        "torch": "2",
        "backends": {"cpu": "cpu"},
        "commit": "abc",
        "time": "2026-01-01",
    }
    return {
        "settings": settings,
        "machine": machine,
        "groups": {"c4": {"wrappers": rounds, "operators": operators}},
    }


@pytest.mark.parametrize(("extra", "ratio"), [(0.019, 1.09), (0.021, 1.09), (0.019, 1.11)])
def test_goals_are_marked_where_they_are_missed(extra: float, ratio: float) -> None:
    wrappers, operators = report.tables(results(extra, ratio))
    assert [("✗" in row[3]) for row in wrappers.rows[:2]] == [extra > 0.02] * 2
    assert ("✗" in wrappers.rows[2][4]) == (ratio > 1.1)
    assert wrappers.rows[0][1:4] == ["1000 (1000–1000)", "0.20", wrappers.rows[0][3]]
    assert wrappers.rows[0][4] == ""
    assert operators.rows[0] == ["c4, orbit of the images", "1.00 (1.00–2.00)", "0.10"]


def test_figures_are_those_of_the_newest_complete_results(tmp_path: Path) -> None:
    assert report.figures(tmp_path) == "No results yet."
    for number, (day, complete) in enumerate((("2026-01-01", True), ("2026-01-02", True), ("2026-01-03", False))):
        one = copy.deepcopy(results(0.01, 1.0))
        one["machine"] |= {"time": day, "commit": f"commit{number}"}
        one["settings"]["complete"] = complete
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    assert "commit1" in report.figures(tmp_path)
    assert "commit0" not in report.figures(tmp_path)
    assert "commit2" not in report.figures(tmp_path)


@pytest.mark.skipif(
    any(find_spec(module) is None for module in command.PACKAGES), reason='the extra "demo" is not installed'
)
def test_a_short_run(tmp_path: Path) -> None:
    call = "bench/papers/pipeline", "--quick", "--device=cpu", "--threads=1", f"--output={tmp_path}"
    run = python(*call)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*-quick.json")
    found = json.loads(path.read_text())
    assert found["settings"]["rounds"] == 2
    assert not found["settings"]["complete"]
    assert list(found["groups"]["c4"]["wrappers"]) == command.QUICK["groups"]["c4"] == list(report.MERGES)
    for rounds in found["groups"]["c4"]["wrappers"].values():
        assert len(rounds) == 2
        assert all(0 < one["backbone"] < one["total"] for one in rounds)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["groups"]["c4"]["operators"].values())
    assert "c4, λ-equitune" in run.stdout
    refused = python(*call)
    assert refused.returncode == 2
    assert "exists" in refused.stderr


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, report.figures(FOLDER / "results")) == text
