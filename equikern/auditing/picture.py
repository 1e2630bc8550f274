"""The picture of an audit: needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..repository import install
from .records import OutputAudit, SubmoduleAudit

__all__ = ["save"]

_LEAST = 1e-9  # what a logarithmic axis shows of zero
_MOST_SUBMODULES = 60


def save(
    path: Path,
    title: str,
    elements: Sequence[str],
    outputs: Sequence[OutputAudit],
    submodules: Sequence[SubmoduleAudit],
) -> None:
    """Draw and save."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the picture needs {error.name}, which is not installed: {install('audit')}",
            name=error.name,
        ) from None
    shown = submodules[:_MOST_SUBMODULES]
    figure = Figure(figsize=(12, 3.5 + (4 + 0.1 * len(shown)) * bool(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1 + bool(shown), 1, squeeze=False)[:, 0]
    places = range(len(elements))
    for output in outputs:
        label = f"{output.name}: {output.action}"
        axes[0].plot(places, [_clipped(error.rms) for error in output.errors], "o-", label=label)
        axes[0].axhline(output.tolerance, color="0.7", linestyle=":")
    axes[0].set_xticks(list(places), elements)
    axes[0].set_title(title)
    axes[0].legend()
    if shown:
        names = [f"{m.name or '(the model)'}" for m in shown]
        axes[1].plot(range(len(shown)), [_clipped(m.residual_before) for m in shown], ".", color="0.6", label="before")
        axes[1].plot(range(len(shown)), [_clipped(m.residual) for m in shown], "o-", label="behind")
        axes[1].set_xticks(range(len(shown)), names, rotation=90, fontsize=7)
        axes[1].set_title("Residual of the action that fits each submodule best")
        axes[1].legend()
    for ax in axes:
        ax.set_yscale("log")
        ax.set_ylabel("relative error")
    figure.savefig(path)


def _clipped(value: float) -> float:
    return max(value, _LEAST) if math.isfinite(value) else math.nan
