"""docs/reference has everything that is public, once, and nothing else; every page is in the site's navigation."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from typing import Any

import pytest
from helpers.repository import ROOT

REFERENCE = ROOT / "docs" / "reference"
PARTS = ("equikern", "equikern.lm", "equikern.rl", "equikern.coordinates", "equikern.distributed", "equikern.auditing")


def entries() -> list[str]:
    return [
        name
        for path in sorted(REFERENCE.glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def found(name: str) -> Any:
    """What a dotted name says, whose modules may have members of the same name."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        if all(hasattr(reduce(getattr, parts[k:j], module), parts[j]) for j in range(k, len(parts))):
            return reduce(getattr, parts[k:], module)
    raise AssertionError(f"{name}: there is no such thing")


def test_it_has_everything_public() -> None:
    pytest.importorskip("transformers")
    names = entries()
    assert len(set(names)) == len(names)
    listed = {name: found(name) for name in names}
    modules = [importlib.import_module(part) for part in PARTS]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    for name, thing in public.items():
        assert any(thing is entry for entry in listed.values()), f"{name} is in no page of docs/reference"
    for name, thing in listed.items():
        assert any(thing is other for other in (*public.values(), *modules)), f"{name} is not public"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:\n")[2]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    there |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").rglob("README.md")}
    assert there <= named, there - named
