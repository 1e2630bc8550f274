"""The registered operators on rows of logits, see ``library.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import kernels
from ..views import Views, accumulator, of
from .batching import batched
from .library import checked, memory, nothing, register, register_batching, view_empty, written


def _lse_empty(y: Tensor) -> Tensor:
    return memory(y, y.shape[:-1], accumulator(y))


def _softmax_mean(y: Tensor, code: str, table: Tensor | None, space: str) -> tuple[Tensor, Tensor]:
    out, lse = memory(y, y.shape[1:]), _lse_empty(y)
    kernels(y).softmax_mean(y, out, lse, checked(code, table, y), table, space)
    return out, lse


def _softmax_mean_out(y: Tensor, code: str, table: Tensor | None, space: str, out: Tensor) -> None:
    kernels(y).softmax_mean(y, out, _lse_empty(y), checked(code, table, y), table, space)
    written(out)


def _softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, code: str, table: Tensor | None, space: str) -> Tensor:
    out = memory(y, y.shape)
    kernels(y).softmax_mean_backward(grad, y, lse, out, checked(code, table, y), table, space)
    return out


softmax_mean = register(
    "softmax_mean(Tensor y, str views, Tensor? table, str space) -> (Tensor, Tensor)",
    _softmax_mean,
    lambda y, code, table, space: (memory(y, y.shape[1:]), _lse_empty(y)),
    (1,),
    (0, 1),
)
softmax_mean_out = register(
    "softmax_mean_out(Tensor y, str views, Tensor? table, str space, Tensor(a!) out) -> ()", _softmax_mean_out, nothing
)
softmax_mean_backward = register(
    "softmax_mean_backward(Tensor grad, Tensor y, Tensor lse, str views, Tensor? table, str space) -> Tensor",
    _softmax_mean_backward,
    lambda grad, y, lse, code, table, space: memory(y, y.shape),
    (0, 1, 1),
    (1,),
)


def _score(logits: Tensor, kind: str) -> Tensor:
    out = _lse_empty(logits)
    kernels(logits).score(logits, out, kind)
    return out


score = register(
    "score(Tensor logits, str kind) -> Tensor", _score, lambda logits, kind: _lse_empty(logits), (0,), (0,)
)


def _index_empty(y: Tensor) -> Tensor:
    return memory(y, y.shape[1:-1], torch.int64)


def _score_select(y: Tensor, kind: str, code: str, table: Tensor | None, minimum: bool) -> tuple[Tensor, Tensor]:
    views = checked(code, table, y)
    out, index = view_empty(y, views), _index_empty(y)
    kernels(y).score_select(y, out, index, views, table, kind, minimum)
    return out, index


def _score_select_out(y: Tensor, kind: str, code: str, table: Tensor | None, minimum: bool, out: Tensor) -> Tensor:
    index = _index_empty(y)
    kernels(y).score_select(y, out, index, checked(code, table, y), table, kind, minimum)
    written(out)
    return index


score_select = register(
    "score_select(Tensor y, str kind, str views, Tensor? table, bool minimum) -> (Tensor, Tensor)",
    _score_select,
    lambda y, kind, code, table, minimum: (view_empty(y, of(code)), _index_empty(y)),
    (1,),
    (0, 0),
)
score_select_out = register(
    "score_select_out(Tensor y, str kind, str views, Tensor? table, bool minimum, Tensor(a!) out) -> Tensor",
    _score_select_out,
    lambda y, kind, code, table, minimum, out: _index_empty(y),
)


def _cross_entropy_empty(y: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    return memory(y, y.shape[1:-1], accumulator(y)), memory(y, y.shape if gradient else (0,))


def weights_of(target: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """Each target's class weight, 0 where it is ignored; one outside is for the kernels to refuse."""
    return torch.where(target == ignore_index, 0.0, weight[target.clamp(0, max(0, weight.shape[0] - 1))])


def cross_entropy_into(
    y: Tensor,
    target: Tensor,
    loss: Tensor,
    grad: Tensor | None,
    views: Views,
    table: Tensor | None,
    space: str,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    softcap: float,
    weight: Tensor | None,
    scale: Tensor | None,
) -> None:
    """The rows' losses and the gradient of Σ scale · loss, written into given memory; a softcap of 0 is none.

    Kernels know no softcap, whose logits and then slopes take memory like one y; and no class weights, which without
    smoothing are a factor of the row.
    """
    logits, row = y, None
    if softcap:
        logits = torch.div(y, softcap).tanh_().mul_(softcap)
    if weight is not None and not smoothing:
        row = weights_of(target, weight, ignore_index)
        weight, scale = None, (row if scale is None else row * scale).contiguous()
    kernels(y).cross_entropy(
        logits, target, loss, grad, views, table, space, ignore_index, smoothing, scale, z_loss, weight
    )
    if row is not None:
        loss.mul_(row)
    if softcap and grad is not None:  # 1 − tanh² = 1/cosh², which keeps its digits where tanh is close to 1
        grad.mul_(torch.div(y, softcap, out=logits).cosh_().reciprocal_().square_())


def _cross_entropy(y: Tensor, target: Tensor, code: str, table: Tensor | None, *call: Any) -> tuple[Tensor, Tensor]:
    *options, gradient = call
    loss, grad = _cross_entropy_empty(y, gradient)
    cross_entropy_into(y, target, loss, grad if gradient else None, checked(code, table, y), table, *options)
    return loss, grad


cross_entropy = register(
    "cross_entropy(Tensor y, Tensor target, str views, Tensor? table, str space, int ignore_index, float smoothing, "
    "float z_loss, float softcap, Tensor? weight, Tensor? scale, bool gradient) -> (Tensor, Tensor)",
    _cross_entropy,
    lambda y, *call: _cross_entropy_empty(y, call[-1]),
)


def _batched_cross_entropy(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """The batch is one more leading dim; a scale for each sample is multiplied behind the kernel, which takes one."""
    scale, gradient = arguments[-2:]
    each = in_dims[-2] is not None
    call = (*arguments[:-2], None if each else scale, gradient)
    dims = (*in_dims[:-2], None, None)
    if in_dims[-3] is not None:
        raise ValueError("weight: expected the same class weights for all samples of vmap, got a batch of them")
    (loss, grad), _ = batched(cross_entropy, (1, 0), (0, 1), small=(1,))(info, dims, *call)
    if not gradient:
        return (loss, grad), (0, None)
    if each:
        grad = (grad * scale.view(1, -1, *(1,) * (grad.dim() - 2))).to(grad.dtype)
    return (loss, grad), (0, 1)


register_batching(cross_entropy, _batched_cross_entropy)
