"""What the processes of ``helpers.ranks`` check of language models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from equikern.lm import EquiLM, ProductEquiLM, REquiLM, WordLists
from helpers.lm_models import GENERAL, V, left_padded, sentences, tiny, words
from helpers.ranks import World

_FACTORS = [WordLists([[3, 4], [10, 50]], size=V), WordLists([[31, 32, 33], [41, 42, 43]], size=V)]
Make = Callable[[Any, Any], Any]


def _mean(space: Any, views_per_forward: int | None = None) -> Make:
    return lambda model, mesh: EquiLM(model, words(3), space, views_per_forward, mesh=mesh)


def _relaxed(space: Any) -> Make:
    return lambda model, mesh: REquiLM(model, words(3, GENERAL), space, mesh=mesh)


def _product(space: Any) -> Make:
    return lambda model, mesh: ProductEquiLM(model, _FACTORS, space, mesh=mesh)


CASES: dict[str, Make] = {
    "mean": _mean(None),
    "mean of probabilities, one view after another": _mean("probs", 1),
    "mean of log-probabilities": _mean("log_probs"),
    "relaxed": _relaxed(None),
    "relaxed, probabilities": _relaxed("probs"),
    "product": _product(None),
    "product of probabilities": _product("probs"),
}


def models(world: World, size: int) -> int:
    """Logits, losses and gradients of language models, shared by so many, are those of one process."""
    mesh, model = world.views.get(size), tiny("llama")
    ids, mask = left_padded(sentences(3, 8))
    for name, make in CASES.items() if mesh is not None else ():
        found = []
        for lm in (make(copy.deepcopy(model), mesh), make(copy.deepcopy(model), None)):
            output = lm(ids, attention_mask=mask, labels=ids)
            output.loss.backward()
            grads = (lm.model.model.embed_tokens.weight.grad, lm.model.lm_head.weight.grad)
            found.append((output.logits.detach(), output.loss.detach(), *grads))
        for k, (a, b) in enumerate(zip(*found, strict=True)):
            off = float((a - b).abs().max())
            assert off <= 1e-5 * (1 + float(b.abs().max())), f"{name}, result {k}: off by {off}"
    return len(CASES)


def generation(world: World, size: int) -> int:
    """What is generated is the same on all, drawn by the first one's random numbers; each has its own views' cache."""
    mesh, done = world.views.get(size), 0
    if mesh is None:
        return 0
    model = tiny("llama", eos=0)
    ids, mask = left_padded(sentences(2, 6))
    for name, kind, options in (
        ("greedy", "mean", {}),
        ("sampled", "mean", {"do_sample": True}),
        ("sampled as it is", "relaxed", {"do_sample": True}),
        ("beams", "mean", {"num_beams": 2}),
    ):
        one, several = (CASES[kind](model, m) for m in (None, mesh))
        torch.manual_seed(0)
        expected = one.generate(ids, attention_mask=mask, max_new_tokens=4, **options)
        torch.manual_seed(several.ranks.rank)
        found = several.generate(ids, attention_mask=mask, max_new_tokens=4, **options)
        assert torch.equal(found, expected), f"{name}: {found} for {expected}"
        done += 1
    lm = EquiLM(model, words(3), mesh=mesh)
    assert lm.ranks is not None
    cache = lm(ids, use_cache=True).past_key_values
    rows = max(1, lm.ranks.counts(3)[lm.ranks.rank]) * len(ids)
    assert cache.layers[0].keys.shape[0] == rows, f"{cache.layers[0].keys.shape} for {rows} rows"
    return done
