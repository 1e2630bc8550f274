"""``orbit_mean`` and ``orbit_weighted_mean``: equitune and λ-equitune's reduction of the backbone's outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..actions import Action, GroupAction
from ..core import autograd, checks, library
from ..views import accumulator
from ..views.maps import Acting
from . import softmax

__all__ = ["orbit_mean", "orbit_weighted_mean"]


def orbit_mean(
    y: Tensor,
    action: Action,
    space: Literal["probs", "log_probs"] | None = None,
    *,
    plus: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Equitune's reduction: undo each view's transform and average, ``1/|G| Σ_g g⁻¹ y[g]``, in one pass.

    Reads |G|n and writes n elements; the backward reads n and writes |G|n: ``∂L/∂y[g] = 1/|G| g · ∂L/∂out``. With a
    space each view's softmax is averaged instead, ``1/|G| Σ_g g⁻¹ softmax(y[g])``, without storing it; the backward
    then reads y as well. With ``plus`` the same pass adds the symmetrised tensor, ``1/|G| Σ_g (g⁻¹ y[g] + g plus)``:
    the fusion of several inputs (arXiv 2310.09675). It reads |G|n + n and writes n elements; neither part is stored.

    Args:
        y: (|G|, \\*lead, H, W), the backbone's output for every view, any strides; float16, bfloat16, float32 or
            float64. Square where the action turns by 90°; a permutation's n entries on the dim that it permutes,
            whatever is behind it.
        action: how the group acts on one output; ``trivial(group)`` for an invariant one such as class logits.
        space: None averages y as it is; ``"probs"`` the probabilities softmax(y[g]), ``"log_probs"`` their logarithms
            (whose exponentials need not add up to 1). The softmax goes over the permuted dim, the last one under the
            trivial action, in float32 (float64 for float64).
        plus: what else the group's mean is taken of, (\\*lead, H, W) of y's dtype, any strides; the action must then be
            a ``GroupAction``.
        out: optional memory for the result, (\\*lead, H, W) of y's dtype; without grad.

    Returns:
        (\\*lead, H, W) in y's dtype, summed in float32 (float64 for float64) and rounded once; channels-last if y is.

    Raises:
        TypeError: y is not a dense float tensor, action is not an action, or plus is of another dtype.
        ValueError: dim 0 is not |G|, wrong rank or size, not square under a 90° rotation, a space under a grid or
            signs or beside plus, a plus of another shape or device, or an out that does not fit.

    Example:
        >>> import torch
        >>> from equikern import grid, orbit
        >>> x = torch.arange(4.0).reshape(2, 2)
        >>> torch.equal(orbit_mean(orbit(x, grid("c4")), grid("c4")), x)
        True
        >>> orbit_mean(torch.zeros(2, 1, 2), grid("hflip"), plus=torch.tensor([[1.0, 3.0]])).tolist()
        [[2.0, 2.0]]
    """
    if space is not None:
        checks.choice("space", space, ("probs", "log_probs", None))
        if plus is not None:
            raise ValueError(f"plus: expected None beside a space, whose probabilities have no summand, got {space!r}")
        return softmax.mean(y, action, space, out)
    y, action = checks.views("y", y, action)
    if plus is not None:
        if not isinstance(action, GroupAction):  # one pass adds plus to every view, so takes it by g⁻¹ for g
            raise ValueError(f"plus: expected None for maps that are no whole group, got one beside {action!r}")
        return _mean_plus(y, checks.like_view("plus", plus, y), action, out)
    if out is not None:
        out = checks.output("out", out, tuple(y.shape[1:]), y)
        maps = action.inverse_maps
        library.reduce_out(y, *maps.placed(y), "sum", 1.0 / action.order, None, out)
        return out
    return autograd.total(y, action.inverse_maps, 1.0 / action.order)


def _mean_plus(y: Tensor, plus: Tensor, action: Acting, out: Tensor | None) -> Tensor:
    if out is None:
        return autograd.mean_plus(y, plus, action.inverse_maps)
    out = checks.output("out", out, tuple(y.shape[1:]), y, plus)
    maps = action.inverse_maps
    library.mean_plus_out(y, plus, *maps.placed(y), out)
    return out


def orbit_weighted_mean(
    y: Tensor,
    weights: Tensor,
    action: Action,
    normalize: Literal["sum", "softmax"] | None = "sum",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """λ-equitune's reduction: ``Σ_g λ_g g⁻¹ y[g] / Σ_g λ_g`` in one pass.

    The backward reads y and the upstream gradient once and gives both gradients: ``∂L/∂y[g] = λ̂_g g · ∂L/∂out`` and
    ``∂L/∂λ̂_g = ⟨g · ∂L/∂out, y[g]⟩`` with λ̂ the normalised weights.

    Args:
        y: (|G|, \\*lead, H, W), any strides; float16, bfloat16, float32 or float64. Square where the action turns by
            90°; a permutation's n entries on the dim that it permutes, whatever is behind it.
        weights: λ of shape y.shape[:k], k ≥ 1, so (|G|,), (|G|, B), …; any float dtype, used in float32 (float64
            beside float64).
        action: how the group acts on one output.
        normalize: ``"sum"`` divides by Σ_g λ_g (λ > 0 in the paper; a zero sum gives inf or nan, as division does),
            ``"softmax"`` takes softmax over g first, None uses the weights as they are.
        out: optional memory for the result, (\\*lead, H, W) of y's dtype; without grad.

    Returns:
        (\\*lead, H, W) in y's dtype, summed in float32 (float64 for float64) and rounded once; channels-last if y is.

    Raises:
        TypeError: y or weights is not a dense float tensor, or action is not an action.
        ValueError: weights that are not y.shape[:k] or on another device, dim 0 not |G|, wrong rank, not square under
            a 90° rotation, an unknown normalize, or an out that does not fit.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> y = torch.tensor([[[1.0, 2.0]], [[5.0, 3.0]]])
        >>> orbit_weighted_mean(y, torch.tensor([3.0, 1.0]), grid("hflip")).tolist()
        [[1.5, 2.75]]
    """
    y, action = checks.views("y", y, action)
    checks.choice("normalize", normalize, ("sum", "softmax", None))
    weights = checks.per_view("weights", weights, y, action, accumulator(y))
    if normalize == "softmax":
        weights = _softmax(weights)
    if out is not None:
        out = checks.output("out", out, tuple(y.shape[1:]), y, weights)
        op = "weighted_mean" if normalize == "sum" else "sum"
        maps = action.inverse_maps
        library.reduce_out(y, *maps.placed(y), op, 1.0, weights, out)
        return out
    if normalize == "sum":
        return autograd.weighted_mean(y, weights, action.inverse_maps)
    return autograd.total(y, action.inverse_maps, 1.0, weights)


def _softmax(weights: Tensor) -> Tensor:
    """Softmax over the group axis, laid out last: torch's softmax over dim 0 depends on the number of threads."""
    if weights.dim() == 1:
        return weights.softmax(0)
    return weights.movedim(0, -1).softmax(-1).movedim(-1, 0).clone(memory_format=torch.contiguous_format)
