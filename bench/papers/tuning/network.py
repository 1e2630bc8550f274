"""The two backbones, each a trunk and a head, and how they come to what tuning begins with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..fashion.data import Labelled, batches

CLASSES = 10
BLOCKS = 11  # of EfficientNet's 16: those behind halve maps of 4×4 once more, and 56×56 pixels leave no more


def cnn() -> nn.Sequential:
    """Three convolutions with strides and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2, stride=2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1024, 64), nn.ReLU()),
    )


class EfficientNetTrunk(nn.Module):
    """EfficientNet-lite0 up to its last maps of a sixteenth of the sides, pooled.

    Its batch norms take statistics of the batch as torchvision's networks do, a tenth at a time; its own hundredth is
    too slow for so few steps. Blocks are not dropped.

    Shapes:
        x (N, 1, 28, 28), which is seen as (N, 3, 56, 56) → features (N, 112).
    """

    def __init__(self) -> None:
        super().__init__()
        from equikern.demo.data import classifier

        network: Any = classifier()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.Sequential(*network._blocks[:BLOCKS])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        larger = nn.functional.interpolate(x, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
        pooled: Tensor = self.blocks(self.stem(larger)).mean((-2, -1))
        return pooled


class Network(nn.Module):
    """A trunk and a linear head, with weights laid out as is fastest on a CPU.

    Shapes:
        x (N, 1, 28, 28) → logits (N, 10).
    """

    def __init__(self, trunk: nn.Module, features: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(features, CLASSES)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.trunk(x))
        return logits


def pretrained(backbone: str, other: Labelled | None, steps: int, seed: int) -> Network:
    """A pretrained trunk with a new head: EfficientNet's from its package, a CNN's from so many steps on other images.

    Args:
        backbone: "efficientnet" or "cnn".
        other: images of another kind, upright, and their labels, which a CNN is trained on.
        steps: how many steps.
        seed: of the weights and of the batches.
    """
    torch.manual_seed(seed)
    if backbone == "efficientnet":
        return Network(EfficientNetTrunk(), 112)
    network = Network(cnn(), 64)
    assert other is not None
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for x, labels in batches(other, steps, 64, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    network.head.reset_parameters()
    return network


def probe(network: Network, train: Labelled, steps: int, seed: int) -> None:
    """Train the head on features of the upright training images, while the trunk stands still.

    Its batch norms take the statistics of these images first. All systems begin with the network that comes of it.
    """
    x, labels = train
    network.train()
    with torch.no_grad():
        for some in x.split(50):
            network.trunk(some)
        network.eval()
        features = torch.cat([network.trunk(some) for some in x.split(50)])
    optimizer = torch.optim.Adam(network.head.parameters(), 1e-2)
    for some, right in batches((features, labels), steps, 64, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.head(some), right).backward()
        optimizer.step()
