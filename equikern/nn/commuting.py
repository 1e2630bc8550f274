"""What a product of groups asks of its factors: actions that commute, and words that stand for their orbits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import lcm

import torch
from torch import Tensor

from ..actions import Action, FieldAction, GroupAction, TokenAction
from ..actions.matrix import TOLERANCE
from ..ops import orbit, symmetrize

__all__ = ["check_commuting", "looked_up", "mean_of_terms", "representatives"]


def check_commuting(name: str, actions: Sequence[GroupAction]) -> None:
    """Raise unless ``g·(h·x) = h·(g·x)`` for all elements g and h of every two of the actions.

    Each pair is tried on a tensor of random numbers, in both orders: these actions move and combine entries alike in
    every tensor.

    Args:
        name: what the message calls the list.
        actions: those of the factors of a product group, on the same tensors.

    Raises:
        TypeError: token ids beside something else.
        ValueError: actions on dims of different sizes, or a pair that does not commute; the message names the elements.

    Example:
        >>> from equikern import grid
        >>> check_commuting("inps", [grid("hflip"), grid("vflip")])
        >>> check_commuting("a", [grid("c4"), grid("hflip")])
        Traceback (most recent call last):
        ValueError: a: expected actions that commute, but rot90 of a[0] ('c4') and hflip of a[1] ('hflip') do not
    """
    for (i, a), (j, b) in combinations(enumerate(actions), 2):
        if a.views.kind.still or b.views.kind.still:
            continue
        probe = _probe(name, a, b)
        one, other = orbit(orbit(probe, a), b).transpose(0, 1), orbit(orbit(probe, b), a)
        rounding = TOLERANCE if a.views.kind.computes or b.views.kind.computes else 0.0  # what only moves is exact
        differs = ((one - other).abs() > rounding * one.abs().max()).flatten(2).any(2).nonzero()
        if len(differs):
            g, h = differs[0].tolist()
            raise ValueError(
                f"{name}: expected actions that commute, but {a.group.names[g]} of {name}[{i}] ({a.name!r}) and "
                f"{b.group.names[h]} of {name}[{j}] ({b.name!r}) do not"
            )


def _probe(name: str, a: GroupAction, b: GroupAction) -> Tensor:
    """Different numbers in a tensor that both can act on."""
    ids = [isinstance(action, TokenAction) for action in (a, b)]
    if any(ids) and not all(ids):
        raise TypeError(f"{name}: expected actions on token ids throughout or nowhere, got {a!r} and {b!r}")
    sizes: dict[int, int] = {}
    channels: dict[int, int] = {}  # of fields, which act on any multiple of theirs
    for action in (a, b):
        if isinstance(action, FieldAction):
            channels[-action.dims] = lcm(channels.get(-action.dims, 1), action.size)
            continue
        size, dim = getattr(action, "size", None), getattr(action, "dim", -1)
        if size is not None and sizes.setdefault(dim, size) != size:
            raise ValueError(f"{name}: expected actions on one size, got {sizes[dim]} ({a.name!r}) and {size}")
    for dim, n in channels.items():
        if sizes.setdefault(dim, n) % n:
            raise ValueError(
                f"{name}: expected a multiple of {n} channels on dim {dim} for {a.name!r} and {b.name!r}, got "
                f"{sizes[dim]}"
            )
    if any(ids):
        return torch.arange(sizes[-1], device="cpu")
    if a.square or b.square:
        turned = range(-max(a.sides, b.sides), 0)
        side = next((sizes[dim] for dim in turned if dim in sizes), 3)
        sizes = {**dict.fromkeys(turned, side), **sizes}
    shape = [sizes.get(dim, 3) for dim in range(-max(a.dims, b.dims), 0)]
    # Of no pattern: what two orders of products of matrices differ by can vanish on round numbers.
    numbers = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=numbers, dtype=torch.float64, device="cpu")


def representatives(
    actions: Sequence[TokenAction],
    first: Sequence[Sequence[int]] | None = None,
    said: Callable[[int], str] = "token {}".format,
) -> list[Tensor]:
    """For every factor j a map c_j of token ids that takes each id to one that stands for its G_j-orbit.

    ``c_j(g·v) = c_j(v)`` for g in G_j and ``c_j(g·v) = g·c_j(v)`` for g in every other factor: what stands for an orbit
    is taken, by the other factors, to what stands for another. Such a choice exists unless another factor moves an id
    inside its G_j-orbit, as when two factors swap the same two words.

    Args:
        actions: the factors' actions on one vocabulary, which commute.
        first: for each factor the ids to stand for their orbits, where they can be chosen freely; else the smallest.
        said: how messages call an id.

    Returns:
        (V,) int64 tensors on the CPU, one a factor.

    Raises:
        ValueError: no such choice exists; the message names the words and the factors.

    Example:
        >>> from equikern import tokens
        >>> gender = tokens([[0, 1, 2, 3], [1, 0, 3, 2]])  # man, woman, boy, girl
        >>> age = tokens([[0, 1, 2, 3], [2, 3, 0, 1]])
        >>> [c.tolist() for c in representatives([gender, age])]
        [[0, 0, 2, 2], [0, 1, 0, 1]]
    """
    found = []
    for j, own in enumerate(actions):
        chosen = torch.arange(own.size, device="cpu")
        moved = (own.perm != chosen).any(0)
        preferred = [] if first is None else [v for v in first[j] if bool(moved[v])]
        done: set[int] = set()
        for start in [*preferred, *moved.nonzero().flatten().tolist()]:
            if start in done:
                continue
            chosen[own.perm[:, start]] = start
            done.update(own.perm[:, start].tolist())
            reached = [start]  # and where the other factors take it: each stands for its orbit under this one
            for v in reached:
                for i, other in enumerate(actions):
                    for w in other.perm[:, v].tolist() if i != j else ():
                        if w not in done:
                            reached.append(w)
                            chosen[own.perm[:, w]] = w
                            done.update(own.perm[:, w].tolist())
                        elif int(chosen[w]) != w:
                            raise ValueError(
                                f"factor {j}: expected words to stand for its orbits that the other factors take to "
                                f"each other, but factor {i} takes {said(v)} to {said(w)}, for whose orbit under "
                                f"factor {j} {said(int(chosen[w]))} has to stand"
                            )
        found.append(chosen)
    return found


def mean_of_terms(terms: Iterable[Tensor | None], actions: Sequence[Action]) -> Tensor:
    """``1/N Σ_i Sym_{G_j, j≠i} terms[i]``: every factor's term, symmetrised under all other factors; None adds nothing.

    One at least is a tensor.
    """
    total: Tensor | None = None
    for i, term in enumerate(terms):
        if term is None:
            continue
        for j, other in enumerate(actions):
            if j != i:
                term = symmetrize(term, other)
        total = term if total is None else total + term
    assert total is not None
    return total / len(actions)


def looked_up(name: str, table: Tensor, ids: Tensor) -> Tensor:
    """What stands for every id; ids outside the vocabulary are named on the CPU alone, as looking costs a wait."""
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = (ids < 0) | (ids >= len(table))
        if bool(outside.any()):
            raise ValueError(f"{name}: expected token ids from 0 to {len(table) - 1}, got {ids[outside][0].item()}")
    # Not by brackets, which take −1 for the last one.
    return table.to(ids.device).index_select(0, ids.flatten().long()).reshape(ids.shape).to(ids.dtype)
