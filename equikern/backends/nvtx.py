"""Ranges around the operators' kernels for Nsight: ``EQUIKERN_NVTX=1``, read when a device is first used.

Each range says which kernel ran on which tensors, for how many views, and how many bytes it had to move, so that bytes
over the range's time is the bandwidth. Off, nothing is wrapped and nothing is asked: calls cost what they always do.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .base import Backend

__all__ = ["moved", "ranged"]


def moved(*tensors: Tensor | None) -> int:
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
    mark = _NvtxRange if built_with_cuda else torch.profiler.record_function
    marked = copy.copy(kernels)
    for kernel in Backend.__abstractmethods__ - {"unavailable"}:
        setattr(marked, kernel, _in_a_range(f"equikern.{kernels.name}", kernel, getattr(kernels, kernel), mark))
    return marked


def _in_a_range(
    prefix: str, kernel: str, call: Callable[..., None], mark: Callable[[str], AbstractContextManager[object]]
) -> Callable[..., None]:
    """One kernel inside a range named ``<prefix>.<kernel> shape dtype views bytes``."""
    names = tuple(inspect.signature(call).parameters)

    def run(*args: Any) -> None:
        given = dict(zip(names, args, strict=True))
        shown = next(given[name] for name in ("y", "x", "logits") if name in given)
        views = given["views"].code if "views" in given else "."
        option = next((f"({given[name]})" for name in ("op", "space", "kind") if name in given), "")
        if kernel == "select":  # the chosen views alone are read
            count = moved(given["out"], given["out"], given["index"], given["scores"])
        else:
            count = moved(*(t for name, t in given.items() if isinstance(t, Tensor) and name not in ("table", "scale")))
        name = "take" if kernel == "select" and given["scores"] is None else kernel + option
        shape, dtype = "x".join(map(str, shown.shape)), str(shown.dtype).removeprefix("torch.")
        with mark(f"{prefix}.{name} {shape} {dtype} views [{views}] {count} bytes"):
            call(*args)

    return run
