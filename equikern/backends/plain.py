"""What the kernels compute, as functions in plain torch that write nothing in place.

The reference backend copies their results to where they are wanted; ``core/decompositions.py`` makes programs of them.

Shapes: x is (*lead, H, W), y is (|G|, *lead, H, W); weights, scores and dots are (|G|, *lead[:k−1]) and index is
lead[:m], each broadcasting over what follows. Where views permute a dim, that dim stands for H and W; where they are
matrices, the last dim does, in the accumulator's dtype; where they are fields, the channels and the grid behind them
do; where they map token ids, nothing does. The functions with a softmax take logits (|G|, *lead, V) and views that
permute the last dim or nothing. Results that are computed are in the accumulator's dtype, for the caller to round once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import reductions
from ..views import Views, accumulator, of, transposed
from .base import Maybe


def mapped(y: Tensor, views: Views, table: Maybe) -> Tensor:
    """``map_g(y_g)`` for every g."""
    return torch.stack([views.kind.apply(y[g], views, table, g) for g in range(views.order)])


def _broadcast(t: Tensor, dim: int) -> Tensor:
    return t.reshape(t.shape + (1,) * (dim - t.dim()))


def view(
    x: Tensor, views: Views, table: Maybe, g: int, scale: float = 1.0, weights: Maybe = None, index: Maybe = None
) -> Tensor:
    """One view of an orbit; see ``Backend.orbit``."""
    exact = scale == 1.0 and weights is None and not views.kind.computes
    found = views.kind.apply(x if exact else x.to(accumulator(x)), views, table, g)
    if not exact:
        found = found * scale
        if weights is not None:
            found = found * _broadcast(weights[g], found.dim())
    if index is not None:
        found = torch.where(_broadcast(index == g, found.dim()), found, found.new_zeros(()))
    return found


def orbit(
    x: Tensor, views: Views, table: Maybe, scale: float = 1.0, weights: Maybe = None, index: Maybe = None
) -> Tensor:
    """Every view; see ``Backend.orbit``."""
    return torch.stack([view(x, views, table, g, scale, weights, index) for g in range(views.order)])


def reduce(
    y: Tensor, views: Views, table: Maybe, op: str, scale: float = 1.0, weights: Maybe = None, plus: Maybe = None
) -> tuple[Tensor, ...]:
    """The results of a reduction, two of "mean_std"; see ``Backend.reduce``.

    "weighted_mean" is "sum" with each weight divided by the weights' sum over g; ``plus``, a tensor like one y[g], is
    added to each of them in a sum without weights.
    """
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    wide = y if op == "vote" else y.to(accumulator(y))
    v = mapped(wide if plus is None else wide + plus, views, table)
    if op == "sum":
        return ((v if weights is None else v * _broadcast(weights, v.dim())).sum(0) * scale,)
    return reductions.plain(op, v)


def orbit_dot(x: Tensor, y: Tensor, views: Views, table: Maybe, weights: Maybe, dims: int) -> tuple[Tensor, Tensor]:
    """A weighted mean's two gradients, the second of so many dims; see ``Backend.orbit_dot``."""
    v = orbit(x.to(accumulator(y)), views, table)
    product = v * y
    dots = product.flatten(dims).sum(-1) if product.dim() > dims else product
    return v if weights is None else v * _broadcast(weights, v.dim()), dots


def reduce_backward(grad: Tensor, grad_spread: Maybe, y: Tensor, views: Views, table: Maybe, op: str) -> Tensor:
    """What each value gets of the gradient, back where it came from; see ``Backend.reduce_backward``."""
    wide = accumulator(y)
    v = mapped(y.to(wide), views, table)
    shares = reductions.plain_gradient(op, v, grad.to(wide), None if grad_spread is None else grad_spread.to(wide))
    return mapped(shares, of(transposed(views.code)), table)


def _around_mean(y: Tensor, views: Views, table: Maybe) -> Tensor:
    """``map_g(y_g) − mean``: around one of them first, so that no digit of what nearly agrees is lost to the mean."""
    v = mapped(y.to(accumulator(y)), views, table)
    v = v - v[:1]
    return v - v.mean(0)


def variance(y: Tensor, views: Views, table: Maybe, dims: int) -> Tensor:
    """The views' variance, averaged over all but the first dims; see ``Backend.variance``."""
    squares = _around_mean(y, views, table).square().mean(0)
    return squares.flatten(dims).mean(-1) if squares.dim() > dims else squares


def variance_backward(factors: Tensor, y: Tensor, views: Views, table: Maybe) -> Tensor:
    """Deviations times factors where the views are; see ``Backend.variance_backward``."""
    each = _broadcast(factors, y.dim() - 1)
    return mapped(_around_mean(y, views, table) * each, of(transposed(views.code)), table)


