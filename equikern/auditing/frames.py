"""What is known of an audited call: the group, how it acts on the input, and the image's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..actions import Action, FieldAction, GridAction
from ..groups import Group

__all__ = ["Frame", "relative", "tolerance_of"]

_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-8}


@dataclass(frozen=True)
class Frame:
    """How a group acts on the input that leads, and what this is.

    Attributes:
        action: on the input.
        group: the acting group.
        sides: of the input's grid, (H, W) or (D, H, W); nothing where there is none.
        batch: B.
    """

    action: Action
    group: Group
    sides: tuple[int, ...]
    batch: int

    @property
    def grid(self) -> GridAction | None:
        """What the group does to the input's grid, if it has one."""
        if isinstance(self.action, FieldAction):
            return self.action.grid
        return self.action if isinstance(self.action, GridAction) and self.action.sides else None

    @property
    def order(self) -> int:
        """|G|."""
        return self.group.order


def tolerance_of(dtype: torch.dtype) -> float:
    """The relative error up to which a symmetry holds, unless somebody says another."""
    return _TOLERANCES.get(dtype, 1e-4)


def relative(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The relative error of a tensor: of the root mean square, and of the largest entry; ∞ where shapes differ.

    Example:
        >>> relative(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        (0.1, 0.125)
    """
    if found.shape != wanted.shape:
        return torch.inf, torch.inf
    if not found.numel():
        return 0.0, 0.0
    a, b = numbers(found), numbers(wanted)
    off = a - b
    if not bool(off.isfinite().all()):
        return torch.inf, torch.inf
    size = float(torch.linalg.vector_norm(b, dtype=torch.float64))
    error = float(torch.linalg.vector_norm(off, dtype=torch.float64))
    most, largest = float(off.abs().max()), float(b.abs().max())
    return _ratio(error, size), _ratio(most, largest)


def numbers(t: Tensor) -> Tensor:
    """A tensor of any dtype as real numbers."""
    if t.is_complex():
        t = torch.view_as_real(t)
    return t if t.dtype in (torch.float32, torch.float64) else t.to(torch.float32)


def _ratio(error: float, size: float) -> float:
    return error / size if size else 0.0 if not error else torch.inf
