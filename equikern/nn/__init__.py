"""Wrappers that make a backbone equivariant."""

from .canonical import CanonicalLambdaEquiTune, principal_frame, vector_frame
from .detector import EquiDetector
from .equitune import EquiTune
from .equizero import EquiZero
from .group_conv import GroupConv2d
from .lambda_equitune import LambdaEquiTune, train_backbone, train_weights, weight_network
from .multi import InvariantSymmetric, MultiInputEquiTune
from .product import ProductEquiTune
from .regular import EquivariantHead, GroupLinear, GroupPool, InvariantHead, RegularLift

__all__ = [
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
    "principal_frame",
    "train_backbone",
    "train_weights",
    "vector_frame",
    "weight_network",
]
