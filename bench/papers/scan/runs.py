"""What is run, and in which order: networks from several seeds, what they do untrained further, and their tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import figures
from .data import Data, Split, actions, encoded, parts, reachable, split, words
from .names import CELLS, PRODUCTS, SCAN, SYSTEMS, TUNED
from .network import Seq2Seq
from .systems import accuracy, system
from .training import Plan, train

MULTI_CELLS = ("LSTM",)  # of SCAN-II, whose tuning takes eight views of a sentence
PRETRAINED = "lstm-add_jump.safetensors"  # what the quick run begins with


class Settings(NamedTuple):
    """What results depend on.

    Attributes:
        seeds: how many networks of each kind.
        pretraining, tuning: how each split is trained, and how its systems are tuned.
        validated: the most sentences of a validation, in pretraining and in tuning.
        tested: every so manieth sentence of the test is asked, and in the curves of the tuning.
    """

    seeds: int
    pretraining: dict[str, Plan]
    tuning: dict[str, Plan]
    validated: tuple[int, int]
    tested: tuple[int, int]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Settings:
        """From what ``command`` says, its plans as tuples."""
        plans = {key: {name: Plan(*plan) for name, plan in said[key].items()} for key in ("pretraining", "tuning")}
        return cls(**{**said, **plans})


class Job(NamedTuple):
    """A network to be trained, or, with the name of a system, to be tuned."""

    split: str
    cell: str
    seed: int
    system: str = ""

    @property
    def key(self) -> str:
        """Its name among the results."""
        return "/".join((self.split, self.cell, str(self.seed), self.system or "network"))

    @property
    def slug(self) -> str:
        """The beginning of its files' names."""
        return f"{self.split}-{self.cell}-{self.seed}" + (f"-{self.system.replace(' ', '-')}" if self.system else "")

    @property
    def network(self) -> Job:
        """The job that trains its network."""
        return self._replace(system="")


def jobs(seeds: int) -> Iterator[Job]:
    """All of them: first SCAN's, a cell after the other, then SCAN-II's."""
    for cell in CELLS:
        for name in SCAN:
            yield from (Job(name, cell, seed) for seed in range(seeds))
        for name in SCAN:
            yield from (Job(name, cell, seed, tuned) for seed in range(seeds) for tuned in TUNED[name])
    for cell in MULTI_CELLS:
        yield from (Job("scan_ii", cell, seed) for seed in range(seeds))
        yield from (Job("scan_ii", cell, seed, tuned) for seed in range(seeds) for tuned in TUNED["scan_ii"])


def untrained(cell: str, language: str, seed: int = 0) -> Seq2Seq:
    """A network's beginning."""
    torch.manual_seed(seed)
    return Seq2Seq(cell, len(words(language)), len(actions(language)))


def save(network: Seq2Seq, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """A network's weights, as safetensors."""
    save_file({name: t.to(dtype).contiguous() for name, t in network.state_dict().items()}, path)


def load(network: Seq2Seq, path: Path) -> Seq2Seq:
    """The network with weights that ``save`` wrote."""
    weights: dict[str, Tensor] = load_file(path)
    network.load_state_dict({name: t.float() for name, t in weights.items()})
    return network


class Prepared(NamedTuple):
    """A split as numbers, for one seed."""

    about: Split
    train: Data
    validation: Data
    test: Data
    reachable: Tensor


def prepared(name: str, seed: int) -> Prepared:
    """A split as numbers, its validation chosen by the seed."""
    about = split(name)
    train, test, reached = _numbers(name)
    return Prepared(about, *parts(train, seed), test, reached)


@cache
def _numbers(name: str) -> tuple[Data, Data, Tensor]:
    about = split(name)
    return encoded(about.train, about.language), encoded(about.test, about.language), reachable(name)


def zero_shot(network: Seq2Seq, found: Prepared, every: int) -> dict[str, dict[str, float]]:
    """Test accuracy of every system, of all sentences and of those of which training shows a view."""
    names = SYSTEMS + (PRODUCTS if len(found.about.swaps) > 1 else ())
    places = torch.arange(0, len(found.test.ids), every)
    both = {"all": places, "reachable": places[found.reachable[places]]}
    return {
        name: {
            part: accuracy(system(name, network, found.about).eval(), found.test.of(some))
            for part, some in both.items()
        }
        for name in names
    }


def state(job: Job, work: Path) -> Path:
    """Where a job's training is kept, so that it goes on where it was stopped."""
    return work / f"{job.slug}.state.pt"


def run(job: Job, settings: Settings, work: Path, advance: Callable[[int], None]) -> dict[str, Any]:
    """Do a job, or go on with it: its results. A network's weights go to ``work``."""
    found = prepared(job.split, job.seed)
    network = untrained(job.cell, found.about.language, job.seed)
    weights = work / f"{job.network.slug}.safetensors"
    if job.system:
        return tuned(job, settings, load(network, weights), found, work, advance)
    results = pretrained(job, settings, network, found, work, advance)
    save(network, weights)
    return results


def pretrained(
    job: Job, settings: Settings, network: Seq2Seq, found: Prepared, work: Path, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Results of a network that is trained from its beginning, and of the systems around it."""
    kept = found.validation.of(torch.arange(min(settings.validated[0], len(found.validation.ids))))
    history = train(
        *(network, network, settings.pretraining[job.split], found.train, job.seed),
        lambda: {"validation": accuracy(network, kept)},
        state(job, work),
        advance,
    )
    accuracies = zero_shot(network.eval(), found, settings.tested[0])
    return {"history": history, "accuracy": accuracies, "commit": figures.commit()}


def tuned(
    job: Job, settings: Settings, network: Seq2Seq, found: Prepared, work: Path, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Results of tuning one system around a pretrained network, whose weights change: behind the last update."""
    model = system(job.system, network, found.about)
    kept = found.validation.of(torch.arange(min(settings.validated[1], len(found.validation.ids))))
    curve = found.test.of(torch.arange(0, len(found.test.ids), settings.tested[1]))
    history = train(
        *(model, network, settings.tuning[job.split], found.train, job.seed),
        lambda: {"validation": accuracy(model, kept), "test": accuracy(model, curve)},
        state(job, work),
        advance,
        choose=False,  # validation shows none of what tuning is for
    )
    places = torch.arange(0, len(found.test.ids), settings.tested[0])
    reached = accuracy(model.eval(), found.test.of(places))
    return {
        "history": history,
        "accuracy": {job.system: {"all": reached}},
        "commit": figures.commit(),
    }
