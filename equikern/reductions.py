"""Every reduction over the views of an element, described once: what it needs, how values join, and its gradient.

The kernels know reductions by name: C++ exports its numbers (``_C.OPS``), Triton's are in ``arithmetic.py``. The C++
and the Triton kernels stream: views are prepared and combined one after another, but for those that look at all values
at once (``ordered``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["LOGODD_EPS", "REDUCTIONS", "Reduction", "best_view", "of_std", "plain", "plain_gradient"]

LOGODD_EPS = 1e-6

Spread = Callable[[Tensor], Tensor]
# y and the result in the accumulator's dtype, the upstream gradient, what spreads a tensor over the views, and what
# adds views up and scales the sum → the gradient of y.
Total = Callable[[Tensor, float], Tensor]
Gradient = Callable[[Tensor, Tensor, Tensor, Spread, Total], Tensor]


@dataclass(frozen=True)
class Reduction:
    """One way of merging |G| values v_g into one.

    Attributes:
        formula: what documentation says.
        combine: how values join: ``sum`` and ``mean`` of what prepare gives, ``max``, ``min``, ``moments`` (the mean
            and the squares around it), or ``ordered``: all values at once.
        prepare, finish: what is done to every value before, and to what they joined to behind; None for nothing.
        gradient: ∂L/∂y of a differentiable one, from its result; or
        shares: ∂ result/∂ v_g, from the values: for those whose result does not tell.
        results: how many tensors it gives.
        integers: whether it is one of whole numbers rather than of floats.
    """

    formula: str
    combine: Literal["sum", "mean", "max", "min", "moments", "median", "vote"]
    prepare: Callable[[Tensor], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    gradient: Gradient | None = None
    shares: Callable[[Tensor], Tensor] | None = None
    results: int = 1
    integers: bool = False

    @property
    def streams(self) -> bool:
        """Whether parts of the views can be merged as they come, in any number of parts."""
        return self.combine in ("sum", "mean", "max", "min")

    @property
    def fused(self) -> bool:
        """Whether the gradient is one kernel's: it finds the result again from the values, and what each gets."""
        plain = self.prepare is None and (self.finish is None or self.combine == "moments")
        return plain and self.combine in ("max", "min", "moments")


def _logit(v: Tensor) -> Tensor:
    return torch.logit(v, eps=LOGODD_EPS)


