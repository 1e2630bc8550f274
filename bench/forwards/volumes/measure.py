"""What a volume's answers say: agreement with the mean of 8 views, with the truth, exactness, time and memory."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from bench.ops.memory import peak
from equikern import CanonicalEquiTune, EquiTune, grid
from torch import Tensor, nn

from .data import volume
from .names import ALL, CLASSES, FIXED, PAIR, PLAIN, POSED, POSES, REDUCTIONS, STATISTICS, TIMED, VIEWS, canonical
from .network import OUT, Grids, Remembered

Outputs = tuple[Tensor, ...]
ACTION = grid("flips3d")
TOLERANCE = 1e-4  # of probabilities, between a network's output once and the same again in another batch


class System(NamedTuple):
    """A way to an answer.

    Attributes:
        method, k: its name, and how many views it looks at.
        forwards: how many that takes.
        call: a volume's outputs.
        ranks: what chooses the views, if anything does.
    """

    method: str
    k: int
    forwards: int
    call: Callable[[Tensor], Outputs]
    ranks: Callable[[Tensor], Tensor] | None = None

    @property
    def key(self) -> str:
        """What the results call it."""
        return f"{self.method}/{self.k}"


def fixed_views(net: nn.Module, elements: Sequence[int], x: Tensor) -> Outputs:
    """The mean of always the same views: how views are left out without a canonical form."""
    seen = [moved(g, net(ACTION.act(g, x))) for g in elements]  # flips are their own inverses
    return tuple(torch.stack(part).mean(0) for part in zip(*seen, strict=True))


def systems(net: nn.Module, chosen_by: tuple[str, ...], together: bool = False) -> list[System]:
    """All ways around a network: a view at a time, or all views of a volume together in one forward."""
    each = None if together else 1
    mean = EquiTune(net, ACTION, OUT, views_per_forward=each).eval()
    found = [System(PLAIN, 1, 1, net), System(ALL, ACTION.order, ACTION.order, mean)]
    found += [System(FIXED, k, k, functools.partial(fixed_views, net, range(k))) for k in VIEWS if k > 1]
    pair = [ACTION.group.names.index(name) for name in POSES]
    found.append(System(PAIR, len(pair), len(pair), functools.partial(fixed_views, net, pair)))
    for statistic in chosen_by:
        for reduce in REDUCTIONS:
            for k in VIEWS:
                model = CanonicalEquiTune(net, ACTION, OUT, statistic, k, reduce, views_per_forward=each).eval()  # type: ignore[arg-type]
                found.append(System(canonical(statistic, reduce), k, k, model, model.elements))
        model = CanonicalEquiTune(net, ACTION, OUT, statistic, poses=POSES, views_per_forward=each).eval()  # type: ignore[arg-type]
        found.append(System(canonical(statistic, POSED), len(POSES), len(POSES), model, model.elements))
    return found


def parts(outputs: Outputs) -> dict[str, Tensor]:
    """What is said to be of each class: voxels, and for boundaries edges between them."""
    *edges, voxels = (y[0] > 0.5 for y in outputs)
    boundary = torch.cat([edge.flatten() for edge in edges])
    return dict(zip(CLASSES, (~voxels[0], voxels[0], boundary, voxels[1]), strict=True))


def dice(a: Tensor, b: Tensor) -> float:
    """How much two parts have in common, 1 where both are empty.

    Example:
        >>> dice(torch.tensor([True, True]), torch.tensor([True, False]))
        0.6666666666666666
    """
    both = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def apart(a: Outputs, b: Outputs) -> float:
    """The largest difference of two answers' probabilities."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def moved(g: int, outputs: Outputs) -> Outputs:
    """An answer seen by an element of the group."""
    return tuple(ACTION.act(g, y) for y in outputs)


def judged(system: System, x: Tensor, mean: Outputs, truth: Tensor) -> dict[str, Any]:
    """A system's answer beside the mean of all views and the truth, and what the group's elements change of it."""
    answer = system.call(x)
    found, expected = parts(answer), parts(mean)
    deviation, changed = 0.0, 0.0
    for g in range(1, ACTION.order):
        there, here = moved(g, answer), system.call(ACTION.act(g, x))
        deviation = max(deviation, apart(here, there))
        other = parts(here)["platelet"] != parts(there)["platelet"]
        changed = max(changed, float(other.float().mean()))
    return {
        "same": float((found["platelet"] == expected["platelet"]).float().mean()),
        "dice": {name: dice(found[name], expected[name]) for name in CLASSES},
        "truth": dice(found["platelet"], truth),
        "deviation": deviation,
        "changed": changed,
    }


def timed(system: System, known: System, x: Tensor, g: int) -> dict[str, float]:
    """Seconds that the CPU spends on a call and on the ranking in it.

    The volume is turned by an element of the group, and the answer compared with what is known of it as it lay.

    Raises:
        AssertionError: it is another one.
    """
    turned = ACTION.act(g, x)
    start = time.process_time()
    answer = system.call(turned)
    took = time.process_time() - start
    expected = known.call(turned) if system.method in (PLAIN, FIXED, PAIR) else moved(g, known.call(x))
    error = apart(answer, expected)
    assert error < TOLERANCE, f"{system.key}: {error:.1e} from what it was"
    found = {"seconds": took, "error": error}
    if system.ranks is not None:
        times = []
        for _ in range(5):
            start = time.process_time()
            system.ranks(turned)
            times.append(time.process_time() - start)
        found["ranking"] = statistics.median(times)
    return found


def cost(first: bool) -> int:
    """How many of the network's forwards a volume takes."""
    once = sum(system.forwards for system in systems(nn.Identity(), (TIMED,)))
    return ACTION.order + once * (3 if first else 1)


@torch.no_grad()
def measured(
    net: nn.Module, seed: int, settings: dict[str, Any], first: bool, advance: Callable[[int], None]
) -> dict[str, Any]:
    """All that is said of a volume; of the first one also the memory, which is the same for all."""
    x, labels = volume(seed, tuple(settings["shape"]), settings["platelets"])
    once = Remembered(net)
    for g in range(ACTION.order):
        once(ACTION.act(g, x))
        advance(1)
    known = {system.key: system for system in systems(Grids(once), STATISTICS)}
    mean = known[f"{ALL}/{ACTION.order}"].call(x)
    alone = [fixed_views(Grids(once), [g], x) for g in range(ACTION.order)]
    found: dict[str, Any] = {
        "platelets": float((labels > 0).float().mean()),
        "views": {
            name: dice(parts(view)["platelet"], labels > 0)
            for name, view in zip(ACTION.group.names, alone, strict=True)
        },
        "systems": {key: judged(system, x, mean, labels > 0) for key, system in known.items()},
        "times": {},
    }
    g = 1 + seed % (ACTION.order - 1)
    for system in systems(Grids(net), (TIMED,)):
        found["times"][system.key] = timed(system, known[system.key], x, g)
        advance(system.forwards)
    if first:
        for name, together in (("memory", False), ("memory together", True)):
            found[name] = {}
            for system in systems(Grids(net), (TIMED,), together):
                found[name][system.key] = peak(functools.partial(system.call, x), "cpu")
                advance(system.forwards)
    return found
