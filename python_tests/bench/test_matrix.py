"""The table of what works with what: complete, with a reason beside every gap, and some of its cells tried again."""

from __future__ import annotations

import random
import re

import pytest
from bench.matrix.__main__ import PAGE, cell, page
from bench.matrix.cases import CASES, OPERATORS, WRAPPERS
from bench.matrix.features import FEATURES, NothingToTryError, of, tried

# Seconds that a cell takes, where that is more than a tenth.
SLOW = {"compile": 1, "compile dynamic": 1, "export strict": 0.4, "portable": 0.6, "onnx": 2}
SLOW |= {"pt2": 1, "portable pt2": 1, "AOTInductor": 25}


def rows() -> dict[str, list[str]]:
    """The page's rows by case."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    names = {case.name for case in CASES}
    return {name: cells for name, *cells in lines if name in names}


def test_the_page_is_complete_and_explains_every_gap() -> None:
    assert (len(OPERATORS), len(WRAPPERS)) == (28, 36)
    text, found = PAGE.read_text(encoding="utf-8"), rows()
    assert list(found) == [case.name for case in CASES]
    reasons = set(re.findall(r"^(\d+)\. \w", text, re.MULTILINE))
    for case in CASES:
        for feature, said in zip(of(case), found[case.name], strict=True):
            reason = re.fullmatch(r"yes|(?:no|–) \((\d+)\)", said)
            assert reason is not None, f"{case.name}, {feature}: {said}"
            assert said == "yes" or reason[1] in reasons, f"{case.name}, {feature}: {said}"
    assert all(f"- **{feature}**: " in text for feature in FEATURES)


def test_some_cells_are_as_the_page_says() -> None:
    """Others for every version of the features and cases; the whole page takes minutes."""
    found, left = rows(), 12.0
    cells = [(case, feature) for case in CASES for feature in of(case)]
    random.Random(len(cells)).shuffle(cells)
    for case, feature in cells:
        if SLOW.get(feature, 0.05) > left:
            continue
        left -= SLOW.get(feature, 0.05)
        said = found[case.name][of(case).index(feature)]
        assert cell(case, feature).partition(" ")[0] == said.partition(" ")[0], f"{case}, {feature}"


def test_a_failure_without_a_reason_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("no such thing")

    def is_none(_: object) -> None:
        raise NothingToTryError("there is none")

    monkeypatch.setitem(FEATURES, "eager", fails)
    assert tried(CASES[0], "eager") == "RuntimeError: no such thing"
    with pytest.raises(AssertionError, match="orbit, eager: RuntimeError: no such thing"):
        cell(CASES[0], "eager")
    monkeypatch.setitem(FEATURES, "eager", is_none)
    assert cell(CASES[0], "eager") == "– there is none"
    monkeypatch.undo()
    every = {(case.name, feature): "no it is broken" for case in CASES for feature in of(case)}
    assert page(every).count("no (1)") == len(every)
