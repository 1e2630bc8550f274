"""EquiLM.generate: equal to a slow loop, exactly equivariant under a seed, and everything that speaks of token ids."""

import inspect

import pytest
import torch
from equikern import tokens
from equikern.lm import EquiLM, REquiLM
from equikern.lm.frames import Frame
from helpers.lm_models import EOS, GENERAL, PAD, V, left_padded, sentences, slow_mean, tiny, words
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny(request.param)


@pytest.fixture(params=[2, 3], ids=["C2", "C3"])
def order(request):
    return request.param


# where generate leaves the positions behind padding on the right to the next count of the mask
RECOUNTS = not hasattr(GenerationMixin, "_prepare_position_ids_for_generation")


def slow_next(lm, ids, mask, start, recount=False):
    """The next word's log-probabilities (B, V) from whole sentences, view after view, without cache.

    Positions as transformers counts them: over the prompt's words, then one by one behind the prompt's last column.
    Older releases recount all words, with 1 at padding: another thing where there is padding on the right.
    """
    start = ids.shape[1] if recount else start
    position = (mask[:, :start].cumsum(-1) - 1).masked_fill(mask[:, :start] == 0, int(recount))
    behind = torch.arange(1, ids.shape[1] - start + 1)
    position = torch.cat((position, position[:, -1:] + behind), 1)
    return slow_mean(lm.model, lm.words, ids, mask, lm.space, position)[:, -1].log_softmax(-1)


def grown(ids, mask, new):
    return torch.cat((ids, new), 1), torch.cat((mask, torch.ones_like(new)), 1)


def slow_greedy(lm, ids, mask, steps, recount=False):
    start = ids.shape[1]
    for _ in range(steps):
        ids, mask = grown(ids, mask, slow_next(lm, ids, mask, start, recount).argmax(-1, keepdim=True))
    return ids


def slow_beams(lm, ids, mask, steps, beams):
    """Beam search of fixed length: (B, S + steps) best sentences and their sums of log-probabilities."""
    best = []
    for b in range(len(ids)):
        live = [(0.0, ids[b : b + 1], mask[b : b + 1])]
        for _ in range(steps):
            candidates = []
            for score, sentence, real in live:
                log_p = slow_next(lm, sentence, real, ids.shape[1])[0]
                top = log_p.topk(beams + 1)
                candidates += [
                    (score + value, *grown(sentence, real, torch.tensor([[v]])))
                    for value, v in zip(top.values.tolist(), top.indices.tolist(), strict=True)
                ]
            live = sorted(candidates, key=lambda c: -c[0])[:beams]
        best.append(live[0])
    return torch.cat([sentence for _, sentence, _ in best]), torch.tensor([score for score, _, _ in best])


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("space", [None, "probs"])
def test_greedy_equals_the_slow_loop(model, order, space, padding):
    lm = EquiLM(model, words(order), space)
    ids = sentences(4, 6)
    mask = torch.ones_like(ids)
    if padding == "left":
        ids, mask = left_padded(ids)
    elif padding == "right":  # as transformers: what follows is put behind the padding
        mask = left_padded(ids)[1].flip(1)
        ids = ids.masked_fill(mask == 0, PAD)
    expected = slow_greedy(lm, ids, mask, 8, RECOUNTS)
    for use_cache in (True, False):
        got = lm.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        assert got.tolist() == expected.tolist()
    assert len({tuple(row) for row in expected[:, 6:].tolist()}) > 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("relaxed", [False, True])
def test_beams_equal_the_slow_loop(model, order, relaxed, padded):
    lm = REquiLM(model, words(order, GENERAL)) if relaxed else EquiLM(model, words(order))
    ids = sentences(3, 5)
    ids, mask = left_padded(ids) if padded else (ids, torch.ones_like(ids))
    got = lm.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=5,
        do_sample=False,
        num_beams=3,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected, scores = slow_beams(lm, ids, mask, 5, 3)
    assert got.sequences.tolist() == expected.tolist()
    torch.testing.assert_close(got.sequences_scores, scores, atol=1e-4, rtol=1e-4)
    greedy = lm.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert not torch.equal(got.sequences, greedy)  # else the beams were never reordered


