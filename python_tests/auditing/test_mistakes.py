"""Mistakes that people make, one to a small model: the audit finds each and says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from equikern import EquiTune, GroupConv2d, audit, field, grid, heat_maps, keypoints, orbit_mean, patches, permutation
from helpers.looped import each
from torch import Tensor, nn
from torch.nn import functional

SIDE = 12


def image(batch: int = 3, height: int = SIDE, width: int = SIDE, channels: int = 2) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def symmetric(inside: int, outside: int, side: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution whose kernels rotations and flips leave as they are."""
    conv = nn.Conv2d(inside, outside, side, **options)
    with torch.no_grad():
        conv.weight.copy_(orbit_mean(conv.weight.expand(8, *conv.weight.shape), grid("d4")))
    return conv


def pooled(*layers: nn.Module, channels: int = 6) -> nn.Sequential:
    """Invariant logits of a map."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def flow(x: Tensor) -> Tensor:
    """The gradient (∂/∂x, ∂/∂y) of the first channel, by central differences."""
    p = functional.pad(x[:, :1], (1, 1, 1, 1), mode="replicate")
    return torch.cat((p[..., 1:-1, 2:] - p[..., 1:-1, :-2], p[..., 2:, 1:-1] - p[..., :-2, 1:-1]), 1)


def peaks(x: Tensor, first: float = 0.0) -> Tensor:
    """Where the channels' mass lies: (x, y) in pixels, the middle of pixel (0, 0) at ``first``: (B, C, 2)."""
    w = x.flatten(2).softmax(-1).unflatten(-1, x.shape[-2:])
    across, down = (torch.arange(n, dtype=x.dtype) + first for n in (x.shape[-1], x.shape[-2]))
    return torch.stack(((w.sum(-2) * across).sum(-1), (w.sum(-1) * down).sum(-1)), -1)


