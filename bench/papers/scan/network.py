"""The papers' sequence-to-sequence network: a bidirectional encoder, and a decoder that attends to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .data import END_ID, MOST_ACTIONS, lengths

HIDDEN = 64  # of the encoder, in each direction; the decoder has twice as many
DROPOUT = 0.1
LAYERS: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
CELLS: dict[str, Any] = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}
START_ID = 0


class Encoder(nn.Module):
    """Words to states (B, words, 128), and the state that the decoder begins with."""

    def __init__(self, cell: str, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, HIDDEN)
        self.layer = LAYERS[cell](HIDDEN, HIDDEN, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """States, the last state of both directions side by side, and (B, 1, words): −∞ behind the last word or 0."""
        long = lengths(ids, END_ID["words"])
        packed = pack_padded_sequence(self.embedding(ids), long.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.layer(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        last = last if isinstance(last, tuple) else (last,)
        behind = torch.arange(states.shape[1], device=ids.device) >= long[:, None]
        bias = torch.zeros_like(behind, dtype=states.dtype).masked_fill(behind, -torch.inf)
        return states, [torch.cat((h[0], h[1]), 1) for h in last], bias.unsqueeze(1)


class Decoder(nn.Module):
    """One step: attention by the last hidden state, then the recurrent layer."""

    def __init__(self, cell: str, actions: int) -> None:
        super().__init__()
        size = 2 * HIDDEN
        self.embedding = nn.Embedding(actions, size)
        self.dropout = nn.Dropout(DROPOUT)
        self.combine = nn.Linear(2 * size, size)
        self.cell = CELLS[cell](size, size)
        self.out = nn.Linear(size, actions)

    def forward(self, before: Tensor, state: list[Tensor], states: Tensor, bias: Tensor) -> list[Tensor]:
        """The state behind the action before, whose first part (B, 128) ``out`` reads.

        Args:
            bias: (B, 1, words), −∞ where there is no word, else 0.
        """
        weights = torch.baddbmm(bias, state[0].unsqueeze(1), states.mT).softmax(2)
        context = torch.bmm(weights, states).squeeze(1)
        x = self.combine(torch.cat((self.dropout(self.embedding(before)), context), 1)).relu()
        found = self.cell(x, state[0] if len(state) == 1 else tuple(state))
        return list(found) if isinstance(found, tuple) else [found]


class Seq2Seq(nn.Module):
    """Commands to the log-probabilities of actions, every one given what is said to come before it.

    Args:
        cell: "RNN", "GRU" or "LSTM".
        words, actions: the sizes of the vocabularies.

    Shapes:
        ids (B, words), filled up with their end → (B, T, actions), T that of the targets, or 50. Rows of zeros, which
        are no distributions, stand behind the end: behind the true one where targets are given, and behind the
        network's own where it decodes.
    """

    def __init__(self, cell: str, words: int, actions: int) -> None:
        super().__init__()
        self.encoder = Encoder(cell, words)
        self.decoder = Decoder(cell, actions)

    def forward(self, ids: Tensor, targets: Tensor | None = None, forced: Tensor | None = None) -> Tensor:
        """Decode greedily, or along targets (B, T).

        Args:
            targets: the true actions, filled up with their end.
            forced: (B,), which sentences go along their targets (teacher forcing); all, if it is not said. The others
                are given what they themselves said last, and only stop with their targets.
        """
        states, state, bias = self.encoder(ids)
        end = END_ID["actions"]
        before = ids.new_full((len(ids),), START_ID)
        going = torch.ones_like(before, dtype=torch.bool)
        hidden, there = [], []
        for t in range(MOST_ACTIONS if targets is None else targets.shape[1]):
            state = self.decoder(before, state, states, bias)
            hidden.append(state[0])
            there.append(going)
            with torch.no_grad():
                own = self.decoder.out(state[0]).argmax(1)
            if targets is None:
                before = own
                going = going & (own != end)
                if not bool(going.any()):
                    break
                continue
            true = targets[:, t]
            before = true if forced is None else torch.where(forced, true, own)
            going = going & (true != end) & (before != end)
        # The distributions of all steps at once: a matrix product of many rows, forward and backward.
        found = self.decoder.out(torch.stack(hidden, 1)).log_softmax(2) * torch.stack(there, 1).unsqueeze(2)
        # Of one length for all batches, so that those of several groups' views have a mean.
        return found if targets is not None else nn.functional.pad(found, (0, 0, 0, MOST_ACTIONS - len(hidden)))


def real(log_probs: Tensor) -> Tensor:
    """Which positions of (…, T, actions) have a distribution, and are not behind the end."""
    return (log_probs != 0).any(-1)


def exact(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Whether each sentence is translated exactly, its end included: (B,)."""
    said = log_probs.argmax(-1)[:, : targets.shape[1]]
    asked = torch.arange(targets.shape[1], device=targets.device) < lengths(targets, END_ID["actions"])[:, None]
    return ((said == targets) | ~asked).all(1)


def translation_loss(log_probs: Tensor, targets: Tensor) -> Tensor:
    """−log-probability of the true actions, the mean over the sentences of the sum over their positions.

    As in the papers' code, what stands behind the first end that is said counts nothing, nor what stands behind the
    true one.
    """
    end = END_ID["actions"]
    true = log_probs.gather(2, targets.unsqueeze(2)).squeeze(2)
    with torch.no_grad():
        ends = (log_probs.argmax(2) == end).cumsum(1)
        first = (ends == 0) | ((ends == 1) & (log_probs.argmax(2) == end))
        asked = torch.arange(targets.shape[1], device=targets.device) < lengths(targets, end)[:, None]
    return -(true * (first & asked)).sum() / len(targets)
