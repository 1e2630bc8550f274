"""The registered operators ``torch.ops.equikern.*``: schemas, fakes, and the call of the active backend's kernels.

They are not differentiable by themselves: the public functions wrap them in autograd Functions (``autograd.py``).
Each allocating operator has a twin ``…_out`` that writes into a tensor of the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import kernels
from ..reductions import REDUCTIONS
from ..views import Views, accumulator, of
from .batching import Rule, batched

# The class's own: that of a subclass may take no sizes one by one, as MONAI's MetaTensor.
new_empty = Tensor.new_empty
library = torch.library.Library("equikern", "DEF")  # type: ignore[no-untyped-call]
# What operators are made of in aten, for programs that run without this package: see ``decompositions.py``.
decompositions: dict[Any, Callable[..., Any]] = {}


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


def memory(t: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous memory where t is, of its dtype unless another one is asked for."""
    # Small calls are counted: sizes one by one are read in half the time that a torch.Size takes.
    return new_empty(t, *shape, dtype=dtype) if shape else t.new_empty((), dtype=dtype)


def empty_like_views(t: Tensor, shape: Sequence[int], skip: int) -> Tensor:
    """Memory for a result of the given shape: channels-last where a sample of t is, otherwise contiguous.

    ``skip`` is the number of t's leading dims that do not belong to the sample (its group axis).
    """
    dim = 0 if t.is_contiguous() else _channels_dim(t.shape[skip:], t.stride()[skip:])
    if not dim:
        return memory(t, shape)
    return memory(t, (*shape[:dim], *shape[dim + 1 :], shape[dim])).movedim(-1, dim)


def strided_as_views(result: Tensor, t: Tensor, skip: int) -> Tensor:
    """A result in the layout of ``empty_like_views``."""
    dim = 0 if t.is_contiguous() else _channels_dim(t.shape[skip:], t.stride()[skip:])
    return result.movedim(dim, -1).contiguous().movedim(-1, dim) if dim else result.contiguous()


def checked(code: str, table: Tensor | None, like: Tensor) -> Views:
    """The views of a call, whatever it was that made it: a code that says none, or another's table, is refused."""
    views = of(code)
    if views.size or table is not None:
        views.kind.check_table(views, table, like)
    return views


def _orbit_empty(x: Tensor, views: Views) -> Tensor:
    if views.upright and x.is_contiguous():
        return new_empty(x, views.order, *x.shape)
    return empty_like_views(x, (views.order, *views.shape(x.shape)), 0)


def view_empty(y: Tensor, views: Views) -> Tensor:
    """Memory for one view of an orbit y (|G|, *lead, H, W) transformed back: (*lead, H, W), laid out as y's views."""
    _, *shape = y.shape
    if views.upright and shape and y.is_contiguous():
        return new_empty(y, *shape)
    return empty_like_views(y, views.shape(shape), 1)


