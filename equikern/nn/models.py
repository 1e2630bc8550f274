"""What is asked of the models that users bring: the names of their inputs, and their own loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["inner", "own_loss", "parameters_of", "with_loss"]

# Losses of transformers that ask for labels and logits alone; others take more outputs, or add to what they compute.
_PLAIN_LOSSES = frozenset(
    f"For{kind}"
    for kind in (
        "AudioClassification",
        "ImageClassification",
        "MaskedLM",
        "SequenceClassification",
        "TokenClassification",
        "VideoClassification",
    )
)


def inner(model: Any) -> Any:
    """The model inside what torch.compile, DDP, FSDP and peft put around it, which takes what it takes.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> inner(nn.DataParallel(linear)) is linear
        True
    """
    while isinstance(model, nn.Module):
        found: Any = getattr(model, "_orig_mod", None)  # torch.compile
        if found is None:
            base: Any = getattr(model, "get_base_model", None)  # peft
            found = base() if base is not None else None
        if found is None:
            found = getattr(model, "module", None)
            # DDP and FSDP pass on whatever they are given. Of others nobody asks: torch 2.8 cannot where it compiles.
            if isinstance(found, nn.Module) and _names(model.forward)[0]:
                found = None
        if not isinstance(found, nn.Module) or found is model:
            break
        model = found
    return model


def parameters_of(backbone: Any) -> tuple[tuple[str, ...], frozenset[str] | None]:
    """The parameters that can be given by position, and all names that it takes; None where it takes any.

    Example:
        >>> parameters_of(nn.Conv2d(1, 1, 3))
        (('input',), frozenset({'input'}))
    """
    model = inner(backbone)
    return _names(model.forward if isinstance(model, nn.Module) else model)


def _names(call: Any) -> tuple[tuple[str, ...], frozenset[str] | None]:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some callables of C have none
        return (), None
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return positional, None if anything else frozenset(p.name for p in named)


def own_loss(backbone: Any) -> bool:
    """Whether the model's loss is a function of labels and logits alone that it calls by its ``loss_function``.

    That is asked of its forward's code: transformers gives every model a loss function, also where its forward computes
    another loss.
    """
    model = inner(backbone)
    forward = inspect.unwrap(type(model).forward) if isinstance(model, nn.Module) else None
    names: tuple[str, ...] = getattr(getattr(forward, "__code__", None), "co_names", ())
    return "loss_function" in names and getattr(model, "loss_type", None) in _PLAIN_LOSSES


def with_loss(backbone: Any, merged: Any, labels: Tensor, beside: Mapping[str, Any], out: Any) -> Any:
    """The merged outputs with the model's own loss of their logits in front.

    Args:
        beside: what else transformers' losses take, such as ``num_items_in_batch``, by which Trainer divides; some
            models' forwards do not hand it on.
        out: what the message says that the outputs are.

    Raises:
        ValueError: there are no logits among the outputs.
    """
    if isinstance(merged, tuple):
        logits = merged[0] if merged else None
    else:
        logits = merged.get("logits") if isinstance(merged, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ValueError(
            "labels: expected out to have the logits that their loss is of, as 'logits' in a dict or first in a "
            f"tuple, got {out!r}; leave the labels out, or name them in inp for the backbone to have"
        )
    model = inner(backbone)
    loss_function: Callable[..., Tensor] = model.loss_function
    config = model.config
    vocabulary = getattr(config, "vocab_size", None)
    loss = loss_function(
        labels=labels, logits=logits, pooled_logits=logits, config=config, vocab_size=vocabulary, **beside
    )
    if isinstance(merged, tuple):
        return (loss, *merged)
    named = {"loss": loss, **merged}
    kind: Any = type(merged)
    return kind(**named) if dataclasses.is_dataclass(merged) else named