class Own(nn.Module):
    """A model with something of its own in its forward."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = forward

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def tokens(self: Any, x: Tensor) -> Tensor:
    t: Tensor = self.embed(x).flatten(2).movedim(1, 2)
    return self.mix(t + self.position)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mistake:
    """A model with a mistake, how it is audited, and what is said: the kind, the place and words."""

    model: Callable[[], Any]
    inp: Any
    out: Any
    kind: str
    where: str
    words: str
    x: Callable[[], Tensor] = image


def _overflowing() -> nn.Module:
    model = pooled(symmetric(2, 6, padding=1), nn.ReLU(), channels=6)
    with torch.no_grad():
        model[0].weight.fill_(1e4)  # type: ignore[operator, union-attr]
    return model.half()


_C4, _D4, _FLIP = grid("c4"), grid("d4"), grid("hflip")


def hands(x: Tensor) -> Tensor:
    """Heat maps of left hands, of right hands and of heads: what is to the left, to the right, and anywhere."""
    side = torch.linspace(-1, 1, x.shape[-1])
    return torch.cat((x[:, :1] * side.sigmoid(), x[:, :1] * (-side).sigmoid(), x[:, :1]), 1)


def half_turned(x: Tensor) -> Tensor:
    """A map that turns by 180° where x is flipped."""
    columns = x.mean(-2)
    return columns.unsqueeze(-1) * columns.unsqueeze(-2).square()


MISTAKES: dict[str, Mistake] = {
    "the wrong axis": Mistake(
        lambda: lambda x: x.transpose(-1, -2) * 1.5, _FLIP, _FLIP, "output", "output", "hflip comes out as vflip"
    ),
    "a half turn called a flip": Mistake(
        lambda: half_turned,
        _FLIP,
        _FLIP,
        "output",
        "output",
        "hflip comes out as rot180",
    ),
    "the inverse element": Mistake(
        lambda: lambda x: x.transpose(-1, -2), _C4, _C4, "output", "output", "by g⁻¹ in place of g"
    ),
    "left and right not swapped": Mistake(
        lambda: lambda x: {"maps": hands(x)},
        _FLIP,
        {"maps": _FLIP},
        "output",
        "maps",
        "output 'maps' fits grid hflip, channels change places",
    ),
    "keypoints whose labels stay": Mistake(
        lambda: lambda x: peaks(hands(x) * 9),
        _FLIP,
        keypoints("hflip", units="center"),
        "output",
        "output",
        'swapped in the mirror (out=keypoints("hflip", swap=[1, 0, 2], units="center"))',
    ),
    "points from −1 to 1 taken for those from 0 to 1": Mistake(
        lambda: lambda x: (2 * peaks(x * 9) + 1) / SIDE - 1,
        _D4,
        keypoints("d4", units="normalized"),
        "output",
        "output",
        "or points from −1 to 1",
    ),
    "W − x for W − 1 − x": Mistake(
        lambda: lambda x: {"points": peaks(x)},
        _FLIP,
        {"points": keypoints("hflip", units="edge")},
        "output",
        "points",
        "fits keypoints by W − 1 − x",
    ),
    "vectors without signs": Mistake(
        lambda: lambda x: {"flow": flow(x).abs()},
        _C4,
        {"flow": field(_C4, "vector")},
        "output",
        "flow",
        "output 'flow' fits vector field without signs",
    ),
    "vectors that point upwards": Mistake(
        lambda: lambda x: {"flow": flow(x) * x.new_tensor([1.0, -1.0]).view(2, 1, 1)},
        _D4,
        {"flow": field(_D4, "vector")},
        "output",
        "flow",
        "output 'flow' fits vector field (dx, dy), y upwards",
    ),
    "vectors taken for two images": Mistake(
        lambda: flow, _C4, _C4, "output", "output", "fits vector field (dx, dy), y downwards"
    ),
    "rows before columns": Mistake(
        lambda: lambda x: peaks(x).flip(-1), _D4, keypoints("d4", units="center"), "output", "output", "(y, x)"
    ),
    "by the sides that were not turned": Mistake(
        lambda: lambda x: (peaks(x) + 0.5) / x.new_tensor([16.0, 12.0]),
        _C4,
        keypoints("c4", units="normalized"),
        "output",
        "output",
        "by the sides of the image that was not turned",
        lambda: image(3, 12, 16),
    ),
    "an ordinary convolution": Mistake(
        lambda: pooled(symmetric(2, 4, padding=1), nn.Conv2d(4, 6, 3)),
        _D4,
        "trivial",
        "submodule",
        "1",
        "not symmetric",
    ),
    "a stride that does not fit": Mistake(
        lambda: pooled(symmetric(2, 6, padding=1), symmetric(6, 6, stride=2, padding=1)),
        _D4,
        "trivial",
        "submodule",
        "1",
        "its stride does not fit: size 12 + 2·1 padding − kernel 3 is no multiple of stride 2",
    ),
    "a pooling that leaves out the last column": Mistake(
        lambda: pooled(symmetric(2, 6), nn.ReLU(), nn.MaxPool2d(3)),
        "flips",
        None,
        "submodule",
        "2",
        "1 at the far end is",
    ),
    "padding on one side": Mistake(
        lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), symmetric(2, 4, 2)),
        _D4,
        _D4,
        "submodule",
        "0",
        "padding (1, 0, 1, 0) is not the same",
    ),
    "an even kernel of the same size": Mistake(
        lambda: lambda x: functional.avg_pool2d(functional.pad(x, (1, 0, 1, 0)), 2, 1),
        _FLIP,
        _FLIP,
        "border",
        "output",
        "moved by one place",
    ),
    "nearest resizing": Mistake(
        lambda: pooled(symmetric(2, 6), nn.Upsample(size=7), nn.ReLU()), _D4, None, "submodule", "1", "nearest resizing"
    ),
    "BatchNorm in training mode": Mistake(
        lambda: Own(lambda self, x: self.bn1(x), bn1=nn.BatchNorm2d(2)),
        _D4,
        _D4,
        "batch",
        "bn1",
        "a BatchNorm in training mode: bn1",
    ),
    "dropout left on": Mistake(
        lambda: nn.Sequential(symmetric(2, 6), nn.Dropout(0.5)).train(),
        _D4,
        _D4,
        "deterministic",
        "1",
        "not deterministic: a Dropout in training mode: 1",
    ),
    "a positional embedding": Mistake(
        lambda: Own(
            tokens,
            embed=nn.Conv2d(2, 4, 1),
            position=nn.Parameter(torch.randn(1, SIDE * SIDE, 4, generator=torch.Generator().manual_seed(2))),
            mix=nn.Linear(4, 5),
        ),
        _D4,
        patches("d4", SIDE, 0),
        "submodule",
        "",
        "position (1, 144, 4) belongs to places",
    ),
    "a layer on a crop": Mistake(
        lambda: Own(lambda self, x: self.head(x[..., 1:9]), head=pooled(symmetric(2, 6))),
        _FLIP,
        "trivial",
        "submodule",
        "",
        "it takes a crop, rows 0…11 and columns 1…8 of 12×12",
    ),
    "softmax along a side": Mistake(
        lambda: nn.Sequential(symmetric(2, 6), nn.Softmax(-1)), _C4, _C4, "submodule", "1", "normalises along dim -1"
    ),
    "a layer on the flattened map": Mistake(
        lambda: nn.Sequential(symmetric(2, 4), nn.Flatten(), nn.Linear(400, 5)),
        _D4,
        "trivial",
        "submodule",
        "2",
        "mixes the places of a flattened grid",
    ),
    "an overflow of float16": Mistake(
        _overflowing, _D4, "trivial", "finite", "0", "float16, whose largest number is 65504", lambda: image().half()
    ),
    "equal largest logits": Mistake(
        lambda: lambda x: x.sum((-2, -1)).round().clamp(max=1.0), _D4, "trivial", "ties", "output", "two equal largest"
    ),
    "classes that change places": Mistake(
        lambda: lambda x: hands(x).sum((-2, -1)),
        _FLIP,
        "trivial",
        "output",
        "output",
        "fits channels change places",
        lambda: image(5),
    ),
}


def of(name: str, found: Any) -> list[Any]:
    mistake = MISTAKES[name]
    return [f for f in found.findings if (f.kind, f.where) == (mistake.kind, mistake.where) and mistake.words in f.text]


@each("name", MISTAKES)
def test_each_is_found_and_named(name: str) -> None:
    torch.manual_seed(0)
    mistake = MISTAKES[name]
    model = mistake.model()
    if isinstance(model, nn.Module) and mistake.kind not in ("batch", "deterministic"):
        model.eval()
    found = audit(model, mistake.x(), mistake.inp, mistake.out)
    assert of(name, found), f"{name}:\n{found}"
    assert found.holds is (mistake.kind in ("batch", "ties")), f"{name}:\n{found}"


def test_there_are_twenty_and_more() -> None:
    assert len(MISTAKES) >= 20


class Lifted(nn.Module):
    """Group convolutions, and the mean over their group axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lifting = GroupConv2d("d4", 2, 3, 3, inp="trivial", padding=1)
        self.layer = GroupConv2d("d4", 3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.lifting(x).relu()).mean(2)  # type: ignore[no-any-return]


