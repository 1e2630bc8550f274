"""The gallery's pictures: drawn by docs/pictures.py, all shown, none large."""

import re

from helpers.repository import ROOT

DOCS = ROOT / "docs"


def test_pictures_are_drawn_shown_and_small() -> None:
    files = {path.stem: path for path in (DOCS / "pictures").iterdir()}
    drawn = (DOCS / "pictures.py").read_text(encoding="utf-8").partition("PICTURES: dict")[2]
    assert set(re.findall(r'^    "(\w+)":', drawn, re.MULTILINE)) == files.keys()
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(pictures/(\w+)\.png\)", gallery)) == files.keys()
    for path in files.values():
        assert path.read_bytes().startswith(b"\x89PNG"), path
        assert path.stat().st_size < 200_000, path
