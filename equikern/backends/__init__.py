"""Which kernels run: chosen by the tensor's device, overridden by ``use_backend`` or ``EQUIKERN_BACKEND``.

Every backend is a module with the functions of ``Kernels``: the kernels, which ``reference.py`` documents, and
``unavailable(device)``, which returns None or the reason why it cannot run there.
"""

from __future__ import annotations

import importlib
import os
from types import TracebackType
from typing import Protocol, cast

import torch
from torch import Tensor

from ..nvtx import ranged
from . import choice

__all__ = ["Kernels", "active_backend", "kernels", "unavailable", "use_backend"]

NAMES = ("reference", "cpu", "triton", "cuda")


class Kernels(Protocol):
    """What a backend offers; see ``reference.py`` for what each function computes."""

    def orbit(
        self, x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None
    ) -> None: ...
    def reduce(
        self, y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
    ) -> None: ...
    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None
    ) -> None: ...
    def select(
        self, y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool
    ) -> None: ...
    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, maps: str, space: str) -> None: ...
    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, maps: str, space: str
    ) -> None: ...
    def score(self, logits: Tensor, out: Tensor, kind: str) -> None: ...
    def score_select(self, y: Tensor, out: Tensor, index: Tensor, maps: str, kind: str, minimum: bool) -> None: ...
    def cross_entropy(
        self,
        y: Tensor,
        target: Tensor,
        loss: Tensor,
        grad: Tensor | None,
        maps: str,
        space: str,
        ignore_index: int,
        smoothing: float,
        scale: Tensor | None,
    ) -> None: ...
    def unavailable(self, device: torch.device) -> str | None: ...


_forced: str | None = None
_active: dict[str, Kernels] = {}  # by device type; emptied when the choice changes


def _load(name: str) -> Kernels:
    return cast(Kernels, importlib.import_module(f".{name}", __package__))


def unavailable(name: str, device: torch.device) -> str | None:
    """Why the named backend cannot run on the device, or None if it can."""
    try:
        return _load(name).unavailable(device)
    except ImportError as error:
        return f"it does not import: {error}"


def _choose(device: torch.device) -> Kernels:
    if _forced is not None:
        reason = unavailable(_forced, device)
        if reason is not None:
            asked = " (from EQUIKERN_BACKEND)" if _forced == os.environ.get("EQUIKERN_BACKEND") else ""
            raise ValueError(f"backend {_forced!r}{asked} cannot run on {device.type} tensors: {reason}")
        return _load(_forced)
    for name in {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ()):
        if unavailable(name, device) is None:
            return _load(name)
    return _load("reference")


def kernels(x: Tensor) -> Kernels:
    """The kernels that serve x's device."""
    found = _active.get("cpu" if x.is_cpu else x.device.type)  # is_cpu is the cheaper question
    if found is None:
        found = _active[x.device.type] = ranged(_choose(x.device))
    return found


def active_backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend that serves a device now.

    Raises:
        TypeError, ValueError: not a device, or the backend asked for cannot run there; the message says why.

    Example:
        >>> with use_backend("reference"):
        ...     active_backend("cpu")
        'reference'
    """
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {type(device).__name__}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected a device such as 'cpu' or 'cuda', got {device!r}: {error}") from None
    return str(getattr(_choose(device), "__name__", "")).rpartition(".")[2]


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    choice.everywhere = name == "cuda"
    _active.clear()


class use_backend:  # noqa: N801  (reads as a verb)
    """Run every operator on the named kernels, from now on or inside a ``with`` block.

    Process-wide, since autograd runs backward passes on threads of its own. The environment variable
    ``EQUIKERN_BACKEND`` does the same from the start.

    Args:
        name: ``"reference"`` (plain torch, any device), ``"cpu"`` (C++), ``"triton"``, ``"cuda"`` (CUDA C++ wherever
            it has a kernel, Triton elsewhere), or None for the choice by device: on CUDA devices ``"cuda"`` where it
            is built, with each call going to CUDA C++ or Triton by the table of ``backends/choice.py``.

    Raises:
        TypeError, ValueError: an unknown name, or the backend can run on no device of this machine; the message
            says why.

    Example:
        >>> from equikern import grid, orbit
        >>> with use_backend("reference"):
        ...     orbit(torch.tensor([[1, 2]]), grid("hflip")).tolist()
        [[[1, 2]], [[2, 1]]]
    """

    def __init__(self, name: str | None) -> None:
        if name is not None:
            _check_can_run(name, "name")
        self._name, self._previous = name, _forced
        _force(name)

    def __enter__(self) -> use_backend:
        _force(self._name)  # once more, for an object that is entered again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _force(self._previous)


def _check_can_run(name: str, argument: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected one of {', '.join(NAMES)} or None, got {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}, got {name!r}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    reasons = {device: unavailable(name, torch.device(device)) for device in devices}
    if None not in reasons.values():
        raise ValueError(f"{argument}: backend {name!r} cannot run here: {'; '.join(map(str, reasons.values()))}")


def _from_environment() -> None:
    name = os.environ.get("EQUIKERN_BACKEND")
    if name:
        # Whether it can run is asked at the first call: importing must touch no compiler, GPU or Triton.
        if name not in NAMES:
            raise ValueError(f"EQUIKERN_BACKEND: expected one of {', '.join(NAMES)}, got {name!r}")
        _force(name)


_from_environment()
