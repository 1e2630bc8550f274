"""The canonical form of prompts, in which ``generate`` runs, and what crosses its border.

Every prompt is generated from in the lexicographically smallest of its transforms, c·x, and what comes out is mapped
back by c⁻¹. Prompts of one orbit have one canonical form, so that the same seed draws the same random numbers for the
same distribution: their samples are each other's transforms bit for bit. Whatever speaks of token ids and was made by
the user – processors, stopping criteria, streamers – is called with the ids as the user knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation import logits_process as processes
from transformers.generation import stopping_criteria as criteria
from transformers.generation.streamers import BaseStreamer

from ..actions import Action, TokenAction
from ..ops import orbit, orbit_act

# What these do to scores is the same after any relabelling of the ids, but for special tokens, which are checked.
_RELABELLED = (
    processes.EncoderNoRepeatNGramLogitsProcessor,
    processes.EncoderRepetitionPenaltyLogitsProcessor,
    processes.EpsilonLogitsWarper,
    processes.EtaLogitsWarper,
    processes.ExponentialDecayLengthPenalty,
    processes.ForcedBOSTokenLogitsProcessor,
    processes.ForcedEOSTokenLogitsProcessor,
    processes.InfNanRemoveLogitsProcessor,
    processes.LogitNormalization,
    processes.MinLengthLogitsProcessor,
    processes.MinNewTokensLengthLogitsProcessor,
    processes.MinPLogitsWarper,
    processes.NoRepeatNGramLogitsProcessor,
    processes.RepetitionPenaltyLogitsProcessor,
    processes.TemperatureLogitsWarper,
    processes.TopKLogitsWarper,
    processes.TopPLogitsWarper,
    processes.TypicalLogitsWarper,
)
_STOPS = (criteria.EosTokenCriteria, criteria.MaxLengthCriteria, criteria.MaxTimeCriteria)


class Frame:
    """A batch of prompts and, for each, the element c that takes it to its canonical form.

    Args:
        action: the group on the token ids.
        logits: the same group on scores of the words.
        ids: (B, S) prompts.
        mask: (B, S), 0 where there is padding, which does not count; None where there is none.

    Attributes:
        elements: (B,) int64, c of every prompt: the first element that gives the smallest transform.
        canonical: (B, S), c·x.

    Example:
        >>> from equikern import tokens
        >>> swap = tokens([[0, 1, 2], [0, 2, 1]])
        >>> frame = Frame(swap, swap.logits, torch.tensor([[0, 2, 1], [0, 1, 1]]))
        >>> frame.elements.tolist(), frame.canonical.tolist()
        ([1, 0], [[0, 1, 2], [0, 1, 1]])
        >>> frame.back(frame.canonical).tolist()
        [[0, 2, 1], [0, 1, 1]]
    """

    def __init__(self, action: Action, logits: Action, ids: Tensor, mask: Tensor | None = None) -> None:
        views = orbit(ids, action)
        real = None if mask is None else mask.to(ids.device) != 0
        best, elements = views[0], torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        for g in range(1, action.order):
            differs = views[g] != best
            if real is not None:
                differs &= real
            first = differs.to(torch.uint8).argmax(-1, keepdim=True)
            less = (views[g].gather(-1, first) < best.gather(-1, first)) & differs.gather(-1, first)
            best = torch.where(less, views[g], best)
            elements = torch.where(less.squeeze(-1), g, elements)
        self.elements, self.canonical = elements, best
        self._ids, self._scores = action, logits

    def there(self, ids: Tensor) -> Tensor:
        """c·ids for (B·k, …) ids, k rows of every prompt one after the other."""
        return self._moved(ids, False)

    def back(self, ids: Tensor) -> Tensor:
        """c⁻¹·ids for (B·k, …) ids."""
        return self._moved(ids, True)

    def scores_there(self, scores: Tensor) -> Tensor:
        """(B·k, V) scores of the user's words as scores of the canonical ones."""
        return orbit_act(scores, self._rows(scores), self._scores)

    def scores_back(self, scores: Tensor) -> Tensor:
        """(B·k, V) scores of the canonical words as scores of the user's."""
        return orbit_act(scores, self._rows(scores), self._scores, inverse=True)

    def _rows(self, t: Tensor) -> Tensor:
        """The element of every row, k rows for a prompt."""
        return self.elements.repeat_interleave(len(t) // len(self.elements)).to(t.device)

    def _moved(self, ids: Tensor, inverse: bool) -> Tensor:
        moved = orbit_act(ids.clamp_min(0), self._rows(ids), self._ids, inverse=inverse)
        return torch.where(ids < 0, ids, moved)  # transformers fills with −1 where there is no padding token


class UserProcessor(LogitsProcessor):
    """A logits processor that sees and changes scores as its maker knows the words."""

    def __init__(self, processor: Callable[..., Tensor], frame: Frame) -> None:
        self.processor, self.frame = processor, frame

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See ``transformers.LogitsProcessor``."""
        changed = self.processor(self.frame.back(input_ids), self.frame.scores_back(scores))
        return self.frame.scores_there(changed)


class UserCriteria(StoppingCriteria):
    """A stopping criterion that reads ids and scores as its maker knows them."""

    def __init__(self, stops: Callable[..., Any], frame: Frame) -> None:
        self.stops, self.frame = stops, frame

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        """See ``transformers.StoppingCriteria``."""
        if scores is not None:
            scores = tuple(self.frame.scores_back(step) for step in scores)
        return self.stops(self.frame.back(input_ids), scores)


class UserStreamer(BaseStreamer):
    """A streamer that is given ids as the user knows them."""

    def __init__(self, streamer: Any, frame: Frame) -> None:
        self.streamer, self.frame = streamer, frame

    def put(self, value: Tensor) -> None:
        """Prompts (B·k, S) first, then (B·k,) new tokens at a time."""
        self.streamer.put(self.frame.back(value))

    def end(self) -> None:
        """Passed on."""
        self.streamer.end()


def processor(item: Any, frame: Frame) -> Any:
    """A processor for the canonical frame: itself where labels do not matter to it, or wrapped."""
    return item if type(item) in _RELABELLED else UserProcessor(item, frame)


def stops(item: Any, frame: Frame) -> Any:
    """A stopping criterion for the canonical frame, likewise."""
    return item if type(item) in _STOPS else UserCriteria(item, frame)


def check_special(action: TokenAction, name: str, ids: Any) -> None:
    """Special tokens mean the same in every view, so the group must leave them where they are."""
    values = [] if ids is None else ids.flatten().tolist() if isinstance(ids, Tensor) else ids
    for v in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(v, int) and 0 <= v < action.size and bool((action.perm[:, v] != v).any()):
            raise ValueError(f"{name}: the action must leave special tokens where they are, but it moves token {v}")
