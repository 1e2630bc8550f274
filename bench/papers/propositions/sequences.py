"""Equizero of an autoregressive model: every sequence of a small one enumerated, with its probability."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from equikern.lm import EquiLM, EquiZeroLM, WordLists
from torch import Tensor

WORDS, LISTS = 6, [[1, 2, 3]]  # C3 shifts words 1, 2 and 3; 0, 4 and 5 stay
BEAM, BLOCKS = 2, 2
SCORES = (0.0, 1.0, 0.0, -0.5, 2.0, 0.25)  # of each word, for the sum over a text; they are not symmetric
SAMPLED = 3  # contexts
_ROUNDING = 1e-4  # of sums of log-probabilities in float32, in which EquiZeroLM calls two texts equally likely


class Numbers:
    """In the place of a tokenizer: ids as they are."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Ids with spaces between."""
        return " ".join(map(str, ids))


def score(texts: list[str]) -> list[float]:
    """What EquiZeroLM maximises: the sum of the words' scores, each weighted by its place."""
    return [sum(SCORES[int(w)] / (i + 1) for i, w in enumerate(text.split())) for text in texts]


def language_model(seed: int) -> Any:
    """A random Llama of one layer, sharp enough to be far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.7,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def words() -> WordLists:
    """The group on the words."""
    return WordLists(LISTS, size=WORDS)


def all_texts(length: int) -> Tensor:
    """Every sequence of so many words: (WORDS^length, length), the last word varies fastest."""
    return torch.tensor(list(itertools.product(range(WORDS), repeat=length)))


def number(texts: Tensor) -> Tensor:
    """The place of texts (…, length) in ``all_texts``."""
    return (texts * WORDS ** torch.arange(texts.shape[-1] - 1, -1, -1)).sum(-1)


@torch.no_grad()
def continuations(model: Any, contexts: Tensor, length: int) -> Tensor:
    """log P of every continuation of so many words, of an autoregressive model: (n, WORDS^length) in float64."""
    new = all_texts(length)
    whole = torch.cat((contexts.repeat_interleave(len(new), 0), new.repeat(len(contexts), 1)), 1)
    logits = torch.cat([model(input_ids=part, use_cache=False).logits for part in whole.split(4096)])
    log_p = logits[:, contexts.shape[1] - 1 : -1].double().log_softmax(-1)
    each = log_p.gather(-1, whole[:, contexts.shape[1] :, None]).squeeze(-1).sum(-1)
    return each.reshape(len(contexts), len(new))


@torch.no_grad()
def chosen_block(model: Any, contexts: Tensor) -> Tensor:
    """P of every block that equizero puts behind every context, by its definition: (n, WORDS^BEAM).

    Each view of a context is continued by its own; the joint draws of all views are enumerated. Of each the view whose
    text scores best is mapped back: of equal scores the likelier block, and then the first view.
    """
    action, new = words().action, all_texts(BEAM)
    back = [number(action.act(int(action.group.inverse[g]), new)) for g in range(action.order)]
    found = torch.zeros(len(contexts), len(new), dtype=torch.float64)
    for n, context in enumerate(contexts):
        views = torch.stack([action.act(g, context) for g in range(action.order)])
        log_p = continuations(model, views, BEAM)
        texts = torch.cat((views.repeat_interleave(len(new), 0), new.repeat(action.order, 1)), 1)
        scores = torch.tensor(score([" ".join(map(str, row)) for row in texts.tolist()]), dtype=torch.float64)
        axes = [[len(new) if h == g else 1 for h in range(action.order)] for g in range(action.order)]
        joint = [log_p[g].reshape(axes[g]) for g in range(action.order)]
        scored = [scores.reshape(action.order, -1)[g].reshape(axes[g]) for g in range(action.order)]
        p = sum(joint[1:], joint[0]).exp()
        top = torch.stack(torch.broadcast_tensors(*scored)).amax(0)
        likely = torch.stack(
            [(j + torch.zeros_like(p)).masked_fill(s < top, -torch.inf) for j, s in zip(joint, scored, strict=True)]
        )
        best = (likely >= likely.amax(0) - _ROUNDING).int().argmax(0)  # the first
        for g in range(action.order):
            own = (p * (best == g)).sum([axis for axis in range(action.order) if axis != g])
            found[n].index_add_(0, back[g], own)
    return found


def chosen_texts(model: Any, contexts: Tensor) -> Tensor:
    """log P of every text of BLOCKS blocks that equizero puts behind every context: (n, WORDS^(BEAM·BLOCKS))."""
    new, log_p = all_texts(BEAM), torch.zeros(len(contexts), 1, dtype=torch.float64)
    for _ in range(BLOCKS):
        step = chosen_block(model, contexts).log()
        log_p = (log_p.reshape(-1, 1) + step).reshape(len(log_p), -1)
        contexts = torch.cat((contexts.repeat_interleave(len(new), 0), new.repeat(len(contexts), 1)), 1)
    return log_p


def moves(contexts: Tensor) -> Tensor:
    """Which contexts (n, length) no element but the identity leaves as they are: (n,) bool."""
    return torch.isin(contexts, torch.tensor(LISTS)).any(1)


def asymmetry(log_p: Tensor, contexts: Tensor, length: int, which: Tensor) -> float:
    """The largest |P(g Y | g X) − P(Y | X)| over some of all contexts X, all texts Y and elements g."""
    action, new = words().action, all_texts(length)
    p, worst = log_p.exp(), 0.0
    for g in range(1, action.order):
        moved = p[number(action.act(g, contexts))][:, number(action.act(g, new))]
        worst = max(worst, float((moved - p)[which].abs().max()))
    return worst


@torch.no_grad()
def measure(seed: int, samples: int, context_words: int, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Symmetry of all probabilities of three systems, and what ``EquiZeroLM.generate`` draws beside them."""
    model, length = language_model(seed), BEAM * BLOCKS
    contexts, new = all_texts(context_words), all_texts(length)
    action = words().action
    zero = EquiZeroLM(model, words(), score, Numbers(), BEAM)
    tables = {
        "plain": continuations(model, contexts, length),
        "EquiLM": continuations(EquiLM(model, words()), contexts, length),
        "EquiZeroLM": chosen_texts(model, contexts),
    }
    advance()
    free = moves(contexts)
    tried = contexts[free]
    greedy = zero.generate(tried, max_new_tokens=length)
    same = [
        torch.equal(zero.generate(action.act(g, tried), max_new_tokens=length), action.act(g, greedy)) for g in (1, 2)
    ]
    advance()
    drawn_alike, far, chance = [], 0.0, 0.0
    generator = torch.Generator().manual_seed(seed)
    for k in free.nonzero().flatten().tolist()[:: max(1, len(tried) // SAMPLED)]:
        rows = contexts[k : k + 1].repeat(samples, 1)
        drawn = zero.generate(rows, max_new_tokens=length, do_sample=True, seed=seed)
        for g in (1, 2):
            moved = zero.generate(action.act(g, rows), max_new_tokens=length, do_sample=True, seed=seed)
            drawn_alike.append(torch.equal(moved, action.act(g, drawn)))
        p = tables["EquiZeroLM"][k].exp()
        far = max(far, _far(number(drawn[:, context_words:]), p))
        chance = max(chance, _far(torch.multinomial(p, samples, replacement=True, generator=generator), p))
        advance()
    return {
        "seed": seed,
        "contexts": len(tried),
        "texts": len(new),
        "samples": samples,
        "sums": {name: float((table.exp().sum(1) - 1).abs().max()) for name, table in tables.items()},
        "asymmetry": {name: asymmetry(table, contexts, length, free) for name, table in tables.items()},
        "asymmetry, left alone": {name: asymmetry(table, contexts, length, ~free) for name, table in tables.items()},
        "largest": {name: float(table.exp().max()) for name, table in tables.items()},
        "greedy moves along": all(same),
        "samples move along": all(drawn_alike),
        "samples apart": far,
        "samples apart by chance": chance,
    }


def _far(drawn: Tensor, p: Tensor) -> float:
    """Total variation between draws and probabilities."""
    return float((drawn.bincount(minlength=len(p)) / len(drawn) - p).abs().sum() / 2)
