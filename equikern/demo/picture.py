"""The demo's picture: the idea of Figure 2 of the equi-tuning paper, and the accuracy under rotation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .data import shown
from .measure import ANGLES, Features

if TYPE_CHECKING:
    from .maps import Turned


def save(path: Path, images: Tensor, features: Features, accuracy: dict[str, list[float]]) -> None:
    """Draw and save as PNG: the image at four angles, its feature maps turned back, the errors and the accuracy."""
    figure = Figure(figsize=(11, 11.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("EfficientNet-lite0 under rotation: plain and equi-tuned over C4", fontsize=14)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 1.5))
    top, bottom = parts
    rows = top.subplots(3, 4)
    limits = [
        {"vmin": min(float(m.min()) for m in maps), "vmax": max(float(m.max()) for m in maps)}
        for maps in (features.plain_maps, features.equitune_maps)
    ]
    for k, angle in enumerate(ANGLES):
        rows[0, k].imshow(shown(torch.rot90(images[0], k, (-2, -1))).numpy())
        rows[0, k].set_title(f"input turned by {angle}°")
        rows[1, k].imshow(features.plain_maps[k].numpy(), **limits[0])
        rows[1, k].set_title(f"error {features.plain[k]:.2f}" if k else "reference", fontsize=10)
        rows[2, k].imshow(features.equitune_maps[k].numpy(), **limits[1])
        rows[2, k].set_title(f"error {features.equitune[k]:.0e}" if k else "reference", fontsize=10)
    for axes in rows.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    rows[0, 0].set_ylabel("image")
    rows[1, 0].set_ylabel("plain features,\nturned back")
    rows[2, 0].set_ylabel("equi-tuned features,\nturned back")
    left, right = bottom.subplots(1, 2)
    places = np.arange(3)
    for shift, errors, label, color in (
        (-0.2, features.plain, "plain", "tab:red"),
        (0.2, features.equitune, "equitune", "tab:blue"),
    ):
        # From 0, with numbers: an error of 0 has no bar to be seen, and no place on a logarithmic axis.
        left.bar_label(left.bar(places + shift, errors[1:], 0.4, label=label, color=color), fmt="%.2g")
    left.set_ylim(0)
    left.set_xticks(places, [f"{angle}°" for angle in ANGLES[1:]])
    left.set_title("‖f(gx) − g f(x)‖ / ‖f(x)‖, mean over the images", fontsize=10)
    left.legend(loc="center")
    for name, color, marker in zip(accuracy, ("tab:red", "tab:blue", "tab:green"), ("o", "s", "^"), strict=True):
        right.plot(ANGLES, accuracy[name], marker=marker, color=color, label=name)
    right.set_xticks(ANGLES, [f"{angle}°" for angle in ANGLES])
    right.set_ylim(0, 1)
    right.set_title("top-1 of the turned images", fontsize=10)
    right.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


def save_maps(path: Path, photos: dict[str, Tensor], found: dict[str, dict[str, Turned]]) -> None:
    """Draw and save as PNG: each photo at four angles, below it each model's text map, turned back."""
    models = list(next(iter(found.values())))
    count = 1 + len(models)
    figure = Figure(figsize=(11, 2.8 * count * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("CRAFT, a text detector, under rotation: plain and equi-tuned over C4", fontsize=14)
    rows: Any = figure.subplots(count * len(found), len(ANGLES))
    for first, photo in zip(range(0, len(rows), count), found, strict=True):
        rows[first, 0].set_ylabel(photo)
        for k, angle in enumerate(ANGLES):
            rows[first, k].imshow(shown(torch.rot90(photos[photo][0], k, (-2, -1))).numpy())
            rows[first, k].set_title(f"input turned by {angle}°", fontsize=10)
            for row, model in zip(rows[first + 1 :], models, strict=False):
                turned = found[photo][model]
                row[k].imshow(turned.maps[k].numpy(), vmin=0, vmax=1)
                row[k].set_title(f"overlap {turned.overlaps[k]:.2f}" if k else "reference", fontsize=10)
                row[0].set_ylabel(f"{model} text map,\nturned back")
    for axes in rows.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path, dpi=110)
