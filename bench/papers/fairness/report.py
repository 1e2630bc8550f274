"""Tables of the results: in the terminal and in README.md, from one description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import figures

Lines = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def _unique(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero takes the sign off a rounded −0


def gap_tables(results: dict[str, Any]) -> list[Lines]:
    """Two tables a proxy, gaps of the mean score and of the shares: a row for each kind and system."""
    gaps, pairs = results["gaps"], _unique(results["gaps"], "pair")
    about = f"{results['settings']['samples']} samples a context"
    signs = ", ".join(" − ".join(next(r["groups"] for r in gaps if r["pair"] == pair)) for pair in pairs)
    tables = []
    for proxy in _unique(gaps, "proxy"):
        means: dict[tuple[str, str], list[str]] = {}
        shares: dict[tuple[str, str], list[str]] = {}
        kinds = _unique(gaps, "kind")
        for row in sorted((row for row in gaps if row["proxy"] == proxy), key=lambda row: kinds.index(row["kind"])):
            place = row["kind"], row["system"]
            means.setdefault(place, [*place]).append(f"{_number(row['mean_gap'])} ± {row['standard_error']:.3f}")
            shares.setdefault(place, [*place]).append(f"{100 * row['share_gap']:.1f} %")
        columns = ["contexts", "system", *pairs]
        tables += [
            (f"Mean score, {proxy}: {signs}, ± standard error; {about}", columns, list(means.values())),
            (f"Gap of the shares, {proxy}; {about}", columns, list(shares.values())),
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
    title = (
        "Largest deviation from P(gX2 | gX1) = P(X2 | X1) and, for R-EquiLM, of logits at the words of E and N; "
        f"{results['settings']['symmetry_texts']} texts a pair"
    )
    return [
        (
            f"Perplexity of {text['tokens']} tokens of {text['file']}, by the pair exchanged",
            ["system", *pairs],
            perplexity,
        ),
        (title, ["system", "pair", "log P, token", "log P, text", "logits"], deviation),
        ("Samples that are exactly the other group's, exchanged", ["system", *pairs], same),
    ]


def joint_tables(found: dict[str, Any]) -> list[Lines]:
    """What is between the groups that differ in everything at once."""
    rows = found["regard"]
    pairs = [*rows[0]["gaps"]]
    about = f"{len(found['groups'])} groups, {found['samples']} samples a context"
    tables = []
    for proxy in _unique(rows, "proxy"):
        cells = []
        for row in rows:
            if row["proxy"] == proxy:
                gaps = [f"{_number(g['mean_gap'])} ± {g['standard_error']:.3f}" for g in row["gaps"].values()]
                widest = row["widest"]
                between = f"{abs(widest['mean_gap']):.3f} ± {widest['standard_error']:.3f}"
                cells.append([row["kind"], row["system"], between, " – ".join(widest["groups"]), *gaps])
        columns = ["contexts", "system", "widest gap", "between", *pairs]
        tables.append((f"Intersectional, mean score, {proxy}, ± standard error; {about}", columns, cells))
    symmetry = [
        [
            system,
            f"{100 * share:.1f} %",
            *(f"{found['symmetry'].get(system, {}).get(k, float('nan')):.1e}" for k in KEYS),
        ]
        for system, share in found["transforms"].items()
    ]
    head = ["system", "samples that are the first group's, exchanged", "log P, token", "log P, text"]
    views = found["views"]
    title = f"Intersectional, symmetry under all {views['elements']} elements ({views['ProductEquiLM']} views)"
    return [*tables, (title, head, [[cell.replace("nan", "–") for cell in row] for row in symmetry])]


KEYS = ("token", "text")


def text_table(found: dict[str, Any]) -> Lines:
    """Perplexity of every text, and what each system adds to the plain model's."""
    rows = []
    for row in found["rows"]:
        plain = row["values"]["plain"]
        more = [
            f"{value:.3f} ({100 * (value / plain - 1):+.2f} %)" for s, value in row["values"].items() if s != "plain"
        ]
        rows.append([row["text"], str(row["tokens"]), f"{plain:.3f}", *more])
    return "Perplexity of every text (and above the plain model)", ["text", "tokens", *found["rows"][0]["values"]], rows


def tables(results: dict[str, Any]) -> list[Lines]:
    """All tables."""
    found = [*gap_tables(results), *other_tables(results)]
    if "intersectional" in results:
        found += joint_tables(results["intersectional"])
    if "texts" in results:
        found.append(text_table(results["texts"]))
    return found


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns, rows in tables(results):
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(
                column, justify="left" if columns[i] in ("contexts", "system", "pair") else "right", no_wrap=True
            )
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
    for part in ("intersectional", "texts"):
        if part in results:
            commit = results[part]["machine"]["commit"] or "unknown"
            parts[0] += f" {'Intersectional groups' if part == 'intersectional' else 'Texts'}: commit {commit}."
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
    return figures.rendered(text, markdown(json.loads(path.read_text()), f"results/{path.stem}"))
