"""Training in rounds: each begins with its own seed and ends with a validation and a checkpoint, so that it resumes."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .data import Data, batches
from .network import translation_loss

CLIP = 5.0
FORCED = 0.5  # share of the sentences that go along their targets


class Plan(NamedTuple):
    """How a network is trained.

    Attributes:
        updates, batch: how many updates, of how many sentences each.
        rate, decay: Adam's learning rate and weight decay.
        every: updates between validations.
        falling: whether the rate falls to 0, along a cosine.
    """

    updates: int
    batch: int
    rate: float
    every: int
    decay: float = 0.0
    falling: bool = False

    def at(self, update: int) -> float:
        """The learning rate of an update."""
        return self.rate * (1 + math.cos(math.pi * update / self.updates)) / 2 if self.falling else self.rate


def train(
    model: nn.Module,
    network: nn.Module,
    plan: Plan,
    data: Data,
    seed: int,
    measured: Callable[[], dict[str, float]],
    path: Path,
    advance: Callable[[int], None],
    choose: bool = True,
) -> list[dict[str, float]]:
    """Train the network inside the model.

    Args:
        choose: whether it is left as it was where its validation was best, the first of several, or else as it is
            behind the last update.
        measured: what is said of the model before the first and after every round, "validation" among it.
        path: the checkpoint, from which a training that was stopped goes on, and which one that is done gives again.

    Returns:
        What was measured, with the "update" and the round's "loss".
    """
    optimizer = torch.optim.Adam(network.parameters(), plan.rate, weight_decay=plan.decay)
    history: list[dict[str, float]] = []
    best = copy.deepcopy(network.state_dict())
    if path.exists():
        kept = torch.load(path, weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        history, best = kept["history"], kept["best"]
        advance(int(history[-1]["update"]))
    else:
        model.eval()
        history.append({"update": 0, **measured()})
    while (done := int(history[-1]["update"])) < plan.updates:
        count = min(plan.every, plan.updates - done)
        torch.manual_seed(100_003 * seed + done)  # of the dropout
        generator = torch.Generator().manual_seed(100_003 * seed + done)
        model.train()
        total = 0.0
        for k, some in enumerate(batches(data, count, plan.batch, generator)):
            for group in optimizer.param_groups:
                group["lr"] = plan.at(done + k)
            forced = torch.rand(len(some.ids), generator=generator) < FORCED
            loss = translation_loss(model(some.ids, some.targets, forced), some.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            total += float(loss.detach())
            advance(1)
        model.eval()
        history.append({"update": done + count, "loss": total / count, **measured()})
        if history[-1]["validation"] > max(entry["validation"] for entry in history[:-1]):
            best = copy.deepcopy(network.state_dict())
        _save(
            {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "best": best},
            path,
        )
    if choose:
        network.load_state_dict(best)
    return history


def _save(state: dict[str, Any], path: Path) -> None:
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)
