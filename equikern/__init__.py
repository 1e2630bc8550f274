"""equikern: make any pretrained model equivariant, at memory speed."""

from .actions import Action, GridAction, grid, trivial
from .backends import active_backend, use_backend
from .buildinfo import BuildInfo, build_info
from .groups import Group, cyclic_group, dihedral_group, product_group
from .nn import EquiTune
from .ops import orbit, orbit_mean, orbit_reduce, orbit_select, orbit_weighted_mean, symmetrize
from .tuning import tuned, warmup

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BuildInfo",
    "EquiTune",
    "GridAction",
    "Group",
    "active_backend",
    "build_info",
    "cyclic_group",
    "dihedral_group",
    "grid",
    "orbit",
    "orbit_mean",
    "orbit_reduce",
    "orbit_select",
    "orbit_weighted_mean",
    "product_group",
    "symmetrize",
    "trivial",
    "tuned",
    "use_backend",
    "warmup",
]
