"""What the demo measures: accuracy under rotation, equivariance of features, time of the group operators."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import EquiTune, grid, orbit, orbit_mean, orbit_select, trivial

C4 = grid("c4")
ANGLES = (0, 90, 180, 270)
BATCH = 5  # images at a time: four views each through the backbone


def equizero(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of the view with the largest class probability: x (B, 3, H, W) → (B, classes)."""
    logits = model(orbit(x, C4).flatten(0, 1)).view(C4.order, x.shape[0], -1)
    chosen = orbit_select(logits, "max_prob", trivial(C4.group))  # by logarithms: probabilities round to 1
    assert isinstance(chosen, Tensor)
    return chosen


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor, steps: Any) -> dict[str, list[float]]:
    """Share of right answers for the images rotated by 0, 90, 180 and 270 degrees, for three ways to predict."""
    equitune = EquiTune(model, C4, "trivial")
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": model,
        "equitune (mean of logits)": equitune,
        "equizero (largest probability)": lambda x: equizero(model, x),
    }
    task = steps.add_task("top-1 of rotated images", total=len(ways) * len(ANGLES))
    result: dict[str, list[float]] = {}
    for name, predict in ways.items():
        result[name] = []
        for k in range(len(ANGLES)):
            rotated = torch.rot90(images, k, (-2, -1))
            answers = torch.cat([predict(part).argmax(1) for part in torch.split(rotated, BATCH)])
            result[name].append((answers == labels).float().mean().item())
            steps.advance(task)
    return result


class Features(NamedTuple):
    """Errors ``‖f(gx) − g f(x)‖ / ‖f(x)‖`` for each rotation, mean over the images, and one image's maps."""

    plain: list[float]
    equitune: list[float]
    plain_maps: list[Tensor]  # one image's f(gx) turned back by g⁻¹, channels averaged, one (7, 7) map per rotation
    equitune_maps: list[Tensor]


@torch.inference_mode()
def feature_errors(model: Any, images: Tensor, steps: Any) -> Features:
    """How far the backbone's 1280×7×7 feature maps are from turning with the image, before and after equitune."""
    task = steps.add_task("equivariance of features", total=2 * len(ANGLES))
    errors: list[list[float]] = []
    maps: list[list[Tensor]] = []
    for f in (model.extract_features, EquiTune(model.extract_features, C4, C4)):
        upright = torch.cat([f(part) for part in torch.split(images, BATCH)])
        errors.append([])
        maps.append([])
        for k in range(len(ANGLES)):
            turned = torch.cat([f(part) for part in torch.split(torch.rot90(images, k, (-2, -1)), BATCH)])
            back = torch.rot90(turned, -k, (-2, -1))
            error = (back - upright).flatten(1).norm(dim=1) / upright.flatten(1).norm(dim=1)
            errors[-1].append(error.mean().item())
            maps[-1].append(back[0].mean(0))
            steps.advance(task)
    return Features(errors[0], errors[1], maps[0], maps[1])


class Timing(NamedTuple):
    """Milliseconds of one operator: this package's, eager torch's, and of copying the bytes the operator must move."""

    name: str
    equikern: float
    eager: float
    copy: float


@torch.inference_mode()
def timings(steps: Any, rounds: int = 15) -> list[Timing]:
    """Median times of the C4 orbit of a batch of images and the mean of its views, written into given memory."""
    shapes = (32, 3, 224, 224), (16, 64, 56, 56)
    task = steps.add_task("time of the group operators", total=2 * len(shapes))
    result = []
    for shape in shapes:
        x, y = torch.randn(shape), torch.randn(C4.order, *shape)
        views, mean = torch.empty_like(y), torch.empty_like(x)
        # Reads plus writes are |G| + 1 tensors; a copy of half as many elements moves the same bytes.
        source = torch.randn(x.numel() * (C4.order + 1) // 2)
        target = torch.empty_like(source)

        def eager_orbit(x: Tensor = x) -> Tensor:
            return torch.stack([torch.rot90(x, k, (-2, -1)) for k in range(C4.order)])

        def eager_mean(y: Tensor = y) -> Tensor:
            return torch.stack([torch.rot90(y[k], -k, (-2, -1)) for k in range(C4.order)]).mean(0)

        def copy(target: Tensor = target, source: Tensor = source) -> Tensor:
            return target.copy_(source)

        pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            "orbit": (lambda x=x, views=views: orbit(x, C4, out=views), eager_orbit),  # type: ignore[misc]
            "orbit_mean": (lambda y=y, mean=mean: orbit_mean(y, C4, out=mean), eager_mean),  # type: ignore[misc]
        }
        for operator, (ours, eager) in pairs.items():
            torch.testing.assert_close(ours(), eager())
            times = [[_milliseconds(f) for f in (ours, eager, copy)] for _ in range(rounds)]
            result.append(
                Timing(f"{operator} {'×'.join(map(str, shape))}", *map(statistics.median, zip(*times, strict=True)))
            )
            steps.advance(task)
    return result


def _milliseconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return 1e3 * (time.perf_counter() - start)
