"""What the jobs found: one results file, a table, a plot, the README's figures."""

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
from bench.papers import figures

COLORS = {"plain": "tab:gray", "equitune": "tab:blue", "equizero": "tab:orange"}
TITLES = {
    "gridworld": "Gridworld, goals of one quarter in training",
    "gridworld-all": "Gridworld, all goals in training",
    "cartpole": "CartPole-v1",
    "acrobot": "Acrobot-v1",
}


def collect(folder: Path, path: Path) -> dict[str, Any]:
    """The records of all finished jobs, as one file."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*-seed*.json"))]
    packages = ("torch", "numpy", "gymnasium", "stable-baselines3")
    results = {
        "versions": {"python": platform.python_version(), "equikern": equikern.__version__}
        | {name: version(name) for name in packages},
        "backend": equikern.active_backend("cpu"),
        "commit": figures.commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "runs": [record for record in records if len(record["curve"]) == record["job"]["legs"]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1).replace("\n      ", " ") + "\n")
    return results | {"path": path}


def of(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The runs of a task."""
    return [run for run in results["runs"] if run["job"]["task"] == task]


def tasks(results: dict[str, Any]) -> list[str]:
    """The tasks of which there are runs."""
    return [task for task in TITLES if of(results, task)]


def means(run: dict[str, Any], system: str) -> list[float]:
    """The mean return after every leg."""
    return [statistics.mean(point["returns"][system]) for point in run["curve"]]


def cell(values: list[float]) -> str:
    """Mean ± standard deviation."""
    digits = 3 if max(map(abs, values)) <= 1 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(results: dict[str, Any]) -> str:
    """Mean return and its standard deviation over seeds, of the last evaluation and of all."""
    lines = [
        "| environment | steps, seeds | evaluations "
        "| plain | equitune | equizero | equitune − plain | equizero − equitune |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks(results):
        runs = of(results, task)
        where = f"{TITLES[task]} | {runs[0]['job']['steps']:,}, {len(runs)}"
        for when in ("last", "all"):
            values = {
                system: [
                    curve[-1] if when == "last" else statistics.mean(curve)
                    for curve in (means(run, system) for run in runs)
                ]
                for system in COLORS
            }
            steps = []
            for low, high in (("plain", "equitune"), ("equitune", "equizero")):
                gains = [b - a for a, b in zip(values[low], values[high], strict=True)]
                steps.append(f"{cell(gains)}, {sum(gain > 0 for gain in gains)} of {len(gains)} seeds")
            cells = [cell(values[system]) for system in COLORS]
            lines.append(f"| {where} | {when} | {' | '.join(cells + steps)} |")
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the learning curves; returns the paths of results and plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = tasks(results)
    path: Path = results["path"]
    if not named:
        return [path]
    figure = Figure(figsize=(4.6 * len(named), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, task in zip(figure.subplots(1, len(named), squeeze=False)[0], named, strict=True):
        runs = of(results, task)
        steps = [point["steps"] / 1000 for point in runs[0]["curve"]]
        for system, color in COLORS.items():
            columns = list(zip(*(means(run, system) for run in runs), strict=True))
            mean = [statistics.mean(column) for column in columns]
            spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
            style = "--" if system == "equizero" else "-"  # it can lie on equitune's line
            ax.plot(steps, mean, style, color=color, label=system, marker="o", markersize=3)
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        ax.set_title(f"{TITLES[task]}\n{len(runs)} seeds, mean ± sd", fontsize=9)
        ax.set_xlabel("training steps of the plain DQN, thousands")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("return, greedy policy")
    figure.axes[0].legend(fontsize=8)
    target = folder / f"{path.stem}.png"
    figure.savefig(target, dpi=110)
    return [path, target]


def shown(results: dict[str, Any]) -> str:
    """What stands in the README."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    said = f"{versions}; backend {results['backend']}; commit {results['commit'] or 'unknown'}."
    return f"{table(results)}\n\n{said}"


def update(readme: Path, path: Path) -> int:
    """Rewrite the figures of the README; returns the exit status."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        print(f"{readme}: {error}", file=sys.stderr)
        return 2
    return figures.update(readme, shown(results))
