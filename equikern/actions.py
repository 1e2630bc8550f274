"""Actions of a group on tensors.

A view of the trailing spatial dims is a signed axis permutation, written as a word: one letter per output axis,
naming the input axis it reads, upper case where that axis is read backwards. ``hw`` is the identity, ``hW`` the
horizontal flip and ``Wh`` the quarter turn of ``torch.rot90``; volumes have the letters d, h and w. A word ``.`` moves
nothing (no spatial dims). Permutations of one dim and maps of token ids have words too, which name an entry of a
register (``tables.py``; their actions are in ``permutations.py``), and so have matrices on the last dim
(``matrix_tables.py``, ``matrices.py``) and fields, whose words pair one of the channels with one of the grid
(``field_tables.py``, ``fields.py``). The kernels take all the words of an action as one string, so that an operator's
schema needs no objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from itertools import product as choices

import torch
from torch import Tensor

from . import field_tables, matrix_tables, tables
from .groups import Group

__all__ = ["Action", "GridAction", "GroupAction", "grid", "trivial"]

_AXES = {2: "hw", 3: "dhw"}  # by the number of spatial dims


def apply_word(x: Tensor, word: str) -> Tensor:
    """One view of x (*lead, H, W), in plain torch; a view of x where strides allow, a copy where they do not."""
    if word == ".":
        return x
    if tables.permutes(word):
        return _permuted(x, word)
    if matrix_tables.multiplies(word):
        return _multiplied(x, word)
    if field_tables.is_field(word):
        channels, word = field_tables.parts(word)
        return _mixed(apply_word(x, word), channels, -len(word) - 1)
    lead, axes = x.dim() - len(word), _AXES[len(word)]
    turned = x.permute(*range(lead), *(lead + axes.index(letter.lower()) for letter in word))
    reverse = [lead + axis for axis, letter in enumerate(word) if letter.isupper()]
    return turned.flip(reverse) if reverse else turned


def _permuted(x: Tensor, word: str) -> Tensor:
    dim = tables.moved_dim(word)
    source = tables.table(word).on(x.device).whole[0]  # type: ignore[union-attr]  # it is a permutation
    if dim == 0:
        outside = (x < 0) | (x >= len(source))
        if bool(outside.any()):
            raise ValueError(f"x: expected token ids from 0 to {len(source) - 1}, got {int(x[outside][0])}")
        return source[x.long()].to(x.dtype)
    minus = source < 0
    moved = x.index_select(dim, torch.where(minus, ~source, source).long())
    return torch.where(minus.reshape(-1, *(1,) * (-dim - 1)), -moved, moved) if bool(minus.any()) else moved


def _multiplied(x: Tensor, word: str) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = matrix_tables.table(word).on(x.device, wide)[0]
    # Not matmul, which autocast and TF32 would round.
    return (x.to(wide).unsqueeze(-2) * rows).sum(-1).to(x.dtype)


def _mixed(x: Tensor, channels: str, dim: int) -> Tensor:
    size = field_tables.size(field_tables.word(channels, ""))
    fields = x.unflatten(dim, (x.shape[dim] // size, size))  # type: ignore[no-untyped-call]
    if matrix_tables.multiplies(channels):
        mixed = _multiplied(fields.movedim(dim, -1), channels).movedim(-1, dim)
    else:
        mixed = _permuted(fields, channels)
    return mixed.flatten(dim - 1, dim)


def axis_order(word: str) -> tuple[int, ...] | None:
    """The dim that each of a view's spatial dims shows, counted from the end; None where all stay in place."""
    if word == "." or word[0] in "ptm":
        return None
    if field_tables.is_field(word):
        _, word = field_tables.parts(word)
    axes = _AXES[len(word)]
    order = tuple(axes.index(letter.lower()) - len(word) for letter in word)
    return None if order == tuple(range(-len(word), 0)) else order


def view_shape(shape: Sequence[int], word: str) -> tuple[int, ...]:
    """The shape of a view of a (*lead, H, W) tensor: sides change places where a rectangle is turned."""
    order = axis_order(word)
    return tuple(shape) if order is None else (*shape[: -len(order)], *(shape[axis] for axis in order))


