"""Images in the place of Fashion-MNIST and digits, which a small network learns in some steps."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["squares", "write"]


def squares(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """A bright square at one of ten places of the upper half, in noise; no class is another one turned upside down.

    Pixels (count, 28, 28) and labels (count,), both uint8.
    """
    labels = rng.integers(10, size=count, dtype=np.uint8)
    pixels = rng.integers(60, size=(count, 28, 28), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 5)
        image[6 * row : 6 * row + 6, 5 * column : 5 * column + 6] += 180
    return pixels, labels


def write(folder: Path, rng: np.random.Generator, counts: Mapping[str, int]) -> None:
    """So many of each part, such as "train", in files as those of Fashion-MNIST."""
    for part, count in counts.items():
        pixels, labels = squares(rng, count)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
