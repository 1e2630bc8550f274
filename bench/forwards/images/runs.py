"""What is run: costs once, and each experiment once for a seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from bench.papers.fashion.data import Labelled, images_and_labels
from bench.papers.fashion.network import accuracy, fit, turned
from bench.papers.zero_shot.systems import Remembered, predictions
from equikern import (
    CanonicalEquiTune,
    GridAction,
    LambdaEquiTune,
    grid,
    orbit,
    train_backbone,
    train_energy,
    train_weights,
)
from torch import Tensor, nn

from . import networks, systems
from .names import EXPERIMENTS, PANELS, STATISTICS, TRAINED
from .systems import System

C4 = grid("c4")
BATCHES = {"fashion": (128, 1), "efficientnet": (4, 1)}  # images of a batch whose time is taken


class Job(NamedTuple):
    """One entry of the results.

    Attributes:
        part: "cost"; "fixed", what no seed changes; or an experiment.
        name: of which experiment, and of the cost which group; or the seed.
    """

    part: str
    name: str

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.part}/{self.name}"


def jobs(seeds: int) -> Iterator[Job]:
    """All of them."""
    for experiment, group in PANELS:
        yield Job("cost", f"{experiment}/{group}")
    yield Job("fixed", "efficientnet")
    for seed in range(seeds):
        for experiment in EXPERIMENTS:
            yield Job(experiment, str(seed))


def steps_of(job: Job, settings: dict[str, Any]) -> int:
    """How often a job advances the progress bar."""
    if job.part in ("cost", "fixed"):
        return 1
    part = settings[job.part]
    if job.part == "fashion":
        return sum(part[name] for name in ("steps", "energy", "joint", "lambda", "tune"))
    return int(part["steps"])


def weight(job: Job, settings: dict[str, Any]) -> float:
    """About how long a job takes, as the progress bar counts it: steps of the CNN."""
    return steps_of(job, settings) * {"cost": 500.0, "fixed": 2000.0, "fashion": 1.0, "efficientnet": 12.0}[job.part]


def run(job: Job, settings: dict[str, Any], advance: Callable[[], None]) -> dict[str, Any]:
    """Do a job."""
    if job.part == "cost":
        experiment, group = job.name.split("/")
        found: Any = costs(experiment, group, settings[experiment]["rounds"])
        advance()
        return {"costs": found}
    if job.part == "fixed":
        found = fixed(settings[job.name])
        advance()
        return {"rows": found}
    one_seed = fashion if job.part == "fashion" else efficientnet
    return one_seed(int(job.name), settings[job.part], advance)


@cache
def garments(held: int, test: int) -> tuple[Labelled, Labelled, Labelled]:
    """Fashion-MNIST: what is trained on, the last training images, by which settings are chosen, and the test."""
    x, labels = images_and_labels("train")
    kept = len(x) - held
    return (x[:kept], labels[:kept]), (x[kept:], labels[kept:]), images_and_labels("t10k", test)


def learn_energy(model: CanonicalEquiTune, data: Labelled, steps: int, seed: int, advance: Callable[[], None]) -> None:
    """The first stage, by the prior alone: upright images came upright."""
    generator = torch.Generator().manual_seed(seed)
    fit(model, train_energy(model), data, steps, 2e-3, generator, advance, loss=lambda x, _: model.prior_loss(x))


def fashion(seed: int, settings: dict[str, int], advance: Callable[[], None]) -> dict[str, Any]:
    """Every system around a CNN that is trained from one seed on upright garments."""
    train, _, (upright, labels) = garments(settings["held"], settings["test"])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = networks.cnn()
    fit(backbone, list(backbone.parameters()), train, settings["steps"], 2e-3, generator, advance)

    model = CanonicalEquiTune(backbone, C4, "trivial", networks.energy(), size=None)
    learn_energy(model, train, settings["energy"], seed, advance)
    energy = model.energy
    assert isinstance(energy, nn.Module)
    with torch.inference_mode():
        named = float((model.elements(upright)[0] == 0).double().mean())
    learnt = [adapted(backbone, train, settings["joint"], generator, advance)]

    weighted = LambdaEquiTune(backbone, C4, "trivial", networks.weights(), networks.FEATURES, pool=None)
    fit(weighted, train_weights(weighted), train, settings["lambda"], 0.01, generator, advance, momentum=True)
    learnt.append(System("λ-equitune", None, 4, "λ", weighted))
    again = copy.deepcopy(backbone), copy.deepcopy(weighted.weight_net)
    tuned = LambdaEquiTune(again[0], C4, "trivial", again[1], networks.FEATURES, frozen=True, pool=None)
    fit(tuned, train_backbone(tuned), train, settings["tune"], 2e-3, generator, advance, momentum=True)
    learnt.append(System("λ-equitune, tuned", None, 8, "λ", tuned))  # each view is seen by the frozen copy, too

    # All views of turned images are views of upright ones: the CNN has to see each of them once.
    asked, itself = (
        [
            systems.plain(network),
            *systems.untrained(network, C4, False),
            *systems.ranked(network, C4, energy, None),
            *learnt,
        ]
        for network in (Remembered(copy.deepcopy(backbone), "trunk"), backbone)
    )
    x, some = turned(upright, generator), upright[: settings["compared"]]
    rows = [
        row(real, "c4", accuracy(system.model, x, labels), systems.forwards(system, x), some)
        for system, real in zip(asked, itself, strict=True)
    ]
    rows.append({**rows[0], "method": "plain, upright", "accuracy": accuracy(backbone, upright, labels)})
    return {"rows": rows, "upright named": named}


def adapted(
    backbone: nn.Module, train: Labelled, steps: int, generator: torch.Generator, advance: Callable[[], None]
) -> System:
    """equiadapt's way: a canonicaliser and a copy of the backbone that learn together, from the task and the prior."""
    model = CanonicalEquiTune(
        copy.deepcopy(backbone).requires_grad_(True), C4, "trivial", networks.canonicaliser(), size=None
    )

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), labels) + model.prior_loss(x)

    fit(model, list(model.parameters()), train, steps, 1e-3, generator, advance, loss=loss)
    return System("equiadapt's way", 1, 1, "canonicaliser", model)


