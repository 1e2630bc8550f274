"""The picture: shares of right answers by group, system and transformation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import stack

from . import report

COLORS = {"plain": "tab:gray", "equitune": "tab:blue", "equizero": "tab:orange", "λ-equitune": "tab:green"}


def save(results: dict[str, Any], path: Path) -> None:
    """Draw and save as PNG: a column a group; above classification, below the proxy; a small dot an element."""
    groups, labels = list(results["settings"]["groups"]), results["labels"]
    figure = Figure(figsize=(1.5 + 4.2 * len(groups), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"EfficientNet-lite0, {len(labels)} images under every element of the group; bars: 95 % of bootstraps over the "
        "images, dots: single elements",
        fontsize=11,
    )
    grid = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey="row", height_ratios=(6, 4))
    for i, task in enumerate((report.CLASSIFICATION, report.IMAGE_TEXT)):
        for j, group in enumerate(groups):
            ax = grid[i, j]
            systems = report.unique(report.of(results, task, group), "system")
            for y, system in enumerate(reversed(systems)):
                rows = report.of(results, task, group, system)
                color = COLORS[system.partition(",")[0]]
                elements = stack([report.right(row, labels).mean(1) for row in rows]).mean(0)
                low, high = report.interval(report.by_image(rows, labels))
                ax.hlines(y, low, high, color=color, linewidth=7, alpha=0.3)
                ax.plot(elements.tolist(), [y] * len(elements), "o", color=color, markersize=4, alpha=0.6)
                ax.plot(float(elements.mean()), y, "D", color=color, markersize=8, markeredgecolor="black")
            ax.set_yticks(range(len(systems)), systems[::-1])
            ax.set_title(f"{task}, {group}", fontsize=10)
            ax.set_xlim(0, 1.02)
            ax.grid(axis="x", alpha=0.3)
    for ax in grid[1]:
        ax.set_xlabel("share of right answers")
    figure.savefig(path, dpi=110)
