"""The recipes of docs/recipes.md, each run as it stands there, where what it imports is installed.

.ci/run installs it: python_tests/recipes.txt.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import pages
from helpers.repository import ROOT

pytestmark = pytest.mark.usefixtures("single_thread")
PAGE = ROOT / "docs" / "recipes.md"


def recipes() -> dict[str, str]:
    """The code of every section behind that of the page's beginning, on the lines of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found: dict[str, list[str]] = {"": []}
    title, inside = "", False
    for number, line in enumerate(lines):
        if line.startswith("## "):
            title = line.removeprefix("## ")
            found[title] = found[""] + [""] * (number - len(found[""]))
        inside = line == "```python" or (inside and line != "```")
        found[title].append(line if inside and line != "```python" else "")
    del found[""]
    return {title: "\n".join(code) for title, code in found.items()}


RECIPES = recipes()


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = ast.parse(RECIPES[title])
    last: Any = tree
    while getattr(last, "body", None):
        last = last.body[-1]
    assert isinstance(last, ast.Assert), "a recipe ends in what it promises"
    missing = pages.missing(pages.packages(tree))
    if missing and not os.environ.get("EQUIKERN_REQUIRE_RECIPES"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    pages.offline(monkeypatch, tmp_path)
    pages.run(tree, PAGE, {"__name__": "recipes"})


def test_every_library_of_the_page_has_a_recipe() -> None:
    """Those of the table at its beginning link to sections that are there, and no section is left out."""
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(#([^)]*)\)", text.split("\n## ")[0])
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in RECIPES]
    assert links == anchors
