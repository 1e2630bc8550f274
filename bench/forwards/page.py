"""The table and the plot of ``bench/forwards/README.md``, from the newest results of every program here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.papers.figures import markdown, show, update

from . import curves

HERE = Path(__file__).resolve().parent
PROGRAMS = ("images", "volumes")
PICTURE = "results/curves.png"


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest results in a folder, those of a short run left out; None where there are none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json") if "quick" not in path.stem]
    return max((each for each in found if each.get("curves")), key=lambda each: each["machine"]["time"], default=None)


def points() -> list[curves.Point]:
    """Those of all programs that have results."""
    found = [newest(HERE / name / "results") for name in PROGRAMS]
    return [point for results in found if results is not None for point in results["curves"]]


def figures() -> str:
    """What stands between README.md's markers."""
    made = list(map(markdown, curves.tables(points())))
    return "\n\n".join([*made, f"![Accuracy per forward]({PICTURE})"]) if made else "No results yet."


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/forwards", description="accuracy per forward, from the committed results"
    )
    arguments.add_argument("--readme", action="store_true", help="write README.md's figures and the plot")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    if not parser().parse_args(arguments).readme:
        show(curves.tables(points()))
        return 0
    if found := points():
        (HERE / PICTURE).parent.mkdir(exist_ok=True)
        curves.draw(found, HERE / PICTURE)
    return update(HERE / "README.md", figures())
