"""Actions on a grid: rotations and flips of the trailing (H, W) or (D, H, W) dims."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from itertools import product as choices
from typing import Any

from ..groups import Group
from ..scalars import index, kind_of
from ..views import of
from ..views.grid import compose
from ..views.maps import Maps
from .base import GroupAction

__all__ = ["GridAction", "grid", "trivial"]

_composed = lru_cache(maxsize=8192)(compose)  # for tables of whole groups


class GridAction(GroupAction):
    """A group acting on the trailing (H, W) or (D, H, W) dims by signed axis permutations, or on nothing (words ``.``).

    A word has one letter per output axis, naming the input axis it reads, upper case where that axis is read backwards:
    ``hw`` is the identity, ``hW`` the horizontal flip and ``Wh`` the quarter turn of ``torch.rot90``; volumes have the
    letters d, h and w.

    Args:
        group: the acting group.
        words: one word per element; ``words[0]`` is the identity.
        name: what error messages call the action.

    Raises:
        TypeError: group is not a Group or a word is not a string.
        ValueError: a word is malformed, their number is not |G|, or ``act(g∘h, x) = act(g, act(h, x))`` fails; the
            message names the pair.

    Example:
        >>> import torch
        >>> from equikern import cyclic_group
        >>> GridAction(cyclic_group(2), ["hw", "hW"], "mirror").act(1, torch.tensor([[1, 2]])).tolist()
        [[2, 1]]
    """

    def __init__(self, group: Group, words: Sequence[str], name: str = "grid") -> None:
        if not isinstance(group, Group):
            raise TypeError(f"group: expected a Group, got {type(group).__name__}")
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise TypeError(f"words: expected a list of strings, got {words!r}")
        if len(words) != group.order:
            raise ValueError(f"words: expected {group.order}, one per element of {group.name}, got {len(words)}")
        of(" ".join(words))  # which knows the language
        table = [] if words[0] == "." else group.multiply.tolist()  # doing nothing is always an action
        for g, row in enumerate(table):
            for h, product in enumerate(row):
                if _composed(words[g], words[h]) != words[product]:
                    raise ValueError(
                        f"words: not an action of {group.name}: {group.names[g]} after {group.names[h]} gives "
                        f"{compose(words[g], words[h])!r}, but {group.names[product]} is {words[product]!r}"
                    )
        super().__init__(group, name, Maps(" ".join(words)))

    def __reduce__(self) -> tuple[Any, ...]:
        return GridAction, (self.group, self.words, self.name)


_ROTATIONS = ("hw", "Wh", "HW", "wH")
_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trivial": (("hw",), ("e",)),
    "c2": (("hw", "HW"), ("e", "rot180")),
    "c4": (_ROTATIONS, ("e", "rot90", "rot180", "rot270")),
    "d4": (
        _ROTATIONS + tuple(compose(r, "hW") for r in _ROTATIONS),
        ("e", "rot90", "rot180", "rot270", "hflip", "rot90·hflip", "rot180·hflip", "rot270·hflip"),
    ),
    "hflip": (("hw", "hW"), ("e", "hflip")),
    "vflip": (("hw", "Hw"), ("e", "vflip")),
    "flips": (("hw", "hW", "Hw", "HW"), ("e", "hflip", "vflip", "rot180")),
}


def _rotations_of_the_cube() -> tuple[str, ...]:
    """The signed permutations of d, h and w that keep left and right apart: an even number of swaps and flips."""
    words = []
    for order in permutations("dhw"):
        swaps = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3))
        for flips in choices((False, True), repeat=3):
            if (swaps + sum(flips)) % 2 == 0:
                words.append("".join(a.upper() if flip else a for a, flip in zip(order, flips, strict=True)))
    return tuple(words)


_CUBE = _rotations_of_the_cube()
_WORDS_3D: dict[str, tuple[str, ...]] = {
    "flips3d": tuple("".join(word) for word in choices("dD", "hH", "wW")),
    "rot3d": _CUBE,
    "oct": _CUBE + tuple(compose(r, "dhW") for r in _CUBE),
}


def grid(name: str, dims: int | None = None) -> GridAction:
    """A named group of rotations and flips of the trailing (H, W) dims, or of (D, H, W).

    ========= ===== ==================================================================
    name      order elements
    ========= ===== ==================================================================
    trivial   1     the identity; of volumes with dims=3
    c2        2     identity, rotation by 180°
    c4        4     element k is ``torch.rot90(x, k, (-2, -1))``
    d4        8     element 4·s + k is rot90 by k after a horizontal flip when s = 1
    hflip     2     identity, flip of the last dim
    vflip     2     identity, flip of the second last dim
    flips     4     identity, horizontal, vertical, both
    flips3d   8     of volumes: element 4·a + 2·b + c flips D if a, H if b, W if c
    rot3d     24    of volumes: the rotations of the cube, in the order of their words
    oct       48    of volumes: element 24·s + k is rotation k after a flip of W when s = 1
    ========= ===== ==================================================================

    In three dims ``group.names`` are words: the letter in each place is the input axis that this output axis reads,
    upper case where it reads it backwards. So ``dWh`` is ``torch.rot90(x, 1, (-2, -1))``.

    Args:
        name: one of the names above.
        dims: the number of spatial dims, 2 or 3; None: 3 for the last three names, otherwise 2.

    Raises:
        TypeError, ValueError: an unknown name or number of dims.

    Example:
        >>> grid("d4").order
        8
        >>> import torch
        >>> grid("c4").act(1, torch.tensor([[1, 2], [3, 4]])).tolist()
        [[2, 4], [1, 3]]
        >>> grid("flips3d").act(4, torch.tensor([[[1, 2]], [[3, 4]]])).tolist()
        [[[3, 4]], [[1, 2]]]
    """
    names = ", ".join((*_WORDS, *_WORDS_3D))
    if not isinstance(name, str):
        raise TypeError(f"name: expected one of {names}, got {type(name).__name__}")
    found = _named.get(name)
    if found is None:
        raise ValueError(f"name: expected one of {names}, got {name!r}")
    if dims is None:
        dims = 3 if name in _WORDS_3D else 2
    try:
        dims = index("dims", dims)
    except TypeError:
        raise TypeError(f"dims: expected 2, 3 or None, got {kind_of(dims)}") from None
    if dims not in found:
        raise ValueError(f"dims: expected {' or '.join(map(str, found))} for {name!r}, got {dims!r}")
    return found[dims]


def _make(name: str, words: tuple[str, ...], names: tuple[str, ...]) -> GridAction:
    place = {word: g for g, word in enumerate(words)}
    table = [[place[_composed(g, h)] for h in words] for g in words]
    return GridAction(Group(table, names, name), words, name)


# Made at import, so that a compiled function or one traced on fake tensors may ask for them.
_named = {name: {2: _make(name, *words)} for name, words in _WORDS.items()}
_named |= {name: {3: _make(name, words, ("e", *words[1:]))} for name, words in _WORDS_3D.items()}
_named["trivial"][3] = _make("trivial", ("dhw",), ("e",))


def trivial(group: Group) -> GridAction:
    """The action that leaves everything where it is: what an invariant output has, such as class logits.

    Args:
        group: the acting group; its order is the size of the group axis.

    Raises:
        TypeError: group is not a Group.

    Example:
        >>> from equikern import cyclic_group
        >>> trivial(cyclic_group(3)).words
        ('.', '.', '.')
    """
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a Group, got {type(group).__name__}; pass the group, e.g. grid('c4').group")
    return GridAction(group, ["."] * group.order, "trivial")
