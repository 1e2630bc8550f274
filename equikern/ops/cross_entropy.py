"""``orbit_cross_entropy``: the loss of the averaged prediction, without the averaged logits."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks
from ..core import rows as kernels
from ..core.functions import Differentiable, functional, needs_grad
from ..scalars import index, share
from ..views import accumulator
from ..views.maps import Placed
from . import softmax

__all__ = ["orbit_cross_entropy"]

Space = Literal["probs", "log_probs"]
Reduction = Literal["mean", "sum", "none"]


def orbit_cross_entropy(
    logits: Tensor,
    target: Tensor,
    action: Action,
    space: Space | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the views' mean prediction, its gradient made in the same pass.

    ``−log q[target]`` with the mean prediction q of ``orbit_mean(logits, action, space)``:

    ============= ==================================================================
    space         log q
    ============= ==================================================================
    None          log softmax(1/|G| Σ_g g⁻¹ logits[g])
    ``probs``     log(1/|G| Σ_g g⁻¹ softmax(logits[g])), without underflow
    ``log_probs`` 1/|G| Σ_g g⁻¹ log softmax(logits[g]), so the mean of the views' losses
    ============= ==================================================================

    Reads the logits once and, where they require grad, writes their gradient: no averaged logits, no probabilities in
    memory. ``backward`` hands the gradient over, multiplied by the upstream one if that is not 1.

    Args:
        logits: (|G|, \\*lead, V), any strides; float16, bfloat16, float32 or float64. The V classes or words are on
            the permuted dim, the last one under the trivial action.
        target: (\\*lead) int64, the right class of the untransformed input, 0 … V − 1 or ignore_index. On a GPU, where
            asking would stop the queue, a target outside makes its loss and gradient NaN.
        action: how the group acts on the logits: ``permutation(…)``, ``tokens(…).logits`` or ``trivial(group)``.
        space: what is averaged, see above.
        ignore_index: targets of this value give no loss and no gradient.
        reduction: ``"mean"`` over the targets that are not ignored (NaN if all are), ``"sum"``, or ``"none"``.
        label_smoothing: ε in ``(1 − ε) · loss + ε/V · Σ_v −log q[v]``, 0 … 1.

    Returns:
        The loss in float32 (float64 for float64 logits): one number, or (\\*lead) for ``"none"``.

    Raises:
        TypeError: logits that are no dense float tensor, target that is not int64, action that is not an action.
        ValueError: shapes that do not fit, a target outside 0 … V − 1, signs, an unknown space or reduction, smoothing
            outside 0 … 1.

    Example:
        >>> import torch
        >>> from equikern import orbit_mean, permutation
        >>> action = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
        >>> logits, target = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 3
        >>> plain = torch.nn.functional.cross_entropy(orbit_mean(logits, action), target)
        >>> torch.allclose(orbit_cross_entropy(logits, target, action), plain)
        True
    """
    rows, back = checks.logits("logits", logits, action)
    target = checks.targets("target", target, tuple(rows.shape[1:-1]), rows)
    options = checked(space, ignore_index, reduction, label_smoothing)
    placed = back.placed(rows)
    if needs_grad(rows):
        return cast(Tensor, _CrossEntropy.call(rows, target, placed, options, reduction))
    loss, _ = kernels.cross_entropy(rows, target, *placed, *options, None, False)
    return reduced(loss, reduction, counted(loss.dtype, target, options[1], reduction))


def checked(space: str | None, ignore_index: object, reduction: str, smoothing: object) -> tuple[str, int, float]:
    """The keywords of both cross-entropies, and those among them that kernels take."""
    checks.choice("space", space, ("probs", "log_probs", None))
    checks.choice("reduction", reduction, ("mean", "sum", "none"))
    ignored = index("ignore_index", ignore_index)
    if not -(2**63) <= ignored < 2**63:
        raise ValueError(f"ignore_index: expected a number of int64, got {ignored}")
    # No smoothing is a case of its own for the compiler, too, which otherwise takes it for a float that may change.
    return space or "logits", ignored, share("label_smoothing", smoothing) or 0.0


