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
    "plain CNN": "tab:gray",
    "plain CNN, fusion": "black",
    "multi-group CNN": "tab:blue",
    "multi-group CNN, IS layers": "tab:orange",
}


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


def _of(results: dict[str, Any], system: str) -> dict[int, dict[str, Any]]:
    return {run["job"]["seed"]: run for run in results["runs"] if run["job"]["system"] == system}


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def table(results: dict[str, Any]) -> str:
    """Test accuracy over seeds, and how far each system is above the one before, seed by seed."""
    lines = [
        "| system | seeds | test accuracy | above the line before | logits move under rotations by at most |",
        "|---|---|---|---|---|",
    ]
    before: dict[int, dict[str, Any]] = {}
    for system in COLORS:
        runs = _of(results, system)
        if not runs:
            continue
        gains = [run["accuracy"] - before[seed]["accuracy"] for seed, run in runs.items() if seed in before]
        above = f"{_cell(gains)}, {sum(gain > 0 for gain in gains)} of {len(gains)} seeds" if gains else ""
        moved = max(run["change under rotations"] for run in runs.values())
        accuracy = _cell([run["accuracy"] for run in runs.values()])
        lines.append(f"| {system} | {len(runs)} | {accuracy} | {above} | {moved:.1g} |")
        before = runs
    return "\n".join(lines)


def cost_table(results: dict[str, Any]) -> str:
    """Forwards, time and memory of one call."""
    lines = [
        "| \\|G₁\\|·\\|G₂\\| | forwards: product, sum | ms: product, sum | peak MB: product, sum |",
        "|---|---|---|---|",
    ]
    for record in results["costs"]:
        m, n = record["orders"]
        cells = [
            ", ".join(f"{record[what][name] * unit:.{digits}f}" for name in ("whole product", "sum"))
            for what, unit, digits in (("forwards", 1, 0), ("seconds", 1e3, 1), ("bytes", 1e-6, 1))
        ]
        lines.append(f"| {m}·{n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plotted(results: dict[str, Any], path: Path) -> Path:
    """Accuracies of the seeds beside the costs of one call; returns the plot's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, *costs = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    systems = [system for system in COLORS if _of(results, system)]
    for k, system in enumerate(systems):
        values = [run["accuracy"] for run in _of(results, system).values()]
        left.plot([k] * len(values), values, "o", color=COLORS[system], alpha=0.6)
        left.plot([k - 0.2, k + 0.2], [statistics.mean(values)] * 2, color=COLORS[system], linewidth=2)
    left.set_xticks(range(len(systems)), [system.replace(", ", ",\n").replace(" CNN", "\nCNN") for system in systems])
    left.tick_params(axis="x", labelsize=7)
    left.set_title("sets of rotated images: test accuracy, seeds and mean", fontsize=9)
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
    return f"{table(results)}\n\n{cost_table(results)}\n\n{said}"


def update(readme: Path, path: Path) -> int:
    """Rewrite the figures of the README; returns the exit status."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        print(f"{readme}: {error}", file=sys.stderr)
        return 2
    return figures.update(readme, shown(results))
