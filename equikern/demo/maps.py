"""The heat map of a text detector under rotation: CRAFT with its weights from the extra ``demo-maps``."""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from .. import EquiTune
from . import data
from .measure import ANGLES, C4

SIZE = 320
TEXT = 0.3  # pixels with a larger score are text
PHOTOS = {"bottle cap": 9, "drum": 10}  # with large letters, with a line of small ones
_CONVOLUTIONS = (  # of each of VGG16's parts: the number of a layer, channels in, channels out
    ((0, 3, 64), (3, 64, 64), (7, 64, 128), (10, 128, 128)),
    ((14, 128, 256), (17, 256, 256)),
    ((20, 256, 256), (24, 256, 512), (27, 512, 512)),
    ((30, 512, 512), (34, 512, 512), (37, 512, 512)),
)
_POOLS = (6, 13, 23, 33)


class Craft(nn.Module):
    """CRAFT (Baek et al. 2019): images (B, 3, H, W) → a score from 0 to 1 of being text (B, 1, H/2, W/2).

    The names of its parts are those of the published weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basenet = nn.ModuleDict({f"slice{k + 1}": _slice(parts) for k, parts in enumerate(_CONVOLUTIONS)})
        wide = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.basenet["slice5"] = nn.Sequential(nn.MaxPool2d(3, 1, 1), wide, nn.Conv2d(1024, 1024, 1))
        self.upconv1, self.upconv2 = _Up(1536, 512, 256), _Up(768, 256, 128)
        self.upconv3, self.upconv4 = _Up(384, 128, 64), _Up(192, 64, 32)
        layers: list[nn.Module] = []
        for inp, out, side in ((32, 32, 3), (32, 32, 3), (32, 16, 3), (16, 16, 1), (16, 2, 1)):
            layers += [nn.Conv2d(inp, out, side, padding=side // 2), nn.ReLU()]
        self.conv_cls = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The maps of images."""
        skipped = []
        for name in ("slice1", "slice2", "slice3"):
            x = relu(self.basenet[name](x))
            skipped.append(x)
        x = self.basenet["slice4"](x)
        x = self.upconv1(torch.cat([self.basenet["slice5"](x), x], 1))
        for up, skip in zip((self.upconv2, self.upconv3, self.upconv4), reversed(skipped), strict=True):
            x = interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([x, skip], 1))
        scores: Tensor = self.conv_cls(x)
        return scores[:, :1]  # the other channel links letters to words


def _slice(convolutions: tuple[tuple[int, int, int], ...]) -> nn.Sequential:
    """Layers under their numbers in VGG16 with batch normalisation, without the last activation."""
    layers: dict[int, nn.Module] = {}
    first, last = convolutions[0][0], convolutions[-1][0]
    for number, inp, out in convolutions:
        layers |= {number: nn.Conv2d(inp, out, 3, padding=1), number + 1: nn.BatchNorm2d(out)}
        if number != last:
            layers[number + 2] = nn.ReLU()
    layers |= {pool: nn.MaxPool2d(2) for pool in _POOLS if first - 2 < pool < last}
    return nn.Sequential(OrderedDict((str(number), layers[number]) for number in sorted(layers)))


class _Up(nn.Module):
    def __init__(self, inp: int, middle: int, out: int) -> None:
        super().__init__()
        first = nn.Conv2d(inp, middle, 1), nn.BatchNorm2d(middle), nn.ReLU()
        self.conv = nn.Sequential(*first, nn.Conv2d(middle, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def detector() -> Craft:
    """CRAFT with its published weights, in evaluation mode."""
    spec = find_spec("easyocr_en_models")  # only its folder of weights is used
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'easyocr_en_models'")
    file = Path(spec.submodule_search_locations[0]) / "models/craft_mlt_25k.pth"
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # no weights but those of the file
        model = Craft()
    named = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    model.load_state_dict(named, assign=True)
    return model.eval()


def photos(size: int = SIZE) -> dict[str, Tensor]:
    """The photographs (1, 3, size, size) with text on them, by what they show."""
    return {name: data.photo(number, size).unsqueeze(0) for name, number in PHOTOS.items()}


class Turned(NamedTuple):
    """What a model makes of a photo turned by each of the angles, compared with what it makes of the upright one."""

    errors: list[float]  # ‖f(gx) − g f(x)‖ / ‖f(x)‖
    overlaps: list[float]  # of the text found: pixels in both over pixels in one of them
    maps: list[Tensor]  # f(gx) turned back by g⁻¹


@torch.inference_mode()
def measure(model: nn.Module, images: dict[str, Tensor], steps: Any) -> dict[str, dict[str, Turned]]:
    """By photo and by model: the plain one, and the text that it finds in any of the four views of a photo."""
    models = {"plain": model, "EquiTune": EquiTune(model, C4, C4, reduce="max")}
    task = steps.add_task("text maps of rotated photos", total=len(images) * len(models) * len(ANGLES))
    result: dict[str, dict[str, Turned]] = {}
    for photo, x in images.items():
        result[photo] = {}
        for name, f in models.items():
            maps = []
            for k in range(len(ANGLES)):
                maps.append(torch.rot90(f(torch.rot90(x, k, (-2, -1))), -k, (-2, -1))[0, 0])
                steps.advance(task)
            errors = [((turned - maps[0]).norm() / maps[0].norm()).item() for turned in maps]
            result[photo][name] = Turned(errors, [_overlap(turned > TEXT, maps[0] > TEXT) for turned in maps], maps)
    return result


def _overlap(a: Tensor, b: Tensor) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0
