"""The cases of ``triton_audit.py`` that permute a vocabulary: gathers, token ids, and the kernels with a softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from equikern import permutation
from equikern.backends.triton.launch import Plan
from equikern.backends.triton.layout import Operand, operand
from equikern.views import Views, of, still

ROWS = (4, 16)
IDS = (64, 1024)  # rows of single token ids


@lru_cache(maxsize=8)
def maps_of(group: str, size: int) -> tuple[Views, Operand]:
    """The inverse maps of a cyclic group that moves 40 entries ("few2"), or all but a few ("all3")."""
    order = int(group[-1])
    moved = min(40, size) if group.startswith("few") else size
    generator = torch.arange(size)
    cycles = torch.arange(moved // order * order).view(-1, order)
    generator[cycles.flatten()] = cycles.roll(-1, 1).flatten()
    rows = [torch.arange(size)]
    for _ in range(order - 1):
        rows.append(generator[rows[-1]])
    maps = permutation(torch.stack(rows)).inverse_maps
    return maps.views, operand(maps.tables.own[0])


def dense(shape: Iterable[int], dtype: torch.dtype) -> Operand:
    """A contiguous tensor that starts on 16 bytes."""
    sizes = tuple(shape)
    strides = [1]
    for size in reversed(sizes[1:]):
        strides.insert(0, strides[0] * size)
    return Operand(sizes, tuple(strides[: len(sizes)]), dtype, True)


def build(kind: str, group: str, dtype: torch.dtype, size: int) -> Plan:
    """The plan of a case such as ``"softmax-probs few2 bf16 50257"``."""
    from equikern.backends.triton import cross_entropies, ids, permuted, scores, softmaxes

    maps, order = maps_of(group, size), int(group[-1])
    words = of(f"tokens {size}: {' '.join(['x'] * order)}")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = dense((*ROWS, size), dtype), dense((order, *ROWS, size), dtype)
    each, views = dense(ROWS, wide), dense((order, *ROWS), wide)
    kind, _, option = kind.partition("-")
    space = {"logs": "log_probs", "smooth": "probs"}.get(option, option)
    target, smoothing = dense(ROWS, torch.int64), 0.1 if option == "smooth" else 0.0
    # As many rows as one kernel scores and selects.
    scored = dense((order, 8, 16, size), dtype), dense((8, 16, size), dtype), dense((8, 16), torch.int64)
    plans: dict[str, Callable[[], Any]] = {
        "permute": lambda: permuted.orbit_plan.__wrapped__(*maps, 1.0, "none", x, y, None, None),
        "gather": lambda: permuted.reduce_plan.__wrapped__(*maps, option or "sum", 0.5, y, x, None, None, None),
        "products": lambda: permuted.dot_plan.__wrapped__(*maps, x, y, y, dense((order,), wide), dense((order,), wide)),
        "choose": lambda: permuted.select_plan.__wrapped__(*maps, "none", y, x, target),
        "ids": lambda: ids.plan.__wrapped__(words, dense(IDS, torch.int64), dense((order, *IDS), torch.int64)),
        "chosen": lambda: ids.select_plan.__wrapped__(
            words, dense((order, *IDS), torch.int64), dense(IDS, torch.int64), dense(IDS[:1], torch.int64)
        ),
        "softmax": lambda: softmaxes.mean_plan.__wrapped__(*maps, space, y, x, views),
        "backward": lambda: softmaxes.backward_plan.__wrapped__(*maps, space, y, x, y, views),
        "score": lambda: scores.plan.__wrapped__(option, y, views),
        "scored": lambda: scores.select_plan.__wrapped__(*maps, option, True, *scored),
        "loss": lambda: cross_entropies.plan.__wrapped__(
            *maps, space, -100, smoothing, 0.0, y, y, target, each, dense((), wide)
        ),
        # With a penalty, and each row by a weight where nothing is smoothed.
        "weighed": lambda: cross_entropies.plan.__wrapped__(
            *maps, space, -100, smoothing, 0.01, y, y, target, each, dense((), wide) if smoothing else each
        ),
    }
    found: Any = plans[kind]()
    assert found is not None, f"{kind}: would be copied first"
    plan: Plan = getattr(found, "launch", found)  # of dot products with the number of their parts
    return plan


def build_before(kind: str, group: str, dtype: torch.dtype, size: int) -> Plan | None:
    """The launch in front of it, as if no view moved anything, where it moves the listed entries alone."""
    from equikern.backends.triton import orbits, reductions, selection
    from equikern.backends.triton.tables import listed_count

    maps, order = maps_of(group, size), int(group[-1])
    kind, _, option = kind.partition("-")
    if kind not in ("permute", "gather", "choose") or not listed_count(*maps):
        return None
    x, y, views = dense((*ROWS, size), dtype), dense((order, *ROWS, size), dtype), still(order)
    plans: dict[str, Callable[[], Plan | None]] = {
        "permute": lambda: orbits.plan.__wrapped__(views, 1.0, x, y, None, None),
        "gather": lambda: reductions.plan.__wrapped__(views, option or "sum", 0.5, y, x, None, None, None),
        "choose": lambda: selection.plan.__wrapped__(views, True, y, x, None, dense(ROWS, torch.int64)),
    }
    found = plans[kind]()
    assert found is not None, f"{kind}: would be copied first"
    return found


KERNELS = "softmax-probs backward-probs loss-logits loss-probs loss-logs score-entropy scored-entropy".split()
# Here every access to a row's whole vectors must be 16 bytes wide, wherever the rows start.
WIDE = [f"{kind} few2 bf16 {size}" for kind in KERNELS for size in (49152, 50257, 151936)]
VOCABULARY = [
    *WIDE,
    "softmax-logs few3 fp32 50257",
    "softmax-probs all3 fp16 50257",
    "softmax-probs few2 fp64 1000",
    "softmax-probs few5 bf16 50257",
    "backward-logs few3 bf16 50257",
    "backward-probs all3 fp32 1000",
    "score-max_prob few2 bf16 50257",
    "score-margin few2 fp32 50257",
    "score-max few2 bf16 50257",
    "scored-max_prob few2 fp64 1000",
    "scored-margin few3 fp16 50257",
    "scored-max all3 fp32 1000",
    "scored-entropy all3 bf16 50257",
    "loss-logits few3 fp32 50257",
    "loss-logits all3 bf16 1000",
    "loss-smooth few2 bf16 50257",
    "loss-smooth all2 fp32 1000",
    "loss-smooth all3 fp32 1000",
    "loss-logs few2 fp64 1000",
    "loss-probs few3 fp16 8",
    "weighed-logits few2 bf16 50257",
    "weighed-probs all3 fp32 1000",
    "weighed-smooth few2 bf16 50257",
    "weighed-logs few2 fp64 1000",
    "permute few2 bf16 50257",
    "permute all3 bf16 50256",
    "gather few2 bf16 50257",
    "gather all3 fp32 1000",
    "gather-median few3 bf16 50257",
    "products few2 bf16 50256",
    "choose few3 fp16 50257",
    "ids few2 bf16 50257",
    "chosen few2 bf16 50257",
]