def coarse(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rowsᵀ · x · columns`` of every plane, a few planes at a time; see ``Backend.coarse``."""
    planes = x.reshape(-1, *x.shape[-2:])
    parts = [rows.mT @ part.to(rows.dtype) @ columns for part in torch.split(planes, 16)]
    return torch.cat(parts).view(*x.shape[:-2], rows.shape[1], columns.shape[1])


def chosen(v: Tensor, index: Tensor) -> Tensor:
    """``v[index]`` for an index of v's first dims behind the group axis."""
    places = _broadcast(index, v.dim() - 1).unsqueeze(0).clamp(0, v.shape[0] - 1)
    return v.gather(0, places.expand(1, *v.shape[1:])).squeeze(0)


def softmax_mean(y: Tensor, views: Views, table: Maybe, space: str) -> tuple[Tensor, Tensor]:
    """The mean and the logarithm of the sum of exponentials of each row; see ``Backend.softmax_mean``."""
    wide = y.to(accumulator(y))
    # From the differences to the row's largest logit: y − lse would round what is close to it by its whole size.
    p = wide.softmax(-1) if space == "probs" else wide.log_softmax(-1)
    return mapped(p, views, table).mean(0), wide.logsumexp(-1)


def softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> Tensor:
    """``∂L/∂y`` for grad = ∂L/∂ the result; see ``Backend.softmax_mean_backward``."""
    wide, order = accumulator(y), y.shape[0]
    log_p = y.to(wide) - lse.unsqueeze(-1)
    upstream = grad.to(wide).expand(order, *grad.shape)
    back = mapped(upstream, of(transposed(views.code)), table)
    if space == "probs":
        p = log_p.exp()
        return p * (back - (p * back).sum(-1, keepdim=True)) / order
    return (back - log_p.exp() * grad.to(wide).sum(-1, keepdim=True)) / order


def score(logits: Tensor, kind: str) -> Tensor:
    """How unsure a model is of each row; see ``Backend.score``."""
    if kind == "max":
        return (-logits.amax(-1)).to(accumulator(logits))
    y = logits.to(accumulator(logits))
    top, first = y.max(-1, keepdim=True)
    below = y - top
    others = below.exp().scatter(-1, first, 0.0).sum(-1)  # without the largest, in which a small rest is lost
    unsure = torch.log1p(others + (top - top).squeeze(-1))  # NaN where all are −∞
    if kind == "entropy":
        return unsure - (below * below.exp()).masked_fill(below == -math.inf, 0.0).sum(-1) / (1 + others)
    if kind == "margin":
        gap = below.scatter(-1, first, -math.inf).amax(-1)
        # p_2nd / p_1st in logarithm, of which both ends keep their digits.
        unsure = unsure - torch.where(gap < -1, torch.log1p(-gap.exp()), torch.log(-torch.expm1(gap)))
    return unsure


def capped(y: Tensor, softcap: float) -> Tensor:
    """``c · tanh(y / c)``, rounded to y's dtype."""
    return ((y.to(accumulator(y)) / softcap).tanh() * softcap).to(y.dtype)


def cap_slope(y: Tensor, softcap: float) -> Tensor:
    """The derivative of ``capped``: 1 − tanh² = 1/cosh², which keeps its digits where tanh is close to 1."""
    return (y.to(accumulator(y)) / softcap).cosh().reciprocal().square()


def weights_of(target: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """Each target's class weight, 0 where it is ignored; one outside is for the kernels to refuse."""
    return torch.where(target == ignore_index, 0.0, weight[target.clamp(0, weight.shape[0] - 1)])


def cross_entropy(
    y: Tensor,
    target: Tensor,
    views: Views,
    table: Maybe,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Maybe,
    gradient: bool,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    weight: Maybe = None,
) -> tuple[Tensor, Maybe]:
    """The rows' losses and, if asked for, their gradient; see ``Backend.cross_entropy``.

    A target outside 0 … V − 1 is an index that is none.
    """
    order, size = y.shape[0], y.shape[-1]
    kept = target != ignore_index
    t = torch.where((target < 0) & kept, size, target.where(kept, 0)).unsqueeze(-1)
    v = mapped(capped(y, softcap) if softcap else y, views, table).to(accumulator(y))
    if space == "logits":
        log_q = v.mean(0).log_softmax(-1)
    elif space == "log_probs":
        log_q = v.log_softmax(-1).mean(0)
    else:
        log_q = v.log_softmax(-1).logsumexp(0) - math.log(order)
    wanted = torch.zeros_like(log_q).scatter(-1, t, 1.0 - smoothing) + smoothing / size
    row: Tensor | float = 1.0 if weight is None else weight[t]
    total: Tensor | float = 1.0  # Σ_v wanted[v]
    if weight is not None:
        wanted = wanted * weight
        total = wanted.sum(-1, keepdim=True)
    found = -(wanted * log_q).sum(-1, keepdim=True) if smoothing else -log_q.gather(-1, t) * row
    slope: Tensor | float = 0.0  # of the penalty, in Z
    if z_loss:
        lse = (v.mean(0) if space == "logits" else v).logsumexp(-1, keepdim=True)
        penalty = lse.square() if space == "logits" else lse.square().mean(0)
        found, slope = found + z_loss * row * penalty, 2.0 * z_loss * row * lse
    loss = torch.where(kept, found.squeeze(-1), 0.0)
    if not gradient:
        return loss, None
    if space == "logits":
        back = ((log_q.exp() * (total + slope) - wanted) / order).expand_as(v)
    elif space == "log_probs":
        back = (v.softmax(-1) * (total + slope) - wanted) / order
    else:
        log_p = v.log_softmax(-1)
        share = (log_p - log_q).exp().masked_fill(log_p == -math.inf, 0.0) / order * wanted  # a view's part in q
        back = log_p.exp() * (share.sum(-1, keepdim=True) + slope / order) - share
    if scale is not None:
        back = back * scale
    back = mapped(torch.where(kept.unsqueeze(-1), back, 0.0), of(transposed(views.code)), table)
    return loss, back * cap_slope(y, softcap) if softcap else back
