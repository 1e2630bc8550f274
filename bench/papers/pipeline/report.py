"""What the times say: shares of the backbone's time, λ-equitune over equitune; tables for terminal and README."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..figures import Table, markdown, middle, newest

SHARE, RATIO = 0.02, 1.1  # the goals
MERGES = {  # what each wrapper calls behind its backbone
    "equitune": "mean of the logits",
    "equizero": "score and selection of the logits",
    "λ-equitune": "weighted mean of the logits",
    "equitune of feature maps": "mean of the feature maps",
}


def outside(rounds: list[dict[str, float]]) -> list[float]:
    """What a wrapper takes beside its backbone, as a share of what the backbone takes, for each round.

    Example:
        >>> outside([{"total": 1.5, "backbone": 1.0}])
        [0.5]
    """
    return [(one["total"] - one["backbone"]) / one["backbone"] for one in rounds]


def over(rounds: list[dict[str, float]], others: list[dict[str, float]]) -> list[float]:
    """A wrapper's whole time over another's, round by round.

    Example:
        >>> over([{"total": 3.0}], [{"total": 2.0}])
        [1.5]
    """
    return [a["total"] / b["total"] for a, b in zip(rounds, others, strict=True)]


def _verdict(value: float, goal: float) -> str:
    return "" if value <= goal else " ✗"


def tables(results: dict[str, Any]) -> list[Table]:
    """The wrappers, then the operators alone."""
    settings, rows, alone = results["settings"], [], []
    for group, found in results["groups"].items():
        backbone = statistics.median(one["backbone"] for one in found["wrappers"]["equitune"])
        for name, rounds in found["wrappers"].items():
            shares = outside(rounds)
            calls = zip(*(found["operators"][call] for call in ("orbit of the images", MERGES[name])), strict=True)
            operators = statistics.median(map(sum, calls)) / statistics.median(one["backbone"] for one in rounds)
            ratios = over(rounds, found["wrappers"]["equitune"]) if name == "λ-equitune" else []
            rows.append(
                [
                    f"{group}, {name}",
                    middle([one["backbone"] for one in rounds], 0, 1000),
                    f"{100 * operators:.2f}{_verdict(operators, SHARE)}",
                    middle(shares, 2, 100) + _verdict(statistics.median(shares), SHARE),
                    middle(ratios, 3) + _verdict(statistics.median(ratios), RATIO) if ratios else "",
                ]
            )
        for name, seconds in found["operators"].items():
            share = 100 * statistics.median(seconds) / backbone
            alone.append([f"{group}, {name}", middle(seconds, 2, 1000), f"{share:.2f}"])
    b, size = settings["batch"], settings["size"]
    about = f"median (range) of {settings['rounds']} rounds"
    return [
        Table(
            f"Forward of {b} images {size}×{size} under every element of the group, {about}; ✗ misses its goal",
            ["", "backbone, ms", "operators, % of it (≤ 2)", "all else, % of it (≤ 2)", "over equitune (≤ 1.1)"],
            rows,
        ),
        Table(f"The operators alone, {about}", ["", "ms", "% of the backbone"], alone),
    ]


def _pages(settings: dict[str, Any]) -> str:
    return "" if settings["pages_kept"] else ", fresh pages"


def figures(folder: Path) -> str:
    """What README.md shows of a folder of results."""
    parts = []
    for results in newest(folder).values():
        machine, settings = results["machine"], results["settings"]
        parts.append(
            f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, {settings['batch']} images, load "
            f"{machine['load_at_start']:.1f} at the start; torch {machine['torch']}, backend "
            f"{machine['backends'][settings['device']]}, "
            f"views of a forward: {settings['views_per_forward'] or 'all'}{_pages(settings)}, commit "
            f"{machine['commit'] or 'unknown'}."
        )
        parts += map(markdown, tables(results))
    return "\n\n".join(parts) or "No results yet."
