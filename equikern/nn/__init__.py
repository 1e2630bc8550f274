"""Wrappers that make a backbone equivariant."""

from .canonical import CanonicalLambdaEquiTune, principal_frame, vector_frame
from .canonical_equitune import CanonicalEquiTune, train_energy
from .detector import EquiDetector
from .energies import energy_network
from .equitune import EquiTune
from .equizero import EquiZero
from .group_conv import GroupConv2d
from .lambda_equitune import LambdaEquiTune, train_backbone, train_weights, weight_network
from .multi import InvariantSymmetric, MultiInputEquiTune
from .product import ProductEquiTune
from .regular import EquivariantHead, GroupLinear, GroupPool, InvariantHead, RegularLift

__all__ = [
    "CanonicalEquiTune",
    "CanonicalLambdaEquiTune",
    "EquiDetector",
    "EquiTune",
    "EquiZero",
    "EquivariantHead",
    "GroupConv2d",
    "GroupLinear",
    "GroupPool",
    "InvariantHead",
    "InvariantSymmetric",
    "LambdaEquiTune",
    "MultiInputEquiTune",
    "ProductEquiTune",
    "RegularLift",
    "energy_network",
    "principal_frame",
    "train_backbone",
    "train_energy",
    "train_weights",
    "vector_frame",
    "weight_network",
]
