"""What the runs say: accuracy with its spread, differences seed by seed, and accuracy against steps as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..figures import Table, made_by, page
from .names import CASES, GROUPS, SYSTEMS, WRAPPERS

Runs = dict[str, dict[str, Any]]

# What the papers find: equi-tuning above plain fine-tuning; of CNNs, equizero below equitune and λ-equitune above both.
STEPS = (("plain", "equitune"), ("equizero", "equitune"), ("equitune", "λ-equitune"))
TESTS = ("upright", "turned")


def of(runs: Runs, case: str, group: str, system: str, augmented: bool) -> dict[int, dict[str, Any]]:
    """The runs of one kind by their seeds."""
    kind = [case, group, system, "augmented" if augmented else "upright"]
    found = {int(key.split("/")[-1]): run for key, run in runs.items() if key.split("/")[:-1] == kind}
    return dict(sorted(found.items()))


def accuracies(found: dict[int, dict[str, Any]], test: str) -> dict[int, float]:
    """Accuracy for every seed, in percent."""
    return {seed: 100 * run["accuracy"][test] for seed, run in found.items()}


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± population deviation, which one value has not; a dash where there is nothing.

    Example:
        >>> spread([1.0, 2.0]), spread([1.0], "+"), spread([])
        ('1.5 ± 0.5', '+1.0', '–')
    """
    if not values:
        return "–"
    deviation = f" ± {statistics.pstdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def tables(results: dict[str, Any]) -> list[Table]:
    """A table of accuracies for each case, and the papers' steps from one system to another, seed by seed."""
    runs: Runs = results["runs"]
    made, steps = [], []
    for case in CASES:
        rows, seeds = [], 0
        for group in GROUPS:
            for system in SYSTEMS:
                for augmented in (False, True):
                    if found := of(runs, case, group, system, augmented):
                        seeds = max(seeds, len(found))
                        cells = [spread(list(accuracies(found, test).values())) for test in TESTS]
                        trained = "augmented" if augmented else "as they are"
                        rows.append([f"{group}, {system}", trained, *cells, str(len(found))])
            steps += [row for low, high in STEPS if (row := _step(runs, case, group, low, high))]
        if rows:
            plan = results["settings"]["plans"][case]
            title = f"{case}: right answers of {plan['tested']} test images, percent, {_seeds(seeds)}"
            heads = ["", "training images", "test: as they are", "test: augmented", "seeds"]
            made.append(Table(title, heads, rows))
    heads = [
        "test: augmented",
        "training images as they are",
        "of the seeds above 0",
        "augmented",
        "of the seeds above 0",
    ]
    return [*made, Table("Differences seed by seed, points", heads, steps)]


def _seeds(count: int) -> str:
    return f"mean ± population deviation over {count} seeds" if count > 1 else "one seed"


def _step(runs: Runs, case: str, group: str, low: str, high: str) -> list[str] | None:
    row = [f"{case}, {group}: {high} − {low}"]
    for augmented in (False, True):
        first = accuracies(of(runs, case, group, low, augmented), "turned")
        # Where invariant models are trained once, that is what augmentation of their training leaves as it is.
        again = of(runs, case, group, high, augmented) or of(runs, case, group, high, False)
        second = accuracies(again, "turned")
        gains = [second[seed] - first[seed] for seed in first if seed in second]
        row += [spread(gains, "+"), f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else "–"]
    return row if row[1] != "–" or row[3] != "–" else None


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    return page(made_by(results), tables(results), "Accuracy against steps", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy on augmented test images against steps, mean and range over the seeds; a panel a case and group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs: Runs = results["runs"]
    cases = [case for case in CASES if any(key.split("/")[0] == case for key in runs)] or list(CASES)[:1]
    figure = Figure(figsize=(4.6 * len(GROUPS), 3.0 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), len(GROUPS), squeeze=False, sharey="row")
    lines = [("plain", False, "#888888", ":"), ("plain", True, "#888888", "-")]
    lines += [
        (name, False, color, "-") for name, color in zip(WRAPPERS, ("#4477aa", "#cc6677", "#228833"), strict=True)
    ]
    for row, case in zip(panels, cases, strict=True):
        for panel, group in zip(row, GROUPS, strict=True):
            for system, augmented, color, style in lines:
                curves = [run["curve"] for run in of(runs, case, group, system, augmented).values()]
                if not curves:
                    continue
                x = [step for step, _ in curves[0]]
                values = [[100 * curve[k][1] for curve in curves] for k in range(len(x))]
                label = f"{system}, augmented" if augmented else system
                means = [statistics.mean(some) for some in values]
                panel.plot(x, means, color=color, linestyle=style, label=label)
                low, high = [min(some) for some in values], [max(some) for some in values]
                panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            panel.set_title(f"{case}, {group}")
            panel.set_xlabel("steps")
        row[0].set_ylabel("accuracy, augmented test, %")
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
