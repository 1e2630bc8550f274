"""bench/papers/fashion on a small set of patterns in Fashion-MNIST's files: a run, one that goes on, the figures."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.papers import figures
from bench.papers.fashion import command, data, network, report
from helpers import patterns
from helpers.repository import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

FOLDER = ROOT / "bench" / "papers" / "fashion"
SETTINGS = {"steps": 40, "lambda_steps": 30, "tune_steps": 5, "test_images": 100}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, rng = tmp_path / "patterns", np.random.default_rng(0)
    folder.mkdir()
    patterns.write(folder, rng, {"train": 600, "t10k": 400})
    monkeypatch.setattr(data, "FOLDER", folder)
    return folder


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(report)
    assert result.attempted > 0
    assert result.failed == 0


def test_images_and_labels_are_the_files(files: Path) -> None:
    x, labels = data.images_and_labels("t10k", 7)
    assert x.shape == (7, 1, 28, 28)
    pixels = np.frombuffer(gzip.decompress((files / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert torch.equal((255 * (0.3530 * x + 0.2860)).round().byte().flatten(), torch.tensor(pixels[: 7 * 28 * 28]))
    assert labels.dtype == torch.int64
    assert len(data.images_and_labels("train")[1]) == 600


def test_turned_turns_every_image_by_itself() -> None:
    x = torch.randn(50, 1, 6, 6)
    found = network.turned(x, torch.Generator().manual_seed(0))
    pairs = zip(found, x, strict=True)
    turns = [next(k for k in range(4) if torch.equal(image, was.rot90(k, (-2, -1)))) for image, was in pairs]
    assert set(turns) == {0, 1, 2, 3}


def test_batches_go_through_every_image_before_any_comes_again() -> None:
    x, generator = torch.arange(10), torch.Generator().manual_seed(0)
    some = list(data.batches((x, -x), 4, 5, generator))
    assert all(torch.equal(images, -labels) for images, labels in some)
    drawn = [set(images.tolist()) for images, _ in some]
    assert drawn[0] | drawn[1] == drawn[2] | drawn[3] == set(range(10))


def test_a_run_and_one_that_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", SETTINGS)
    threads = torch.get_num_threads()
    call = ["--quick", f"--threads={threads}"]
    assert command.run([*call, "--seeds=2", f"--output={tmp_path / 'a'}"]) == 0
    found = json.loads((tmp_path / "a/quick.json").read_text())
    check(found, seeds=2)
    assert "tuned, λ frozen" in capsys.readouterr().out
    assert (tmp_path / "a/quick.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a/quick.partial.json").exists()
    for run in found["runs"]:  # upright is what it has learnt; turned images it has not
        assert run["accuracy"]["plain, upright"] > 0.9 > 0.5 > run["accuracy"]["plain"]
        assert sum(run["trust"]) == pytest.approx(1, abs=1e-5)

    (tmp_path / "b").mkdir()
    kept = {"settings": SETTINGS, "runs": [{**found["runs"][0], "kept": True}]}
    (tmp_path / "b/quick.partial.json").write_text(json.dumps(kept))
    assert command.run([*call, "--seeds=2", f"--output={tmp_path / 'b'}"]) == 0
    again = json.loads((tmp_path / "b/quick.json").read_text())
    assert again["runs"][0].pop("kept")
    assert again["runs"] == found["runs"]


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    assert command.run(["--quick", f"--output={tmp_path}", f"--threads={torch.get_num_threads()}"]) == 2
    assert "dataset-fashion-mnist" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, 3])
def test_tables_take_the_steps_seed_by_seed(seeds: int) -> None:
    accuracy = dict.fromkeys(report.SYSTEMS, 0.5)
    found = [{**accuracy, "equizero": 0.5 + 0.1 * seed} for seed in range(seeds)]
    runs = [{"seed": seed, "accuracy": one, "trust": [1, 0, 0, 0]} for seed, one in enumerate(found)]
    by_system, steps, trusted = report.tables({"settings": SETTINGS, "runs": runs})
    assert by_system.rows[3][1] == ("60.0 ± 10.0" if seeds == 3 else "50.0")
    assert steps.rows[1] == ["equitune − equizero", "-10.0 ± 10.0" if seeds == 3 else "+0.0", f"0 of {seeds}"]
    assert steps.rows[3] == ["λ-equitune − equizero", *steps.rows[1][1:]]
    assert trusted.rows == [["mean", "1.00", "0.00", "0.00", "0.00"]]


def check(results: dict[str, Any], seeds: int) -> None:
    """What must hold in any results file."""
    assert [run["seed"] for run in results["runs"]] == list(range(seeds))
    for run in results["runs"]:
        assert list(run["accuracy"]) == list(report.SYSTEMS)
        assert all(0 <= value <= 1 for value in run["accuracy"].values())


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, figures.of(FOLDER, "fashion", report)) == text
    if (path := FOLDER / "results" / "fashion.json").exists():
        results = json.loads(path.read_text())
        check(results, len(results["runs"]))
        assert path.with_suffix(".png").exists()