def _of_extremum(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    hit = (y == spread(result).detach()).to(y.dtype)
    return hit * spread(grad / total(hit, 1.0))  # NaN where the result is NaN, of which no view is a hit


def _of_gmean(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    return spread(grad * result / y.shape[0]) / y


def _of_hmean(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    return spread(grad * result.square() / y.shape[0]) / y.square()


def _of_tsharpen(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    return spread(grad * (0.5 / y.shape[0])) / y.sqrt()


def _of_log1p(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    return spread(grad * (1 + result) / y.shape[0]) / (1 + y)


def _of_logodd(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    inside = (y >= LOGODD_EPS) & (y <= 1 - LOGODD_EPS)
    p = torch.where(inside, y, torch.full_like(y, 0.5))
    # sigmoid' at the mean logit, from the float32 logits rather than the rounded result
    mean = total(_logit(y), 1.0 / y.shape[0])
    slope = torch.sigmoid(mean) * torch.sigmoid(-mean)
    return torch.where(inside, spread(grad * slope / y.shape[0]) / (p * (1 - p)), torch.zeros_like(y))


def _middle(v: Tensor) -> tuple[Tensor, Tensor]:
    """The two middle values over the first dim, the same one twice for an odd number; NaN where any is."""
    nan, half = v.isnan().any(0), v.shape[0] // 2
    lower = v.topk(half + 1, 0, largest=False).values  # DTensors of torch 2.8 have no rule for sort
    high, low = lower.amax(0), lower.narrow(0, 0, half + v.shape[0] % 2).amax(0)
    return low.masked_fill(nan, torch.nan), high.masked_fill(nan, torch.nan)


def _median_shares(v: Tensor) -> Tensor:
    """Half of the gradient to each of the two middle values, shared by all views that have it."""
    shares = torch.zeros_like(v)
    for value in _middle(v):
        hit = (v == value).to(v.dtype)
        shares = shares + 0.5 * hit / hit.sum(0)  # NaN where the median is
    return shares


def of_std(y: Tensor, result: Tensor, grad: Tensor, spread: Spread, total: Total) -> Tensor:
    """``∂/∂y[g]`` of the population std: ``(y[g] − g·mean) / (|G| g·std)``, zero where std is zero."""
    order = y.shape[0]
    centred = y
    for _ in range(2):  # the second time takes away how the mean was rounded, which counts where views nearly agree
        centred = centred - spread(total(centred, 1.0 / order))
    # |G|² times the variance, from the centred values, in wide precision and differentiable once more.
    square = total(centred * centred, float(order))
    flat = square <= 0
    factor = (grad / square.masked_fill(flat, 1.0).sqrt()).masked_fill(flat, 0.0)
    return centred * spread(factor)


REDUCTIONS: dict[str, Reduction] = {
    "sum": Reduction("Σ_g v_g", "sum"),
    "max": Reduction("largest; NaN if any view is NaN", "max", gradient=_of_extremum),
    "min": Reduction("smallest; NaN if any view is NaN", "min", gradient=_of_extremum),
    "gmean": Reduction("(Π_g v_g)^(1/|G|), values ≥ 0", "mean", torch.log, torch.exp, _of_gmean),
    "hmean": Reduction("|G| / Σ_g 1/v_g", "mean", torch.reciprocal, torch.reciprocal, _of_hmean),
    "tsharpen": Reduction("1/|G| Σ_g √v_g, values ≥ 0", "mean", torch.sqrt, None, _of_tsharpen),
    "logodd": Reduction("sigmoid of the mean logit, values clamped", "mean", _logit, torch.sigmoid, _of_logodd),
    "log1p": Reduction("expm1 of the mean of log1p(v_g), values > −1", "mean", torch.log1p, torch.expm1, _of_log1p),
    "std": Reduction("(1/|G| Σ_g (v_g − mean)²)^½", "moments", gradient=of_std),
    "mean_std": Reduction("the pair (mean, std)", "moments", results=2),
    "median": Reduction("the middle value, or the mean of the two middle ones", "median", shares=_median_shares),
    "vote": Reduction("the most frequent of whole numbers, the smallest of several", "vote", integers=True),
}


def plain(op: str, v: Tensor) -> tuple[Tensor, ...]:
    """A reduction over the first dim in plain torch, in v's dtype: what the kernels are compared with.

    Example:
        >>> plain("median", torch.tensor([[1.0], [5.0], [2.0], [9.0]]))[0].tolist()
        [3.5]
        >>> plain("vote", torch.tensor([[3], [7], [7], [3]]))[0].tolist()
        [3]
    """
    reduction = REDUCTIONS[op]
    if reduction.combine == "moments":
        spread = v.std(0, correction=0)
        return (v.mean(0), spread) if reduction.results == 2 else (spread,)
    v = v if reduction.prepare is None else reduction.prepare(v)
    joined = _COMBINED[reduction.combine](v)
    return (joined if reduction.finish is None else reduction.finish(joined),)


def plain_gradient(op: str, v: Tensor, grad: Tensor, grad_spread: Tensor | None = None) -> Tensor:
    """The gradient of ``plain`` in v from that of its result, and of the second one of a pair.

    Example:
        >>> plain_gradient("max", torch.tensor([[1.0], [5.0], [5.0], [2.0]]), torch.tensor([6.0])).T.tolist()
        [[0.0, 3.0, 3.0, 0.0]]
    """
    reduction, order = REDUCTIONS[op], v.shape[0]

    def spread(t: Tensor) -> Tensor:
        return t

    def total(t: Tensor, scale: float) -> Tensor:
        return t.sum(0) * scale

    if grad_spread is not None:
        return grad / order + of_std(v, v, grad_spread, spread, total)
    if reduction.shares is not None:
        return reduction.shares(v) * grad
    assert reduction.gradient is not None
    return reduction.gradient(v, plain(op, v)[0], grad, spread, total)


def best_view(scores: Tensor, minimum: bool) -> Tensor:
    """Index of the smallest (largest) score over dim 0; NaN never wins, all NaN gives 0, ties the lowest index."""
    key = scores if minimum else -scores
    best = torch.zeros(scores.shape[1:], dtype=torch.int64, device=scores.device)
    least = key[0]
    for g in range(1, scores.shape[0]):
        better = (key[g] < least) | (least.isnan() & ~key[g].isnan())
        best = torch.where(better, g, best)
        least = torch.where(better, key[g], least)
    return best


def _median(v: Tensor) -> Tensor:
    low, high = _middle(v)
    return low if v.shape[0] % 2 else 0.5 * low + 0.5 * high


def _vote(v: Tensor) -> Tensor:
    ordered = v.sort(0).values
    count = torch.stack([(ordered == value).sum(0) for value in ordered.unbind(0)])
    most, place = count.amax(0), torch.zeros_like(ordered.select(0, 0), dtype=torch.int64)
    for k in reversed(range(v.shape[0])):
        place = place.masked_fill(count.select(0, k) == most, k)
    return ordered.gather(0, place.unsqueeze(0)).squeeze(0)


_COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda v: v.sum(0),
    "mean": lambda v: v.mean(0),
    "max": lambda v: v.amax(0),
    "min": lambda v: v.amin(0),
    "median": _median,
    "vote": _vote,
}
