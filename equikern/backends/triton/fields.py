"""Fields: the kernels of grids with a table of channels beside the words, on tensors (items, channels, *sides).

A program of tiles has one channel of an item: the table tells it which plane to read or write instead of its own, so a
field of signed permutations costs what its grid does; where matrices mix the channels, ``matrices.py`` serves. The dims
in front of the channels are one here, and weights, scores and indices are given for each of its items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...views import Views
from ..base import Maybe
from . import dots as products
from . import matrices, orbits, reductions, selection, shares
from .layout import T

__all__ = ["orbit", "orbit_dot", "reduce", "reduce_backward", "select", "variance", "variance_backward"]


def _item_shape(t: Tensor, dims: int, group: bool) -> tuple[int, ...]:
    lead = t.dim() - dims
    return (*t.shape[:group], t.shape[group:lead].numel(), *t.shape[lead:])


def _items(t: Tensor, dims: int, group: bool) -> Tensor:
    """(items, C, *sides), or the same behind the group axis: a copy where strides leave no other way."""
    shape = _item_shape(t, dims, group)
    if group and t.stride(0) == 0 and t.numel():  # one tensor, seen for every view
        return t[0].reshape(shape[1:]).expand(shape)
    return t.reshape(shape)


def _memory(out: T, dims: int, group: bool) -> T:
    """The items of a result, or memory for them where strides leave no other way."""
    if out is None:
        return None
    shape = _item_shape(out, dims, group)
    try:
        return out.view(shape)
    except RuntimeError:
        return out.new_empty(shape)


def _put(out: Maybe, items: Maybe) -> None:
    """Copy a result to its place, unless it is there."""
    if out is not None and items is not None and items.data_ptr() != out.data_ptr():
        out.copy_(items.view(out.shape))


def _each(t: T, lead: torch.Size, group: bool) -> T:
    """Weights, scores or an index of the first of the leading dims, given for each item."""
    if t is None:
        return None
    t = t.reshape((*t.shape, *(1,) * (len(lead) + group - t.dim())))
    return t.expand((*t.shape[:group], *lead)).reshape((*t.shape[:group], -1)).contiguous()


def orbit(x: Tensor, out: Tensor, views: Views, table: Tensor, scale: float, weights: Maybe, index: Maybe) -> None:
    """See ``Backend.orbit``."""
    dims = views.dims
    lead = x.shape[: x.dim() - dims]
    items, to = _items(x, dims, False), _memory(out, dims, True)
    module = matrices if views.kind.computes else orbits
    module.orbit(items, to, views, table, scale, _each(weights, lead, True), _each(index, lead, False))
    _put(out, to)


def reduce(
    y: Tensor,
    out: Tensor,
    views: Views,
    table: Tensor,
    op: str,
    scale: float,
    weights: Maybe,
    plus: Maybe,
    spread: Maybe,
) -> None:
    """See ``Backend.reduce``."""
    dims = views.dims
    to, second = _memory(out, dims, False), _memory(spread, dims, False)
    beside = None if plus is None else _items(plus, dims, False)
    each = _each(weights, out.shape[: out.dim() - dims], True)
    module = matrices if views.kind.computes else reductions
    module.reduce(_items(y, dims, True), to, views, table, op, scale, each, beside, second)
    _put(out, to)
    _put(spread, second)


def orbit_dot(x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Tensor, weights: Maybe) -> None:
    """See ``Backend.orbit_dot``. Dots of items that share a weight are added in a fixed order."""
    dims = views.dims
    lead = x.shape[: x.dim() - dims]
    to = _memory(out, dims, True)
    each = dots.new_empty((dots.shape[0], lead.numel()))
    module = matrices if views.kind.computes else products
    factors = _each(weights, lead, True)
    module.orbit_dot(_items(x, dims, False), _items(y, dims, True), to, each, views, table, factors)
    dots.copy_(each.view((*dots.shape, -1)).sum(-1))
    _put(out, to)


def reduce_backward(grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Tensor, op: str) -> None:
    """See ``Backend.reduce_backward``."""
    dims = views.dims
    to, second = _memory(out, dims, True), None if spread is None else _items(spread, dims, False)
    shares.reduce_backward(_items(grad, dims, False), second, _items(y, dims, True), to, views, table, op)
    _put(out, to)


def variance(y: Tensor, out: Tensor, views: Views, table: Tensor) -> None:
    """See ``Backend.variance``: those of the items are averaged."""
    lead = y.shape[1 : y.dim() - views.dims]
    each = out.new_empty(lead.numel())
    shares.variance(_items(y, views.dims, True), each, views, table)
    torch.mean(each.view((*out.shape, -1)), -1, out=out)


def variance_backward(factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Tensor) -> None:
    """See ``Backend.variance_backward``."""
    dims = views.dims
    to, each = _memory(out, dims, True), _each(factors, y.shape[1 : y.dim() - dims], False)
    shares.variance_backward(each, _items(y, dims, True), to, views, table)
    _put(out, to)


def select(y: Tensor, out: Tensor, index: Tensor, views: Views, table: Tensor, scores: Maybe, minimum: bool) -> None:
    """See ``Backend.select``; the caller has seen to empty outputs."""
    dims = views.dims
    lead = out.shape[: out.dim() - dims]
    to, each = _memory(out, dims, False), _each(index, lead, False)
    module = matrices if views.kind.computes else selection
    module.select(_items(y, dims, True), to, each, views, table, _each(scores, lead, True), minimum)
    if scores is not None:
        index.copy_(each.view((*index.shape, -1))[..., 0])
    _put(out, to)
