"""What the measurement says, beside the papers' numbers: tables for terminal and README, a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..figures import Table, markdown, middle, newest
from .names import INFERENCE, ONE_BATCH, ONE_BY_ONE, STEPS, TOGETHER, WAYS

# arXiv 2305.09900, on a GPU of theirs: seconds and MB.
PAPER = {
    "RN50": {"equitune": (14.15, 3703), "equizero": (14.10, 3703), "λ-equitune": (23.5, 3941)},
    "ViT-B/32": {"equitune": (11.00, 2589), "equizero": (10.27, 2587), "λ-equitune": (16.08, 2915)},
}
NOT_YET = "–"
GPU = "equikern, GPU"  # in one forward
COLORS = dict(zip(WAYS, ("#bbbbbb", "#777777", "#cc6677", "#4477aa"), strict=True))


def megabytes(found: dict[str, Any]) -> float:
    """Memory of a way: the parameters that it holds, and the most that a call took beside them."""
    return float(found["bytes"] + found["parameters"]) / 1e6


def cell(found: dict[str, Any]) -> str:
    """Time and memory of a way.

    Example:
        >>> cell({"seconds": [0.5, 0.4, 0.7], "bytes": 12_300_000, "parameters": 2_000_000})
        '0.50 (0.40–0.70) s, 14 MB'
    """
    return f"{middle(found['seconds'], 2)} s, {megabytes(found):.0f} MB"


def over_equitune(case: dict[str, Any], way: str) -> list[str]:
    """What λ-equitune's inference takes over equitune's: time and memory."""
    a, b = (case[INFERENCE][name][way] for name in ("λ-equitune", "equitune"))
    time = statistics.median(a["seconds"]) / statistics.median(b["seconds"])
    return [f"{value:.2f}" for value in (time, megabytes(a) / megabytes(b))]


def ratios(results: dict[str, Any], gpu: dict[str, Any] | None) -> Table:
    """λ-equitune over equitune, which is what can be compared between machines: the papers' and here."""
    rows = []
    for name, systems in PAPER.items():
        quotients = [a / b for a, b in zip(systems["λ-equitune"], systems["equitune"], strict=True)]
        rows.append([f"{name}, paper", *(f"{value:.2f}" for value in quotients), "", ""])
    for title, case in results["cases"].items():
        for way in (ONE_BY_ONE, ONE_BATCH, TOGETHER):
            more = [NOT_YET, NOT_YET]
            if gpu is not None and title in gpu["cases"]:
                more = over_equitune(gpu["cases"][title], way)
            rows.append([f"{title}, {way}", *over_equitune(case, way), *more])
    columns = ["", "time", "memory", "time, GPU", "memory, GPU"]
    return Table("λ-equitune over equitune, inference; – is not measured yet", columns, rows)


def case_table(title: str, results: dict[str, Any], gpu: dict[str, Any] | None) -> Table:
    """All systems of a network and group, a column for each way and one for equikern on a GPU."""
    rows = []
    for step, systems in STEPS.items():
        for name in systems:
            ways = results["cases"][title][step][name]
            last = NOT_YET
            if gpu is not None and title in gpu["cases"]:
                last = cell(gpu["cases"][title][step][name][TOGETHER])
            rows.append([f"{step}, {name}", *(cell(ways[way]) for way in WAYS), last])
    columns = ["", *WAYS, GPU]
    return Table(f"{title}: median (range) of {results['settings']['rounds']} rounds, and memory", columns, rows)


def tables(results: dict[str, Any], gpu: dict[str, Any] | None = None) -> list[Table]:
    """One table for each network and group, and λ-equitune's share beside the papers'."""
    return [*(case_table(title, results, gpu) for title in results["cases"]), ratios(results, gpu)]


def _about(results: dict[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    pages = "" if settings["pages_kept"] else ", fresh pages"
    return (
        f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, load {machine['load_at_start']:.1f} at "
        f"the start and {machine['load_at_end']:.1f} at the end, {results['took']} s in all; torch {machine['torch']}, "
        f"backend {machine['backends'][settings['device']]}{pages}, commit {machine['commit'] or 'unknown'}."
    )


def figures(folder: Path) -> str:
    """What README.md shows of a folder of results."""
    found = newest(folder)
    results = found.get("cpu")
    gpu = found.get("cuda")
    parts = [_about(found[kind]) for kind in sorted(found)]
    if results is not None:
        parts += map(markdown, tables(results, gpu))
    if gpu is not None:
        parts += [f"On the GPU:\n\n{markdown(case_table(title, gpu, gpu))}" for title in gpu["cases"]]
    for kind in sorted(found):
        path = found[kind]["path"]
        parts.append(f"![The same as a picture](results/{path.stem}.png)")
    return "\n\n".join(parts) or "No results yet."


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of time and of memory, a column of panels for each network and group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = results["cases"]
    figure = Figure(figsize=(1 + 5 * len(cases), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(cases), squeeze=False)
    places = [(step, name) for step, systems in STEPS.items() for name in systems]
    for column, (title, case) in zip(panels.T, cases.items(), strict=True):
        for k, way in enumerate(WAYS):
            found = [case[step][name][way] for step, name in places]
            x = [place + 0.2 * (k - 1.5) for place in range(len(places))]
            for panel, values in zip(
                column,
                ([statistics.median(one["seconds"]) for one in found], list(map(megabytes, found))),
                strict=True,
            ):
                panel.bar(x, values, 0.2, color=COLORS[way], label=way)
        column[0].set_title(title)
        for panel in column:
            panel.set_xticks(range(len(places)), [f"{step},\n{name}" for step, name in places], rotation=60, fontsize=7)
            panel.grid(axis="y", alpha=0.3)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("memory, MB")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
