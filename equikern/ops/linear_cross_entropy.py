"""``linear_orbit_cross_entropy``: the same loss from the last hidden state, with a chunk of the logits at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..backends import kernels
from ..core import checks, library, rows
from ..core.batching import one_by_one
from ..core.functions import Differentiable, functional, needs_grad, transformed
from ..views import accumulator
from ..views.maps import Maps, Placed
from . import softmax
from .cross_entropy import Options, checked, counted, in_torch, is_one, reduced

__all__ = ["linear_orbit_cross_entropy"]

# A chunk's logits and their gradient together: no more than this many bytes, and at most an eighth of all logits unless
# a GPU's multiprocessors would get too few rows.
_MOST_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29}
_COMPOSED = 12  # what class weights with smoothing take beside, in tensors of a chunk's size in the sums' dtype
_LEAST_ROWS = 4  # a multiprocessor: a program takes one row of all views, and fewer leave most of a GPU idle


def linear_orbit_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    action: Action,
    space: Literal["probs", "log_probs"] | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """``orbit_cross_entropy(hidden @ weightᵀ + bias, target, action, space)`` that never holds all the logits.

    The rows are taken in chunks: a chunk's logits, their loss and gradient in one pass, and from that gradient its
    part of the hidden state's and the weight's. Beyond inputs and gradients it needs an eighth of one logits tensor
    at most, or on a GPU four rows for every multiprocessor, and never more than 128 MiB on CPUs and 512 MiB on GPUs
    unless one row is longer (for float16 and bfloat16 weights a float32 sum of their gradient as well). With
    ``reduction="none"`` the upstream gradient is needed first, so the backward makes the logits once more. On a GPU
    chunks are shorter by what softcap, and class weights together with smoothing, take there.

    Args:
        hidden: (|G|, \\*lead, D), the last hidden state of every view; float16, bfloat16, float32 or float64.
        weight: (V, D), the output layer's, of hidden's dtype.
        target: (\\*lead) int64, see ``orbit_cross_entropy``.
        action: how the group acts on the V logits, a permutation of dim −1 or trivial.
        space: what is averaged, see ``orbit_cross_entropy``.
        bias: (V,) of hidden's dtype, or None.
        ignore_index, reduction, label_smoothing, z_loss, softcap: see ``orbit_cross_entropy``; softcap is of the
            logits, bias included.
        class_weight: (V,), ``orbit_cross_entropy``'s weight.

    Under autocast hidden, weight and bias are cast as ``torch.nn.functional.linear`` casts them.

    Returns:
        The loss in float32 (float64 for float64): one number, or (\\*lead) for ``"none"``.

    Raises:
        TypeError, ValueError: as ``orbit_cross_entropy``, or shapes, dtypes or devices of hidden, weight and bias
            that do not fit.

    Example:
        >>> import torch
        >>> from equikern import orbit_cross_entropy, permutation
        >>> action, g = permutation([[0, 1, 2], [1, 0, 2]]), torch.Generator().manual_seed(0)
        >>> hidden, weight = torch.randn(2, 4, 5, generator=g), torch.randn(3, 5, generator=g)
        >>> target = torch.tensor([0, 2, 1, 1])
        >>> fused = linear_orbit_cross_entropy(hidden, weight, target, action)
        >>> torch.allclose(fused, orbit_cross_entropy(hidden @ weight.T, target, action))
        True
    """
    hidden, weight, bias = _operands(hidden, weight, bias)
    back = _on_logits(hidden, weight, action)
    target = checks.targets("target", target, tuple(hidden.shape[1:-1]), hidden)
    options = checked(space, ignore_index, reduction, label_smoothing, z_loss, softcap, hidden)
    if class_weight is not None:
        class_weight = checks.class_weights("class_weight", class_weight, weight.shape[0], hidden)
    placed = back.placed(hidden)
    if needs_grad(hidden, weight) or (bias is not None and needs_grad(bias)):
        # Transforms take derivatives of derivatives, which no gradient made here would serve.
        early = reduction != "none" and not transformed()
        asked = tuple(early and t is not None and t.requires_grad for t in (hidden, weight, bias))
        arguments = (hidden, weight, bias, target, class_weight, placed, options, reduction, asked)
        return cast(Tensor, _LinearCrossEntropy.call(*arguments))
    loss = _losses(hidden, weight, bias, target, class_weight, placed, options, None, (False, False, False))[0]
    return reduced(loss, reduction, counted(loss.dtype, target, class_weight, options, reduction))


def _operands(hidden: object, weight: object, bias: object) -> tuple[Tensor, Tensor, Tensor | None]:
    found = [checks.rows("hidden", hidden, -1), checks.rows("weight", weight, -1)]
    if bias is not None:
        found.append(checks.rows("bias", bias, -1))
    first, width = found[0], found[1].shape[-1]
    if first.dim() < 2 or found[1].dim() != 2 or first.shape[-1] != width:
        raise ValueError(
            f"weight: expected shape (V, {first.shape[-1]}) for hidden (|G|, …, D) of shape {tuple(first.shape)}, got "
            f"{tuple(found[1].shape)}"
        )
    if bias is not None and tuple(found[2].shape) != (found[1].shape[0],):
        raise ValueError(f"bias: expected shape ({found[1].shape[0]},) like weight, got {tuple(found[2].shape)}")
    kind = first.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and first.dtype != torch.float64:
        found = [t.to(torch.get_autocast_dtype(kind)) for t in found]
    for name, t in zip(("hidden", "weight", "bias")[: len(found)], found, strict=True):
        if t.dtype != found[0].dtype:
            raise TypeError(f"{name}: expected {found[0].dtype} like hidden, got {t.dtype}")
        if t.device != first.device:
            raise ValueError(f"{name}: expected a tensor on {first.device} like hidden, got one on {t.device}")
    return found[0], found[1], found[2] if bias is not None else None


def _on_logits(hidden: Tensor, weight: Tensor, action: Action) -> Maps:
    """The inverse maps, checked against logits that do not exist: their shape is hidden's with V for D."""
    own = checks.acting(action).views
    if own.kind.permutes and own.dim != -1:
        raise ValueError(f"action: expected a permutation of dim -1, which holds the logits, got dim {own.dim}")
    logits = hidden.new_zeros(()).expand(*hidden.shape[:-1], weight.shape[0])
    return checks.logits_of_loss("hidden @ weightᵀ", logits, action)[1]


