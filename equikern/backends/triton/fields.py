"""Fields: the kernels of grids with a table of channels beside the words, on tensors (items, channels, *sides).

A program of tiles has one channel of an item: the table tells it which plane to read or write instead of its own, so a
field of signed permutations costs what its grid does; where matrices mix the channels, ``mixed.py`` serves. The dims in
front of the channels are one here, and weights, scores and indices are given for each of its items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...views import Views
from . import dots as products
from . import mixed, orbits, reductions, selection

__all__ = ["orbit", "orbit_dot", "reduce", "select"]


def _item_shape(t: Tensor, dims: int, group: bool) -> tuple[int, ...]:
    lead = t.dim() - dims
    return (*t.shape[:group], t.shape[group:lead].numel(), *t.shape[lead:])


def _items(t: Tensor, dims: int, group: bool) -> Tensor:
    """(items, C, *sides), or the same behind the group axis: a copy where strides leave no other way."""
    shape = _item_shape(t, dims, group)
    if group and t.stride(0) == 0 and t.numel():  # one tensor, seen for every view
        return t[0].reshape(shape[1:]).expand(shape)
    return t.reshape(shape)


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


def orbit(
    x: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    scale: float,
    weights: Tensor | None,
    index: Tensor | None,
) -> None:
    """See ``Backend.orbit``."""
    if out.numel() == 0:
        return
    dims = views.dims
    lead = x.shape[: x.dim() - dims]
    to, apart = _written(out, dims, True)
    module = mixed if views.kind.computes else orbits
    module.orbit(_items(x, dims, False), to, views, table, scale, _each(weights, lead, True), _each(index, lead, False))
    if apart:
        out.copy_(to.view(out.shape))


def reduce(
    y: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    op: str,
    scale: float,
    weights: Tensor | None,
    plus: Tensor | None,
    spread: Tensor | None,
) -> None:
    """See ``Backend.reduce``."""
    if out.numel() == 0:
        return
    dims = views.dims
    to, apart = _written(out, dims, False)
    second, second_apart = (None, False) if spread is None else _written(spread, dims, False)
    beside = None if plus is None else _items(plus, dims, False)
    each = _each(weights, out.shape[: out.dim() - dims], True)
    module = mixed if views.kind.computes else reductions
    module.reduce(_items(y, dims, True), to, views, table, op, scale, each, beside, second)
    if apart:
        out.copy_(to.view(out.shape))
    if spread is not None and second is not None and second_apart:
        spread.copy_(second.view(spread.shape))


def orbit_dot(
    x: Tensor,
    y: Tensor,
    out: Tensor | None,
    dots: Tensor,
    views: Views,
    table: Tensor,
    weights: Tensor | None,
) -> None:
    """See ``Backend.orbit_dot``. Dots of items that share a weight are added in a fixed order."""
    if dots.numel() == 0:
        return
    if y.numel() == 0:
        dots.zero_()
        return
    dims = views.dims
    lead = x.shape[: x.dim() - dims]
    to, apart = (None, False) if out is None else _written(out, dims, True)
    each = dots.new_empty((dots.shape[0], lead.numel()))
    module = mixed if views.kind.computes else products
    factors = _each(weights, lead, True)
    module.orbit_dot(_items(x, dims, False), _items(y, dims, True), to, each, views, table, factors)
    dots.copy_(each.view((*dots.shape, -1)).sum(-1))
    if out is not None and to is not None and apart:
        out.copy_(to.view(out.shape))


def select(
    y: Tensor,
    out: Tensor,
    index: Tensor,
    views: Views,
    table: Tensor,
    scores: Tensor | None,
    minimum: bool,
) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    dims = views.dims
    lead = out.shape[: out.dim() - dims]
    to, apart = _written(out, dims, False)
    each = _each(index, lead, False)
    assert each is not None
    module = mixed if views.kind.computes else selection
    module.select(_items(y, dims, True), to, each, views, table, _each(scores, lead, True), minimum)
    if scores is not None:
        index.copy_(each.view((*index.shape, -1))[..., 0])
    if apart:
        out.copy_(to.view(out.shape))
