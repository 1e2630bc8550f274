"""Why a submodule loses a symmetry, as far as its kind, its weights and the shapes that it sees tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .frames import Frame, relative
from .tracing import Call, Value

__all__ = ["cause"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LazyConv2d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)


def cause(call: Call, calls: Sequence[Call], frame: Frame) -> str:
    """What is said of a submodule that loses the symmetry; empty where nothing is known."""
    module = call.module
    if any(True for _ in module.children()):
        return _of_a_forward(call, calls)
    given = call.takes[0].first
    if isinstance(module, (*_CONVS, *_POOLS)):
        return _of_windows(module, given, frame)
    if isinstance(module, _PADS):
        padding: Any = module.padding
        return f"its padding {tuple(padding)} is not the same on both sides"
    if isinstance(module, nn.Upsample):
        return f"{module.mode} resizing of {_sides(given, frame)}: what it takes is not the same from both ends"
    if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)):
        return f"it normalises along dim {module.dim} of {tuple(given.shape)}, which the group moves"
    if isinstance(module, nn.Linear):
        name = call.takes[0].best[0]
        if name.startswith("flattened"):
            return "it mixes the places of a flattened grid"
        return f"it mixes the entries of the last dim of {tuple(given.shape)}, which the group moves ({name})"
    if isinstance(module, nn.RNNBase):
        return "it reads in one direction"
    owned = _places(module, call)
    return f"its {owned} belongs to places" if owned else ""


def _of_windows(module: Any, given: Tensor, frame: Frame) -> str:
    """Of a convolution or a pooling."""
    dims = next(n for n in (1, 2, 3) if type(module).__name__.endswith(f"{n}d"))
    sizes, kernel, stride, dilation = (
        _each(value, dims)
        for value in (
            tuple(given.shape[-dims:]),
            module.kernel_size,
            module.stride or module.kernel_size,
            getattr(module, "dilation", 1),
        )
    )
    padding = module.padding
    if padding == "same" and any(d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True)):
        return f"an even kernel {kernel} with padding 'same', which is more on one side"
    added = (0,) * dims if padding == "valid" else _each(padding, dims)
    if padding != "same":
        for size, k, s, d, p in zip(sizes, kernel, stride, dilation, added, strict=True):
            left = (size + 2 * p - d * (k - 1) - 1) % s
            if left:
                return (
                    f"its stride does not fit: size {size} + 2·{p} padding − kernel {d * (k - 1) + 1} is no "
                    f"multiple of stride {s}: {left} at the far end {'is' if left == 1 else 'are'} left out, so "
                    "windows begin elsewhere in the flipped image"
                )
    weight = getattr(module, "weight", None)
    grid = frame.grid
    if weight is None or grid is None or grid.dims != dims:
        return ""
    worst = max((relative(grid.act(g, weight), weight)[0] for g in range(grid.order)), default=0.0)
    return f"its kernels are not symmetric (by {worst:.1e}), as those of ordinary convolutions" if worst > 1e-6 else ""


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _sides(t: Tensor, frame: Frame) -> str:
    return "×".join(map(str, t.shape[-len(frame.sides) :])) if frame.sides else str(tuple(t.shape))


def _of_a_forward(call: Call, calls: Sequence[Call]) -> str:
    """Of a module whose submodules are right: its own forward."""
    prefix = f"{call.name}." if call.name else ""
    inner = [other for other in calls if other.name.startswith(prefix) and other is not call]
    said = "between its submodules, in its own forward"
    for other in inner:
        lost = [value for value in other.takes if value.best[1] > value.tolerance]
        if not lost:
            continue
        said = f"in its own forward, in front of {other.name!r}"
        cut = _crop(call.takes, lost[0].first)
        if cut:
            return f"{said}: it takes a crop, {cut}"
        owned = _parameter(call.module, lost[0].first)
        if owned:
            return f"{said}: its {owned} belongs to places, as positional embeddings do"
        return f"{said}, which gets {tuple(lost[0].first.shape)}"
    owned = _places(call.module, call)
    return f"{said}: its {owned} belongs to places" if owned else said


def _crop(takes: Sequence[Value], part: Tensor) -> str:
    """Where in an input a smaller tensor is."""
    for value in takes:
        whole = value.first
        if whole.dim() != 4 or part.dim() != 4 or whole.shape[:2] != part.shape[:2] or not part.numel():
            continue
        height, width = part.shape[-2:]
        if height > whole.shape[-2] or width > whole.shape[-1] or part.shape == whole.shape:
            continue
        rows, columns = whole.shape[-2] - height + 1, whole.shape[-1] - width + 1
        for i, j in (whole[0, 0, :rows, :columns] == part[0, 0, 0, 0]).nonzero().tolist():
            if torch.equal(whole[..., i : i + height, j : j + width], part):
                return (
                    f"rows {i}…{i + height - 1} and columns {j}…{j + width - 1} of {whole.shape[-2]}×{whole.shape[-1]}"
                )
    return ""


def _places(module: nn.Module, call: Call) -> str:
    return next((found for value in call.gives if (found := _parameter(module, value.first))), "")


def _parameter(module: nn.Module, like: Tensor) -> str:
    """A parameter or buffer of the module's own that has a value for every place of a tensor."""
    for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        shape = tuple(t.shape)[-(like.dim() - 1) :]
        if t.dim() >= 2 and like.dim() >= 3 and shape[-2:] == tuple(like.shape[-2:]):
            return f"{name} {tuple(t.shape)}"
    return ""
