"""Tiny random language models, word lists of order 2 and 3, and the papers' formulas written out word by word."""

from __future__ import annotations

from typing import Any

import torch
from equikern.lm import WordLists
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

V = 101
EOS = PAD = 0
TRIPLES = [[3, 4, 5], [10, 50, 12], [99, 7, 60], *([v, v + 5, v + 2] for v in (31, 32, 41, 42, 70, 71, 80, 81, 88))]
LISTS = {2: [row[:2] for row in TRIPLES], 3: TRIPLES}
GENERAL = [20, 21, 30, 100]


def words(order: int, general: list[int] | None = None) -> WordLists:
    return WordLists(LISTS[order], general=general or [], size=V)


def tiny(name: str, eos: int | None = None) -> Any:
    """In evaluation mode; its weights are wide enough for the predictions to be far from uniform."""
    torch.manual_seed(5)
    special: dict[str, Any] = {"eos_token_id": eos, "pad_token_id": PAD, "bos_token_id": None, "vocab_size": V}
    if name == "gpt2":
        config: Any = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **special)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        **special,
    )
    return LlamaForCausalLM(config).eval()


# Models that remember in other ways than keys and values for every word, or not at all, and what their configs need.
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {**_SMALL, "state_size": 4},
    "falcon_mamba": {**_SMALL, "state_size": 4},
    "mamba2": {**_SMALL, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "jamba": {
        **_SMALL,
        **_HEADS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {**_SMALL, **_HEADS, "block_types": ["recurrent", "attention"], "attention_window_size": 4},
    "minimax": {
        **_SMALL,
        **_HEADS,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_head": 8, "d_inner": 48},
    "reformer": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "axial_pos_embds": False,
        "max_position_embeddings": 64,
        "is_decoder": True,
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "xlstm": {
        "hidden_size": 128,
        "embedding_dim": 128,
        "num_heads": 4,
        "num_hidden_layers": 2,
        "num_blocks": 2,
        "qk_dim_factor": 1.0,
        "chunk_size": 16,
    },
    "rwkv": {**_SMALL, "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
}


def of_kind(name: str) -> Any:
    """A model of ``KINDS``, in evaluation mode, with wide weights as ``tiny``."""
    torch.manual_seed(5)
    special = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**{**special, **KINDS[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def sentences(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random ones, every other word from E, so that all views differ, however much padding takes away."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, V, (rows, length), generator=generator)
    moved = torch.tensor([v for row in LISTS[2] for v in row])  # every group moves these
    pick = moved[torch.randint(0, len(moved), (rows, length), generator=generator)]
    ids[:, 1::2] = pick[:, 1::2]
    ids[:, 0] = 3 + torch.arange(rows) % 2
    return ids


def left_padded(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Row i loses its first i words."""
    mask = torch.ones_like(ids)
    for i in range(len(ids)):
        mask[i, :i] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def slow_views(
    model: Any, perm: list[list[int]], ids: Tensor, mask: Tensor | None, position: Tensor | None
) -> list[Tensor]:
    """Each view's logits (B, S, V), from a forward of its own without cache."""
    views = []
    for row in perm:
        moved = torch.tensor([[row[v] for v in sentence] for sentence in ids.tolist()])
        with torch.no_grad():
            output = model(input_ids=moved, attention_mask=mask, position_ids=position, use_cache=False)
        views.append(output.logits)
    return views


def slow_mean(
    model: Any,
    words: WordLists,
    ids: Tensor,
    mask: Tensor | None = None,
    space: str | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """EquiLM's prediction, general words from the plain model: mean[v] = 1/|G| Σ_g view_g[g·v]."""
    perm = words.action.perm.tolist()
    views = slow_views(model, perm, ids, mask, position)
    if space is not None:
        views = [view.softmax(-1) if space == "probs" else view.log_softmax(-1) for view in views]
    mean = torch.empty_like(views[0])
    for v in range(V):
        if v in words.general:
            mean[..., v] = views[0][..., v]
        else:
            mean[..., v] = sum(view[..., row[v]] for view, row in zip(views, perm, strict=True)) / len(perm)
    return mean.log() if space == "probs" else mean
