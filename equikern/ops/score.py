"""``orbit_score``: what equizero chooses a view by, from the logits alone."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from ..core import checks
from ..core import rows as kernels
from ..core.functions import Differentiable, needs_grad
from ..views import accumulator

__all__ = ["orbit_score"]

KINDS = ("max_prob", "entropy", "margin", "max")
Kind: TypeAlias = Literal["max_prob", "entropy", "margin", "max"]


def orbit_score(logits: Tensor, kind: Kind, *, dim: int = -1) -> Tensor:
    """How unsure a model is of each row of logits, as losses: ``orbit_select`` takes the view with the smallest.

    With p the softmax of a row y, in one pass over it:

    ======== ====================================== ==========================================
    kind     loss                                   smallest where
    ======== ====================================== ==========================================
    max_prob −log max_v p_v                         the largest probability is largest
    entropy  −Σ_v p_v log p_v                       the distribution is narrowest
    margin   −log(p_1st − p_2nd), p_2nd 0 if alone  the first is furthest ahead of the second
    max      −max_v y_v                             the largest logit, or similarity, is largest
    ======== ====================================== ==========================================

    Probabilities near 1 are told apart, too: the first is log1p(Σ exp(y_v − y_1st)) over the other v. Two equal largest
    logits have the margin's loss ∞.

    For a sequence, average over its positions (padding left out) before choosing; of max_prob and margin the mean of
    ``-expm1(-loss)``, which is 1 − p, since one tie would make that of the logarithms infinite.

    Where every row is chosen by its own score, ``orbit_select`` takes the kind in place of scores and does both in one
    pass.

    Args:
        logits: (|G|, \\*lead, n) or any other shape with n ≥ 1 logits on ``dim``; float16, bfloat16, float32 or
            float64.
        kind: one of the names above.
        dim: the dim of the classes or words.

    Returns:
        (|G|, \\*lead) in float32 (float64 for float64), differentiable. Among equal largest logits the gradient goes
        to the first.

    Raises:
        TypeError: logits is not a dense float tensor.
        ValueError: an unknown kind, no such dim, or no logits on it.

    Example:
        >>> import torch
        >>> from equikern import grid, orbit_select, trivial
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> orbit_select(logits, orbit_score(logits, "entropy"), trivial(grid("hflip").group)).tolist()
        [3.0, 0.0]
    """
    rows = checks.rows("logits", logits, dim)
    checks.choice("kind", kind, KINDS)
    if needs_grad(rows):
        return cast(Tensor, _Score.call(rows, kind))
    return cast(Tensor, kernels.score(rows, kind))


class _Score(Differentiable, schema="score(Tensor logits, str kind) -> Tensor", tuples={}):
    @staticmethod
    def forward(logits: Tensor, kind: str) -> Tensor:
        return cast(Tensor, kernels.score(logits, kind))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        logits, ctx.kind = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        return (grad.unsqueeze(-1) * _slope(logits, ctx.kind)).to(logits.dtype), None

    @staticmethod
    def jvp(ctx: Any, logits_t: Tensor, _: None) -> Tensor:
        (logits,) = ctx.saved_tensors
        return (logits_t * _slope(logits, ctx.kind)).sum(-1)


def _slope(logits: Tensor, kind: str) -> Tensor:
    """∂ score/∂ logits, in the accumulator's dtype."""
    wide = logits.to(accumulator(logits))
    if kind == "max":
        return -torch.zeros_like(wide).scatter(-1, _first_largest(logits), 1.0)
    log_p = wide.log_softmax(-1)
    p = log_p.exp()
    if kind == "entropy":  # ∂/∂y_v = −p_v (log p_v + entropy)
        terms = (p * log_p).masked_fill(p == 0, 0.0)
        return p * terms.sum(-1, keepdim=True) - terms
    # ∂(−log p_i)/∂y_v = p_v − δ_iv, of i itself −Σ of the others
    first = _first_largest(wide)
    others = p.scatter(-1, first, 0.0)
    own = -others.sum(-1, keepdim=True)
    if kind == "margin" and wide.shape[-1] > 1:  # and −log(1 − exp(y_j − y_i))
        below = wide.scatter(-1, first, -torch.inf)
        after = _first_largest(below)
        pull = 1 / torch.expm1(wide.gather(-1, first) - below.gather(-1, after))
        own, others = own - pull, others.scatter(-1, after, others.gather(-1, after) + pull)
    return others.scatter(-1, first, own)


def _first_largest(rows: Tensor) -> Tensor:
    """Where each row is largest, the first of equal entries; not by argmax, which DTensors of torch 2.8 have not."""
    return rows.max(-1, keepdim=True).indices
