"""The registered operators on rows of logits, see ``library.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import kernels
from ..views import accumulator, of
from .batching import Rule, batched, one_by_one
from .library import checked, memory, new_empty, nothing, register, register_batching, view_empty, written


def _lse_empty(y: Tensor) -> Tensor:
    *lead, _ = y.shape  # small calls are counted: a slice of a torch.Size takes twice as long
    return memory(y, lead, accumulator(y))


def _some(y: Tensor) -> Tensor:
    """Refuses rows without a class, of which the kernels write nothing."""
    if not y.shape[-1]:
        raise ValueError(f"logits: expected one class or more, got shape {tuple(y.shape)}")
    return y


def _softmax_mean(y: Tensor, code: str, table: Tensor | None, space: str) -> tuple[Tensor, Tensor]:
    *lead, classes = y.shape
    out, lse = new_empty(y, *lead[1:], classes), memory(y, lead, accumulator(y))
    kernels(y).softmax_mean(y, out, lse, checked(code, table, y), table, space)
    if not classes:  # of such rows the kernels write nothing
        lse.fill_(-torch.inf)
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
    out = _lse_empty(_some(logits))
    kernels(logits).score(logits, out, kind)
    return out


score = register(
    "score(Tensor logits, str kind) -> Tensor", _score, lambda logits, kind: _lse_empty(logits), (0,), (0,)
)


def _index_empty(y: Tensor) -> Tensor:
    _, *lead, _ = y.shape
    return memory(y, lead, torch.int64)


def _score_select(y: Tensor, kind: str, code: str, table: Tensor | None, minimum: bool) -> tuple[Tensor, Tensor]:
    views = checked(code, table, _some(y))
    out, index = view_empty(y, views), _index_empty(y)
    kernels(y).score_select(y, out, index, views, table, kind, minimum)
    return out, index


def _score_select_out(y: Tensor, kind: str, code: str, table: Tensor | None, minimum: bool, out: Tensor) -> Tensor:
    index = _index_empty(_some(y))
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


def _cross_entropy(
    y: Tensor,
    target: Tensor,
    code: str,
    table: Tensor | None,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Tensor | None,
    gradient: bool,
    *terms: Any,
) -> tuple[Tensor, Tensor]:
    loss, grad = _cross_entropy_empty(_some(y), gradient)
    views, into = checked(code, table, y), grad if gradient else None
    kernels(y).cross_entropy(
        y, target.contiguous(), loss, into, views, table, space, ignore_index, smoothing, scale, *terms
    )
    return loss, grad


def _cross_entropy_fake(y: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    return _cross_entropy_empty(y, call[7])


def _batched_cross_entropy(operator: Any) -> Rule:
    """The batch is one more leading dim; a scale for each sample is multiplied behind the kernel, which takes one.

    With class weights for each sample, samples are taken one after another.
    """
    run, apart = batched(operator, (1, 0), (0, 1), small=(1,)), one_by_one(operator)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        scale, gradient, *terms = arguments[7:]
        if terms and in_dims[-1] is not None:
            return apart(info, in_dims, *arguments)
        each = in_dims[7] is not None
        call = (*arguments[:7], None if each else scale, gradient, *terms)
        (loss, grad), _ = run(info, (*in_dims[:7], *(None,) * len(call[7:])), *call)
        if not gradient:
            return (loss, grad), (0, None)
        if each:
            grad = (grad * scale.view(1, -1, *(1,) * (grad.dim() - 2))).to(grad.dtype)
        return (loss, grad), (0, 1)

    return rule


# Two operators, since in small calls arguments take time, those that are 0 or None too.
_CALL = (
    "Tensor y, Tensor target, str views, Tensor? table, str space, int ignore_index, float smoothing, Tensor? scale, "
    "bool gradient"
)
cross_entropy = register(f"cross_entropy({_CALL}) -> (Tensor, Tensor)", _cross_entropy, _cross_entropy_fake)
weighed_cross_entropy = register(
    f"weighed_cross_entropy({_CALL}, float z_loss, float softcap, Tensor? weight) -> (Tensor, Tensor)",
    _cross_entropy,
    _cross_entropy_fake,
)
for _operator in (cross_entropy, weighed_cross_entropy):
    register_batching(_operator, _batched_cross_entropy(_operator))
