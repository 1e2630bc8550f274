"""What bench and experiments share: tables for the terminal and a README, whose figures stand between two markers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


def markers(section: str = "figures") -> tuple[str, str]:
    """What stands around a section of a page whose text is made from results."""
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


BEGIN, END = markers()


class Table(NamedTuple):
    """A title, the columns' heads, and rows of as many cells. The first column is of words, the others of numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def markdown(table: Table) -> str:
    """The table with its title above.

    Example:
        >>> print(markdown(Table("Sizes", ["", "|G|"], [["c4", "4"]])))
        Sizes:
        <BLANKLINE>
        |  | \\|G\\| |
        |---|---:|
        | c4 | 4 |
    """
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (table[1], *table[2])]
    lines.insert(1, f"|---|{'---:|' * (len(table.columns) - 1)}")
    return f"{table.title}:\n\n" + "\n".join(lines)


def show(tables: list[Table]) -> None:
    """Print the tables in the terminal; lines that are too long for it are broken, not cut."""
    from rich.console import Console
    from rich.table import Table as Printed

    console = Console(width=max(Console().width, 180))
    for title, columns, rows in tables:
        printed = Printed(title=title, title_justify="left")
        for i, column in enumerate(columns):
            printed.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            printed.add_row(*row)
        console.print(printed)


def middle(values: list[float], digits: int, factor: float = 1.0) -> str:
    """Median and range.

    Example:
        >>> middle([0.012, 0.01, 0.02], 1, 100)
        '1.2 (1.0–2.0)'
    """
    shown = [f"{factor * value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}–{shown[2]})"


def newest(folder: Path) -> dict[str, dict[str, Any]]:
    """The newest complete results in a folder of each kind of device, in whose order they come; ``path`` is added."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8")) | {"path": path}
        kind = results["settings"]["device"]
        if results["settings"]["complete"] and (
            kind not in found or found[kind]["machine"]["time"] < results["machine"]["time"]
        ):
            found[kind] = results
    return {kind: found[kind] for kind in sorted(found)}


def rendered(text: str, figures: str, section: str = "figures") -> str:
    """A page's text with these figures between the markers of a section.

    Raises:
        ValueError: text lacks the two markers.
    """
    begin, end = markers(section)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"text: expected the markers {begin} and {end}, found none or one")
    return f"{before}{begin}\n{figures}\n{end}{after}"


def update(readme: Path, figures: str | dict[str, str]) -> int:
    """Rewrite the figures of a page, or of its sections by name, and say whether they were others; the exit status."""
    text = new = readme.read_text(encoding="utf-8")
    try:
        for section, made in ({"figures": figures} if isinstance(figures, str) else figures).items():
            new = rendered(new, made, section)
    except ValueError as error:
        print(f"{readme}: {error}", file=sys.stderr)
        return 2
    readme.write_text(new, encoding="utf-8")
    print(f"{readme}: {'unchanged' if new == text else 'figures rewritten'}")
    return 0


def of(folder: Path, name: str, report: Any) -> str:
    """What an experiment's README shows, by its report of the committed results."""
    path = folder / "results" / f"{name}.json"
    if not path.exists():
        return "No results yet."
    figures: str = report.figures(json.loads(path.read_text(encoding="utf-8")), f"results/{name}.png")
    return figures


def update_from(folder: Path, name: str, report: Any) -> int:
    """Rewrite the figures of an experiment's README; the exit status."""
    return update(folder / "README.md", of(folder, name, report))


def page(made: str, tables: list[Table], called: str, picture: str) -> str:
    """What a README shows of results: how they were made, tables, a picture with what it is called."""
    return "\n\n".join([made, *map(markdown, tables), f"![{called}]({picture})"])


def made_by(results: dict[str, Any]) -> str:
    """The versions and the commits of runs that have each their own."""
    machine = results["machine"]
    commits = sorted({run["commit"] for run in results["runs"].values() if run["commit"]})
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"torch {machine['torch']}, {threads}, {machine['cpu']}; commit {', '.join(commits)}."


def unwritten(options: Any, device: str) -> Path | None:
    """Where results of a device and this commit go, or None, which says so, where there are some and no ``--force``."""
    from bench.ops import machine

    path: Path = options.output / machine.slug(machine.name(device), "quick" if options.quick else "")
    if path.exists() and not options.force:
        print(f"{path} exists; choose another folder with --output or overwrite it with --force", file=sys.stderr)
        return None
    return path


def keep(results: dict[str, Any], stem: Path, report: Any, indent: int | None = 1) -> int:
    """Write results as ``stem``.json and the report's plot beside them, and show its tables; the exit status."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(
        json.dumps(results, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    report.plot(results, stem.with_suffix(".png"))
    show(report.tables(results))
    print(f"{stem}.json and {stem.name}.png")
    return 0


def commit() -> str:
    """The commit that results are of, "-dirty" where the tree is not it; empty outside a repository."""
    try:
        run = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
