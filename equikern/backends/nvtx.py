"""Ranges around the operators' kernels for Nsight: ``EQUIKERN_NVTX=1``, read when a device is first used.

Each range says which kernel ran on which tensors, for how many views, and how many bytes it had to move, so that bytes
over the range's time is the bandwidth. Off, nothing is wrapped and nothing is asked: calls cost what they always do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..views import Views
from .base import Backend, Maybe

__all__ = ["Ranged", "moved", "ranged"]


def moved(*tensors: Maybe) -> int:
    """Bytes of the tensors' distinct elements: a dim that was expanded counts once.

    Example:
        >>> moved(torch.zeros(3, 4), torch.zeros(1, 4).expand(5, 4), None)
        64
    """
    total = 0
    for t in tensors:
        if t is not None:
            count = t.element_size()
            for size, stride in zip(t.shape, t.stride(), strict=True):
                count *= size if stride or not size else 1
            total += count
    return total


class _NvtxRange:
    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        torch.cuda.nvtx.range_push(self._label)  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]


def ranged(kernels: Backend) -> Backend:
    """The kernels with a range around each call if ``EQUIKERN_NVTX`` is 1, else the kernels themselves.

    On a torch build without CUDA the ranges go to ``torch.profiler``, which shows them on any machine.
    """
    if os.environ.get("EQUIKERN_NVTX", "0") != "1":
        return kernels
    built_with_cuda = torch.version.cuda is not None or torch.version.hip is not None
    return Ranged(kernels, _NvtxRange if built_with_cuda else torch.profiler.record_function)


class Ranged(Backend):
    """A backend whose kernels run inside ranges named ``equikern.<backend>.<kernel> shape dtype views bytes``."""

    name = "ranged"

    def __init__(self, kernels: Backend, mark: Callable[[str], AbstractContextManager[object]]) -> None:
        self._kernels = kernels
        self._mark = mark

    def _range(self, kernel: str, t: Tensor, views: str, count: int) -> AbstractContextManager[object]:
        shape = "x".join(map(str, t.shape))
        dtype = str(t.dtype).removeprefix("torch.")
        return self._mark(f"equikern.{self._kernels.name}.{kernel} {shape} {dtype} views [{views}] {count} bytes")

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        """``orbit`` in a range that shows x's shape."""
        with self._range("orbit", x, views.code, moved(x, out, weights, index)):
            self._kernels.orbit(x, out, views, table, scale, weights, index)

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
        """``reduce`` in a range that shows the operation and y's shape."""
        with self._range(f"reduce({op})", y, views.code, moved(y, out, weights, plus, spread)):
            self._kernels.reduce(y, out, views, table, op, scale, weights, plus, spread)

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        """``orbit_dot`` in a range that shows y's shape."""
        with self._range("orbit_dot", y, views.code, moved(x, y, out, dots, weights)):
            self._kernels.orbit_dot(x, y, out, dots, views, table, weights)

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        """``select`` in a range that shows y's shape; only the chosen views count."""
        with self._range("select" if scores is not None else "take", y, views.code, moved(out, out, index, scores)):
            self._kernels.select(y, out, index, views, table, scores, minimum)

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        """``softmax_mean`` in a range that shows the space and y's shape."""
        with self._range(f"softmax_mean({space})", y, views.code, moved(y, out, lse)):
            self._kernels.softmax_mean(y, out, lse, views, table, space)

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        """``softmax_mean_backward`` in a range that shows the space and y's shape."""
        with self._range(f"softmax_mean_backward({space})", y, views.code, moved(grad, y, lse, out)):
            self._kernels.softmax_mean_backward(grad, y, lse, out, views, table, space)

    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        """``score`` in a range that shows the kind and the logits' shape."""
        with self._range(f"score({kind})", logits, ".", moved(logits, out)):
            self._kernels.score(logits, out, kind)

    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        """``score_select`` in a range that shows the kind and y's shape."""
        with self._range(f"score_select({kind})", y, views.code, moved(y, out, index)):
            self._kernels.score_select(y, out, index, views, table, kind, minimum)

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
    ) -> None:
        """``cross_entropy`` in a range that shows the space and y's shape."""
        with self._range(f"cross_entropy({space})", y, views.code, moved(y, target, loss, grad)):
            self._kernels.cross_entropy(y, target, loss, grad, views, table, space, ignore_index, smoothing, scale)

    def unavailable(self, device: torch.device) -> str | None:
        """The backend's own answer."""
        return self._kernels.unavailable(device)
