"""CUDA C++ kernels of csrc/cuda: orbit, sums over the views, orbit_dot and select of tensors whose rows have no gaps.

``choice.py`` says which calls Triton serves instead; ``use_backend("cuda")`` overrides it. What has no CUDA kernel
(other reductions, other strides, more views, permutations of a dim, whatever takes a softmax) always runs on Triton's.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import choice, triton

if TYPE_CHECKING:
    from .triton import cross_entropy, score, score_select, softmax_mean, softmax_mean_backward

__all__ = [
    "cross_entropy",
    "orbit",
    "orbit_dot",
    "reduce",
    "score",
    "score_select",
    "select",
    "softmax_mean",
    "softmax_mean_backward",
    "unavailable",
]

_ONLY_TRITON = ("cross_entropy", "score", "score_select", "softmax_mean", "softmax_mean_backward")

_FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtypes.h

_native: Any = None  # equikern._C, looked up at the first call


def __getattr__(name: str) -> Any:
    if name not in _ONLY_TRITON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(triton, name)


@lru_cache(maxsize=256)
def _codes(maps: str) -> list[int] | None:
    """Each view's bits: 1 transposed, 2 rows reversed, 4 columns reversed; None for views that are not 2D."""
    words = maps.split(" ")
    if words[0] == ".":
        return [0] * len(words)
    if len(words[0]) != 2:
        return None
    return [(word[0] in "wW") + 2 * ("H" in word) + 4 * ("W" in word) for word in words]


def _where(t: Tensor) -> tuple[int, int]:
    """The device's number and its current stream, as the launches take them."""
    device = t.device
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _kernels() -> Any:
    global _native
    if _native is None:
        _native = import_module("equikern._C")
    return _native


def _given(t: Tensor | None, view: int) -> tuple[int, int]:
    """The address of weights, scores or an index, and how many leading dims of the image they have."""
    return (0, 0) if t is None else (t.data_ptr(), t.dim() - view)


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """``out[g] = s_g · map_g(x)``, see ``reference.orbit``: x is read once for all views."""
    codes = _codes(maps)
    moves_bits = scale == 1 and weights is None
    operator = "orbit" if moves_bits else "scaled orbit"
    if codes is not None and choice.runs_cuda(operator, x, maps):
        image, views = (x[..., None, None], out[..., None, None]) if maps[0] == "." else (x, out)
        if _kernels().cuda_orbit(
            x.data_ptr(), out.data_ptr(), image.shape, image.stride(), views.stride(), codes, x.element_size(),
            0 if moves_bits else _FLOATS[x.dtype], scale, *_given(weights, 1), *_given(index, 0), *_where(x),
        ):  # fmt: skip
            return
    triton.orbit(x, out, maps, scale, weights, index)


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``; the sums "sum", of y alone, and "weighted_mean" have CUDA kernels."""
    codes = _codes(maps)
    operator = "sum" if y.stride(0) else "symmetrize"
    if op in ("sum", "weighted_mean") and other is None and codes is not None and choice.runs_cuda(operator, y, maps):
        normalized = op == "weighted_mean" and weights is not None
        if _kernels().cuda_sum(
            y.data_ptr(), out.data_ptr(), y.shape[1:], y.stride(), out.stride(), codes, _FLOATS[y.dtype], scale,
            *_given(weights, 1), normalized, *_where(y),
        ):  # fmt: skip
            return
    triton.reduce(y, out, maps, op, scale, weights, other)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``: one read of x and y gives both; the dots' order of addition is fixed."""
    codes = _codes(maps)
    if codes is not None and choice.runs_cuda("orbit_dot", x, maps):
        partial: list[Tensor] = []

        def allocate(elements: int) -> int:
            partial.append(dots.new_empty(elements))
            return partial[0].data_ptr()

        if _kernels().cuda_orbit_dot(
            x.data_ptr(), y.data_ptr(), 0 if out is None else out.data_ptr(), dots.data_ptr(), x.shape, x.stride(),
            y.stride(), () if out is None else out.stride(), codes, _FLOATS[x.dtype],
            0 if weights is None else weights.data_ptr(), dots.dim() - 1, allocate, *_where(x),
        ):  # fmt: skip
            return
    triton.orbit_dot(x, y, out, dots, maps, weights)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``: reads the chosen view alone."""
    codes = _codes(maps)
    if codes is not None and y.numel() and choice.runs_cuda("select", y, maps):
        at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
        if _kernels().cuda_select(
            y.data_ptr(), out.data_ptr(), y.shape[1:], y.stride(), out.stride(), codes, y.element_size(),
            *_given(index, 0), at_scores, double, minimum, *_where(y),
        ):  # fmt: skip
            return
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
