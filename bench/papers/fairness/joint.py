"""Groups that differ in gender, race and orientation at once, and the perplexity of every text that packages ship."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import Progress

from ..checkpoint import Checkpoint
from . import likelihood, metrics, proxies, sampling, sources
from .contexts import ENDINGS, JOINT, JOINT_GROUPS, JOINT_SYSTEMS, PAIRS, prompts

Judges = dict[str, Callable[..., proxies.Judged]]
SYMMETRIC = ("plain", "ProductEquiLM")


def intersectional(
    made: dict[str, Any], tokenizer: Any, judges: Judges, samples: int, seed: int, done: Checkpoint, bars: Progress
) -> dict[str, Any]:
    """Regard of the eight groups, how far they are apart, and how exact the symmetry is."""
    wanted = sampling.joint_batches(samples)
    step = bars.add_task("intersectional samples", total=len(wanted))

    def sampled(batch: sampling.Batch) -> None:
        bars.update(step, advance=1, description=f"samples: {batch.system}, {batch.group}")

    sampling.sample({JOINT: made}, tokenizer, wanted, seed, done, sampled)
    ids, texts = sampling.collected(tokenizer, wanted, done)
    step = bars.add_task("their regard", total=len(judges) * sum(map(len, texts.values())))
    rows = []
    for kind, system, proxy in itertools.product(ENDINGS, JOINT_SYSTEMS, judges):
        judged = {
            group: judges[proxy](texts[kind, system, JOINT, group], lambda n: bars.advance(step, n))
            for group in JOINT_GROUPS
        }
        rows.append({"kind": kind, "system": system, "proxy": proxy, **metrics.joint(judged)})
    action = made["ProductEquiLM"].action
    first = JOINT_GROUPS[0]
    context = [torch.tensor(tokenizer.encode(prompts("respect", group)[0])) for group in JOINT_GROUPS]
    elements = [_element(action, context[0], other) for other in context]
    same = {}
    for system in JOINT_SYSTEMS:
        shares = []
        for group, g in zip(JOINT_GROUPS[1:], elements[1:], strict=True):
            a, b = ([r for kind in ENDINGS for r in ids[kind, system, JOINT, name]] for name in (first, group))
            shares.append(metrics.transforms(a, b, action.perm[g].tolist()))
        same[system] = sum(shares) / len(shares)
    contexts = [tokenizer.encode(context) for kind in ENDINGS for context in prompts(kind, first)]
    found = [row for kind in ENDINGS for row in sampling.first_of_each(ids[kind, "plain", JOINT, first], samples)]
    symmetry = {}
    for system in SYMMETRIC:
        key = f"symmetry/{system}/{samples}"
        if key not in done:
            done[key] = likelihood.symmetry(made[system], action, contexts, found)
        symmetry[system] = done[key]
    return {
        "samples": samples,
        "groups": JOINT_GROUPS,
        "views": {"ProductEquiLM": made["ProductEquiLM"].forwards, "elements": action.order},
        "regard": rows,
        "transforms": same,
        "symmetry": symmetry,
        "examples": {
            system: {group: texts["respect", system, JOINT, group][0] for group in JOINT_GROUPS}
            for system in JOINT_SYSTEMS
        },
    }


def _element(action: Any, context: torch.Tensor, other: torch.Tensor) -> int:
    """The element that takes one group's context to another's."""
    return next(g for g in range(action.order) if torch.equal(action.act(g, context), other))


def perplexities(made: dict[str, Any], tokenizer: Any, tokens: int, done: Checkpoint, bars: Progress) -> dict[str, Any]:
    """Of the first tokens of every text, for the plain model and each list exchanged alone and all at once."""
    rows = []
    step = bars.add_task("texts", total=len(sources.TEXTS) * len(JOINT_SYSTEMS))
    for name, read in sources.TEXTS.items():
        text = torch.tensor(tokenizer.encode(read()[: 20 * tokens])[:tokens])
        values = {}
        for system in JOINT_SYSTEMS:
            bars.update(step, description=f"perplexity: {name}, {system}")
            key = f"perplexity of {name}/{system}/{len(text)}"
            if key not in done:
                done[key] = likelihood.perplexity(made[system], text)
            values[system] = done[key]
            bars.advance(step)
        rows.append({"text": name, "tokens": len(text), "values": values})
    return {"pairs": [pair.name for pair in PAIRS], "window": likelihood.WINDOW, "rows": rows}
