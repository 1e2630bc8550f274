"""Equizero of invertible models: two flows of the plane, their exact densities, and how the densities are checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from equikern import EquiZero, GroupAction, matrix, orbit, orbit_act
from torch import Tensor, nn

LAYERS, HIDDEN, BATCH, RATE = 6, 32, 256, 2e-3
EDGE = 5.0  # densities are integrated over [−EDGE, EDGE]²


def standard_normal(x: Tensor) -> Tensor:
    """log N(x) of planar points (…, 2)."""
    return -x.square().sum(-1) / 2 - math.log(2 * math.pi)


class Couplings(nn.Module):
    """RealNVP (arXiv 1605.08803): each layer scales and shifts one coordinate by the other, and by what it is told."""

    def __init__(self, told: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(1 + told, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), last())
            for _ in range(LAYERS)
        )

    def _scale(self, k: int, x: list[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.layers[k](torch.cat((x[1 - k % 2][..., None], told), -1)).unbind(-1)
        return 2 * torch.tanh(scale / 2), shift

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Noise → data, (N, 2)."""
        parts = list(x.unbind(-1))
        for k in range(LAYERS):
            scale, shift = self._scale(k, parts, told)
            parts[k % 2] = parts[k % 2] * scale.exp() + shift
        return torch.stack(parts, -1)

    def back(self, y: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Data → noise, and log|det| of this way."""
        parts, log_det = list(y.unbind(-1)), torch.zeros_like(y[..., 0])
        for k in reversed(range(LAYERS)):
            scale, shift = self._scale(k, parts, told)
            parts[k % 2] = (parts[k % 2] - shift) * (-scale).exp()
            log_det = log_det - scale
        return torch.stack(parts, -1), log_det


def last() -> nn.Linear:
    """A layer that begins at zero, so that the flow begins as the identity."""
    layer = nn.Linear(HIDDEN, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Flow(nn.Module):
    """A flow that knows no symmetry: noise → data, and back by ``inverse``."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = Couplings()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) → (N, 2)."""
        y: Tensor = self.couplings(x, x[..., :0])
        return y

    def back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What noise data came from, and log|det| of the way back."""
        found: tuple[Tensor, Tensor] = self.couplings.back(y, y[..., :0])
        return found

    def inverse(self, y: Tensor) -> Tensor:
        """(N, 2) → (N, 2)."""
        return self.back(y)[0]

    def log_prob(self, y: Tensor) -> Tensor:
        """log p of data (…, 2)."""
        x, log_det = self.back(y)
        return standard_normal(x) + log_det


class SignedFlow(Flow):
    """One that keeps the signs of both coordinates: couplings of their logarithms, which are told the signs."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = Couplings(told=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) → (N, 2)."""
        y: Tensor = x.sign() * self.couplings(x.abs().log(), x.sign()).exp()
        return y

    def back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What noise data came from, and log|det| of the way back."""
        size = y.abs().log()
        x, log_det = self.couplings.back(size, y.sign())
        return y.sign() * x.exp(), log_det + (x - size).sum(-1)


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles off the origin's symmetries, in float64: (count, 2)."""
    angle = math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    lower = torch.randint(0, 2, (count,), generator=generator) == 1
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    noise = 0.1 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return 1.5 * (torch.stack((x - 0.2, y), -1) + noise)


def quarter_turns() -> GroupAction:
    """C4 on planar points."""
    return matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])


def signs() -> GroupAction:
    """Both coordinates' signs."""
    return matrix([[[a, 0], [0, b]] for a in (1, -1) for b in (1, -1)])


def train(flow: Flow, steps: int, seed: int, advance: Callable[[], None]) -> Flow:
    """By maximum likelihood, on data that are not turned or mirrored."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -flow.log_prob(moons(BATCH, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        advance()
    return flow.eval()


def systems(steps: int, seed: int, advance: Callable[[], None]) -> dict[str, EquiZero]:
    """Equizero of both flows: by the flow's own likelihood, and by the signs of what comes out."""
    torch.manual_seed(seed)
    free = train(Flow().double(), steps, seed, advance)
    signed = train(SignedFlow().double(), steps, seed, advance)
    turns, mirrors = quarter_turns(), signs()
    return {
        "free flow, C4, likeliest view": EquiZero(free, turns, turns, lambda y: -free.log_prob(y), None),
        "flow that keeps signs, flips": EquiZero(signed, mirrors, mirrors, lambda y: (y < 0).double().sum(-1), None),
    }


def wrapped(model: EquiZero) -> Flow:
    """The flow inside."""
    assert isinstance(model.backbone, Flow)
    return model.backbone


@torch.no_grad()
def log_density(model: EquiZero, y: Tensor) -> Tensor:
    """log p of ``model(noise)`` at y (N, 2), exact: the sum over every input that gives y; −∞ where none does."""
    found = []
    for part in y.split(20_000):
        x, fits = model.preimages(part)
        _, log_det = wrapped(model).back(orbit(part, model.out))
        each = (standard_normal(x) + log_det).masked_fill(~fits, -math.inf)
        found.append(each.logsumexp(0))
    return torch.cat(found)


