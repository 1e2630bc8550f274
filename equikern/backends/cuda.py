"""CUDA C++ kernels of csrc/cuda: orbit, sums over the views, orbit_dot and select of tensors whose rows have no gaps,
and means of softmaxes of rows that fit into shared memory, with their gradients.

``choice.py`` says which calls Triton serves instead; ``use_backend("cuda")`` overrides it. What has no CUDA kernel
(other reductions, other strides, more views, permutations of a dim, whatever else takes a softmax) always runs on
Triton's.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..buildinfo import build_info
from ..views import Views
from . import choice
from .base import Maybe
from .triton import Triton
from .triton.tables import lists

__all__ = ["Cuda"]

_FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtypes.h

_native: Any = None  # equikern._C, looked up at the first call


def _codes(views: Views) -> list[int] | None:
    """Each view's bits, see ``csrc/grid_index.h``; None for views that these kernels do not know."""
    if views.kind.still or views.dims == views.sides == 2:
        return list(views.codes)
    return None


def _listed(views: Views, table: Maybe) -> tuple[Maybe, Maybe]:
    """The entries that some view of rows moves, and their sources; no entries where all are listed, nor any sources
    where none is."""
    positions, sources = lists(views, table)
    return (positions, sources) if sources is not None and sources.numel() else (None, None)


def _where(t: Tensor) -> tuple[int, int]:
    """The device's number and its current stream, as the launches take them."""
    device = t.device
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _kernels() -> Any:
    global _native
    if _native is None:
        _native = import_module("equikern._C")
    return _native


def _given(t: Maybe, view: int) -> tuple[int, int]:
    """The address of weights, scores or an index, and how many leading dims of the image they have."""
    return (0, 0) if t is None else (t.data_ptr(), t.dim() - view)


class Cuda(Triton):
    """CUDA C++ where it has a kernel, Triton elsewhere."""

    name = "cuda"
    fallback = "triton"

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        """See ``Backend.orbit``: x is read once for all views."""
        codes = _codes(views)
        moves_bits = scale == 1 and weights is None
        operator = "orbit" if moves_bits else "scaled orbit"
        if codes is not None and choice.runs_cuda(operator, x, views):
            image, shown = (x, out) if views.sides else (x[..., None, None], out[..., None, None])
            if _kernels().cuda_orbit(
                x.data_ptr(), out.data_ptr(), image.shape, image.stride(), shown.stride(), codes, x.element_size(),
                0 if moves_bits else _FLOATS[x.dtype], scale, *_given(weights, 1), *_given(index, 0), *_where(x),
            ):  # fmt: skip
                return
        super().orbit(x, out, views, table, scale, weights, index)

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
        """See ``Backend.reduce``; the sums "sum", of y alone, and "weighted_mean" have CUDA kernels."""
        codes = _codes(views)
        operator = "sum" if y.stride(0) else "symmetrize"
        sums = op in ("sum", "weighted_mean") and plus is None
        if sums and codes is not None and choice.runs_cuda(operator, y, views):
            normalized = op == "weighted_mean" and weights is not None
            if _kernels().cuda_sum(
                y.data_ptr(), out.data_ptr(), y.shape[1:], y.stride(), out.stride(), codes, _FLOATS[y.dtype], scale,
                *_given(weights, 1), normalized, *_where(y),
            ):  # fmt: skip
                return
        super().reduce(y, out, views, table, op, scale, weights, plus, spread)

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        """See ``Backend.orbit_dot``: one read of x and y gives both; the dots' order of addition is fixed."""
        codes = _codes(views)
        if codes is not None and choice.runs_cuda("orbit_dot", x, views):
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
        super().orbit_dot(x, y, out, dots, views, table, weights)

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        """See ``Backend.select``: reads the chosen view alone."""
        codes = _codes(views)
        if codes is not None and y.numel() and choice.runs_cuda("select", y, views):
            at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
            if _kernels().cuda_select(
                y.data_ptr(), out.data_ptr(), y.shape[1:], y.stride(), out.stride(), codes, y.element_size(),
                *_given(index, 0), at_scores, double, minimum, *_where(y),
            ):  # fmt: skip
                return
        super().select(y, out, index, views, table, scores, minimum)

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        """See ``Backend.softmax_mean``: a block reads a row of every view once."""
        if choice.runs_cuda_rows(y, views, table):
            positions, sources = _listed(views, table)
            if _kernels().cuda_softmax_mean(
                y.data_ptr(), out.data_ptr(), lse.data_ptr(), out.shape, y.stride(), out.stride(), views.order,
                *(0 if t is None else t.data_ptr() for t in (positions, sources)),
                0 if positions is None else len(positions),
                _FLOATS[y.dtype], space == "log_probs", *_where(y),
            ):  # fmt: skip
                return
        super().softmax_mean(y, out, lse, views, table, space)

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        """See ``Backend.softmax_mean_backward``: a block reads a row of one view and of the gradient once."""
        if y.numel() and choice.runs_cuda_rows(y, views, table, "softmax gradient") and lse.is_contiguous():
            positions, sources = _listed(views, table)
            if _kernels().cuda_softmax_mean_backward(
                grad.data_ptr(), y.data_ptr(), lse.data_ptr(), out.data_ptr(), grad.shape, grad.stride(), y.stride(),
                out.stride(), views.order, *(0 if t is None else t.data_ptr() for t in (positions, sources)),
                0 if positions is None else len(positions),
                _FLOATS[y.dtype], space == "log_probs", *_where(y),
            ):  # fmt: skip
                return
        super().softmax_mean_backward(grad, y, lse, out, views, table, space)

    def unavailable(self, device: torch.device) -> str | None:
        """None if the kernels can run on the device, else why not and what to do about it."""
        if device.type != "cuda":
            return f"CUDA kernels run on CUDA tensors, not on {device.type}: move them, or use another backend"
        if torch.version.hip is not None:
            return "CUDA kernels do not run on ROCm: use the backend 'triton'"
        info = build_info()
        if not info.native:
            return f"equikern was installed without its C++ part: {info.reason}"
        if not info.cuda:
            return f"equikern was built without CUDA: {info.cuda_reason}; reinstall it with EQUIKERN_CUDA=1"
        if not hasattr(import_module("equikern._C"), "cuda_orbit"):
            return "equikern._C was built without CUDA: reinstall equikern"
        if torch.cuda.is_available():
            capability = torch.cuda.get_device_capability(device)
            if not info.runs_on(capability):
                number = ".".join(map(str, capability))
                return (
                    f"equikern was built for GPUs of compute capability {', '.join(info.cuda_archs)}, and this one has "
                    f"{number}: reinstall it with TORCH_CUDA_ARCH_LIST={number}"
                )
        return super().unavailable(device)
