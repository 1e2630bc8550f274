"""bench/papers/cost on a small network: both ways' results and gradients, memory, a run, the README's figures."""

from __future__ import annotations

import copy
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.papers import figures
from bench.papers.cost import command, measure, networks, report, systems
from bench.papers.cost.names import (
    INFERENCE,
    LAMBDA,
    ONE_BATCH,
    ONE_BY_ONE,
    ONE_EACH,
    STEPS,
    TOGETHER,
    TRAINING,
    TUNED,
    WAYS,
)
from equikern import grid
from helpers.repository import ROOT
from torch import Tensor, nn

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

FOLDER = ROOT / "bench" / "papers" / "cost"


def small() -> networks.Network:
    features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())
    return networks.Network(features, nn.Linear(256, 7), 256)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "small", small)
    monkeypatch.setattr(measure, "SIZE", 32)


@pytest.mark.parametrize("module", [figures, report, systems], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("group", ["c4", "d4"])
def test_the_eager_views_are_the_group(group: str) -> None:
    x, action = torch.arange(9.0).view(1, 1, 3, 3), grid(group)
    expected = [action.act(g, x) for g in range(action.order)]
    found = list(systems.turned(x, group))
    assert len(found) == action.order
    assert all(any(torch.equal(a, b) for b in found) for a in expected)


def test_results_and_memory_of_every_way() -> None:
    for group in ("c4", "d4"):
        case = measure.Case("small", group, 2, "cpu")
        assert [(job.step, job.system) for job in case.jobs] == [
            (s, name) for s, names in STEPS.items() for name in names
        ]
        found = {(job.step, job.system): case.checked(job, lambda: None) for job in case.jobs}
        for ways in found.values():
            assert list(ways) == list(WAYS)
            assert all(one["error"] < 1e-5 and one["bytes"] > 0 for one in ways.values())
        order = grid(group).order
        for place, ways in found.items():
            held = {way: one["bytes"] for way, one in ways.items()}
            if place[0] == INFERENCE or place[1] == LAMBDA:  # without activations to keep, a view at a time is a view's
                assert held[ONE_EACH] < 1.5 * held[TOGETHER] / order, (group, place, held)
                assert held[ONE_BY_ONE] < 1.5 * held[ONE_BATCH] / order, (group, place, held)


def test_gradients_are_of_what_is_trained() -> None:
    case = measure.Case("small", "c4", 2, "cpu")
    by_name = {(job.step, job.system): job for job in case.jobs}
    for job in case.jobs:
        count = 0 if job.trains is None else len(list(job.trains.parameters()))
        assert all(len(case.call(job, way)) == 1 + count for way in WAYS)
    network, weight_net = by_name[TRAINING, LAMBDA].modules
    assert by_name[TRAINING, LAMBDA].trains is weight_net
    assert by_name[TRAINING, TUNED].trains is by_name[TRAINING, "equizero"].trains is network
    with torch.no_grad():  # λ's frozen features stay, its own ones follow
        next(network.parameters()).mul_(-1)
    frozen, own = by_name[TRAINING, TUNED], by_name[INFERENCE, "λ-equitune"]
    assert systems.difference(case.call(frozen, TOGETHER), case.call(frozen, ONE_BY_ONE)) < 1e-5
    assert systems.difference(case.call(own, TOGETHER), case.call(own, ONE_BY_ONE)) > 1e-5


def test_copies_count() -> None:
    case = measure.Case("small", "c4", 1, "cpu")
    network, weight_net = (4 * sum(p.numel() for p in module.parameters()) for module in case.jobs[0].modules)
    held = {(job.step, job.system): [systems.parameters(job, way) for way in WAYS] for job in case.jobs}
    assert held[INFERENCE, "equizero"] == [network] * 4
    assert held[INFERENCE, "λ-equitune"] == [2 * network + weight_net] * 2 + [network + weight_net] * 2
    assert held[TRAINING, LAMBDA] == held[INFERENCE, "λ-equitune"]
    assert held[TRAINING, TUNED] == [2 * network + weight_net] * 4


def test_other_results_are_refused() -> None:
    case = measure.Case("small", "c4", 2, "cpu")
    job = case.jobs[0]

    def wrong(x: Tensor) -> Tensor:
        return 1.01 * job.ways[TOGETHER](x)

    with pytest.raises(AssertionError, match="view by view: relative error"):
        case.checked(job._replace(ways={**job.ways, ONE_EACH: wrong}), lambda: None)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"cases": [("small", "c4", 2)], "rounds": 2, "seconds": 60}
    monkeypatch.setattr(command, "QUICK", settings)
    monkeypatch.setattr(command, "PACKAGES", ("matplotlib", "rich"))
    call = ["--quick", "--device=cpu", f"--threads={torch.get_num_threads()}", f"--output={tmp_path}"]
    assert command.run(call) == 0
    (path,) = tmp_path.glob("*-quick.json")
    found = json.loads(path.read_text())
    assert list(found["cases"]) == ["small, C4, 2 images"]
    for case in found["cases"].values():
        for step, names in STEPS.items():
            assert list(case[step]) == list(names)
            for ways in case[step].values():
                assert all(len(ways[way]["seconds"]) == 2 and min(ways[way]["seconds"]) > 0 for way in WAYS)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "small, C4, 2 images" in capsys.readouterr().out
    assert command.run(call) == 2
    assert "exists" in capsys.readouterr().err


