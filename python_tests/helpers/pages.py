"""The Python of documentation pages: their blocks, what these import, and a run without the network."""

from __future__ import annotations

import ast
import importlib.util
import socket
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from helpers import vision

__all__ = ["blocks", "imported", "missing", "offline", "packages", "run"]


def blocks(path: Path) -> list[ast.Module]:
    """Every ```python block of a page, each on the page's own lines."""
    found: list[list[str]] = []
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if line.strip() == "```python":
            indent = line.index("`")
            inside = True
            found.append([""] * (number + 1))
        elif inside and line.strip() == "```":
            inside = False
        elif inside:
            found[-1].append(line[indent:])
    assert not inside, f"{path}: a block has no end"
    return [ast.parse("\n".join(lines), str(path)) for lines in found]


def imported(tree: ast.AST) -> set[str]:
    """The modules that code imports."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {*names, *(str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))}


def packages(*trees: ast.AST) -> set[str]:
    """The packages of these modules, with what parts of equikern need."""
    modules = {name for tree in trees for name in imported(tree)}
    needs = {"equikern.lm": {"transformers"}, "equikern.rl": {"stable_baselines3"}, "equikern.demo": {"foolbox"}}
    return {name.partition(".")[0] for name in modules}.union(*(needs.get(name, set()) for name in modules))


def missing(names: set[str]) -> list[str]:
    """Those packages that are not installed."""
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on the network is an error, files are written to the folder, and torchvision can be imported."""
    if importlib.util.find_spec("torchvision") is not None:
        vision.torchvision("ops")  # other packages import it, too

    def connect(*_: Any) -> None:
        raise AssertionError("a page asked for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(folder)


def run(tree: ast.Module, path: Path, names: dict[str, Any]) -> None:
    """Run one block in the namespace of its page."""
    code: CodeType = compile(tree, str(path), "exec")
    exec(code, names)
