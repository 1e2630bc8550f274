"""Rotations and flips of a grid of tokens, as vision transformers have them: permutations of the tokens' dim."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from ..core import checks
from ..groups import outside_of_compiled
from ..scalars import kind_of
from .grid import GridAction, grid
from .permutation import PermutationAction

__all__ = ["patches"]


def patches(action: GridAction | str, size: int | Sequence[int], prefix: int = 1) -> PermutationAction:
    """What a group of rotations and flips of an image does to the tokens (\\*, N, C) of its patches.

    The N tokens are ``prefix`` ones that nothing moves, such as the class token and registers, and behind them the H·W
    patches, row by row. To be given as ``out`` for the hidden states of a vision transformer, or as ``inp`` for tokens
    that go into one; ``patches(…).along(-1)`` is the same of tokens without channels (\\*, N), such as masks.

    Args:
        action: what the group does to the image, or its name such as ``"d4"``; of volumes with three sizes.
        size: (H, W), how many patches there are; one number for as many on every side.
        prefix: how many tokens are in front of the patches.

    Raises:
        TypeError: an action that is none of grids, sizes that are no whole numbers.
        ValueError: an unknown name, sizes below 1 or of another number of sides, or sides of different sizes that a
            quarter turn exchanges: the tokens of the turned image then lie on another grid.

    Example:
        >>> tokens = torch.arange(5.0).view(5, 1)  # a class token, and two rows of two patches
        >>> patches("hflip", 2).act(1, tokens).flatten().tolist()
        [0.0, 2.0, 1.0, 4.0, 3.0]
    """
    outside_of_compiled("patches")
    if isinstance(action, str):
        action = grid(action)
    if not isinstance(action, GridAction) or not action.sides:
        raise TypeError(f"action: expected one on a grid, or a name such as 'd4', got {action!r}")
    several = isinstance(size, Sequence) and not isinstance(size, str)
    given = list(size) if several else [size] * action.sides  # type: ignore[arg-type]
    if len(given) != action.sides:
        raise ValueError(f"size: expected {action.sides} numbers for {action.name!r}, got {kind_of(size)} {size!r}")
    sides = [checks.whole("size", side, 1) for side in given]
    prefix = checks.whole("prefix", prefix, 0)
    if not action.views.keeps(sides):
        raise ValueError(
            f"size: expected equal sides where {action.name!r} exchanges them, got {'×'.join(map(str, sides))}"
        )
    places = torch.arange(prod(sides), device="cpu").view(sides)
    front = torch.arange(prefix, device="cpu")
    # Entry i of the view shows sources[i]; perm says the other way round where each entry goes.
    sources = [torch.cat((front, prefix + action.act(g, places).flatten())) for g in range(action.order)]
    perm = torch.stack([source.argsort() for source in sources])
    return PermutationAction.made(action.group, perm, None, -2, f"patches of {action.name}")
