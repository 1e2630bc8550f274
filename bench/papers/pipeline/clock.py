"""The systems that are timed, and how: the backbone's share of a wrapper's forward, read off by hooks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from equikern import (
    EquiTune,
    EquiZero,
    GroupAction,
    LambdaEquiTune,
    orbit,
    orbit_mean,
    orbit_score,
    orbit_select,
    orbit_weighted_mean,
    trivial,
)
from torch import Tensor, nn

FEATURES, COUNT = "_dropout", 1280  # the submodule behind EfficientNet's pooling, and how many numbers it gives
CALLS = 5


def now(device: str) -> float:
    """Seconds, once the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """The seconds that a module spends in its forwards, from its hooks.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> clock = Clock(layer, "cpu")
        >>> _ = layer(torch.zeros(1, 2)), layer(torch.zeros(1, 2))
        >>> clock.take() > 0, clock.take()
        (True, 0.0)
    """

    def __init__(self, module: nn.Module, device: str) -> None:
        self._device, self._seconds, self._began = device, 0.0, 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._began = now(self._device)

    def _stop(self, *_: Any) -> None:
        self._seconds += now(self._device) - self._began

    def take(self) -> float:
        """The seconds since it was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class FeatureMaps(nn.Module):
    """EfficientNet as far as its 1280 feature maps: (N, 3, 224, 224) → (N, 1280, 7, 7)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The feature maps."""
        features: Tensor = self.network.extract_features(x)
        return features


def wrappers(network: nn.Module, action: GroupAction, views_per_forward: int | None) -> dict[str, Any]:
    """The wrappers that are timed, by their names in the tables."""
    some = {"views_per_forward": views_per_forward}
    return {
        "equitune": EquiTune(network, action, "trivial", **some),  # type: ignore[arg-type]
        "equizero": EquiZero(network, action, "trivial", **some),  # type: ignore[arg-type]
        "λ-equitune": LambdaEquiTune(network, action, "trivial", COUNT, FEATURES, **some),  # type: ignore[arg-type]
        "equitune of feature maps": EquiTune(FeatureMaps(network), action, action, **some),  # type: ignore[arg-type]
    }


def operators(x: Tensor, logits: Tensor, maps: Tensor, action: GroupAction) -> dict[str, Callable[[], object]]:
    """The group operators alone, as the wrappers call them.

    Args:
        x: the batch, (B, 3, H, W).
        logits: of every view, (|G|, B, classes).
        maps: features of every view, (|G|, B, C, h, w).
        action: on the images and the feature maps.
    """
    still = trivial(action.group)
    weights = torch.randn(logits.shape[:2], device=x.device)
    return {
        "orbit of the images": lambda: orbit(x, action),
        "mean of the logits": lambda: orbit_mean(logits, still),
        "score and selection of the logits": lambda: orbit_select(logits, orbit_score(logits, "max_prob"), still),
        "weighted mean of the logits": lambda: orbit_weighted_mean(logits, weights, still, "softmax"),
        "mean of the feature maps": lambda: orbit_mean(maps, action),
    }


@torch.inference_mode()
def check(model: Any, x: Tensor, equivariant: bool, action: GroupAction) -> None:
    """Refuse to time a wrapper that is not equivariant to 1e-4, relative, on a batch x.

    Raises:
        AssertionError: it is not.
    """
    y, turned = model(x), model(action.act(action.order - 1, x))
    expected = action.act(action.order - 1, y) if equivariant else y
    error = float((turned - expected).norm() / expected.norm())
    assert error < 1e-4, f"{model}: equivariance error {error:.1e}"


@torch.inference_mode()
def one_round(
    models: dict[str, Any], clocks: dict[str, Clock], x: Tensor, device: str, shift: int, advance: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Each wrapper's forward once, beginning with another one every round: seconds in all and in the backbone."""
    names = list(models)
    found: dict[str, dict[str, float]] = {}
    for name in names[shift % len(names) :] + names[: shift % len(names)]:
        clocks[name].take()
        start = now(device)
        models[name](x)
        found[name] = {"total": now(device) - start, "backbone": clocks[name].take()}
        advance()
    return found


@torch.inference_mode()
def one_by_one(calls: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Seconds of each operator, the median of ``CALLS``."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CALLS):
        for name, call in calls.items():
            start = now(device)
            result = call()
            found[name].append(now(device) - start)
            del result
    return {name: statistics.median(seconds) for name, seconds in found.items()}
