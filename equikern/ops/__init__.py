"""The operators, one file a family: documentation, checks, autograd; the kernels are in ``equikern.backends``."""

from .mean import orbit_mean, orbit_weighted_mean
from .orbit import orbit, symmetrize
from .reduce import orbit_reduce
from .select import orbit_select

__all__ = ["orbit", "orbit_mean", "orbit_reduce", "orbit_select", "orbit_weighted_mean", "symmetrize"]
