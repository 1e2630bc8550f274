"""What is compared: each system in eager torch, as the papers have it, and by equikern's wrappers; one call of each."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from equikern import EquiTune, EquiZero, LambdaEquiTune, weight_network
from torch import Tensor, nn

from .names import INFERENCE, LAMBDA, ONE_BATCH, ONE_BY_ONE, ONE_EACH, TOGETHER, TRAINING, TUNED
from .networks import Network

Forward = Callable[[Tensor], Tensor]
Wrapper = EquiTune | EquiZero | LambdaEquiTune


def turned(x: Tensor, group: str) -> Iterator[Tensor]:
    """The views of images (B, C, H, W) under ``"c4"`` or ``"d4"``, as the papers' code makes them.

    Example:
        >>> sum(1 for _ in turned(torch.zeros(1, 1, 2, 2), "d4"))
        8
    """
    for image in (x, x.flip(-1)) if group == "d4" else (x,):
        for k in range(4):
            yield torch.rot90(image, k, (-2, -1))


class Eager:
    """The papers' systems in eager torch: logits of all views, stacked, then merged.

    Args:
        network: what is wrapped.
        weight_net: λ.
        frozen: the network as it is now, whose features λ reads.
        group: ``"c4"`` or ``"d4"``.
        one_batch: all views in one forward, as in the authors' code; otherwise a forward for each.
    """

    def __init__(self, network: Network, weight_net: nn.Module, frozen: Network, group: str, one_batch: bool) -> None:
        self.network, self.weight_net, self.frozen = network, weight_net, frozen
        self.group, self.one_batch = group, one_batch

    def _of_all(self, module: nn.Module, x: Tensor) -> Tensor:
        if not self.one_batch:
            return torch.stack([module(view) for view in turned(x, self.group)])
        views = torch.stack(list(turned(x, self.group)))
        y: Tensor = module(views.flatten(0, 1))
        return y.view(*views.shape[:2], -1)

    def equitune(self, x: Tensor) -> Tensor:
        """The mean over the views."""
        return self._of_all(self.network, x).mean(0)

    def equizero(self, x: Tensor) -> Tensor:
        """The surest view of each image, with the gradient of the mean."""
        y = self._of_all(self.network, x)
        best = y.softmax(-1).amax(-1).argmax(0).tolist()
        chosen, mean = torch.stack([y[g, k] for k, g in enumerate(best)]), y.mean(0)
        return mean + (chosen - mean).detach()

    def weighted(self, x: Tensor) -> Tensor:
        """The mean weighted by λ, which reads the frozen network's features: a second forward."""
        y = self._of_all(self.network, x)
        with torch.no_grad():
            features = self._of_all(self.frozen.features, x)
        weights: Tensor = self.weight_net(features)
        return (y * weights.softmax(0)).sum(0)


class Job(NamedTuple):
    """A system of a step.

    Attributes:
        step, system: their names.
        modules: the network and λ.
        trains: which of them is trained, if any.
        ways: the forward in every way.
        copies: the ways that hold a copy of the network.
    """

    step: str
    system: str
    modules: tuple[nn.Module, nn.Module]
    trains: nn.Module | None
    ways: dict[str, Forward]
    copies: tuple[str, ...]


def jobs(network: Network, group: str) -> list[Job]:
    """All systems around a network in evaluation mode, so that batch norms do not tell one batch from many."""
    device = next(network.parameters()).device
    weight_net = weight_network(network.size).to(device)
    frozen = copy.deepcopy(network).requires_grad_(False)
    eager = {way: Eager(network, weight_net, frozen, group, way == ONE_BATCH) for way in (ONE_BY_ONE, ONE_BATCH)}
    read = weight_net, "features"
    wrappers: dict[str, Wrapper] = {
        "equitune": EquiTune(network, group, "trivial"),
        "equizero": EquiZero(network, group, "trivial"),
        "λ-equitune": LambdaEquiTune(network, group, "trivial", *read),
        TUNED: LambdaEquiTune(network, group, "trivial", *read, frozen=True),
    }

    def job(step: str, system: str, trains: nn.Module | None, name: str) -> Job:
        wrapper = wrappers[name].to(device).eval()
        method = name if name in ("equitune", "equizero") else "weighted"
        ways: dict[str, Forward] = {way: getattr(one, method) for way, one in eager.items()}
        for way, views in ((TOGETHER, None), (ONE_EACH, 1)):
            ways[way] = functools.partial(_forward, wrapper, views)
        copies = tuple(ways) if name == TUNED else tuple(eager) if method == "weighted" else ()
        return Job(step, system, (network, weight_net), trains, ways, copies)

    return [
        *(job(INFERENCE, name, None, name) for name in ("equitune", "equizero", "λ-equitune")),
        *(job(TRAINING, name, network, name) for name in ("equitune", "equizero")),
        job(TRAINING, LAMBDA, weight_net, "λ-equitune"),
        job(TRAINING, TUNED, network, TUNED),
    ]


def _forward(wrapper: Wrapper, views: int | None, x: Tensor) -> Tensor:
    wrapper.views_per_forward = views
    y: Tensor = wrapper(x)
    return y


def parameters(job: Job, way: str) -> int:
    """Bytes of the parameters and buffers that a way holds: the network's and its copy's, and λ's."""
    network, weight_net = (
        sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) for module in job.modules
    )
    return network * (1 + (way in job.copies)) + (weight_net if "λ" in job.system else 0)


def called(job: Job, way: str, x: Tensor, labels: Tensor) -> list[Tensor]:
    """One call: the logits, and with training the gradients of their cross-entropy."""
    for module in job.modules:  # all jobs share them
        module.requires_grad_(module is job.trains)
    if job.trains is None:
        with torch.no_grad():
            return [job.ways[way](x)]
    logits = job.ways[way](x)
    loss = nn.functional.cross_entropy(logits, labels)
    return [logits.detach(), *torch.autograd.grad(loss, list(job.trains.parameters()))]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error, in norm, of the logits and of all gradients together.

    Example:
        >>> difference([torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)])
        0.0
    """
    errors = []
    for a, b in ((found[:1], expected[:1]), (found[1:], expected[1:])):
        wrong = sum(float((one - other).square().sum()) for one, other in zip(a, b, strict=True))
        errors.append(math.sqrt(wrong / (sum(float(other.square().sum()) for other in b) or 1.0)))
    return max(errors)
