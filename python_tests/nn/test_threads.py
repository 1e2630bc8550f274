"""Nothing of a call stays on an object: wrappers are used by many threads at once, and choices of a backend overlap."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import equikern
import pytest
import torch
from equikern import EquiTune, EquiZero, LambdaEquiTune, use_backend
from equikern.backends import active_backend
from torch import Tensor, nn


class Slow(nn.Module):
    """A classifier whose forward passes control to other threads in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        threading.Event().wait(0.002)
        return self.head(features)  # type: ignore[no-any-return]


WRAPPERS = {
    "mean": lambda: EquiTune(Slow(), "c4", "trivial"),
    "parts": lambda: EquiTune(Slow(), "c4", "trivial", views_per_forward=1),
    "zero": lambda: EquiZero(Slow(), "c4", "trivial"),
    "lambda": lambda: LambdaEquiTune(Slow(), "c4", "trivial", 8, features="body"),
    "frozen": lambda: LambdaEquiTune(Slow(), "c4", "trivial", 8, features="body", frozen=True),
}


@pytest.mark.parametrize("name", list(WRAPPERS))
def test_threads_share_a_wrapper(name: str) -> None:
    torch.manual_seed(0)
    model = WRAPPERS[name]().eval()
    inputs = [torch.randn(k % 3 + 1, 3, 6, 7) for k in range(24)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                return model(x)  # type: ignore[no-any-return]

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(run, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


COPIES = {"copy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_hears_its_own_backbone(copied: object) -> None:
    model = LambdaEquiTune(Slow(), "c4", "trivial", 8, features="body")
    again = copied(model)  # type: ignore[operator]
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), model(x))
    with torch.no_grad():
        next(again.backbone.body.parameters()).add_(1.0)
    assert not torch.equal(again.weights(x), model.weights(x))


def test_features_are_heard_within_a_forward_alone() -> None:
    model = LambdaEquiTune(Slow(), "c4", "trivial", 8, features="body")
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    model.backbone(x)  # a forward of the backbone's own, of which the wrapper hears nothing
    assert torch.equal(model(x), expected)


def test_a_wrapper_that_is_gone_is_not_kept_by_its_backbone() -> None:
    backbone = Slow()
    for _ in range(20):
        model = LambdaEquiTune(backbone, "c4", "trivial", 8, features="body")
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None
    assert len(backbone.body._forward_hooks) == 0


def test_features_by_name_compile() -> None:
    model = LambdaEquiTune(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        "c4",
        "trivial",
        8,
        features="0",
    )
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(compiled(x), model(x))


def test_blocks_that_overlap_leave_nothing_behind() -> None:
    before = active_backend("cpu")
    inside, left = threading.Event(), threading.Event()
    seen: list[str] = []

    def other() -> None:
        with use_backend("reference"):
            inside.set()
            left.wait(10)
            seen.append(active_backend("cpu"))

    thread = threading.Thread(target=other)
    with use_backend(None):
        thread.start()
        inside.wait(10)
        seen.append(active_backend("cpu"))
    left.set()
    thread.join()
    assert seen == ["reference", "reference"]
    assert active_backend("cpu") == before


def test_choices_without_a_block_do_not_pile_up() -> None:
    stack = equikern.backends._stack
    kept = len(stack)
    with use_backend("reference"):
        for _ in range(50):
            use_backend("reference")
        assert len(stack) <= kept + 3
    use_backend(None)
    with use_backend("reference"):
        assert active_backend("cpu") == "reference"
    stack.clear()
    equikern.backends._changed()
