"""The wrapper under transformers.Trainer: checkpoints, resuming, gradient accumulation, label smoothing."""

import pytest
import torch
from equikern.lm import EquiLM, ProductEquiLM, REquiLM
from helpers.lm_models import GENERAL, sentences, tiny, words
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments
from transformers import logging as transformers_logging

transformers_logging.disable_progress_bar()


def without_dropout(lm):
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return lm


def rows():
    """Eight sentences with unequal numbers of labels."""
    ids = sentences(8, 9)
    labels = ids.clone()
    for i, row in enumerate(labels):
        row[: i % 5] = -100
    return ids, labels


def trained(lm, folder, **options):
    ids, labels = rows()
    data = [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]
    usual = {"max_steps": 2, "save_steps": 1, "learning_rate": 0.01, "optim": "sgd", "max_grad_norm": 0.0, "seed": 1}
    resume = options.pop("resume", None)
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
        **{**usual, **options},
    )  # fmt: skip
    trainer = Trainer(lm, arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # whose first and last layers are one, and two
def test_checkpoints(tmp_path, name):
    ids, _ = rows()
    lm = without_dropout(EquiLM(tiny(name), words(3)))
    before = [p.clone() for p in lm.parameters()]
    trainer = trained(lm, tmp_path, per_device_train_batch_size=2)
    assert any(not torch.equal(a, b) for a, b in zip(before, lm.parameters(), strict=True))
    lm.eval()
    again = EquiLM.from_pretrained(tmp_path / "checkpoint-2")
    tied = name == "gpt2"
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    with torch.no_grad():
        assert torch.equal(again(ids).logits, lm(ids).logits)
    trainer.save_model()  # beside the checkpoints
    assert again.words == EquiLM.from_pretrained(tmp_path).words
    other = without_dropout(EquiLM(tiny(name), words(3)))
    trained(other, tmp_path, per_device_train_batch_size=2, resume=tmp_path / "checkpoint-1")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), lm.parameters(), strict=True))


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    """Micro batches with unequal numbers of words weigh as many as they have."""
    wrappers = [
        lambda m: EquiLM(m, words(2), "probs"),
        lambda m: REquiLM(m, words(2, GENERAL)),
        lambda m: ProductEquiLM(m, [words(2)]),
    ]
    for name, wrapped in zip(("gpt2", "llama", "llama"), wrappers, strict=True):
        weights, losses = [], []
        for micro, times in ((8, 1), (2, 4)):
            lm = without_dropout(wrapped(tiny(name)))
            options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": times, "max_steps": 1}
            trainer = trained(lm, tmp_path / f"{name}{micro}{len(losses)}", logging_steps=1, **options)
            weights.append([p.detach() for p in lm.parameters()])
            losses.append(trainer.state.log_history[0]["loss"])
        assert abs(losses[0] - losses[1]) < 1e-4
        for a, b in zip(*weights, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_num_items_in_batch():
    lm = EquiLM(tiny("llama"), words(2))
    ids, labels = rows()
    counted = int((labels[:, 1:] != -100).sum())
    plain = lm(ids, labels=labels).loss
    for items in (counted, torch.tensor(counted), torch.tensor([counted, counted])):
        torch.testing.assert_close(lm(ids, labels=labels, num_items_in_batch=items).loss, plain)
    torch.testing.assert_close(lm(ids, labels=labels, num_items_in_batch=2 * counted).loss, plain / 2)
    nothing = lm(ids, labels=torch.full_like(ids, -100), num_items_in_batch=5).loss
    assert nothing == 0
    with pytest.raises(TypeError, match="num_items_in_batch: expected a number, got str"):
        lm(ids, labels=labels, num_items_in_batch="many")


def test_label_smoothing_shifts_the_labels(tmp_path):
    lm = EquiLM(tiny("llama"), words(2))
    ids, labels = rows()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, label_smoothing_factor=0.1)
    loss = Trainer(lm, arguments).compute_loss(lm, {"input_ids": ids, "labels": labels})
    expected = cross_entropy(lm(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_gradient_checkpointing():
    lm = EquiLM(tiny("llama"), words(2)).train()
    ids, labels = rows()
    lm(ids, labels=labels).loss.backward()
    expected = [p.grad.clone() for p in lm.parameters()]
    lm.zero_grad()
    calls = []
    layer = lm.model.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    lm.gradient_checkpointing_enable()
    assert lm.is_gradient_checkpointing
    lm(ids, labels=labels, use_cache=False).loss.backward()
    assert len(calls) == 2, "the layer is computed again for the gradients"
    for a, p in zip(expected, lm.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, atol=1e-6, rtol=1e-6)


def test_columns_that_trainer_keeps(tmp_path):
    """It gives a model the columns that its forward names alone; token types change what the model says."""
    lm, (ids, labels) = EquiLM(tiny("gpt2"), words(2)).eval(), rows()
    kinds = ids % 7
    columns = [{"input_ids": i, "labels": t, "token_type_ids": k} for i, t, k in zip(ids, labels, kinds, strict=True)]
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    found = Trainer(lm, arguments, eval_dataset=columns).evaluate()["eval_loss"]
    with torch.no_grad():
        expected = lm(ids, labels=labels, token_type_ids=kinds).loss.item()
        assert expected != lm(ids, labels=labels).loss.item()
    assert abs(found - expected) < 1e-5
