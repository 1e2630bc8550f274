"""What is run, and in which order: every system is tuned from the same network, on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from equikern import EquiTune, EquiZero, GridAction, LambdaEquiTune, grid, train_backbone, train_weights
from torch import Tensor, nn

from .. import figures
from ..fashion.data import Labelled, batches
from .data import DATA, Data, turned
from .names import CASES, GROUPS, WRAPPERS
from .network import Network, pretrained, probe


class Plan(NamedTuple):
    """How a case is trained.

    Attributes:
        steps, lambda_steps: SGD's steps with the backbone, and those before it with λ alone.
        batch: images of a step.
        rate: of SGD with momentum 0.9; one that stays as it is.
        every: steps between the points of the curve.
        curve, tested: how many test images the curve asks, and the end.
        wrappers_augmented: whether invariant models are trained with augmentation, too.
    """

    steps: int
    lambda_steps: int
    batch: int
    rate: float
    every: int
    curve: int
    tested: int
    wrappers_augmented: bool


class Settings(NamedTuple):
    """What results depend on.

    Attributes:
        parts: images to tune on, to validate and to test, of each kind.
        pretraining, probing: steps of the CNN on other images, and of the new head.
        plans: how each case is trained.
    """

    parts: tuple[int, int, int]
    pretraining: int
    probing: int
    plans: dict[str, Plan]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Settings:
        """From what ``command`` says, its plans as tuples."""
        return cls(**{**said, "plans": {name: Plan(*plan) for name, plan in said["plans"].items()}})

    def as_dict(self) -> dict[str, Any]:
        """With every number's name, for JSON."""
        return {**self._asdict(), "plans": {name: plan._asdict() for name, plan in self.plans.items()}}


class Job(NamedTuple):
    """One tuning."""

    case: str
    seed: int
    group: str
    system: str
    augmented: bool

    @property
    def key(self) -> str:
        """Its name among the results."""
        augmented = "augmented" if self.augmented else "upright"
        return "/".join((self.case, self.group, self.system, augmented, str(self.seed)))


def jobs(settings: Settings, seeds: int) -> Iterator[Job]:
    """All of them, a case after the other."""
    for case, plan in settings.plans.items():
        for seed in range(seeds):
            for group in GROUPS:
                for system in ("plain", *WRAPPERS):
                    yield Job(case, seed, group, system, False)
                    if system == "plain" or plan.wrappers_augmented:
                        yield Job(case, seed, group, system, True)


def steps_of(job: Job, settings: Settings) -> int:
    """How many steps a job has, λ's among them."""
    plan = settings.plans[job.case]
    return plan.steps + plan.lambda_steps * (job.system == "λ-equitune")


def cost(job: Job, settings: Settings) -> float:
    """About how long a job takes, as the progress bar counts it: views through the backbone."""
    views = 1 if job.system == "plain" else grid(job.group).order
    return steps_of(job, settings) * settings.plans[job.case].batch * views * (60 if job.case[0] == "E" else 1)


@cache
def images(name: str, parts: tuple[int, int, int]) -> Data:
    """Labelled images by their name."""
    return DATA[name](*parts)


