"""The C++ kernels of matrices on the last dim (``csrc/cpu/matrix.h``); ``cpu.py`` sends them such words."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..matrix_tables import table
from .reference import accumulator

_FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtypes.h
_OPS = {op: k for k, op in enumerate("sum max min gmean hmean tsharpen logodd std mean_std".split())}  # enum Op

_native: Any = None


def _kernels() -> Any:
    global _native
    if _native is None:
        _native = import_module("equikern._C")
    return _native


def _matrices(maps: str, t: Tensor) -> Tensor:
    """(|G|, d, d) in the accumulator's dtype, kept by the register."""
    return table(maps).on(t.device, accumulator(t.dtype))


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``."""
    mats = _matrices(maps, x)
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_index = 0
    if index is not None:
        at_index, keep = index.data_ptr(), index.dim()
    _kernels().matrix_orbit(
        x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), mats.data_ptr(), len(mats), _FLOATS[x.dtype],
        scale, at_weights, at_index, keep, torch.get_num_threads(),
    )  # fmt: skip


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_other, other_strides = (0, ()) if other is None else (other.data_ptr(), other.stride())
    _kernels().matrix_reduce(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), at_other, other_strides,
        _matrices(maps, y).data_ptr(), _FLOATS[y.dtype], _OPS[op], scale, at_weights, keep, torch.get_num_threads(),
    )  # fmt: skip


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``."""
    mats = _matrices(maps, y)
    at_out, out_strides = (0, ()) if out is None else (out.data_ptr(), out.stride())
    _kernels().matrix_orbit_dot(
        x.data_ptr(), x.shape, x.stride(), y.data_ptr(), y.stride(), at_out, out_strides, dots.data_ptr(),
        mats.data_ptr(), len(mats), _FLOATS[y.dtype], 0 if weights is None else weights.data_ptr(), dots.dim() - 1,
        torch.get_num_threads(),
    )  # fmt: skip


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``."""
    at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
    _kernels().matrix_select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(),
        _matrices(maps, y).data_ptr(), _FLOATS[y.dtype], at_scores, double, minimum, index.dim(),
        torch.get_num_threads(),
    )  # fmt: skip
