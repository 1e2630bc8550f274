"""No call uploads lists of numbers or reads values back, as a GPU's queue would be waited for: on meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import (
    EquiTune,
    EquiZero,
    boxes,
    field,
    grid,
    keypoints,
    matrix,
    orbit,
    orbit_act,
    orbit_mean,
    orbit_weighted_mean,
    permutation,
)
from helpers.uploads import NoTransfers
from torch import Tensor, nn

X = torch.zeros(2, 3, 6, 8, device="meta")
SQUARE = torch.zeros(2, 3, 8, 8, device="meta")
POINTS, BOXES = torch.zeros(2, 5, 2, device="meta"), torch.zeros(2, 5, 4, device="meta")
EYES = keypoints("d4", swap=[1, 0, 2, 3, 4])
SWAP = permutation([[0, 1, 2, 3], [1, 0, 2, 3]])
TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
VECTORS = field(grid("c4"), "vector")
HERE = torch.tensor([1, 3])
THERE = torch.zeros(2, dtype=torch.int64, device="meta")


class Regressor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 5, 2) + x.mean((1, 2, 3))[:, None, None]


POSES = EquiTune(Regressor(), "d4", EYES).to("meta")
PARTS = EquiTune(nn.Identity(), "d4", "d4", views_per_forward=3)
BEST = EquiZero(nn.Flatten(), "c4", "trivial", loss="max_prob")

CALLS: dict[str, Callable[[], Any]] = {
    "turned rectangles by elements on the CPU": lambda: orbit_act(X, HERE, grid("d4")),
    "turned rectangles of vectors": lambda: orbit_act(X[:, :2], HERE, VECTORS),
    "squares by elements on the CPU": lambda: orbit_act(SQUARE, HERE, grid("d4")),
    "squares by elements there": lambda: orbit_act(SQUARE, THERE, grid("d4")),
    "keypoints": lambda: [EYES.act(g, POINTS, (6, 8)) for g in range(8)],
    "keypoints back": lambda: EYES.undo(5, POINTS, (6, 8)),
    "keypoints by elements": lambda: EYES.act(THERE, POINTS, (6, 8)),
    "keypoints by elements on the CPU": lambda: EYES.undo(HERE, POINTS, (6, 8)),
    "boxes": lambda: [boxes("d4", "xywh").act(g, BOXES, (6, 8)) for g in range(8)],
    "a model of keypoints": lambda: POSES(X),
    "a model that some views pass at a time": lambda: PARTS(X),
    "the best view": lambda: BEST(SQUARE),
    "a permutation": lambda: orbit_mean(orbit(BOXES, SWAP), SWAP),
    "matrices": lambda: orbit_mean(orbit(POINTS, TURN), TURN),
    "weights": lambda: orbit_weighted_mean(orbit(SQUARE, grid("c4")), torch.ones(4, 2, device="meta"), grid("c4")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_moves_nothing_to_a_device_or_back(name: str) -> None:
    """At the first one an action's table goes there."""
    first = CALLS[name]()
    with NoTransfers():
        second = CALLS[name]()
    for a, b in zip(*((t if isinstance(t, (list, tuple)) else [t]) for t in (first, second)), strict=True):
        assert a.shape == b.shape
        assert a.is_meta
        assert b.is_meta


def test_elements_on_the_cpu_decide_the_shape() -> None:
    assert orbit_act(X, HERE, grid("d4")).shape == (2, 3, 8, 6)
    assert orbit_act(X, torch.tensor([0, 2]), grid("d4")).shape == (2, 3, 6, 8)
    with pytest.raises(ValueError, match="turn a rectangle into 6×8 and 8×6"):
        orbit_act(X, torch.tensor([0, 1]), grid("d4"))
    with pytest.raises(ValueError, match="expected elements 0 … 7 of 'd4', got 8"):
        orbit_act(X, torch.tensor([0, 8]), grid("d4"))


def test_what_is_seen_as_a_transfer() -> None:
    """Each of these would be one on a GPU."""
    transfers: list[Callable[[], Any]] = [
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: X.new_tensor([1.0]),
        lambda: X[..., [0, 1]],
        lambda: X.copy_(torch.zeros(2, 3, 6, 8)),
        lambda: HERE.to("meta"),
        lambda: X.sum().item(),
        lambda: bool((X > 0).any()),
    ]
    for transfer in transfers:
        with NoTransfers(), pytest.raises(AssertionError):
            transfer()
