"""EquiZeroLM: the algorithm written out, ties, ends, padding, exact symmetry under a seed, and bad input."""

import pytest
import torch
from equikern.lm import EquiZeroLM, REquiZeroLM, WordLists
from helpers.lm_models import EOS, GENERAL, PAD, V, left_padded, sentences, tiny, words


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny(request.param)


@pytest.fixture(params=[2, 3], ids=["C2", "C3"])
def order(request):
    return request.param


class Numbers:
    """In place of a tokenizer: every token is its number."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(v) for v in ids if v != EOS or not skip_special_tokens)


def liked(texts):
    """Not symmetric in the words of E."""
    return [sum(int(v) % 17 for v in text.split()) / 7 for text in texts]


def slow(model, perm, ids, score, m, total):
    """The papers' loop for one prompt without padding and end, greedy."""
    inverse = [[row.index(v) for v in range(V)] for row in perm]
    context = list(ids)
    while len(context) < len(ids) + total:
        length = min(m, len(ids) + total - len(context))
        candidates = []
        for g, row in enumerate(perm):
            view, total_log_p = [row[v] for v in context], 0.0
            for _ in range(length):
                with torch.no_grad():
                    log_p = model(torch.tensor([view])).logits[0, -1].log_softmax(-1)
                view.append(int(log_p.argmax()))
                total_log_p += float(log_p.max())
            text = " ".join(map(str, view))
            candidates.append((score([text])[0], total_log_p, -g, view))
        best = max(candidates, key=lambda c: c[:3])
        context = [inverse[-best[2]][v] for v in best[3]]
    return context


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("score", [liked, lambda texts: [0.0] * len(texts)], ids=["score", "ties"])
def test_equals_the_slow_loop(model, order, m, score):
    lists = words(order)
    lm, ids = EquiZeroLM(model, lists, score, Numbers(), m), sentences(3, 5)
    got = lm.generate(ids, max_new_tokens=8)
    expected = [slow(model, lists.action.perm.tolist(), row, score, m, 8) for row in ids.tolist()]
    assert got.tolist() == expected
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert got.tolist() != plain.tolist()


def test_padding_changes_nothing(model):
    lm, ids = EquiZeroLM(model, words(3), liked, Numbers()), sentences(4, 6)
    ids, mask = left_padded(ids)
    got = lm.generate(ids, mask, max_new_tokens=7)
    for row in range(4):
        alone = lm.generate(ids[row : row + 1, row:], max_new_tokens=7)
        assert got[row, row:].tolist() == alone[0].tolist()


