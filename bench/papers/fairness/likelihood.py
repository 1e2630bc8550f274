"""Perplexity on a text, and how exactly P(gX2 | gX1) = P(X2 | X1) holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from equikern import TokenAction, orbit
from torch import Tensor

WINDOW, STRIDE = 512, 256


def windows(length: int, window: int = WINDOW, stride: int = STRIDE) -> list[tuple[int, int, int]]:
    """(start, end, scored): the last ``scored`` tokens of text[start:end] get their loss there, each token once.

    Every token but those of the first window is predicted from at least window − stride tokens before it.

    Example:
        >>> windows(10, window=6, stride=3)
        [(0, 6, 5), (3, 9, 3), (6, 10, 1)]
    """
    if not 0 < stride < window:
        raise ValueError(f"stride: expected 1 to {window - 1}, got {stride}")
    found, done = [], 1  # the first token has nothing before it
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > done:
            found.append((start, end, end - done))
        done = end
        if end == length:
            break
    return found


@torch.no_grad()
def perplexity(
    system: Any,
    ids: Tensor,
    window: int = WINDOW,
    stride: int = STRIDE,
    progress: Callable[[], None] = lambda: None,
) -> float:
    """exp of the mean −log P of all tokens but the first, in sliding windows.

    Args:
        system: a causal model.
        ids: (N,) tokens.
    """
    total = 0.0
    for start, end, scored in windows(len(ids), window, stride):
        logits = system(input_ids=ids[start:end].unsqueeze(0), use_cache=False).logits[0, -scored - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[end - scored : end], reduction="sum")
        total += float(loss)
        progress()
    return math.exp(total / (len(ids) - 1))


@torch.no_grad()
def symmetry(
    system: Any, action: TokenAction, contexts: list[list[int]], rows: list[list[int]], kept: Tensor | None = None
) -> dict[str, float]:
    """The largest deviations from P(gX2 | gX1) = P(X2 | X1) over texts and g.

    Args:
        system: a causal model.
        action: the group on its vocabulary.
        contexts, rows: X1 and X2 of every text, as token ids.
        kept: for R-EquiLM, a mask of the words of E and N, where alone its logits are equivariant.

    Returns:
        ``token``: of the log-probability of a token, ``text``: of log P(X2 | X1). With ``kept`` only ``logits``, of the
        logits at the kept words.
    """
    pairs = [(first, row) for first, row in zip(contexts, rows, strict=True) if row]
    longest = max(len(first) + len(row) for first, row in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.int64)  # what pads on the right is seen by nothing before it
    new = torch.zeros(len(pairs), longest - 1, dtype=torch.bool)  # the positions that predict X2
    for i, (first, row) in enumerate(pairs):
        ids[i, : len(first) + len(row)] = torch.tensor(first + row)
        new[i, len(first) - 1 : len(first) + len(row) - 1] = True
    views = orbit(ids, action)
    logits = system(input_ids=views.flatten(0, 1), use_cache=False).logits.unflatten(0, views.shape[:2])[:, :, :-1]
    if kept is not None:
        same = orbit_inverse(logits, action)
        return {"logits": float((same - same[:1])[:, new][..., kept].abs().max())}
    log_p = logits.double().log_softmax(-1).gather(-1, views[..., 1:, None]).squeeze(-1) * new
    text = log_p.sum(-1)
    return {"token": float((log_p - log_p[0]).abs().max()), "text": float((text - text[0]).abs().max())}


def orbit_inverse(logits: Tensor, action: TokenAction) -> Tensor:
    """(|G|, …, V) logits of the views, each taken back to the words of x: entry v of view g is that of the word g v."""
    return torch.stack([view[..., action.perm[g]] for g, view in enumerate(logits)])
