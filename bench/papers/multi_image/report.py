"""What the trainings and the cost measurement found: one results file, tables, a plot, the README's figures."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equikern
import torch
from bench.papers import figures

COLORS = {
    "plain CNN, trained upright": "tab:red",
    "plain CNN, fusion, trained upright": "tab:brown",
    "DeepSets, trained upright": "tab:pink",
    "plain CNN": "tab:gray",
    "plain CNN, fusion": "black",
    "DeepSets": "tab:green",
    "multi-group CNN": "tab:blue",
    "multi-group CNN, IS layers": "tab:orange",
}
STEPS = (
    ("multi-group CNN, IS layers", "plain CNN, fusion, trained upright"),
    ("multi-group CNN, IS layers", "DeepSets, trained upright"),
    ("multi-group CNN, IS layers", "multi-group CNN"),
    ("plain CNN, fusion", "plain CNN"),
    ("plain CNN, fusion", "multi-group CNN, IS layers"),
    ("DeepSets", "multi-group CNN, IS layers"),
)


def written(runs: list[dict[str, Any]], costs: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """All records as one file."""
    results = {
        "versions": {"python": platform.python_version(), "equikern": equikern.__version__, "torch": version("torch")},
        "backend": equikern.active_backend("cpu"),
        "threads": torch.get_num_threads(),
        "commit": figures.commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "runs": runs,
        "costs": costs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return results


Runs = dict[int, dict[str, Any]]  # by seed


def _of(results: dict[str, Any], system: str, images: int) -> Runs:
    jobs = ((run["job"], run) for run in results["runs"])
    return {job["seed"]: run for job, run in jobs if (job["system"], job["images"]) == (system, images)}


def _sizes(results: dict[str, Any]) -> list[int]:
    return sorted({run["job"]["images"] for run in results["runs"]})


def _cell(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


def _accuracies(results: dict[str, Any], which: str, title: str) -> figures.Table:
    sizes = _sizes(results)
    rows = []
    for system in COLORS:
        each = [_of(results, system, size).values() for size in sizes]
        rows.append([system, *(_cell([run[which] for run in runs]) for runs in each)])
    return figures.Table(title, ["system", *(f"{size} images" for size in sizes)], rows)


def _difference(results: dict[str, Any], high: str, low: str, images: int) -> str:
    a, b = _of(results, high, images), _of(results, low, images)
    gains = [a[seed]["accuracy"] - b[seed]["accuracy"] for seed in a]
    return f"{_cell(gains, '+')}, {sum(gain > 0 for gain in gains)} of {len(gains)}"


def tables(results: dict[str, Any]) -> list[figures.Table]:
    """Accuracies over seeds, what one system has above another seed by seed, what rotations change, and the costs."""
    sizes = _sizes(results)
    count = len({run["job"]["seed"] for run in results["runs"]})
    moved = [
        [system, *(f"{max(r['change under rotations'] for r in _of(results, system, n).values()):.1g}" for n in sizes)]
        for system in COLORS
    ]
    columns = [f"{size} images" for size in sizes]
    return [
        _accuracies(results, "accuracy", f"Accuracy on rotated test sets, {count} seed{'s' * (count > 1)}"),
        _accuracies(results, "upright accuracy", "The same of the same test sets, upright"),
        figures.Table(
            "Rotated test sets, the first above the second, and in how many seeds it is",
            ["", *columns],
            [[f"{a} − {b}", *(_difference(results, a, b, size) for size in sizes)] for a, b in STEPS],
        ),
        figures.Table("How far logits move under rotations, at most", ["system", *columns], moved),
        _costs(results),
    ]


def _costs(results: dict[str, Any]) -> figures.Table:
    """Forwards, time and memory of one call."""
    rows = []
    for record in results["costs"]:
        m, n = record["orders"]
        cells = [
            ", ".join(f"{record[what][name] * unit:.{digits}f}" for name in ("whole product", "sum"))
            for what, unit, digits in (("forwards", 1, 0), ("seconds", 1e3, 1), ("bytes", 1e-6, 1))
        ]
        rows.append([f"{m}·{n}", *cells])
    head = ["|G₁|·|G₂|", "forwards: product, sum", "ms: product, sum", "peak MB: product, sum"]
    return figures.Table("Costs of one call", head, rows)


def plotted(results: dict[str, Any], path: Path) -> Path:
    """Accuracies of the seeds beside the costs of one call; returns the plot's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 4), layout="constrained")
    FigureCanvasAgg(figure)
    rotated, upright, *costs = figure.subplots(1, 4, width_ratios=(1.2, 1.2, 1, 1))
    sizes = _sizes(results)
    for ax, which in ((rotated, "accuracy"), (upright, "upright accuracy")):
        for k, (system, color) in enumerate(COLORS.items()):
            each = [[run[which] for run in _of(results, system, size).values()] for size in sizes]
            shift = 0.03 * (k - len(COLORS) / 2)
            for size, values in zip(sizes, each, strict=True):
                ax.plot([size + shift] * len(values), values, ".", color=color, alpha=0.4)
            ax.plot([size + shift for size in sizes], [statistics.mean(v) for v in each], color=color, label=system)
        ax.set_xticks(sizes)
        ax.set_xlabel("images of a set")
        ax.set_title(f"test accuracy, sets {'upright' if ax is upright else 'rotated'}: seeds and mean", fontsize=9)
        ax.grid(alpha=0.3)
    rotated.legend(fontsize=6)
    for ax, what, unit, label in zip(costs, ("seconds", "bytes"), (1e3, 1e-6), ("ms", "peak MB"), strict=True):
        for name, color in (("whole product", "tab:gray"), ("sum", "tab:orange")):
            points = sorted(
                (m * n, record[what][name] * unit) for record in results["costs"] for m, n in [record["orders"]]
            )
            ax.loglog(*zip(*points, strict=True), "o", color=color, label=name)
        ax.set_xlabel("|G₁|·|G₂|")
        ax.set_title(f"one call: {label}", fontsize=9)
        ax.grid(alpha=0.3)
    costs[0].legend(fontsize=8)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def shown(results: dict[str, Any]) -> str:
    """What stands in the README."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    said = f"{versions}; backend {results['backend']}, threads: {results['threads']}; "
    said += f"commit {results['commit'] or 'unknown'}."
    return "\n\n".join([*map(figures.markdown, tables(results)), "![The same as a picture](results/results.png)", said])


def update(readme: Path, path: Path) -> int:
    """Rewrite the figures of the README; returns the exit status."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        print(f"{readme}: {error}", file=sys.stderr)
        return 2
    return figures.update(readme, shown(results))
