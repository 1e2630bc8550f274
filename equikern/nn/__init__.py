"""Wrappers that make a backbone equivariant."""

from .canonical import CanonicalLambdaEquiTune, principal_frame, vector_frame
from .equitune import EquiTune
from .equizero import EquiZero
from .lambda_equitune import LambdaEquiTune, train_backbone, train_weights, weight_network

__all__ = [
    "CanonicalLambdaEquiTune",
    "EquiTune",
    "EquiZero",
    "LambdaEquiTune",
    "principal_frame",
    "train_backbone",
    "train_weights",
    "vector_frame",
    "weight_network",
]
