"""``WordLists``: which words of a vocabulary a group exchanges, and which it averages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..actions import TokenAction, tokens
from ..groups import cyclic_group
from ..scalars import index, kind_of

__all__ = ["WordLists"]

Space = Literal["both"] | bool


class WordLists:
    """Token ids in three sets: E of equality, N neutral, G general. Usually made by ``from_tokenizer``.

    The generator of the cyclic group of order d shifts every list of E, ``d`` words long, by one: ``[man, woman]``
    swaps two words, ``[a, b, c]`` takes a to b, b to c and c to a. Everything outside E stays where it is. ``EquiLM``
    averages over the group at every word; ``REquiLM`` at those of E and N, while those of G keep the plain model's
    value.

    Args:
        equality: E, lists of d ≥ 2 token ids each.
        neutral: N. None: everything outside E and G. A list: the rest is general.
        general: G.
        size: V, the size of the vocabulary.
        names: what to call ids in messages, ``{id: word}``.

    Attributes:
        equality, neutral, general: tuples of ids as given (neutral None if not).
        size: V.
        order: d = |G|, the order of the group.
        action: the ``TokenAction`` of C_d on the vocabulary.

    Raises:
        TypeError: ids that are not whole numbers.
        ValueError: no list, lists of unequal length or of one word, an id outside 0 … V − 1, an id in two places.

    Example:
        >>> words = WordLists([[1, 2, 3], [4, 5, 6]], general=[7], size=10)
        >>> words.action.perm.tolist()[1]
        [0, 2, 3, 1, 5, 6, 4, 7, 8, 9]
        >>> WordLists([[1, 2], [2, 3]], size=10)
        Traceback (most recent call last):
        ValueError: equality: token 2 is in two places: equality[0] and equality[1]
    """

    def __init__(
        self,
        equality: Sequence[Sequence[int]],
        neutral: Sequence[int] | None = None,
        general: Sequence[int] = (),
        size: int = 0,
        names: dict[int, str] | None = None,
    ) -> None:
        self.names = dict(names or {})
        self.size = _whole("size", size)
        if self.size < 1:
            raise ValueError(f"size: expected the size of the vocabulary, got {size}")
        _lists("equality", equality)
        self.equality = tuple(tuple(self._id(f"equality[{i}]", v) for v in row) for i, row in enumerate(equality))
        self.neutral = None if neutral is None else tuple(self._id("neutral", v) for v in _flat("neutral", neutral))
        self.general = tuple(self._id("general", v) for v in _flat("general", general))
        self.order = len(self.equality[0])
        for i, row in enumerate(self.equality):
            if len(row) != self.order:
                raise ValueError(
                    f"equality[{i}]: expected {self.order} words, as in equality[0] ({self._said(self.equality[0])}), "
                    f"got {len(row)}: {self._said(row)}"
                )
        if self.order < 2:
            raise ValueError(f"equality: expected lists of two or more words, got {self._said(self.equality[0])}")
        places: dict[int, str] = {}
        sets = [(f"equality[{i}]", row) for i, row in enumerate(self.equality)]
        for place, ids in [*sets, ("neutral", self.neutral or ()), ("general", self.general)]:
            for v in ids:
                if v in places:
                    raise ValueError(
                        f"{place.split('[')[0]}: {self._name(v)} is in two places: {places[v]} and {place}"
                    )
                places[v] = place
        perm = torch.arange(self.size, device="cpu").repeat(self.order, 1)
        for row in self.equality:
            for shift in range(self.order):
                perm[shift, list(row)] = torch.tensor(row[shift:] + row[:shift], device="cpu")
        self.action: TokenAction = tokens(perm, group=cyclic_group(self.order))

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        equality: Sequence[Sequence[str]],
        neutral: Sequence[str] | None = None,
        general: Sequence[str] = (),
        *,
        leading_space: Space = True,
        capitalized: bool = False,
        size: int | None = None,
    ) -> WordLists:
        """Word lists from words, each of which must be one token.

        Args:
            tokenizer: a ``transformers`` tokenizer.
            equality: E, lists of d words each: ``[["man", "woman"], ["he", "she"]]``.
            neutral: N; None: everything outside E and G. Given, the rest is general.
            general: G.
            leading_space: which token a word stands for: True, the one within a sentence, with the space before it
                (" man"); False, the one that begins a line ("man"); ``"both"``, the two of them, exchanged alike.
            capitalized: the same again for every word with its first letter in upper case. A list whose words all
                have one already is left as it is.
            size: V where it is more than ``len(tokenizer)``. ``EquiLM`` pads the vocabulary to the model's anyway.

        Raises:
            TypeError: words that are not strings.
            ValueError: a word that is not one token (the message shows its pieces), that the tokenizer does not know,
                that is a special token, or that is in two places, as variants of two words may be; lists of unequal
                length.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import PreTrainedTokenizerFast
            >>> vocabulary = {w: i for i, w in enumerate("<unk> the man woman works".split())}
            >>> plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
            >>> plain.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
            >>> WordLists.from_tokenizer(tokenizer, [["man", "woman"]]).equality
            ((2, 3),)
        """
        if leading_space not in (True, False, "both"):
            raise ValueError(f"leading_space: expected True, False or 'both', got {leading_space!r}")
        _lists("equality", equality)
        names: dict[int, str] = {}
        spaces = (True, False) if leading_space == "both" else (bool(leading_space),)

        def ids(place: str, words: Sequence[str]) -> list[list[int]]:
            variants = [list(_strings(place, words))]
            if capitalized and (upper := [word[:1].upper() + word[1:] for word in variants[0]]) != variants[0]:
                variants.append(upper)
            found = []
            for variant in variants:
                for space in spaces:
                    found.append([_token(tokenizer, place, word, space) for word in variant])
                    for v, word in zip(found[-1], variant, strict=True):
                        names[v] = f"{' ' * space}{word}"
            return found

        def every(place: str, words: Sequence[str]) -> list[int]:
            # word by word, so that a capitalised one among others makes no second copy of itself
            rows = [row for word in _strings(place, words) for row in ids(place, [word])]
            return [v for row in rows for v in row]

        rows = [row for i, words in enumerate(equality) for row in ids(f"equality[{i}]", words)]
        return cls(
            rows,
            None if neutral is None else every("neutral", neutral),
            every("general", general),
            max(len(tokenizer), size or 0),
            names,
        )

    @property
    def has_general(self) -> bool:
        """Whether some word is general, so that only the relaxed wrappers take these lists."""
        return bool(self.general) or self.neutral is not None

    def general_mask(self) -> Tensor:
        """(V,) bool on the CPU: which words keep the plain model's value under ``REquiLM``.

        Example:
            >>> WordLists([[0, 1]], neutral=[2], size=5).general_mask().tolist()
            [False, False, False, True, True]
        """
        if self.neutral is None:
            mask = torch.zeros(self.size, dtype=torch.bool, device="cpu")
            mask[list(self.general)] = True
            return mask
        mask = torch.ones(self.size, dtype=torch.bool, device="cpu")
        mask[[v for row in self.equality for v in row] + list(self.neutral)] = False
        return mask

    def resized(self, size: int) -> WordLists:
        """The same lists in a vocabulary of another size, which must hold all their ids.

        Example:
            >>> WordLists([[0, 1]], size=5).resized(8).action.size
            8
        """
        if size == self.size:
            return self
        return WordLists(self.equality, self.neutral, self.general, size, self.names)

    def to_dict(self) -> dict[str, Any]:
        """What JSON keeps of the lists; ``WordLists.from_dict`` makes them again."""
        return {
            "equality": [list(row) for row in self.equality],
            "neutral": None if self.neutral is None else list(self.neutral),
            "general": list(self.general),
            "size": self.size,
            "names": {str(v): word for v, word in self.names.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WordLists:
        """The lists that ``to_dict`` told of.

        Example:
            >>> words = WordLists([[0, 1]], general=[3], size=5)
            >>> WordLists.from_dict(words.to_dict()) == words
            True
        """
        names = {int(v): word for v, word in values["names"].items()}
        return cls(values["equality"], values["neutral"], values["general"], values["size"], names)

    def __eq__(self, other: object) -> bool:
        """Equal sets and vocabularies; names do not count."""
        return isinstance(other, WordLists) and (self.equality, self.neutral, self.general, self.size) == (
            other.equality,
            other.neutral,
            other.general,
            other.size,
        )

    def __hash__(self) -> int:
        return hash((self.equality, self.neutral, self.general, self.size))

    def __repr__(self) -> str:
        neutral = "the rest" if self.neutral is None else len(self.neutral)
        general = "the rest" if self.neutral is not None else len(self.general)
        lists = ", ".join(f"[{self._said(row)}]" for row in self.equality[:4])
        more = ", …" if len(self.equality) > 4 else ""
        return f"WordLists(equality=[{lists}{more}], neutral={neutral}, general={general}, size={self.size})"

    def _id(self, place: str, value: object) -> int:
        v = _whole(place, value)
        if not 0 <= v < self.size:
            raise ValueError(f"{place}: expected ids from 0 to {self.size - 1}, got {self._name(v)}")
        return v

    def _name(self, v: int) -> str:
        return f"{self.names[v]!r} (token {v})" if v in self.names else f"token {v}"

    def _said(self, row: Iterable[int]) -> str:
        return ", ".join(repr(self.names[v]) if v in self.names else str(v) for v in row)


def _whole(name: str, value: object) -> int:
    try:
        return index(name, value)
    except TypeError:
        raise TypeError(f"{name}: expected whole numbers, got {kind_of(value)}: {value!r}") from None


def _lists(name: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a list of lists, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}: expected at least one list of words")
    for i, row in enumerate(value):
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise TypeError(f"{name}[{i}]: expected a list, got {row!r}")


def _flat(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a list, got {value!r}")
    return value


def _strings(place: str, words: object) -> Sequence[str]:
    for word in _flat(place, words):
        if not isinstance(word, str):
            raise TypeError(f"{place}: expected strings, got {type(word).__name__}: {word!r}")
        if not word or word != word.strip():
            raise ValueError(f"{place}: expected words without spaces around them (see leading_space), got {word!r}")
    return _flat(place, words)


def _pieces(tokenizer: Any, word: str, space: bool) -> list[int]:
    """The ids of a word behind a space, or at the beginning of a line.

    Encoded behind something, since some tokenizers put a space of their own before the text.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    before, gap = ("a", " ") if space else ("\n", "")
    head, both = encode(before), encode(before + gap + word)
    if both[: len(head)] == head and len(both) > len(head):
        return both[len(head) :]
    return encode(gap + word)


def _token(tokenizer: Any, place: str, word: str, space: bool) -> int:
    ids = _pieces(tokenizer, word, space)
    said = f"{' ' * space}{word}"
    if len(ids) != 1:
        pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        hint = ""
        if not space and len(_pieces(tokenizer, word, True)) == 1:
            hint = f"; {' ' + word!r} is one, so leave this variant out by leading_space=True"
        elif space and len(_pieces(tokenizer, word, False)) == 1:
            hint = f"; {word!r} at the beginning of a line is one: leading_space=False takes that"
        raise ValueError(f"{place}: expected words of one token, but {said!r} is {len(ids)}: {pieces}{hint}")
    if ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
        raise ValueError(f"{place}: the tokenizer does not know {said!r}: it becomes {tokenizer.unk_token!r}")
    if ids[0] in tokenizer.all_special_ids:
        raise ValueError(f"{place}: {said!r} is a special token, which no list may hold")
    return ids[0]
