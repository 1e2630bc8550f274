"""The wrapper as a model of transformers: what is the model's, what is kept, what is refused."""

import pytest
import torch
from equikern.lm import EquiLM, EquiZeroLM, REquiLM
from helpers.lm_models import GENERAL, V, sentences, tiny, words
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel


class Decoder:
    def decode(self, ids, skip_special_tokens):
        return str(ids)


def test_it_is_one_and_prints_as_itself():
    lm = EquiLM(tiny("llama"), words(2))
    assert isinstance(lm, PreTrainedModel)
    assert repr(lm).startswith("EquiLM(\n")
    assert "LlamaForCausalLM" in repr(lm)
    model = lm.model
    assert (lm.device, lm.dtype, lm.config, lm.num_parameters()) == (
        model.device, model.dtype, model.config, model.num_parameters(),
    )  # fmt: skip
    assert lm.get_input_embeddings() is model.get_input_embeddings()
    assert lm.get_output_embeddings() is model.lm_head
    assert lm.can_generate()
    assert lm.to(torch.bfloat16).dtype == torch.bfloat16


def test_embeddings_can_be_replaced_but_not_resized():
    lm, ids = EquiLM(tiny("llama"), words(2)), sentences(2, 5)
    old = lm(ids).logits
    new = nn.Embedding(V, 32)
    lm.set_input_embeddings(new)
    assert lm.model.model.embed_tokens is new
    assert not torch.equal(lm(ids).logits, old)
    with pytest.raises(ValueError, match=r"resize_token_embeddings: not for EquiLM: .* resize the model, then wrap"):
        lm.resize_token_embeddings(V + 3)
    assert lm.model.lm_head.weight.shape[0] == V
    lm.model.resize_token_embeddings(V + 3)
    with pytest.raises(ValueError, match=r"model: LlamaForCausalLM scores 104 words, but the action is on 101"):
        lm(ids)
    again = EquiLM(lm.model, words(2))
    assert again(ids).logits.shape[-1] == V + 3


def test_what_would_be_half_is_refused():
    lm = EquiLM(tiny("llama"), words(2))
    calls = {
        "push_to_hub": lambda: lm.push_to_hub("mine/fair"),
        "generate_batch": lambda: lm.generate_batch([[1, 2], [3]]),
        "init_continuous_batching": lambda: lm.init_continuous_batching(),
        "continuous_batching_context_manager": lambda: lm.continuous_batching_context_manager(),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()


@pytest.mark.parametrize("kind", [EquiLM, EquiZeroLM])
def test_an_assigned_generation_config_is_used_and_saved(tmp_path, kind):
    more = {} if kind is EquiLM else {"score": lambda texts: [0.0] * len(texts), "tokenizer": Decoder()}
    lm, ids = kind(tiny("gpt2"), words(2), **more), sentences(2, 5)
    plain = lm.generate(ids, max_new_tokens=4)
    banned = next(int(v) for v in plain[0, 5:] if bool((lm.action.perm[:, v] == v).all()))
    lm.generation_config = GenerationConfig(max_new_tokens=4, pad_token_id=0, suppress_tokens=[banned])
    got = lm.generate(ids, max_new_tokens=4)
    assert banned not in got[0, 5:]
    assert lm.model.generation_config is lm.generation_config
    lm.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, **more)
    assert again.generation_config.suppress_tokens == [banned]
    assert torch.equal(again.generate(ids, max_new_tokens=4), got)


def test_what_a_config_says_of_words_that_move_is_refused():
    """Every view would follow it for the word that it sees, and the answer could have the one that is banned."""
    more = {"score": lambda texts: [0.0] * len(texts), "tokenizer": Decoder()}
    lm, ids = EquiZeroLM(tiny("gpt2"), words(2), **more), sentences(2, 5)
    stays = (lm.action.perm == lm.action.perm[:1]).all(0)
    moved, still = int((~stays).nonzero()[0]), int(stays.nonzero()[-1])
    for name, value in (
        ("suppress_tokens", [moved]),
        ("bad_words_ids", [[still], [still, moved]]),
        ("sequence_bias", [[[moved], 1.0]]),
        ("num_beams", 2),
        ("num_return_sequences", 2),
    ):
        lm.generation_config = GenerationConfig(pad_token_id=still, num_beams=2 if "return" in name else 1)
        setattr(lm.generation_config, name, value)
        lm.generation_config.num_beams = value if name == "num_beams" else 1
        with pytest.raises(ValueError, match=f"generation_config.{name}"):
            lm.generate(ids, max_new_tokens=2)
    lm.generation_config = GenerationConfig(pad_token_id=still, sequence_bias=[[[still], float(moved)]])
    assert lm.generate(ids, max_new_tokens=2).shape == (2, 7)


