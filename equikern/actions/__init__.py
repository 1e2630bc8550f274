"""Actions of a group on tensors, one file a kind: each checks the laws of what it is given, and says it in maps."""

from .base import Action, GroupAction
from .field import FieldAction, field, regular
from .grid import GridAction, grid, trivial
from .matrix import MatrixAction, MatrixSamples, matrix
from .patches import patches
from .permutation import PermutationAction, TokenAction, permutation, tokens
from .product import product_action

__all__ = [
    "Action",
    "FieldAction",
    "GridAction",
    "GroupAction",
    "MatrixAction",
    "MatrixSamples",
    "PermutationAction",
    "TokenAction",
    "field",
    "grid",
    "matrix",
    "patches",
    "permutation",
    "product_action",
    "regular",
    "tokens",
    "trivial",
]
