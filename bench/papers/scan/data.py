"""SCAN from its grammar: commands, actions, splits, and the swaps of words under which the language is the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from equikern import TokenAction, product_action, tokens
from torch import Tensor

# In every pair that is swapped, what training shows in all positions comes first: the smallest id stands for its orbit.
VERBS = ("walk", "look", "run", "jump")
DIRECTIONS = {"SCAN": ("left", "right"), "SCAN-II": ("right", "left", "down", "up")}
OTHERS = ("turn", "opposite", "around", "twice", "thrice", "and", "after")
END = "<end>"
START = "<start>"
END_ID = {"words": 0, "actions": 1}
MOST_ACTIONS = 50  # that are decoded, the end included

Pair = tuple[str, str]


def words(language: str) -> tuple[str, ...]:
    """The words of the commands, the end of a sentence first."""
    return (END, *VERBS, *DIRECTIONS[language], *OTHERS)


def actions(language: str) -> tuple[str, ...]:
    """The words of the action sequences: start, end, verbs, turns."""
    return (START, END, *map(str.upper, VERBS), *(f"TURN_{direction.upper()}" for direction in DIRECTIONS[language]))


@cache
def sentences(language: str = "SCAN") -> dict[str, str]:
    """Every command and its actions.

    Example:
        >>> found = sentences()
        >>> len(found), found["jump around left after turn right twice"]
        (20910, 'TURN_RIGHT TURN_RIGHT TURN_LEFT JUMP TURN_LEFT JUMP TURN_LEFT JUMP TURN_LEFT JUMP')
    """
    verbs = {verb: [verb.upper()] for verb in VERBS}
    phrases = dict(verbs)
    for direction in DIRECTIONS[language]:
        turn = [f"TURN_{direction.upper()}"]
        for verb, move in {"turn": [], **verbs}.items():
            phrases[f"{verb} {direction}"] = turn + move
            phrases[f"{verb} opposite {direction}"] = 2 * turn + move
            phrases[f"{verb} around {direction}"] = 4 * (turn + move)
    repeated = {f"{v}{often}": n * moves for v, moves in phrases.items() for often, n in _TIMES.items()}
    found = dict(repeated)
    for (a, first), (b, second) in product(repeated.items(), repeat=2):
        found[f"{a} and {b}"] = first + second
        found[f"{a} after {b}"] = second + first
    return {command: " ".join(moves) for command, moves in found.items()}


_TIMES = {"": 1, " twice": 2, " thrice": 3}


class Split(NamedTuple):
    """What is trained on and what is tested, with the words that its groups swap."""

    language: str
    swaps: tuple[tuple[str, str], ...]
    train: list[Pair]
    test: list[Pair]


@cache
def split(name: str) -> Split:
    """A split by its name: "add_jump", "around_right" or "scan_ii".

    Example:
        >>> found = split("add_jump")
        >>> len(found.train), len(found.test), found.swaps
        (14670, 7706, (('run', 'jump'),))
    """
    if name == "add_jump":
        alone = "jump"
        pairs = list(sentences().items())
        train = [pair for pair in pairs if "jump" not in pair[0]]
        train += 1467 * [(alone, sentences()[alone])]
        return Split("SCAN", (("run", "jump"),), train, [p for p in pairs if "jump" in p[0] and p[0] != alone])
    if name == "around_right":
        pairs = list(sentences().items())
        held = [pair for pair in pairs if "around right" in pair[0]]
        test = [pair for pair in held if "turn around right" not in pair[0]]
        return Split("SCAN", (("left", "right"),), [p for p in pairs if "around right" not in p[0]], test)
    if name == "scan_ii":
        pairs = list(sentences("SCAN-II").items())
        alone_too = ("jump", "turn left", "turn up")
        held = [pair for pair in pairs if any(primitive in pair[0] for primitive in alone_too)]
        train = [pair for pair in pairs if not any(primitive in pair[0] for primitive in alone_too)]
        often = int(0.06 * len(train))
        for primitive in alone_too:
            train = train + often * [(primitive, sentences("SCAN-II")[primitive])]
        swaps = (("run", "jump"), ("right", "left"), ("down", "up"))
        return Split("SCAN-II", swaps, train, [pair for pair in held if pair[0] not in alone_too])
    raise ValueError(f"name: expected 'add_jump', 'around_right' or 'scan_ii', got {name!r}")


def reachable(name: str) -> Tensor:
    """Which test sentences have a view that training shows, or would, if it had not been kept for validation: (N,)."""
    found = split(name)
    ids, known = encoded(found.test, found.language).ids, encoded(found.train, found.language).ids
    swaps = [word_swap(found.language, *pair) for pair in found.swaps]
    action = product_action(*swaps) if len(swaps) > 1 else swaps[0]
    size = len(words(found.language))
    shown = codes(known, size)
    return torch.stack([torch.isin(codes(action.act(g, ids), size), shown) for g in range(action.order)]).any(0)


def codes(ids: Tensor, size: int) -> Tensor:
    """A number for every command, whatever its row is filled up to: (N,). Words are digits, the end is 0."""
    return (ids * size ** torch.arange(ids.shape[1])).sum(1)


class Data(NamedTuple):
    """Sentences as numbers: commands (N, words + 1) and actions (N, actions + 1), filled up with their end."""

    ids: Tensor
    targets: Tensor

    def of(self, places: Tensor) -> Data:
        """Some of them, cut behind the longest one's end."""
        ids, targets = self.ids[places], self.targets[places]
        most = int(lengths(ids, END_ID["words"]).max()), int(lengths(targets, END_ID["actions"]).max())
        return Data(ids[:, : most[0]], targets[:, : most[1]])


