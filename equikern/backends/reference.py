"""The kernels in plain torch: the oracle of the tests, and what runs on devices without kernels of their own.

Shapes: x is (*lead, H, W), y is (|G|, *lead, H, W); weights, scores and dots are (|G|, *lead[:k−1]) and index is
lead[:m], each broadcasting over what follows. The output tensors are written in place and may have any strides.
Where the words permute a dim, that dim stands for H and W; where they are matrices, the last dim does, in the
accumulator's dtype and rounded once; where they are fields (``field_tables.py``), the channels and the grid behind them
do; where they map token ids, nothing does. The kernels with a softmax take logits
(|G|, *lead, V) and words that permute the last dim or nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..actions import apply_word
from ..field_tables import computes
from ..tables import table

LOGODD_EPS = 1e-6
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def unavailable(device: torch.device) -> str | None:
    """Plain torch runs everywhere."""
    return None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Reductions of float64 run in float64, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _broadcast(t: Tensor, dim: int) -> Tensor:
    return t.reshape(t.shape + (1,) * (dim - t.dim()))


def _views(y: Tensor, maps: str) -> Tensor:
    return torch.stack([apply_word(y[g], word) for g, word in enumerate(maps.split(" "))])


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """``out[g] = scale · weights[g] · map_g(x)``; views other than index are zero when an index is given."""
    exact = scale == 1.0 and weights is None and not computes(maps)
    for g, word in enumerate(maps.split(" ")):
        view = apply_word(x if exact else x.to(accumulator(x.dtype)), word)
        if not exact:
            view = view * scale
            if weights is not None:
                view = view * _broadcast(weights[g], view.dim())
        if index is not None:
            view = torch.where(_broadcast(index == g, view.dim()), view, view.new_zeros(()))
        out[g].copy_(view)


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """Reduce ``map_g(y[g])`` over g; op "sum" is ``scale · Σ weights[g] · map_g(y[g])``.

    "weighted_mean" is the same sum with each weight divided by the weights' sum over g. ``other`` takes the second
    result of "mean_std"; beside "sum", without weights, it is read: a tensor like one y[g], added to each of them.
    """
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    wide = y.to(accumulator(y.dtype))
    v = _views(wide if op != "sum" or other is None else wide + other, maps)
    if v.numel() == 0:
        return  # nothing to write, and std would warn of it
    if op == "sum":
        result = (v if weights is None else v * _broadcast(weights, v.dim())).sum(0) * scale
    elif op == "max":
        result = v.amax(0)
    elif op == "min":
        result = v.amin(0)
    elif op == "gmean":
        result = v.log().mean(0).exp()
    elif op == "hmean":
        result = v.reciprocal().mean(0).reciprocal()
    elif op == "tsharpen":
        result = v.sqrt().mean(0)
    elif op == "logodd":
        result = torch.logit(v, eps=LOGODD_EPS).mean(0).sigmoid()
    elif op == "std":
        result = v.std(0, correction=0)
    elif op == "mean_std" and other is not None:
        spread, result = torch.std_mean(v, 0, correction=0)
        other.copy_(spread)
    else:
        raise ValueError(f"op: unknown reduction {op!r}")
    out.copy_(result)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """``out[g] = weights[g] · map_g(x)`` and ``dots[g, …] = ⟨map_g(x), y[g]⟩``: a weighted mean's two gradients."""
    wide = x.to(accumulator(y.dtype))
    v = torch.stack([apply_word(wide, word) for word in maps.split(" ")])
    if out is not None:
        out.copy_(v if weights is None else v * _broadcast(weights, v.dim()))
    product = v * y
    dots.copy_(product.flatten(dots.dim()).sum(-1) if product.dim() > dots.dim() else product)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """``out = map_i(y[i])`` with i = index; given scores, i is the best of them and is written to index."""
    if scores is not None:
        index.copy_(best_view(scores, minimum))
    products = computes(maps)
    # Moved as integers: gather of float16 turns a signalling NaN into a quiet one.
    v = _views(y.to(accumulator(y.dtype)), maps) if products else _views(y, maps).view(_SAME_SIZE[y.element_size()])
    chosen = _broadcast(index, v.dim() - 1).unsqueeze(0).clamp(0, v.shape[0] - 1)
    best = v.gather(0, chosen.expand(1, *v.shape[1:])).squeeze(0)
    out.copy_(best if products else best.view(y.dtype))


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


def softmax_mean(y: Tensor, out: Tensor, lse: Tensor, maps: str, space: str) -> None:
    """``out = 1/|G| Σ_g map_g(p_g)`` with p_g the softmax of y[g] (its logarithm for "log_probs").

    ``lse[g, …]``, in the accumulator's dtype, is the logarithm of the sum of exponentials of each row.
    """
    wide = y.to(accumulator(y.dtype))
    lse.copy_(wide.logsumexp(-1))
    # From the differences to the row's largest logit: y − lse would round what is close to it by its whole size.
    p = wide.softmax(-1) if space == "probs" else wide.log_softmax(-1)
    out.copy_(_views(p, maps).mean(0))


def softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, maps: str, space: str) -> None:
    """``out[g] = ∂L/∂y[g]`` for ``grad`` = ∂L/∂ the result of softmax_mean, maps being those of softmax_mean."""
    wide = accumulator(y.dtype)
    order = y.shape[0]
    log_p = y.to(wide) - lse.unsqueeze(-1)
    spread = _spread(grad.to(wide), maps)
    if space == "probs":
        p = log_p.exp()
        out.copy_(p * (spread - (p * spread).sum(-1, keepdim=True)) / order)
    else:
        out.copy_((spread - log_p.exp() * grad.to(wide).sum(-1, keepdim=True)) / order)


def _spread(x: Tensor, maps: str) -> Tensor:
    """The adjoint of maps: every view's x put where that view reads it."""
    found = table(maps)
    if found is None:
        return x.expand(maps.count(" ") + 1, *x.shape)
    result = x.new_empty((found.order, *x.shape))
    for g, source in enumerate(found.on(x.device).whole):
        result[g].index_copy_(-1, source.long(), x)
    return result


def score(logits: Tensor, out: Tensor, kind: str) -> None:
    """``out[…]``: the loss of each row of logits (…, V): −largest probability ("max_prob"), "entropy", second largest −
    largest ("margin"), or −largest logit ("max")."""
    if kind == "max":
        out.copy_(-logits.amax(-1))
        return
    log_p = logits.to(out.dtype).log_softmax(-1)
    if kind == "max_prob":
        out.copy_(-log_p.amax(-1).exp())
    elif kind == "entropy":
        p = log_p.exp()
        out.copy_(-(p * log_p).masked_fill(p == 0, 0.0).sum(-1))
    else:
        best = log_p.topk(min(2, log_p.shape[-1]), -1).values.exp()
        out.copy_(best[..., 1:].sum(-1) - best[..., 0])  # one class alone: minus its probability


def score_select(y: Tensor, out: Tensor, index: Tensor, maps: str, kind: str, minimum: bool) -> None:
    """``select`` by what ``score`` says of the rows of y (|G|, *lead, V): one choice, written to index, for each of
    lead."""
    scores = torch.empty(y.shape[:-1], dtype=accumulator(y.dtype), device=y.device)
    score(y, scores, kind)
    select(y, out, index, maps, scores, minimum)


def cross_entropy(
    y: Tensor,
    target: Tensor,
    loss: Tensor,
    grad: Tensor | None,
    maps: str,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Tensor | None,
) -> None:
    """``loss = −(1 − ε) log q[target] − ε/V Σ_v log q[v]`` of the mean prediction q, and its gradient in y.

    space "logits": q is the softmax of ``1/|G| Σ map_g(y[g])``; "probs": the mean of the softmaxes; "log_probs": log q
    is the mean of the log-softmaxes. y (|G|, *lead, V), target and loss (*lead), loss in the accumulator's dtype and 0
    where target is ignore_index. grad, like y, is the gradient of loss times scale (one number, None for 1).

    Raises:
        ValueError: a target that is neither ignore_index nor 0 … V − 1.
    """
    wide, order, size = accumulator(y.dtype), y.shape[0], y.shape[-1]
    kept = target != ignore_index
    outside = kept & ((target < 0) | (target >= size))
    if bool(outside.any()):
        raise ValueError(f"target: expected 0 … {size - 1} or {ignore_index}, got {int(target[outside][0])}")
    t = target.where(kept, 0).unsqueeze(-1)
    v = _views(y, maps).to(wide)
    if space == "logits":
        log_q = v.mean(0).log_softmax(-1)
    elif space == "log_probs":
        log_q = v.log_softmax(-1).mean(0)
    else:
        log_q = v.log_softmax(-1).logsumexp(0) - math.log(order)
    wanted = torch.zeros_like(log_q).scatter_(-1, t, 1.0 - smoothing) + smoothing / size  # Σ is 1
    loss.copy_(torch.where(kept, -(wanted * log_q).sum(-1) if smoothing else -log_q.gather(-1, t).squeeze(-1), 0.0))
    if grad is None:
        return
    if space == "logits":
        mapped = ((log_q.exp() - wanted) / order).expand_as(v)
    elif space == "log_probs":
        mapped = (v.softmax(-1) - wanted) / order
    else:
        log_p = v.log_softmax(-1)
        share = (log_p - log_q).exp().masked_fill(log_p == -math.inf, 0.0) / order * wanted  # each view's part in q
        mapped = log_p.exp() * share.sum(-1, keepdim=True) - share
    mapped = torch.where(kept.unsqueeze(-1), mapped if scale is None else mapped * scale, 0.0)
    found = table(maps)
    for g in range(order):
        if found is None:
            grad[g].copy_(mapped[g])
        else:
            grad[g].index_copy_(-1, found.on(y.device).whole[g].long(), mapped[g].to(grad.dtype))
