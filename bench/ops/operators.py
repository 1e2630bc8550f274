"""The operators three times over: equikern's call, the eager torch chain it replaces, and the result in float64.

The chains are what the papers' code does: turn every view with ``rot90`` and ``flip``, stack, reduce. ``order`` is
|G|: 4 is C4, 8 is D4, whose element 4·s + k is rot90 by k after a horizontal flip when s = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equikern
import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Result = Tensor | Tensors


def turn(x: Tensor, g: int) -> Tensor:
    """g·x."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))


def turn_back(x: Tensor, g: int) -> Tensor:
    """g⁻¹·x."""
    x = torch.rot90(x, -(g % 4), (-2, -1))
    return x.flip(-1) if g >= 4 else x


def per_sample(w: Tensor, y: Tensor) -> Tensor:
    """Weights (|G|, B) beside views (|G|, B, …)."""
    return w.reshape(w.shape + (1,) * (y.dim() - w.dim()))


# The eager chains


def stacked(y: Tensor, order: int) -> Tensor:
    return torch.stack([turn_back(y[g], g) for g in range(order)])


def eager_orbit(order: int, x: Tensor) -> Tensor:
    return torch.stack([turn(x, g) for g in range(order)])


def eager_act(order: int, x: Tensor, elements: Tensor) -> Tensor:
    """The loop over the samples of a batch."""
    return torch.stack([turn(sample, g) for sample, g in zip(x, elements.tolist(), strict=True)])


def eager_mean(order: int, y: Tensor) -> Tensor:
    return stacked(y, order).mean(0)


def eager_weighted(order: int, y: Tensor, weights: Tensor) -> Tensor:
    share = (weights / weights.sum(0)).to(y.dtype)
    return (per_sample(share, y) * stacked(y, order)).sum(0)


def eager_select(order: int, y: Tensor, scores: Tensor) -> Tensor:
    """The choice, with the gradient of the mean where one is asked for."""
    views = stacked(y, order)
    chosen = views[scores.argmin(0), torch.arange(y.shape[1], device=y.device)]
    if y.requires_grad and torch.is_grad_enabled():
        stand_in = views.mean(0)
        return stand_in + (chosen - stand_in).detach()
    return chosen


def eager_selected(order: int, y: Tensor, scores: Tensor) -> Tensor:
    return stacked(y, order)[scores.argmin(0), torch.arange(y.shape[1], device=y.device)]


def eager_symmetrize(order: int, x: Tensor) -> Tensor:
    return eager_orbit(order, x).mean(0)


def eager_mean_plus(order: int, y: Tensor, x: Tensor) -> Tensor:
    return eager_mean(order, y) + eager_symmetrize(order, x)


def eager_max(order: int, y: Tensor) -> Tensor:
    return stacked(y, order).amax(0)


def eager_mean_std(order: int, y: Tensor) -> Tensors:
    std, mean = torch.std_mean(stacked(y, order), 0, correction=0)
    return mean, std


def eager_variance(order: int, y: Tensor) -> Tensor:
    """That of each sample."""
    return stacked(y, order).var(0, correction=0).flatten(1).mean(1)


