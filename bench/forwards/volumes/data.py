"""Volumes like those that the network was trained on, drawn: crowded platelets under a confocal microscope."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PLANES = 3.0  # how many pixels two planes are apart
BLUR = (0.7, 1.0, 1.0)  # of the microscope: in planes, rows, columns
SIZES = (5.0, 9.0)  # radii of a platelet, in pixels
SPREAD = (0.33, 0.2, 0.2)  # of the platelets' places about the middle, of each side
BACKGROUND, DIMMER, PHOTONS = 0.05, 0.4, 100.0  # share of light everywhere, light lost on the way down, at brightest


class Volume(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: (1, 1, D, H, W) float32, 1 where it is brightest.
        labels: (D, H, W) int64, the number of the platelet, 0 between them.
    """

    image: Tensor
    labels: Tensor


def volume(seed: int, shape: tuple[int, int, int], count: int) -> Volume:
    """So many platelets, ellipsoids without a direction, crowded about the middle; blurred and noisy.

    Example:
        >>> image, labels = volume(0, (4, 16, 16), 3)
        >>> image.shape, labels.shape, float(image.max())
        (torch.Size([1, 1, 4, 16, 16]), torch.Size([4, 16, 16]), 1.0)
    """
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor(shape, dtype=torch.float32)
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1) * 1.0
    light, labels = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    for number in range(1, count + 1):
        middle = sides / 2 + torch.randn(3, generator=generator) * sides * torch.tensor(SPREAD)
        axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
        radii = SIZES[0] + (SIZES[1] - SIZES[0]) * torch.rand(3, generator=generator)
        bright = 0.5 + 0.5 * torch.rand(1, generator=generator)
        away = ((voxels - middle) * torch.tensor([PLANES, 1.0, 1.0]) @ axes / radii).norm(dim=-1)
        inside = (away < 1) & (labels == 0)  # platelets do not overlap: the first one stays
        labels[inside] = number
        light[inside] = (bright * (1 - 0.4 * away))[inside]
    for dim, width in enumerate(BLUR):
        light = blurred(light, dim, width)
    light = light * torch.linspace(1, 1 - DIMMER, shape[0]).view(-1, 1, 1) + BACKGROUND
    image = torch.poisson(light * PHOTONS, generator=generator)
    return Volume((image / image.max()).unsqueeze(0).unsqueeze(0), labels)


def blurred(light: Tensor, dim: int, width: float) -> Tensor:
    """Light (D, H, W) under a Gaussian along one side."""
    reach = 4
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width).square())
    shape: list[Any] = [1, 1, 1, 1, 1]
    shape[dim + 2] = -1
    padding = [0] * 6
    padding[2 * (2 - dim) : 2 * (2 - dim) + 2] = reach, reach
    wide = nn.functional.pad(light.unsqueeze(0).unsqueeze(0), padding, mode="replicate")
    return nn.functional.conv3d(wide, (weights / weights.sum()).view(shape))[0, 0]
