"""Every ```python block of README.md and of the pages under docs/: a page's blocks run one after the other.

A page is skipped where a package that it imports is not installed, unless EQUIKERN_REQUIRE_PAGES, patterns such as
``docs/guides/*``, names it. .ci/run names every page in the environment that has its packages.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import pages
from helpers.repository import ROOT

pytestmark = pytest.mark.usefixtures("single_thread")
ELSEWHERE = {
    "docs/guides/distributed.md": "distributed/test_guide.py",  # a program of four processes
    "docs/recipes.md": "packaging/test_recipes.py",  # each recipe is a test
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {path.relative_to(ROOT).as_posix(): path for path in PAGES}
WITH_CODE = [name for name, path in NAMES.items() if "```python" in path.read_text(encoding="utf-8")]


def language_model(folder: Path) -> dict[str, Any]:
    """``name``: the folder of a tiny model and of a tokenizer of whole words."""
    from helpers.lm_models import V, tiny
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*"<unk> The worked as a man woman he she nurse doctor".split(), "\n"]
    vocabulary += [f"word{v}" for v in range(len(vocabulary), V)]
    plain = Tokenizer(models.WordLevel({word: v for v, word in enumerate(vocabulary)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", model_input_names=names).save_pretrained(folder)
    tiny("llama").save_pretrained(folder)
    return {"name": str(folder)}


def agent(_: Path) -> dict[str, Any]:
    """``model``: an agent of stable-baselines3 for CartPole, and ``observations`` of it."""
    from stable_baselines3 import DQN

    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    return {"model": model, "observations": torch.randn(3, 4).numpy()}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {"equikern.lm": language_model, "equikern.rl": agent}


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name not in ELSEWHERE])
def test_page(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a page calls its reader's is given before the first block that imports the part which takes it."""
    found = pages.blocks(NAMES[name])
    demanded = any(fnmatch(name, pattern) for pattern in os.environ.get("EQUIKERN_REQUIRE_PAGES", "").split())
    if (absent := pages.missing(pages.packages(*found))) and not demanded:
        pytest.skip(f"not installed: {', '.join(absent)}")
    pages.offline(monkeypatch, tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    given = dict(GIVEN)
    for block in found:
        for module in pages.imported(block) & given.keys():
            names |= given.pop(module)(tmp_path)
        pages.run(block, NAMES[name], names)


def test_other_tests_are_there() -> None:
    for name, test in ELSEWHERE.items():
        assert name in WITH_CODE, name
        assert (ROOT / "python_tests" / test).exists(), test


def test_languages_are_named() -> None:
    """A block without a language, or Python by another name, would not be run."""
    for name, path in NAMES.items():
        fences = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if "```" in line]
        for opening, closing in zip(fences[::2], fences[1::2], strict=True):
            assert opening in ("```python", "```bash", "```text", "```toml", "```"), f"{name}: {opening}"
            assert closing == "```", f"{name}: {closing}"
