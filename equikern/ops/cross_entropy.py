"""``orbit_cross_entropy``: the loss of the averaged prediction, without the averaged logits."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from ..actions import Action
from ..backends import plain
from ..core import autograd, checks
from ..core import rows as kernels
from ..core.functions import Differentiable, functional, needs_grad
from ..scalars import amount, index, share
from ..views import accumulator
from ..views.maps import Placed
from . import softmax

__all__ = ["orbit_cross_entropy"]

Space = Literal["probs", "log_probs"]
Reduction = Literal["mean", "sum", "none"]
Options: TypeAlias = tuple[str, int, float, float, float]  # space, ignore_index, smoothing, z_loss, softcap or 0


def orbit_cross_entropy(
    logits: Tensor,
    target: Tensor,
    action: Action,
    space: Space | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
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

    With class weights w, smoothing ε and a coefficient z, the loss of target t is

        ``(1 − ε) · w[t] · (−log q[t]) + ε/V · Σ_v w[v] · (−log q[v]) + z · w[t] · Z²``

    where Z, for None, is the log of the sum of the averaged logits' exponentials, and Z² the mean of the views' own
    squares for ``probs`` and ``log_probs``. ``"mean"`` divides the sum by Σ w[t] over the targets that count. So
    w and ε are those of ``torch.nn.functional.cross_entropy``, and z is PaLM's. Other libraries know of no z term with
    class weights: Liger-Kernel leaves z · Z² unweighed and averages it over the targets' number, Cut Cross-Entropy has
    no weights.

    Reads the logits once and, where they require grad, writes their gradient: no averaged logits, no probabilities in
    memory. ``backward`` hands the gradient over, multiplied by the upstream one if that is not 1. On a GPU softcap
    takes passes of its own and memory like the logits in float32 during the forward, and class weights together with
    smoothing are computed in plain torch, several times as slowly and with a dozen such tensors.

    Args:
        logits: (|G|, \\*lead, V), any strides; float16, bfloat16, float32 or float64. The V classes or words are on
            the permuted dim, the last one under the trivial action.
        target: (\\*lead) int64, the right class of the untransformed input, 0 … V − 1 or ignore_index. On a GPU, where
            asking would stop the queue, a target outside makes its loss and gradient NaN.
        action: how the group acts on the logits: ``permutation(…)``, ``tokens(…).logits`` or ``trivial(group)``.
        space: what is averaged, see above.
        ignore_index: targets of this value give no loss and no gradient.
        reduction: ``"mean"`` over the targets that are not ignored (NaN if all are), ``"sum"``, or ``"none"``.
        label_smoothing: ε, 0 … 1.
        weight: (V,), the weights of the classes of the untransformed input, finite and not negative (looked at on CPUs
            alone), constants; None for ones.
        z_loss: z, 0 or more.
        softcap: c > 0: every view's logits are ``c · tanh(logits / c)``, rounded to their dtype, before anything else,
            as in Gemma 2; a logit of −∞ is −c then. None for none.

    Returns:
        The loss in float32 (float64 for float64 logits): one number, or (\\*lead) for ``"none"``.

    Raises:
        TypeError: logits that are no dense float tensor, target that is not int64, action that is not an action.
        ValueError: shapes or devices that do not fit, no logits, a target outside 0 … V − 1, signs, an unknown space or
            reduction, smoothing outside 0 … 1, weights that are negative, not finite in the loss's dtype, require grad
            or have a tangent, a negative z_loss, a softcap that is not above 0, either beyond that dtype.

    Example:
        >>> import torch
        >>> from equikern import orbit_mean, permutation
        >>> action = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
        >>> logits, target = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 3
        >>> plain = torch.nn.functional.cross_entropy(orbit_mean(logits, action), target)
        >>> torch.allclose(orbit_cross_entropy(logits, target, action), plain)
        True
    """
    rows, back = checks.logits_of_loss("logits", logits, action)
    target = checks.targets("target", target, tuple(rows.shape[1:-1]), rows)
    options = checked(space, ignore_index, reduction, label_smoothing, z_loss, softcap, rows)
    if weight is not None:
        weight = checks.class_weights("weight", weight, rows.shape[-1], rows)
    placed = back.placed(rows)
    if needs_grad(rows):
        return cast(Tensor, _CrossEntropy.call(rows, target, weight, placed, options, reduction))
    loss, _ = _losses(rows, target, weight, placed, options, None, False)
    return reduced(loss, reduction, counted(loss.dtype, target, weight, options, reduction))


def checked(
    space: str | None,
    ignore_index: object,
    reduction: str,
    smoothing: object,
    z_loss: object,
    softcap: object,
    like: Tensor,
) -> Options:
    """The keywords of both cross-entropies of logits like some, and those among them that the operators take."""
    checks.choice("space", space, ("probs", "log_probs", None))
    checks.choice("reduction", reduction, ("mean", "sum", "none"))
    ignored = index("ignore_index", ignore_index)
    if not -(2**63) <= ignored < 2**63:
        raise ValueError(f"ignore_index: expected a number of int64, got {ignored}")
    # What is 0 is a case of its own for the compiler, too, which otherwise takes it for a float that may change.
    smoothed = share("label_smoothing", smoothing) or 0.0
    cap = 0.0 if softcap is None else amount("softcap", softcap, False)
    penalty = amount("z_loss", z_loss, True) or 0.0
    wide = accumulator(like)
    for name, number in (("softcap", cap), ("z_loss", penalty)):
        if number > torch.finfo(wide).max or 0.0 < number < torch.finfo(wide).tiny:
            low, high = torch.finfo(wide).tiny, torch.finfo(wide).max
            none = "0 or " if name == "z_loss" else ""
            raise ValueError(f"{name}: expected {none}a number from {low:.2g} to {high:.2g}, got {number}")
    return space or "logits", ignored, smoothed, penalty, cap