def test_losses_of_other_labels_are_refused():
    lm, ids = EquiLM(tiny("llama"), words(2)), sentences(2, 5)
    with pytest.raises(ValueError, match="shift_labels: "):
        lm(ids, labels=ids, shift_labels=ids)
    with pytest.raises(ValueError, match="ignore_index: "):
        lm(ids, labels=ids, ignore_index=3)
    with pytest.raises(ValueError, match="loss_function: not for EquiLM"):
        lm.loss_function = lambda **_: 42
    with pytest.raises(ValueError, match="num_items_in_batch: expected a number above 0"):
        lm(ids, labels=ids, num_items_in_batch=0)


def test_rows_of_another_batch_are_refused():
    lm, ids = EquiLM(tiny("llama"), words(2)), sentences(4, 5)
    mask = torch.ones_like(ids)
    with pytest.raises(ValueError, match=r"attention_mask: expected 2 rows .* got shape \(4, 5\)"):
        lm(ids[:2], attention_mask=mask)
    assert torch.equal(lm(ids[:2], attention_mask=mask[:1]).logits, lm(ids[:2], attention_mask=mask[:2]).logits)


def test_the_class_itself_refuses_and_folders_keep_their_action(tmp_path):
    with pytest.raises(ValueError, match="_from_config: not for EquiLM"):
        EquiLM._from_config(tiny("gpt2").config)
    EquiLM(tiny("gpt2"), words(2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="action: that of the folder is taken"):
        EquiLM.from_pretrained(tmp_path, action=words(2))


def test_generate_leaves_nothing_behind_and_knows_its_transformers(monkeypatch):
    for lm in (EquiLM(tiny("gpt2"), words(2)), REquiLM(tiny("gpt2"), words(2, GENERAL))):
        before = set(vars(lm))
        lm.generate(sentences(1, 4), max_new_tokens=2)
        assert set(vars(lm)) == before
    monkeypatch.setattr(GenerationMixin, "generate", lambda self, ids, *_, **__: ids)
    with pytest.raises(RuntimeError, match="prepares processors and criteria in another way"):
        EquiLM(tiny("gpt2"), words(2)).generate(sentences(1, 4))


def test_state_dicts_with_and_without_the_prefix():
    for name in ("gpt2", "llama"):
        source, lm = tiny(name), EquiLM(tiny(name), words(2))
        with torch.no_grad():
            for p in source.parameters():
                p.add_(1.0)
        plain = source.state_dict()
        plain.pop("lm_head.weight") if name == "gpt2" else None  # tied: files hold it once
        lm.load_state_dict(plain)
        assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), source.parameters(), strict=True))
        other = EquiLM(tiny(name), words(2))
        other.load_state_dict(lm.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), source.parameters(), strict=True))
        with pytest.raises(RuntimeError, match="Missing key"):
            lm.load_state_dict({key: value for key, value in plain.items() if "ln" not in key and "norm" not in key})
        with pytest.raises(RuntimeError, match="Unexpected key"):
            lm.load_state_dict({**lm.state_dict(), "more": torch.ones(1)})


def test_options_of_files(tmp_path):
    lm, ids = REquiLM(tiny("llama"), words(3, GENERAL)), sentences(2, 6)
    lm.save_pretrained(tmp_path / "a", max_shard_size="20KB", safe_serialization=True)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert "model.safetensors.index.json" in files
    again = REquiLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, lm(ids).logits)
    half = REquiLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16, device_map="cpu", space="probs")
    assert (half.dtype, half.space, lm.space) == (torch.bfloat16, "probs", None)
    state = {key: value + 1 for key, value in lm.state_dict().items()}
    lm.save_pretrained(tmp_path / "b", state_dict=state)
    moved = REquiLM.from_pretrained(tmp_path / "b")
    assert torch.equal(moved.model.lm_head.weight, lm.model.lm_head.weight + 1)
    lm.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c" / "equikern.json").exists()
    refused = {"dtype": torch.bfloat16, "safe_serialization": False, "push_to_hub": True, "repo": "mine"}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            lm.save_pretrained(tmp_path / "d", **{name: value})
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError, match="dtype: an option for loading the model, but model is given"):
        REquiLM.from_pretrained(tmp_path / "a", model=lm.model, dtype=torch.bfloat16)
