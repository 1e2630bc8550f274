"""The models that the processes of ``helpers.rank_cases`` share the views of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from equikern import vector_frame
from equikern.nn.containers import leaves
from torch import Tensor, nn


class Maps(nn.Module):
    """A map and logits of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"map": y, "logits": self.head(y.relu().mean((-2, -1)))}


class First(nn.Module):
    """The first of a model's outputs: a loss that says nothing of the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *xs: Tensor) -> Tensor:
        first: Tensor = leaves(self.model(*xs))[0]
        return first


class Several(nn.Module):
    """An image and a mask that turn, numbers of each sample, and a kernel for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor, kernel: Tensor) -> Tensor:
        y: Tensor = self.conv(x * mask) + nn.functional.conv2d(x, kernel, padding=1)
        return y * scale[..., None, None]


@dataclass
class Said:
    """What ``Asked`` says."""

    map: Tensor
    pair: tuple[Tensor, None]
    anchors: Tensor
    steps: int


class Asked(nn.Module):
    """Called by names alone: an image, numbers of each sample, and a mask that turns beside words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.5]))

    def forward(self, *, image: Tensor, prompt: Tensor, extra: dict[str, Any]) -> Said:
        assert len(extra["words"]) == len(image) == len(prompt)
        y = self.conv(image * extra["mask"]) * prompt[..., None, None]
        return Said(y, (y.square().mean((-2, -1)), None), self.scale * 2, 7)


class ByName(nn.Module):
    """A wrapper of ``Asked`` as it is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor, prompt: Tensor) -> tuple[Tensor, ...]:
        extra = {"mask": mask, "words": ["a"] * len(x)}
        said = self.model(prompt=prompt, image=x, extra=extra)
        assert (said.steps, said.pair[1]) == (7, None)
        assert torch.equal(said.anchors, torch.tensor([1.0, 3.0]))
        return said.map, said.pair[0], said.anchors


class Clouds(nn.Module):
    """Two sets of points that turn and numbers of each sample, to numbers and points."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 4), nn.Linear(6, 6)

    def forward(self, x: Tensor, other: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        said = self.first(x.flatten(1)).tanh()
        return said * scale, self.second(other.flatten(1)).unflatten(1, (3, 2)) + said.mean(1)[:, None, None]


class Frame(nn.Module):
    """A rotation that turns with points and learns which of them counts."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.3, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return vector_frame((x * self.share[:, None]).sum(1, keepdim=True))


class Finder(nn.Module):
    """Boxes around the brightest pixels, how many differs, with masks and keypoints of theirs."""

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            plane = image[0] * torch.linspace(0.7, 1.0, image.shape[-1])  # not equivariant
            rows, columns = (plane > 0.7 * plane.max()).nonzero().T
            low, score = torch.stack((columns, rows), 1).float(), plane[rows, columns].clamp(0, 1)
            found.append(
                {
                    "boxes": torch.cat((low, low + 1.5 + score[:, None]), 1),
                    "scores": score,
                    "labels": (image[1, rows, columns] > 0.5).long(),
                    "masks": plane * score[:, None, None],
                    "points": low[:, None] + torch.tensor([[0.5, 0.25], [1.0, 0.5]]),
                }
            )
        return found


def conv() -> nn.Module:
    return nn.Conv2d(2, 3, 3, padding=1)


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def positive() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid())


def regressor() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.Unflatten(1, (3, 2)))


def coordinates() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(10, 6), nn.Tanh(), nn.Unflatten(1, (3, 2)))
