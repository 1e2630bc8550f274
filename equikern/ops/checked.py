"""Checked operators that layers and wrappers need and users do not: some of the views, and each view undone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..actions import Action
from ..core import autograd, checks
from ..views import EXACT, accumulator

__all__ = ["orbit_some", "orbit_sum", "undo_each"]


def orbit_some(x: Tensor, action: Action, elements: Sequence[int]) -> Tensor:
    """Some elements' views of x, (n, \\*shape of a view): all of one shape, where x is a rectangle."""
    x, _ = checks.image("x", x, action, EXACT, turns=True)
    return autograd.orbit(x, action.maps.subset(elements), 1.0)


def orbit_sum(y: Tensor, action: Action, scale: float, weights: Tensor | None = None) -> Tensor:
    """``scale · Σ_g λ_g g⁻¹ y[g]``, with weights λ of shape y.shape[:k] or none."""
    y, _ = checks.views("y", y, action)
    if weights is not None:
        weights = checks.per_view("weights", weights, y, action, accumulator(y))
    return autograd.total(y, action.inverse_maps, scale, weights)


def undo_each(name: str, y: Tensor, action: Action, axis: int = 0) -> Tensor:
    """``g⁻¹ y[g]`` for every g, with the group axis moved to ``axis``."""
    y, _ = checks.views(name, y, action, EXACT)
    return autograd.each(y.movedim(0, axis), axis, action.inverse_maps)
