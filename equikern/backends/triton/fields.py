"""Fields: the kernels of grids with a table of channels beside the words, on tensors (items, channels, *sides).

A program of tiles has one channel of an item: the table tells it which plane to read or write instead of its own, so a
field of signed permutations costs what its grid does; where matrices mix the channels, ``mixed.py`` serves. The dims in
front of the channels are one here, and weights, scores and indices are given for each of its items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...field_tables import mixes, parts
from . import dots as products
from . import mixed, orbits, reductions, selection

__all__ = ["orbit", "orbit_dot", "reduce", "select"]


def _dims(maps: str) -> int:
    """Channels and sides."""
    return 1 + len(parts(maps.partition(" ")[0])[1])


def _item_shape(t: Tensor, dims: int, group: bool) -> tuple[int, ...]:
    lead = t.dim() - dims
    return (*t.shape[:group], t.shape[group:lead].numel(), *t.shape[lead:])


def _items(t: Tensor, dims: int, group: bool) -> Tensor:
    """(items, C, *sides), or the same behind the group axis: a copy where strides leave no other way."""
    return t.reshape(_item_shape(t, dims, group))


def _written(out: Tensor, dims: int, group: bool) -> tuple[Tensor, bool]:
    """Memory for the items of a result, and whether it has to be copied to its place."""
    shape = _item_shape(out, dims, group)
    try:
        return out.view(shape), False
    except RuntimeError:
        return out.new_empty(shape), True


def _each(t: Tensor | None, lead: torch.Size, group: bool) -> Tensor | None:
    """Weights, scores or an index of the first of the leading dims, given for each item."""
    if t is None:
        return None
    t = t.reshape((*t.shape, *(1,) * (len(lead) + group - t.dim())))
    return t.expand((*t.shape[:group], *lead)).reshape((*t.shape[:group], -1)).contiguous()


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``."""
    if out.numel() == 0:
        return
    dims = _dims(maps)
    lead = x.shape[: x.dim() - dims]
    to, apart = _written(out, dims, True)
    module = mixed if mixes(maps) else orbits
    module.orbit(_items(x, dims, False), to, maps, scale, _each(weights, lead, True), _each(index, lead, False))
    if apart:
        out.copy_(to.view(out.shape))


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    if out.numel() == 0:
        return
    dims = _dims(maps)
    to, apart = _written(out, dims, False)
    if other is None or op == "sum":
        beside, apart_too = None if other is None else _items(other, dims, False), False
    else:
        beside, apart_too = _written(other, dims, False)
    each = _each(weights, out.shape[: out.dim() - dims], True)
    module = mixed if mixes(maps) else reductions
    module.reduce(_items(y, dims, True), to, maps, op, scale, each, beside)
    if apart:
        out.copy_(to.view(out.shape))
    if other is not None and beside is not None and apart_too:
        other.copy_(beside.view(other.shape))


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``. Dots of items that share a weight are added in a fixed order."""
    if dots.numel() == 0:
        return
    if y.numel() == 0:
        dots.zero_()
        return
    dims = _dims(maps)
    lead = x.shape[: x.dim() - dims]
    to, apart = (None, False) if out is None else _written(out, dims, True)
    each = dots.new_empty((dots.shape[0], lead.numel()))
    module = mixed if mixes(maps) else products
    module.orbit_dot(_items(x, dims, False), _items(y, dims, True), to, each, maps, _each(weights, lead, True))
    dots.copy_(each.view((*dots.shape, -1)).sum(-1))
    if out is not None and to is not None and apart:
        out.copy_(to.view(out.shape))


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``; the caller has seen to empty outputs."""
    dims = _dims(maps)
    lead = out.shape[: out.dim() - dims]
    to, apart = _written(out, dims, False)
    each = _each(index, lead, False)
    assert each is not None
    module = mixed if mixes(maps) else selection
    module.select(_items(y, dims, True), to, each, maps, _each(scores, lead, True), minimum)
    if scores is not None:
        index.copy_(each.view((*index.shape, -1))[..., 0])
    if apart:
        out.copy_(to.view(out.shape))
