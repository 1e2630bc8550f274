"""One group element for each sample of a batch: what ``orbit_act`` and ``Action.act`` do with a vector of elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..views import EXACT
from ..views.maps import Acting, Maps, captures
from . import autograd, checks, library
from .functions import transformed

__all__ = ["act", "checked_elements", "elements_on", "listed", "unpacked"]


def act(
    x: object,
    elements: object,
    action: Acting,
    inverse: bool = False,
    out: Tensor | None = None,
    name: str = "elements",
) -> Tensor:
    """See ``orbit_act``; ``name`` is what errors call the elements."""
    t, action = checks.image("x", x, action, EXACT, turns=True)
    checks.flag("inverse", inverse)
    found = checked_elements(name, elements, t, action)
    maps = action.inverse_maps if inverse else action.maps
    if not maps.views.keeps(t.shape):
        maps, found = _of_one_shape(name, maps, found, t, action.name)
    found = elements_on(found, t.device)
    if out is None:
        return autograd.act(t, found, maps)
    assert isinstance(elements, Tensor)  # as checked
    out = checks.output("out", out, tuple(maps.views.shape(t.shape)), t, elements, found)
    library.act_out(t, found, *maps.placed(t), out)
    return out


def checked_elements(called: str, elements: object, x: Tensor, action: Acting) -> Tensor:
    """Elements of the group, one for each entry of x's first dims, contiguous; on the CPU if they were given there."""
    if not isinstance(elements, Tensor):
        raise TypeError(f"{called}: expected a torch.Tensor of int64, got {type(elements).__name__}")
    if elements.device != x.device and not elements.is_cpu:
        raise ValueError(
            f"{called}: expected a tensor on {x.device} like x or on the CPU, got one on {elements.device}"
        )
    if elements.dtype != torch.int64:
        raise TypeError(f"{called}: expected int64, got {elements.dtype}")
    k, most = elements.dim(), x.dim() - action.dims
    if not 1 <= k <= most or elements.shape != x.shape[:k]:
        shapes = ", ".join(str(tuple(x.shape[:n])) for n in range(1, most + 1)) or "none: x has no batch"
        raise ValueError(
            f"{called}: expected one for each sample, of shape {shapes} for x {tuple(x.shape)} under {action.name!r}, "
            f"got {tuple(elements.shape)}"
        )
    if elements.is_cpu and not torch.compiler.is_compiling() and not transformed():  # whose numbers nobody may read
        if elements.numel():
            low, high = int(elements.min()), int(elements.max())  # DTensors of torch 2.8 have no aminmax
            if low < 0 or high >= action.order:
                raise ValueError(
                    f"{called}: expected elements 0 … {action.order - 1} of {action.name!r}, got "
                    f"{low if low < 0 else high}"
                )
        return elements.contiguous()
    # Asking a GPU would make the queue wait: torch's own look-up fails there for one that is none.
    known = torch.arange(action.order, device=elements.device)
    return known.index_select(0, elements.flatten()).view(elements.shape)


def listed(elements: Sequence[int], device: torch.device) -> Tensor:
    """Some elements of a group as int64 on a device; on a GPU computed there: an upload would wait for all that is
    queued, and a CUDA graph that is captured would refuse it.

    Example:
        >>> listed([3, 0, 2], torch.device("cpu")).tolist()
        [3, 0, 2]
    """
    if device.type == "cpu":
        return torch.tensor(list(elements), dtype=torch.int64, device=device)
    return unpacked(elements, device)


def unpacked(elements: Sequence[int], device: torch.device) -> Tensor:
    """The same, from numbers that hold several elements each, and travel with the launches."""
    bits = max(1, max(elements, default=0).bit_length())
    some = 63 // bits  # of them in one number
    parts = []
    for start in range(0, len(elements), some):
        part = elements[start : start + some]
        packed = sum(element << (bits * k) for k, element in enumerate(part))
        parts.append((packed >> (bits * torch.arange(len(part), device=device))) & ((1 << bits) - 1))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)


def elements_on(elements: Tensor, device: torch.device) -> Tensor:
    """Elements on x's device; those that were given on the CPU go there without a wait."""
    if elements.device == device:
        return elements
    if torch.compiler.is_compiling() or type(elements) is not Tensor:  # traced or fake: nobody knows its numbers
        return elements.to(device)
    return listed(elements.flatten().tolist(), device).view(elements.shape)


def _of_one_shape(called: str, maps: Maps, elements: Tensor, x: Tensor, name: str) -> tuple[Maps, Tensor]:
    """The maps that give a rectangle the shape that all samples get, and the elements counted among them.

    Which shape that is only the elements tell: a GPU that has them is asked, and waited for.
    """
    views = maps.views
    if elements.device.type == "cuda" and not torch.compiler.is_compiling() and captures():
        raise ValueError(
            f"{called}: expected a tensor on the CPU, got one on {elements.device}: they decide which sides a rectangle"
            " gets, and while a CUDA graph is captured no GPU can be asked"
        )
    shapes = [tuple(views.shape(x.shape, g)) for g in range(views.order)]
    wanted = {shapes[g] for g in set(elements.flatten().tolist())} or {shapes[0]}
    if len(wanted) > 1:
        sides = " and ".join("×".join(map(str, shape[-views.sides :])) for shape in sorted(wanted))
        raise ValueError(
            f"{called}: expected views of one shape, but those of {name!r} turn a rectangle into {sides}; "
            "act on upright and turned samples apart, or pad x to equal sides"
        )
    (shape,) = wanted
    members = [g for g in range(views.order) if shapes[g] == shape]
    place = [members.index(g) if g in members else 0 for g in range(views.order)]
    there = maps.with_tables(*maps.tables.on(x.device))  # which goes there once, and is cut there
    return there.subset(members), listed(place, elements.device)[elements]