def _losses(
    y: Tensor,
    target: Tensor,
    weight: Tensor | None,
    placed: Placed,
    options: Options,
    scale: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The rows' losses and the gradient of Σ scale · loss, of the operator that takes no more than is asked for."""
    space, ignored, smoothing, z_loss, softcap = options
    found: tuple[Tensor, Tensor]
    if weight is None and not z_loss and not softcap:
        found = kernels.cross_entropy(y, target, *placed, space, ignored, smoothing, scale, gradient)
    else:
        call = (*placed, space, ignored, smoothing, scale, gradient, z_loss, softcap, weight)
        found = kernels.weighed_cross_entropy(y, target, *call)
    return found


def counted(
    dtype: torch.dtype, target: Tensor, weight: Tensor | None, options: Options, reduction: str
) -> Tensor | None:
    """What each row's gradient is multiplied by: one over the targets that count, by their weights; None for 1."""
    if reduction != "mean":
        return None
    if weight is not None:
        return plain.weights_of(target, weight, options[1]).sum().to(dtype).reciprocal()
    return (target != options[1]).sum().to(dtype).reciprocal()


def is_one(grad: Tensor) -> bool:
    """Whether an upstream gradient is known to be 1, as where backward starts; asking a GPU would stop its queue."""
    return grad.is_cpu and grad.dim() == 0 and grad.item() == 1.0


def reduced(loss: Tensor, reduction: str, scale: Tensor | None) -> Tensor:
    """The rows' losses as the caller wants them; ``scale`` is that of ``counted``."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if scale is None else total * scale


def in_torch(
    y: Tensor, target: Tensor, weight: Tensor | None, placed: Placed, options: Options, reduction: str
) -> Tensor:
    """The same loss from parts that differentiate to every order: what second derivatives go through."""
    space, ignore_index, smoothing, z_loss, softcap = options
    if softcap:
        y = (y.to(accumulator(y)) / softcap).tanh() * softcap
    if space == "logits":
        merged = softmax.mean_in_torch(y, placed, None)
        log_q = merged.log_softmax(-1)
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
    row = None if weight is None else plain.weights_of(target, weight, ignore_index)
    if row is not None:
        loss = loss * row
    if smoothing:
        loss = (1.0 - smoothing) * loss - smoothing * (log_q if weight is None else log_q * weight).mean(-1)
    if z_loss:
        lse = (merged if space == "logits" else y.to(accumulator(y))).logsumexp(-1)
        penalty = z_loss * (lse.square() if space == "logits" else lse.square().mean(0))
        loss = loss + (penalty if row is None else penalty * row)
    loss = torch.where(kept, loss, 0.0)
    return reduced(loss, reduction, counted(loss.dtype, target, weight, options, reduction))


class _CrossEntropy(
    Differentiable,
    schema="cross_entropy(Tensor y, Tensor target, Tensor? weight, str views, Tensor? table, str space, "
    "int ignore_index, float smoothing, float z_loss, float softcap, str reduction) -> (Tensor, Tensor)",
    tuples={3: 2, 4: 5},
):
    hidden = 1

    @staticmethod
    def forward(
        y: Tensor, target: Tensor, weight: Tensor | None, placed: Placed, options: Options, reduction: str
    ) -> tuple[Tensor, Tensor]:
        scale = counted(accumulator(y), target, weight, options, reduction)
        loss, gradient = _losses(y, target, weight, placed, options, scale, True)
        return reduced(loss, reduction, scale), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        y, target, weight, *ctx.call = inputs
        _, gradient = output
        ctx.mark_non_differentiable(gradient)
        # Saved as autograd saves, so that checkpoints and offloading know of it. The first backward gives it away and
        # may scale it in place before; a second one makes it anew.
        ctx.save_for_backward(y, target, weight, gradient)
        ctx.given = False

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, target, weight, gradient = ctx.saved_tensors
        placed, options, reduction = ctx.call
        nothing = (None,) * 5
        if torch.is_grad_enabled():  # somebody wants the second derivative

            def call(t: Tensor) -> Tensor:
                return in_torch(t, target, weight, placed, options, reduction)

            return (*softmax.gradients(call, (y,), (True,), grad), *nothing)
        factor = grad.unsqueeze(-1) if reduction == "none" else grad
        if functional(gradient):
            return ((gradient * factor).to(y.dtype), *nothing)
        if ctx.given:
            scale = counted(grad.dtype, target, weight, options, reduction)
            gradient = _losses(y, target, weight, placed, options, scale, True)[1]
        ctx.given = True
        gradient = gradient.data  # with a version of its own: changed here, and not saved for anybody else
        if not is_one(grad):
            gradient.mul_(factor)
        return (gradient, *nothing)

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> Tensor:
        y, target, weight, _gradient = ctx.saved_tensors
        return softmax.tangent(lambda t: in_torch(t, target, weight, *ctx.call), (y,), (y_t,))