def eager_median(order: int, y: Tensor) -> Tensor:
    """The mean of the two middle values: |G| is even."""
    ordered = stacked(y, order).sort(0).values
    return (ordered[order // 2 - 1] + ordered[order // 2]) / 2


def eager_log1p(order: int, y: Tensor) -> Tensor:
    return stacked(y, order).log1p().mean(0).expm1()


# The same results in float64, written apart from the chains. What moves values only, or scales them by a power of
# two, is exact in any dtype and stays in the input's.


def sum_back(y: Tensor, weights: Tensor | None = None) -> Tensor:
    total = torch.zeros(y.shape[1:], dtype=torch.float64, device=y.device)
    for g in range(y.shape[0]):
        view = turn_back(y[g], g)
        if weights is None:
            total += view
        else:
            total += view.double() * per_sample(weights[g], view)
    return total


def by_element(move: Callable[[Tensor, int], Tensor], order: int, x: Tensor, elements: Tensor) -> Tensor:
    """All samples of one element together."""
    result = torch.empty_like(x)
    for g in range(order):
        result[elements == g] = move(x[elements == g], g)
    return result


def wide_weighted(order: int, y: Tensor, weights: Tensor) -> Tensor:
    wide = weights.double()
    return sum_back(y, wide / wide.sum(0))


def wide_select(order: int, y: Tensor, scores: Tensor) -> Tensor:
    return torch.stack([turn_back(y[g, b], g) for b, g in enumerate(scores.argmin(0).tolist())])


def wide_symmetrize(order: int, x: Tensor) -> Tensor:
    return sum_back(x.expand(order, *x.shape)) / order


def wide_max(order: int, y: Tensor) -> Tensor:
    return eager_max(order, y)


def wide_mean_std(order: int, y: Tensor) -> Tensors:
    mean = sum_back(y) / order
    spread = torch.zeros_like(mean)
    for g in range(order):
        spread += (turn_back(y[g], g).double() - mean).square()
    return mean, (spread / order).sqrt()


def wide_variance(order: int, y: Tensor) -> Tensor:
    return wide_mean_std(order, y)[1].square().flatten(1).mean(1)


def middle(v: Tensor) -> Tensors:
    """The two middle values over the first dim."""
    return tuple(v.kthvalue(k, 0).values for k in (v.shape[0] // 2, v.shape[0] // 2 + 1))


def wide_median(order: int, y: Tensor) -> Tensor:
    low, high = middle(stacked(y, order).double())
    return (low + high) / 2


def wide_log1p(order: int, y: Tensor) -> Tensor:
    return (sum_back(y.double().log1p()) / order).expm1()


def grad_of_mean(order: int, args: Tensors, grads: Tensors) -> Tensors:
    return (eager_orbit(order, grads[0] / order),)


def grad_of_weighted(order: int, args: Tensors, grads: Tensors) -> Tensors:
    y, weights = args
    wide = weights.double()
    share = wide / wide.sum(0)
    grad_y = torch.empty(y.shape, dtype=torch.float64, device=y.device)
    dots = torch.empty_like(share)
    for b in range(y.shape[1]):
        for g in range(order):
            view = turn(grads[0][b], g).double()
            dots[g, b] = (view * y[g, b]).sum()
            torch.mul(view, share[g, b], out=grad_y[g, b])
    return grad_y, (dots - (share * dots).sum(0)) / wide.sum(0)  # through λ / Σλ


def grad_of_selected(order: int, args: Tensors, grads: Tensors) -> Tensors:
    y, scores = args
    grad_y = torch.zeros_like(y)
    for b, g in enumerate(scores.argmin(0).tolist()):
        grad_y[g, b] = turn(grads[0][b], g)
    return (grad_y,)


def grad_of_median(order: int, args: Tensors, grads: Tensors) -> Tensors:
    """Half of the gradient to each of the two middle values, shared by all views that have it."""
    v = stacked(args[0], order)
    hits = torch.stack([v == value for value in middle(v)]).double()
    shares = (0.5 * hits / hits.sum(1, keepdim=True)).sum(0)
    return (torch.stack([turn(shares[g] * grads[0], g) for g in range(order)]),)


def grad_by_autograd(chain: Callable[..., Result]) -> Callable[[int, Tensors, Tensors], Tensors]:
    """The chain's own derivative in float64, where there is no short formula."""

    def gradient(order: int, args: Tensors, grads: Tensors) -> Tensors:
        wide = args[0].double().requires_grad_()
        result = chain(order, wide)
        outputs = (result,) if isinstance(result, Tensor) else result
        return torch.autograd.grad(outputs, wide, [g.double() for g in grads])

    return gradient


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        takes: its tensors: "x" (*lead, H, W), "y" and "positive" (|G|, *lead, H, W), "weights" and "scores" (|G|, B),
            "elements" (B,).
        fused: equikern's call with (action, *tensors, out=…).
        eager: the chain with (|G|, *tensors).
        wide: the result in float64, with (|G|, *tensors).
        wide_grad: the gradients in float64 with (|G|, tensors, upstream gradients).
        forward, backward: the elements it must read and write, in multiples of one view, given |G|.
        results: how many tensors it returns.
        takes_out: whether a forward writes to memory given to it.
    """

    takes: tuple[str, ...]
    fused: Callable[..., Any]
    eager: Callable[..., Result]
    wide: Callable[..., Result]
    wide_grad: Callable[[int, Tensors, Tensors], Tensors]
    forward: Callable[[int], tuple[int, int]]
    backward: Callable[[int], tuple[int, int]]
    results: int = 1
    takes_out: bool = True


def fused_reduce(op: Any) -> Callable[..., Any]:
    return lambda action, y, out=None: equikern.orbit_reduce(y, action, op, out=out)


OPERATORS = {
    "orbit": Operator(
        ("x",),
        lambda action, x, out=None: equikern.orbit(x, action, out=out),
        eager_orbit,
        eager_orbit,
        lambda order, args, grads: (sum_back(grads[0]),),
        lambda order: (1, order),
        lambda order: (order, 1),
    ),
    "act": Operator(
        ("x", "elements"),
        lambda action, x, elements, out=None: equikern.orbit_act(x, elements, action, out=out),
        eager_act,
        lambda order, x, elements: by_element(turn, order, x, elements),
        lambda order, args, grads: (by_element(turn_back, order, grads[0], args[1]),),
        lambda order: (1, 1),
        lambda order: (1, 1),
    ),
    "mean": Operator(
        ("y",),
        lambda action, y, out=None: equikern.orbit_mean(y, action, out=out),
        eager_mean,
        lambda order, y: sum_back(y) / order,
        grad_of_mean,
        lambda order: (order, 1),
        lambda order: (1, order),
    ),
    "mean plus": Operator(
        ("y", "x"),
        lambda action, y, x, out=None: equikern.orbit_mean(y, action, plus=x, out=out),
        eager_mean_plus,
        lambda order, y, x: sum_back(y) / order + wide_symmetrize(order, x),
        lambda order, args, grads: (*grad_of_mean(order, args, grads), wide_symmetrize(order, grads[0])),
        lambda order: (order + 1, 1),
        lambda order: (1, order + 1),
    ),
    "weighted": Operator(
        ("y", "weights"),
        lambda action, y, w, out=None: equikern.orbit_weighted_mean(y, w, action, out=out),
        eager_weighted,
        wide_weighted,
        grad_of_weighted,
        lambda order: (order, 1),
        lambda order: (order + 1, order),
    ),
    "select": Operator(
        ("y", "scores"),
        lambda action, y, s, out=None: equikern.orbit_select(y, s, action, out=out),
        eager_select,
        wide_select,
        grad_of_mean,
        lambda order: (1, 1),
        lambda order: (1, order),
    ),
    "selected": Operator(
        ("y", "scores"),
        lambda action, y, s, out=None: equikern.orbit_select(y, s, action, gradient="selected", out=out),
        eager_selected,
        wide_select,
        grad_of_selected,
        lambda order: (1, 1),
        lambda order: (1, order),
    ),
    "symmetrize": Operator(
        ("x",),
        lambda action, x, out=None: equikern.symmetrize(x, action, out=out),
        eager_symmetrize,
        wide_symmetrize,
        lambda order, args, grads: (wide_symmetrize(order, grads[0]),),
        lambda order: (1, 1),
        lambda order: (1, 1),
    ),
    "max": Operator(
        ("y",),
        fused_reduce("max"),
        eager_max,
        wide_max,
        grad_by_autograd(eager_max),
        lambda order: (order, 1),
        lambda order: (order + 1, order),
    ),
    "mean_std": Operator(
        ("y",),
        fused_reduce("mean_std"),
        eager_mean_std,
        wide_mean_std,
        grad_by_autograd(eager_mean_std),
        lambda order: (order, 2),
        lambda order: (order + 2, order),
        results=2,
    ),
    "variance": Operator(
        ("y",),
        lambda action, y, out=None: equikern.orbit_variance(y, action, 1),
        eager_variance,
        wide_variance,
        grad_by_autograd(eager_variance),
        lambda order: (order, 0),
        lambda order: (order, order),
        takes_out=False,
    ),
    "median": Operator(
        ("y",),
        fused_reduce("median"),
        eager_median,
        wide_median,
        grad_of_median,
        lambda order: (order, 1),
        lambda order: (order + 1, order),
    ),
    "log1p": Operator(
        ("positive",),
        fused_reduce("log1p"),
        eager_log1p,
        wide_log1p,
        grad_by_autograd(eager_log1p),
        lambda order: (order, 1),
        lambda order: (order + 1, order),
    ),
}
