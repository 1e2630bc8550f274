"""The C++ kernels of fields whose channels matrices mix (``csrc/cpu/mixes.h``); ``cpu.py`` sends them such words.

They are those of volumes: images become volumes of one plane.
"""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..field_tables import grids, matrices
from ..matrix_tables import table
from .reference import accumulator

_FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtypes.h
_OPS = {op: k for k, op in enumerate("sum max min gmean hmean tsharpen logodd std mean_std".split())}  # enum Op
_MIXES = 1 << 24  # csrc/builder.h

_native: Any = None
_codes: dict[tuple[str, torch.dtype], tuple[bytes, int]] = {}


def volume_code(word: str) -> int:
    """What a view does to a volume, see ``csrc/cpu/boxes.h``; to an image as a volume of one plane."""
    word = word.rjust(3, "d")
    axes = ["dhw".index(letter.lower()) for letter in word]
    return axes[0] + 4 * axes[1] + 16 * ("D" in word) + 32 * ("H" in word) + 64 * ("W" in word)


def _kernels() -> Any:
    global _native
    if _native is None:
        _native = import_module("equikern._C")
    return _native


def _parsed(maps: str, t: Tensor) -> tuple[bytes, int]:
    """What the native module calls codes and spatial; the register keeps the matrices that codes point to."""
    wide = accumulator(t.dtype)
    found = _codes.get((maps, wide))
    if found is None:
        mats = table(matrices(maps)).on(t.device, wide)
        codes = bytes(map(volume_code, grids(maps).split(" "))) + struct.pack("q", mats.data_ptr())
        found = _codes[maps, wide] = (codes, 3 + 256 * mats.shape[-1] + _MIXES)
    return found


def _volumes(maps: str, t: Tensor) -> Tensor:
    return t if len(grids(maps).partition(" ")[0]) == 3 else t.unsqueeze(-3)


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``."""
    codes, dims = _parsed(maps, x)
    x, out = _volumes(maps, x), _volumes(maps, out)
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_index = 0
    if index is not None:
        at_index, keep = index.data_ptr(), index.dim()
    _kernels().orbit(
        x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), codes, dims, _FLOATS[x.dtype], scale,
        at_weights, at_index, keep, torch.get_num_threads(),
    )  # fmt: skip


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    codes, dims = _parsed(maps, y)
    y, out = _volumes(maps, y), _volumes(maps, out)
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_other, other_strides = (0, ()) if other is None else (other.data_ptr(), _volumes(maps, other).stride())
    _kernels().reduce(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), at_other, other_strides, codes, dims,
        _FLOATS[y.dtype], _OPS[op], scale, at_weights, keep, torch.get_num_threads(),
    )  # fmt: skip


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``."""
    codes, dims = _parsed(maps, y)
    x, y = _volumes(maps, x), _volumes(maps, y)
    at_out, out_strides = (0, ()) if out is None else (out.data_ptr(), _volumes(maps, out).stride())
    _kernels().orbit_dot(
        x.data_ptr(), x.shape, x.stride(), y.data_ptr(), y.stride(), at_out, out_strides, dots.data_ptr(), codes, dims,
        _FLOATS[y.dtype], 0 if weights is None else weights.data_ptr(), dots.dim() - 1, torch.get_num_threads(),
    )  # fmt: skip


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``."""
    codes, dims = _parsed(maps, y)
    y, out = _volumes(maps, y), _volumes(maps, out)
    at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
    _kernels().select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), codes, dims,
        _FLOATS[y.dtype], at_scores, double, minimum, index.dim(), torch.get_num_threads(),
    )  # fmt: skip