def steady(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(symmetric(2, 6, padding=1), *layers).eval()


# Models that are exact, and how the group acts on what they give.
EXACT: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "symmetric kernels, norms and activations": (
        lambda: steady(nn.BatchNorm2d(6), nn.GELU(), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        "d4",
        "d4",
    ),
    "pools and strides that fit": (lambda: steady(nn.MaxPool2d(3), nn.AvgPool2d(2), symmetric(6, 3, 2)), "d4", "d4"),
    "resizing": (
        lambda: steady(nn.Upsample(scale_factor=2), nn.Upsample(size=7, mode="bilinear"), nn.AdaptiveAvgPool2d(5)),
        "d4",
        "d4",
    ),
    "bilinear, corners aligned": (
        lambda: steady(nn.Upsample(size=9, mode="bilinear", align_corners=True)),
        "d4",
        "d4",
    ),
    "logits": (lambda: pooled(symmetric(2, 6), nn.BatchNorm2d(6), nn.SiLU()).eval(), "d4", "trivial"),
    "EquiTune": (
        lambda: nn.Sequential(EquiTune(nn.Conv2d(2, 3, 3, 2, 1), "d4", "d4"), nn.ReLU(), symmetric(3, 2)).eval(),
        "d4",
        "d4",
    ),
    "an EquiTune of rectangles": (lambda: EquiTune(nn.Conv2d(2, 3, 3), "d4", "d4"), "d4", "d4"),
    "group convolutions": (Lifted, "d4", "d4"),
    "flow": (lambda: flow, "d4", field(grid("d4"), "vector")),
    "points": (lambda: peaks, "d4", keypoints("d4", units="center")),
    "points between the pixels": (lambda: lambda x: peaks(x, 0.5), "c4", keypoints("c4")),
    "hands": (lambda: hands, "hflip", heat_maps("hflip", [1, 0, 2])),
    "tokens": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(2), Own(lambda _, t: t.movedim(1, 2))).eval(),
        "d4",
        patches("d4", SIDE, 0),
    ),
    "classes that change places": (
        lambda: lambda x: hands(x).sum((-2, -1)),
        "hflip",
        permutation([[0, 1, 2], [1, 0, 2]], group=grid("hflip").group),
    ),
}


@each("name", EXACT)
def test_nothing_is_said_of_what_is_exact(name: str) -> None:
    torch.manual_seed(0)
    make, inp, out = EXACT[name]
    x = image(5, 12, 15) if "rectangles" in name else image(5)
    for spec in (out, None):
        found = audit(make(), x, inp, spec)
        assert found.holds, f"{name}:\n{found}"
        assert not found.findings, f"{name}:\n{found}"
