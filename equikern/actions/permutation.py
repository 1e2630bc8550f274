"""Actions by permutations: of one dim of a tensor, with signs if wanted, and of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..groups import Group, outside_of_compiled
from ..scalars import index
from ..views.maps import Maps, Tables
from ..views.permutation import permutation_table
from .base import GroupAction, Tabled, a_group, check_rows

__all__ = ["PermutationAction", "TokenAction", "after", "dim_from_end", "permutation", "tokens"]

_MOST = 2**31 - 1  # positions are int32
Table = Tensor | Sequence[Sequence[int]]


class PermutationAction(Tabled):
    """A group that permutes the entries of one dim, and may change their signs; made by ``permutation``.

    ``(g·y)[perm[g, i]] = signs[g, i] · y[i]``. Made directly, it checks what ``permutation`` checks.

    Attributes:
        perm: (|G|, n) int64 tensor on the CPU.
        signs: (|G|, n) int64 tensor of 1 and −1, or None where no sign changes.
        dim: the permuted dim, counted from the end.

    Example:
        >>> action = permutation([[0, 1], [1, 0]])
        >>> action.act(1, torch.tensor([[3, 4], [5, 6]])).tolist(), action.size
        ([[4, 3], [6, 5]], 2)
    """

    def __init__(self, group: Group, perm: Table, signs: Table | None, dim: int, name: str = "permutation") -> None:
        rows, factors = _rows(perm, signs)
        self._set(_checked("perm", rows, factors, a_group(group)), rows, factors, dim_from_end(dim), name)

    def _set(self, group: Group, perm: Tensor, signs: Tensor | None, dim: int, name: str = "permutation") -> None:
        back = perm if signs is None else torch.where(signs < 0, ~perm, perm)  # (g⁻¹y)[i] = sign[g, i] · y[perm[g, i]]
        i = torch.arange(perm.shape[1], device="cpu").expand_as(perm)
        source = torch.empty_like(perm).scatter_(1, perm, i if signs is None else torch.where(signs < 0, ~i, i))
        kinds = (source != i).any(1).int() + (source < 0).any(1).int()
        words = " ".join(".x~"[kind] for kind in kinds.tolist())
        table = Tables.made(permutation_table(source, back))
        GroupAction.__init__(self, group, name, Maps(f"permutation {dim} {perm.shape[1]}: {words}", table))
        self.perm, self.signs, self.dim = perm, signs, dim

    @property
    def size(self) -> int:
        """n, the entries of the permuted dim."""
        return self.perm.shape[1]

    def along(self, dim: int) -> PermutationAction:
        """The same permutations of another dim, counted from the end."""
        dim = dim_from_end(dim)
        return self if dim == self.dim else PermutationAction.made(self.group, self.perm, self.signs, dim, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return PermutationAction.made, (self.group, self.perm, self.signs, self.dim, self.name)


class TokenAction(Tabled):
    """A group that maps token ids to token ids, ``v ↦ perm[g, v]``; made by ``tokens``.

    Made directly, it checks what ``tokens`` checks.

    Attributes:
        perm: (|G|, V) int64 tensor on the CPU.
        logits: the ``PermutationAction`` of the same group on the last dim of logits, probabilities or scores.

    Example:
        >>> action = tokens([[0, 1, 2], [1, 0, 2]])
        >>> action.act(1, torch.tensor([0, 2])).tolist(), action.logits
        ([1, 2], PermutationAction('tokens', order 2))
    """

    def __init__(self, group: Group, perm: Table, name: str = "tokens") -> None:
        rows = _permutations("perm", perm)
        self._set(_checked("perm", rows, None, a_group(group)), rows, name)

    def _set(self, group: Group, perm: Tensor, name: str = "tokens") -> None:
        every = torch.arange(perm.shape[1], device="cpu").expand_as(perm)
        inverse = torch.empty_like(perm).scatter_(1, perm, every)
        words = " ".join(".x"[moves] for moves in (perm != every).any(1).tolist())
        table = Tables.made(torch.stack((perm, inverse)).to(torch.int32))
        GroupAction.__init__(self, group, name, Maps(f"tokens {perm.shape[1]}: {words}", table))
        self.perm = perm
        self.logits = PermutationAction.made(group, perm, None, -1, name)

    @property
    def size(self) -> int:
        """V, the size of the vocabulary."""
        return self.perm.shape[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenAction.made, (self.group, self.perm, self.name)


def permutation(
    perm: Table, signs: Table | None = None, dim: int = -1, *, group: Group | None = None
) -> PermutationAction:
    """A group acting on one dim by (signed) permutations: ``(g·y)[perm[g, i]] = signs[g, i] · y[i]``.

    What a group does to logits when it maps tokens, to Q-values when it maps actions, to the state of a pendulum, to
    the channels of a label image. ``orbit`` applies g; ``orbit_mean`` and the like gather back: ``(g⁻¹y)[v] =
    signs[g, v] · y[perm[g, v]]``.

    Args:
        perm: (|G|, n) integers, each row a permutation of 0 … n − 1, row 0 the identity.
        signs: (|G|, n) of 1 and −1, row 0 all 1; None for no change of sign.
        dim: the permuted dim, counted from the end, so that it is the same one for x and for its orbit.
        group: the group that the rows stand for; by default the one that they form, which asks that they differ.

    Raises:
        TypeError: not integers, not a Group.
        ValueError: a row that is no permutation, signs other than ±1, a dim that is not negative, rows that are no
            action of the group; the message names the row, or the pair that breaks it.

    Example:
        >>> import torch
        >>> from equikern import orbit, orbit_mean
        >>> swap = permutation([[0, 1, 2], [1, 0, 2]])
        >>> orbit(torch.tensor([0.1, 0.2, 0.7]), swap)[1].tolist() == torch.tensor([0.2, 0.1, 0.7]).tolist()
        True
        >>> orbit_mean(torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]]), swap).tolist()
        [3.5, 3.0, 5.5]
    """
    rows, factors = _rows(perm, signs)
    return PermutationAction.made(_checked("perm", rows, factors, group), rows, factors, dim_from_end(dim))


def tokens(perm: Table, *, group: Group | None = None) -> TokenAction:
    """A group acting on token ids: ``v ↦ perm[g, v]``. Its ``logits`` is what the group does to a model's output.

    Args:
        perm: (|G|, V) integers, each row a permutation of the vocabulary 0 … V − 1, row 0 the identity.
        group: the group that the rows stand for; by default the one that they form, which asks that they differ.

    Raises:
        TypeError: not integers, not a Group.
        ValueError: a row that is no permutation, or rows that are no action; the message names the row or the pair.

    Example:
        >>> import torch
        >>> from equikern import orbit
        >>> cycle = tokens([[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]])
        >>> orbit(torch.tensor([3, 0, 1]), cycle).tolist()
        [[3, 0, 1], [3, 1, 2], [3, 2, 0]]
    """
    rows = _permutations("perm", perm)
    return TokenAction.made(_checked("perm", rows, None, group), rows)


def dim_from_end(dim: object) -> int:
    """A dim as actions take it, counted from the end: the same for an input and for its orbit.

    Raises:
        TypeError: not a whole number.
        ValueError: not below zero.

    Example:
        >>> dim_from_end(-3)
        -3
    """
    number = index("dim", dim)
    if number >= 0:
        raise ValueError(
            f"dim: expected a negative number, counted from the end, so that it names one dim of an input and of its "
            f"orbit alike; got {number}"
        )
    return number


def _integers(name: str, values: object) -> Tensor:
    try:
        table = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a table of integers of shape (|G|, n), got this: {error}") from None
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise TypeError(f"{name}: expected a table of integers, got {table.dtype}")
    if table.dim() != 2 or 0 in table.shape:
        raise ValueError(f"{name}: expected a table of shape (|G|, n), got shape {tuple(table.shape)}")
    return table.to(torch.int64, copy=True)


def _rows(perm: Table, signs: Table | None) -> tuple[Tensor, Tensor | None]:
    """Checked permutations and signs, None where none changes."""
    rows = _permutations("perm", perm)
    factors = None if signs is None else _signs(signs, rows)
    return rows, None if factors is None or bool((factors > 0).all()) else factors


def _permutations(name: str, values: object) -> Tensor:
    outside_of_compiled("permutations")
    rows = _integers(name, values)
    n = rows.shape[1]
    if n > _MOST:
        raise ValueError(f"{name}: expected at most {_MOST} entries, got {n}")
    outside = ((rows < 0) | (rows >= n)).nonzero()
    if len(outside):
        g, i = outside[0].tolist()
        raise ValueError(f"{name}: expected entries from 0 to {n - 1}, got {int(rows[g, i])} in row {g} at {i}")
    twice = torch.zeros_like(rows).scatter_add_(1, rows, torch.ones_like(rows)) > 1
    if bool(twice.any()):
        g, value = twice.nonzero()[0].tolist()
        places = (rows[g] == value).nonzero().flatten().tolist()
        raise ValueError(f"{name}: row {g} is no permutation: {value} comes from {places[0]} and from {places[1]}")
    moved = (rows[0] != torch.arange(n, device="cpu")).nonzero()
    if len(moved):
        i = int(moved[0])
        raise ValueError(f"{name}: row 0 must be the identity, but it takes {i} to {int(rows[0, i])}")
    return rows


def _signs(values: object, rows: Tensor) -> Tensor:
    signs = _integers("signs", values)
    if signs.shape != rows.shape:
        raise ValueError(f"signs: expected the shape of perm, {tuple(rows.shape)}, got {tuple(signs.shape)}")
    wrong = (signs.abs() != 1).nonzero()
    if len(wrong):
        g, i = wrong[0].tolist()
        raise ValueError(f"signs: expected 1 or -1, got {int(signs[g, i])} in row {g} at {i}")
    if bool((signs[0] < 0).any()):
        raise ValueError("signs: row 0 belongs to the identity, so expected 1 throughout, got -1 in it")
    return signs


def _checked(name: str, rows: Tensor, signs: Tensor | None, group: Group | None) -> Group:
    """The group of the rows, which must be an action of it.

    Only the entries that something moves matter, and they are moved among themselves.
    """
    some = (rows != torch.arange(rows.shape[1], device="cpu")).any(0)
    if signs is not None:
        some |= (signs < 0).any(0)
    kept = some.nonzero().flatten()
    small = torch.searchsorted(kept, rows[:, kept])
    factors = torch.ones_like(small) if signs is None else signs[:, kept]
    order = len(rows)
    check_rows(name, order, group)
    known: dict[bytes, int] = {}
    for g in range(order):
        first = known.setdefault(_key(small[g], factors[g]), g)
        if first != g and group is None:
            raise ValueError(f"{name}: rows {first} and {g} are the same; expected different ones, or group=…")
    names = group.names if group is not None else [f"row {g}" for g in range(order)]
    multiply = torch.empty((order, order), dtype=torch.int64, device="cpu")
    for g in range(order):
        products = after((small[g], factors[g]), (small, factors))
        if group is None:
            for h in range(order):
                found = known.get(_key(products[0][h], products[1][h]), -1)
                if found < 0:
                    raise ValueError(f"{name}: not a group: row {g} after row {h} is not among the {order} rows")
                multiply[g, h] = found
            continue
        row = group.multiply[g]
        wrong = ((products[0] != small[row]) | (products[1] != factors[row])).any(1).nonzero()
        if len(wrong):
            h = int(wrong[0])
            raise ValueError(
                f"{name}: not an action of {group.name}: {names[g]} after {names[h]} is not row {int(row[h])}, which "
                f"is to be {names[int(row[h])]}"
            )
    return group if group is not None else Group(multiply, name=f"permutations of {rows.shape[1]}")


def _key(perm: Tensor, signs: Tensor) -> bytes:
    return torch.stack((perm, signs)).numpy().tobytes()


def after(g: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(permutation, signs) of doing h, or each row of h, first, then g."""
    return g[0][h[0]], g[1][h[0]] * h[1]
