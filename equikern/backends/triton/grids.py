"""Views of a grid, and views that move nothing: all of the operators."""

from __future__ import annotations

from .dots import orbit_dot
from .orbits import orbit
from .reductions import reduce
from .selection import select
from .shares import reduce_backward, variance, variance_backward

__all__ = ["orbit", "orbit_dot", "reduce", "reduce_backward", "select", "variance", "variance_backward"]