def row(system: System, group: str, right: float, forwards: float, some: Tensor) -> dict[str, Any]:
    """What results hold of a system."""
    return {
        "group": group,
        "method": system.method,
        "k": system.k,
        "forwards": forwards,
        "cost": system.cost,
        "accuracy": right,
        "deviation": systems.deviation(system.model, some, grid(group)),
    }


@cache
def photographs() -> tuple[Remembered, nn.Module, Tensor, Tensor]:
    """EfficientNet-lite0, once so that it runs a single time on every image; the images and their labels."""
    from bench.papers.zero_shot import data

    network = Remembered(data.network(), "_dropout")
    return network, data.network(), data.images(), torch.tensor(data.labels())


def groups() -> list[str]:
    """Those that EfficientNet is asked under."""
    return [group for experiment, group in PANELS if experiment == "efficientnet"]


def under_all(
    made: Callable[[nn.Module, GridAction], list[System]], settings: dict[str, int], group: str, seed: int
) -> list[dict[str, Any]]:
    """Systems on every photograph under every element: answers by outputs that are remembered, changes of an answer
    by the network itself, on other photographs for each seed.
    """
    network, itself, images, labels = photographs()
    action, x = grid(group), images[: settings["images"]]
    every, rows = torch.cat(list(orbit(x, action))), []
    first = seed * settings["compared"] % len(x)
    some = x[first : first + settings["compared"]]
    for system, real in zip(made(network, action), made(itself, action), strict=True):
        right = (torch.tensor(predictions(system.model, x, action)) == labels[: len(x)]).double()
        rows.append(row(real, group, float(right.mean()), systems.forwards(system, every), some))
        if system.method == "plain":
            rows.append({**rows[-1], "method": "plain, upright", "accuracy": float(right[0].mean())})
    return rows


