"""The operators, one file a family: documentation, checks, autograd; the kernels are in ``equikern.backends``."""

from .cross_entropy import orbit_cross_entropy
from .linear_cross_entropy import linear_orbit_cross_entropy
from .mean import orbit_mean, orbit_weighted_mean
from .orbit import orbit, orbit_act, symmetrize
from .reduce import orbit_reduce
from .score import orbit_score
from .select import orbit_select
from .variance import orbit_variance

__all__ = [
    "linear_orbit_cross_entropy",
    "orbit",
    "orbit_act",
    "orbit_cross_entropy",
    "orbit_mean",
    "orbit_reduce",
    "orbit_score",
    "orbit_select",
    "orbit_variance",
    "orbit_weighted_mean",
    "symmetrize",
]
