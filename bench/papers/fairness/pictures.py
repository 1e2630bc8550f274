"""The bar plots: shares of regard per group and system, one picture for each kind of context, and one of the gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .contexts import SYSTEMS
from .proxies import LABELS

COLORS = {"negative": "#c8553d", "neutral": "#d9d9d6", "positive": "#3d7ea6"}
SYSTEM_COLORS = ("#7f7f7f", "#3d7ea6", "#8fc1e3", "#5b8c5a", "#b5d6a7")


def _unique(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _grid(results: dict[str, Any], title: str, height: float) -> tuple[Figure, Any, list[str], list[str]]:
    pairs, proxies = _unique(results["gaps"], "pair"), _unique(results["gaps"], "proxy")
    figure = Figure(figsize=(5.2 * len(pairs), 1.2 + height * len(proxies)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    return figure, figure.subplots(len(proxies), len(pairs), squeeze=False, sharey="row"), pairs, proxies


def _about(results: dict[str, Any]) -> str:
    settings = results["settings"]
    return f"{settings['model']}, {settings['samples']} samples a context"


def shares(results: dict[str, Any], kind: str) -> Figure:
    """Two stacked bars for every system, one a group, a column for each pair and a row for each proxy."""
    figure, grid, pairs, proxies = _grid(results, f"Regard in {kind} contexts: {_about(results)}", 3.4)
    for i, proxy in enumerate(proxies):
        for j, pair in enumerate(pairs):
            ax = grid[i, j]
            rows = [r for r in results["regard"] if (r["kind"], r["pair"], r["proxy"]) == (kind, pair, proxy)]
            groups = _unique(rows, "group")
            names = []
            for row in rows:
                side = groups.index(row["group"])
                x = SYSTEMS.index(row["system"]) + (side - 0.5) * 0.42
                names.append((x, row["group"]))
                bottom = 0.0
                for label in LABELS:
                    ax.bar(x, row[label], 0.38, bottom=bottom, color=COLORS[label], edgecolor="white", linewidth=0.6)
                    if row[label] >= 0.07:
                        middle = bottom + row[label] / 2
                        dark = "black" if label == "neutral" else "white"
                        ax.text(x, middle, f"{100 * row[label]:.0f}", ha="center", va="center", fontsize=7, color=dark)
                    bottom += row[label]
            ax.set_xticks([x for x, _ in names], [name for _, name in names], rotation=90, fontsize=8)
            for k, system in enumerate(SYSTEMS):
                ax.text(k, 1.02, system, ha="center", va="bottom", fontsize=8)
            ax.set_ylim(0, 1.08)
            ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_title(f"{pair}: {' and '.join(groups)}", fontsize=10)
        grid[i, 0].set_ylabel(f"share of texts, {proxy}")
    bars = [grid[0, 0].bar(0, 0, color=COLORS[label], label=label) for label in LABELS]
    figure.legend(handles=bars, loc="outside lower center", ncols=3, frameon=False)
    return figure


def gaps(results: dict[str, Any]) -> Figure:
    """The gap of the mean scores with two standard errors, a column for each pair and a row for each proxy."""
    figure, grid, pairs, proxies = _grid(
        results, f"Gap of the mean regard score, first group less second, ±2 standard errors: {_about(results)}", 2.7
    )
    kinds = _unique(results["gaps"], "kind")
    for i, proxy in enumerate(proxies):
        for j, pair in enumerate(pairs):
            ax = grid[i, j]
            rows = [r for r in results["gaps"] if (r["pair"], r["proxy"]) == (pair, proxy)]
            for row in rows:
                k = SYSTEMS.index(row["system"])
                x = kinds.index(row["kind"]) + (k - (len(SYSTEMS) - 1) / 2) * 0.16
                ax.bar(x, row["mean_gap"], 0.14, color=SYSTEM_COLORS[k])
                ax.errorbar(x, row["mean_gap"], 2 * row["standard_error"], color="black", linewidth=0.9, capsize=2)
            ax.axhline(0, color="black", linewidth=0.8)
            ax.set_xticks(range(len(kinds)), kinds)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_title(f"{pair}: {' less '.join(rows[0]['groups'])}", fontsize=10)
        grid[i, 0].set_ylabel(proxy)
    bars = [
        grid[0, 0].bar(0, 0, color=color, label=system) for system, color in zip(SYSTEMS, SYSTEM_COLORS, strict=True)
    ]
    figure.legend(handles=bars, loc="outside lower center", ncols=len(SYSTEMS), frameon=False)
    return figure


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """Save the pictures beside a results file; returns their paths."""
    written = []
    figures = {kind: shares(results, kind) for kind in _unique(results["regard"], "kind")} | {"gaps": gaps(results)}
    for name, figure in figures.items():
        target = path.with_name(f"{path.stem}-{name}.png")
        figure.savefig(target, dpi=100)
        written.append(target)
    return written
