"""The trained U-Net of ``platelet-unet-watershed``, and its outputs as grids that the flips map to themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PACKAGE, MODULE = "platelet-unet-watershed", "plateseg"
OUT = ("flips3d",) * 4


def trained() -> nn.Module:
    """The package's network in evaluation mode, which is read without the rest of the package.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(MODULE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            f"{PACKAGE} not installed: pip install --no-deps -r bench/forwards/volumes/requirements.txt"
        )
    folder = Path(found.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("plateseg_unet", folder / "unet.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.UNet(in_channels=1, out_channels=5)
    state = torch.load(folder / "data" / "unet-210913-zyxmc.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(state)
    return net.eval()


class Grids(nn.Module):
    """The network's five channels as four outputs, each a grid of its own.

    The first three are affinities along z, y and x. They belong to the edge between a voxel and the one before it, and
    D voxels have D − 1 such edges: a flip that is taken for one of voxels puts them a voxel off. What the network says
    of the edge in front of the first voxel is dropped. The others, inside and middle of a platelet, are of voxels.
    """

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 1, D, H, W) → (B, 1, D − 1, H, W), (B, 1, D, H − 1, W), (B, 1, D, H, W − 1), (B, 2, D, H, W)."""
        y = self.net(x)
        return y[:, 0:1, 1:], y[:, 1:2, :, 1:], y[:, 2:3, :, :, 1:], y[:, 3:]


class Remembered(nn.Module):
    """A network that computes each volume once: the same volume has the same output, and views come again and again."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.known: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …), one volume at a time."""
        found = []
        for one in x.split(1):
            key = one.contiguous().numpy().tobytes()
            if key not in self.known:
                self.known[key] = self.net(one)
            found.append(self.known[key])
        return torch.cat(found)
