"""Wrappers, language models, logits, permutations, matrices, fields and volumes on a GPU. Collected only with one.

The operators' own tests run on a GPU through bench/gpu/proxy.py; here is what needs tensors that live there.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import equikern
import pytest
import torch
from equikern import EquiTune, EquiZero, LambdaEquiTune, grid, orbit, orbit_mean, orbit_score, tuned, warmup
from equikern.lm import EquiLM
from helpers.backbones import conv
from helpers.gpu import GPU, close, needs_gpu, plainly
from helpers.lm_models import sentences, tiny, words
from helpers.logits import swaps, targets
from helpers.oracles import CASES, Case
from helpers.strategies import random_values
from torch import Tensor, nn

MODELS: dict[str, Callable[[], nn.Module]] = {
    "equitune": lambda: EquiTune(conv(), "d4", "d4"),
    "one view at a time": lambda: EquiTune(conv(), "c4", "c4", views_per_forward=1),
    "largest": lambda: EquiTune(conv(), "d4", "d4", reduce="max"),
    "median": lambda: EquiTune(conv(), "c4", "c4", reduce="median"),
    "lambda": lambda: LambdaEquiTune(conv(), "c4", "c4", 3, features="1"),
    "equizero": lambda: EquiZero(conv(), "d4", "d4", loss="entropy"),
}


def there(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(GPU)


@pytest.mark.parametrize("name", MODELS)
def test_wrappers(gpu: None, name: str) -> None:
    """A model moved there: its outputs and the gradients of its parameters."""
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.randn(2, 1, 12, 12)

    def run(model: nn.Module, x: Tensor) -> list[Tensor]:
        y = model(x)
        return [y, *torch.autograd.grad(y.square().mean(), [p for p in model.parameters() if p.requires_grad])]

    for ours, expected in zip(run(there(model), x.to(GPU)), plainly(lambda: run(model, x)), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-3, atol=1e-4)  # convolutions, in TF32 perhaps


@pytest.mark.parametrize("space", [None, "probs"])
def test_language_models(gpu: None, space: Any) -> None:
    lm = EquiLM(tiny("llama"), words(2), space=space)
    ids = sentences(2, 7)
    with torch.no_grad():
        expected = plainly(lambda: lm(ids).logits)
        found = there(lm)(ids.to(GPU)).logits
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    texts = there(lm).generate(ids.to(GPU), max_new_tokens=4, do_sample=False)
    assert texts.device.type == GPU.type
    assert texts.shape == (2, 11)


@pytest.mark.parametrize("case", CASES.values(), ids=repr)
def test_every_kind_of_action(gpu: None, case: Case) -> None:
    """Forward, backward and second derivatives of tensors there, tables moved once."""
    x = random_values(case.shape(2, 3, side=6), torch.float32, 1)
    incoming = random_values((case.order, *x.shape), torch.float32, 2)

    def run(x: Tensor, incoming: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        views = orbit(x, case.action)
        (grad,) = torch.autograd.grad(views, x, incoming.to(x.device) * views.detach().cos() + views, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        mean = orbit_mean(views, case.action)
        out = torch.empty_like(mean.detach())
        with torch.no_grad():
            orbit_mean(views.detach(), case.action, out=out)
        return [views, grad, second, mean, out]

    for ours, expected in zip(run(x.to(GPU), incoming), plainly(lambda: run(x, incoming)), strict=True):
        close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("space", [None, "probs", "log_probs"])
@pytest.mark.parametrize("size", [50, 2101, 50_257])
def test_logits(gpu: None, size: int, space: Any, dtype: torch.dtype) -> None:
    """Means of softmaxes, scores, losses and their gradients, of rows on both sides of a block."""
    action = swaps(2, size, 9)
    y = random_values((2, 5, size), dtype, 3)
    target = targets((5,), size, 4)

    def run(y: Tensor) -> list[Tensor]:
        y = y.clone().requires_grad_()
        mean = orbit_mean(y, action, space)
        loss = equikern.orbit_cross_entropy(y, target.to(y.device), action, space)
        grads = torch.autograd.grad(mean.float().square().sum() + loss, y)
        return [mean, loss, *grads, *(orbit_score(y.detach(), kind) for kind in ("max_prob", "entropy", "margin"))]

    eps = torch.finfo(dtype).eps
    for ours, expected in zip(run(y.to(GPU)), plainly(lambda: run(y)), strict=True):
        scale = float(expected.double().abs().max())
        torch.testing.assert_close(ours.cpu(), expected, rtol=16 * eps + 1e-6, atol=(16 * eps + 1e-6) * scale)


@needs_gpu
def test_another_stream(gpu: None) -> None:
    """A call follows the stream that is current."""
    action = grid("d4")
    y = torch.zeros(8, 4, 3, 64, 64, device=GPU)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy = torch.empty(1 << 27, device=GPU)
        for _ in range(20):
            busy.zero_()  # what follows waits for it on this stream alone
        y.fill_(3.0)
        mean = orbit_mean(y, action)
    stream.synchronize()
    assert bool((mean == 3.0).all())


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_devices(gpu: None) -> None:
    """Neither the current device nor the first one, but that of the tensors."""
    for case in CASES.values():
        x = random_values(case.shape(2, 3, side=6), torch.float32, 1)
        for index in (1, 0):
            views = orbit(x.to(f"cuda:{index}"), case.action)
            assert views.get_device() == index
            close(orbit_mean(views, case.action), plainly(functools.partial(orbit_mean, case.orbit(x), case.action)))


@pytest.mark.parametrize("name", ["equitune", "lambda"])
def test_compiled(name: str) -> None:
    torch.manual_seed(0)
    model = there(MODELS[name]())
    x = torch.randn(2, 1, 12, 12, device=GPU)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tuned_mode_and_warmup(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured keeps its bits; warmup takes an operator, and a module."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    action = grid("d4")
    y = torch.randn(8, 4, 3, 33, 33, device=GPU)
    before = orbit_mean(y, action)
    with tuned(True):
        warmup(orbit_mean, tuple(y.shape), action, device=GPU)
        assert torch.equal(orbit_mean(y, action), before)
    warmup(EquiTune(conv(), "d4", "d4").to(GPU), (2, 1, 12, 12), device=GPU)
