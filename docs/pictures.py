"""Draws the pictures of docs/gallery.md from real runs: ``python docs/pictures.py [name …]``, extra ``demo``."""

from __future__ import annotations

import io
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equikern import (
    Audit,
    CanonicalEquiTune,
    EquiTune,
    GroupConv2d,
    audit,
    boxes,
    field,
    grid,
    keypoints,
    orbit,
    orbit_act,
    orbit_mean,
)
from equikern.demo import data
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).resolve().parent / "pictures"
D4, C4 = grid("d4"), grid("c4")
ANGLES = (0, 90, 180, 270)


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        torch.manual_seed(0)
        with torch.inference_mode():
            found = PICTURES[name]()
        drawn = io.BytesIO()
        if isinstance(found, Audit):  # which draws itself
            with tempfile.TemporaryDirectory() as folder:
                found.plot(f"{folder}/audit.png")
                drawn.write(Path(folder, "audit.png").read_bytes())
        else:
            FigureCanvasAgg(found)
            found.savefig(drawn, dpi=80)
        path = FOLDER / f"{name}.png"
        Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1024} kB")


def photograph(number: int = 0) -> Tensor:
    """One of the demo's images (3, 224, 224), as a network sees it."""
    return data.images()[number]


def axes_of(figure: Figure, rows: int, columns: int) -> Any:
    """Axes without ticks."""
    found = figure.subplots(rows, columns, squeeze=False)
    for axes in found.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return found


def views() -> Figure:
    """The eight views of an image, and each turned back."""
    x = photograph()
    seen = orbit(x, D4)
    back = torch.stack([D4.act(int(D4.group.inverse[g]), seen[g]) for g in range(8)])
    assert torch.equal(back, x.expand(8, -1, -1, -1))
    assert torch.allclose(orbit_mean(seen, D4), x, atol=1e-6)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for g, (top, bottom) in enumerate(axes_of(figure, 2, 8).T):
        top.imshow(data.shown(seen[g]))
        top.set_title(D4.group.names[g], fontsize=10)
        bottom.imshow(data.shown(back[g]))
    figure.axes[0].set_ylabel("views")
    figure.axes[8].set_ylabel("turned back")
    return figure


def error() -> Figure:
    """The features of EfficientNet-lite0 of an image at four angles, turned back: plain and wrapped."""
    model: Any = data.classifier()
    x = photograph()[None]
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    rows = axes_of(figure, 3, 4)
    for k, angle in enumerate(ANGLES):
        rows[0, k].imshow(data.shown(x[0].rot90(k, (-2, -1))))
        rows[0, k].set_title(f"turned by {angle}°", fontsize=10)
    ways = {"plain": model.extract_features, "EquiTune": EquiTune(model.extract_features, C4, C4)}
    for row, (name, network) in zip(rows[1:], ways.items(), strict=True):
        maps = [network(x.rot90(k, (-2, -1))).rot90(-k, (-2, -1))[0] for k in range(4)]
        means = [y.mean(0).numpy() for y in maps]
        limits = {"vmin": min(y.min() for y in means), "vmax": max(y.max() for y in means)}
        for k, axes in enumerate(row):
            axes.imshow(means[k], **limits)
            away = float((maps[k] - maps[0]).norm() / maps[0].norm())
            axes.set_title(f"error {away:.2g}" if k else "reference", fontsize=10)
        row[0].set_ylabel(f"{name}:\nfeatures, turned back")
    rows[0, 0].set_ylabel("image")
    return figure


def poses() -> Figure:
    """An image as it may come in, and the pose that the model sees: the same for all eight."""
    model = CanonicalEquiTune(torch.nn.Identity(), "d4", "d4", "gradient")
    seen = orbit(photograph(3), D4)
    found = model.elements(seen)[0]
    posed = orbit_act(seen, found, D4)
    assert torch.equal(posed, posed[:1].expand_as(posed))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for g, (top, bottom) in enumerate(axes_of(figure, 2, 8).T):
        top.imshow(data.shown(seen[g]))
        bottom.imshow(data.shown(posed[g]))
        bottom.set_title(f"by {D4.group.names[int(found[g])]}", fontsize=10)
    figure.axes[0].set_ylabel("comes in")
    figure.axes[8].set_ylabel("canonical pose")
    return figure


