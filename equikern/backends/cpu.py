"""The C++ kernels of ``csrc/cpu``: one pass over memory, SIMD chosen at run time, torch's number of threads."""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from ..views import EXACT, FLOATS, UNSIGNED, Views
from .base import Backend, Maybe

try:
    from equikern import _C
except ImportError as error:  # built without a C++ compiler, or not built at all
    _C = None  # type: ignore[assignment]
    _reason = str(error)
else:
    _KINDS, _OPS = _C.KINDS, _C.OPS
    _FLOATS = {dtype: _C.DTYPES[str(dtype).removeprefix("torch.")] for dtype in FLOATS}
    # Integers and bool are moved and never added; votes compare them, as signed numbers but for two.
    _DTYPES = {**_FLOATS, **{dtype: _C.DTYPES[f"bits{8 * dtype.itemsize}"] for dtype in EXACT - FLOATS}}
    _VOTES = {**_DTYPES, **dict.fromkeys(UNSIGNED, _C.DTYPES["uint8"])}

__all__ = ["Cpu"]


def _views(views: Views, table: Maybe, spreads: bool = False) -> tuple[int, int, bytes, int, int, int]:
    """What every function of the module takes as views: the kind's number, and what the kind says of them.

    ``spreads``: for kernels that go through the channels of a field's source rather than of its views.
    """
    try:
        number = _KINDS[views.kind.name]
    except KeyError:
        known = ", ".join(_KINDS)
        raise ValueError(
            f"views: the C++ kernels know the kinds {known}, got {views.kind.name}; use_backend('reference') serves it"
        ) from None
    return number, *views.kind.native(views, table, spreads)


def _strides(t: Maybe) -> tuple[int, tuple[int, ...]]:
    return (0, ()) if t is None else (t.data_ptr(), t.stride())


class Cpu(Backend):
    """C++ on the CPU."""

    name = "cpu"
    fallback = "reference"

    def unavailable(self, device: torch.device) -> str | None:
        """Why these kernels cannot run on a device, or None if they can."""
        if device.type != "cpu":
            return "its kernels run on CPU tensors only"
        if _C is None and find_spec("equikern._C") is not None:
            return f"the C++ module does not load ({_reason}); install what it lacks, or build equikern on this machine"
        if _C is None:
            return f"the C++ module is not built ({_reason}); install a C++ compiler and run pip install again"
        return None

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        if views.kind.ids:
            return self._tokens(x, out, views, table, None)
        at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
        at_index = 0
        if index is not None:
            at_index, keep = index.data_ptr(), index.dim()
        _C.orbit(
            x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), _views(views, table, True),
            _DTYPES[x.dtype], scale, at_weights, at_index, keep, torch.get_num_threads(),
        )  # fmt: skip

    def _tokens(self, x: Tensor, out: Tensor, views: Views, table: Maybe, index: Maybe) -> None:
        at_index, keep = (0, 0) if index is None else (index.data_ptr(), index.dim())
        _C.tokens(
            x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), _views(views, table), _DTYPES[x.dtype],
            at_index, keep, torch.get_num_threads(),
        )  # fmt: skip

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
        if op == "weighted_mean" and views.kind.computes and weights is not None:
            weights, op = weights / weights.sum(0), "sum"
        at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
        _C.reduce(
            y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), *_strides(plus), *_strides(spread),
            _views(views, table), (_VOTES if op == "vote" else _FLOATS)[y.dtype], _OPS[op], scale, at_weights, keep,
            torch.get_num_threads(),
        )  # fmt: skip

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        _C.orbit_dot(
            x.data_ptr(), x.shape, x.stride(), y.data_ptr(), y.stride(), *_strides(out), dots.data_ptr(),
            _views(views, table, True), _FLOATS[y.dtype], 0 if weights is None else weights.data_ptr(), dots.dim() - 1,
            torch.get_num_threads(),
        )  # fmt: skip

    def reduce_backward(
        self, grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str
    ) -> None:
        _C.reduce_backward(
            *_strides(grad), *_strides(spread), y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(),
            _views(views, table), _FLOATS[y.dtype], _OPS[op], torch.get_num_threads(),
        )  # fmt: skip

    def variance(self, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        if views.kind.computes:
            return super().variance(y, out, views, table)
        _C.variance(
            y.data_ptr(), y.shape, y.stride(), out.data_ptr(), _views(views, table), _FLOATS[y.dtype],
            out.numel() / y.numel(), out.dim(), torch.get_num_threads(),
        )  # fmt: skip

    def variance_backward(self, factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        _C.variance_backward(
            factors.data_ptr(), y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), _views(views, table),
            _FLOATS[y.dtype], factors.dim(), torch.get_num_threads(),
        )  # fmt: skip

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        if views.kind.ids:
            return self._tokens(y[0], out, views, table, index)
        at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
        _C.select(
            y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), _views(views, table),
            _DTYPES[y.dtype], at_scores, double, minimum, index.dim(), torch.get_num_threads(),
        )  # fmt: skip

    def coarse(self, x: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        *lead, height, width = x.shape
        _C.coarse(
            x.data_ptr(), math.prod(lead), height, width, rows.data_ptr(), rows.shape[1], columns.data_ptr(),
            columns.shape[1], out.data_ptr(), _FLOATS[x.dtype], torch.get_num_threads(),
        )  # fmt: skip

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        _C.softmax_mean(
            y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), lse.data_ptr(), _views(views, table),
            _FLOATS[y.dtype], _C.SPACES[space], torch.get_num_threads(),
        )  # fmt: skip

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        _C.softmax_mean_backward(
            grad.data_ptr(), grad.stride(), y.data_ptr(), y.shape, y.stride(), lse.data_ptr(), out.data_ptr(),
            out.stride(), _views(views, table), _FLOATS[y.dtype], _C.SPACES[space],
            torch.get_num_threads(),
        )  # fmt: skip

    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        _C.score(
            logits.data_ptr(), logits.shape, logits.stride(), out.data_ptr(), _FLOATS[logits.dtype], _C.SCORES[kind],
            torch.get_num_threads(),
        )  # fmt: skip

    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        _C.score_select(
            y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), _views(views, table),
            _FLOATS[y.dtype], _C.SCORES[kind], minimum, torch.get_num_threads(),
        )  # fmt: skip

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
        _C.cross_entropy(
            y.data_ptr(), y.shape, y.stride(), target.data_ptr(), loss.data_ptr(), *_strides(grad),
            _views(views, table), _FLOATS[y.dtype], _C.SPACES[space], ignore_index, smoothing, z_loss, softcap,
            0 if weight is None else weight.data_ptr(), 1.0 if scale is None else scale.item(),
            torch.get_num_threads(),
        )  # fmt: skip
