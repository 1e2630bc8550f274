"""ProductEquiLM: the symmetry for every pair of elements, the formula, generation, loss, files, refusals."""

from itertools import product

import pytest
import torch
from equikern import product_action, tokens
from equikern.lm import EquiLM, ProductEquiLM, WordLists
from helpers.lm_models import EOS, TRIPLES, V, left_padded, sentences, tiny
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

GENDER = WordLists([row[:2] for row in TRIPLES[:4]], size=V)
ORIGIN = WordLists(TRIPLES[4:8], size=V)
FAITH = WordLists([row[:2] for row in TRIPLES[8:]], size=V)
# Tokens that say both at once, beside words that say one thing: [bm, bw], [wm, ww] and [bm, wm], [bw, ww].
BOTH = [
    WordLists([[3, 10], [4, 50], [5, 12], [99, 7]], size=V),
    WordLists([[3, 4, 5], [10, 50, 12], [31, 36, 33]], size=V),
]
FACTORS = {"apart": [GENDER, ORIGIN], "three": [GENDER, ORIGIN, FAITH], "both at once": BOTH}
SPACES = [None, "probs", "log_probs"]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny(request.param)


def log_p(lm, context, rest):
    ids = torch.cat((context, rest), 1)
    with torch.no_grad():
        scores = lm(ids).logits[:, context.shape[1] - 1 : -1].log_softmax(-1)
    return scores.gather(-1, rest.unsqueeze(-1)).squeeze(-1).sum(-1)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", FACTORS)
def test_fairness_for_every_pair(model, name, space):
    """P(g x₂ | g x₁) = P(x₂ | x₁) for every g of the product, of Σ|G_i| views."""
    lm = ProductEquiLM(model, FACTORS[name], space)
    orders = [action.order for action in lm.factors]
    assert lm.forwards == sum(orders)
    ids = sentences(4, 9)
    x1, x2 = ids[:, :6], ids[:, 6:]
    with torch.no_grad():
        p = lm(ids).logits.softmax(-1)
    for elements in product(*map(range, orders)):
        moved, expected = ids, p
        for action, g in zip(lm.factors, elements, strict=True):
            moved, expected = action.act(g, moved), action.logits.act(g, expected)
        with torch.no_grad():
            torch.testing.assert_close(lm(moved).logits.softmax(-1), expected, atol=1e-5, rtol=0)
        ours = log_p(lm, moved[:, :6], moved[:, 6:])
        torch.testing.assert_close(ours.exp(), log_p(lm, x1, x2).exp(), atol=1e-5, rtol=1e-5)
        if any(elements):
            assert (log_p(model, moved[:, :6], moved[:, 6:]) - log_p(model, x1, x2)).abs().max() > 0.1


def test_sees_as_many_sentences_as_it_says(model):
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    ids = sentences(2, 5)
    ProductEquiLM(model, [GENDER, ORIGIN, FAITH])(ids)
    EquiLM(model, product_action(GENDER.action, ORIGIN.action, FAITH.action))(ids)
    handle.remove()
    assert seen == [((2 + 3 + 2) * 2, 5), (2 * 3 * 2 * 2, 5)]


@pytest.mark.parametrize("space", SPACES)
def test_the_formula_word_by_word(model, space):
    lm, ids = ProductEquiLM(model, [GENDER, ORIGIN], space), sentences(2, 6)
    perms = [words.action.perm.tolist() for words in (GENDER, ORIGIN)]
    standing = [list(range(V)) for _ in range(2)]
    for c, words in zip(standing, (GENDER, ORIGIN), strict=True):
        for row in words.equality:
            for v in row:
                c[v] = row[0]
    expected = torch.zeros(2, 6, V)
    for i, j in ((0, 1), (1, 0)):
        seen = torch.tensor([[standing[j][v] for v in row] for row in ids.tolist()])
        for g in perms[i]:
            with torch.no_grad():
                view = model(torch.tensor([[g[v] for v in row] for row in seen.tolist()])).logits
            view = view if space is None else view.softmax(-1) if space == "probs" else view.log_softmax(-1)
            for h in perms[j]:
                for v in range(V):  # mean over h of h·(g⁻¹·view), whose value at h·v is the view's at g·v
                    expected[..., h[v]] += view[..., g[v]] / (2 * len(perms[i]) * len(perms[j]))
    expected = expected.log() if space == "probs" else expected
    with torch.no_grad():
        torch.testing.assert_close(lm(ids).logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_loss(model, space):
    lm, ids = ProductEquiLM(model, [GENDER, ORIGIN], space), sentences(3, 8)
    labels = ids.clone()
    labels[0, 3:5] = -100
    output = lm(ids, labels=labels)
    merged = output.logits[:, :-1].flatten(0, 1)
    target = labels[:, 1:].flatten()
    log_q = merged.log_softmax(-1) if space is None else merged
    kept = target != -100
    slow = -log_q[kept].gather(-1, target[kept].unsqueeze(-1)).mean()
    torch.testing.assert_close(output.loss, slow)
    if space is None:
        torch.testing.assert_close(output.loss, cross_entropy(merged, target))
    with pytest.raises(ValueError, match=rf"labels: expected words 0 … {merged.shape[-1] - 1}, or −100; .*"):
        lm(ids, labels=labels + merged.shape[-1])
    output.loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())


