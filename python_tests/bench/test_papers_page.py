"""bench/papers/README.md: its tables are what the results say, and wait for those that are not there."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench.papers import figures, page
from helpers.repository import ROOT

pytest.importorskip("rich")

FOLDER = ROOT / "bench" / "papers"


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(page)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_has_the_tables_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    made = page.sections()
    assert re.findall(r"<!-- (.*): begin -->", text) == list(made)
    for section, tables in made.items():
        assert figures.rendered(text, tables, section) == text, f"{section}: python bench/papers --readme"


def test_every_experiment_has_a_line_and_a_section() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for readme in FOLDER.glob("*/README.md"):
        name = readme.parent.name
        assert f"| [{name}]({name}/README.md) | " in text
        assert name.replace("_", " ") in page.SECTIONS


def test_sections_are_apart() -> None:
    text = "a\n<!-- one: begin -->\nold\n<!-- one: end -->\nb\n<!-- two: begin -->\nkept\n<!-- two: end -->\n"
    assert figures.rendered(text, "new", "one") == text.replace("old", "new")
    with pytest.raises(ValueError, match="three: begin"):
        figures.rendered(text, "new", "three")


def test_update_writes_all_sections_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    old = "<!-- one: begin -->\n<!-- one: end -->\n<!-- two: begin -->\n<!-- two: end -->\n"
    path.write_text(old)
    assert figures.update(path, {"one": "1", "three": "3"}) == 2
    assert path.read_text() == old
    assert figures.update(path, {"one": "1", "two": "2"}) == 0
    assert path.read_text() == "<!-- one: begin -->\n1\n<!-- one: end -->\n<!-- two: begin -->\n2\n<!-- two: end -->\n"
    assert "three" in capsys.readouterr().err


def test_numbers_wait_for_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "HERE", tmp_path)
    for made in (page.tuning, page.scan, page.fashion, page.canonical, page.cost, page.propositions):
        tables = made()
        assert any("not measured yet" in table.title for table in tables) or made is page.cost
        assert any(page.NOT_YET in row for table in tables for row in table.rows)
    zero_shot, tuned, multi = page.scan()
    assert zero_shot.rows[0] == ["add_jump, LSTM", "0.0", "–", "7.1 ± 1.3", "–", "75.2 ± 1.5", "–"]
    assert tuned.rows[1] == ["add_jump, GRU", "81.1", "–", "93.6", "–"]

    def written(name: str, file: str, results: Any) -> None:
        folder = tmp_path / name / "results"
        folder.mkdir(parents=True)
        (folder / file).write_text(json.dumps(results))

    accuracy = {
        name: {"all": 0.5} for name in ("plain", "equitune", "equizero", "product equitune", "product equizero")
    }
    runs = {
        f"{split}/LSTM/{seed}/network": {"accuracy": accuracy} for split in ("add_jump", "scan_ii") for seed in (0, 1)
    }
    runs["add_jump/LSTM/0/equizero"] = {"accuracy": {"equizero": {"all": 0.95}}}
    written("scan", "scan.json", {"runs": runs})
    zero_shot, tuned, multi = page.scan()
    assert zero_shot.rows[0][1:] == ["0.0", "50.0 ± 0.0", "7.1 ± 1.3", "50.0 ± 0.0", "75.2 ± 1.5", "50.0 ± 0.0"]
    assert zero_shot.rows[1][2] == "–"
    assert "ours over 2 seeds" in zero_shot.title
    assert tuned.rows[0] == ["add_jump, LSTM", "97.9", "–", "97.9", "95.0"]
    assert multi.rows == [["LSTM", *["50.0 ± 0.0"] * 5]]

    sets = [{"job": {"system": "plain CNN", "images": n}, "accuracy": 0.25 * n} for n in (2, 3)]
    written("multi_image", "results.json", {"runs": sets})
    (table,) = page.multi_image()
    assert table.columns == ["", "paper", "ours, 2 images", "ours, 3 images"]
    assert table.rows[0] == ["plain CNN, Caltech-101", "0.56", "", ""]
    assert table.rows[-1] == ["plain CNN, Fashion-MNIST", "", "0.500", "0.750"]