def coordinates() -> Figure:
    """Keypoints and a box, turned and flipped with their image."""
    x = photograph(5)[:, :160]  # a rectangle
    size = (x.shape[-2], x.shape[-1])
    points = torch.tensor([[70.0, 60.0], [130.0, 60.0], [100.0, 120.0]])
    box = torch.tensor([45.0, 35.0, 190.0, 150.0])
    face, around = keypoints("d4", swap=[1, 0, 2]), boxes("d4")
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, g in zip(axes_of(figure, 1, 5)[0], (0, 1, 2, 4, 5), strict=True):
        axes.imshow(data.shown(D4.act(g, x)), extent=(0, *D4.act(g, x).shape[:0:-1], 0))
        left, top, right, bottom = around.act(g, box, size).tolist()
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="yellow", lw=2))
        for (across, down), name in zip(face.act(g, points, size).tolist(), "LRN", strict=True):
            axes.plot(across, down, "o", color="red", markersize=5)
            axes.annotate(name, (across, down), (5, -5), textcoords="offset points", color="white", fontsize=11)
        axes.set_title(D4.group.names[g], fontsize=10)
    return figure


def flow() -> Figure:
    """A vortex beside a source: turned as vectors, and as two maps, which is wrong."""
    down, across = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12), indexing="ij")
    vectors = torch.stack((0.3 - down, across.abs() + 0.2))  # (dx, dy)
    kinds = {"a flow": vectors, 'field(grid("c4"), "vector")': field(C4, "vector").act(1, vectors)}
    kinds['"c4": as two maps, wrong'] = C4.act(1, vectors)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (name, v) in zip(axes_of(figure, 1, 3)[0], kinds.items(), strict=True):
        axes.quiver(v[0].numpy(), v[1].numpy(), np.hypot(*v.numpy()), angles="xy")
        axes.set_aspect("equal")
        axes.invert_yaxis()  # dy counts downwards, as rows do
        axes.set_title(name, fontsize=10)
    return figure


def maps() -> Figure:
    """The four entries of a group convolution, of an image and of the turned image."""
    lift = GroupConv2d("c4", 3, 1, 9, inp="trivial", padding=4)
    x = photograph(7)[None]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    rows = axes_of(figure, 2, 5)
    z, turned = lift(x)[0, 0], lift(x.rot90(1, (-2, -1)))[0, 0]
    for g in range(4):
        assert torch.allclose(turned[g], z[(g + 1) % 4].rot90(1, (-2, -1)), atol=1e-4)
    for row, image, features in zip(rows, (x[0], x[0].rot90(1, (-2, -1))), (z, turned), strict=True):
        row[0].imshow(data.shown(image))
        for g in range(4):
            row[g + 1].imshow(features[g].numpy(), cmap="gray", vmin=float(z.min()), vmax=float(z.max()))
            row[g + 1].set_title(f"entry {C4.group.names[g]}", fontsize=10)
    return figure


def audited() -> Audit:
    """The audit of a network of symmetric convolutions, but for one in the middle."""
    plain = [torch.nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8)]
    layers = OrderedDict[str, torch.nn.Module]()
    for number, conv in enumerate(plain, 1):
        layers[f"conv{number}"] = conv if number == 3 else EquiTune(conv, C4, C4)
        layers[f"relu{number}"] = torch.nn.ReLU()
    return audit(torch.nn.Sequential(layers).eval(), photograph()[None], "c4")


PICTURES: dict[str, Callable[[], Figure | Audit]] = {
    "views": views,
    "error": error,
    "poses": poses,
    "coordinates": coordinates,
    "flow": flow,
    "maps": maps,
    "audit": audited,
}

if __name__ == "__main__":
    main(sys.argv[1:])
