"""The backbones, the energies, and what of the photographs the small one learns from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.papers.tuning.network import Network
from equikern import energy_network, weight_network
from torch import Tensor, nn

FEATURES, MAPS = "trunk.5", 96 * 4 * 4  # the CNN's last maps, which λ reads unpooled
BLOCKS = 5  # of EfficientNet's 16, which the energy of photographs reads
CELLS = 32  # to how many a side photographs are scaled down for their energy


def cnn() -> Network:
    """Three convolutions with strides and two linear layers: (N, 1, 28, 28) → logits (N, 10)."""
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 24, 5, padding=2, stride=2), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Conv2d(48, 96, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(MAPS, 64), nn.ReLU()),
    )
    return Network(trunk, 64)


def energy(size: int = 28, hidden: int = 32) -> nn.Sequential:
    """The energy of a view of Fashion-MNIST: 784 pixels, one hidden layer."""
    return energy_network(1, size, hidden)


def canonicaliser() -> nn.Sequential:
    """A convolutional energy of whole views, as canonicalisers that are trained with the task are."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2, stride=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()),
        nn.Linear(16 * 7 * 7, 1),
    )


def weights() -> nn.Sequential:
    """λ, the papers' two-layer network, on the CNN's last maps."""
    return nn.Sequential(nn.Flatten(), weight_network(MAPS))


class PhotographEnergy(nn.Module):
    """The energy of a view of a photograph: EfficientNet's first blocks, which stand still, and a linear map.

    Shapes:
        x (N, 3, 32, 32) → energies (N, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        from equikern.demo.data import classifier

        network: Any = classifier()
        first = network._conv_stem, network._bn0, nn.ReLU6(), *network._blocks[:BLOCKS]
        self.still = nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()
        self.head = nn.Sequential(nn.BatchNorm1d(160, affine=False), nn.Dropout(0.3), nn.Linear(160, 1))

    def train(self, mode: bool = True) -> PhotographEnergy:
        """As ever, but for the batch norms of the part that stands still."""
        super().train(mode)
        self.still.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The energies."""
        with torch.no_grad():
            features = self.still(x)
        found: Tensor = self.head(features)
        return found


def small_photographs() -> Tensor:
    """foolbox's 40 images of CIFAR-10 and CIFAR-100, (40, 3, 32, 32), scaled as in EfficientNet's training."""
    from PIL import Image

    spec = find_spec("foolbox")  # only its data folder is used
    folder = Path(spec.submodule_search_locations[0]) / "data" if spec and spec.submodule_search_locations else None
    files = sorted(folder.glob("cifar10*.png")) if folder else []
    if not files:
        raise FileNotFoundError("the installed foolbox has no CIFAR images; foolbox==3.3.4 has")
    pixels = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut somewhere to 24 to 32 pixels a side, mirrored or not, brighter or darker: upright as before."""
    found = []
    for image in x:
        side, mirrored = (int(torch.randint(n, (1,), generator=generator)) for n in (9, 2))
        top, left = (int(torch.randint(side + 1, (1,), generator=generator)) for _ in range(2))
        cut = image[:, top : top + 32 - side, left : left + 32 - side]
        cut = nn.functional.interpolate(cut[None], size=CELLS, mode="bilinear")[0]
        scale, shift = torch.rand(2, generator=generator).tolist()
        found.append((cut.flip(-1) if mirrored else cut) * (0.7 + 0.6 * scale) + 0.3 * (shift - 0.5))
    return torch.stack(found)
