"""The small CNN, its training, and what is measured for each seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from equikern import EquiTune, EquiZero, LambdaEquiTune, grid, orbit_act, train_backbone, train_weights, weight_network
from torch import Tensor, nn

from .data import CLASSES, Labelled, batches

C4 = grid("c4")
BATCH = 128
FEATURES = "11"  # the submodule behind the second last ReLU, whose 64 numbers λ reads
MAPS = "7"  # that behind the last convolution's ReLU, whose maps λ reads unpooled
PIXELS = 32 * 7 * 7


def network() -> nn.Sequential:
    """Three convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()),
        *(nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, len(CLASSES))),
    )


def fit(
    model: nn.Module,
    parameters: list[nn.Parameter],
    data: Labelled,
    steps: int,
    rate: float,
    generator: torch.Generator,
    advance: Callable[[], None],
    momentum: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Cross-entropy, or another loss of images and labels, on random batches: Adam with a falling rate, or the papers'
    SGD with momentum 0.9.
    """
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, rate, momentum=0.9) if momentum else torch.optim.Adam(parameters, rate)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for x, labels in batches(data, steps, BATCH if not momentum else 32, generator):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), labels) if loss is None else loss(x, labels)).backward()
        optimizer.step()
        schedule.step()
        advance()
    model.eval()


@torch.inference_mode()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    right = [int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), labels.split(500), strict=True)]
    return sum(right) / len(x)


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image turned by a random multiple of 90°."""
    k = torch.randint(4, (len(x),), generator=generator)
    return orbit_act(x, k, C4)


def one_seed(seed: int, settings: dict[str, int], data: dict[str, Any], advance: Callable[[], None]) -> dict[str, Any]:
    """Accuracies of every system for a network trained from one seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = network()
    fit(backbone, list(backbone.parameters()), data["train"], settings["steps"], 2e-3, generator, advance)
    upright, labels = data["test"]
    x = turned(upright, generator)
    found = {"plain, upright": accuracy(backbone, upright, labels), "plain": accuracy(backbone, x, labels)}
    found["equitune"] = accuracy(EquiTune(backbone, C4, "trivial"), x, labels)
    found["equizero"] = accuracy(EquiZero(backbone, C4, "trivial", loss="max_prob"), x, labels)
    weighted = LambdaEquiTune(backbone, C4, "trivial", 64, FEATURES)
    unpooled = LambdaEquiTune(
        backbone, C4, "trivial", nn.Sequential(nn.Flatten(), weight_network(PIXELS)), MAPS, pool=None
    )
    for name, model in (("λ-equitune", weighted), ("λ-equitune, unpooled", unpooled)):
        parameters = train_weights(model)
        rate = 0.1 if model is weighted else 0.01
        fit(model, parameters, data["train"], settings["lambda_steps"], rate, generator, advance, momentum=True)
        found[name] = accuracy(model, x, labels)
    trust = weighted.weights(upright[:1000]).mean(1).tolist()  # by the angle that an upright image is turned by
    # Stage two, from the same λ on the same batches: λ and what it reads stand still, as in the paper, or λ's features
    # are those of the backbone that is tuned.
    for name, frozen in (("tuned, λ frozen", True), ("tuned, λ following", False)):
        batches_of_both = torch.Generator().manual_seed(1000 + seed)
        again = copy.deepcopy(backbone), copy.deepcopy(weighted.weight_net)
        model = LambdaEquiTune(again[0], C4, "trivial", again[1], FEATURES, frozen=frozen)
        parameters = train_backbone(model)
        fit(model, parameters, data["train"], settings["tune_steps"], 2e-3, batches_of_both, advance, momentum=True)
        found[name] = accuracy(model, x, labels)
    return {"seed": seed, "accuracy": found, "trust": trust}
