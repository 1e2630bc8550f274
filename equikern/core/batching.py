"""How ``torch.vmap`` batches the registered operators: one more leading dim, and the same kernel.

Every operator takes its samples' leading dims as they come. So a batch becomes the first of them: in front of a sample,
behind the group axis of views, weights and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["batched", "one_by_one"]

Rule = Callable[..., tuple[Any, Any]]  # of torch.library.register_vmap


def with_batch(t: Tensor | None, dim: int | None, start: int, size: int) -> Tensor | None:
    """A tensor whose batch is at ``start``, repeated there if it has none."""
    if t is None:
        return None
    if dim is not None:
        return t.movedim(dim, start)
    return t.unsqueeze(start).expand(*t.shape[:start], size, *t.shape[start:])


def batched(
    call: Callable[..., Any],
    starts: Sequence[int | None],
    results: Sequence[int],
    more_dims: Sequence[int] = (),
    small: Sequence[int] = (),
) -> Rule:
    """The rule of an operator whose argument i has its leading dims from ``starts[i]`` on; None: it is not batched.

    Args:
        call: the operator.
        starts: for each argument.
        results: where the leading dims of each result start.
        more_dims: arguments that count leading dims.
        small: those that must be contiguous.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        taken = list(arguments)
        for i, argument in enumerate(arguments):
            start = starts[i] if i < len(starts) else None
            if start is not None:
                taken[i] = with_batch(argument, in_dims[i], start, info.batch_size)
            elif in_dims[i] is not None:
                raise ValueError(
                    f"action: expected the same one for all samples of vmap, got a batch of {info.batch_size} tables"
                )
        for i in more_dims:
            taken[i] += 1
        for i in small:
            if taken[i] is not None:
                taken[i] = taken[i].contiguous()
        found = call(*taken)
        return found, tuple(results) if isinstance(found, tuple) else results[0]

    return rule


def one_by_one(call: Callable[..., Any]) -> Rule:
    """The rule of an operator that can't take a batch at once: a sample at a time."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        found = [
            call(*(a if d is None else a.select(d, k) for a, d in zip(arguments, in_dims, strict=True)))
            for k in range(info.batch_size)
        ]
        if isinstance(found[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0,) * len(found[0])
        return torch.stack(found), 0

    return rule