@pytest.mark.parametrize("implementation", [None, "static"])
def test_beams_with_ends_and_any_cache(model, implementation):
    model = tiny("llama" if "Llama" in type(model).__name__ else "gpt2", eos=EOS)
    lm = EquiLM(model, words(3))
    ids, mask = left_padded(sentences(3, 5))
    options = {"attention_mask": mask, "max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 2}
    expected = lm.generate(ids, do_sample=False, use_cache=False, **options)
    got = lm.generate(ids, do_sample=False, cache_implementation=implementation, **options)
    assert got.tolist() == expected.tolist()
    assert got.shape[0] == 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5, "temperature": 1.5},
        {"top_p": 0.8, "repetition_penalty": 1.3, "min_p": 0.01},
        {"num_beams": 3},
        {"num_return_sequences": 3, "no_repeat_ngram_size": 2},
        {"suppress_tokens": [3, 50], "bad_words_ids": [[4], [10, 99]], "sequence_bias": {(7,): 2.0}},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_samples_of_one_seed_are_exact_transforms(model, order, options):
    """Processors that name ids must be transformed with the prompt; ``plain`` ones need not."""
    model = tiny("llama" if "Llama" in type(model).__name__ else "gpt2", eos=EOS)
    lm = EquiLM(model, words(order))
    ids, mask = left_padded(sentences(5, 7))
    act = lm.action.act

    def sampled(g):
        moved = dict(options)
        if "suppress_tokens" in options:
            to = lm.action.perm[g].tolist()
            moved["suppress_tokens"] = [to[v] for v in options["suppress_tokens"]]
            moved["bad_words_ids"] = [[to[v] for v in word] for word in options["bad_words_ids"]]
            moved["sequence_bias"] = {tuple(to[v] for v in k): b for k, b in options["sequence_bias"].items()}
        torch.manual_seed(11)
        return lm.generate(act(g, ids), attention_mask=mask, do_sample=True, max_new_tokens=12, **moved)

    first = sampled(0)
    moved = {v for row in lm.words.equality for v in row}
    assert moved & set(first[:, 7:].flatten().tolist())  # words of E are among the samples
    for g in range(1, order):
        assert sampled(g).tolist() == act(g, first).tolist()
        assert first.tolist() != act(g, first).tolist()


def test_relaxed_samples_have_no_canonical_form(model):
    lm, ids = REquiLM(model, words(2, GENERAL)), sentences(3, 6)
    torch.manual_seed(0)
    got = lm.generate(ids, do_sample=True, max_new_tokens=6, top_k=0)
    sentence = ids
    torch.manual_seed(0)
    for _ in range(6):
        p = lm(sentence).logits[:, -1].softmax(-1)
        sentence = torch.cat((sentence, torch.multinomial(p, 1)), 1)
    assert got.tolist() == sentence.tolist()


def test_canonical_form():
    """The smallest transform over the real words, wherever padding is; the first of equal ones."""
    action = words(3).action
    ids, mask = left_padded(sentences(6, 5))
    ids[0, 0], ids[2, 2], ids[3, 0], ids[5, 0] = 5, 4, 4, 4  # the last two below the padding
    mask[5] = 0
    frame = Frame(action, action.logits, ids, mask)
    for b in range(6):
        real = mask[b].bool()
        views = [action.act(g, ids[b]) for g in range(3)]
        best = min(range(3), key=lambda g: (views[g][real].tolist(), g))
        assert frame.elements[b] == best
        assert torch.equal(frame.canonical[b], views[best])
    assert frame.elements.unique().numel() == 3
    assert torch.equal(frame.back(frame.canonical), ids)
    assert torch.equal(frame.there(ids), frame.canonical)
    scores = torch.rand(12, V)
    there = frame.scores_there(scores)
    word = torch.randint(V, (12,))
    moved = frame.there(word)
    assert torch.equal(there[range(12), moved], scores[range(12), word])
    assert torch.equal(frame.scores_back(there), scores)


