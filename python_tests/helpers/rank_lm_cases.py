"""What the processes of ``helpers.ranks`` check of language models."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from equikern import EquiTune
from equikern.lm import EquiLM, EquiZeroLM, ProductEquiLM, REquiLM, REquiZeroLM, WordLists
from helpers.lm_models import GENERAL, V, left_padded, sentences, tiny, words
from helpers.rank_training import scale_of_fsdp
from helpers.ranks import World
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import ViTConfig, ViTForImageClassification

_FACTORS = [WordLists([[3, 4], [10, 50]], size=V), WordLists([[31, 32, 33], [41, 42, 43]], size=V)]
Make = Callable[[Any, Any], Any]


def _mean(space: Any, views_per_forward: int | None = None) -> Make:
    return lambda model, mesh: EquiLM(model, words(3), space, views_per_forward, mesh=mesh)


def _relaxed(space: Any) -> Make:
    return lambda model, mesh: REquiLM(model, words(3, GENERAL), space, mesh=mesh)


def _product(space: Any) -> Make:
    return lambda model, mesh: ProductEquiLM(model, _FACTORS, space, mesh=mesh)


CASES: dict[str, Make] = {
    "mean": _mean(None),
    "mean of probabilities, one view after another": _mean("probs", 1),
    "mean of log-probabilities": _mean("log_probs"),
    "relaxed": _relaxed(None),
    "relaxed, probabilities": _relaxed("probs"),
    "product": _product(None),
    "product of probabilities": _product("probs"),
}


def models(world: World, size: int) -> int:
    """Logits, losses and gradients of language models, shared by so many, are those of one process."""
    mesh, model = world.views.get(size), tiny("llama")
    ids, mask = left_padded(sentences(3, 8))
    for name, make in CASES.items() if mesh is not None else ():
        found = []
        for lm in (make(copy.deepcopy(model), mesh), make(copy.deepcopy(model), None)):
            output = lm(ids, attention_mask=mask, labels=ids)
            output.loss.backward()
            grads = (lm.model.model.embed_tokens.weight.grad, lm.model.lm_head.weight.grad)
            found.append((output.logits.detach(), output.loss.detach(), *grads))
        for k, (a, b) in enumerate(zip(*found, strict=True)):
            off = float((a - b).abs().max())
            assert off <= 1e-5 * (1 + float(b.abs().max())), f"{name}, result {k}: off by {off}"
    return len(CASES)


def generation(world: World, size: int) -> int:
    """What is generated is the same on all, drawn by the first one's random numbers; each has its own views' cache."""
    mesh, done = world.views.get(size), 0
    if mesh is None:
        return 0
    model = tiny("llama", eos=0)
    ids, mask = left_padded(sentences(2, 6))
    beams = {"num_beams": 2, "num_return_sequences": 2}
    for name, kind, options in (
        ("greedy", "mean", {}),
        ("sampled", "mean", {"do_sample": True}),
        ("sampled as it is", "relaxed", {"do_sample": True}),
        ("beams", "mean", beams),
        ("beams that are drawn", "mean", beams | {"do_sample": True}),
        ("beams of a product", "product", beams),
        ("a cache of one size", "mean", {"cache_implementation": "static", "disable_compile": True}),
    ):
        one, several = (CASES[kind](model, m) for m in (None, mesh))
        torch.manual_seed(0)
        expected = one.generate(ids, attention_mask=mask, max_new_tokens=4, **options)
        torch.manual_seed(several.ranks.rank)  # those of the first count
        before = torch.get_rng_state()
        found = several.generate(ids, attention_mask=mask, max_new_tokens=4, **options)
        assert "do_sample" in options or torch.equal(torch.get_rng_state(), before), f"{name}: others' random numbers"
        assert torch.equal(found, expected), f"{name}: {found} for {expected}"
        done += 1
    lm = EquiLM(model, words(3), mesh=mesh)
    assert lm.ranks is not None
    cache = lm(ids, use_cache=True).past_key_values
    rows = max(1, lm.ranks.counts(3)[lm.ranks.rank]) * len(ids)
    assert cache.layers[0].keys.shape[0] == rows, f"{cache.layers[0].keys.shape} for {rows} rows"
    return done


class Numbers:
    """In place of a tokenizer: every token is its number."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Token by token."""
        return " ".join(map(str, ids))


def _liked(texts: list[str]) -> list[float]:
    return [sum(int(v) % 17 for v in text.split()) / 7 for text in texts]


