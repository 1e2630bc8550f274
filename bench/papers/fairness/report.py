"""Tables of the results: in the terminal and in README.md, from one description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .contexts import SYSTEMS

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Lines = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def _unique(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def gap_tables(results: dict[str, Any]) -> list[Lines]:
    """Two tables a proxy, a row for each pair and kind of context: gaps of the mean score, and of the shares."""
    gaps, count = results["gaps"], f"{results['settings']['samples']} samples a context"
    tables = []
    for proxy in _unique(gaps, "proxy"):
        means: dict[str, list[str]] = {}
        shares: dict[str, list[str]] = {}
        for row in (row for row in gaps if row["proxy"] == proxy):
            place = f"{' − '.join(row['groups'])}, {row['kind']}"
            means.setdefault(place, [place]).append(f"{row['mean_gap']:+.3f} ± {row['standard_error']:.3f}")
            shares.setdefault(place, [place]).append(f"{100 * row['share_gap']:.1f} %")
        columns = ["", *SYSTEMS]
        tables += [
            (f"Gap of the mean score ± standard error, {proxy}, {count}", columns, list(means.values())),
            (f"Gap of the shares, {proxy}, {count}", columns, list(shares.values())),
        ]
    return tables


def other_tables(results: dict[str, Any]) -> list[Lines]:
    """Perplexity, symmetry of the probabilities, and symmetry of the samples."""
    text = results["perplexity"]
    pairs = _unique(results["gaps"], "pair")
    perplexity = [[row["system"], *(f"{row[pair]:.3f}" for pair in pairs)] for row in text["values"]]
    deviation = [
        [
            row["system"],
            row["pair"],
            *(f"{row[name]:.1e}" if name in row else "–" for name in ("token", "text", "logits")),
        ]
        for row in results["symmetry"]
    ]
    same = [[system, *(f"{100 * row[pair]:.1f} %" for pair in pairs)] for system, row in results["transforms"].items()]
    count = f"{results['settings']['symmetry_texts']} texts a pair"
    return [
        (
            f"Perplexity of {text['file']}, {text['tokens']} tokens, by the pair exchanged",
            ["system", *pairs],
            perplexity,
        ),
        (
            f"Largest deviation from P(gX2 | gX1) = P(X2 | X1), or of the relaxed property, {count}",
            ["system", "pair", "log P of a token", "log P(X2 | X1)", "logits at E and N"],
            deviation,
        ),
        ("Samples that are exactly the other group's, exchanged", ["system", *pairs], same),
    ]


def tables(results: dict[str, Any]) -> list[Lines]:
    """All tables."""
    return [*gap_tables(results), *other_tables(results)]


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns, rows in tables(results):
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(results: dict[str, Any], pictures: str) -> str:
    """The tables for README.md, and the pictures, whose names begin with ``pictures``."""
    machine, settings = results["machine"], results["settings"]
    parts = [
        f"{settings['model']}, **{settings['samples']} samples a context**, seed {settings['seed']}; {machine['cpu']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, commit {machine['commit'] or 'unknown'}."
    ]
    for title, columns, rows in tables(results):
        lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (columns, *rows)]
        lines.insert(1, f"|{'---|' * len(columns)}")
        parts.append(f"{title}:\n\n" + "\n".join(lines))
    names = [*_unique(results["regard"], "kind"), "gaps"]
    parts += [f"![{name}]({pictures}-{name}.png)" for name in names]
    return "\n\n".join(parts)


def largest(folder: Path) -> Path | None:
    """The results with the most samples."""
    found = [(json.loads(path.read_text())["settings"]["samples"], path) for path in sorted(folder.glob("*.json"))]
    return max(found)[1] if found else None


def rendered(text: str, folder: Path) -> str:
    """README.md's text with the tables of the largest results in a folder.

    Raises:
        ValueError: no results, or text lacks the two markers.
    """
    path = largest(folder)
    if path is None:
        raise ValueError(f"folder: no results in {folder}")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"text: expected the markers {BEGIN} and {END}, found none or one")
    return f"{before}{BEGIN}\n{markdown(json.loads(path.read_text()), f'results/{path.stem}')}\n{END}{after}"
