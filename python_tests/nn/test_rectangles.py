"""Rectangles under 90° rotations: every wrapper, with masks, heat maps, keypoints, boxes, fields and logits at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from equikern import (
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    RegularLift,
    boxes,
    grid,
    heat_maps,
    keypoints,
    matrix,
    permutation,
)
from equikern.nn.views import OrbitModule
from helpers.looped import each
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")
SIZES = pytest.mark.parametrize("size", [(6, 9), (9, 4)])
NAMES = pytest.mark.parametrize("name", ["c4", "d4"])
SWAP = [1, 0, 2]
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # a quarter turn of (x, y), y downwards
MIRROR = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])

Outputs = dict[str, Tensor]


class Backbone(nn.Module):
    """Masks, heat maps, keypoints with a score, boxes, moves of a game, a direction and classes of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU())
        self.masks = nn.Conv2d(6, 2, 3, padding=1)
        self.heat = nn.Conv2d(6, 3, 3, padding=1, stride=2)
        self.flat = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(36, 9 + 4 + 4 + 2 + 5))

    def forward(self, x: Tensor) -> Outputs:
        maps = self.trunk(x)
        points, box, moves, direction, logits = self.flat(maps).split((9, 4, 4, 2, 5), 1)
        return {
            "masks": self.masks(maps), "heat": self.heat(maps), "points": points.unflatten(1, (3, 3)), "boxes": box,
            "moves": moves, "direction": direction, "logits": logits,
        }  # fmt: skip


@cache
def specs(name: str) -> dict[str, Any]:
    """The outputs' actions; the four moves are right, up, left and down, which a horizontal flip mirrors."""
    group = grid(name).group
    turns = [[(i + k) % 4 for i in range(4)] for k in range(4)]
    moves, mats = list(turns), [torch.linalg.matrix_power(TURN, k) for k in range(4)]
    if name == "d4":
        moves += [[row[i] for i in (2, 1, 0, 3)] for row in turns]  # the flip first
        mats += [mat @ MIRROR for mat in mats]
    return {
        "masks": name, "heat": heat_maps(name, SWAP), "points": keypoints(name, SWAP, extra=1),
        "boxes": boxes(name, "cxcywh"), "moves": permutation(moves, group=group),
        "direction": matrix(torch.stack(mats), group), "logits": "trivial",
    }  # fmt: skip


def acted(name: str, g: int, y: Outputs, size: tuple[int, int]) -> Outputs:
    out = specs(name)
    return {
        "masks": grid(name).act(g, y["masks"]),
        "heat": out["heat"].act(g, y["heat"]),
        "points": out["points"].act(g, y["points"], size),
        "boxes": out["boxes"].act(g, y["boxes"], size),
        "moves": out["moves"].act(g, y["moves"]),
        "direction": out["direction"].act(g, y["direction"]),
        "logits": y["logits"],
    }


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


MAKERS: dict[str, Callable[[nn.Module, str, int | None], OrbitModule]] = {
    "equitune": lambda backbone, name, views: EquiTune(backbone, name, specs(name), views_per_forward=views),
    "lambda": lambda backbone, name, views: LambdaEquiTune(
        backbone, name, specs(name), 6, "trunk", views_per_forward=views
    ),
    "lambda by sums": lambda backbone, name, views: LambdaEquiTune(
        backbone, name, specs(name), nn.Sequential(nn.Linear(6, 1), nn.Softplus()), "trunk", normalize="sum"
    ),
    "equizero": lambda backbone, name, views: EquiZero(
        backbone, name, specs(name), scored="logits", views_per_forward=views
    ),
}


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone()


@each(*NAMES.args)
@SIZES
@pytest.mark.parametrize("kind", MAKERS)
@each("views", [None, 3])
def test_every_output_of_every_wrapper(
    backbone: Backbone, kind: str, name: str, size: tuple[int, int], views: int | None
) -> None:
    model = MAKERS[kind](backbone, name, views)
    x = torch.randn(2, 3, *size)
    y = model(x)
    assert y["masks"].shape[-2:] == size
    for g in range(grid(name).order):
        close(model(grid(name).act(g, x)), acted(name, g, y, size))


@NAMES
@SIZES
def test_views_and_regular_features(backbone: Backbone, name: str, size: tuple[int, int]) -> None:
    """Entry by entry: the view of g x under h is what the view of x under h∘g was, moved by g."""
    group, x = grid(name).group, torch.randn(2, 3, *size)
    equitune, lift = EquiTune(backbone, name, specs(name)), RegularLift(backbone, name, specs(name))
    views, features = equitune.views(x), lift(x)
    axes = {"masks": 2, "heat": 1, "points": 1, "boxes": 1, "moves": 1, "direction": 1, "logits": 2}
    for key, axis in axes.items():
        torch.testing.assert_close(features[key].movedim(axis, 0), views[key])
    for g in range(group.order):
        turned = equitune.views(grid(name).act(g, x))
        for h in range(group.order):
            before = {key: t[int(group.multiply[h, g])] for key, t in views.items()}
            close({key: t[h] for key, t in turned.items()}, acted(name, g, before, size))


@SIZES
@pytest.mark.parametrize("kind", MAKERS)
def test_views_are_those_turned_back(backbone: Backbone, kind: str, size: tuple[int, int]) -> None:
    """In plain torch: the view under a quarter turn, its outputs turned back by hand."""
    x = torch.randn(1, 3, *size)
    views, y = MAKERS[kind](backbone, "c4", None).views(x), backbone(torch.rot90(x, 1, (-2, -1)))
    torch.testing.assert_close(views["masks"][1], torch.rot90(y["masks"], -1, (-2, -1)))
    torch.testing.assert_close(views["heat"][1], torch.rot90(y["heat"], -1, (-2, -1)))
    width = size[1]
    at = y["points"]
    torch.testing.assert_close(views["points"][1], torch.stack((width - at[..., 1], at[..., 0], at[..., 2]), -1))
    across, down, wide, high = y["boxes"].unbind(-1)
    torch.testing.assert_close(views["boxes"][1], torch.stack((width - down, across, high, wide), -1))
    torch.testing.assert_close(views["moves"][1], y["moves"].roll(-1, -1))  # what is up there is right here
    torch.testing.assert_close(views["direction"][1], torch.stack((-y["direction"][:, 1], y["direction"][:, 0]), -1))
    torch.testing.assert_close(views["logits"][1], y["logits"])


@pytest.mark.parametrize("kind", ["equitune", "lambda"])
def test_gradients(backbone: Backbone, kind: str) -> None:
    model = MAKERS[kind](backbone, "d4", None).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(x).values())

    assert torch.autograd.gradcheck(call, (x,), fast_mode=True)


def test_gradients_of_the_chosen_view_reach_the_backbone(backbone: Backbone) -> None:
    model = MAKERS["equizero"](backbone, "d4", None)
    x = torch.randn(2, 3, 6, 9)
    sum(t.sum() for t in EquiTune(backbone, "d4", specs("d4"))(x).values()).backward()
    mean = [p.grad.clone() for p in backbone.parameters() if p.grad is not None]
    backbone.zero_grad()
    sum(t.sum() for t in model(x).values()).backward()
    assert len(mean) == len(list(backbone.parameters()))
    for p, expected in zip(backbone.parameters(), mean, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-5)
