"""equikern: make any pretrained model equivariant, at memory speed."""

from .actions import Action, GridAction, GroupAction, grid, trivial
from .backends import active_backend, use_backend
from .buildinfo import BuildInfo, build_info
from .groups import Group, cyclic_group, dihedral_group, product_group
from .nn import EquiTune, EquiZero, LambdaEquiTune, train_backbone, train_weights, weight_network
from .ops import (
    linear_orbit_cross_entropy,
    orbit,
    orbit_cross_entropy,
    orbit_mean,
    orbit_reduce,
    orbit_score,
    orbit_select,
    orbit_weighted_mean,
    symmetrize,
)
from .permutations import PermutationAction, TokenAction, permutation, product_action, tokens
from .tuning import tuned, warmup

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BuildInfo",
    "EquiTune",
    "EquiZero",
    "GridAction",
    "Group",
    "GroupAction",
    "LambdaEquiTune",
    "PermutationAction",
    "TokenAction",
    "active_backend",
    "build_info",
    "cyclic_group",
    "dihedral_group",
    "grid",
    "linear_orbit_cross_entropy",
    "orbit",
    "orbit_cross_entropy",
    "orbit_mean",
    "orbit_reduce",
    "orbit_score",
    "orbit_select",
    "orbit_weighted_mean",
    "permutation",
    "product_action",
    "product_group",
    "symmetrize",
    "tokens",
    "train_backbone",
    "train_weights",
    "trivial",
    "tuned",
    "use_backend",
    "warmup",
    "weight_network",
]
