"""What models remember: whatever it is, tokens are those of the whole sentence read again, or it says so."""

import pytest
import torch
from equikern import cyclic_group, tokens
from equikern.lm import EquiLM, EquiZeroLM, ProductEquiLM, WordLists
from equikern.lm.states import reordered
from helpers.lm_models import KINDS, TRIPLES, V, left_padded, of_kind, sentences, slow_mean, tiny, words
from transformers import Cache, CompileConfig, DynamicCache
from transformers.cache_utils import DynamicLayer

STEPS = 5


def slow(lm, ids, mask=None):
    """Greedy, every word from the views' whole sentences, without a cache."""
    for _ in range(STEPS):
        ids = torch.cat((ids, slow_mean(lm.model, lm.words, ids, mask)[:, -1].argmax(-1, keepdim=True)), 1)
        mask = None if mask is None else torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
    return ids


REFUSED = {
    "rwkv": "as state, list, which is no",
    "reformer": "as past_buckets_states, ReformerDynamicCache, which is no",
    "xlstm": "as cache_params, xLSTMCache, which is no",
    "recurrent_gemma": "in its layers, so that",
}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - REFUSED.keys() - {"xlnet"}))
def test_caches_of_every_kind(kind):
    """Greedy, padded, with beams: with the cache as without, and as the slow loop."""
    lm, ids = EquiLM(of_kind(kind), words(2)), sentences(3, 6)
    greedy = {"max_new_tokens": STEPS, "do_sample": False}
    got = lm.generate(ids, return_dict_in_generate=True, **greedy)
    assert got.sequences.tolist() == slow(lm, ids).tolist()
    assert len({tuple(row) for row in got.sequences[:, 6:].tolist()}) > 1
    padded, mask = left_padded(ids)
    given = {**greedy, "attention_mask": mask}
    expected = lm.generate(padded, use_cache=False, **given).tolist()
    # MiniMax itself, unwrapped, sees padding otherwise with its cache than without.
    assert kind == "minimax" or lm.generate(padded, **given).tolist() == expected
    beams = lm.generate(ids, use_cache=False, num_beams=3, **greedy)
    assert kind == "openai-gpt" or beams.tolist() != got.sequences.tolist()  # else they were never reordered
    if kind == "minimax":  # whose own generate gives other beams with its cache than without
        with pytest.raises(ValueError, match=r"num_beams: MiniMaxForCausalLM keeps more in its MiniMaxCache"):
            lm.generate(ids, num_beams=3, **greedy)
    else:
        assert lm.generate(ids, num_beams=3, **greedy).tolist() == beams.tolist()


def test_the_cache_has_the_models_name_and_every_views_rows():
    product = ProductEquiLM(of_kind("mamba"), [WordLists(TRIPLES[:3], size=V), WordLists([[20, 21]], size=V)])
    for lm in (EquiLM(of_kind("mamba"), words(3)), product):
        ids = sentences(2, 7)
        with torch.no_grad():
            whole = lm(ids).logits
            first = lm(ids[:, :4], use_cache=True)
            assert first.past_key_values is None
            assert isinstance(first.cache_params, Cache)
            assert first.cache_params.layers[0].recurrent_states[0].shape[0] == 2 * lm._count
            rest = [lm(ids[:, t : t + 1], cache_params=first.cache_params, use_cache=True).logits for t in range(4, 7)]
        torch.testing.assert_close(torch.cat((first.logits, *rest), 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_states_of_other_kinds_are_refused_before_a_word_is_made(kind):
    lm, ids = EquiLM(of_kind(kind), words(2)), sentences(3, 6)
    calls = []
    lm.model.register_forward_hook(lambda *_: calls.append(1))
    name = type(lm.model).__name__
    with pytest.raises(ValueError, match=f"use_cache: {name} keeps its state {REFUSED[kind]}.*pass use_cache=False"):
        lm.generate(ids, max_new_tokens=STEPS, do_sample=False)
    assert len(calls) == 1
    options = {"max_new_tokens": STEPS, "do_sample": False, "use_cache": False}
    assert lm.generate(ids, **options).tolist() == slow(lm, ids).tolist()
    assert [*lm(ids).keys()] == ["logits"]  # nobody asked for a state
    if kind == "rwkv":
        with pytest.raises(ValueError, match="use_cache: RwkvForCausalLM"):
            lm(ids, use_cache=True)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - REFUSED.keys()))
def test_an_action_that_moves_nothing_changes_nothing(kind):
    """Whatever the model's own generate makes of its inputs. XLNet's goes on from its memories by another way."""
    model, (ids, mask) = of_kind(kind), left_padded(sentences(3, 6))
    lm = EquiLM(model, tokens([[*range(V)]] * 2, group=cyclic_group(2)))
    more = {"use_mems": False} if kind == "xlnet" else {}
    for options in ({}, {"use_cache": False, "num_beams": 3}, {"attention_mask": mask}):
        given = {"max_new_tokens": STEPS, "do_sample": False, **options, **more}
        assert lm.generate(ids, **given).tolist() == model.generate(ids, **given).tolist()


