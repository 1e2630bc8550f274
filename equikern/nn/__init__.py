"""Wrappers that make a backbone equivariant."""

from .equitune import EquiTune
from .equizero import EquiZero
from .lambda_equitune import LambdaEquiTune, train_backbone, train_weights, weight_network

__all__ = ["EquiTune", "EquiZero", "LambdaEquiTune", "train_backbone", "train_weights", "weight_network"]
