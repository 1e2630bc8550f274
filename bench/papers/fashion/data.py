"""Fashion-MNIST from an installed package; nothing is downloaded."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Labelled = tuple[Tensor, Tensor]
CLASSES = "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def images_and_labels(part: str, count: int | None = None) -> Labelled:
    """Images (n, 1, 28, 28) with mean 0 and deviation 1, and labels (n,), of "train" or "t10k"; the first ``count``.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    pixels = _read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:count]
    labels = _read(f"{part}-labels-idx1-ubyte.gz", 8)[:count]
    return (torch.from_numpy(pixels.copy()).float() / 255 - 0.2860) / 0.3530, torch.from_numpy(labels.copy()).long()


def batches(data: Labelled, steps: int, size: int, generator: torch.Generator) -> Iterator[Labelled]:
    """So many random batches, in epochs."""
    x, labels = data
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        some, order = order[:size], order[size:]
        yield x[some], labels[some]


def _read(name: str, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    path = FOLDER / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: apt install dataset-fashion-mnist (Debian), or set FASHION_MNIST to a folder with "
            "the four .gz files of Fashion-MNIST"
        )
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header)
