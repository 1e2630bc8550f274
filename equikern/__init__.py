"""equikern: make any pretrained model equivariant, at memory speed."""

from .actions import Action, GridAction, GroupAction, grid, trivial
from .backends import active_backend, use_backend
from .buildinfo import BuildInfo, build_info
from .coordinates import Coordinates, boxes, heat_maps, keypoints
from .groups import Group, cyclic_group, dihedral_group, product_group
from .matrices import MatrixAction, MatrixSamples, matrix
from .nn import (
    CanonicalLambdaEquiTune,
    EquiDetector,
    EquiTune,
    EquivariantHead,
    EquiZero,
    GroupConv2d,
    GroupLinear,
    GroupPool,
    InvariantHead,
    LambdaEquiTune,
    RegularLift,
    principal_frame,
    train_backbone,
    train_weights,
    vector_frame,
    weight_network,
)
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
    "CanonicalLambdaEquiTune",
    "Coordinates",
    "EquiDetector",
    "EquiTune",
    "EquiZero",
    "EquivariantHead",
    "GridAction",
    "Group",
    "GroupAction",
    "GroupConv2d",
    "GroupLinear",
    "GroupPool",
    "InvariantHead",
    "LambdaEquiTune",
    "MatrixAction",
    "MatrixSamples",
    "PermutationAction",
    "RegularLift",
    "TokenAction",
    "active_backend",
    "boxes",
    "build_info",
    "cyclic_group",
    "dihedral_group",
    "grid",
    "heat_maps",
    "keypoints",
    "linear_orbit_cross_entropy",
    "matrix",
    "orbit",
    "orbit_cross_entropy",
    "orbit_mean",
    "orbit_reduce",
    "orbit_score",
    "orbit_select",
    "orbit_weighted_mean",
    "permutation",
    "principal_frame",
    "product_action",
    "product_group",
    "symmetrize",
    "tokens",
    "train_backbone",
    "train_weights",
    "trivial",
    "tuned",
    "use_backend",
    "vector_frame",
    "warmup",
    "weight_network",
]