def compose(outer: str, inner: str) -> str:
    """The word of ``apply_word(apply_word(x, inner), outer)``, both of grids or fields with as many dims."""
    if outer == ".":
        return "."
    if field_tables.is_field(outer) or field_tables.is_field(inner):
        last, outer = field_tables.parts(outer) if field_tables.is_field(outer) else ("", outer)
        first, inner = field_tables.parts(inner) if field_tables.is_field(inner) else ("", inner)
        channels = field_tables.after(last, first) if first and last else first or last
        return field_tables.word(channels, compose(outer, inner))
    axes = _AXES[len(outer)]
    letters = []
    for letter in outer:
        read = inner[axes.index(letter.lower())]
        letters.append(read.swapcase() if letter.isupper() else read)
    return "".join(letters)


_composed = lru_cache(maxsize=8192)(compose)  # for tables of whole groups


def _check_words(name: str, words: Sequence[str]) -> None:
    multiply = [word for word in words if matrix_tables.is_registered(word)]
    if multiply:
        if len(multiply) < len(words) or len({len(matrix_tables.entry(word)) for word in words}) > 1:
            raise ValueError(f"{name}: expected matrices of one size throughout, got {words!r}")
        return
    fields = [word for word in words if word[:2] == "f:" and field_tables.is_registered(word)]
    if fields:
        if len(fields) < len(words) or len({(word[2], field_tables.size(word)) for word in words}) > 1:
            raise ValueError(f"{name}: expected fields of one number of channels throughout, got {words!r}")
        words = [field_tables.parts(word)[1] for word in words]
        if "." in words:
            raise ValueError(f"{name}: expected fields on a grid, got {words!r}")
    permute = [word for word in words if tables.is_registered(word)]
    if permute:
        if len(permute) < len(words) or len({(word.partition(":")[0], tables.entry(word).size) for word in words}) > 1:
            raise ValueError(f"{name}: expected permutations of one dim of one size throughout, got {words!r}")
        return
    for g, word in enumerate(words):
        axes = _AXES.get(len(words[0]), _AXES[2])
        if (word == ".") != (words[0] == ".") or (word != "." and sorted(word.lower()) != sorted(axes)):
            letters = "d, h and w" if len(axes) == 3 else "h and w"
            raise ValueError(f"{name}[{g}]: expected the letters {letters} once each, or '.' throughout, got {word!r}")


class Action:
    """What the operators need to know: one word per group element, and the words of the inverses.

    A list of views, which need not be a group's: ``GridAction`` is the one that checks the laws.

    Attributes:
        name: what error messages call the action.
        order: |G|, the size of the group axis.
        dims: how many trailing dims the action moves: 2 or 3 for a grid, 1 for matrices and for a permutation of the
            last dim (3 for one of the third last, which moves all that is behind it), one more than its grid for a
            field, 0 for the trivial action and for token ids.
        sides: how many of them are a grid's.
        words, inverse_words: the |G| words of g, and those of g⁻¹ in the order of g.
        adjoint_words, inverse_adjoint_words: those of the adjoints of g and of g⁻¹, which the gradients need: g⁻¹ and
            g themselves, but for matrices that are not orthogonal.
        maps, inverse_maps, adjoint_maps, inverse_adjoint_maps: the same as one string each, separated by spaces.
        square: whether some view swaps height and width (or two sides of a volume), so that the image must be square.
    """

    def __init__(self, name: str, words: Sequence[str], inverse_words: Sequence[str]) -> None:
        if not words or len(words) != len(inverse_words):
            raise ValueError(f"inverse_words: expected one for each of 1 or more words, got {inverse_words!r}")
        _check_words("words", words)
        _check_words("inverse_words", inverse_words)
        self.name = name
        self.order = len(words)
        self.words = tuple(words)
        self.inverse_words = tuple(inverse_words)
        self.adjoint_words, self.inverse_adjoint_words = self.inverse_words, self.words
        self.sides = 0
        if tables.permutes(words[0]):
            self.dims = -tables.moved_dim(words[0])
        elif matrix_tables.multiplies(words[0]):
            _check_words("inverse_words", [words[0], *inverse_words])
            self.dims = 1
            self.adjoint_words = tuple(map(matrix_tables.adjoint, words))
            self.inverse_adjoint_words = tuple(map(matrix_tables.adjoint, inverse_words))
        elif field_tables.is_field(words[0]):
            self.sides = len(field_tables.parts(words[0])[1])
            self.dims = self.sides + 1
            pairs = list(zip(words, inverse_words, strict=True))
            self.adjoint_words = tuple(field_tables.adjoint(word, back) for word, back in pairs)
            self.inverse_adjoint_words = tuple(field_tables.adjoint(back, word) for word, back in pairs)
        else:
            self.dims = self.sides = 0 if words[0] == "." else len(words[0])
        self.maps = " ".join(words)
        self.inverse_maps = " ".join(inverse_words)
        self.adjoint_maps = " ".join(self.adjoint_words)
        self.inverse_adjoint_maps = " ".join(self.inverse_adjoint_words)
        self.square = any(axis_order(word) is not None for word in words)

    @property
    def table(self) -> tables.Table | None:
        """The permuted dim's table of the inverses; None for grids and the trivial action."""
        return tables.table(self.inverse_maps)

    def act(self, g: int, x: Tensor) -> Tensor:
        """g·x for one element, in plain torch: x (*lead, *spatial) → the same shape (H and W swap with a quarter turn).

        Raises:
            TypeError: g is not a whole number, or x is not a tensor of a dtype that ``orbit`` takes.
            ValueError: g is not an element 0 … |G|−1, or x has too few dims or a dim of the wrong size.
        """
        from .ops import checks  # which knows the actions

        if isinstance(g, bool) or not isinstance(g, int):
            raise TypeError(f"g: expected a whole number, got {type(g).__name__}")
        if not 0 <= g < self.order:
            raise ValueError(f"g: expected an element 0 … {self.order - 1} of {self.name!r}, got {g}")
        checks.image("x", x, self, checks.EXACT, turns=True)
        return apply_word(x, self.words[g])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, order {self.order})"


