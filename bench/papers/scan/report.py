"""What the runs say beside the papers' numbers: tables, and accuracy against iterations as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..figures import Table, made_by, page
from .names import CELLS, PRODUCTS, SCAN, SPLITS, SYSTEMS, TUNED

Runs = dict[str, dict[str, Any]]

MULTI = SYSTEMS + PRODUCTS

# arXiv 2305.09900: mean and deviation over three seeds, percent.
PAPER: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("add_jump", "LSTM"): ((0.0, 0.0), (7.1, 1.3), (75.2, 1.5)),
    ("add_jump", "GRU"): ((0.0, 0.0), (20.7, 4.8), (73.9, 0.7)),
    ("add_jump", "RNN"): ((0.2, 0.1), (3.7, 1.3), (58.6, 16.3)),
    ("around_right", "LSTM"): ((0.4, 0.7), (28.2, 12.9), (81.7, 2.4)),
    ("around_right", "GRU"): ((0.1, 0.1), (35.7, 14.4), (77.9, 3.1)),
    ("around_right", "RNN"): ((5.9, 5.2), (36.4, 11.1), (56.6, 2.5)),
}
# After 10,000 iterations: equitune and equizero.
PAPER_TUNED: dict[tuple[str, str], tuple[float, float]] = {
    ("add_jump", "LSTM"): (97.9, 97.9),
    ("add_jump", "GRU"): (81.1, 93.6),
    ("add_jump", "RNN"): (83.9, 84.8),
    ("around_right", "LSTM"): (95.7, 92.5),
    ("around_right", "GRU"): (91.6, 74.6),
    ("around_right", "RNN"): (78.4, 64.3),
}


def spread(values: list[float]) -> str:
    """Mean, and the deviation where there are several; a dash where there is nothing.

    Example:
        >>> spread([1.0, 2.0]), spread([1.0]), spread([])
        ('1.5 (0.7)', '1.0', '–')
    """
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (f" ({statistics.stdev(values):.1f})" if len(values) > 1 else "")


def _paper(value: tuple[float, float]) -> str:
    return f"{value[0]:.1f} ({value[1]:.1f})" if value[1] else f"{value[0]:.1f}"


def of(runs: Runs, split: str, cell: str, what: str) -> list[dict[str, Any]]:
    """The runs of one kind, in the order of their seeds."""
    found = [(key.split("/"), value) for key, value in runs.items()]
    kept = [(int(seed), value) for (a, b, seed, c), value in found if (a, b, c) == (split, cell, what)]
    return [value for _, value in sorted(kept, key=lambda pair: pair[0])]


def accuracies(found: list[dict[str, Any]], system: str, part: str = "all") -> list[float]:
    """A system's accuracy in each of the runs, in percent."""
    return [100 * run["accuracy"][system][part] for run in found]


def validations(found: list[dict[str, Any]]) -> list[float]:
    """The best validation of each of the runs, in percent."""
    return [100 * max(entry["validation"] for entry in run["history"]) for run in found]


def tables(results: dict[str, Any]) -> list[Table]:
    """Zero-shot, tuned and SCAN-II; a row for every split and cell of which there are results."""
    runs: Runs = results["runs"]
    rows, tuned, multi = [], [], []
    for split in SCAN:
        for cell in CELLS:
            found = of(runs, split, cell, "network")
            if not found:
                continue
            row = [f"{split}, {cell}", str(len(found)), spread(validations(found))]
            for k, system in enumerate(SYSTEMS):
                row += [spread(accuracies(found, system)), _paper(PAPER[split, cell][k])]
            rows.append([*row, spread(accuracies(found, "equizero", "reachable"))])
            each = [of(runs, split, cell, system) for system in TUNED[split]]
            if any(each):
                row = [f"{split}, {cell}", str(max(map(len, each)))]
                for k, (system, some) in enumerate(zip(TUNED[split], each, strict=True)):
                    row += [spread(accuracies(some, system)), f"{PAPER_TUNED[split, cell][k]:.1f}"]
                tuned.append(row)
    for cell in CELLS:
        if found := of(runs, "scan_ii", cell, "network"):
            row = [cell, str(len(found)), spread(validations(found))]
            row += [spread(accuracies(found, system)) for system in MULTI]
            for system in TUNED["scan_ii"]:
                row.append(spread(accuracies(of(runs, "scan_ii", cell, system), system)))
            multi.append(row)
    heads = [head for system in SYSTEMS for head in (system, "paper")]
    made = [
        Table(
            "Zero-shot: test sentences translated exactly, percent, mean (deviation)",
            ["", "seeds", "validation", *heads, "equizero, of the reachable"],
            rows,
        )
    ]
    if tuned:
        heads = [head for system in TUNED[SCAN[0]] for head in (f"{system}, tuned", "paper")]
        made.append(Table(f"Behind {_iterations(results)} of tuning", ["", "seeds", *heads], tuned))
    if multi:
        heads = [*MULTI, *(f"{system}, tuned" for system in TUNED["scan_ii"])]
        made.append(Table("SCAN-II: a product of three groups", ["", "seeds", "validation", *heads], multi))
    return made


def _iterations(results: dict[str, Any]) -> str:
    updates, batch = results["settings"]["tuning"]["add_jump"][:2]
    return f"{updates:,} iterations" if batch == 1 else f"{updates:,} iterations of {batch} sentences"


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    return page(made_by(results), tables(results), "Accuracy against iterations", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """Test accuracy against iterations of tuning, mean and range over the seeds, a panel for each split and cell."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs: Runs = results["runs"]
    places = [(s, c) for s in SPLITS for c in CELLS if any(of(runs, s, c, t) for t in MULTI)]
    columns = min(3, max(1, len(places)))
    lines = max(1, -(-len(places) // columns))
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    colors = {"equitune": "#4477aa", "equizero": "#cc6677", "product equitune": "#228833"}
    for panel, (split, cell) in zip(panels, places, strict=False):
        for system, color in colors.items():
            histories = [run["history"] for run in of(runs, split, cell, system)]
            if not histories:
                continue
            x = [entry["update"] for entry in histories[0]]
            values = [[100 * history[k]["test"] for history in histories] for k in range(len(x))]
            panel.plot(x, [statistics.mean(some) for some in values], color=color, label=system)
            panel.fill_between(
                x, [min(some) for some in values], [max(some) for some in values], color=color, alpha=0.2
            )
        if plain := of(runs, split, cell, "network"):
            panel.axhline(statistics.mean(accuracies(plain, "plain")), color="#888888", linestyle=":", label="plain")
        panel.set_title(f"{split}, {cell}")
        panel.set_ylim(-3, 103)
        panel.set_xlabel("iterations")
    for panel in panels[len(places) :]:
        panel.set_axis_off()
    if places:
        panels[0].set_ylabel("test accuracy, %")
        panels[0].legend()
    figure.savefig(path, dpi=100)