def test_equizero_goes_on_from_no_other_states_either():
    """RWKV's own generate goes wrong with more than one row, and the views are several."""

    class Numbers:
        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids))

    ids = sentences(2, 5)
    lm = EquiZeroLM(of_kind("rwkv"), words(2), lambda texts: [0.0] * len(texts), Numbers(), beam_length=5)
    with pytest.raises(ValueError, match=r"RwkvForCausalLM keeps its state .*generation_config\.use_cache = False"):
        lm.generate(ids, max_new_tokens=STEPS)
    lm.generation_config.use_cache = False
    got = lm.generate(ids, max_new_tokens=STEPS)
    views, sums = [], []
    for g in range(2):
        view = lm.action.act(g, ids)
        for _ in range(STEPS):
            view = torch.cat((view, lm.model(view).logits[:, -1].argmax(-1, keepdim=True)), 1)
        log_p = lm.model(view).logits[:, 4:-1].log_softmax(-1).gather(-1, view[:, 5:].unsqueeze(-1))
        views.append(lm.action.act(g, view))
        sums.append(log_p.sum((1, 2)))
    best = torch.stack(sums).argmax(0)
    assert got.tolist() == [views[int(g)][b].tolist() for b, g in enumerate(best)]


def test_a_model_that_kept_nothing_is_not_shown_the_last_word_alone():
    """Its own generate would go on from nothing."""
    model = tiny("llama")
    forward = model.forward

    def forgetful(*args, **kwargs):
        output = forward(*args, **{**kwargs, "past_key_values": None, "use_cache": False})
        output.past_key_values = None
        return output

    lm = EquiLM(model, words(2))
    lm._prepare_cache_for_generation = lambda *_: None
    model.forward = forgetful
    with pytest.raises(ValueError, match=r"use_cache: LlamaForCausalLM is shown the last word alone"):
        lm.generate(sentences(2, 5), max_new_tokens=3, do_sample=False)


def test_reordering_is_not_taken_for_granted():
    class Same(DynamicCache):
        """Nothing of its own: what it inherits is enough."""

    class More(DynamicCache):
        def __init__(self):
            super().__init__()
            self.sums = []

    class Said(More):
        def reorder_cache(self, rows):
            self.sums = [rows]

    class Layer(DynamicLayer):
        def __init__(self):
            super().__init__()
            self.windows = None

    model, rows = torch.nn.Linear(1, 1), torch.tensor([1, 0])
    assert isinstance(reordered(model, Same(), rows), Same)
    assert reordered(model, Said(), rows).sums == [rows]
    with pytest.raises(ValueError, match=r"num_beams: Linear keeps more in its More"):
        reordered(model, More(), rows)
    inner = DynamicCache()
    inner.layers = [Layer()]
    with pytest.raises(ValueError, match=r"num_beams: Linear keeps more in its Layer"):
        reordered(model, inner, rows)
    with pytest.raises(ValueError, match=r"num_beams: Linear keeps more in its list"):
        reordered(model, [rows], rows)


def test_inputs_that_only_some_models_take():
    """Rows of them go to every view; what a model does not take is an error by name."""
    seen = []
    model = tiny("gpt2")
    model.register_forward_pre_hook(lambda m, args, given: seen.append(given.get("token_type_ids")), with_kwargs=True)
    lm, ids = EquiLM(model, words(3)), sentences(2, 5)
    types = torch.arange(10).view(2, 5) % 7
    with torch.no_grad():
        got = lm(ids, token_type_ids=types).logits
        views = [model(input_ids=lm.action.act(g, ids), token_type_ids=types).logits for g in range(3)]
    assert torch.equal(seen[0], types.repeat(3, 1))
    expected = sum(v[..., lm.action.perm[g]] for g, v in enumerate(views)) / 3
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"not used by the model: \['pixel_values'\]"):
        lm.generate(ids, pixel_values=types, max_new_tokens=2)


def test_compiled_decoding_with_a_static_cache():
    """transformers compiles the decoding steps where the cache is static, on GPUs; here it is told to do so."""
    lm, ids = EquiLM(tiny("llama"), words(2)), sentences(2, 5)
    expected = lm.generate(ids, max_new_tokens=STEPS, do_sample=False)
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    options = {"cache_implementation": "static", "compile_config": config}
    got = lm.generate(ids, max_new_tokens=STEPS, do_sample=False, **options)
    assert got.tolist() == expected.tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert "_compiled" not in vars(lm)
