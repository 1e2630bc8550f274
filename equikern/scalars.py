"""Numbers that users give as arguments: of Python, numpy or torch."""

from __future__ import annotations

import numbers
import operator

import numpy
import torch
from torch import Tensor

__all__ = ["index", "kind_of", "share"]


def index(name: str, n: object) -> int:
    """A whole number.

    Raises:
        TypeError: n is none: a bool, a fraction, a tensor with dims or without a number; called ``name``.

    Example:
        >>> index("n", numpy.int64(3)), index("n", torch.tensor(4))
        (3, 4)
    """
    if isinstance(n, int) and not isinstance(n, bool):
        return n
    truth = isinstance(n, (bool, numpy.bool_)) or (isinstance(n, Tensor) and n.dtype == torch.bool)
    try:
        if not truth and not (isinstance(n, Tensor) and n.dim()):
            return operator.index(n)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # torch's, of tensors that hold no number
        pass
    raise TypeError(f"{name}: expected a whole number, got {kind_of(n)}")


def share(name: str, value: object) -> float:
    """A number from 0 to 1.

    Raises:
        TypeError, ValueError: not a number, or another one; called ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {kind_of(value)}")
    number = float(value)
    if not 0 <= number <= 1:  # NaN, too
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return number


def kind_of(value: object) -> str:
    """What errors call the type of a value: numpy's by their full names, since they share some of Python's."""
    kind = type(value)
    return f"numpy.{kind.__name__}" if kind.__module__ == "numpy" else kind.__name__