def fixed(settings: dict[str, int]) -> list[dict[str, Any]]:
    """The systems around EfficientNet in which nothing is trained."""

    def made(network: nn.Module, action: GridAction) -> list[System]:
        return [systems.plain(network), *systems.untrained(network, action, True)]

    return [found for group in groups() for found in under_all(made, settings, group, 0)]


def efficientnet(seed: int, settings: dict[str, int], advance: Callable[[], None]) -> dict[str, Any]:
    """Those around EfficientNet with an energy, which is trained under C4 from a seed on other photographs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    _, network, x, _ = photographs()
    energy, small = networks.PhotographEnergy(), networks.small_photographs()
    model = CanonicalEquiTune(network, C4, "trivial", energy, size=networks.CELLS)
    train_energy(model)
    energy.still.requires_grad_(False)

    def loss(some: Tensor, _: Tensor) -> Tensor:
        return model.prior_loss(networks.varied(some, generator))

    upright = small, torch.zeros(len(small))
    fit(model, list(energy.head.parameters()), upright, settings["steps"], 3e-3, generator, advance, loss=loss)
    with torch.inference_mode():
        named = float((model.elements(x[: settings["images"]])[0] == 0).double().mean())

    def made(network: nn.Module, action: GridAction) -> list[System]:
        return list(systems.ranked(network, action, energy, networks.CELLS))

    rows = [found for group in groups() for found in under_all(made, settings, group, seed)]
    return {"rows": rows, "upright named": named}


def costs(experiment: str, group: str, rounds: int) -> dict[str, Any]:
    """What ranking poses takes over a forward, by what ranks and by the images of a batch; weights do not matter."""
    torch.manual_seed(0)
    action = grid(group)
    if experiment == "fashion":
        backbone: nn.Module = networks.cnn().eval()
        x, size = images_and_labels("t10k", 1000)[0], None
        energies: dict[str, Any] = {TRAINED: networks.energy(), "canonicaliser": networks.canonicaliser()}
    else:
        _, backbone, x, _ = photographs()
        size = networks.CELLS
        energies = {TRAINED: networks.PhotographEnergy()}
    found: dict[str, Any] = {}
    for batch in BATCHES[experiment]:
        for name, energy in {**energies, **{name: name for name in STATISTICS}}.items():
            model = CanonicalEquiTune(backbone, action, "trivial", energy, size=size).eval()
            costs = systems.cost(x[:batch], backbone, model.elements, model, rounds)
            found.setdefault(name, {})[str(batch)] = costs
        if experiment == "fashion":
            found.setdefault("λ", {})[str(batch)] = cost_of_weights(backbone, x[:batch], rounds)
    return found


def cost_of_weights(backbone: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """What λ takes over a forward: its network on the maps of all views, which the backbone's forwards leave it."""
    maps, net = torch.randn(C4.order * len(x), networks.MAPS), networks.weights().eval()
    model = LambdaEquiTune(backbone, C4, "trivial", net, networks.FEATURES, pool=None).eval()
    return systems.cost(x, backbone, lambda _: net(maps), model, rounds)


def chosen(settings: dict[str, Any], seed: int, advance: Callable[[], None]) -> Iterator[str]:
    """What settings of Fashion-MNIST's energy were chosen by: held-out training images, a CNN of its own seed."""
    part = settings["fashion"]
    train, (upright, labels), _ = garments(part["held"], 1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = networks.cnn()
    fit(backbone, list(backbone.parameters()), train, part["steps"], 2e-3, generator, advance)
    x = turned(upright, generator)
    yield f"plain, upright: {accuracy(backbone, upright, labels):.4f}"
    for size, hidden in ((7, 64), (10, 64), (14, 32), (14, 100), (28, 32)):
        model = CanonicalEquiTune(backbone, C4, "trivial", networks.energy(size, hidden), size=size)
        learn_energy(model, train, part["energy"], seed, advance)
        yield f"{size} cells, {hidden} hidden: {accuracy(model, x, labels):.4f}"
