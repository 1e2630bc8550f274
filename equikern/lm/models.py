"""Checks of the wrapped model and its inputs, and the small steps that the wrappers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..actions import TokenAction
from .words import WordLists


def check(model: object) -> None:
    """A causal transformers model, or something that looks like one from outside."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise TypeError(f"model: expected a causal transformers model, got {type(model).__name__}")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model: expected a causal model, got the encoder-decoder {type(model).__name__}")


def check_ids(ids: object) -> Tensor:
    """Token ids (B, S)."""
    if ids is None:
        raise ValueError("input_ids: expected token ids of shape (B, S), got none")
    if not isinstance(ids, Tensor):
        raise TypeError(f"input_ids: expected a torch.Tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids: expected int64 token ids, got {ids.dtype}")
    if ids.dim() != 2:
        raise ValueError(f"input_ids: expected token ids of shape (B, S), got shape {tuple(ids.shape)}")
    return ids


def check_labels(labels: object, ids: Tensor) -> None:
    """(B, S) like the ids; their values are checked by the loss."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor, got {kind}")
    if labels.shape != ids.shape:
        raise ValueError(f"labels: expected the shape of input_ids, {tuple(ids.shape)}, got {tuple(labels.shape)}")


def loss(scores: Tensor, target: Tensor, logits: bool, reduction: str = "mean") -> Tensor:
    """Torch's loss of (B, S, V) logits, or log-probabilities, at (B, S) words."""
    of = nn.functional.cross_entropy if logits else nn.functional.nll_loss
    try:
        return of(scores.flatten(0, -2), target.flatten(), reduction=reduction)
    except IndexError as error:
        raise ValueError(f"labels: expected words 0 … {scores.shape[-1] - 1}, or −100; {error}") from None


def count_of(items: object, device: torch.device) -> Tensor | float:
    """The number of words that a summed loss is divided by; where each of several devices gets one, the first."""
    if isinstance(items, Tensor) and items.numel() > 0:
        return items.flatten()[0].to(device)
    if isinstance(items, bool) or not isinstance(items, (int, float)):
        raise TypeError(f"num_items_in_batch: expected a number, got {type(items).__name__}: {items!r}")
    if items <= 0:
        raise ValueError(f"num_items_in_batch: expected a number above 0, got {items}")
    return items


def shifted(labels: Tensor) -> Tensor:
    """Labels for the position that predicts them: the next word's, none at the end."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def vocabulary(model: Any) -> int:
    """The number of words a model scores: the rows of its last layer, or what the config says."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return int(weight.shape[0])
    return int(getattr(model.config, "get_text_config", lambda: model.config)().vocab_size)


def action_of(model: nn.Module, action: object) -> tuple[TokenAction, WordLists | None]:
    """The action on the model's whole vocabulary, and the lists it comes from."""
    size = vocabulary(model)
    if isinstance(action, WordLists):
        words = _resized(action, size)
        return words.action, words
    if not isinstance(action, TokenAction):
        raise TypeError(f"action: expected equikern.tokens(perm) or WordLists, got {type(action).__name__}")
    if action.size != size:
        raise ValueError(f"action: expected one on the model's {size} words, got one on {action.size}")
    return action, None


def _resized(words: WordLists, size: int) -> WordLists:
    """Models may have more words than the tokenizer, as padding, or fewer; then those must not be in the lists."""
    try:
        return words.resized(size)
    except ValueError as error:
        raise ValueError(f"action: the model has {size} words, but the lists name others: {error}") from None


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An input with its tensors changed."""
    if isinstance(value, dict):
        return type(value)((key, changed(item, change)) for key, item in value.items())
    return change(value) if isinstance(value, Tensor) else value


def repeated(value: Any, times: int, batch: int, name: str) -> Any:
    """Rows for ``times`` views of a batch; masks may come as a dict of tensors. A cache has its rows already."""
    if name == "logits_to_keep":
        return value
    if isinstance(value, dict):
        return type(value)((key, repeated(item, times, batch, name)) for key, item in value.items())
    if not isinstance(value, Tensor) or value.dim() == 0 or (len(value) == 1 and batch > 1):
        return value
    if len(value) != batch:
        raise ValueError(f"{name}: expected {batch} rows as input_ids have, or one, got shape {tuple(value.shape)}")
    return value.repeat(times, *(1,) * (value.dim() - 1))
