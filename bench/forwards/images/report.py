"""What the runs say: a curve for each method, what ranking costs, and how exact the symmetry is."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.papers.figures import Table, made_by, page

from .. import curves as drawn
from .names import EXPERIMENTS, PANELS

Runs = dict[str, dict[str, Any]]


def of(runs: Runs, experiment: str) -> list[dict[str, Any]]:
    """The runs of an experiment by seed."""
    found = {int(key.split("/")[1]): run for key, run in runs.items() if key.startswith(f"{experiment}/")}
    return [found[seed] for seed in sorted(found)]


def ranking(runs: Runs, experiment: str, group: str, cost: str | None) -> float:
    """What ranking takes over a forward, for a batch: the larger of its time and its multiply-adds."""
    if cost is None:
        return 0.0
    found = next(iter(runs[f"cost/{experiment}/{group}"]["costs"][cost].values()))
    return float(max(found["time"], found["multiply-adds"]))


def groups(runs: Runs) -> list[tuple[str, str, list[list[dict[str, Any]]]]]:
    """Of each experiment and group the rows of its systems, those of one system over the seeds together."""
    made = []
    for experiment, group in PANELS:
        seeds = [[row for row in run["rows"] if row["group"] == group] for run in of(runs, experiment)]
        if seeds and f"cost/{experiment}/{group}" in runs:
            fixed = [row for row in runs.get(f"fixed/{experiment}", {"rows": []})["rows"] if row["group"] == group]
            same = [[row] * len(seeds) for row in fixed]
            made.append((experiment, group, [*same, *(list(rows) for rows in zip(*seeds, strict=True))]))
    return made


def curves(runs: Runs) -> list[drawn.Point]:
    """The points, as every program of ``bench/forwards`` has them."""
    made = []
    for experiment, group, systems in groups(runs):
        for rows in systems:
            forwards = statistics.mean(row["forwards"] for row in rows)
            made.append(
                {
                    "panel": PANELS[experiment, group],
                    "ylabel": "accuracy, %",
                    "method": rows[0]["method"],
                    "k": rows[0]["k"],
                    "forwards": forwards,
                    "forwards_with_energy": forwards + ranking(runs, experiment, group, rows[0]["cost"]),
                    "values": [100 * row["accuracy"] for row in rows],
                }
            )
    return made


def tables(results: dict[str, Any]) -> list[Table]:
    """A table for each panel, what ranking costs, and how often the trained energy names the upright pose."""
    runs: Runs = results["runs"]
    made = []
    for table, (_, _, systems) in zip(drawn.tables(results["curves"]), groups(runs), strict=True):
        rows = [
            [*cells, f"{max(row['deviation'] for row in each):.0e}"]
            for cells, each in zip(table.rows, systems, strict=True)
        ]
        made.append(Table(table.title, [*table.columns, "largest deviation"], rows))
    if any(key.startswith("cost/") for key in runs):
        made.append(_costs(runs))
    named = [
        [PANELS[experiment, "c4"], drawn.spread([100 * run["upright named"] for run in found])]
        for experiment in EXPERIMENTS
        if (found := of(runs, experiment))
    ]
    return [*made, Table("How often the trained energy takes upright test images for upright, %", ["", "C4"], named)]


def _costs(runs: Runs) -> Table:
    rows = []
    for (experiment, group), panel in PANELS.items():
        for name, batches in runs.get(f"cost/{experiment}/{group}", {"costs": {}})["costs"].items():
            (batch, many), (_, one) = batches.items()
            rows.append(
                [
                    f"{panel}: {name}",
                    batch,
                    f"{1e3 * many['seconds of a forward']:.1f}",
                    f"{many['multiply-adds']:.3f}",
                    f"{many['time']:.3f}",
                    f"{many['whole time']:.2f}",
                    f"{one['time']:.2f}",
                    f"{one['whole time']:.2f}",
                ]
            )
    heads = [
        "",
        "batch",
        "ms of a forward",
        "multiply-adds",
        "time",
        "whole call",
        "time, 1 image",
        "whole call, 1 image",
    ]
    return Table(
        "What ranking the poses takes, and a whole call with one view (λ: all views), in forwards", heads, rows
    )


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    return page(made_by(results), tables(results), "Accuracy against forwards", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy against forwards as PNG."""
    drawn.draw(results["curves"], path)
