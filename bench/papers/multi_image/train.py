"""The task, the networks and one training: several images of one class, each rotated on its own, one label."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench.papers.fashion.data import images_and_labels
from equikern import MultiInputEquiTune, grid, orbit_act
from torch import Tensor, nn

# The network, and whether the images are rotated in training.
SYSTEMS: dict[str, tuple[Callable[[int], nn.Module], bool]] = {
    "plain CNN, trained upright": (lambda images: Network("trivial", False, images), False),
    "plain CNN, fusion, trained upright": (lambda images: Network("trivial", True, images), False),
    "DeepSets, trained upright": (lambda _: DeepSets(), False),
    "plain CNN": (lambda images: Network("trivial", False, images), True),
    "plain CNN, fusion": (lambda images: Network("trivial", True, images), True),
    "DeepSets": (lambda _: DeepSets(), True),
    "multi-group CNN": (lambda images: Network("c4", False, images), True),
    "multi-group CNN, IS layers": (lambda images: Network("c4", True, images), True),
}
IMAGES = (2, 3, 4)  # of one set
CLASSES = 10
_images = functools.lru_cache(2)(images_and_labels)  # a run reads the files once


@dataclass(frozen=True)
class Job:
    """One training."""

    system: str
    seed: int
    images: int  # of one set
    steps: int = 600
    batch: int = 32  # sets
    train_images: int = 2000
    test_sets: int = 2000
    rate: float = 1e-3

    @property
    def name(self) -> str:
        """Of its file and its progress bar."""
        return f"{self.system.replace(', ', '-').replace(' ', '-')}-{self.images}-images-seed{self.seed}"


def job(system: str, seed: int, images: int, quick: bool = False) -> Job:
    """The paper's comparison on Fashion-MNIST; quick: that it runs, no more."""
    if quick:
        return Job(system, seed, images, steps=6, train_images=500, test_sets=64)
    return Job(system, seed, images)


class Sets:
    """Sets of images of one class, every image rotated by its own multiple of 90°."""

    def __init__(self, part: str, count: int | None, size: int) -> None:
        self.pixels, labels = _images(part, count)
        self.size = size
        self.by_class = [(labels == c).nonzero().flatten() for c in range(CLASSES)]

    def draw(self, count: int, generator: torch.Generator, turned: bool = True) -> tuple[tuple[Tensor, ...], Tensor]:
        """``count`` sets: as many tensors (count, 1, 28, 28) as a set has images, and labels (count,)."""
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        share = torch.rand(count, self.size, generator=generator)
        turns = torch.randint(0, 4, (count, self.size), generator=generator)
        held = [self.by_class[c] for c in labels.tolist()]
        chosen = torch.stack([own[(u * len(own)).long()] for own, u in zip(held, share, strict=True)])
        images = self.pixels[chosen]
        if turned:
            images = orbit_act(images, turns, grid("c4"))
        return images.unbind(1), labels


class Network(nn.Module):
    """Convolutions and a head, each shared by the images of a set and equitune-d over every image's own group.

    With ``fused`` the convolutions have a second copy whose invariant mean is added, symmetrised, to the other images'
    feature maps (an IS layer); otherwise the images meet only when their features are averaged for the classifier.
    """

    def __init__(self, group: str, fused: bool, images: int) -> None:
        super().__init__()
        groups = [group] * images

        def trunk() -> nn.Module:
            first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))

        self.trunk = MultiInputEquiTune(trunk(), groups, group, trunk() if fused else None)
        self.head = MultiInputEquiTune(_head(), groups, "trivial")
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, *images: Tensor) -> Tensor:
        """(B, 1, 28, 28) each → logits (B, 10)."""
        logits: Tensor = self.classifier(torch.stack(self.head(*self.trunk(*images))).mean(0))
        return logits


def _head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU())


class SetLayer(nn.Module):
    """What DeepSets make of a convolution: ``y_i = A x_i + B mean_j x_j``, equivariant to the order of the images."""

    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.own = nn.Conv2d(before, behind, 3, padding=1)
        self.all = nn.Conv2d(before, behind, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) → (n, B, C', H, W)."""
        y: Tensor = self.own(x.flatten(0, 1)).unflatten(0, x.shape[:2]) + self.all(x.mean(0))
        return y


class DeepSets(nn.Module):
    """DeepSets (arXiv 1703.06114) with ``Network``'s sizes: set layers, features meaned over the images, then an MLP.

    It knows that the images are a set, which ``Network`` does too, and nothing of rotations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SetLayer(1, 8), SetLayer(8, 16)])
        self.head = _head()
        self.classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, *images: Tensor) -> Tensor:
        """(B, 1, 28, 28) each → logits (B, 10)."""
        x = torch.stack(images)
        for layer in self.layers:
            x = nn.functional.max_pool2d(layer(x).relu().flatten(0, 1), 2).unflatten(0, x.shape[:2])
        logits: Tensor = self.classifier(self.head(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(0))
        return logits


def run(given: Job, folder: Path, tell: Callable[[int], None]) -> dict[str, Any]:
    """Train and test, unless the folder has the result already."""
    path = folder / f"{given.name}.json"
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text())
        if record["job"] == asdict(given):
            return record
    torch.manual_seed(given.seed)
    network, turned = SYSTEMS[given.system]
    model = network(given.images)
    optimizer = torch.optim.Adam(model.parameters(), given.rate)
    generator = torch.Generator().manual_seed(1000 + given.seed)  # the same sets for every system
    train = Sets("train", given.train_images, given.images)
    start, losses = time.perf_counter(), []
    for step in range(given.steps):
        images, labels = train.draw(given.batch, generator, turned)
        loss = nn.functional.cross_entropy(model(*images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        tell(step + 1)
    seconds = time.perf_counter() - start
    model.eval()
    test = Sets("t10k", None, given.images)
    images, labels = test.draw(given.test_sets, torch.Generator().manual_seed(7))
    upright, _ = test.draw(given.test_sets, torch.Generator().manual_seed(7), turned=False)  # the same images
    tenth = max(1, given.steps // 10)
    record = {
        "job": asdict(given),
        "accuracy": accuracy(model, images, labels),
        "upright accuracy": accuracy(model, upright, labels),
        "change under rotations": change(model, [t[:16] for t in images]),
        "loss": [sum(part) / len(part) for part in (losses[k : k + tenth] for k in range(0, given.steps, tenth))],
        "parameters": sum(p.numel() for p in model.parameters()),
        "training seconds": seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record


@torch.no_grad()
def accuracy(model: nn.Module, images: tuple[Tensor, ...], labels: Tensor) -> float:
    """The share of sets whose class has the largest logit."""
    parts = zip(*(t.split(250) for t in (*images, labels)), strict=True)
    right = sum(int((model(*part[:-1]).argmax(-1) == part[-1]).sum()) for part in parts)
    return right / len(labels)


@torch.no_grad()
def change(model: nn.Module, images: list[Tensor]) -> float:
    """How far the logits move, at most, when the images are rotated each by another multiple of 90°."""
    turned = [grid("c4").act((k + 1) % 4, t) for k, t in enumerate(images)]
    return float((model(*turned) - model(*images)).abs().max())
