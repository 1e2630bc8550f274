"""What the runs say: means and spread over the seeds, the steps of the paper's order, a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from equikern import grid

from ..figures import Table, page

SYSTEMS = (
    *("plain, upright", "plain", "equitune", "equizero", "λ-equitune", "λ-equitune, unpooled"),
    *("tuned, λ frozen", "tuned, λ following"),
)
# What the paper finds for classifiers: equizero below equitune, λ-equitune above both, and better yet once tuned.
STEPS = (
    *(("plain", "equitune"), ("equizero", "equitune"), ("equitune", "λ-equitune"), ("equizero", "λ-equitune")),
    ("λ-equitune", "tuned, λ frozen"),
)
ELEMENTS = grid("c4").group.names

Runs = list[dict[str, Any]]


def accuracies(runs: Runs, system: str) -> list[float]:
    """A system's accuracy for every seed, in percent."""
    return [100 * run["accuracy"][system] for run in runs]


def spread(values: list[float], sign: str = "") -> str:
    """Mean, and standard deviation where there are several.

    Example:
        >>> spread([1.0, 2.0]), spread([1.0], "+")
        ('1.5 ± 0.7', '+1.0')
    """
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def trust(runs: Runs) -> list[float]:
    """λ of an upright image's views, the mean over the seeds."""
    return [statistics.mean(run["trust"][g] for run in runs) for g in range(len(ELEMENTS))]


def tables(results: dict[str, Any]) -> list[Table]:
    """Accuracy by system, the steps from one to another seed by seed, and what λ trusts."""
    runs = results["runs"]
    count = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    steps = []
    for low, high in STEPS:
        gains = [b - a for a, b in zip(accuracies(runs, low), accuracies(runs, high), strict=True)]
        steps.append([f"{high} − {low}", spread(gains, "+"), f"{sum(gain > 0 for gain in gains)} of {len(gains)}"])
    return [
        Table(
            f"Accuracy on {results['settings']['test_images']} test images at random quarter turns, {count}",
            ["system", "accuracy, %"],
            [[system, spread(accuracies(runs, system))] for system in SYSTEMS],
        ),
        Table(
            "What the paper finds for CNN classifiers, seed by seed: the first above the second",
            ["", "points", "seeds in which above 0"],
            steps,
        ),
        Table(
            "λ of an upright image's views, by how they are turned",
            ["", *ELEMENTS],
            [["mean", *(f"{value:.2f}" for value in trust(runs))]],
        ),
    ]


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    settings, machine = results["settings"], results["machine"]
    made = (
        f"{settings['steps']} steps of training, {settings['lambda_steps']} of λ's and {settings['tune_steps']} of "
        f"tuning; torch {machine['torch']}, {machine['threads']} threads, commit {machine['commit'] or 'unknown'}."
    )
    return page(made, tables(results), "The same as a picture", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the accuracies, and of what λ trusts, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    systems = SYSTEMS[::-1]
    values = [accuracies(runs, system) for system in systems]
    deviations = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
    bars = left.barh(systems, [statistics.mean(each) for each in values], xerr=deviations, color="#4477aa")
    left.bar_label(bars, fmt="%.1f", padding=4)
    left.set_xlim(0, 105)
    left.set_xlabel("accuracy, %")
    left.set_title("test images at random quarter turns")
    right.bar(["0°", "90°", "180°", "270°"], trust(runs), color="#cc6677")
    right.set_title("λ of an upright image's views")
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=110)
