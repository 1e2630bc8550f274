"""The networks that are wrapped: features, which λ reads, and logits of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A classifier in two parts.

    Args:
        features: (N, 3, 224, 224) → (N, F).
        head: (N, F) → logits (N, classes).
        size: F.
    """

    def __init__(self, features: nn.Module, head: nn.Module, size: int) -> None:
        super().__init__()
        self.features, self.head, self.size = features, head, size

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


class _Pooled(nn.Module):
    """EfficientNet's feature maps, averaged."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(x)
        return maps.mean((-2, -1))


class _Embedded(nn.Module):
    """CLIP's embedding of images, of length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.encoder(pixel_values=x).image_embeds, dim=-1)


class _Similarity(nn.Module):
    """100 times the cosine with every class's text."""

    texts: Tensor

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("texts", nn.functional.normalize(torch.randn(classes, size), dim=-1))

    def forward(self, embedded: Tensor) -> Tensor:
        return 100.0 * embedded @ self.texts.T


def efficientnet() -> Network:
    """EfficientNet-lite0 with its ImageNet weights: 1280 features."""
    from equikern.demo.data import classifier

    network: Any = classifier()
    return Network(_Pooled(network), network._fc, 1280)


def clip(layers: int = 12) -> Network:
    """CLIP's ViT-B/32 for images with random weights, or the first of its layers; 512 features, 100 random texts."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=layers, projection_dim=512))
    return Network(_Embedded(encoder), _Similarity(100, 512), 512)


NETWORKS: dict[str, Callable[[], Network]] = {
    "EfficientNet-lite0": efficientnet,
    "ViT-B/32": clip,
    "ViT-B/32, one layer": lambda: clip(1),
}
