"""bench/papers/multi_image: a short run, the sets, the networks' symmetry, the figures in its README."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from equikern import grid
from helpers.repository import ROOT, python
from torch import Tensor

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("bench.papers", reason="bench/ is not here")

from bench.papers import figures
from bench.papers.multi_image import cost, report, train

FOLDER = ROOT / "bench/papers/multi_image"
DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="Fashion-MNIST is not installed")


@needs_data
def test_a_short_run_and_its_figures(tmp_path: Path) -> None:
    done = python(str(FOLDER / "run.py"), "--quick", "--work", str(tmp_path), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "quick.json").read_text())
    runs = {run["job"]["system"]: run for run in results["runs"]}
    assert list(runs) == list(train.SYSTEMS)
    for system, run in runs.items():
        assert 0 < run["accuracy"] < 1
        assert 0 < run["upright accuracy"] < 1
        assert run["job"]["images"] == 2
        assert (run["change under rotations"] < 1e-5) == system.startswith("multi-group")
        like = "plain CNN, fusion" if "fusion" in system or "IS layers" in system else "plain CNN"
        assert run["parameters"] == runs["DeepSets" if "DeepSets" in system else like]["parameters"]
        if system.startswith("multi-group"):
            assert abs(run["accuracy"] - run["upright accuracy"]) < 0.05  # but for rounding the same
    assert [record["forwards"] for record in results["costs"]] == [
        {"whole product": m * n, "sum": m + n} for m, n in cost.QUICK
    ]
    kept = tmp_path / "quick" / "plain-CNN-2-images-seed1.json"
    before = kept.read_text()
    train.run(train.job("plain CNN", 1, 2, quick=True), kept.parent, lambda step: pytest.fail("again"))
    assert kept.read_text() == before
    assert all(record["seconds"]["sum"] > 0 and record["bytes"]["sum"] > 0 for record in results["costs"])
    assert (tmp_path / "quick.png").stat().st_size > 1000
    old = "a\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nb\n"
    page = figures.rendered(old, report.shown(results))
    assert page.startswith("a\n")
    assert page.endswith("b\n")
    assert "old" not in page
    assert f"| {runs['plain CNN']['accuracy']:.3f} |" in page


@needs_data
def test_sets_are_of_one_class_and_rotated_apart() -> None:
    sets = train.Sets("train", 300, 3)
    images, labels = sets.draw(40, torch.Generator().manual_seed(0))
    again, _ = sets.draw(40, torch.Generator().manual_seed(0))
    turns: set[tuple[int, ...]] = set()
    for k, label in enumerate(labels.tolist()):
        found = []
        for image in images:
            upright = torch.stack([image[k].rot90(-turn, (-2, -1)) for turn in range(4)])
            same = (sets.pixels[sets.by_class[label]].unsqueeze(1) == upright).flatten(2).all(2).any(0)
            assert bool(same.any())
            found.append(int(same.int().argmax()))
        turns.add(tuple(found))
    assert len(turns) > 20
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    still, same_labels = sets.draw(40, torch.Generator().manual_seed(0), turned=False)
    assert torch.equal(same_labels, labels)
    known = {image.numpy().tobytes() for image in sets.pixels}
    assert all(image.numpy().tobytes() in known for part in still for image in part)


def test_networks() -> None:
    """C4³ for those of the group; with fusion the images meet in the layers."""
    torch.manual_seed(0)
    images = [torch.randn(2, 1, 28, 28) for _ in range(3)]

    def features(model: Any, given: list[Tensor]) -> tuple[Tensor, ...]:
        return model.trunk(*given)  # type: ignore[no-any-return]

    for system, (network, _) in train.SYSTEMS.items():
        group, deep = system.startswith("multi-group"), system.startswith("DeepSets")
        model = network(3)
        moved = train.change(model, images)
        assert (moved < 1e-5) == group, system
        turned = [images[2], images[0], images[1]]
        torch.testing.assert_close(model(*turned), model(*images), atol=1e-5, rtol=1e-5)  # a set has no order
        if deep:
            one, two = (model.layers[0](torch.stack(given)) for given in (images, turned))
            torch.testing.assert_close(two, one[[2, 0, 1]])
            continue
        others = [images[0], *(torch.randn(2, 1, 28, 28) for _ in range(2))]
        alone = torch.equal(features(model, images)[0], features(model, others)[0])
        assert alone != ("fusion" in system or "IS layers" in system)
        turned = [images[0], grid("c4").act(1, images[1]), images[2]]
        if group:
            torch.testing.assert_close(features(model, turned)[0], features(model, images)[0], atol=1e-5, rtol=1e-5)


def test_products_cost_their_sum() -> None:
    """Doubling one factor adds its forwards; the whole product doubles."""
    small, large = cost.measure([(4, 8), (8, 8)], 1)
    assert large["forwards"]["whole product"] == 2 * small["forwards"]["whole product"]
    assert large["forwards"]["sum"] == small["forwards"]["sum"] + 4
    assert large["bytes"]["whole product"] > 1.8 * small["bytes"]["whole product"]
    assert large["bytes"]["sum"] < 1.8 * small["bytes"]["sum"]


def test_the_readme_has_the_results_figures() -> None:
    text, path = (FOLDER / "README.md").read_text(), FOLDER / "results" / "results.json"
    if path.exists():
        shown = report.shown(json.loads(path.read_text()))
        assert figures.rendered(text, shown) == text
    else:
        assert "No results yet." in text
