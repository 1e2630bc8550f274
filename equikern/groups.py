"""Finite groups as multiplication tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .scalars import index

__all__ = ["Group", "cyclic_group", "dihedral_group", "outside_of_compiled", "product_group"]

_MAX_ORDER = 1024


def outside_of_compiled(what: str) -> None:
    """That nobody makes it inside a compiled function, which knows no values to check laws by."""
    if torch.compiler.is_dynamo_compiling():  # an error with fullgraph, by every release of torch with its message
        torch._dynamo.graph_break(
            msg=f"torch.compile: expected {what} made outside of the compiled function, since its laws are checked by "
            "its values; make it once and use it inside (grid(…) alone may be called there)"
        )


class Group:
    """A finite group with elements 0 … |G|−1, where 0 is the identity.

    Args:
        multiply: (|G|, |G|) integer table, ``multiply[g, h]`` = g∘h (h acts first).
        names: one name per element; by default ``g0 g1 …``.
        name: what error messages call the group.

    Attributes:
        order: |G|.
        names: tuple of |G| strings.
        multiply: (|G|, |G|) int64 tensor on the CPU.
        inverse: (|G|,) int64 tensor on the CPU, ``multiply[g, inverse[g]] == 0``.

    Raises:
        TypeError: the table is not made of integers, or the names are not strings.
        ValueError: the table breaks a group law; the message names the elements that break it.

    Example:
        >>> Group([[0, 1], [1, 0]]).inverse.tolist()
        [0, 1]
    """

    def __init__(
        self, multiply: Tensor | Sequence[Sequence[int]], names: Sequence[str] | None = None, name: str = "group"
    ) -> None:
        outside_of_compiled("a group")
        table = _table(multiply)
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"multiply: expected a table of integers, got {table.dtype}")
        table = table.to(dtype=torch.int64, copy=True)
        if table.dim() != 2 or table.shape[0] != table.shape[1] or table.shape[0] == 0:
            raise ValueError(f"multiply: expected a square table of shape (|G|, |G|), got {tuple(table.shape)}")
        order = table.shape[0]
        if order > _MAX_ORDER:
            raise ValueError(f"multiply: expected at most {_MAX_ORDER} elements, got {order}")
        if names is None:
            names = ["e", *(f"g{g}" for g in range(1, order))]
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"names: expected a list of {order} strings, one per element, got {names!r}")
        if len(names) != order:
            raise ValueError(f"names: expected {order} strings, one per element, got {len(names)}")
        self.order = order
        self.name = name
        self.names = tuple(names)
        self.multiply = table
        self.inverse = _checked_inverse(table, self.names)

    def __eq__(self, other: object) -> bool:
        """Equal multiplication tables; names do not count."""
        return self is other or (isinstance(other, Group) and torch.equal(self.multiply, other.multiply))

    def __hash__(self) -> int:
        return hash(self.multiply.numpy().tobytes())

    def __repr__(self) -> str:
        return f"Group({self.name}, order {self.order})"


def _table(multiply: object) -> Tensor:
    try:
        return torch.as_tensor(multiply, device="cpu")  # wherever new tensors go by default
    except (TypeError, ValueError, RuntimeError) as error:
        # Ragged, or numbers beyond 64 bits, of which older releases of torch say it is a RuntimeError.
        if isinstance(error, ValueError) or "verflow" in str(error):
            raise ValueError(f"multiply: expected a square table of integers, got this: {error}") from None
        raise TypeError(f"multiply: expected a square table of integers, got {type(multiply).__name__}") from None


def _checked_inverse(table: Tensor, names: tuple[str, ...]) -> Tensor:
    order = table.shape[0]
    outside = ((table < 0) | (table >= order)).nonzero()
    if len(outside):
        g, h = outside[0].tolist()
        raise ValueError(f"multiply: {names[g]}∘{names[h]} = {int(table[g, h])} is not an element 0 … {order - 1}")
    elements = torch.arange(order, device="cpu")
    for side, line in (("0∘g", table[0]), ("g∘0", table[:, 0])):
        wrong = (line != elements).nonzero()
        if len(wrong):
            g = int(wrong[0])
            raise ValueError(f"multiply: element 0 must be the identity, but {side} = {int(line[g])} for g = {g}")
    # Light's test: those h with (g∘h)∘k = g∘(h∘k) for all g and k are closed under ∘, so generators are enough.
    for h in _generators(table):
        wrong = (table[table[:, h]] != table[:, table[h]]).nonzero()
        if len(wrong):
            g, k = wrong[0].tolist()
            raise ValueError(
                f"multiply: not associative: ({names[g]}∘{names[h]})∘{names[k]} ≠ {names[g]}∘({names[h]}∘{names[k]})"
            )
    has_inverse = (table == 0).any(1)
    if not bool(has_inverse.all()):
        raise ValueError(f"multiply: {names[int((~has_inverse).nonzero()[0])]} has no inverse")
    return (table == 0).to(torch.uint8).argmax(1)


def _generators(table: Tensor) -> list[int]:
    """Elements of which every one is a product: those that the smaller ones do not give."""
    found = torch.zeros(table.shape[0], dtype=torch.bool, device="cpu")
    found[0] = True
    generators = []
    while not bool(found.all()):
        generators.append(int((~found).nonzero()[0]))
        found[generators[-1]] = True
        made, known = found.nonzero().flatten(), 0
        while len(made) > known:
            known = len(made)
            found[table[made][:, made]] = True
            made = found.nonzero().flatten()
    return generators


def _positive(name: str, n: int, most: int = _MAX_ORDER) -> int:
    number = index(name, n)
    if not 1 <= number <= most:
        raise ValueError(f"{name}: expected a number from 1 to {most}, got {number}")
    return number


def cyclic_group(n: int) -> Group:
    """The cyclic group C_n: element k is the k-th power of the generator, ``multiply[j, k] = (j + k) mod n``.

    Args:
        n: the order, 1 or more.

    Raises:
        TypeError, ValueError: n is not a positive whole number.

    Example:
        >>> cyclic_group(4).multiply[3, 2].item()
        1
    """
    k = torch.arange(_positive("n", n), device="cpu")
    return Group((k[:, None] + k) % n, ["e", *(f"r{i}" for i in range(1, n))], f"C{n}")


def dihedral_group(n: int) -> Group:
    """The dihedral group D_n of order 2n: element ``n·s + k`` is k rotation steps after a flip when s = 1.

    ``(r^j f^s)(r^k f^t) = r^(j + (−1)^s k) f^(s + t)``.

    Args:
        n: the number of rotations, 1 or more.

    Raises:
        TypeError, ValueError: n is not a positive whole number, or 2n is larger than a group may be.

    Example:
        >>> dihedral_group(4).names
        ('e', 'r1', 'r2', 'r3', 'f', 'r1f', 'r2f', 'r3f')
    """
    k = torch.arange(_positive("n", n, _MAX_ORDER // 2), device="cpu")
    rotation, flip = k.repeat(2), torch.arange(2, device="cpu").repeat_interleave(n)
    turned = (rotation[:, None] + torch.where(flip[:, None] == 1, -rotation, rotation)) % n
    names = ["e", *(f"r{i}" for i in range(1, n))]
    return Group(n * (flip[:, None] ^ flip) + turned, [*names, "f", *(f"{r}f" for r in names[1:])], f"D{n}")


def product_group(*groups: Group) -> Group:
    """The direct product G1 × … × GN; the last factor's index runs fastest.

    ``(g1, …, gN)∘(h1, …, hN) = (g1∘h1, …, gN∘hN)``, element ``(g1, …, gN)`` at index
    ``g1·|G2|···|GN| + … + gN``.

    Raises:
        TypeError: an argument is not a Group.
        ValueError: no group was given, or the product is larger than a group may be.

    Example:
        >>> product_group(cyclic_group(2), cyclic_group(3)).order
        6
    """
    if not groups:
        raise ValueError("groups: expected at least one group, got none")
    for i, group in enumerate(groups):
        if not isinstance(group, Group):
            raise TypeError(f"groups[{i}]: expected a Group, got {type(group).__name__}")
    order = prod(group.order for group in groups)
    if order > _MAX_ORDER:
        raise ValueError(f"groups: expected a product of at most {_MAX_ORDER} elements, got {order}")
    table = groups[0].multiply
    names = list(groups[0].names)
    for group in groups[1:]:
        m, n = table.shape[0], group.order
        table = (table[:, None, :, None] * n + group.multiply[None, :, None, :]).reshape(m * n, m * n)
        names = [f"{a}·{b}" for a in names for b in group.names]
    names[0] = "e"
    return Group(table, names, " × ".join(group.name for group in groups))