@torch.no_grad()
def mean_density(model: EquiZero, y: Tensor) -> Tensor:
    """log of the flow's density, averaged over the group: equitune of a density."""
    found: Tensor = wrapped(model).log_prob(orbit(y, model.out)).logsumexp(0) - math.log(model.out.order)
    return found


@torch.no_grad()
def measure(model: EquiZero, settings: dict[str, int], seed: int) -> dict[str, Any]:
    """How exact inverse and density are, and what the density says of data moved by random elements."""
    generator = torch.Generator().manual_seed(1000 + seed)
    points, order, action = settings["points"], model.out.order, model.out
    noise = torch.randn(points, 2, generator=generator, dtype=torch.float64)
    y, chosen = model(noise), model.chosen(noise)
    fits = model.preimages(y)[1]
    log_p = log_density(model, y)
    elements = torch.randint(0, order, (points,), generator=generator)
    data = orbit_act(moons(points, generator), elements, action)
    own, mean = log_density(model, data), mean_density(model, data)
    known = own.isfinite()
    mass = masses(model, settings["side"])
    drawn = model(torch.randn(settings["samples"], 2, generator=generator, dtype=torch.float64))
    return {
        "equivariance error": max(_apart(model(action.act(g, noise)), action.act(g, y)) for g in range(order)),
        "inverse error": _apart(model.inverse(y, chosen), noise),
        "log|det| error": jacobian_error(model, y[: settings["jacobians"]], chosen[: settings["jacobians"]]),
        "density's change": max(_apart(log_density(model, action.act(g, y)), log_p) for g in range(order)),
        "integral": float(mass.sum()),
        "samples apart": apart(mass, drawn),
        "samples apart by chance": by_chance(mass, settings["samples"], generator),
        "inputs of an output": [float((fits.sum(0) == n).double().mean()) for n in range(1, order + 1)],
        "data without input": float((~known).double().mean()),
        "log p": {
            "the flow": float(wrapped(model).log_prob(data).mean()),
            "equizero, where it has an input": float(own[known].mean()),
            "mean of the densities, there": float(mean[known].mean()),
            "mean of the densities": float(mean.mean()),
        },
    }


def jacobian_error(model: EquiZero, y: Tensor, chosen: Tensor, step: float = 1e-5) -> float:
    """How far log|det| of the inverse by central differences is from the flow's of the chosen branch."""
    columns = []
    for k in range(2):
        shift = torch.zeros(2, dtype=y.dtype)
        shift[k] = step
        columns.append((model.inverse(y + shift, chosen) - model.inverse(y - shift, chosen)) / (2 * step))
    numerical = torch.linalg.det(torch.stack(columns, -1)).abs().log()
    log_det = wrapped(model).back(orbit_act(y, chosen, model.out))[1]
    return float((numerical - log_det).abs().median())


def masses(model: EquiZero, side: int) -> Tensor:
    """The density times the cells' area, at the middle of side² cells: (side, side)."""
    cells = torch.linspace(-EDGE, EDGE, side + 1, dtype=torch.float64)
    middle = (cells[1:] + cells[:-1]) / 2
    points = torch.cartesian_prod(middle, middle)
    return log_density(model, points).exp().reshape(side, side) * (2 * EDGE / side) ** 2


CELLS = 20


def apart(mass: Tensor, samples: Tensor) -> float:
    """Total variation between samples (n, 2) and the density, in CELLS² cells."""
    wide = mass.reshape(CELLS, len(mass) // CELLS, CELLS, len(mass) // CELLS).sum((1, 3))
    places = ((samples + EDGE) / (2 * EDGE) * CELLS).floor().long()
    inside = ((places >= 0) & (places < CELLS)).all(-1)
    counted = (places[inside] @ torch.tensor([CELLS, 1])).bincount(minlength=CELLS**2).reshape(CELLS, CELLS)
    return float((counted / len(samples) - wide).abs().sum() / 2)


def by_chance(mass: Tensor, count: int, generator: torch.Generator) -> float:
    """The same for as many draws from the density itself, cell by cell."""
    drawn = torch.multinomial(mass.flatten(), count, replacement=True, generator=generator)
    side = len(mass)
    middle = torch.stack((drawn // side, drawn % side), -1) + 0.5
    return apart(mass / mass.sum(), middle * (2 * EDGE / side) - EDGE)


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference; equal infinities do not differ."""
    return float((a - b).masked_fill(a == b, 0.0).abs().max())


@torch.no_grad()
def pictures(model: EquiZero, side: int) -> dict[str, list[list[float]]]:
    """Densities at side² points: of the flow, of its mean over the group, of equizero."""
    cells = torch.linspace(-EDGE / 2, EDGE / 2, side + 1, dtype=torch.float64)
    middle = (cells[1:] + cells[:-1]) / 2
    points = torch.cartesian_prod(middle, middle)
    log_p = {
        "the flow": wrapped(model).log_prob(points),
        "mean over the group": mean_density(model, points),
        "equizero": log_density(model, points),
    }
    return {
        name: [[round(v, 4) for v in row] for row in p.exp().reshape(side, side).tolist()] for name, p in log_p.items()
    }
