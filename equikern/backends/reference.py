"""The kernels in plain torch: the oracle of the tests, and what runs on devices without kernels of their own.

Shapes: x is (*lead, H, W), y is (|G|, *lead, H, W); weights, scores and dots are (|G|, *lead[:k−1]) and index is
lead[:m], each broadcasting over what follows. The output tensors are written in place and may have any strides.
Where views permute a dim, that dim stands for H and W; where they are matrices, the last dim does, in the accumulator's
dtype and rounded once; where they are fields, the channels and the grid behind them do; where they map token ids,
nothing does. The kernels with a softmax take logits (|G|, *lead, V) and views that permute the last dim or nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reductions import best_view, plain, plain_gradient
from ..views import Views, accumulator, of, transposed
from .base import Backend, Maybe

__all__ = ["Reference"]

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _broadcast(t: Tensor, dim: int) -> Tensor:
    return t.reshape(t.shape + (1,) * (dim - t.dim()))


def _mapped(y: Tensor, views: Views, table: Maybe) -> Tensor:
    return torch.stack([views.kind.apply(y[g], views, table, g) for g in range(views.order)])


class Reference(Backend):
    """Plain torch."""

    name = "reference"

    def unavailable(self, device: torch.device) -> str | None:
        """Plain torch runs everywhere."""
        return None

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        exact = scale == 1.0 and weights is None and not views.kind.computes
        for g in range(views.order):
            view = views.kind.apply(x if exact else x.to(accumulator(x)), views, table, g)
            if not exact:
                view = view * scale
                if weights is not None:
                    view = view * _broadcast(weights[g], view.dim())
            if index is not None:
                view = torch.where(_broadcast(index == g, view.dim()), view, view.new_zeros(()))
            out[g].copy_(view)

    def reduce(
        self,
        y: Tensor,
        out: Tensor,
        views: Views,
        table: Maybe,
        op: str,
        scale: float,
        weights: Maybe,
        plus: Maybe,
        spread: Maybe,
    ) -> None:
        """See ``Backend.reduce``.

        "weighted_mean" is "sum" with each weight divided by the weights' sum over g; ``plus``, a tensor like one y[g],
        is added to each of them in a sum without weights; ``spread`` takes the second result of "mean_std".
        """
        if op == "weighted_mean" and weights is not None:
            weights, op = weights / weights.sum(0), "sum"
        wide = y if op == "vote" else y.to(accumulator(y))
        v = _mapped(wide if plus is None else wide + plus, views, table)
        if v.numel() == 0:
            return  # nothing to write, and std would warn of it
        if op == "sum":
            out.copy_((v if weights is None else v * _broadcast(weights, v.dim())).sum(0) * scale)
            return
        first, *second = plain(op, v)
        out.copy_(first)
        if spread is not None:
            spread.copy_(second[0])

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        """See ``Backend.orbit_dot``: a weighted mean's two gradients."""
        wide = x.to(accumulator(y))
        v = torch.stack([views.kind.apply(wide, views, table, g) for g in range(views.order)])
        if out is not None:
            out.copy_(v if weights is None else v * _broadcast(weights, v.dim()))
        product = v * y
        dots.copy_(product.flatten(dots.dim()).sum(-1) if product.dim() > dots.dim() else product)

    def reduce_backward(
        self, grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str
    ) -> None:
        """See ``Backend.reduce_backward``: what each value gets of the gradient goes back to where it came from."""
        wide = accumulator(y)
        v = _mapped(y.to(wide), views, table)
        if v.numel():
            shares = plain_gradient(op, v, grad.to(wide), None if spread is None else spread.to(wide))
            out.copy_(_mapped(shares, of(transposed(views.code)), table))

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        if scores is not None:
            index.copy_(best_view(scores, minimum))
        products = views.kind.computes
        v = _mapped(y.to(accumulator(y)) if products else y, views, table)
        if not products:  # moved as integers: gather of float16 turns a signalling NaN into a quiet one
            v = v.view(_SAME_SIZE[y.element_size()])
        chosen = _broadcast(index, v.dim() - 1).unsqueeze(0).clamp(0, v.shape[0] - 1)
        best = v.gather(0, chosen.expand(1, *v.shape[1:])).squeeze(0)
        out.copy_(best if products else best.view(y.dtype))

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        """See ``Backend.softmax_mean``; "log_probs" means logarithms.

        ``lse[g, …]``, in the accumulator's dtype, is the logarithm of the sum of exponentials of each row.
        """
        wide = y.to(accumulator(y))
        lse.copy_(wide.logsumexp(-1))
        # From the differences to the row's largest logit: y − lse would round what is close to it by its whole size.
        p = wide.softmax(-1) if space == "probs" else wide.log_softmax(-1)
        out.copy_(_mapped(p, views, table).mean(0))

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        """See ``Backend.softmax_mean_backward``: ``out[g] = ∂L/∂y[g]`` for grad = ∂L/∂ the result."""
        wide = accumulator(y)
        order = y.shape[0]
        log_p = y.to(wide) - lse.unsqueeze(-1)
        upstream = grad.to(wide).expand(order, *grad.shape)
        spread = _mapped(upstream, of(transposed(views.code)), table)
        if space == "probs":
            p = log_p.exp()
            out.copy_(p * (spread - (p * spread).sum(-1, keepdim=True)) / order)
        else:
            out.copy_((spread - log_p.exp() * grad.to(wide).sum(-1, keepdim=True)) / order)

    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        """See ``Backend.score``: of rows (…, V), −log of the largest probability ("max_prob"), "entropy", −log of the
        largest less the second ("margin"), or −largest logit ("max")."""
        if kind == "max":
            out.copy_(-logits.amax(-1))
            return
        y = logits.to(out.dtype)
        top, first = y.max(-1, keepdim=True)
        below = y - top
        others = below.exp().scatter(-1, first, 0.0).sum(-1)  # without the largest, in which a small rest is lost
        unsure = torch.log1p(others + (top - top).squeeze(-1))  # NaN where all are −∞
        if kind == "entropy":
            unsure = unsure - (below * below.exp()).masked_fill(below == -math.inf, 0.0).sum(-1) / (1 + others)
        elif kind == "margin":
            gap = below.scatter(-1, first, -math.inf).amax(-1)
            # p_2nd / p_1st in logarithm, of which both ends keep their digits.
            unsure = unsure - torch.where(gap < -1, torch.log1p(-gap.exp()), torch.log(-torch.expm1(gap)))
        out.copy_(unsure)

    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        """See ``Backend.score_select``: one choice, written to index, for each of lead in y (|G|, *lead, V)."""
        scores = torch.empty(y.shape[:-1], dtype=accumulator(y), device=y.device)
        self.score(y, scores, kind)
        self.select(y, out, index, views, table, scores, minimum)

    def cross_entropy(
        self,
        y: Tensor,
        target: Tensor,
        loss: Tensor,
        grad: Maybe,
        views: Views,
        table: Maybe,
        space: str,
        ignore_index: int,
        smoothing: float,
        scale: Maybe,
        z_loss: float = 0.0,
        weight: Maybe = None,
    ) -> None:
        """``loss = −(1 − ε) w_t log q[t] − ε/V Σ_v w_v log q[v] + z w_t Z²`` of the mean prediction q, with its
        gradient.

        space "logits": q is the softmax of ``1/|G| Σ map_g(y[g])``; "probs": the mean of the softmaxes; "log_probs":
        log q is the mean of the log-softmaxes. Z² is the square of the mean logits' log Σ exp, else the mean of the
        views' squares. y (|G|, *lead, V), target t and loss (*lead), loss in the accumulator's dtype and 0 where the
        target is ignore_index. grad, like y, is the gradient of loss times scale: one number, None for 1, or one for
        each row, contiguous like target. weight w (V,), in the accumulator's dtype too; None for ones.

        Raises:
            ValueError: on a CPU, a target that is neither ignore_index nor 0 … V − 1; elsewhere it gives NaN.
        """
        wide, order, size = accumulator(y), y.shape[0], y.shape[-1]
        kept = target != ignore_index
        outside = kept & ((target < 0) | (target >= size))
        if y.is_cpu and bool(outside.any()):
            raise ValueError(f"target: expected 0 … {size - 1} or {ignore_index}, got {int(target[outside][0])}")
        t = target.where(kept & ~outside, 0).unsqueeze(-1)
        v = _mapped(y, views, table).to(wide)
        if space == "logits":
            log_q = v.mean(0).log_softmax(-1)
        elif space == "log_probs":
            log_q = v.log_softmax(-1).mean(0)
        else:
            log_q = v.log_softmax(-1).logsumexp(0) - math.log(order)
        wanted = torch.zeros_like(log_q).scatter_(-1, t, 1.0 - smoothing) + smoothing / size
        if weight is not None:
            wanted = wanted * weight
        found = -(wanted * log_q).sum(-1) if smoothing or weight is not None else -log_q.gather(-1, t).squeeze(-1)
        asked: Tensor | float = 1.0 if weight is None else wanted.sum(-1, keepdim=True)
        slope: Tensor | float = 0.0  # of the penalty, in Z
        if z_loss:
            lse = (v.mean(0) if space == "logits" else v).logsumexp(-1)
            penalty = lse.square() if space == "logits" else lse.square().mean(0)
            row = z_loss if weight is None else z_loss * weight[t].squeeze(-1)
            found, slope = found + row * penalty, (2.0 * row * lse).unsqueeze(-1)
        loss.copy_(torch.where(kept, found.masked_fill(outside, math.nan), 0.0))
        if grad is None:
            return
        if space == "logits":
            mapped = ((log_q.exp() * (asked + slope) - wanted) / order).expand_as(v)
        elif space == "log_probs":
            mapped = (v.softmax(-1) * (asked + slope) - wanted) / order
        else:
            log_p = v.log_softmax(-1)
            share = (log_p - log_q).exp().masked_fill(log_p == -math.inf, 0.0) / order * wanted  # a view's part in q
            mapped = log_p.exp() * (share.sum(-1, keepdim=True) + slope / order) - share
        factor = scale.unsqueeze(-1) if scale is not None and scale.dim() else scale
        mapped = mapped if factor is None else mapped * factor
        mapped = torch.where(kept.unsqueeze(-1), mapped.masked_fill(outside.unsqueeze(-1), math.nan), 0.0)
        grad.copy_(_mapped(mapped, of(transposed(views.code)), table))
