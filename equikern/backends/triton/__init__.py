"""Triton kernels for CUDA and ROCm devices: the main GPU path, forward and backward.

Nothing here imports Triton until a kernel is asked for.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...reductions import REDUCTIONS
from ...views import Views
from .. import plain
from ..base import Backend, Maybe
from ..reference import Reference

__all__ = ["Triton"]

_FALLBACK = Reference()


_LARGEST = 8  # entries of vectors that a thread multiplies by a matrix; larger ones are for torch's matrix products


@cache
def _of_module(module: str, function: str) -> Any:
    found = import_module(f".{module}", __name__) if module else None
    return getattr(found, function, None) or getattr(_FALLBACK, function)


def _of_kind(views: Views, function: str) -> Any:
    """A function of a kind's module; what has no module, or no such function there, the fallback serves."""
    large = views.kind.computes and views.size > _LARGEST
    return _of_module("" if large else views.kind.triton, function)


@cache
def _of_rows(module: str, function: str) -> Any:
    return getattr(import_module(f".{module}", __name__), function)


class Triton(Backend):
    """Triton on CUDA and ROCm, and in its interpreter on the CPU."""

    name = "triton"
    fallback = _FALLBACK.name

    def unavailable(self, device: torch.device) -> str | None:
        """None if the kernels can run on the device, else why not and what to do about it."""
        interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
        if device.type != "cuda" and not (interpreted and device.type == "cpu"):
            return (
                f"Triton kernels run on CUDA and ROCm tensors, not on {device.type}: move them, or use another backend"
            )
        if find_spec("triton") is None:
            return "Triton is not installed: pip install triton"
        compat = import_module(".compat", __name__)
        if compat.version() < compat.OLDEST:
            found, oldest = (".".join(map(str, v)) for v in (compat.version(), compat.OLDEST))
            return f"Triton {found} is installed, {oldest} or later is needed: pip install --upgrade triton"
        if interpreted:
            return None
        if not torch.cuda.is_available():
            return "torch sees no CUDA or ROCm device: check the driver, and that torch is a CUDA or ROCm build"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            major, minor = torch.cuda.get_device_capability(device)
            return f"compute capability {major}.{minor} is below Triton's 8.0: use the backend 'reference' or 'cuda'"
        return None

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        if out.numel():
            _of_kind(views, "orbit")(x, out, views, table, scale, weights, index)

    def reduce(
        self,
        y: Tensor,
        out: Tensor,
        views: Views,
        table: Maybe,
        op: str,
        scale: float,
        weights: Maybe,
        plus: Maybe,
        spread: Maybe,
    ) -> None:
        if op == "weighted_mean" and weights is not None:
            weights, op = weights / weights.sum(0), "sum"
        if op not in REDUCTIONS:
            raise ValueError(f"op: expected one of {', '.join(REDUCTIONS)}, got {op!r}")
        if out.numel():
            _of_kind(views, "reduce")(y, out, views, table, op, scale, weights, plus, spread)

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        if y.numel():
            _of_kind(views, "orbit_dot")(x, y, out, dots, views, table, weights)
        else:
            dots.zero_()

    def reduce_backward(
        self, grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str
    ) -> None:
        if y.numel():
            _of_kind(views, "reduce_backward")(grad, spread, y, out, views, table, op)

    def variance(self, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        if views.kind.computes:
            super().variance(y, out, views, table)
        else:
            _of_kind(views, "variance")(y, out, views, table)

    def variance_backward(self, factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        _of_kind(views, "variance_backward")(factors, y, out, views, table)

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        if out.numel():
            _of_kind(views, "select")(y, out, index, views, table, scores, minimum)
        elif scores is not None:
            _of_rows("selection", "index_alone")(scores, index, minimum)

    def coarse(self, x: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        _FALLBACK.coarse(x, rows, columns, out)

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        if y.numel():
            _of_rows("softmaxes", "softmax_mean")(y, out, lse, views, table, space)

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        if y.numel():
            _of_rows("softmaxes", "softmax_mean_backward")(grad, y, lse, out, views, table, space)

    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        if logits.numel():
            _of_rows("scores", "score")(logits, out, kind)

    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        if y.numel():
            _of_rows("scores", "score_select")(y, out, index, views, table, kind, minimum)

    def cross_entropy(
        self,
        y: Tensor,
        target: Tensor,
        loss: Tensor,
        grad: Maybe,
        views: Views,
        table: Maybe,
        space: str,
        ignore_index: int,
        smoothing: float,
        scale: Maybe,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        weight: Maybe = None,
    ) -> None:
        """Kernels know of class weights what is a factor of the row, and no softcap, which takes passes of its own."""
        options = views, table, space, ignore_index, smoothing
        if weight is not None and smoothing:
            return _FALLBACK.cross_entropy(y, target, loss, grad, *options, scale, z_loss, softcap, weight)
        if not loss.numel():
            return
        logits, row = plain.capped(y, softcap) if softcap else y, None
        if weight is not None:
            target = target.contiguous()  # kernels look for a row's factor where its target lies
            row = plain.weights_of(target, weight, ignore_index)
            scale = row if scale is None else row * scale
        _of_rows("cross_entropies", "cross_entropy")(logits, target, loss, grad, *options, scale, z_loss)
        if row is not None:
            loss.mul_(row)
        if softcap and grad is not None:
            grad.mul_(plain.cap_slope(y, softcap))
