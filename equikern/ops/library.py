"""The registered operators ``torch.ops.equikern.*``: schemas, fakes, and the call of the active backend's kernels.

They are not differentiable by themselves: the public functions wrap them in autograd Functions (``autograd.py``).
Each allocating operator has a twin ``…_out`` that writes into a tensor of the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..actions import axis_order
from ..backends import kernels

library = torch.library.Library("equikern", "DEF")  # type: ignore[no-untyped-call]


def _channels_dim(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The dim of the channels where a sample (*lead, C, H, W) keeps those of a pixel next to one another, else 0.

    −3 for images, −4 for volumes (*lead, C, D, H, W).
    """
    for dim in (-3, -4):
        if len(shape) < -dim:
            break
        if (
            shape[dim] > 1
            and strides[dim] == 1
            and strides[-1] >= shape[dim]
            and all(strides[d - 1] >= strides[d] for d in range(-1, dim + 1, -1))
        ):
            return dim
    return 0


def channels_dim(t: Tensor, skip: int = 0) -> int:
    """The dim of the channels where t's samples, behind its first ``skip`` dims, are channels-last, else 0."""
    if t.dim() < 3 + skip or t.stride(-1) == 1:
        return 0
    return _channels_dim(t.shape[skip:], t.stride()[skip:])


def empty_like_views(t: Tensor, shape: Sequence[int], skip: int) -> Tensor:
    """Memory for a result of the given shape: channels-last where a sample of t is, otherwise contiguous.

    ``skip`` is the number of t's leading dims that do not belong to the sample (its group axis).
    """
    dim = 0 if t.is_contiguous() else _channels_dim(t.shape[skip:], t.stride()[skip:])
    if not dim:
        return t.new_empty(shape)
    return t.new_empty((*shape[:dim], *shape[dim + 1 :], shape[dim])).movedim(-1, dim)


def accumulator(t: Tensor) -> torch.dtype:
    """Weights, scores and sums are float32, or float64 beside float64."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def _order(maps: str) -> tuple[int, ...] | None:
    return axis_order(maps.partition(" ")[0])


def _view_shape(shape: Sequence[int], maps: str) -> Sequence[int]:
    """The shape of every view of a tensor: that of the first, as the words of one call give all the same."""
    order = _order(maps)
    return shape if order is None else (*shape[: -len(order)], *(shape[axis] for axis in order))


def _orbit_empty(x: Tensor, maps: str) -> Tensor:
    return empty_like_views(x, (maps.count(" ") + 1, *_view_shape(x.shape, maps)), 0)


def _view_empty(y: Tensor, maps: str) -> Tensor:
    return empty_like_views(y, _view_shape(y.shape[1:], maps), 1)


def _orbit(x: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> Tensor:
    out = _orbit_empty(x, maps)
    kernels(x).orbit(x, out, maps, scale, weights, index)
    return out


def _written(out: Tensor) -> None:
    """Tell autograd that the values changed: kernels write behind its back, and it may have saved this tensor."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _orbit_out(x: Tensor, maps: str, out: Tensor) -> None:
    kernels(x).orbit(x, out, maps, 1.0, None, None)
    _written(out)


def _reduce(y: Tensor, maps: str, op: str, scale: float, weights: Tensor | None) -> Tensor:
    out = _view_empty(y, maps)
    kernels(y).reduce(y, out, maps, op, scale, weights, None)
    return out


def _reduce_out(y: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, out: Tensor) -> None:
    kernels(y).reduce(y, out, maps, op, scale, weights, None)
    _written(out)


def _mean_plus(y: Tensor, plus: Tensor, maps: str) -> Tensor:
    out = _view_empty(y, maps)
    kernels(y).reduce(y, out, maps, "sum", 1.0 / y.shape[0], None, plus)
    return out


def _mean_plus_out(y: Tensor, plus: Tensor, maps: str, out: Tensor) -> None:
    kernels(y).reduce(y, out, maps, "sum", 1.0 / y.shape[0], None, plus)
    _written(out)


def _mean_std(y: Tensor, maps: str) -> tuple[Tensor, Tensor]:
    mean, std = _view_empty(y, maps), _view_empty(y, maps)
    kernels(y).reduce(y, mean, maps, "mean_std", 1.0, None, std)
    return mean, std


def _mean_std_out(y: Tensor, maps: str, mean: Tensor, std: Tensor) -> None:
    kernels(y).reduce(y, mean, maps, "mean_std", 1.0, None, std)
    _written(mean)
    _written(std)


