"""The kernels in plain torch: the oracle of the tests, and what runs on devices without kernels of their own.

What each computes is in ``plain.py``. The output tensors are written in place and may have any strides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reductions import best_view
from ..views import Views, accumulator
from . import plain
from .base import Backend, Maybe

__all__ = ["Reference"]

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Reference(Backend):
    """Plain torch."""

    name = "reference"

    def unavailable(self, device: torch.device) -> str | None:
        """Plain torch runs everywhere."""
        return None

    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        for g in range(views.order):
            out[g].copy_(plain.view(x, views, table, g, scale, weights, index))

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
        """See ``Backend.reduce``; ``spread`` takes the second result of "mean_std"."""
        if y.numel() == 0:
            return  # nothing to write, and std would warn of it
        first, *second = plain.reduce(y, views, table, op, scale, weights, plus)
        out.copy_(first)
        if spread is not None:
            spread.copy_(second[0])

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        """See ``Backend.orbit_dot``: a weighted mean's two gradients."""
        found, products = plain.orbit_dot(x, y, views, table, weights, dots.dim())
        if out is not None:
            out.copy_(found)
        dots.copy_(products)

    def reduce_backward(
        self, grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str
    ) -> None:
        """See ``Backend.reduce_backward``: what each value gets of the gradient goes back to where it came from."""
        if y.numel():
            out.copy_(plain.reduce_backward(grad, spread, y, views, table, op))

    def variance(self, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        """See ``Backend.variance``: the mean of the squared deviations."""
        out.copy_(plain.variance(y, views, table, out.dim()))

    def variance_backward(self, factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        """See ``Backend.variance_backward``: deviations times factors go back to where the values came from."""
        out.copy_(plain.variance_backward(factors, y, views, table))

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        if scores is not None:
            index.copy_(best_view(scores, minimum))
        products = views.kind.computes
        v = plain.mapped(y.to(accumulator(y)) if products else y, views, table)
        if products:
            out.copy_(plain.chosen(v, index))
        else:  # moved as integers: gather of float16 turns a signalling NaN into a quiet one
            out.copy_(plain.chosen(v.view(_SAME_SIZE[y.element_size()]), index).view(y.dtype))

    def coarse(self, x: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """See ``Backend.coarse``."""
        out.copy_(plain.coarse(x, rows, columns))

    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        """See ``Backend.softmax_mean``; "log_probs" means logarithms."""
        mean, sums = plain.softmax_mean(y, views, table, space)
        lse.copy_(sums)
        out.copy_(mean)

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        """See ``Backend.softmax_mean_backward``: ``out[g] = ∂L/∂y[g]`` for grad = ∂L/∂ the result."""
        out.copy_(plain.softmax_mean_backward(grad, y, lse, views, table, space))

    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        """See ``Backend.score``: of rows (…, V), −log of the largest probability ("max_prob"), "entropy", −log of the
        largest less the second ("margin"), or −largest logit ("max")."""
        out.copy_(plain.score(logits, kind))

    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        """See ``Backend.score_select``: one choice, written to index, for each of lead in y (|G|, *lead, V)."""
        self.select(y, out, index, views, table, plain.score(y, kind), minimum)

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
        softcap: float = 0.0,
        weight: Maybe = None,
    ) -> None:
        """``loss = −(1 − ε) w_t log q[t] − ε/V Σ_v w_v log q[v] + z w_t Z²`` of the mean prediction q, with its
        gradient.

        space "logits": q is the softmax of ``1/|G| Σ map_g(y[g])``; "probs": the mean of the softmaxes; "log_probs":
        log q is the mean of the log-softmaxes. Z² is the square of the mean logits' log Σ exp, else the mean of the
        views' squares. y (|G|, *lead, V), target t and loss (*lead), loss in the accumulator's dtype and 0 where the
        target is ignore_index. grad, like y, is the gradient of loss times scale (one number, None for 1). weight w
        (V,), contiguous, in the accumulator's dtype too; None for ones. softcap c: y is c · tanh(y / c), rounded to
        y's dtype, before anything else; 0 for none.

        Raises:
            ValueError: on a CPU, a target that is neither ignore_index nor 0 … V − 1; elsewhere it gives NaN.
        """
        size, ours = y.shape[-1], target
        outside = (target != ignore_index) & ((target < 0) | (target >= size))
        if not y.is_cpu:  # where asking would stop a queue
            ours = target.masked_fill(outside, ignore_index)
        elif bool(outside.any()):
            raise ValueError(f"target: expected 0 … {size - 1} or {ignore_index}, got {int(target[outside][0])}")
        call = space, ignore_index, smoothing, scale, grad is not None, z_loss, softcap, weight
        found, slopes = plain.cross_entropy(y, ours, views, table, *call)
        loss.copy_(found if y.is_cpu else found.masked_fill(outside, math.nan))
        if grad is not None and slopes is not None:
            grad.copy_(slopes if y.is_cpu else slopes.masked_fill(outside.unsqueeze(-1), math.nan))