def test_returned_scores_speak_of_the_users_ids(model):
    lm, ids = EquiLM(model, words(3)), sentences(4, 6, 3)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    got = lm.generate(ids, do_sample=False, **options)
    assert Frame(lm.action, lm.action.logits, ids).elements.any()  # or nothing is tested
    for t in range(4):
        with torch.no_grad():
            direct = lm(got.sequences[:, : 6 + t]).logits[:, -1]
        torch.testing.assert_close(got.logits[t], direct, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.scores[t], direct, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.scores[t].argmax(-1), got.sequences[:, 6 + t])
    assert got.past_key_values is None
    beams = lm.generate(ids, do_sample=False, num_beams=3, **options)
    parts = lm.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices, normalize_logits=False)
    torch.testing.assert_close(parts.sum(-1) / 4, beams.sequences_scores)


class Recorder(BaseStreamer):
    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value if value.dim() == 2 else value.unsqueeze(1))

    def end(self):
        self.ended = True


class Ban(LogitsProcessor):
    """Forbids one word, and keeps what it was shown."""

    def __init__(self, word):
        self.word, self.seen = word, None

    def __call__(self, input_ids, scores):
        self.seen = input_ids
        scores = scores.clone()
        scores[:, self.word] = -torch.inf
        return scores


class StopAt(StoppingCriteria):
    """Stops a row behind one word, and keeps the scores it was shown."""

    def __init__(self, word):
        self.word, self.scores = word, None

    def __call__(self, input_ids, scores, **kwargs):
        self.scores = scores
        return input_ids[:, -1] == self.word


def test_user_code_is_shown_the_users_ids(model):
    lm, ids = EquiLM(model, words(3)), sentences(4, 6, 3)
    frame = Frame(lm.action, lm.action.logits, ids)
    assert frame.elements.any()
    streamer = Recorder()
    plain = lm.generate(ids, do_sample=False, max_new_tokens=6, streamer=streamer)
    assert torch.equal(torch.cat(streamer.parts, 1), plain)
    assert streamer.ended

    word = int(plain[int(frame.elements.argmax()), 6])
    ban = Ban(word)
    got = lm.generate(ids, do_sample=False, max_new_tokens=6, logits_processor=LogitsProcessorList([ban]))
    assert word in plain[:, 6:]
    assert word not in got[:, 6:]
    assert torch.equal(ban.seen, got[:, :-1])
    assert torch.equal(got, lm.generate(ids, do_sample=False, max_new_tokens=6, suppress_tokens=[word]))
    assert torch.equal(got, lm.generate(ids, do_sample=False, max_new_tokens=6, bad_words_ids=[[word]]))
    config = GenerationConfig(do_sample=False, max_new_tokens=6, bad_words_ids=[[word]])
    assert torch.equal(got, lm.generate(ids, generation_config=config))
    first = lm.generate(ids, do_sample=False, max_new_tokens=6, begin_suppress_tokens=[word])
    assert word not in first[:, 6]
    bias = lm.generate(ids, do_sample=False, max_new_tokens=6, sequence_bias={(word,): -1e9})
    assert torch.equal(got, bias)

    for row in range(4):
        stop = StopAt(int(plain[row, 8]))
        got = lm.generate(
            ids[row : row + 1],
            do_sample=False,
            max_new_tokens=6,
            stopping_criteria=[stop],
            return_dict_in_generate=True,
            output_scores=True,
        )
        until = plain[row, 6:].tolist().index(stop.word) + 7
        assert got.sequences[0].tolist() == plain[row, :until].tolist()
        assert [int(step.argmax()) for step in stop.scores] == plain[row, 6:until].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_allowed_words_are_the_users(model, beams):
    lm, ids = EquiLM(model, words(3)), sentences(4, 6, 3)
    calls = []

    def allowed(batch_id, sentence):
        calls.append((batch_id, sentence[:6].tolist()))
        return [3, 10 + batch_id, 50]

    got = lm.generate(ids, do_sample=False, max_new_tokens=5, num_beams=beams, prefix_allowed_tokens_fn=allowed)
    for b in range(4):
        assert set(got[b, 6:].tolist()) <= {3, 10 + b, 50}
    assert all(sentence == ids[b].tolist() for b, sentence in calls)