def written(out: Tensor) -> None:
    """Tell autograd that the values changed: kernels write behind its back, and it may have saved this tensor."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def nothing(*_: Any) -> None:
    """What operators that write into given memory say on fake tensors."""
    return None


def register(
    schema: str, call: Any, fake: Any, starts: Sequence[int | None] = (), results: Sequence[int] = (), **counts: Any
) -> Any:
    """Define an operator from its schema, with what it runs on every device and what it says on fake tensors.

    starts, results, counts: see ``batching.batched``; without them ``torch.vmap`` takes no such operator.
    """
    library.define(schema)  # type: ignore[no-untyped-call]
    name = schema.partition("(")[0]
    library.impl(name, call, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"equikern::{name}", fake, lib=library)
    operator = getattr(torch.ops.equikern, name).default
    if starts:
        register_batching(operator, batched(operator, starts, results, **counts))
    return operator


def register_batching(operator: Any, rule: Rule) -> None:
    """What ``torch.vmap`` does of an operator."""
    torch.library.register_vmap(operator.name(), rule, lib=library)


def _orbit(
    x: Tensor, code: str, table: Tensor | None, scale: float, weights: Tensor | None, index: Tensor | None
) -> Tensor:
    views = checked(code, table, x)
    out = _orbit_empty(x, views)
    kernels(x).orbit(x, out, views, table, scale, weights, index)
    return out


def _orbit_out(x: Tensor, code: str, table: Tensor | None, out: Tensor) -> None:
    kernels(x).orbit(x, out, checked(code, table, x), table, 1.0, None, None)
    written(out)


orbit = register(
    "orbit(Tensor x, str views, Tensor? table, float scale, Tensor? weights, Tensor? index) -> Tensor",
    _orbit,
    lambda x, code, table, scale, weights, index: _orbit_empty(x, of(code)),
    (0, None, None, None, 1, 0),
    (1,),
    small=(4, 5),
)
orbit_out = register("orbit_out(Tensor x, str views, Tensor? table, Tensor(a!) out) -> ()", _orbit_out, nothing)


def _act_empty(x: Tensor, views: Views) -> Tensor:
    return empty_like_views(x, views.shape(x.shape), 0)


def _act_into(x: Tensor, elements: Tensor, code: str, table: Tensor | None, out: Tensor) -> None:
    views = checked(code, table, x)
    # x seen |G| times: each sample takes its element's view of it, and nothing is read twice.
    kernels(x).select(x.expand(views.order, *x.shape), out, elements, views, table, None, True)


def _act(x: Tensor, elements: Tensor, code: str, table: Tensor | None) -> Tensor:
    out = _act_empty(x, of(code))
    _act_into(x, elements, code, table, out)
    return out


def _act_out(x: Tensor, elements: Tensor, code: str, table: Tensor | None, out: Tensor) -> None:
    _act_into(x, elements, code, table, out)
    written(out)


act = register(
    "act(Tensor x, Tensor elements, str views, Tensor? table) -> Tensor",
    _act,
    lambda x, elements, code, table: _act_empty(x, of(code)),
    (0, 0),
    (0,),
    small=(1,),
)
act_out = register(
    "act_out(Tensor x, Tensor elements, str views, Tensor? table, Tensor(a!) out) -> ()", _act_out, nothing
)


def _reduce(y: Tensor, code: str, table: Tensor | None, op: str, scale: float, weights: Tensor | None) -> Tensor:
    views = checked(code, table, y)
    out = view_empty(y, views)
    kernels(y).reduce(y, out, views, table, op, scale, weights, None, None)
    return out


def _reduce_out(
    y: Tensor, code: str, table: Tensor | None, op: str, scale: float, weights: Tensor | None, out: Tensor
) -> None:
    kernels(y).reduce(y, out, checked(code, table, y), table, op, scale, weights, None, None)
    written(out)


reduce = register(
    "reduce(Tensor y, str views, Tensor? table, str op, float scale, Tensor? weights) -> Tensor",
    _reduce,
    lambda y, code, table, op, scale, weights: view_empty(y, of(code)),
    (1, None, None, None, None, 1),
    (0,),
    small=(5,),
)
reduce_out = register(
    "reduce_out(Tensor y, str views, Tensor? table, str op, float scale, Tensor? weights, Tensor(a!) out) -> ()",
    _reduce_out,
    nothing,
)


def _mean_plus(y: Tensor, plus: Tensor, code: str, table: Tensor | None) -> Tensor:
    views = checked(code, table, y)
    out = view_empty(y, views)
    kernels(y).reduce(y, out, views, table, "sum", 1.0 / y.shape[0], None, plus, None)
    return out


def _mean_plus_out(y: Tensor, plus: Tensor, code: str, table: Tensor | None, out: Tensor) -> None:
    kernels(y).reduce(y, out, checked(code, table, y), table, "sum", 1.0 / y.shape[0], None, plus, None)
    written(out)


mean_plus = register(
    "mean_plus(Tensor y, Tensor plus, str views, Tensor? table) -> Tensor",
    _mean_plus,
    lambda y, plus, code, table: view_empty(y, of(code)),
    (1, 0),
    (0,),
)
mean_plus_out = register(
    "mean_plus_out(Tensor y, Tensor plus, str views, Tensor? table, Tensor(a!) out) -> ()", _mean_plus_out, nothing
)


def _mean_std(y: Tensor, code: str, table: Tensor | None) -> tuple[Tensor, Tensor]:
    views = checked(code, table, y)
    mean, std = view_empty(y, views), view_empty(y, views)
    kernels(y).reduce(y, mean, views, table, "mean_std", 1.0, None, None, std)
    return mean, std


def _mean_std_out(y: Tensor, code: str, table: Tensor | None, mean: Tensor, std: Tensor) -> None:
    kernels(y).reduce(y, mean, checked(code, table, y), table, "mean_std", 1.0, None, None, std)
    written(mean)
    written(std)


mean_std = register(
    "mean_std(Tensor y, str views, Tensor? table) -> (Tensor, Tensor)",
    _mean_std,
    lambda y, code, table: (view_empty(y, of(code)), view_empty(y, of(code))),
    (1,),
    (0, 0),
)
mean_std_out = register(
    "mean_std_out(Tensor y, str views, Tensor? table, Tensor(a!) mean, Tensor(b!) std) -> ()", _mean_std_out, nothing
)


def _dots_empty(y: Tensor, weight_dims: int) -> Tensor:
    return memory(y, y.shape[:weight_dims], accumulator(y))


def _orbit_dot_empty(y: Tensor) -> Tensor:
    return empty_like_views(y, y.shape, 1)


def _orbit_dot(x: Tensor, y: Tensor, code: str, table: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
    views = checked(code, table, y)
    out = _orbit_dot_empty(y)
    dots = _dots_empty(y, weights.dim())
    kernels(y).orbit_dot(x, y, out, dots, views, table, weights)
    return out, dots


def _dot(x: Tensor, y: Tensor, code: str, table: Tensor | None, weight_dims: int) -> Tensor:
    dots = _dots_empty(y, weight_dims)
    kernels(y).orbit_dot(x, y, None, dots, checked(code, table, y), table, None)
    return dots


orbit_dot = register(
    "orbit_dot(Tensor x, Tensor y, str views, Tensor? table, Tensor weights) -> (Tensor, Tensor)",
    _orbit_dot,
    lambda x, y, code, table, weights: (_orbit_dot_empty(y), _dots_empty(y, weights.dim())),
    (0, 1, None, None, 1),
    (1, 1),
    small=(4,),
)
dot = register(
    "dot(Tensor x, Tensor y, str views, Tensor? table, int weight_dims) -> Tensor",
    _dot,
    lambda x, y, code, table, weight_dims: _dots_empty(y, weight_dims),
    (0, 1),
    (1,),
    more_dims=(4,),
)


def _only_moves(views: Views, code: str) -> None:
    if views.signed or views.kind.ids:
        raise ValueError(f"views: expected ones that only move numbers, got {code[:80]!r}; see ops.reduce for others")


def _check_lead(name: str, dims: int, y: Tensor, views: Views) -> None:
    most = y.dim() - 1 - views.dims
    if not 0 <= dims <= most:
        raise ValueError(f"{name}: expected 0 … {most} dims in front of those that views move, got {dims}")


def _reduce_backward(
    grad: Tensor, spread: Tensor | None, y: Tensor, code: str, table: Tensor | None, op: str
) -> Tensor:
    views = checked(code, table, y)
    _only_moves(views, code)
    if op not in REDUCTIONS or not REDUCTIONS[op].fused:
        raise ValueError(f"op: expected one whose gradient is one kernel's, got {op!r}")
    if (spread is not None) != (REDUCTIONS[op].results == 2):
        raise ValueError(f"spread: expected a second gradient for 'mean_std' alone, op is {op!r}")
    shape = tuple(views.shape(y.shape[1:]))
    for name, t in (("grad", grad), ("spread", spread)):
        if t is not None and (tuple(t.shape) != shape or t.dtype != y.dtype):
            raise ValueError(f"{name}: expected shape {shape} in {y.dtype}, got {tuple(t.shape)} in {t.dtype}")
    out = _orbit_dot_empty(y)
    kernels(y).reduce_backward(grad, spread, y, out, views, table, op)
    return out


reduce_backward = register(
    "reduce_backward(Tensor grad, Tensor? spread, Tensor y, str views, Tensor? table, str op) -> Tensor",
    _reduce_backward,
    lambda grad, spread, y, code, table, op: _orbit_dot_empty(y),
    (0, 0, 1),
    (1,),
)


def _variance_empty(y: Tensor, dims: int) -> Tensor:
    return memory(y, y.shape[1 : 1 + dims], accumulator(y))


def _variance(y: Tensor, code: str, table: Tensor | None, dims: int) -> Tensor:
    views = checked(code, table, y)
    _check_lead("dims", dims, y, views)
    out = _variance_empty(y, dims)
    if y.numel():
        kernels(y).variance(y, out, views, table)
    else:
        out.fill_(math.nan)
    return out


variance = register(
    "variance(Tensor y, str views, Tensor? table, int dims) -> Tensor",
    _variance,
    lambda y, code, table, dims: _variance_empty(y, dims),
    (1,),
    (0,),
    more_dims=(3,),
)


def _variance_backward(factors: Tensor, y: Tensor, code: str, table: Tensor | None) -> Tensor:
    views = checked(code, table, y)
    _only_moves(views, code)
    _check_lead("factors", factors.dim(), y, views)
    if factors.shape != y.shape[1 : 1 + factors.dim()] or factors.dtype != accumulator(y):
        raise ValueError(
            f"factors: expected shape {tuple(y.shape[1 : 1 + factors.dim()])} in {accumulator(y)}, got "
            f"{tuple(factors.shape)} in {factors.dtype}"
        )
    out = _orbit_dot_empty(y)
    if y.numel():
        kernels(y).variance_backward(factors.contiguous(), y, out, views, table)
    return out


variance_backward = register(
    "variance_backward(Tensor factors, Tensor y, str views, Tensor? table) -> Tensor",
    _variance_backward,
    lambda factors, y, code, table: _orbit_dot_empty(y),
    (0, 1),
    (1,),
)


def _index_empty(scores: Tensor) -> Tensor:
    return memory(scores, scores.shape[1:], torch.int64)


def _select(y: Tensor, scores: Tensor, code: str, table: Tensor | None, minimum: bool) -> tuple[Tensor, Tensor]:
    views = checked(code, table, y)
    out, index = view_empty(y, views), _index_empty(scores)
    kernels(y).select(y, out, index, views, table, scores, minimum)
    return out, index


def _select_out(y: Tensor, scores: Tensor, code: str, table: Tensor | None, minimum: bool, out: Tensor) -> Tensor:
    index = _index_empty(scores)
    kernels(y).select(y, out, index, checked(code, table, y), table, scores, minimum)
    written(out)
    return index


def _take(y: Tensor, index: Tensor, code: str, table: Tensor | None) -> Tensor:
    views = checked(code, table, y)
    out = view_empty(y, views)
    kernels(y).select(y, out, index, views, table, None, True)
    return out


select = register(
    "select(Tensor y, Tensor scores, str views, Tensor? table, bool minimum) -> (Tensor, Tensor)",
    _select,
    lambda y, scores, code, table, minimum: (view_empty(y, of(code)), _index_empty(scores)),
    (1, 1),
    (0, 0),
    small=(1,),
)
select_out = register(
    "select_out(Tensor y, Tensor scores, str views, Tensor? table, bool minimum, Tensor(a!) out) -> Tensor",
    _select_out,
    lambda y, scores, code, table, minimum, out: _index_empty(scores),
)
take = register(
    "take(Tensor y, Tensor index, str views, Tensor? table) -> Tensor",
    _take,
    lambda y, index, code, table: view_empty(y, of(code)),
    (1, 0),
    (0,),
    small=(1,),
)