def lengths(ids: Tensor, end: int) -> Tensor:
    """How long every row is, its first end included."""
    return (ids != end).sum(1) + 1


def encoded(pairs: list[Pair], language: str) -> Data:
    """Sentences as numbers."""
    return Data(
        _rows([command.split() for command, _ in pairs], words(language), END_ID["words"]),
        _rows([moves.split() for _, moves in pairs], actions(language), END_ID["actions"]),
    )


def _rows(found: list[list[str]], vocabulary: tuple[str, ...], end: int) -> Tensor:
    number = {word: i for i, word in enumerate(vocabulary)}
    most = max(map(len, found)) + 1
    return torch.tensor([[number[word] for word in row] + [end] * (most - len(row)) for row in found])


def word_swap(language: str, a: str, b: str) -> TokenAction:
    """The group of two elements that swaps two words of the commands."""
    return tokens([[*range(len(words(language)))], _swapped(words(language), a, b)])


def action_swap(language: str, a: str, b: str) -> TokenAction:
    """What swapping two words of the commands does to the actions."""
    named = actions(language)
    first, second = (next(t for t in named if t.removeprefix("TURN_") == word.upper()) for word in (a, b))
    return tokens([[*range(len(named))], _swapped(named, first, second)])


def _swapped(vocabulary: tuple[str, ...], a: str, b: str) -> list[int]:
    other = {a: b, b: a}
    return [vocabulary.index(other.get(word, word)) for word in vocabulary]


def parts(data: Data, seed: int, share: float = 0.2) -> tuple[Data, Data]:
    """What is trained on and, chosen by the seed, the share that is kept for validation."""
    order = torch.randperm(len(data.ids), generator=torch.Generator().manual_seed(seed))
    kept = int(share * len(order))
    return data.of(order[kept:]), data.of(order[:kept])


def batches(data: Data, count: int, size: int, generator: torch.Generator) -> Iterator[Data]:
    """So many random batches of sentences of similar lengths: each pool of 16 batches is cut by length."""
    drawn = torch.randint(len(data.ids), (count * size,), generator=generator)
    long = lengths(data.targets, END_ID["actions"])
    made = []
    for pool in drawn.split(16 * size):
        made += list(pool[long[pool].argsort()].split(size))
    for k in torch.randperm(len(made), generator=generator).tolist():
        yield data.of(made[k])