def _dots_empty(y: Tensor, weight_dims: int) -> Tensor:
    return torch.empty(y.shape[:weight_dims], dtype=accumulator(y), device=y.device)


def _orbit_dot(x: Tensor, y: Tensor, maps: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    out = _orbit_dot_empty(x, y)
    dots = _dots_empty(y, weights.dim())
    kernels(y).orbit_dot(x, y, out, dots, maps, weights)
    return out, dots


def _orbit_dot_empty(x: Tensor, y: Tensor) -> Tensor:
    return empty_like_views(y, y.shape, 1)


def _dot(x: Tensor, y: Tensor, maps: str, weight_dims: int) -> Tensor:
    dots = _dots_empty(y, weight_dims)
    kernels(y).orbit_dot(x, y, None, dots, maps, None)
    return dots


def _select(y: Tensor, scores: Tensor, maps: str, minimum: bool) -> tuple[Tensor, Tensor]:
    out, index = _view_empty(y, maps), _index_empty(scores)
    kernels(y).select(y, out, index, maps, scores, minimum)
    return out, index


def _index_empty(scores: Tensor) -> Tensor:
    return torch.empty(scores.shape[1:], dtype=torch.int64, device=scores.device)


def _select_out(y: Tensor, scores: Tensor, maps: str, minimum: bool, out: Tensor) -> Tensor:
    index = _index_empty(scores)
    kernels(y).select(y, out, index, maps, scores, minimum)
    _written(out)
    return index


def _take(y: Tensor, index: Tensor, maps: str) -> Tensor:
    out = _view_empty(y, maps)
    kernels(y).select(y, out, index, maps, None, True)
    return out


def _nothing(*_: Any) -> None:
    return None


def register(schema: str, call: Any, fake: Any) -> Any:
    """Define an operator from its schema, with what it runs on every device and what it says on fake tensors."""
    library.define(schema)  # type: ignore[no-untyped-call]
    name = schema.partition("(")[0]
    library.impl(name, call, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"equikern::{name}", fake, lib=library)
    return getattr(torch.ops.equikern, name).default


orbit = register(
    "orbit(Tensor x, str maps, float scale, Tensor? weights, Tensor? index) -> Tensor",
    _orbit,
    lambda x, maps, scale, weights, index: _orbit_empty(x, maps),
)
orbit_out = register("orbit_out(Tensor x, str maps, Tensor(a!) out) -> ()", _orbit_out, _nothing)
reduce = register(
    "reduce(Tensor y, str maps, str op, float scale, Tensor? weights) -> Tensor",
    _reduce,
    lambda y, maps, op, scale, weights: _view_empty(y, maps),
)
reduce_out = register(
    "reduce_out(Tensor y, str maps, str op, float scale, Tensor? weights, Tensor(a!) out) -> ()", _reduce_out, _nothing
)
mean_plus = register(
    "mean_plus(Tensor y, Tensor plus, str maps) -> Tensor", _mean_plus, lambda y, plus, maps: _view_empty(y, maps)
)
mean_plus_out = register(
    "mean_plus_out(Tensor y, Tensor plus, str maps, Tensor(a!) out) -> ()", _mean_plus_out, _nothing
)
mean_std = register(
    "mean_std(Tensor y, str maps) -> (Tensor, Tensor)",
    _mean_std,
    lambda y, maps: (_view_empty(y, maps), _view_empty(y, maps)),
)
mean_std_out = register(
    "mean_std_out(Tensor y, str maps, Tensor(a!) mean, Tensor(b!) std) -> ()", _mean_std_out, _nothing
)
orbit_dot = register(
    "orbit_dot(Tensor x, Tensor y, str maps, Tensor weights) -> (Tensor, Tensor)",
    _orbit_dot,
    lambda x, y, maps, weights: (_orbit_dot_empty(x, y), _dots_empty(y, weights.dim())),
)
dot = register(
    "dot(Tensor x, Tensor y, str maps, int weight_dims) -> Tensor",
    _dot,
    lambda x, y, maps, weight_dims: _dots_empty(y, weight_dims),
)
select = register(
    "select(Tensor y, Tensor scores, str maps, bool minimum) -> (Tensor, Tensor)",
    _select,
    lambda y, scores, maps, minimum: (_view_empty(y, maps), _index_empty(scores)),
)
select_out = register(
    "select_out(Tensor y, Tensor scores, str maps, bool minimum, Tensor(a!) out) -> Tensor",
    _select_out,
    lambda y, scores, maps, minimum, out: _index_empty(scores),
)
take = register("take(Tensor y, Tensor index, str maps) -> Tensor", _take, lambda y, index, maps: _view_empty(y, maps))


def _softmax_mean(y: Tensor, maps: str, space: str) -> tuple[Tensor, Tensor]:
    out, lse = _softmax_mean_empty(y)
    kernels(y).softmax_mean(y, out, lse, maps, space)
    return out, lse


def _softmax_mean_empty(y: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape[1:]), torch.empty(y.shape[:-1], dtype=accumulator(y), device=y.device)


def _softmax_mean_out(y: Tensor, maps: str, space: str, out: Tensor) -> None:
    lse = torch.empty(y.shape[:-1], dtype=accumulator(y), device=y.device)
    kernels(y).softmax_mean(y, out, lse, maps, space)
    _written(out)


def _softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, maps: str, space: str) -> Tensor:
    out = y.new_empty(y.shape)
    kernels(y).softmax_mean_backward(grad, y, lse, out, maps, space)
    return out