class GroupAction(Action):
    """An action whose maker has checked that it is one: ``act(g∘h, x) = act(g, act(h, x))``.

    Attributes:
        group: the acting group.

    Example:
        >>> isinstance(grid("c4"), GroupAction), grid("c4").group.names
        (True, ('e', 'rot90', 'rot180', 'rot270'))
    """

    def __init__(self, group: Group, name: str, words: Sequence[str], inverse_words: Sequence[str]) -> None:
        super().__init__(name, words, inverse_words)
        self.group = group

    def __eq__(self, other: object) -> bool:
        """The same group acting by the same words; names do not count."""
        return isinstance(other, GroupAction) and self.maps == other.maps and self.group == other.group

    def __hash__(self) -> int:
        return hash((self.maps, self.group))


class GridAction(GroupAction):
    """A group acting on the trailing (H, W) or (D, H, W) dims by signed axis permutations, or on nothing (words ``.``).

    Args:
        group: the acting group.
        words: one word per element, see the module's text; ``words[0]`` is the identity.
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
        _check_words("words", words)
        table = [] if words[0] == "." else group.multiply.tolist()  # doing nothing is always an action
        for g, row in enumerate(table):
            for h, product in enumerate(row):
                if _composed(words[g], words[h]) != words[product]:
                    raise ValueError(
                        f"words: not an action of {group.name}: {group.names[g]} after {group.names[h]} gives "
                        f"{compose(words[g], words[h])!r}, but {group.names[product]} is {words[product]!r}"
                    )
        inverse_words = [words[g] for g in group.inverse.tolist()] if words[0] != "." else words
        super().__init__(group, name, words, inverse_words)


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
    if isinstance(dims, bool) or not isinstance(dims, int):
        raise TypeError(f"dims: expected 2, 3 or None, got {type(dims).__name__}")
    if dims not in found:
        raise ValueError(f"dims: expected {' or '.join(map(str, found))} for {name!r}, got {dims!r}")
    return found[dims]


def _make(name: str, words: tuple[str, ...], names: tuple[str, ...]) -> GridAction:
    index = {word: g for g, word in enumerate(words)}
    table = [[index[_composed(g, h)] for h in words] for g in words]
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
        >>> trivial(cyclic_group(3)).maps
        '. . .'
    """
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a Group, got {type(group).__name__}; pass the group, e.g. grid('c4').group")
    return GridAction(group, ["."] * group.order, "trivial")
