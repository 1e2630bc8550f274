"""A launch of a kernel, planned once for every kind of call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..tuning import Choice

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """One launch, complete but for the tensors.

    The machine code depends on ``kernel``, ``pointers``, ``aligned``, ``constants`` and ``num_warps`` alone: scalars
    are never specialised on, so what a compile-time audit builds from these is what runs.
    """

    kernel: Any
    grid: tuple[int]
    pointers: tuple[torch.dtype | None, ...]
    aligned: tuple[bool, ...]
    scalars: tuple[int | float, ...]
    constants: Mapping[str, Any]
    num_warps: int
    # The same work with another block and other warps; None where results would change with them.
    variant: Callable[[Choice], Plan] | None = field(compare=False, default=None)
    # By device: what repeats the launch that was chosen for this one, and what it takes behind the tensors.
    repeat: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = field(
        init=False, compare=False, default_factory=dict
    )

    def with_units(self, value: int) -> Plan:
        """The launch of a kernel whose first scalar is the number of partial sums: that fixes the block."""
        return replace(self, scalars=(value, *self.scalars[1:]), variant=None)
