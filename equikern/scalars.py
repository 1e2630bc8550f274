"""Numbers that users give as arguments: of Python, numpy or torch."""

from __future__ import annotations

import math
import numbers
import operator
from typing import TypeGuard

import numpy
import torch
from torch import Tensor

__all__ = ["amount", "index", "kind_of", "share"]

_AMOUNT = {True: "a finite number of 0 or more", False: "a finite number above 0"}


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


def _real(value: object) -> TypeGuard[numbers.Real]:
    # Small calls are counted: to ask for the type is the fastest answer.
    return type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def share(name: str, value: object) -> float:
    """A number from 0 to 1.

    Raises:
        TypeError, ValueError: not a number, or another one; called ``name``.
    """
    if not _real(value):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {kind_of(value)}")
    number = float(value)
    if not 0 <= number <= 1:  # NaN, too
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return number


def amount(name: str, value: object, zero: bool) -> float:
    """A finite number above 0, or 0 itself where that is allowed.

    Raises:
        TypeError, ValueError: not a number, or another one; called ``name``.
    """
    if not _real(value):
        raise TypeError(f"{name}: expected {_AMOUNT[zero]}, got {kind_of(value)}")
    number = float(value)
    if not 0 <= number < math.inf or (number == 0 and not zero):  # NaN, too
        raise ValueError(f"{name}: expected {_AMOUNT[zero]}, got {value}")
    return number


def kind_of(value: object) -> str:
    """What errors call the type of a value: numpy's by their full names, since they share some of Python's."""
    kind = type(value)
    return f"numpy.{kind.__name__}" if kind.__module__ == "numpy" else kind.__name__
