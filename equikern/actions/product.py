"""The action of a product of groups whose actions commute."""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups import outside_of_compiled, product_group
from ..views.grid import compose
from .base import GroupAction
from .grid import GridAction
from .permutation import PermutationAction, TokenAction, after

__all__ = ["product_action"]


def product_action(*actions: GroupAction) -> GroupAction:
    """The action of the direct product of groups whose actions commute: ``(g1, g2, …)·x = g1·(g2·(… x))``.

    The element order is that of ``product_group``: the last factor varies fastest.

    Args:
        actions: two or more of one kind: all of token ids, all permutations of the same dim, or all of the grid.

    Raises:
        TypeError: not actions of one kind.
        ValueError: sizes or dims that differ, or actions that do not commute; the message names the pair.

    Example:
        >>> from equikern import tokens
        >>> gender = tokens([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]])
        >>> number = tokens([[0, 1, 2, 3, 4], [0, 1, 3, 2, 4]])
        >>> product_action(gender, number).perm[3].tolist()
        [1, 0, 3, 2, 4]
    """
    outside_of_compiled("products")
    kinds = {type(action) for action in actions}
    if len(actions) < 2 or len(kinds) != 1 or not kinds <= {GridAction, PermutationAction, TokenAction}:
        raise TypeError(
            "actions: expected two or more of one kind (grid, permutation or tokens), got "
            f"{', '.join(type(action).__name__ for action in actions) or 'none'}"
        )
    result = actions[0]
    for other in actions[1:]:
        result = _product(result, other)
    return result


def _product(a: GroupAction, b: GroupAction) -> GroupAction:
    group = product_group(a.group, b.group)
    name = f"{a.name}×{b.name}"
    if isinstance(a, GridAction):
        if a.dims and b.dims and a.dims != b.dims:
            raise ValueError(
                f"actions: expected grids of one number of dims, got {a.dims} ({a.name!r}) and {b.dims} ({b.name!r})"
            )
        words = []
        for g, outer in enumerate(a.words):
            for h, inner in enumerate(b.words):
                if "." in (outer, inner):
                    raise ValueError("actions: expected actions on the grid, got the trivial one, which has no dims")
                _commute(compose(outer, inner) == compose(inner, outer), a, g, b, h)
                words.append(compose(outer, inner))
        return GridAction(group, words, name)
    assert isinstance(a, (PermutationAction, TokenAction))
    assert isinstance(b, (PermutationAction, TokenAction))
    if a.size != b.size:
        raise ValueError(f"actions: expected permutations of one size, got {a.size} ({a.name!r}) and {b.size}")
    perm = torch.empty((group.order, a.size), dtype=torch.int64, device="cpu")
    signs = torch.ones_like(perm)
    sign_a, sign_b = _all_signs(a), _all_signs(b)
    for g in range(a.order):
        for h in range(b.order):
            row = g * b.order + h
            perm[row], signs[row] = after((a.perm[g], sign_a[g]), (b.perm[h], sign_b[h]))
            other = after((b.perm[h], sign_b[h]), (a.perm[g], sign_a[g]))
            _commute(torch.equal(perm[row], other[0]) and torch.equal(signs[row], other[1]), a, g, b, h)
    if isinstance(a, TokenAction):
        return TokenAction.made(group, perm, name)
    assert isinstance(b, PermutationAction)
    if a.dim != b.dim:
        raise ValueError(f"actions: expected permutations of one dim, got dims {a.dim} and {b.dim}")
    return PermutationAction.made(group, perm, signs if bool((signs < 0).any()) else None, a.dim, name)


def _commute(holds: bool, a: GroupAction, g: int, b: GroupAction, h: int) -> None:
    if not holds:
        raise ValueError(
            f"actions: expected actions that commute, but {a.group.names[g]} of {a.name!r} and {b.group.names[h]} of "
            f"{b.name!r} do not"
        )


def _all_signs(action: PermutationAction | TokenAction) -> Tensor:
    signs = action.signs if isinstance(action, PermutationAction) else None
    return torch.ones_like(action.perm) if signs is None else signs
