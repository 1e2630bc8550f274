"""What a call moves between the CPU and another device: each time a GPU's queue would be waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NoTransfers"]

_READ = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.cpu, Tensor.nonzero)


class NoTransfers(TorchFunctionMode):
    """Within it lists and CPU tensors that go to another device raise, and values that are read back from there.

    Meta tensors stand for those of a GPU.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        there = isinstance(first, Tensor) and not first.is_cpu
        name = getattr(function, "__name__", str(function))
        if function in _READ:
            assert not there, f"{name} reads back"
        elif function in (torch.tensor, torch.as_tensor):
            device = torch.device(kwargs.get("device") or "cpu")
            assert there or device.type == "cpu", f"{name} uploads {first}"
        elif function is Tensor.new_tensor:
            assert not there, f"{name} uploads {args[1:]}"
        elif function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not there or not any(isinstance(part, (list, range)) for part in index), f"{name} uploads {index}"
        found = function(*args, **kwargs)
        if function in (Tensor.to, Tensor.copy_) and isinstance(found, Tensor):
            given: Tensor = args[1 if function is Tensor.copy_ else 0]
            assert given.device == found.device or given.dim() == 0, f"{name}: from {given.device} to {found.device}"
        return found
