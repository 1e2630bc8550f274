"""What bench and experiments share: tables for the terminal and a README, whose figures stand between two markers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


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


def rendered(text: str, figures: str) -> str:
    """A README's text with these figures between its markers.

    Raises:
        ValueError: text lacks the two markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"text: expected the markers {BEGIN} and {END}, found none or one")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def update(readme: Path, figures: str) -> int:
    """Rewrite the figures of a README file, and say whether they were others; returns the exit status."""
    text = readme.read_text(encoding="utf-8")
    try:
        new = rendered(text, figures)
    except ValueError as error:
        print(f"{readme}: {error}", file=sys.stderr)
        return 2
    readme.write_text(new, encoding="utf-8")
    print(f"{readme}: {'unchanged' if new == text else 'figures rewritten'}")
    return 0


def commit() -> str:
    """The commit that results are of, "-dirty" where the tree is not it; empty outside a repository."""
    try:
        run = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