def test_parts_and_padding_change_nothing(model):
    ids, mask = left_padded(sentences(3, 7))
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    whole, parts = ProductEquiLM(model, BOTH), ProductEquiLM(model, BOTH, views_per_forward=2)
    with torch.no_grad():
        a, b = (lm(ids, attention_mask=mask, position_ids=position).logits for lm in (whole, parts))
        torch.testing.assert_close(a[mask.bool()], b[mask.bool()], atol=1e-5, rtol=1e-5)
        alone = whole(ids[:1]).logits
        torch.testing.assert_close(alone, a[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_k": 20}, {"num_beams": 2}], ids=["greedy", "sample", "beams"]
)
def test_generated_texts_are_each_others_transforms(model, options):
    lm, ids = ProductEquiLM(model, [GENDER, ORIGIN]), sentences(3, 5)
    texts = []
    for g in range(lm.action.order):
        torch.manual_seed(1)
        moved = lm.generate(lm.action.act(g, ids), max_new_tokens=6, eos_token_id=EOS, pad_token_id=EOS, **options)
        texts.append(lm.action.act(int(lm.action.group.inverse[g]), moved))
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_the_cache_gives_what_whole_sentences_give(model):
    lm, ids = ProductEquiLM(model, BOTH), sentences(2, 6)
    got = lm.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    slow = ids
    with torch.no_grad():
        for _ in range(5):
            slow = torch.cat((slow, lm(slow).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(got, slow)


@pytest.mark.parametrize("factors", [[GENDER, ORIGIN], [GENDER.action, ORIGIN]], ids=["lists", "an action"])
def test_saved_and_loaded(tmp_path, factors):
    lm, ids = ProductEquiLM(tiny("llama"), factors, "probs", 3), sentences(2, 6)
    lm.save_pretrained(tmp_path)
    again = ProductEquiLM.from_pretrained(tmp_path)
    assert again.lists == lm.lists
    assert again.factors == lm.factors
    assert (again.space, again.views_per_forward, again.training) == ("probs", 3, False)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, lm(ids).logits)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), lm.model.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"holds an ProductEquiLM, load it with ProductEquiLM.from_pretrained"):
        EquiLM.from_pretrained(tmp_path)


def test_one_factor_is_equilm(model):
    ids = sentences(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(ProductEquiLM(model, [ORIGIN])(ids).logits, EquiLM(model, ORIGIN)(ids).logits)


@pytest.mark.parametrize(
    ("factors", "error", "said"),
    [
        (GENDER, TypeError, r"^factors: expected a list of WordLists or tokens\(perm\), got WordLists"),
        ([], ValueError, r"^factors: expected one or more, got none"),
        ([GENDER, 3], TypeError, r"^factors\[1\]: expected equikern.tokens"),
        ([GENDER, tokens([[0, 1], [1, 0]])], ValueError, rf"^factors\[1\]: expected one on the model's {V} words, got"),
        ([WordLists([[3, 4]], general=[9], size=V), ORIGIN], ValueError, r"^factors\[0\]: .*without general words"),
        (
            [WordLists([[3, 4]], size=V), WordLists([[4, 5]], size=V)],
            ValueError,
            r"^factors: expected actions that commute, but r1 of factors\[0\] .* and r1 of factors\[1\]",
        ),
        (
            [WordLists([[3, 4]], size=V, names={3: " man", 4: " woman"}), WordLists([[3, 4], [7, 8]], size=V)],
            ValueError,
            r"^factor 0: expected words to stand .*factor 1 takes ' man' \(token 3\) to ' woman' \(token 4\)",
        ),
    ],
)
def test_refusals(factors, error, said):
    with pytest.raises(error, match=said):
        ProductEquiLM(tiny("llama"), factors)


def test_ids_outside_the_vocabulary():
    lm = ProductEquiLM(tiny("llama"), [GENDER, ORIGIN])
    with pytest.raises(ValueError, match=rf"^input_ids: expected token ids from 0 to {V - 1}, got {V}"):
        lm(torch.tensor([[1, V]]))


def test_compiled_in_one_graph():
    lm, ids = ProductEquiLM(tiny("llama"), [GENDER, ORIGIN]), sentences(2, 4)
    with torch.no_grad():
        compiled = torch.compile(lambda x: lm(x, use_cache=False).logits, fullgraph=True, backend="eager")(ids)
        torch.testing.assert_close(compiled, lm(ids).logits)
