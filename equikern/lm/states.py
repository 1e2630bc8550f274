"""What a model remembers of the words before: under which name, in what, and whether all views' rows fit in it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

# The names that models of transformers take and return it by: attention's keys and values; Mamba, xLSTM; RWKV; XLNet;
# Reformer.
NAMES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


@dataclass
class Prediction(CausalLMOutputWithPast):
    """``CausalLMOutputWithPast``, or with ``cache_params`` in the place of ``past_key_values``, as in Mamba."""

    cache_params: Cache | None = None


def found(model: Any, output: Any, asked: bool, given: bool) -> dict[str, Cache]:
    """The caches in a model's output, by name.

    A ``Cache`` keeps one row for each sentence, whatever is in it: keys and values, windows of them, the states of
    recurrent layers. Of a state of another kind (RWKV's list of tensors, the caches of xLSTM and Reformer, XLNet's
    memories) that is not known: in some the batch is another dim, and some models go on from it wrongly, as RWKV does
    for more than one row. Unless it is ``asked`` for, it is left alone: XLNet, which makes memories by itself, is read
    whole for every word, as with ``use_mems=False``. A model that was ``given`` a cache and returns
    none keeps its state in its layers, as RecurrentGemma does, where nobody can reorder it.
    """
    states = {name: value for name in NAMES if (value := getattr(output, name, None)) is not None}
    if given and not states:
        raise _unkept(model, "in its layers")
    if asked:
        check(model, output)
    return {name: value for name, value in states.items() if isinstance(value, Cache)}


def check(model: Any, output: Any, instead: str = "pass use_cache=False") -> None:
    """An error where a model's state is another than a ``Cache``."""
    for name in NAMES:
        value = getattr(output, name, None)
        if value is not None and not isinstance(value, Cache):
            raise _unkept(model, f"as {name}, {type(value).__name__}, which is no transformers.Cache", instead)


def _unkept(model: Any, where: str, instead: str = "pass use_cache=False") -> ValueError:
    return ValueError(
        f"use_cache: {type(model).__name__} keeps its state {where}, so that it cannot be kept for every view; "
        f"{instead}, by which the model reads the whole sentence for every word"
    )


def reordered(model: Any, cache: Any, rows: Tensor) -> Any:
    """A cache whose rows are those that beams go on from."""
    own = getattr(model, "_reorder_cache", None)
    if own is not None:
        return own(cache, rows)
    for part in _parts(cache):
        if not _reorders(type(part)):
            raise ValueError(
                f"num_beams: {type(model).__name__} keeps more in its {type(part).__name__} than the reordering that "
                "this inherits knows of; pass use_cache=False, or num_beams=1"
            )
    cache.reorder_cache(rows)
    return cache


def _parts(cache: Any) -> list[Any]:
    inner = [part for name in ("self_attention_cache", "cross_attention_cache") if (part := getattr(cache, name, None))]
    return [cache, *getattr(cache, "layers", []), *[each for part in inner for each in _parts(part)]]


def _reorders(kind: type) -> bool:
    """Whether a class of caches or layers says itself how its rows are put in order.

    One that is not transformers' general own, and adds attributes of its own to what it inherits from there, does not.
    """
    says = next((base for base in kind.__mro__ if "reorder_cache" in vars(base)), None)
    if says is None:
        return False
    added = [base for base in kind.__mro__[: kind.__mro__.index(says)] if base.__module__ != says.__module__]
    return not any("__init__" in vars(base) or inspect.get_annotations(base) for base in added)
