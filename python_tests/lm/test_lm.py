"""EquiLM and REquiLM: the prediction, its symmetry, the loss, training and bad input."""

import pytest
import torch
from equikern import product_action, tokens
from equikern.lm import EquiLM, REquiLM, WordLists
from helpers.lm_models import GENERAL, LISTS, V, left_padded, sentences, slow_mean, tiny, words
from torch.nn.functional import cross_entropy


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny(request.param)


@pytest.fixture(params=[2, 3], ids=["C2", "C3"])
def order(request):
    return request.param


SPACES = [None, "probs", "log_probs"]


def log_p(lm, context, rest):
    """log P(rest | context), (B,)."""
    ids = torch.cat((context, rest), 1)
    with torch.no_grad():
        scores = lm(ids).logits[:, context.shape[1] - 1 : -1].log_softmax(-1)
    return scores.gather(-1, rest.unsqueeze(-1)).squeeze(-1).sum(-1)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_group_theoretic_fairness(model, order, space, seed):
    """P(g x₂ | g x₁) = P(x₂ | x₁) for every g, which the plain model is far from."""
    lm = EquiLM(model, words(order), space)
    ids = sentences(6, 9, seed)
    x1, x2 = ids[:, :6], ids[:, 6:]
    for g in range(1, order):
        g1, g2 = lm.action.act(g, x1), lm.action.act(g, x2)
        assert (log_p(lm, x1, x2) - log_p(lm, g1, g2)).abs().max() < 1e-4  # of sums of three logarithms
        torch.testing.assert_close(log_p(lm, x1, x2).exp(), log_p(lm, g1, g2).exp(), atol=1e-5, rtol=1e-5)
        assert (log_p(model, x1, x2) - log_p(model, g1, g2)).abs().max() > 0.1
        with torch.no_grad():
            p, gp = lm(ids).logits.softmax(-1), lm(lm.action.act(g, ids)).logits.softmax(-1)
        torch.testing.assert_close(gp, lm.action.logits.act(g, p), atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", SPACES)
def test_is_the_mean_of_the_views_transformed_back(model, order, space):
    ids, mask = left_padded(sentences(3, 7))
    lm = EquiLM(model, words(order), space)
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        got = lm(ids, attention_mask=mask, position_ids=position).logits
    expected = slow_mean(model, words(order), ids, mask, space, position)
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_relaxed(model, order, space):
    """Words of E and N: those for g x are those for x, permuted. Words of G: the plain model's, for x and for g x."""
    lists = words(order, GENERAL)
    lm, ids = REquiLM(model, lists, space), sentences(4, 7)
    kept = lists.general_mask()
    assert kept.sum() == len(GENERAL)
    with torch.no_grad():
        got = lm(ids).logits
        torch.testing.assert_close(got, slow_mean(model, lists, ids, None, space), atol=1e-4, rtol=1e-5)
        for g in range(order):
            gx = lm.action.act(g, ids)
            of_gx, plain = lm(gx).logits, model(gx).logits
            plain = plain if space is None else plain.log_softmax(-1)
            torch.testing.assert_close(of_gx[..., kept], plain[..., kept], atol=1e-5, rtol=1e-5)
            moved = lm.action.logits.act(g, got)
            torch.testing.assert_close(of_gx[..., ~kept], moved[..., ~kept], atol=1e-4, rtol=1e-5)
        assert (of_gx - lm.action.logits.act(g, got)).abs().max() > 0.1  # the relaxed words do differ


def test_explicit_neutral_words_leave_the_rest_general(model):
    lists = WordLists(LISTS[2], neutral=[61, 62], size=V)
    ids = sentences(2, 5)
    with torch.no_grad():
        got, plain = REquiLM(model, lists)(ids).logits, model(ids).logits
    same = torch.isclose(got, plain, atol=1e-4).all(0).all(0)
    assert same[lists.general_mask()].all()
    assert not same[[v for row in LISTS[2] for v in row] + [61, 62]].any()


@pytest.mark.parametrize("space", SPACES)
def test_loss(model, order, space):
    """Cross-entropy of the mean prediction, shifted, without the words of −100; gradients reach the model."""
    lm, ids = EquiLM(model, words(order), space), sentences(3, 8)
    labels = ids.clone()
    labels[0, 3:5] = labels[2, -1] = -100
    output = lm(ids, labels=labels)
    expected = slow_mean(model, words(order), ids, None, space)[:, :-1]
    if space is None:
        expected = expected.log_softmax(-1)
    target = labels[:, 1:]
    kept = target != -100
    slow = -expected.gather(-1, target.clamp_min(0).unsqueeze(-1)).squeeze(-1)[kept].mean()
    torch.testing.assert_close(output.loss, slow, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    fused = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    merged = lm(ids).logits[:, :-1]
    if space is None:
        merged = merged.log_softmax(-1)
    (-merged.gather(-1, target.clamp_min(0).unsqueeze(-1)).squeeze(-1)[kept].mean()).backward()
    for got, parameter in zip(fused, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-5, rtol=1e-4)
        assert got.abs().max() > 0


@pytest.mark.parametrize("space", SPACES)
def test_relaxed_loss_is_that_of_its_logits(model, space):
    lm, ids = REquiLM(model, words(3, GENERAL), space), sentences(3, 8)
    labels = ids.clone()
    labels[1, :4] = -100
    output = lm(ids, labels=labels)
    torch.testing.assert_close(output.loss, cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    with pytest.raises(ValueError, match="labels: expected words 0 … "):
        lm(ids, labels=ids + V)
    output.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_training_mode_leaves_dropout_to_the_model():
    lm, ids = EquiLM(tiny("gpt2"), words(2)), sentences(2, 6)
    assert torch.equal(lm(ids).logits, lm(ids).logits)
    lm.train()
    assert not torch.equal(lm(ids).logits, lm(ids).logits)
    lm(ids, labels=ids).loss.backward()
    assert lm.model.transformer.wte.weight.grad.isfinite().all()


@pytest.mark.parametrize("space", SPACES)
def test_half_precision(space):
    lm = EquiLM(tiny("llama"), words(3), space)
    ids = sentences(3, 6)
    with torch.no_grad():
        exact = lm(ids, labels=ids)
        half = lm.to(torch.bfloat16)(ids, labels=ids)
    assert half.logits.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32
    assert (half.logits.float().softmax(-1) - exact.logits.softmax(-1)).abs().max() < 0.1
    assert (half.loss - exact.loss).abs() < 0.1


def test_probabilities_that_underflow_have_finite_logarithms():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(100)
    lm, ids = EquiLM(model, words(2), "probs"), sentences(2, 4)
    output = lm(ids, labels=ids)
    assert (model(ids).logits.softmax(-1) == 0).any()
    assert output.logits.isfinite().all()
    output.logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_per_forward(model, views):
    sizes = []
    model.register_forward_pre_hook(lambda m, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    ids, mask = left_padded(sentences(4, 6))
    with torch.no_grad():
        got = EquiLM(model, words(3), views_per_forward=views)(ids, attention_mask=mask).logits
        assert sizes == [4 * n for n in ([1, 1, 1], [2, 1], [3])[views - 1]]
        torch.testing.assert_close(got, EquiLM(model, words(3))(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-5)


def test_one_forward_of_all_views(model):
    sizes = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    EquiLM(model, words(3)).generate(sentences(2, 5), max_new_tokens=4, do_sample=False)
    assert sizes == [(6, 5), (6, 1), (6, 1), (6, 1)]


def test_cache_and_logits_to_keep(model, order):
    lm, ids = EquiLM(model, words(order)), sentences(3, 8)
    with torch.no_grad():
        whole = lm(ids).logits
        first = lm(ids[:, :5], use_cache=True)
        assert first.past_key_values.layers[0].keys.shape[0] == 3 * order
        rest = lm(ids[:, 5:], past_key_values=first.past_key_values).logits
        last = lm(ids, logits_to_keep=2).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, whole[:, -2:], atol=1e-5, rtol=1e-5)
    assert len(lm(ids, labels=ids, use_cache=False, return_dict=False)) == 2


def test_product_of_groups(model):
    """Gender and number at once: any action of token ids will do."""
    gender = tokens([[*range(V)], [1, 0, 3, 2, *range(4, V)]])
    number = tokens([[*range(V)], [2, 3, 0, 1, *range(4, V)]])
    lm = EquiLM(model, product_action(gender, number))
    ids = sentences(3, 6)
    ids[:, 2:4] = torch.tensor([[0, 3], [1, 2], [2, 2]])
    with torch.no_grad():
        for g in range(4):
            gp = lm(lm.action.act(g, ids)).logits
            torch.testing.assert_close(gp, lm.action.logits.act(g, lm(ids).logits), atol=1e-4, rtol=1e-4)


def test_lists_grow_to_the_models_vocabulary(model):
    lm = EquiLM(model, WordLists([[3, 4]], size=90))
    assert lm.action.size == V
    with pytest.raises(
        ValueError, match=r"the model has 101 words, but the lists name others: equality.0.: .*token 105"
    ):
        EquiLM(model, WordLists([[3, 105]], size=110))


def test_bad_input(model):
    lm = EquiLM(model, words(2))
    ids = sentences(2, 5)
    cases = [
        (lambda: EquiLM(model, words(2, GENERAL)), ValueError, "REquiLM takes them"),
        (lambda: EquiLM(model, WordLists([[1, 2]], neutral=[5], size=V)), ValueError, "REquiLM takes them"),
        (lambda: REquiLM(model, words(2).action), TypeError, "words: expected WordLists, got TokenAction"),
        (lambda: EquiLM(model, tokens([[0, 1], [1, 0]])), ValueError, "action: expected one on the model's 101 words"),
        (lambda: EquiLM(model, "c2"), TypeError, "action: expected equikern.tokens.perm. or WordLists, got str"),
        (lambda: EquiLM(torch.nn.Linear(2, 2), words(2)), TypeError, "model: expected a causal"),
        (lambda: EquiLM(model, words(2), "prob"), ValueError, "space"),
        (lambda: EquiLM(model, words(2), views_per_forward=0), ValueError, "views_per_forward: expected 1 or more"),
        (lambda: EquiLM(model, words(2), views_per_forward=True), TypeError, "views_per_forward"),
        (lambda: lm(None), ValueError, "input_ids: expected token ids"),
        (lambda: lm(ids.float()), TypeError, "input_ids: expected int64"),
        (lambda: lm(ids[0]), ValueError, r"input_ids: expected token ids of shape \(B, S\)"),
        (lambda: lm(ids + V), ValueError, "expected token ids from 0 to 100"),
        (lambda: lm(inputs_embeds=torch.zeros(2, 5, 32)), ValueError, "inputs_embeds: the group acts on token ids"),
        (lambda: lm(ids, labels=ids[:, :3]), ValueError, "labels: expected the shape of input_ids"),
        (lambda: lm(ids, labels=ids.float()), TypeError, "labels: expected an int64"),
        (lambda: lm(ids, labels=ids + V), ValueError, "target"),
        (lambda: lm(ids, labels=ids, logits_to_keep=1), ValueError, "labels: the loss needs all logits"),
        (lambda: lm(ids, output_hidden_states=True), ValueError, "output_hidden_states: the views have"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    config = model.config
    config.is_encoder_decoder = True
    with pytest.raises(ValueError, match=r"model: expected a causal model, got the encoder-decoder"):
        EquiLM(model, words(2))
