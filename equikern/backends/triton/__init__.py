"""Triton kernels for CUDA and ROCm devices: the main GPU path, forward and backward.

Nothing here imports Triton until a kernel is asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .cross_entropies import cross_entropy
    from .dispatch import orbit, orbit_dot, reduce, select
    from .scores import score, score_select
    from .softmaxes import softmax_mean, softmax_mean_backward

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

_MODULES = {
    **dict.fromkeys(("orbit", "orbit_dot", "reduce", "select"), "dispatch"),
    **dict.fromkeys(("softmax_mean", "softmax_mean_backward"), "softmaxes"),
    **dict.fromkeys(("score", "score_select"), "scores"),
    "cross_entropy": "cross_entropies",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return function


def unavailable(device: torch.device) -> str | None:
    """None if the kernels can run on the device, else why not and what to do about it."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if device.type != "cuda" and not (interpreted and device.type == "cpu"):
        return f"Triton kernels run on CUDA and ROCm tensors, not on {device.type}: move them, or use another backend"
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    compat = import_module(".compat", __name__)
    if compat.version() < compat.OLDEST:
        found, oldest = (".".join(map(str, v)) for v in (compat.version(), compat.OLDEST))
        return f"Triton {found} is installed, {oldest} or later is needed: pip install --upgrade triton"
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA or ROCm device: check the driver, and that torch is a CUDA or ROCm build"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor} is below Triton's 8.0: use the backend 'reference' or 'cuda'"
    return None
