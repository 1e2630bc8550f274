"""equikern: make any pretrained model equivariant, at memory speed."""

from importlib import import_module as _import_module
from typing import Any as _Any

from .actions import (
    Action,
    FieldAction,
    GridAction,
    GroupAction,
    MatrixAction,
    MatrixSamples,
    PermutationAction,
    TokenAction,
    field,
    grid,
    matrix,
    patches,
    permutation,
    product_action,
    regular,
    tokens,
    trivial,
)
from .auditing import Audit, audit
from .backends import active_backend, use_backend
from .backends.tuning import tuned
from .buildinfo import BuildInfo, build_info
from .coordinates import Coordinates, boxes, heat_maps, keypoints
from .groups import Group, cyclic_group, dihedral_group, product_group
from .nn import (
    CanonicalEquiTune,
    CanonicalLambdaEquiTune,
    EquiDetector,
    EquiTune,
    EquivariantHead,
    EquiZero,
    GroupConv2d,
    GroupLinear,
    GroupPool,
    InvariantHead,
    InvariantSymmetric,
    LambdaEquiTune,
    MultiInputEquiTune,
    ProductEquiTune,
    RegularLift,
    energy_network,
    principal_frame,
    train_backbone,
    train_energy,
    train_weights,
    vector_frame,
    weight_network,
)
from .ops import (
    linear_orbit_cross_entropy,
    orbit,
    orbit_act,
    orbit_cross_entropy,
    orbit_mean,
    orbit_reduce,
    orbit_score,
    orbit_select,
    orbit_variance,
    orbit_weighted_mean,
    symmetrize,
)
from .portable import portable
from .repository import install as _install
from .version import __version__ as __version__
from .warmup import warmup

__all__ = [
    "Action",
    "Audit",
    "BuildInfo",
    "CanonicalEquiTune",
    "CanonicalLambdaEquiTune",
    "Coordinates",
    "EquiDetector",
    "EquiTune",
    "EquiZero",
    "EquivariantHead",
    "FieldAction",
    "GridAction",
    "Group",
    "GroupAction",
    "GroupConv2d",
    "GroupLinear",
    "GroupPool",
    "InvariantHead",
    "InvariantSymmetric",
    "LambdaEquiTune",
    "MatrixAction",
    "MatrixSamples",
    "MultiInputEquiTune",
    "PermutationAction",
    "ProductEquiTune",
    "RegularLift",
    "TokenAction",
    "active_backend",
    "audit",
    "boxes",
    "build_info",
    "cyclic_group",
    "dihedral_group",
    "energy_network",
    "field",
    "grid",
    "heat_maps",
    "keypoints",
    "linear_orbit_cross_entropy",
    "matrix",
    "orbit",
    "orbit_act",
    "orbit_cross_entropy",
    "orbit_mean",
    "orbit_reduce",
    "orbit_score",
    "orbit_select",
    "orbit_variance",
    "orbit_weighted_mean",
    "patches",
    "permutation",
    "portable",
    "principal_frame",
    "product_action",
    "product_group",
    "regular",
    "symmetrize",
    "tokens",
    "train_backbone",
    "train_energy",
    "train_weights",
    "trivial",
    "tuned",
    "use_backend",
    "vector_frame",
    "warmup",
    "weight_network",
]


def __getattr__(name: str) -> _Any:
    """The parts that are imported when they are asked for."""
    if name in _LAZY:
        try:
            return _import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:  # hasattr asks, too
            raise AttributeError(
                f"{__name__}.{name} needs {error.name}, which is not installed: {_install(name)}"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


_LAZY = ("demo", "distributed", "lm", "rl")
