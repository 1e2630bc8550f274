"""Several threads generate from one model: each gets its own words, mapped back by its own elements."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from equikern.lm import EquiLM, ProductEquiLM, REquiLM, WordLists
from helpers.lm_models import GENERAL, V, sentences, tiny, words
from torch import Tensor

PROMPTS = [sentences(2, 5, seed) for seed in range(24)]


def greedy(lm: EquiLM, ids: Tensor) -> Tensor:
    return lm.generate(ids, max_new_tokens=4, do_sample=False)  # type: ignore[no-any-return]


def test_threads_share_a_model() -> None:
    model = tiny("llama")
    factors = [WordLists([[1, 2]], size=V), WordLists([[3, 4]], size=V)]
    for lm in (EquiLM(model, words(3)), REquiLM(model, words(2, GENERAL)), ProductEquiLM(model, factors)):
        expected = [greedy(lm, ids) for ids in PROMPTS]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda ids, lm=lm: greedy(lm, ids), PROMPTS))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert "_frame" not in vars(lm)