def chunk_rows(order: int, rows: int, logits_bytes: int, device: str, processors: int = 0, held: int = 2) -> int:
    """Rows of one chunk: its logits (``logits_bytes`` a row and view) and their gradient within the limits above.

    ``held``: tensors like the chunk's logits that are in memory at once.

    ``processors``: of a GPU, which all get work as far as the bytes allow it. There whole vectors of every view start
    equally far into 16 bytes, whatever the vocabulary: a multiple of 8 rows sees to it.
    """
    most = _MOST_BYTES.get(device, _MOST_BYTES["cpu"]) // max(1, held * order * logits_bytes)
    found = max(1, min(max(rows // (9 * held), _LEAST_ROWS * processors), most))
    return found // 8 * 8 if processors and found >= 8 else found


def _processors(t: Tensor) -> int:
    return torch.cuda.get_device_properties(t.device).multi_processor_count if t.is_cuda else 0


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    code: str,
    table: Tensor | None,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Tensor | None,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    class_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows' losses, and the gradients of Σ scale · loss in hidden, weight and bias; empty where not asked for.

    scale is one number, or one for each row.
    """
    asked = hidden_gradient, weight_gradient, bias_gradient
    if not weight.shape[0]:
        raise ValueError(f"weight: expected one class or more, got shape {tuple(weight.shape)}")
    loss, grad_hidden, grad_weight, grad_bias = _empty(hidden, weight, target, *asked)
    order, size = hidden.shape[0], weight.shape[0]
    views = library.checked(code, table, hidden)
    rows = hidden.flatten(1, -2) if hidden.dim() > 2 else hidden[:, None]
    targets, losses = target.flatten(), loss.view(-1)
    into = grad_hidden.view(rows.shape) if hidden_gradient else grad_hidden
    wide = accumulator(hidden)
    sum_weight = grad_weight if grad_weight.dtype == wide else torch.zeros_like(grad_weight, dtype=wide)
    sum_bias = torch.zeros_like(grad_bias, dtype=wide)
    gradient = any(asked)
    row_bytes = size * hidden.element_size()
    held = 2
    if not hidden.is_cpu:  # there in one pass
        ratio = wide.itemsize // hidden.element_size()
        held += (softcap > 0) * (1 + ratio) + (class_weight is not None and smoothing > 0) * _COMPOSED * ratio
    step = chunk_rows(order, rows.shape[1], row_bytes, hidden.device.type, _processors(hidden), held)
    each = scale is not None and scale.dim() > 0
    # The chunks share their memory: fresh pages would cost more than the loss itself.
    memory = hidden.new_empty((2 if gradient else 1, order * min(step, rows.shape[1]), size))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        flat = part.reshape(-1, part.shape[-1])
        logits = memory[0, : len(flat)]
        if bias is None:
            torch.mm(flat, weight.T, out=logits)
        else:
            torch.addmm(bias, flat, weight.T, out=logits)
        some = slice(start, start + step)
        parts = logits.view(order, -1, size)
        slopes = memory[1, : len(flat)].view(parts.shape) if gradient else None
        factor = None if each else scale
        options = space, ignore_index, smoothing, factor, z_loss, softcap, class_weight
        kernels(hidden).cross_entropy(parts, targets[some], losses[some], slopes, views, table, *options)
        if slopes is None:
            continue
        if each:
            slopes.mul_(cast(Tensor, scale).flatten()[some, None])
        grad = slopes.view(-1, size)
        if hidden_gradient:
            into[:, some] = (grad @ weight).view(part.shape)
        if weight_gradient:
            _add_product(sum_weight, grad, flat)
        if bias_gradient:
            sum_bias += grad.sum(0, dtype=wide)
    if sum_weight is not grad_weight:
        grad_weight.copy_(sum_weight)
    grad_bias.copy_(sum_bias)
    return loss, grad_hidden, grad_weight, grad_bias


def _add_product(total: Tensor, grad: Tensor, flat: Tensor) -> None:
    """``total += gradᵀ @ flat``, added in total's dtype."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, flat)
    else:
        total += grad.T @ flat


def _empty(hidden: Tensor, weight: Tensor, target: Tensor, *asked: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the results, contiguous; the weight's gradient starts from zero."""
    return (
        library.memory(hidden, target.shape, accumulator(hidden)),
        library.memory(hidden, hidden.shape if asked[0] else (0,)),
        weight.new_zeros(weight.shape if asked[1] else (0,)),
        weight.new_zeros(weight.shape[:1] if asked[2] else (0,)),
    )


_CALL = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, str views, Tensor? table, str space, int ignore_index, "
    "float smoothing, Tensor? scale, bool hidden_gradient, bool weight_gradient, bool bias_gradient"
)
_RESULTS = "(Tensor, Tensor, Tensor, Tensor)"


def _fake(hidden: Tensor, weight: Tensor, _: Tensor | None, target: Tensor, *call: Any) -> tuple[Tensor, ...]:
    return _empty(hidden, weight, target, *call[6:9])


_linear_cross_entropy = library.register(f"linear_cross_entropy({_CALL}) -> {_RESULTS}", _forward, _fake)
_weighed_linear_cross_entropy = library.register(
    f"weighed_linear_cross_entropy({_CALL}, float z_loss, float softcap, Tensor? class_weight) -> {_RESULTS}",
    _forward,
    _fake,
)


def _losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    placed: Placed,
    options: Options,
    scale: Tensor | None,
    asked: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``_forward`` says, of the operator that takes no more than is asked for, as in ``orbit_cross_entropy``."""
    space, ignored, smoothing, z_loss, softcap = options
    call = (hidden, weight, bias, target, *placed, space, ignored, smoothing, scale, *asked)
    found: tuple[Tensor, Tensor, Tensor, Tensor]
    if class_weight is None and not z_loss and not softcap:
        found = _linear_cross_entropy(*call)
    else:
        found = _weighed_linear_cross_entropy(*call, z_loss, softcap, class_weight)
    return found


def _decomposed(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, code: str, table: Tensor | None, *call: Any
) -> tuple[Tensor, ...]:
    """The operator in parts that programs without equikern have, with all the logits."""
    space, ignore_index, smoothing, scale, hidden_gradient, weight_gradient, bias_gradient, *terms = call
    each = scale is not None and scale.dim() > 0
    logits = torch.nn.functional.linear(hidden, weight, bias)
    gradient = hidden_gradient or weight_gradient or bias_gradient
    factor = None if each else scale
    options = space, ignore_index, smoothing, factor, gradient
    operator = rows.weighed_cross_entropy if terms else rows.cross_entropy
    loss, slopes = operator(logits, target, code, table, *options, *terms)
    if each:
        slopes = (slopes * scale.unsqueeze(-1)).to(logits.dtype)
    flat, nothing = slopes.reshape(-1, weight.shape[0]), hidden.new_empty(0)
    return (
        loss,
        (slopes @ weight).contiguous() if hidden_gradient else nothing,
        (flat.T @ hidden.reshape(-1, hidden.shape[-1])).contiguous() if weight_gradient else nothing.clone(),
        flat.sum(0) if bias_gradient else nothing.clone(),
    )


for _operator in (_linear_cross_entropy, _weighed_linear_cross_entropy):
    library.register_batching(_operator, one_by_one(_operator))
    library.decompositions[_operator] = _decomposed


class _LinearCrossEntropy(
    Differentiable,
    schema="linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, "
    "str views, Tensor? table, str space, int ignore_index, float smoothing, float z_loss, float softcap, "
    "str reduction, bool hidden_gradient, bool weight_gradient, bool bias_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tuples={5: 2, 6: 5, 8: 3},
):
    hidden = 3

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        placed: Placed,
        options: Options,
        reduction: str,
        early: tuple[bool, ...],
    ) -> tuple[Tensor, ...]:
        scale = counted(accumulator(hidden), target, class_weight, options, reduction)
        loss, *gradients = _losses(hidden, weight, bias, target, class_weight, placed, options, scale, early)
        return reduced(loss, reduction, scale), *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        hidden, weight, bias, target, class_weight, *ctx.call = inputs
        gradients = output[1:]
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(hidden, weight, bias, target, class_weight, *gradients)  # as in orbit_cross_entropy
        ctx.given = False

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, class_weight, *gradients = ctx.saved_tensors
        placed, options, reduction, early = ctx.call
        asked = tuple(ctx.needs_input_grad[:3])
        nothing = (None,) * 6
        if torch.is_grad_enabled():  # somebody wants the second derivative
            again = _in_torch(target, class_weight, placed, options, reduction)
            return (*softmax.gradients(again, (hidden, weight, bias), asked, grad), *nothing)
        call = (hidden, weight, bias, target, class_weight, placed, options)
        if reduction == "none":
            gradients = _losses(*call, grad.contiguous(), asked)[1:]
        elif any(wanted and not made for wanted, made in zip(asked, early, strict=True)):
            scale = counted(grad.dtype, target, class_weight, options, reduction)
            gradients = _losses(*call, grad if scale is None else grad * scale, asked)[1:]
        elif functional(grad):
            gradients = [(g * grad).to(g.dtype) for g in gradients]
        else:
            if ctx.given:
                scale = counted(grad.dtype, target, class_weight, options, reduction)
                gradients = _losses(*call, scale, asked)[1:]
            ctx.given = True
            gradients = [g.data for g in gradients]  # with versions of their own
            if not is_one(grad):
                for g in gradients:
                    g.mul_(grad)
        return (*(g if wanted else None for g, wanted in zip(gradients, asked, strict=True)), *nothing)

    @staticmethod
    def jvp(ctx: Any, hidden_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: Any) -> Tensor:
        hidden, weight, bias, target, class_weight, *_gradients = ctx.saved_tensors
        call = _in_torch(target, class_weight, *ctx.call[:3])
        return softmax.tangent(call, (hidden, weight, bias), (hidden_t, weight_t, bias_t))


def _in_torch(
    target: Tensor, class_weight: Tensor | None, placed: Placed, options: Options, reduction: str
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The loss of hidden, weight and bias, with all the logits, from parts that differentiate to every order."""

    def call(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return in_torch(logits, target, class_weight, placed, options, reduction)

    return call
