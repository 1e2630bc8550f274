"""The recipes of docs/recipes.md, each run as it stands there, where what it imports is installed.

.ci/run installs it: python_tests/recipes.txt.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers import vision
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


def imported(tree: ast.Module) -> set[str]:
    """The packages that code imports."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = ast.parse(RECIPES[title])
    last: Any = tree
    while getattr(last, "body", None):
        last = last.body[-1]
    assert isinstance(last, ast.Assert), "a recipe ends in what it promises"
    missing = sorted(name for name in imported(tree) if importlib.util.find_spec(name) is None)
    if missing and not os.environ.get("EQUIKERN_REQUIRE_RECIPES"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    if importlib.util.find_spec("torchvision") is not None:
        vision.torchvision("ops")  # the other packages import it, too

    def connect(*_: Any) -> None:
        raise AssertionError("a recipe asked for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(tmp_path)
    exec(compile(tree, str(PAGE), "exec"), {"__name__": "recipes"})


def test_every_library_of_the_page_has_a_recipe() -> None:
    """Those of the table at its beginning link to sections that are there, and no section is left out."""
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(#([^)]*)\)", text.split("\n## ")[0])
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in RECIPES]
    assert links == anchors
