"""Arguments of what is public, replaced by objects that they are not: an error that names them, or a result."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import equikern as ek
import numpy
import pytest
import torch
from torch import nn


class Strange:
    """Neither number nor sequence, and not equal to anything."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


C4 = ek.grid("c4")
SWAP = ek.permutation([[0, 1, 2], [1, 0, 2]])
X = torch.randn(2, 3, 6, 6)
Y = torch.randn(4, 2, 3, 6, 6)
LOGITS = torch.randn(2, 5, 3)
GROUP = ek.cyclic_group(2)
ROWS = torch.tensor([[0, 1, 2], [1, 0, 2]])
MATS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])


def net() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def pooled() -> nn.Module:
    return nn.Sequential(net(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# What is called, with arguments that are right.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "orbit": (ek.orbit, {"x": X, "action": C4, "out": None}),
    "orbit_act": (
        ek.orbit_act,
        {"x": X, "elements": torch.tensor([0, 1]), "action": C4, "inverse": False, "out": None},
    ),
    "symmetrize": (ek.symmetrize, {"x": X, "action": C4, "out": None}),
    "orbit_mean": (ek.orbit_mean, {"y": Y, "action": C4, "space": None, "plus": None, "out": None}),
    "orbit_mean of rows": (ek.orbit_mean, {"y": LOGITS, "action": SWAP, "space": "probs", "plus": None, "out": None}),
    "orbit_weighted_mean": (
        ek.orbit_weighted_mean,
        {"y": Y, "weights": torch.rand(4, 2), "action": C4, "normalize": "sum"},
    ),
    "orbit_reduce": (ek.orbit_reduce, {"y": Y, "action": C4, "op": "max", "out": None}),
    "orbit_select": (
        ek.orbit_select,
        {
            "y": Y,
            "scores": torch.rand(4, 2),
            "action": C4,
            "mode": "min",
            "gradient": None,
            "estimator": None,
            "return_index": False,
            "out": None,
        },
    ),
    "orbit_variance": (ek.orbit_variance, {"y": Y, "action": C4, "dims": 1}),
    "orbit_score": (ek.orbit_score, {"logits": LOGITS, "kind": "entropy", "dim": -1}),
    "orbit_cross_entropy": (
        ek.orbit_cross_entropy,
        {
            "logits": LOGITS,
            "target": torch.arange(5) % 3,
            "action": SWAP,
            "space": None,
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0.0,
            "weight": None,
            "z_loss": 0.0,
            "softcap": None,
        },
    ),
    "linear_orbit_cross_entropy": (
        ek.linear_orbit_cross_entropy,
        {
            "hidden": torch.randn(2, 5, 4),
            "weight": torch.randn(3, 4),
            "target": torch.arange(5) % 3,
            "action": SWAP,
            "space": None,
            "bias": None,
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0.0,
            "class_weight": None,
            "z_loss": 0.0,
            "softcap": None,
        },
    ),
    "grid": (ek.grid, {"name": "c4", "dims": None}),
    "trivial": (ek.trivial, {"group": GROUP}),
    "permutation": (ek.permutation, {"perm": ROWS, "signs": None, "dim": -1, "group": None}),
    "tokens": (ek.tokens, {"perm": ROWS, "group": None}),
    "matrix": (ek.matrix, {"mats": MATS, "group": None, "closed": True}),
    "field": (ek.field, {"grid": C4, "channels": "vector"}),
    "regular": (ek.regular, {"group": GROUP, "dim": -3}),
    "cyclic_group": (ek.cyclic_group, {"n": 3}),
    "dihedral_group": (ek.dihedral_group, {"n": 3}),
    "GridAction": (ek.GridAction, {"group": GROUP, "words": ["hw", "hW"], "name": "mirror"}),
    "PermutationAction": (
        ek.PermutationAction,
        {"group": GROUP, "perm": ROWS, "signs": None, "dim": -1, "name": "swap"},
    ),
    "TokenAction": (ek.TokenAction, {"group": GROUP, "perm": ROWS, "name": "swap"}),
    "MatrixAction": (ek.MatrixAction, {"group": GROUP, "mats": MATS, "name": "mirror"}),
    "MatrixSamples": (ek.MatrixSamples, {"mats": MATS, "name": "samples"}),
    "FieldAction": (ek.FieldAction, {"grid": C4, "channels": "vector"}),
    "Action": (ek.Action, {"name": "c4", "maps": C4.maps}),
    "GroupAction": (ek.GroupAction, {"group": C4.group, "name": "c4", "maps": C4.maps}),
    "keypoints": (ek.keypoints, {"action": C4, "swap": None, "units": "edge", "extra": 0}),
    "boxes": (ek.boxes, {"action": C4, "format": "xyxy", "units": "edge"}),
    "heat_maps": (ek.heat_maps, {"action": C4, "swap": [1, 0]}),
    "act": (C4.act, {"g": 1, "x": X}),
    "act of boxes": (ek.boxes(C4).act, {"g": 1, "t": torch.zeros(2, 4), "size": (6, 6)}),
    "undo of keypoints": (ek.keypoints(C4).undo, {"g": torch.tensor([0, 1]), "t": torch.zeros(2, 2), "size": (6, 6)}),
    "EquiDetector": (
        ek.EquiDetector,
        {
            "backbone": net(),
            "inp": "c4",
            "out": ek.boxes(C4),
            "iou": 0.5,
            "min_score": 0.1,
            "confidence": "avg",
            "views_per_forward": None,
        },
    ),
    "RegularLift": (ek.RegularLift, {"backbone": net(), "inp": "c4", "out": "c4", "views_per_forward": None}),
    "GroupPool": (ek.GroupPool, {"mode": "max", "dims": 2}),
    "InvariantHead": (ek.InvariantHead, {"in_features": 3, "out_features": 2, "pool": "max", "dims": 0}),
    "CanonicalLambdaEquiTune": (
        ek.CanonicalLambdaEquiTune,
        {"backbone": net(), "canonical": ek.vector_frame, "theta": MATS, "weight_net": None, "out": "invariant"},
    ),
    "use_backend": (ek.use_backend, {"name": "reference"}),
    "vector_frame": (ek.vector_frame, {"x": torch.randn(2, 3, 3), "points": None, "centred": False}),
    "principal_frame": (ek.principal_frame, {"x": torch.randn(2, 3, 3)}),
    "EquiTune": (
        ek.EquiTune,
        {"backbone": net(), "inp": "c4", "out": "c4", "reduce": "mean", "views_per_forward": None, "space": None},
    ),
    "EquiZero": (ek.EquiZero, {"backbone": net(), "inp": "c4", "out": "c4", "loss": "entropy", "gradient": "mean"}),
    "CanonicalEquiTune": (
        ek.CanonicalEquiTune,
        {
            "backbone": net(),
            "inp": "c4",
            "out": "c4",
            "energy": "gradient",
            "views": 2,
            "reduce": "softmax",
            "size": 8,
            "temperature": 1.0,
            "agree": 2,
            "classes": -3,
        },
    ),
    "CanonicalEquiTune, poses": (
        ek.CanonicalEquiTune,
        {"backbone": net(), "inp": "c4", "out": "c4", "poses": [0, 2], "views_per_forward": None},
    ),
    "energy_network": (ek.energy_network, {"channels": 3, "size": 8, "hidden": 10, "sides": 2}),
    "LambdaEquiTune": (
        ek.LambdaEquiTune,
        {
            "backbone": pooled(),
            "inp": "c4",
            "out": "trivial",
            "weight_net": 4,
            "features": None,
            "normalize": "softmax",
            "frozen": False,
        },
    ),
    "GroupConv2d": (
        ek.GroupConv2d,
        {
            "group": "c4",
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": 3,
            "inp": "regular",
            "stride": 1,
            "padding": 0,
            "dilation": 1,
            "bias": True,
        },
    ),
    "GroupLinear": (ek.GroupLinear, {"group": GROUP, "in_features": 3, "out_features": 4, "bias": True}),
}

WRONG: dict[str, Any] = {
    "None": None,
    "a word": "xyz",
    "an empty word": "",
    "a fraction": 2.5,
    "minus three": -3,
    "a huge number": 2**70,
    "true": True,
    "an empty list": [],
    "a list": [1, "a"],
    "a dict": {"a": 1},
    "a strange object": Strange(),
    "a class": Strange,
    "an array": numpy.zeros((2, 3)),
    "an array of words": numpy.array(["c4", "d4"]),
    "a scalar tensor": torch.tensor(1.0),
    "a complex tensor": torch.zeros(2, 3, dtype=torch.complex64),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "an empty tensor": torch.empty(0),
    "a tensor elsewhere": torch.empty(2, 3, 6, 6, device="meta"),
    "an action": ek.grid("hflip"),
    "a group": ek.cyclic_group(7),
    "a module": nn.Identity(),
}

# Right by themselves, but not beside the other arguments, of which the error may then name one.
RELATED = {"a tensor elsewhere", "an action", "a group"}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named(name: str) -> None:
    function, right = CALLS[name]
    function(**right)
    faults = []
    for argument in right:
        for what, wrong in WRONG.items():
            try:
                function(**{**right, argument: wrong})
            except (TypeError, ValueError) as error:
                named = "|".join(right) if what in RELATED else argument
                if not re.match(rf"({named})\b", str(error)):
                    faults.append(f"{argument} = {what}: {type(error).__name__}: {str(error)[:150]}")
            except Exception as error:  # what must not come out
                faults.append(f"{argument} = {what}: {type(error).__name__}: {str(error)[:150]}")
    assert not faults, f"{len(faults)} of {len(right) * len(WRONG)}\n" + "\n".join(faults)


@pytest.mark.parametrize("name", CALLS)
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    function, right = CALLS[name]
    for argument, value in right.items():
        if type(value) in (int, float):
            function(**{**right, argument: numpy.int64(value) if isinstance(value, int) else numpy.float32(value)})
