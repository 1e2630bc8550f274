"""Groups acting on logits, and the predictions that the fused operators stand for, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from equikern import Action, GroupAction, cyclic_group, permutation, trivial
from helpers.oracles import powers
from torch import Tensor
from torch.nn.functional import cross_entropy

SPACES = (None, "probs", "log_probs")


def swaps(order: int, size: int, moved: int) -> GroupAction:
    """A cyclic group whose generator moves the given number of entries, spread over the dim, in cycles."""
    perm = list(range(size))
    places = [i * size // max(1, moved) for i in range(moved)]
    for start in range(0, moved - order + 1, order):
        cycle = places[start : start + order]
        for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            perm[a] = b
    return permutation(powers(perm, order), group=cyclic_group(order))


ACTIONS: dict[str, GroupAction] = {
    "none of 3": trivial(cyclic_group(3)),
    "one": swaps(1, 33, 0),
    "2 of 50": swaps(2, 50, 2),
    "9 of 50": swaps(3, 50, 9),
    "all of 30": swaps(3, 30, 30),
    "15 of 41": swaps(5, 41, 15),
    "8 of 8": swaps(2, 8, 8),
}


def size_of(action: Any) -> int:
    return int(getattr(action, "size", 17))


def undone(y: Tensor, action: Action) -> Tensor:
    """Every view transformed back: (g⁻¹y)[v] = y[perm[g, v]]."""
    perm = getattr(action, "perm", None)
    if perm is None:
        return y
    return torch.stack([y[g].index_select(-1, perm[g]) for g in range(action.order)])


def log_prediction(y: Tensor, action: Action, space: str | None) -> Tensor:
    """log q of the mean prediction."""
    views = undone(y, action)
    if space is None:
        return views.mean(0).log_softmax(-1)
    if space == "log_probs":
        return views.log_softmax(-1).mean(0)
    return views.softmax(-1).mean(0).log()


def loss(
    y: Tensor,
    target: Tensor,
    action: Action,
    space: str | None,
    reduction: str,
    smoothing: float,
    ignored: int,
    weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """What orbit_cross_entropy replaces; torch's own cross_entropy where q is a softmax of logits."""
    if softcap is not None:
        y = softcap * torch.tanh(y / softcap)
    weight = None if weight is None else weight.to(y.dtype)
    if z_loss:
        entropy = loss(y, target, action, space, reduction, smoothing, ignored, weight)
        squares = undone(y, action).mean(0).logsumexp(-1) ** 2 if space is None else (y.logsumexp(-1) ** 2).mean(0)
        kept = target != ignored
        counts = kept.to(y.dtype) if weight is None else weight[target.where(kept, 0)] * kept
        each = z_loss * counts * squares
        return entropy + (each if reduction == "none" else each.sum() / (counts.sum() if reduction == "mean" else 1))
    if space is None:
        mean = undone(y, action).mean(0)
        found = cross_entropy(
            mean.reshape(-1, mean.shape[-1]),
            target.flatten(),
            weight=weight,
            reduction=reduction,
            label_smoothing=smoothing,
            ignore_index=ignored,
        )
        return found.reshape(target.shape) if reduction == "none" else found
    log_q = log_prediction(y, action, space)
    kept = target != ignored
    counts = kept.to(y.dtype) if weight is None else weight[target.where(kept, 0)] * kept
    each = -(1 - smoothing) * log_q.gather(-1, target.where(kept, 0).unsqueeze(-1)).squeeze(-1) * counts
    if smoothing:
        each = each - smoothing * (log_q if weight is None else log_q * weight).mean(-1)
    each = each.where(kept, 0.0)
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.sum() / counts.sum()


def targets(shape: tuple[int, ...], size: int, seed: int, ignored: int | None = None) -> Tensor:
    """Random classes, some of them ignored."""
    g = torch.Generator().manual_seed(seed)
    found = torch.randint(0, size, shape, generator=g)
    if ignored is not None:
        found[torch.rand(shape, generator=g) < 0.3] = ignored
    return found
