"""Which kernels run: chosen by the tensor's device, overridden by ``use_backend`` or ``EQUIKERN_BACKEND``.

Every backend is a class of the interface ``Backend`` (``base.py``), made once; ``DEVICES`` says which are tried where.
"""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from . import choice
from .base import Backend
from .nvtx import ranged

__all__ = ["Backend", "active_backend", "kernels", "unavailable", "use_backend"]

# By name: the module and its class. Triton's and the C++ module are imported where they are first asked for.
BACKENDS = {"reference": "Reference", "cpu": "Cpu", "triton": "Triton", "cuda": "Cuda"}
# By device type: the backends that serve it, best first; plain torch serves every other type, and where none of these
# can run.
DEVICES = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_stack: list[use_backend] = []  # those in force, the last one counts
_lock = Lock()
_active: dict[str, Backend] = {}  # by device type; emptied when the choice changes


@cache
def _load(name: str) -> Backend:
    module = importlib.import_module(f".{name}", __package__)
    backend: Backend = getattr(module, BACKENDS[name])()
    return backend


def unavailable(name: str, device: torch.device) -> str | None:
    """Why the named backend cannot run on the device, or None if it can."""
    try:
        return _load(name).unavailable(device)
    except ImportError as error:
        return f"it does not import: {error}"


def _forced() -> str | None:
    return _stack[-1].name if _stack else _from_environment


def _choose(device: torch.device) -> Backend:
    forced = _forced()
    if forced is not None:
        reason = unavailable(forced, device)
        if reason is not None:
            asked = " (from EQUIKERN_BACKEND)" if forced == _from_environment else ""
            raise ValueError(f"backend {forced!r}{asked} cannot run on {device.type} tensors: {reason}")
        return _load(forced)
    for name in DEVICES.get(device.type, ()):
        if unavailable(name, device) is None:
            return _load(name)
    return _load("reference")


def kernels(x: Tensor) -> Backend:
    """The kernels that serve x's device."""
    found = _active.get("cpu" if x.is_cpu else x.device.type)  # is_cpu is the cheaper question
    if found is None:
        chosen = _choose(x.device)
        if x.is_cpu and chosen.name == "reference" and _forced() is None:
            _warn_of_slow_kernels()
        found = _active[x.device.type] = ranged(chosen)
    return found


@cache
def _warn_of_slow_kernels() -> None:
    """Once in a process, at its first call on the CPU."""
    reason = unavailable("cpu", torch.device("cpu"))
    warnings.warn(
        f"equikern: operators on CPU tensors run in plain torch, several times slower: {reason}; "
        "use_backend('reference') asks for that and is silent",
        stacklevel=2,
    )


def active_backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend that serves a device now.

    Raises:
        TypeError, ValueError: not a device, or the backend asked for cannot run there; the message says why.

    Example:
        >>> with use_backend("reference"):
        ...     active_backend("cpu")
        'reference'
    """
    return _choose(device_of(device)).name


def device_of(device: object) -> torch.device:
    """A device as users name it."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {type(device).__name__}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected a device such as 'cpu' or 'cuda', got {device!r}: {error}") from None


def _changed() -> None:
    choice.everywhere = _forced() == "cuda"
    _active.clear()


class use_backend:  # noqa: N801  (reads as a verb)
    """Run every operator on the named kernels, from now on or inside a ``with`` block.

    Process-wide, since autograd runs backward passes on threads of its own. Blocks may overlap in several threads: each
    takes back its own choice when it ends, and the latest of those that are left is in force. The environment variable
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
        self.name = name
        self._waits = True  # for the block that it may be made for
        with _lock:
            # An earlier one without a block is the choice outside of all blocks; those before that are over.
            without_block = [other for other in _stack if other._waits]
            for other in without_block[:-1]:
                _stack.remove(other)
            _stack.append(self)
            _changed()

    def __enter__(self) -> use_backend:
        with _lock:
            if self._waits and self in _stack:
                self._waits = False
            else:  # an object that is entered again
                _stack.append(self)
                _changed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            del _stack[max(k for k, other in enumerate(_stack) if other is self)]
            _changed()


def _check_can_run(name: str, argument: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected one of {', '.join(BACKENDS)} or None, got {type(name).__name__}")
    if name not in BACKENDS:
        raise ValueError(f"{argument}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    reasons = {device: unavailable(name, torch.device(device)) for device in devices}
    if None not in reasons.values():
        raise ValueError(f"{argument}: backend {name!r} cannot run here: {'; '.join(map(str, reasons.values()))}")


def _asked_for() -> str | None:
    name = os.environ.get("EQUIKERN_BACKEND") or None
    # Whether it can run is asked at the first call: importing must touch no compiler, GPU or Triton.
    if name is not None and name not in BACKENDS:
        raise ValueError(f"EQUIKERN_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_from_environment = _asked_for()
_changed()
