"""What is recorded of outputs, elements and submodules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ElementError", "Finding", "Fit", "OutputAudit", "SubmoduleAudit"]


@dataclass(frozen=True)
class ElementError:
    """How far one element is from holding: the relative error of the root mean square, and of the largest entry."""

    element: str
    rms: float
    largest: float


@dataclass(frozen=True)
class Fit:
    """An action, and how well it says what an output does.

    Attributes:
        name: what reports call it.
        residual: ``‖f(gx) − g f(x)‖ / ‖f(x)‖``, the root mean square over g ≠ e.
        code: how it is written as ``out``; empty where nothing says it.
        action: the action or coordinates to give as ``out``, or None.
    """

    name: str
    residual: float
    code: str = ""
    action: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class OutputAudit:
    """One output.

    Attributes:
        name: where it is in what the model returns, such as ``['flow']``; "output" if there is one alone.
        shape, dtype: of the batch's.
        action: the action that was declared, or that fits best.
        declared: whether it was declared.
        tolerance: the relative error up to which it holds.
        errors: of every element under that action.
        fits: what fits best and what comes next.
        top1: the share of samples (pixels of a map) whose largest entry stays where the action says; None where an
            output is no logits.
        tied: how many samples have two equal largest entries, which argmax tells apart by their places alone.
        views_tied: how many samples have two views that are best by ``"max_prob"``; None where it is no logits.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: str
    declared: bool
    tolerance: float
    errors: list[ElementError]
    fits: list[Fit]
    top1: float | None = None
    tied: int | None = None
    views_tied: int | None = None

    @property
    def residual(self) -> float:
        """The root mean square of its elements' errors, without the identity's."""
        others = self.errors[1:]
        return math.sqrt(sum(error.rms**2 for error in others) / len(others)) if others else 0.0

    @property
    def holds(self) -> bool:
        """Whether all elements hold."""
        return all(error.rms <= self.tolerance for error in self.errors)


@dataclass(frozen=True)
class SubmoduleAudit:
    """One call of a submodule, in the order in which they end.

    Attributes:
        name, kind: which, and its class.
        shape: of the first tensor that it gives.
        fit: what fits that best.
        residual, residual_before: of what it gives and of what it takes, the worst of several.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    fit: str
    residual: float
    residual_before: float


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or that somebody should know.

    Attributes:
        kind: "finite", "deterministic", "batch", "output", "submodule", "border", "top-1" or "ties".
        where: the output or submodule.
        text: what.
    """

    kind: str
    where: str
    text: str
