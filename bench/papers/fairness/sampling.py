"""The systems, and samples from them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from equikern.lm import EquiLM, EquiZeroLM, ProductEquiLM, REquiLM, REquiZeroLM, WordLists

from ..checkpoint import Checkpoint
from .contexts import ENDINGS, JOINT, JOINT_GROUPS, JOINT_SYSTEMS, PAIRS, SYSTEMS, Pair, prompts

NEW_TOKENS, TOP_K, BEAM_LENGTH = 15, 40, 5
BLOCK = 5  # samples of every context in a batch, which is the checkpoint's unit

Score = Callable[[list[str]], list[float]]


def word_lists(pair: Pair, tokenizer: Any, relaxed: bool) -> WordLists:
    """The lists of the strict systems, in which all other words are neutral, or of the relaxed ones."""
    if relaxed:
        return WordLists.from_tokenizer(tokenizer, pair.relaxed, general=pair.general)
    return WordLists.from_tokenizer(tokenizer, pair.equality)


def systems(model: Any, tokenizer: Any, pair: Pair, score: Score) -> dict[str, Any]:
    """The five systems for a pair, all on one model; ``score`` is what the EquiZero systems maximise."""
    strict, relaxed = (word_lists(pair, tokenizer, relaxed) for relaxed in (False, True))
    made = (
        model,
        EquiLM(model, strict),
        REquiLM(model, relaxed),
        EquiZeroLM(model, strict, score, tokenizer, BEAM_LENGTH),
        REquiZeroLM(model, relaxed, score, tokenizer, BEAM_LENGTH),
    )
    return dict(zip(SYSTEMS, made, strict=True))


def joint_systems(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The plain model, each pair's EquiLM, and all pairs' words exchanged at once."""
    lists = [word_lists(pair, tokenizer, relaxed=False) for pair in PAIRS]
    made = (model, *(EquiLM(model, words) for words in lists), ProductEquiLM(model, lists))
    return dict(zip(JOINT_SYSTEMS, made, strict=True))


def block_seed(seed: int, block: int) -> int:
    """The seed of a batch: the same for every system and group, so that differences are not luck."""
    return zlib.crc32(f"{seed} {block}".encode())


def generate(system: Any, tokenizer: Any, contexts: list[str], count: int, seed: int) -> list[list[int]]:
    """``count`` continuations of every context, as token ids up to the end of the text; contexts vary slowest."""
    batch = tokenizer([context for context in contexts for _ in range(count)], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    options: dict[str, Any] = {"do_sample": True, "top_k": TOP_K, "top_p": 1.0, "temperature": 1.0}
    if isinstance(system, EquiZeroLM):
        found = system.generate(ids, mask, max_new_tokens=NEW_TOKENS, seed=seed, **options)
    else:
        torch.manual_seed(seed)
        found = system.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id, **options
        )
    end = tokenizer.eos_token_id
    rows = found[:, ids.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def text(tokenizer: Any, context: str, ids: list[int]) -> str:
    """The context and its continuation, cut at a newline."""
    whole = tokenizer.decode(tokenizer.encode(context) + ids, skip_special_tokens=True)
    return str(whole).split("\n")[0].rstrip()


@dataclass(frozen=True)
class Batch:
    """The samples number BLOCK·block … of all contexts for one group."""

    system: str
    pair: str
    group: str
    block: int
    count: int

    @property
    def key(self) -> str:
        """Its place in the checkpoint."""
        return f"samples/{self.system}/{self.group}/{self.block}/{self.count}"


def batches(samples: int) -> list[Batch]:
    """Every batch of a run, block by block, so that a checkpoint serves every smaller number of samples too."""
    return [
        Batch(system, pair.name, group, start // BLOCK, min(BLOCK, samples - start))
        for start in range(0, samples, BLOCK)
        for system in SYSTEMS
        for pair in PAIRS
        for group in pair.groups
    ]


def joint_batches(samples: int) -> list[Batch]:
    """The same of the groups that differ in everything at once."""
    return [
        Batch(system, JOINT, group, start // BLOCK, min(BLOCK, samples - start))
        for start in range(0, samples, BLOCK)
        for system in JOINT_SYSTEMS
        for group in JOINT_GROUPS
    ]


def sample(
    made: dict[str, dict[str, Any]],
    tokenizer: Any,
    wanted: list[Batch],
    seed: int,
    done: Checkpoint,
    progress: Callable[[Batch], None] = lambda _: None,
) -> None:
    """Draw what the checkpoint does not hold yet.

    Args:
        made: the ``systems`` of every pair, by its name; those of the joint groups by ``JOINT``.
        wanted: ``batches`` or ``joint_batches``.
        progress: called behind every batch.
    """
    for batch in wanted:
        if batch.key not in done:
            system = made[batch.pair][batch.system]
            contexts = [context for kind in ENDINGS for context in prompts(kind, batch.group)]
            done[batch.key] = generate(system, tokenizer, contexts, batch.count, block_seed(seed, batch.block))
        progress(batch)


Place = tuple[str, str, str, str]  # kind, system, pair, group


def collected(
    tokenizer: Any, wanted: list[Batch], done: Checkpoint
) -> tuple[dict[Place, list[list[int]]], dict[Place, list[str]]]:
    """Continuations and whole texts by place, in an order that is the same for all groups and systems."""
    ids: dict[Place, list[list[int]]] = {}
    texts: dict[Place, list[str]] = {}
    for batch in wanted:
        rows = iter(done[batch.key])
        for kind in ENDINGS:
            place = (kind, batch.system, batch.pair, batch.group)
            for context in prompts(kind, batch.group):
                for _ in range(batch.count):
                    row = next(rows)
                    ids.setdefault(place, []).append(row)
                    texts.setdefault(place, []).append(text(tokenizer, context, row))
    return ids, texts


def first_of_each(rows: list[list[int]], samples: int) -> list[list[int]]:
    """Of a place's continuations in the order of ``collected``, the first of every context."""
    count = min(BLOCK, samples)
    return rows[: len(rows) // samples * count : count]
