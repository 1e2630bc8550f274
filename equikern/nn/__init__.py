"""Wrappers that make a backbone equivariant."""

from .equitune import EquiTune

__all__ = ["EquiTune"]