@pytest.mark.parametrize("relaxed", [False, True])
def test_samples_of_one_seed_are_exact_transforms(model, order, relaxed):
    model = tiny("llama" if "Llama" in type(model).__name__ else "gpt2", eos=EOS)
    kind, lists = (REquiZeroLM, words(order, GENERAL)) if relaxed else (EquiZeroLM, words(order))
    lm = kind(model, lists, liked, Numbers(), 3)
    ids, mask = left_padded(sentences(5, 7))
    options = {"max_new_tokens": 10, "do_sample": True, "top_k": 30, "temperature": 1.3, "top_p": 0.95}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = lm.generate(ids, mask, seed=4, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert first.tolist() == lm.generate(ids, mask, seed=4, **options).tolist()
    assert first.tolist() != lm.generate(ids, mask, seed=5, **options).tolist()
    for g in range(1, order):
        moved = lm.action.act(g, ids)
        assert lm.generate(moved, mask, seed=4, **options).tolist() == lm.action.act(g, first).tolist()
        assert first.tolist() != lm.action.act(g, first).tolist()
    torch.manual_seed(4)
    assert first.tolist() == lm.generate(ids, mask, **options).tolist()
    assert first.tolist() != lm.generate(ids, mask, **options).tolist()


def test_ends(model):
    """A text stops behind its end, and the score never sees what fills the rest."""
    model = tiny("gpt2")
    ids = sentences(6, 5)
    plain = EquiZeroLM(model, words(2), liked, Numbers(), 4).generate(ids, max_new_tokens=12)
    end = int(plain[:, 6:].flatten().mode().values)
    assert end not in [v for row in words(2).equality for v in row]
    texts = []

    def recorded(some):
        texts.extend(some)
        return liked(some)

    model.generation_config.eos_token_id = [end]
    lm = EquiZeroLM(model, words(2), recorded, Numbers(), 4)
    got = lm.generate(ids, max_new_tokens=12)
    stopped = 0
    for row in got[:, 5:].tolist():
        if end in row:
            stopped += 1
            assert set(row[row.index(end) + 1 :]) <= {PAD}
    assert stopped
    new = [text.split()[5:] for text in texts]
    assert all(str(end) not in text[:-1] and str(PAD) not in text for text in new)
    assert any(len(text) % 4 for text in new)


def test_ties_go_to_the_likelier_view_then_to_the_first(model):
    ids = sentences(2, 5)
    chosen = EquiZeroLM(model, words(3), lambda texts: [1.0] * len(texts), Numbers(), 4).generate(ids, max_new_tokens=4)
    action = words(3).action
    views = [model.generate(action.act(g, ids), max_new_tokens=4, do_sample=False) for g in range(3)]
    sums = []
    with torch.no_grad():
        for view in views:
            log_p = model(view).logits[:, 4:-1].log_softmax(-1)
            sums.append(log_p.gather(-1, view[:, 5:].unsqueeze(-1)).sum((1, 2)))
    best = torch.stack(sums).argmax(0)
    for row, g in enumerate(best.tolist()):
        back = action.act(int(action.group.inverse[g]), views[g][row])
        assert chosen[row].tolist() == back.tolist()
    neutral = torch.tensor([[61, 62, 63]])  # the views are equal, so the first is taken
    got = EquiZeroLM(model, words(3), lambda texts: [1.0] * len(texts), Numbers(), 6).generate(
        neutral, max_new_tokens=6
    )
    assert got.tolist() == model.generate(neutral, max_new_tokens=6, do_sample=False).tolist()


def test_bad_input(model):
    lists, ids = words(2), sentences(2, 5)
    lm = EquiZeroLM(model, lists, liked, Numbers())
    padded = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    nothing = EquiZeroLM(model, lists, lambda texts: [], Numbers())
    nan = EquiZeroLM(model, lists, lambda texts: [1.0, float("nan"), 0.0, 0.0], Numbers())
    cases = [
        (lambda: EquiZeroLM(model, words(2, GENERAL), liked, Numbers()), ValueError, "REquiZeroLM takes them"),
        (lambda: REquiZeroLM(model, lists.action, liked, Numbers()), TypeError, "words: expected WordLists"),
        (lambda: EquiZeroLM(model, lists, 3, Numbers()), TypeError, "score: expected a callable"),
        (lambda: EquiZeroLM(model, lists, liked, None), TypeError, "tokenizer: expected something with decode"),
        (lambda: EquiZeroLM(model, lists, liked, Numbers(), 0), ValueError, "beam_length: expected 1 or more"),
        (lambda: EquiZeroLM(model, lists, liked, Numbers(), 1.5), TypeError, "beam_length: expected a whole number"),
        (lambda: lm.generate(ids, max_new_tokens=0), ValueError, "max_new_tokens: expected 1 or more"),
        (lambda: lm.generate(ids[0], max_new_tokens=2), ValueError, "input_ids: expected token ids of shape"),
        (
            lambda: lm.generate(ids, padded, max_new_tokens=2),
            ValueError,
            "attention_mask: expected padding on the left",
        ),
        (lambda: lm.generate(ids, padded[:, :4], max_new_tokens=2), ValueError, "attention_mask: expected the shape"),
        (lambda: nothing.generate(ids, max_new_tokens=2), ValueError, "score: expected 4 numbers.* got 0"),
        (lambda: nan.generate(ids, max_new_tokens=2), ValueError, "score: .* got nan for text 1"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    model.generation_config.eos_token_id = 3
    with pytest.raises(ValueError, match=r"eos_token_id: .* it moves token 3"):
        lm.generate(ids, max_new_tokens=2)


def test_general_words_are_never_transformed(model):
    """They move under no view, so a prompt of general words alone is continued as the plain model does."""
    lists = WordLists([[3, 4]], general=GENERAL, size=V)
    ids = torch.tensor([[20, 21, 30]])
    lm = REquiZeroLM(model, lists, liked, Numbers(), 4)
    assert (
        lm.generate(ids, max_new_tokens=4).tolist() == model.generate(ids, max_new_tokens=4, do_sample=False).tolist()
    )