class Start:
    """The network and the data that all jobs of a case and a seed begin with; the last one is kept.

    Attributes:
        commit: that of the code, which may have changed on disk when a job ends.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.commit = figures.commit()
        self._kept: tuple[tuple[str, int], tuple[Network, Data]] | None = None

    def __call__(self, case: str, seed: int) -> tuple[Network, Data]:
        """A network to change, and the data."""
        if self._kept is None or self._kept[0] != (case, seed):
            backbone, name = CASES[case]
            data = images(name, tuple(self.settings.parts))
            other = None
            if backbone == "cnn":
                other = images("digits" if name == "fashion" else "fashion", tuple(self.settings.parts)).pretraining
            network = pretrained(backbone, other, self.settings.pretraining, seed)
            probe(network, data.train, self.settings.probing, seed)
            self._kept = (case, seed), (network, data)
        network, data = self._kept[1]
        return copy.deepcopy(network), data


def wrapped(system: str, network: Network, action: GridAction) -> nn.Module:
    """A system around the network; λ reads the trunk's features.

    ``EquiZero``'s gradient is, by default, that of equitune: the straight-through estimator of the paper.
    """
    if system == "equitune":
        return EquiTune(network, action, "trivial")
    if system == "equizero":
        return EquiZero(network, action, "trivial", loss="max_prob")
    return network


def sgd(
    model: nn.Module,
    parameters: list[nn.Parameter],
    data: Iterator[Labelled],
    rate: float,
    after: Callable[[int], None],
) -> None:
    """Cross-entropy by SGD with momentum 0.9; ``after`` is told how many steps are done."""
    optimizer = torch.optim.SGD(parameters, rate, momentum=0.9)
    model.train()
    for k, (x, labels) in enumerate(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        after(k + 1)
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    right = [int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(50), labels.split(50), strict=True)]
    return sum(right) / len(x)


def augmentation(data: Iterator[Labelled], action: GridAction, generator: torch.Generator) -> Iterator[Labelled]:
    """The batches with every image under a random element of the group."""
    for x, labels in data:
        yield turned(x, action, generator), labels


def run(job: Job, settings: Settings, start: Start, advance: Callable[[], None]) -> dict[str, Any]:
    """Tune one system, and ask it about the test images as they are and under random elements of the group."""
    plan, action = settings.plans[job.case], grid(job.group)
    network, data = start(job.case, job.seed)
    x, labels = (part[: plan.tested] for part in data.test)
    under = turned(x, action, torch.Generator().manual_seed(1000 + job.seed))

    def drawn(steps: int, seed: int) -> Iterator[Labelled]:
        found = batches(data.train, steps, plan.batch, torch.Generator().manual_seed(seed))
        return augmentation(found, action, torch.Generator().manual_seed(seed)) if job.augmented else found

    results: dict[str, Any] = {}
    if job.system == "λ-equitune":
        torch.manual_seed(job.seed)
        # Stage one: λ learns, and the backbone whose features it reads stands still.
        model = LambdaEquiTune(network, action, "trivial", network.head.in_features, features="trunk")
        learning = train_weights(model)
        sgd(model, learning, drawn(plan.lambda_steps, 2000 + job.seed), plan.rate, lambda _: advance())
        results["trust"] = model.weights(x[: plan.curve]).mean(1).tolist()  # of an upright image's views
        # Stage two: the backbone learns, and λ stands still, with a copy of the backbone for its features.
        model = LambdaEquiTune(network, action, "trivial", model.weight_net, features="trunk", frozen=True)
        tuned: nn.Module = model
        parameters = train_backbone(model)
    else:
        tuned = wrapped(job.system, network, action)
        parameters = list(network.parameters())
    curve = [(0, accuracy(tuned.eval(), under[: plan.curve], labels[: plan.curve]))]

    def after(steps: int) -> None:
        if steps % plan.every == 0:
            curve.append((steps, accuracy(tuned.eval(), under[: plan.curve], labels[: plan.curve])))
            tuned.train()
        advance()

    sgd(tuned, parameters, drawn(plan.steps, job.seed), plan.rate, after)
    found = {"upright": accuracy(tuned, x, labels), "turned": accuracy(tuned, under, labels)}
    return {**results, "curve": curve, "accuracy": found, "commit": start.commit}


def validated(case: str, settings: Settings, rate: float, seed: int, start: Start) -> float:
    """What a rate is chosen by: the accuracy of plain tuning, upright, on the validation images."""
    plan = settings.plans[case]
    network, data = start(case, seed)
    steps = batches(data.train, plan.steps, plan.batch, torch.Generator().manual_seed(seed))
    sgd(network, list(network.parameters()), steps, rate, lambda _: None)
    return accuracy(network, *data.validation)