def results(device: str, factor: float) -> dict[str, Any]:
    """Two rounds in which λ-equitune takes factor of equitune."""
    one = {"seconds": [1.0, 3.0], "bytes": 9_000_000, "parameters": 1_000_000, "error": 0.0}
    more = {"seconds": [factor, 3 * factor], "bytes": 18_000_000, "parameters": 2_000_000, "error": 0.0}
    case = {
        step: {name: dict.fromkeys(WAYS, more if "λ" in name else one) for name in names}
        for step, names in STEPS.items()
    }
    machine = {"cpu": "a CPU", "threads": 2, "load_at_start": 0.0, "load_at_end": 1.0, "torch": "2", "commit": "abc"}
    machine |= {"time": "2026-01-01", "backends": {device: device}} | ({"gpu": "a GPU"} if device == "cuda" else {})
    settings = {"device": device, "complete": True, "rounds": 2, "pages_kept": True}
    return {"settings": settings, "machine": machine, "took": 9, "cases": {"small, C4, 1 image": case}}


def test_the_gpu_column_is_empty_until_it_is_measured(tmp_path: Path) -> None:
    assert report.figures(tmp_path) == "No results yet."
    (tmp_path / "cpu.json").write_text(json.dumps(results("cpu", 1.5)))
    table, ratios = report.tables(results("cpu", 1.5))
    assert table.rows[0] == [f"{INFERENCE}, equitune", *["2.00 (1.00–3.00) s, 10 MB"] * 4, "–"]
    assert ratios.rows[0] == ["RN50, paper", "1.66", "1.06", "", ""]
    assert ratios.rows[2][1:] == ["1.50", "2.00", "–", "–"]
    alone = report.figures(tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps(results("cuda", 1.25)))
    both = report.figures(tmp_path)
    assert "a GPU" in both
    assert "a GPU" not in alone
    table, ratios = report.tables(results("cpu", 1.5), results("cuda", 1.25))
    assert table.rows[0][-1] == "2.00 (1.00–3.00) s, 10 MB"
    assert ratios.rows[2][1:] == ["1.50", "2.00", "1.25", "2.00"]
    quick = copy.deepcopy(results("cuda", 1.0))
    quick["settings"]["complete"] = False
    (tmp_path / "quick.json").write_text(json.dumps(quick))
    assert report.figures(tmp_path) == both


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, report.figures(FOLDER / "results")) == text
