"""What the site's build changes: docstrings, links between docs/ and the repository, and what pages may load."""

from __future__ import annotations

import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.repository import ROOT

pytest.importorskip("mkdocs", reason='the extra "docs" is not installed')
pytest.importorskip("griffe", reason='the extra "docs" is not installed')


def hook(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def docstrings() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "equikern").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found[f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}"] = text
    return found


def test_tables_keep_their_words() -> None:
    rewritten, tables = hook("docstrings").rewritten, 0
    for name, text in docstrings().items():
        made = rewritten(text)
        assert not re.search(r"^ *=+( +=+)+$", made, re.MULTILINE), name
        rows = [line for line in made.split("\n") if line.lstrip().startswith("| ")]
        tables += sum("---" in row for row in rows)
        plain = re.sub(r"[|\\`:\s]|---|==+", "", text.replace("Example:", "Examples:"))
        assert sorted(plain) == sorted(re.sub(r"[|\\`:\s]|---|==+", "", made)), name
        for before, row in pairwise(rows):
            cells = [len(re.split(r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)", line)) for line in (before, row)]
            assert "---" not in row or cells[0] == cells[1], name
    assert tables > 8


def test_a_cell_that_goes_on_and_one_that_crosses() -> None:
    text = "===== =====\nname  what\n===== =====\n|a|   first\n      second\nlong over both\n===== ====="
    assert hook("docstrings").rewritten(text).split("\n") == [
        "| name | what |",
        "| --- | --- |",
        r"| \|a\| | first second |",
        "| long over both |  |",
    ]


def test_links_lead_to_the_site_or_to_the_project(tmp_path: Path) -> None:
    from mkdocs.config import load_config
    from mkdocs.structure.files import File, Files

    repository, config = hook("repository"), load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    files = config.plugins.on_files(Files([]), config=config)
    files.append(File("guides/images.md", str(ROOT / "docs"), str(tmp_path), use_directory_urls=True))
    assert files.get_file_from_path("bench/papers/fashion/README.md") is not None
    assert files.get_file_from_path("bench/papers/fashion/results/fashion.png") is not None

    def changed(page: str, markdown: str) -> str:
        text: str = repository.on_page_markdown(
            markdown, page=SimpleNamespace(file=files.get_file_from_path(page)), files=files
        )
        return text

    guide = "guides/images.md"
    assert changed(guide, "[x](../../bench/papers/README.md#a)") == "[x](../bench/papers/README.md#a)"
    assert changed("bench/README.md", "[x](../docs/guides/images.md)") == "[x](../guides/images.md)"
    assert changed("bench/papers/README.md", "![x](scan/README.md)") == "![x](scan/README.md)"
    project = "https://github.com/equikern/equikern"
    assert changed(guide, "[x](../../csrc/dtypes.h)") == f"[x]({project}/blob/main/csrc/dtypes.h)"
    assert changed(guide, "[x](../../csrc)") == f"[x]({project}/tree/main/csrc)"
    for kept in ("[x](https://example.org)", "[x](#here)", "[x](nowhere.md)", "```\n[x](../../csrc)\n```"):
        assert changed(guide, kept) == kept


@pytest.mark.parametrize(
    "loaded",
    [
        '<script src="https://a.org/b.js">',
        "<img alt=x src=//a.org/b.png>",
        '<link href="http://a.org" rel="stylesheet">',
    ],
)
def test_nothing_is_loaded_from_other_hosts(loaded: str, tmp_path: Path) -> None:
    from mkdocs.exceptions import PluginError

    repository, page = hook("repository"), SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    fine = '<a href="https://a.org">x</a><script src="b.js"></script><link rel="canonical" href="https://a.org">'
    assert repository.on_post_page(fine, page=page) == fine
    with pytest.raises(PluginError, match=r"index\.md loads from other hosts: .*a\.org"):
        repository.on_post_page(fine + loaded, page=page)
    (tmp_path / "a.css").write_text("a { background: url(data:x) }", encoding="utf-8")
    repository.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    (tmp_path / "b.css").write_text('@import "https://a.org/f.css";', encoding="utf-8")
    with pytest.raises(PluginError, match=r"b\.css loads"):
        repository.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
