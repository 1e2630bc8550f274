"""What every program here says of a method, one point of a curve each, and how points are drawn and listed.

``{"panel", "ylabel", "method", "k", "forwards", "forwards_with_energy", "values"}``: where it is drawn, what its values
are, k of a method that has several points, forwards of the backbone for each input, the same with what ranking poses
takes over a forward, and a value for each seed.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.papers.figures import Table

Point = dict[str, Any]
COLORS = ("#4477aa", "#cc6677", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#999933", "#882255", "#44aa99", "#bbbbbb")
MARKS = "osD^vP*X<>h"  # one more than colors, so that all pairs differ before any comes again
UPRIGHT = "upright"  # a method of such a name is a level to reach, drawn as a line


def panels(points: list[Point]) -> list[str]:
    """Their names, in the order in which they come."""
    return list(dict.fromkeys(point["panel"] for point in points))


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± standard deviation.

    Example:
        >>> spread([1.0, 2.0]), spread([3.0])
        ('1.5 ± 0.7', '3.0')
    """
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def tables(points: list[Point]) -> list[Table]:
    """One for each panel."""
    made = []
    for panel in panels(points):
        some = [point for point in points if point["panel"] == panel]
        count = max(len(point["values"]) for point in some)
        rows = [
            [
                point["method"],
                str(point["k"] or ""),
                f"{point['forwards']:.2f}",
                f"{point['forwards_with_energy']:.2f}",
                spread(point["values"]),
            ]
            for point in some
        ]
        heads = ["", "k", "forwards", "with the ranking", some[0]["ylabel"]]
        made.append(Table(f"{panel}, {count} seed{'s' * (count > 1)}", heads, rows))
    return made


def draw(points: list[Point], path: Path) -> None:
    """Values against forwards with the ranking, means with their deviations; a panel each, three in a row, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = panels(points)
    columns = min(3, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(5.4 * columns, 5.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[len(names) :]:
        unused.remove()
    for panel, name in zip(axes, names, strict=False):
        some = [point for point in points if point["panel"] == name]
        methods = list(dict.fromkeys(p["method"] for p in some if UPRIGHT not in p["method"]))
        style = {method: (COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]) for i, method in enumerate(methods)}
        for method in dict.fromkeys(point["method"] for point in some):
            curve = sorted(
                (p for p in some if p["method"] == method and p["values"]), key=lambda p: p["forwards_with_energy"]
            )
            means = [statistics.mean(p["values"]) for p in curve]
            if method not in style:
                panel.axhline(means[0], color="#888888", linestyle=":", label=method)
                continue
            color, mark = style[method]
            panel.errorbar(
                [p["forwards_with_energy"] for p in curve],
                means,
                [statistics.stdev(p["values"]) if len(p["values"]) > 1 else 0.0 for p in curve],
                color=color,
                marker=mark,
                label=method,
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
        panel.set_title(name)
        panel.set_xlabel("forwards, with what ranking poses takes")
        panel.set_ylabel(some[0]["ylabel"])
        panel.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.savefig(path, dpi=100)
