"""Views of the trailing spatial dims: signed axis permutations, one word each.

A word has one letter per output axis, naming the input axis it reads, upper case where that axis is read backwards.
``hw`` is the identity, ``hW`` the horizontal flip and ``Wh`` the quarter turn of ``torch.rot90``; volumes have the
letters d, h and w. A code is the words, separated by spaces; views that leave everything in place are ``.`` throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from .base import Kind, Views

__all__ = [
    "Grid",
    "Numbers",
    "Still",
    "axes_of",
    "compose",
    "grid_code",
    "grid_words",
    "inverse_word",
    "numbers",
    "turn_grid",
    "upright",
]

AXES = {2: "hw", 3: "dhw"}  # by the number of spatial dims


def compose(outer: str, inner: str) -> str:
    """The word of doing inner first, then outer.

    Example:
        >>> compose("Wh", "hW")
        'wh'
    """
    axes = AXES[len(outer)]
    letters = []
    for letter in outer:
        read = inner[axes.index(letter.lower())]
        letters.append(read.swapcase() if letter.isupper() else read)
    return "".join(letters)


def inverse_word(word: str) -> str:
    """The word that undoes another.

    Example:
        >>> inverse_word("Wh")
        'wH'
    """
    axes = AXES[len(word)]
    letters = {letter.lower(): axes[k].upper() if letter.isupper() else axes[k] for k, letter in enumerate(word)}
    return "".join(letters[axis] for axis in axes)


def upright(word: str) -> str:
    """What a view does to the sides, without its flips.

    Example:
        >>> upright("Wh")
        'wh'
    """
    return word.lower()


def sides_of(word: str) -> tuple[tuple[int, bool], ...]:
    """For each side of a view the side of the input that it shows, and whether backwards.

    Example:
        >>> sides_of("Wh")
        ((1, True), (0, False))
    """
    axes = AXES[len(word)]
    return tuple((axes.index(letter.lower()), letter.isupper()) for letter in word)


def axes_of(word: str) -> tuple[int, ...] | None:
    """The dim that each side of a view shows, counted from the end; None where all stay in place.

    Example:
        >>> axes_of("Wh"), axes_of("HW")
        ((-1, -2), None)
    """
    order = tuple(side - len(word) for side, _ in sides_of(word))
    return None if order == tuple(range(-len(word), 0)) else order


def grid_code(word: str) -> int:
    """The number of a view of an image (``csrc/grid_index.h``) or of a volume (``csrc/cpu/boxes.h``).

    Example:
        >>> grid_code("Wh"), grid_code("hW"), grid_code("dhw")
        (5, 4, 4)
    """
    if len(word) == 2:
        return (word[0] in "wW") + 2 * ("H" in word) + 4 * ("W" in word)
    first, second = ("dhw".index(letter.lower()) for letter in word[:2])
    return first + 4 * second + 16 * ("D" in word) + 32 * ("H" in word) + 64 * ("W" in word)


class Numbers(NamedTuple):
    """What views do to the axes d, h and w, for kernels that find every point on its own.

    Attributes:
        words: per view three bits for each output axis, d's the lowest: the input axis it reads, and 4 if backwards.
        codes: per view what it does to h and w, as in ``grid_code``; without a meaning where d is moved, too.
        planar: no view moves d.
        moves: some view moves something.
    """

    words: tuple[int, ...]
    codes: tuple[int, ...]
    planar: bool
    moves: bool


@lru_cache(maxsize=1024)
def numbers(words: tuple[str, ...]) -> Numbers:
    """The views of a grid in numbers; ``.`` and words of two letters leave the axes in place that they do not name.

    Example:
        >>> numbers(("hw", "hW"))
        Numbers(words=(136, 392), codes=(0, 4), planar=True, moves=True)
    """
    full = ["dhw" if word == "." else word.rjust(3, "d") for word in words]
    bits = tuple(
        sum(("dhw".index(letter.lower()) + 4 * letter.isupper()) << 3 * k for k, letter in enumerate(word))
        for word in full
    )
    return Numbers(
        bits,
        tuple(grid_code(word[1:]) for word in full),
        all(bit & 7 == 0 for bit in bits),
        any(word != "dhw" for word in full),
    )


def grid_words(code: str, words: str) -> tuple[str, ...]:
    """The words of a code, all of one grid.

    Raises:
        ValueError: one of them is no view.
    """
    found = tuple(words.split(" "))
    axes = AXES.get(len(found[0]), AXES[2])
    for g, word in enumerate(found):
        if sorted(word.lower()) != list(axes):
            letters = "d, h and w" if len(axes) == 3 else "h and w"
            raise ValueError(
                f"words[{g}]: expected the letters {letters} once each, or '.' throughout, got {word!r}"
                + (f" in {code[:80]!r}" if code != word else "")
            )
    return found


def turn_grid(x: Tensor, word: str) -> Tensor:
    """One view of x (*lead, *grid)."""
    lead, sides = x.dim() - len(word), sides_of(word)
    turned = x.permute(*range(lead), *(lead + side for side, _ in sides))
    reverse = [lead + k for k, (_, back) in enumerate(sides) if back]
    return turned.flip(reverse) if reverse else turned


def sides_named(sides: int) -> str:
    """What errors call the sides of a grid."""
    return "D, H, W" if sides == 3 else "H, W"


class Still(Kind):
    """Views that leave everything where it is: ``. . .``."""

    name = "still"
    triton = "grids"
    still = True

    def parse(self, code: str) -> Views:
        words = tuple(code.split(" "))
        for g, word in enumerate(words):
            if word != ".":
                raise ValueError(f"words[{g}]: expected '.' throughout, like the first one, got {word!r}")
        return Views(code, self, words, codes=bytes(len(words)))

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return " ".join(words)

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        return 0, views.codes, 0, 0, 0


class Grid(Kind):
    """Views of the grid alone: ``hw Wh HW wH``."""

    name = "grid"
    triton = "grids"

    def parse(self, code: str) -> Views:
        words = grid_words(code, code)
        sides = len(words[0])
        return Views(
            code, self, words, sides, sides, axes=tuple(map(axes_of, words)), codes=bytes(map(grid_code, words))
        )

    def written(self, views: Views, words: Sequence[str], adjoint: bool, inverse: bool) -> str:
        return " ".join(words)

    def transposed(self, views: Views) -> str:
        return " ".join(map(inverse_word, views.words))

    def apply(self, x: Tensor, views: Views, table: Tensor | None, g: int) -> Tensor:
        return turn_grid(x, views.words[g])

    def native(self, views: Views, table: Tensor | None, spreads: bool) -> tuple[int, bytes, int, int, int]:
        return views.sides, views.codes, 0, 0, 0
