"""The demo's progress bars and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .measure import ANGLES, Features, Timing

if TYPE_CHECKING:
    from .maps import Turned

_console = Console()


def progress() -> Progress:
    """A bar for every step of the demo."""
    return Progress(
        TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=_console
    )


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def accuracy(result: dict[str, list[float]], count: int) -> None:
    """Top-1 per rotation and way to predict."""
    table = _table(f"Top-1 of EfficientNet-lite0 on {count} ImageNet images, rotated", "", *(f"{a}°" for a in ANGLES))
    for name, values in result.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    _console.print(table)


def errors(features: Features) -> None:
    """Equivariance error of the feature maps per rotation."""
    table = _table("Error of the features, ‖f(gx) − g f(x)‖/‖f(x)‖", "", *(f"{a}°" for a in ANGLES))
    table.add_row("plain", *(f"{value:.1e}" for value in features.plain))
    table.add_row("equitune", *(f"{value:.1e}" for value in features.equitune))
    _console.print(table)


def maps(found: dict[str, dict[str, Turned]]) -> None:
    """How far the text maps are from turning with the photo, and how much of the text found is the same."""
    angles = [f"{a}°" for a in ANGLES]
    errors = _table("Error of CRAFT's text maps, ‖f(gx) − g f(x)‖/‖f(x)‖", "", *angles)
    overlaps = _table("Text found in the turned photo: overlap with the upright one's, 1 is all of it", "", *angles)
    for photo, models in found.items():
        for model, turned in models.items():
            errors.add_row(f"{photo}, {model}", *(f"{value:.1e}" for value in turned.errors))
            overlaps.add_row(f"{photo}, {model}", *(f"{value:.2f}" for value in turned.overlaps))
    _console.print(errors)
    _console.print(overlaps)


def timings(rows: list[Timing], threads: int) -> None:
    """Operator times beside eager torch and a copy."""
    title = f"C4 operators, float32, {threads} threads: ms, beside eager torch and a copy of the same bytes"
    table = _table(title, "", "ours", "eager", "copy", "eager/ours", "ours/copy")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.equikern:.2f}",
            f"{row.eager:.2f}",
            f"{row.copy:.2f}",
            f"{row.eager / row.equikern:.1f}×",
            f"{row.equikern / row.copy:.2f}",
        )
    _console.print(table)
