"""The figures of docs/benchmarks.md, from the newest complete results of each kind of device."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.papers import figures

KINDS = {"cpu": "CPU", "cuda": "GPU"}
NAMES = {"images": "images", "fields": "fields and volumes", "logits": "logits"}
PICTURES = {"copy": "operators beside the copy", "providers": "others' time over ours"}
OTHERS = ("triton", "cuda", "eager", "compile", "ttach", "toolbelt")


def family(row: dict[str, Any]) -> str:
    """What a row's operator works on: images, fields and volumes, or logits."""
    return "logits" if len(row["shape"]) < 4 else "images" if row["group"] in ("c4", "d4") else "fields"


def newest(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The newest complete results of each kind of device that was measured, for each family."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        if not results["settings"]["complete"]:
            continue
        for kind in {(row["device"], family(row)) for row in results["kernels"]}:
            if kind not in found or found[kind]["machine"]["time"] < results["machine"]["time"]:
                found[kind] = results | {"path": path}
    return found


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(kind: str, of: str, results: dict[str, Any]) -> list[str]:
    """One table: for every operator, direction and state of the caches the median and the range over the rest."""
    machine = results["machine"]
    rows = [row for row in results["kernels"] if (row["device"], family(row)) == (kind, of)]
    name = machine["gpu"] if kind == "cuda" else f"{machine['cpu']}, {machine['threads']} threads"
    others = [o for o in OTHERS if any(row["over_equikern"].get(o) for row in rows)]
    lines = [
        f"{KINDS[kind]}, {NAMES[of]}: {name}; torch {machine['torch']}, commit {machine['commit'] or 'unknown'}. "
        "Median (range) over shapes, groups and dtypes:",
        "",
        f"| operator | | cache | % of copy bandwidth | {' | '.join(f'times faster than {o}' for o in others)} |",
        f"|---|---|---|{'---|' * (1 + len(others))}",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["operator"], row["direction"], row["state"]), []).append(row)
    for (operator, direction, state), members in groups.items():
        cells = [_spread([r["percent_of_copy"] for r in members if r["percent_of_copy"]], 0)]
        cells += [_spread([r["over_equikern"][o] for r in members if r["over_equikern"].get(o)], 1) for o in others]
        lines.append(f"| {operator} | {direction} | {state} | {' | '.join(cells)} |")
    for row in results.get("losses", []) if of == "logits" else []:
        order, count, features, words = row["size"]
        peaks = row["peak_over_logits"]
        lines += [
            "",
            f"`linear_orbit_cross_entropy` with its gradients, {order} views of {count} rows of {features} features, "
            f"{words} words: {row['time_over_eager']:.2f} of eager torch's time; peak memory above inputs and "
            f"gradients {peaks['equikern']:.3f} of one logits tensor, eager torch {peaks['eager']:.2f}.",
        ]
    for what in PICTURES:
        path = results["path"].with_name(
            f"{results['path'].stem}-{kind}-{'' if of == 'images' else f'{of}-'}{what}.png"
        )
        if path.exists():  # bench/plots.py draws it
            lines += ["", f"![{KINDS[kind]}, {NAMES[of]}: {PICTURES[what]}](../bench/results/{path.name})"]
    return lines


def section(folder: Path) -> str:
    """The text between the markers."""
    found = newest(folder)
    parts = []
    for kind, title in KINDS.items():
        parts += ["\n".join(table(kind, f, found[kind, f])) for f in NAMES if (kind, f) in found]
        if (kind, "images") not in found:
            parts.append(f"{title}: no results yet.")
    return "\n\n".join(parts)


def update(path: Path, folder: Path) -> int:
    """Rewrite the figures of the page at path; returns the exit status."""
    return figures.update(path, section(folder))
