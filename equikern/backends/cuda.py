"""CUDA C++ kernels of csrc/cuda: the orbit where it only moves bits; Triton's kernels do everything else."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import triton

__all__ = ["orbit", "orbit_dot", "reduce", "select", "unavailable"]

_MAX_VIEWS, _MAX_LEAD = 64, 8  # csrc/cuda/orbit_plan.h

_launch: Any = None  # equikern._C.cuda_orbit, looked up at the first call


@lru_cache(maxsize=256)
def _codes(maps: str) -> list[int] | None:
    """Each view's bits: 1 transposed, 2 rows reversed, 4 columns reversed; None for views that are not 2D."""
    words = maps.split(" ")
    if words[0] == ".":
        return [0] * len(words)
    if len(words[0]) != 2:
        return None
    return [(word[0] in "wW") + 2 * ("H" in word) + 4 * ("W" in word) for word in words]


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """``out[g] = s_g · map_g(x)``, see ``reference.orbit``; s_g = 1 runs here, reading x once for all views."""
    global _launch
    codes = _codes(maps)
    moves_bits = scale == 1 and weights is None and index is None
    if not moves_bits or codes is None or len(codes) > _MAX_VIEWS or x.dim() > _MAX_LEAD:
        triton.orbit(x, out, maps, scale, weights, index)
        return
    if maps[0] == ".":
        x, out = x[..., None, None], out[..., None, None]
    if _launch is None:
        _launch = import_module("equikern._C").cuda_orbit
    device = x.device
    stream = torch.cuda.current_stream(device).cuda_stream
    _launch(
        x.data_ptr(), out.data_ptr(), x.shape, x.stride(), out.stride(), codes, x.element_size(), device.index, stream
    )


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, out2: Tensor | None
) -> None:
    """Triton's ``reduce``."""
    triton.reduce(y, out, maps, op, scale, weights, out2)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """Triton's ``orbit_dot``."""
    triton.orbit_dot(x, y, out, dots, maps, weights)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """Triton's ``select``."""
    triton.select(y, out, index, maps, scores, minimum)


def unavailable(device: torch.device) -> str | None:
    """None if the kernels can run on the device, else why not and what to do about it."""
    if device.type != "cuda":
        return f"CUDA kernels run on CUDA tensors, not on {device.type}: move them, or use another backend"
    if torch.version.hip is not None:
        return "CUDA kernels do not run on ROCm: use the backend 'triton'"
    from ..buildinfo import build_info

    info = build_info()
    if not info.native:
        return f"equikern was installed without its C++ part: {info.reason}"
    if not info.cuda:
        return f"equikern was built without CUDA: {info.cuda_reason}; reinstall it with EQUIKERN_CUDA=1"
    if not hasattr(import_module("equikern._C"), "cuda_orbit"):
        return "equikern._C was built without CUDA: reinstall equikern"
    return triton.unavailable(device)