def choices(world: World, size: int) -> int:
    """What EquiZeroLM goes on with, drawn or not, with ends here and there, is what one process goes on with."""
    mesh, done = world.views.get(size), 0
    if mesh is None:
        return 0
    ids, mask = left_padded(sentences(3, 6))
    for ends in (None, [v for v in range(13, 30) if v not in GENERAL]):
        model = tiny("llama")
        model.generation_config.eos_token_id = ends
        drawn: dict[str, Any] = {"do_sample": True, "top_k": 30}
        ways: list[tuple[Any, dict[str, Any]]] = [
            (EquiZeroLM, {}),
            (EquiZeroLM, drawn),
            (EquiZeroLM, drawn | {"seed": 3}),
            (REquiZeroLM, drawn),
        ]
        for kind, options in ways:
            lists = words(3, GENERAL if kind is REquiZeroLM else None)
            one, several = (kind(model, lists, _liked, Numbers(), 3, mesh=m) for m in (None, mesh))
            found = []
            for lm, seed in ((one, 0), (several, several.ranks.rank)):
                torch.manual_seed(seed)
                found.append((lm.generate(ids, mask, max_new_tokens=8, **options), torch.rand(1)))
            assert torch.equal(found[1][0], found[0][0]), f"{options}, ends {ends}: {found[1][0]} for {found[0][0]}"
            if "seed" not in options and options:
                assert torch.equal(found[1][1], found[0][1]), "the random numbers are out of step"
            done += 1
    return done


def beside(world: World) -> None:
    """Losses of labels, files of models that are shared, and what each process must have for itself."""
    mesh = world.views[2]
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    small |= {"image_size": 8, "patch_size": 4, "num_labels": 3}
    config = ViTConfig(**small)
    torch.manual_seed(0)
    net: Any = ViTForImageClassification(config).eval()
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    pair = []
    for m in (None, mesh):
        backbone = copy.deepcopy(net)
        output = EquiTune(backbone, "d4", {"logits": "trivial"}, mesh=m)(pixel_values=x, labels=labels)
        output["loss"].backward()
        pair.append((output["loss"].detach(), output["logits"].detach(), backbone.classifier.weight.grad))
    for a, b in zip(*pair, strict=True):
        assert torch.allclose(a, b, 1e-5, 1e-6), f"{b} for {a}"
    lm = EquiLM(tiny("llama"), words(3), "probs", mesh=mesh)
    ids = sentences(2, 5)
    told = [tempfile.mkdtemp()] if dist.get_rank() == 0 else [""]
    dist.broadcast_object_list(told)
    (folder,) = told
    lm.save_pretrained(folder, is_main_process=dist.get_rank() == 0)
    dist.barrier()
    again = EquiLM.from_pretrained(folder, mesh=mesh)
    assert torch.equal(again(ids).logits, lm(ids).logits)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    sharded = tiny("llama")
    fully_shard(sharded, mesh=world.mesh)
    with pytest.raises(ValueError, match="EquiZeroLM: expected a model that is whole in every process"):
        EquiZeroLM(sharded, words(3), _liked, Numbers(), mesh=mesh).generate(ids, max_new_tokens=2)


def sharded(world: World) -> None:
    """Language models train beside shared views, sharded over all processes or with DDP; sharded ones generate."""
    ids = sentences(4, 8)
    mask = torch.ones_like(ids)
    batch = world.mesh.get_local_rank("batch")
    rows = slice(2 * batch, 2 * batch + 2)
    found: list[tuple[Tensor, ...]] = []
    for mesh in (None, world.views[2]):
        model = tiny("llama")
        model.generation_config.eos_token_id = list(range(13, 30))  # so that they end after different steps
        lm = EquiLM(model, words(3), mesh=mesh)
        torch.manual_seed(0)
        if mesh is not None:
            for layer in (*model.model.layers, model):
                fully_shard(layer, mesh=world.mesh)
        with torch.no_grad():
            synced: dict[str, Any] = {} if mesh is None else {"synced_gpus": True}
            said = lm.generate(ids[rows], max_new_tokens=12, do_sample=True, **synced)
        lm(ids, attention_mask=mask, labels=ids).loss.backward()
        grad = model.lm_head.weight.grad
        found.append((said, grad if mesh is None else grad.full_tensor() / scale_of_fsdp(world.mesh)))
    assert torch.equal(found[1][0], found[0][0])
    lm = EquiLM(tiny("llama"), words(3), mesh=world.mesh["views"])
    parallel = DistributedDataParallel(lm, process_group=world.mesh["batch"].get_group())
    parallel(ids[rows], attention_mask=mask[rows], labels=ids[rows]).loss.backward()
    found.append((found[0][0], lm.model.lm_head.weight.grad))
    for _, grad in found[1:]:
        off = float((grad - found[0][1]).abs().max())
        assert off <= 1e-5 * (1 + float(found[0][1].abs().max())), f"off by {off}"
