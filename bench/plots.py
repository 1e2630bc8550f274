"""Pictures of a results file: percent of the copy bandwidth by shape, and the ratio to each provider.

One of each for the operators on images, on fields and volumes, and on logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.page import family
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = [colormaps["tab20"](k) for k in (*range(0, 20, 2), *range(1, 20, 2))]  # the dark ones, then the light ones
MARKERS = "ooss^^DD"  # by group, every other one hollow
DIRECTIONS = ("forward", "backward", "both")


def _figure(title: str, columns: int, rows: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(1 + 6 * columns, 1 + 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=True)


def _place(row: dict[str, Any]) -> str:
    """A place on the axis of shapes."""
    return f"{'×'.join(map(str, row['shape']))} {row['state']}"


def draw(path: Path) -> list[Path]:
    """Draw the results beside their file; returns the pictures' paths."""
    results = json.loads(path.read_text())
    written = []
    for device in sorted({row["device"] for row in results["kernels"]}):
        rows = [row for row in results["kernels"] if row["device"] == device]
        machine = results["machine"]
        name = f"{machine['gpu'] if device == 'cuda' else machine['cpu']}, commit {machine['commit'] or 'unknown'}"
        for prefix, members in _families(rows).items():
            for what, draw_one in (("copy", _copy), ("providers", _providers)):
                target = path.with_name(f"{path.stem}-{device}-{prefix}{what}.png")
                draw_one(members, name).savefig(target, dpi=110)
                written.append(target)
    return written


def _families(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = family(row)
        found.setdefault("" if name == "images" else f"{name}-", []).append(row)
    return found


def _copy(rows: list[dict[str, Any]], name: str) -> Figure:
    operators = list(dict.fromkeys(row["operator"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    directions = [d for d in DIRECTIONS if any(row["direction"] == d for row in rows)]
    step = min(0.09, 0.8 / len(operators))
    figure, axes = _figure(f"Percent of the copy bandwidth\n{name}", len(directions), len(dtypes))
    for i, dtype in enumerate(dtypes):
        for j, direction in enumerate(directions):
            ax = axes[i, j]
            shown = [r for r in rows if (r["dtype"], r["direction"]) == (dtype, direction) and r["percent_of_copy"]]
            if not shown:  # no such case is measured
                ax.set_axis_off()
                continue
            shapes = list(dict.fromkeys(_place(r) for r in shown))
            for k, operator in enumerate(operators):
                for g, group in enumerate(groups):
                    points = [
                        (shapes.index(_place(r)), r["percent_of_copy"])
                        for r in shown
                        if (r["operator"], r["group"]) == (operator, group)
                    ]
                    if points:
                        x, y = zip(*points, strict=True)
                        shift = (k - (len(operators) - 1) / 2) * step + (g - (len(groups) - 1) / 2) * 0.04
                        label = f"{operator}, {group}"
                        ax.scatter(
                            [p + shift for p in x],
                            y,
                            color=COLORS[k],
                            facecolor="none" if g % 2 else COLORS[k],
                            marker=MARKERS[g],
                            s=28,
                            label=label,
                        )
            ax.axhline(100, color="black", linewidth=0.8)
            ax.set_xlim(-0.6, len(shapes) - 0.4)
            ax.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right", fontsize=8)
            ax.set_title(f"{direction}, {dtype}", fontsize=10)
            ax.grid(axis="y", alpha=0.3)
            ax.set_ylim(bottom=0)
        axes[i, 0].set_ylabel("% of copy")
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        found, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    return figure


def _providers(rows: list[dict[str, Any]], name: str) -> Figure:
    operators = list(dict.fromkeys(row["operator"] for row in rows))
    providers = list(dict.fromkeys(p for row in rows for p in row["over_equikern"]))
    directions = [d for d in DIRECTIONS if any(row["direction"] == d for row in rows)]
    figure, axes = _figure(
        f"How many times longer the others take (every shape, group and dtype; above 1 equikern is faster)\n{name}",
        len(directions),
        1,
    )
    for ax, direction in zip(axes[0], directions, strict=True):
        for k, provider in enumerate(providers):
            points = [
                (operators.index(r["operator"]) + (k - (len(providers) - 1) / 2) * 0.2, r["over_equikern"][provider])
                for r in rows
                if r["direction"] == direction and r["over_equikern"].get(provider)
            ]
            if points:
                x, y = zip(*points, strict=True)
                ax.scatter(x, y, color=COLORS[k], s=18, alpha=0.6, label=provider)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_yscale("log")
        ax.set_yticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
        ax.set_xticks(range(len(operators)), operators, rotation=25, ha="right")
        ax.set_title(direction, fontsize=10)
        ax.grid(axis="y", alpha=0.3)
        ax.legend(fontsize=8)
    axes[0, 0].set_ylabel("time / equikern's time")
    return figure