def _score_empty(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape[:-1], dtype=accumulator(logits), device=logits.device)


def _score(logits: Tensor, kind: str) -> Tensor:
    out = _score_empty(logits)
    kernels(logits).score(logits, out, kind)
    return out


def _score_select(y: Tensor, kind: str, maps: str, minimum: bool) -> tuple[Tensor, Tensor]:
    out, index = _score_select_empty(y, maps)
    kernels(y).score_select(y, out, index, maps, kind, minimum)
    return out, index


def _score_select_empty(y: Tensor, maps: str) -> tuple[Tensor, Tensor]:
    return _view_empty(y, maps), torch.empty(y.shape[1:-1], dtype=torch.int64, device=y.device)


def _score_select_out(y: Tensor, kind: str, maps: str, minimum: bool, out: Tensor) -> Tensor:
    index = torch.empty(y.shape[1:-1], dtype=torch.int64, device=y.device)
    kernels(y).score_select(y, out, index, maps, kind, minimum)
    _written(out)
    return index


def _cross_entropy_empty(y: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    loss = torch.empty(y.shape[1:-1], dtype=accumulator(y), device=y.device)
    return loss, y.new_empty(y.shape if gradient else (0,))


def _cross_entropy(
    y: Tensor,
    target: Tensor,
    maps: str,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    loss, grad = _cross_entropy_empty(y, gradient)
    into = grad if gradient else None
    kernels(y).cross_entropy(y, target, loss, into, maps, space, ignore_index, smoothing, scale)
    return loss, grad


softmax_mean = register(
    "softmax_mean(Tensor y, str maps, str space) -> (Tensor, Tensor)",
    _softmax_mean,
    lambda y, maps, space: _softmax_mean_empty(y),
)
softmax_mean_out = register(
    "softmax_mean_out(Tensor y, str maps, str space, Tensor(a!) out) -> ()", _softmax_mean_out, _nothing
)
softmax_mean_backward = register(
    "softmax_mean_backward(Tensor grad, Tensor y, Tensor lse, str maps, str space) -> Tensor",
    _softmax_mean_backward,
    lambda grad, y, lse, maps, space: y.new_empty(y.shape),
)
score = register("score(Tensor logits, str kind) -> Tensor", _score, lambda logits, kind: _score_empty(logits))
score_select = register(
    "score_select(Tensor y, str kind, str maps, bool minimum) -> (Tensor, Tensor)",
    _score_select,
    lambda y, kind, maps, minimum: _score_select_empty(y, maps),
)
score_select_out = register(
    "score_select_out(Tensor y, str kind, str maps, bool minimum, Tensor(a!) out) -> Tensor",
    _score_select_out,
    lambda y, kind, maps, minimum, out: torch.empty(y.shape[1:-1], dtype=torch.int64, device=y.device),
)
cross_entropy = register(
    "cross_entropy(Tensor y, Tensor target, str maps, str space, int ignore_index, float smoothing, Tensor? scale, "
    "bool gradient) -> (Tensor, Tensor)",
    _cross_entropy,
    lambda y, target, maps, space, ignore_index, smoothing, scale, gradient: _cross_entropy_empty(y, gradient),
)
