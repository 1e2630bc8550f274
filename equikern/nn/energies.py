"""How poses of an input are ranked: energies of views, what tells equal views from others, and the order of both.

A pose g of x is the view g·x. Its energy depends on the view alone, so h·x has the same energies in another order,
``E'[g] = E[g∘h]``, and the poses of least energy are the same views, whichever way the input came in. Where energies
tie, a second number of each view decides, its mark: a fixed weighted sum of all its entries, which no two different
views have in common but by accident. What ties in both is the same view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..actions import Action
from ..backends import kernels
from ..core import autograd, checks
from ..core.functions import functional, needs_grad
from ..ops.checked import orbit_some
from ..views import FLOATS
from .lambda_equitune import weight_network

__all__ = [
    "STATISTICS",
    "Ranking",
    "Statistic",
    "energies_of",
    "energy_network",
    "limit_of",
    "marks",
    "parted",
    "ranked",
    "statistic",
    "widest",
]

Statistic: TypeAlias = Literal["linear", "gradient", "moments", "corner"]
STATISTICS: tuple[Statistic, ...] = ("linear", "gradient", "moments", "corner")
_CELLS = 4  # of each side of a grid, from which statistics and marks are computed
_PIECE = 1 << 17  # entries that a CPU widens at a time, which stay in its cache

# What numbers of the same view may differ by, of their size: if computed in float64 from the same entries, added up in
# another order; in float32, or by a module at two places of a batch; and from entries that were rounded.
_ADDED, _ADDED_IN_FLOAT32, _ROUNDED = 2.0**-36, 2.0**-18, 2.0**-15


def energy_network(channels: int, size: int = 16, hidden: int = 100, sides: int = 2) -> nn.Sequential:
    """A small network of views: Flatten, Linear(channels · size^sides → 100), ReLU, Linear(100 → 1).

    Args:
        channels: those of the input.
        size: to how many cells a side views are scaled down, as ``CanonicalEquiTune`` is told.
        hidden: the size of its hidden layer.
        sides: 2 for images, 3 for volumes.

    Raises:
        TypeError, ValueError: a size that is no positive whole number.

    Example:
        >>> energy_network(3)(torch.zeros(8, 3, 16, 16)).shape
        torch.Size([8, 1])
    """
    for name, value in (("channels", channels), ("size", size), ("hidden", hidden), ("sides", sides)):
        checks.whole(name, value, 1)
    return nn.Sequential(nn.Flatten(), weight_network(channels * size**sides, hidden))


def scaled(x: Tensor, sides: int, wide: torch.dtype, columns: Callable[..., Tensor], *args: int) -> Tensor:
    """A grid (\\*lead, H, W) as a coarser one (\\*lead, m, m), from one read of it.

    ``columns`` says what every entry of a side counts in each of its m cells. It commutes with the views of a grid,
    since sides all have the same columns, which read backwards are the same ones in backward order. On a CPU, where no
    gradient is wanted, sums are in float64 whatever is asked for: that costs nothing there.
    """
    fused = x.is_cpu and x.dtype in FLOATS and x.is_contiguous() and not needs_grad(x) and not functional(x)
    wide = widest(x) if fused else wide
    down, across = (_constant(columns, x, wide, side, *args) for side in x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        if fused:
            found = x.new_empty((*x.shape[:-2], down.shape[1], across.shape[1]), dtype=wide)
            kernels(x).coarse(x, down, across, found)
            x = found
        else:
            x = _from_left(down.mT, x) @ across
        if sides == 3:
            x = x.movedim(-3, -1) @ _constant(columns, x, wide, x.shape[-3], *args)
            x = x.movedim(-1, -3)
        return x


def _from_left(by: Tensor, x: Tensor) -> Tensor:
    """``by @ x`` in the dtype of by."""
    if x.dtype == by.dtype or not x.is_cpu or functional(x) or x.numel() <= _PIECE:
        return by @ x.to(by.dtype)
    planes = x.flatten(0, -3) if x.is_contiguous() else x
    each = max(1, _PIECE * len(planes) // x.numel())
    parts = [by @ part.to(by.dtype) for part in torch.split(planes, each)]
    return torch.cat(parts).view(*x.shape[:-2], len(by), x.shape[-1])


def _constant(make: Callable[..., Tensor], like: Tensor, wide: torch.dtype, *args: int | str) -> Tensor:
    """What ``make`` makes; on a CPU kept, where making it takes longer than a small batch."""
    if not like.is_cpu or functional(like):
        return make(like.device, wide, *args)
    return _kept(make, like.device, wide, *args)


@lru_cache(maxsize=256)
def _kept(make: Callable[..., Tensor], device: torch.device, wide: torch.dtype, *args: int | str) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return make(device, wide, *args)


def widest(t: Tensor) -> torch.dtype:
    """What sums hardly depend on the order of their summands in."""
    return torch.float32 if t.device.type == "mps" else torch.float64  # which has no other


def _roundings(t: Tensor, action: Action) -> float:
    if action.views.kind.computes:
        return _ROUNDED
    return _ADDED_IN_FLOAT32 if t.dtype is torch.float32 else _ADDED


def cells(device: torch.device, wide: torch.dtype, length: int, size: int) -> Tensor:
    """Means over equal parts of a side, entries that lie in two of them counting for both in part: (length, size)."""
    entry = torch.arange(length, dtype=wide, device=device).unsqueeze(-1)
    start = torch.arange(size, dtype=wide, device=device) * (length / size)
    inside = torch.minimum(entry + 1, start + length / size) - torch.maximum(entry, start)
    inside = inside.clamp(min=0) * (size / length)
    return 0.5 * (inside + inside.flip(0, 1))  # the same backwards to the last bit


def _marking(device: torch.device, wide: torch.dtype, length: int) -> Tensor:
    """Fixed weights, two of them and the same backwards: enough for what no view leaves as it is to show."""
    own = torch.stack([_fixed(device, wide, length, seed) for seed in (1, 2)], -1)
    return torch.cat((own, own.flip(0, 1)), -1)


def _fixed(device: torch.device, wide: torch.dtype, count: int, seed: int) -> Tensor:
    """So many numbers from 0.5 to 1.5 without a pattern, the same ones at every call."""
    return _scattered(torch.arange(count, device=device), seed).to(wide)


def _scattered(numbers: Tensor, seed: int) -> Tensor:
    """A number from 0.5 to 1.5 for every whole number."""
    k = numbers.long() + 7919 * seed
    k = (k * 2654435761) & 0xFFFFFFFF
    k = ((k ^ (k >> 15)) * 2246822519) & 0xFFFFFFFF
    k = ((k ^ (k >> 13)) * 3266489917) & 0xFFFFFFFF
    return 0.5 + ((k ^ (k >> 16)) >> 8).to(torch.float32) / 2**24


def _weights(device: torch.device, wide: torch.dtype, name: str, sides: int) -> Tensor:
    """What each cell of a view counts: none of the group's views of it is the same."""
    if name in ("linear", "marks"):
        return (_fixed(device, wide, _CELLS**sides, 5 if name == "linear" else 11) - 1).view(*(_CELLS,) * sides)
    place = (torch.arange(_CELLS, dtype=wide, device=device) + 0.5) / _CELLS * 2 - 1
    axes = torch.meshgrid(*[place] * sides, indexing="ij")
    slope = torch.stack([axis / (1 + 0.618 * k) for k, axis in enumerate(axes)]).sum(0)
    if name == "gradient":
        return slope
    if name == "moments":
        squares = torch.stack([axis.square() / (2 + k) for k, axis in enumerate(axes)]).sum(0)
        products = torch.stack([a * b for k, a in enumerate(axes) for b in axes[:k]]).sum(0)
        return slope + squares + 0.4 * products
    corner = torch.ones_like(axes[0])
    for axis in axes:
        corner = corner * (axis < 0)
    for first, second in pairwise(axes):  # of what exchanging sides leaves in the corner, one part
        corner = corner * (0.5 * (first == second) + (first < second))
    return corner