def test_prompt_from_nothing(model):
    """Without a prompt transformers starts from bos."""
    lm = EquiLM(model, words(2))
    lm.generation_config.bos_token_id = 1
    got = lm.generate(max_new_tokens=3, do_sample=False)
    assert got.shape == (1, 4)
    assert got.tolist() == lm.generate(input_ids=torch.tensor([[1]]), max_new_tokens=3, do_sample=False).tolist()


def letters():
    """A tokenizer whose words are single letters, among them those that transformers tries stop strings with."""
    names = {letter: v for v, letter in enumerate("abcdef" + "".join(chr(0x4E00 + v) for v in range(6, V)))}
    plain = Tokenizer(models.WordLevel(names, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def test_stop_strings_are_the_users(model):
    lm, ids = EquiLM(model, words(3)), sentences(4, 6, 3)
    plain, tokenizer = lm.generate(ids, do_sample=False, max_new_tokens=6), letters()
    for row in range(4):
        stop = tokenizer.decode(plain[row, 7:9])
        options = {"do_sample": False, "max_new_tokens": 6, "tokenizer": tokenizer, "stop_strings": [stop]}
        got = lm.generate(ids[row : row + 1], **options)
        text = tokenizer.decode(plain[row, 6:])
        assert tokenizer.decode(got[0, 6:]) == text[: text.index(stop) + 2]


def test_generates_in_half_precision():
    lm = EquiLM(tiny("llama").to(torch.bfloat16), words(3), "probs")
    ids = sentences(3, 6)
    outputs = []
    for g in range(3):
        torch.manual_seed(1)
        outputs.append(lm.generate(lm.action.act(g, ids), do_sample=True, max_new_tokens=8))
    for g in range(3):
        assert torch.equal(outputs[g], lm.action.act(g, outputs[0]))


def test_bad_input(model):
    lm, ids = EquiLM(model, words(2)), sentences(2, 5)
    assert "inputs_embeds" not in inspect.signature(lm.generate).parameters
    refused = {
        "inputs_embeds": torch.zeros(2, 5, 32),
        "past_key_values": DynamicCache(),
        "assistant_model": model,
        "prompt_lookup_num_tokens": 3,
        "custom_generate": "somewhere",
        "negative_prompt_ids": ids,
        "guidance_scale": 2.0,
        "token_healing": True,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            lm.generate(ids, max_new_tokens=2, **{name: value})
    with pytest.raises(ValueError, match=r"^guidance_scale: "):
        lm.generate(ids, generation_config=GenerationConfig(max_new_tokens=2, guidance_scale=2.0))
    with pytest.raises(ValueError, match=r"model_kwargs"):
        lm.generate(ids, max_new_tokens=2, max_tokens=3)
    with pytest.raises(ValueError, match=r"inputs: expected the prompts once"):
        lm.generate(ids, input_ids=ids, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"eos_token_id: the action must leave special tokens .* it moves token 3"):
        lm.generate(ids, max_new_tokens=2, eos_token_id=3)
    with pytest.raises(ValueError, match=r"expected token ids from 0 to 100"):
        lm.generate(ids + V, max_new_tokens=2)
    swap = tokens([[*range(V)], [1, 0, *range(2, V)]])
    with pytest.raises(ValueError, match=r"eos_token_id: .* it moves token 0"):
        EquiLM(model, swap).generate(ids, max_new_tokens=2, eos_token_id=[7, 0])
    assert lm.generate(ids, max_new_tokens=2, guidance_scale=1, inputs_embeds=None).shape == (2, 7)
