"""Views of a grid, and views that move nothing: all four operators."""

from __future__ import annotations

from .dots import orbit_dot
from .orbits import orbit
from .reductions import reduce
from .selection import select

__all__ = ["orbit", "orbit_dot", "reduce", "select"]
