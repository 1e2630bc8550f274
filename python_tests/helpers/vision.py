"""torchvision beside any build of torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["torchvision"]

DECLARED: list[torch.library.Library] = []  # forgotten with the object that declared them


def torchvision(name: str) -> Any:
    """A module of torchvision, which has to be imported here before another package tries.

    Its C++ operators do not load beside another build of torch than theirs, such as the one for CPUs. Its Python code
    then fails to import, since it says what the fakes of two of them do. NMS in plain torch takes their place, so that
    detectors run: what else these need torchvision has in Python, too.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for half in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[half]
        DECLARED.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            DECLARED[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED[-1].impl("nms", _nms, "CPU")
        boxes: Any = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None
    return importlib.import_module(f"torchvision.{name}")


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that overlap no surer one of those that stay, by falling score."""
    overlaps = torchvision("ops").box_iou(dets, dets) > iou_threshold
    kept: list[int] = []
    left = torch.ones(len(dets), dtype=torch.bool)
    for i in scores.argsort(descending=True, stable=True).tolist():
        if left[i]:
            kept.append(i)
            left &= ~overlaps[i]
    return torch.tensor(kept, dtype=torch.int64)