def counted(dtype: torch.dtype, target: Tensor, ignore_index: int, reduction: str) -> Tensor | None:
    """What each row's gradient is multiplied by: one over the number of targets that count; None for 1."""
    return (target != ignore_index).sum().to(dtype).reciprocal() if reduction == "mean" else None


def is_one(grad: Tensor) -> bool:
    """Whether an upstream gradient is known to be 1, as where backward starts; asking a GPU would stop its queue."""
    return grad.is_cpu and grad.dim() == 0 and grad.item() == 1.0


def reduced(loss: Tensor, reduction: str, scale: Tensor | None) -> Tensor:
    """The rows' losses as the caller wants them; ``scale`` is that of ``counted``."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if scale is None else total * scale


def in_torch(y: Tensor, target: Tensor, placed: Placed, options: tuple[str, int, float], reduction: str) -> Tensor:
    """The same loss from parts that differentiate to every order: what second derivatives go through."""
    space, ignore_index, smoothing = options
    if space == "logits":
        log_q = softmax.mean_in_torch(y, placed, None).log_softmax(-1)
    elif space == "log_probs":
        log_q = softmax.mean_in_torch(y, placed, space)
    else:
        log_p = autograd.each_by(y.to(accumulator(y)).log_softmax(-1), 0, placed)
        top = log_p.detach().amax(0)
        nowhere = top == -torch.inf  # no view gives it a probability: log q is −∞ and has no gradient
        sums = (log_p - top.masked_fill(nowhere, 0.0)).exp().sum(0)
        log_q = sums.masked_fill(nowhere, 1.0).log() + top - math.log(y.shape[0])
    kept = target != ignore_index
    loss = -log_q.gather(-1, target.where(kept, 0).unsqueeze(-1)).squeeze(-1)
    if smoothing:
        loss = (1.0 - smoothing) * loss - smoothing * log_q.mean(-1)
    loss = torch.where(kept, loss, 0.0)
    return reduced(loss, reduction, counted(loss.dtype, target, ignore_index, reduction))


class _CrossEntropy(
    Differentiable,
    schema="cross_entropy(Tensor y, Tensor target, str views, Tensor? table, str space, "
    "int ignore_index, float smoothing, str reduction) -> (Tensor, Tensor)",
    tuples={2: 2, 3: 3},
):
    hidden = 1

    @staticmethod
    def forward(
        y: Tensor, target: Tensor, placed: Placed, options: tuple[str, int, float], reduction: str
    ) -> tuple[Tensor, Tensor]:
        scale = counted(accumulator(y), target, options[1], reduction)
        loss, gradient = kernels.cross_entropy(y, target, *placed, *options, scale, True)
        return reduced(loss, reduction, scale), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        y, target, *ctx.call = inputs
        _, gradient = output
        ctx.mark_non_differentiable(gradient)
        # Saved as autograd saves, so that checkpoints and offloading know of it. The first backward gives it away and
        # may scale it in place before; a second one makes it anew.
        ctx.save_for_backward(y, target, gradient)
        ctx.given = False

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, target, gradient = ctx.saved_tensors
        placed, options, reduction = ctx.call
        nothing = (None,) * 4
        if torch.is_grad_enabled():  # somebody wants the second derivative

            def call(t: Tensor) -> Tensor:
                return in_torch(t, target, placed, options, reduction)

            return (*softmax.gradients(call, (y,), (True,), grad), *nothing)
        factor = grad.unsqueeze(-1) if reduction == "none" else grad
        if functional(gradient):
            return ((gradient * factor).to(y.dtype), *nothing)
        if ctx.given:
            scale = counted(grad.dtype, target, options[1], reduction)
            _, gradient = kernels.cross_entropy(y, target, *placed, *options, scale, True)
        ctx.given = True
        gradient = gradient.data  # with a version of its own: changed here, and not saved for anybody else
        if not is_one(grad):
            gradient.mul_(factor)
        return (gradient, *nothing)

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        y, target, _gradient = ctx.saved_tensors
        return softmax.tangent(lambda t: in_torch(t, target, *ctx.call), (y,), (y_t,))
