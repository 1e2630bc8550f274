"""The operators by what their words say: views of a grid, permutations of a dim, matrices, or maps of token ids."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...field_tables import is_field
from ...matrix_tables import multiplies
from ...tables import permutes
from . import dots as products
from . import fields, ids, matrices, orbits, permuted, reductions, selection

__all__ = ["orbit", "orbit_dot", "reduce", "select"]


def _module(maps: str, of_grids: Any) -> Any:
    if is_field(maps):
        return fields
    return matrices if multiplies(maps) else permuted if permutes(maps) else of_grids


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``; token ids have no weights, scale or index."""
    if is_field(maps):
        fields.orbit(x, out, maps, scale, weights, index)
    elif multiplies(maps):
        matrices.orbit(x, out, maps, scale, weights, index)
    elif not permutes(maps):
        orbits.orbit(x, out, maps, scale, weights, index)
    elif maps[0] == "t":
        ids.orbit(x, out, maps)
    else:
        permuted.orbit(x, out, maps, scale, weights, index)


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    _module(maps, reductions).reduce(y, out, maps, op, scale, weights, other)


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``."""
    _module(maps, products).orbit_dot(x, y, out, dots, maps, weights)


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``."""
    module = _module(maps, selection) if out.numel() else selection  # what is chosen of empty outputs needs no more
    module.select(y, out, index, maps, scores, minimum)