def statistic(name: Statistic, x: Tensor, action: Action, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """The energies of all poses (|G|, B), from one read of x (B, …), and what equal views' may differ by, (B,)."""
    if not action.sides:
        return _of_all_entries(x, action, wide, 5)
    coarse = scaled(x, action.sides, wide, cells, _CELLS)
    seen = orbit_some(_front(coarse, action).sum(1), action, range(action.order))
    return _weighed(-seen.square() if name == "corner" else -seen, name, action)


def marks(x: Tensor, action: Action) -> tuple[Tensor, Tensor]:
    """What tells the poses of x (B, …) apart, (|G|, B), from one read of it, and what it may differ by, (B,)."""
    if not action.sides:
        return _of_all_entries(x, action, widest(x), 11)
    coarse = _front(scaled(x, action.sides, widest(x), _marking), action)
    parts = _constant(_fixed, coarse, coarse.dtype, coarse.shape[1], 3).view(-1, *(1,) * action.dims)
    return _weighed(orbit_some((coarse * parts).sum(1), action, range(action.order)), "marks", action)


def _front(coarse: Tensor, action: Action) -> Tensor:
    """With one dim for all that no view moves, (B, n, channels of a field, m, m)."""
    return coarse.flatten(1, -action.dims - 1) if coarse.dim() > action.dims + 1 else coarse.unsqueeze(1)


def _weighed(seen: Tensor, name: str, action: Action) -> tuple[Tensor, Tensor]:
    """A weighted sum of the cells of views (|G|, B, channels of a field, m, m)."""
    weights = _constant(_weights, seen, seen.dtype, name, action.sides)
    if action.dims > action.sides:
        parts = _constant(_fixed, seen, seen.dtype, seen.shape[2], 7)
        weights = parts.view(-1, *(1,) * action.sides) * weights
    size = seen[0].abs().flatten(1).amax(1) * weights.abs().sum()
    return (seen * weights).flatten(2).sum(2), size * _roundings(seen, action)


def _of_all_entries(x: Tensor, action: Action, wide: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A weighted sum of all entries of every view of x, which is no grid."""
    if action.views.kind.still:
        still = x.new_zeros((action.order, x.shape[0]), dtype=wide)
        return still, still[0]
    if action.views.kind.ids:
        seen = _scattered(orbit_some(x, action, range(action.order)), seed).flatten(2)
        each = seen * _fixed(x.device, wide, seen.shape[2], seed + 1)
        return each.sum(2), each[0].sum(1) * _roundings(each, action)
    # Only the dim that views permute or multiply is kept; what is in front of it and behind it is summed by weights.
    kept, dim = x.to(wide), action.views.dim
    with torch.autocast(x.device.type, enabled=False):
        if dim < -1:
            kept = kept.flatten(dim + 1)
            kept = kept @ _fixed(x.device, wide, kept.shape[-1], seed + 1)
        if kept.dim() > 2:
            kept = kept.flatten(1, -2)
            kept = _fixed(x.device, wide, kept.shape[1], seed + 2) @ kept
        weights = _fixed(x.device, wide, kept.shape[1], seed).view(-1, *(1,) * (-dim - 1))
        seen = autograd.orbit(weights, action.maps.T, 1.0).flatten(1)
        return (kept @ seen.mT).mT, kept.abs().sum(1) * seen.abs().amax() * _roundings(kept, action)


class Ranking(NamedTuple):
    """The poses of every sample.

    Attributes:
        order: (|G|, B) int64, the elements in rising energy.
        energies: (|G|, B), of each element.
        still: (|G|, B), whether an element leaves the sample as it is.
    """

    order: Tensor
    energies: Tensor
    still: Tensor

    def rows(self, chosen: Tensor) -> Ranking:
        """The same of some samples."""
        return Ranking(*(t.index_select(1, chosen) for t in self))


def ranked(energies: Tensor, limit: Tensor, told: Sequence[tuple[Tensor, Tensor]]) -> Ranking:
    """The poses by energy, and where energies are the same by their marks, one number for every input that is acted on.

    Numbers are the same if between them there is no gap of more than their limit. NaN comes last.
    """
    level = _levels(_numbers(energies), limit)
    for mark, mark_limit in told:
        finer = _levels(mark, mark_limit)
        level = _levels(level * len(level) + finer, torch.zeros_like(limit))  # a pair of levels as one number
    # Equal ones by number, without a stable sort, which ONNX has not.
    place = level * len(level) + torch.arange(len(level), device=level.device).unsqueeze(-1)
    return Ranking(place.sort(0).indices, energies, level == level[:1])


def parted(energies: Tensor, limit: Tensor) -> tuple[Ranking, Tensor]:
    """The poses by energy alone, and for which samples that is not enough: energies that differ by no more than the
    limit. So may those in float32 do for the others.
    """
    rising, order = _numbers(energies).sort(0)
    close = ~((rising[1:] - rising[:-1]) > limit).all(0)
    still = torch.zeros_like(order, dtype=torch.bool)
    still[0] = True
    return Ranking(order, energies, still), close


def limit_of(energies: Tensor) -> Tensor:
    """What a module's energies of the same view may differ by, (B,)."""
    values = _numbers(energies)
    return values.abs().masked_fill(values.isinf(), 0.0).amax(0) * _ADDED_IN_FLOAT32


def _numbers(energies: Tensor) -> Tensor:
    values = energies.detach().to(torch.promote_types(energies.dtype, torch.float32))
    return values.masked_fill(values.isnan(), torch.inf)


def _levels(values: Tensor, limit: Tensor) -> Tensor:
    """How many different numbers lie below each, over dim 0."""
    rising, order = values.sort(0)
    steps = (rising[1:] - rising[:-1]) > limit
    levels = torch.cat((torch.zeros_like(order[:1]), steps.long().cumsum(0)))
    return torch.empty_like(order).scatter(0, order, levels)


def energies_of(energy: Callable[[Tensor], Any], x: Tensor, action: Action, size: int | None) -> Tensor:
    """What a module says of every view of x (B, …), scaled down if it is a grid's: (|G|, B)."""
    if action.sides and size is not None:
        small = scaled(x, action.sides, widest(x), cells, size)
        x = small.to(x.dtype) if x.is_floating_point() else small
    order, batch = action.order, x.shape[0]
    views = orbit_some(x, action, range(order)).flatten(0, 1)
    numbers, reads = prod(views.shape[1:]), _read_by(energy)
    if reads is not None and reads != numbers:
        scaled_by = f", scaled down by size={size}" if action.sides and size is not None else ""
        raise ValueError(
            f"energy: expected a network that reads the {numbers} numbers of a view {tuple(views.shape[1:])}"
            f"{scaled_by}, got one that reads {reads}; energy_network(channels, size) is told the same size"
        )
    found = energy(views)
    if not isinstance(found, Tensor):
        raise TypeError(f"energy: expected it to return a tensor ({order * batch}, 1), got {type(found).__name__}")
    if not found.is_floating_point():
        raise TypeError(f"energy: expected it to return floating-point numbers, got {found.dtype}")
    if found.dim() not in (1, 2) or found.shape[0] != order * batch or (found.dim() == 2 and found.shape[1] != 1):
        raise ValueError(
            f"energy: expected one number for each of {order * batch} views, ({order * batch}, 1), got "
            f"{tuple(found.shape)}"
        )
    return found.reshape(order, batch)


def _read_by(energy: object) -> int | None:
    """How many numbers of a view a network such as ``energy_network`` reads; None where it does not show."""
    if not isinstance(energy, nn.Sequential) or not len(energy) or not isinstance(energy[0], nn.Flatten):
        return None
    first = next((part for part in energy[1:].modules() if not isinstance(part, nn.Sequential)), None)
    return (first.in_features or None) if isinstance(first, nn.Linear) else None  # a lazy one has none yet
