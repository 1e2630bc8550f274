"""``warmup``: kernels compiled, and in tuned mode measured, ahead of the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .actions import Action
from .backends import device_of
from .core import checks

__all__ = ["warmup"]


def warmup(
    call: Callable[..., object],
    shape: Sequence[int],
    action: Action | None = None,
    *,
    weights: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    memory_format: torch.memory_format = torch.contiguous_format,
    backward: bool = True,
) -> None:
    """Compile (and in tuned mode tune) what a call needs, so that the first real one of its kind does not.

    Runs the call once on tensors of zeros, which takes the memory of one call; gradients and a module's buffers stay
    as they are. A kernel serves every size of its layout, so one shape usually warms many.

    Args:
        call: an operator, called as ``call(x, action)`` or ``call(y, weights, action)``, or a module such as
            ``EquiTune``, called as ``call(x)`` in evaluation mode.
        shape: of x, or of y with the group axis first.
        action: the operator's action; None for a module.
        weights: the shape of the operator's weights or scores, such as (|G|, B); None where it has none.
        dtype: of x or y.
        device: where to run.
        memory_format: ``torch.channels_last`` keeps the channels of a pixel together.
        backward: also what the gradients need, where there are any.

    Raises:
        TypeError: call is not callable, or action is not an action.
        ValueError: the device is not there, so nothing could be compiled; an unknown memory format or a shape
            too short for it.

    Example:
        >>> from equikern import grid, orbit_mean
        >>> warmup(orbit_mean, (4, 2, 3, 8, 8), grid("c4"), device="cpu")
    """
    if not callable(call):
        raise TypeError(f"call: expected an operator or a module, got {type(call).__name__}")
    if action is not None and not isinstance(action, Action):
        raise TypeError(f"action: expected an action such as grid('c4') or None, got {type(action).__name__}")
    checks.flag("backward", backward)
    device = _present(device)
    tensors = [_zeros(shape, dtype, device, memory_format)]
    if weights is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors.append(torch.ones(tuple(weights), dtype=wide, device=device))
    backward = backward and dtype.is_floating_point
    extra = () if action is None else (action,)
    modules = [m for m in call.modules() if m.training] if isinstance(call, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        with torch.set_grad_enabled(backward):
            results = _tensors(call(*(t.requires_grad_(backward) for t in tensors), *extra))
        results = [t for t in results if t.requires_grad]
        if results:
            parameters = [p for p in call.parameters() if p.requires_grad] if isinstance(call, nn.Module) else []
            grads = [torch.zeros_like(t) for t in results]
            torch.autograd.grad(results, [*tensors, *parameters], grads, allow_unused=True)
    finally:
        for module in modules:
            module.training = True


def _present(device: torch.device | str) -> torch.device:
    device = device_of(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: nothing was compiled for {str(device)!r}, torch sees no GPU here; kernels are compiled on the "
            "machine that runs them, so call warmup there"
        )
    return device


def _zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Tensor:
    sizes = tuple(shape)
    if memory_format == torch.contiguous_format:
        return torch.zeros(sizes, dtype=dtype, device=device)
    if memory_format != torch.channels_last:
        raise ValueError(f"memory_format: expected contiguous_format or channels_last, got {memory_format}")
    if len(sizes) < 3:
        raise ValueError(f"shape: expected (…, C, H, W) for channels_last, got {sizes}")
    *lead, c, h, w = sizes
    return torch.zeros((*lead, h, w, c), dtype=dtype, device=device).movedim(-1, -3)


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, (tuple, list)) else ()
    return [t for value in values for t in _tensors(value)]
