"""The README's lines on language models, run as they stand on a tiny saved model."""

import re
from pathlib import Path

import torch
from helpers.lm_models import V, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

README = Path(__file__).resolve().parents[2] / "README.md"


def test_six_lines(tmp_path, capsys):
    section = README.read_text(encoding="utf-8").split("## Debias a language model in six lines")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    code = found[1]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from ", "import "))]) <= 6

    vocabulary = ["<unk>", "The", "worked", "as", "a", "man", "woman", "he", "she", "\n"]
    vocabulary += [f"word{v}" for v in range(len(vocabulary), V)]
    plain = Tokenizer(models.WordLevel({word: v for v, word in enumerate(vocabulary)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", model_input_names=names).save_pretrained(
        tmp_path
    )
    tiny("llama").save_pretrained(tmp_path)

    run = {"name": str(tmp_path)}
    exec(code, run)
    printed = capsys.readouterr().out.split()
    assert printed[:5] == "The woman worked as a".split()
    assert len(printed) == 17
    # and what it says of a woman it says of a man
    lm, ids = run["lm"], torch.tensor([[1, 6, 2, 3, 4]])
    other = lm.generate(lm.action.act(1, ids), max_new_tokens=12)
    assert torch.equal(lm.action.act(1, other), lm.generate(ids, max_new_tokens=12))
    assert run["words"].equality == ((5, 6), (7, 8))
