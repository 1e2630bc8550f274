"""Saving and loading the language-model wrappers."""

import json

import pytest
import torch
from equikern import product_action, tokens
from equikern.lm import EquiLM, EquiZeroLM, REquiLM
from helpers.lm_models import GENERAL, V, sentences, tiny, words
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("space", [None, "probs"])
def test_word_lists(tmp_path, space):
    lm, ids = REquiLM(tiny("llama"), words(3, GENERAL), space, views_per_forward=2), sentences(2, 6)
    lm.save_pretrained(tmp_path / "new" / "folder")
    again = REquiLM.from_pretrained(tmp_path / "new" / "folder")
    assert again.words == lm.words
    assert (again.space, again.views_per_forward, again.training) == (space, 2, False)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, lm(ids).logits)
    # the model's own files are as it saves them itself
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "folder")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), lm.model.parameters(), strict=True))


def test_any_action(tmp_path):
    gender = tokens([[*range(V)], [1, 0, 3, 2, *range(4, V)]])
    number = tokens([[*range(V)], [2, 3, 0, 1, *range(4, V)]])
    lm = EquiLM(tiny("gpt2"), product_action(gender, number))
    lm.save_pretrained(tmp_path)
    again = EquiLM.from_pretrained(tmp_path)
    assert torch.equal(again.action.perm, lm.action.perm)
    assert again.action.group == lm.action.group
    assert again.action.group.names == lm.action.group.names
    assert again.action.name == lm.action.name
    other = EquiLM.from_pretrained(tmp_path, model=lm.model)
    assert other.model is lm.model


def test_equizero(tmp_path):
    class Decoder:
        def decode(self, ids, skip_special_tokens):
            return str(ids)

    lm = EquiZeroLM(tiny("llama"), words(2), lambda texts: [len(t) for t in texts], Decoder(), beam_length=3)
    lm.save_pretrained(tmp_path)
    again = EquiZeroLM.from_pretrained(tmp_path, score=lm.score, tokenizer=lm.tokenizer)
    assert again.beam_length == 3
    ids = sentences(2, 5)
    assert torch.equal(again.generate(ids, max_new_tokens=7), lm.generate(ids, max_new_tokens=7))


def test_nothing_is_mixed(tmp_path):
    lm = EquiLM(tiny("llama"), words(2))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: .* is not empty; expected a new or empty folder, or overwrite=True"):
        lm.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match=r"folder: expected a folder, .* is a file"):
        lm.save_pretrained(tmp_path / "notes.txt")
    lm.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # an action that came without lists leaves no lists behind, and the other way round
    EquiLM(tiny("gpt2"), lm.action).save_pretrained(tmp_path, overwrite=True)
    again = EquiLM.from_pretrained(tmp_path)
    assert again.words is None
    assert type(again.model).__name__ == "GPT2LMHeadModel"
    lm.save_pretrained(tmp_path, overwrite=True)
    assert not (tmp_path / "equikern.safetensors").exists()


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"holds no equikern.json, so no EquiLM was saved there"):
        EquiLM.from_pretrained(tmp_path)
    EquiLM(tiny("llama"), words(2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds an EquiLM, load it with EquiLM.from_pretrained"):
        REquiLM.from_pretrained(tmp_path)
    file = tmp_path / "equikern.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "format": 2}))
    with pytest.raises(ValueError, match=r"folder: expected format 1 .* got 2"):
        EquiLM.from_pretrained(tmp_path)
