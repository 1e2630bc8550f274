"""The four kernels in plain torch: the oracle of the tests, and what runs on devices without kernels of their own.

Shapes: x is (*lead, H, W), y is (|G|, *lead, H, W); weights, scores and dots are (|G|, *lead[:k−1]) and index is
lead[:m], each broadcasting over what follows. The output tensors are written in place and may have any strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..actions import apply_word

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
    exact = scale == 1.0 and weights is None
    for g, word in enumerate(maps.split(" ")):
        view = apply_word(x, word)
        if not exact:
            view = view.to(accumulator(x.dtype)) * scale
            if weights is not None:
                view = view * _broadcast(weights[g], view.dim())
        if index is not None:
            view = torch.where(_broadcast(index == g, view.dim()), view, view.new_zeros(()))
        out[g].copy_(view)


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, out2: Tensor | None
) -> None:
    """Reduce ``map_g(y[g])`` over g; op "sum" is ``scale · Σ weights[g] · map_g(y[g])``.

    "weighted_mean" is the same sum with each weight divided by the weights' sum over g.
    """
    if op == "weighted_mean" and weights is not None:
        weights, op = weights / weights.sum(0), "sum"
    v = _views(y, maps).to(accumulator(y.dtype))
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
    elif op == "mean_std" and out2 is not None:
        spread, result = torch.std_mean(v, 0, correction=0)
        out2.copy_(spread)
    else:
        raise ValueError(f"op: unknown reduction {op!r}")
    out.copy_(result)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """``out[g] = weights[g] · map_g(x)`` and ``dots[g, …] = ⟨map_g(x), y[g]⟩``: a weighted mean's two gradients."""
    v = torch.stack([apply_word(x, word) for word in maps.split(" ")]).to(accumulator(y.dtype))
    if out is not None:
        out.copy_(v if weights is None else v * _broadcast(weights, v.dim()))
    product = v * y
    dots.copy_(product.flatten(dots.dim()).sum(-1) if product.dim() > dots.dim() else product)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """``out = map_i(y[i])`` with i = index; given scores, i is the best of them and is written to index."""
    if scores is not None:
        index.copy_(best_view(scores, minimum))
    # Gathered as integers: gather of float16 turns a signalling NaN into a quiet one.
    v = _views(y, maps).view(_SAME_SIZE[y.element_size()])
    chosen = _broadcast(index, v.dim() - 1).unsqueeze(0).clamp(0, v.shape[0] - 1)
    out.copy_(v.gather(0, chosen.expand(1, *v.shape[1:])).squeeze(0).view(y.dtype))


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
