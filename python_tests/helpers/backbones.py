"""Small backbones whose outputs no group leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """A backbone that counts the samples it sees."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.samples = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        y: Tensor = self.inner(x)
        return y


class Pooled(nn.Module):
    """Vectors from images of any size; neither invariant to anything."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(32, size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(nn.functional.adaptive_avg_pool2d(self.conv(x).tanh(), 2).flatten(1))
        return y


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1))


def classifier(**changed: Any) -> Any:
    """A small vision transformer of transformers for 12×12 images and five classes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=12,
        patch_size=4,
        num_labels=5,
        **changed,
    )
    return transformers.ViTForImageClassification(config).eval()
