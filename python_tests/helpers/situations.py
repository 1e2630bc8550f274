"""What the fuzzer draws: actions with their definitions, and tensors in any layout with any values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from equikern import Action, cyclic_group, field, grid, matrix, permutation, tokens, trivial
from helpers import definitions
from helpers.definitions import Definition
from helpers.strategies import LAYOUTS, generator, laid_out
from hypothesis import strategies as st
from torch import Tensor

__all__ = ["ANY", "Situation", "drawn_tensor", "situations"]

GRIDS = ("trivial", "c2", "c4", "d4", "hflip", "vflip", "flips", "flips3d", "rot3d")
SIDES = st.sampled_from((0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33))
SPECIAL = (math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0)
MOST = 20_000  # elements of an orbit


def drawn_tensor(
    draw: st.DrawFn, name: str, shape: tuple[int, ...], dtype: torch.dtype, kind: str = "signed", spread: bool = True
) -> Tensor:
    """A tensor in any layout; without ``spread`` none that repeats its values."""
    seed = draw(st.integers(0, 2**16))
    g = generator(seed)
    if dtype == torch.bool:
        t = torch.randint(0, 2, shape, generator=g).bool()
    elif not dtype.is_floating_point:
        least = 0 if dtype == torch.uint8 else -100
        t = torch.randint(least, 100, shape, generator=g).to(dtype)
    else:
        t = torch.rand(shape, generator=g, dtype=torch.float64)
        t = {"signed": 4 * t - 2, "positive": 0.2 + t, "shares": 0.01 + 0.98 * t, "far": 1000 + 0.1 * t}[kind].to(dtype)
        if kind == "signed" and spread and t.numel() and draw(st.integers(0, 4)) == 0:
            some = torch.randint(0, t.numel(), (1 + t.numel() // 8,), generator=g)
            t.view(-1)[some] = torch.tensor(SPECIAL, dtype=dtype)[torch.randint(0, 6, some.shape, generator=g)]
    plain = tuple(layout for layout in LAYOUTS if layout not in ("expanded", "stride 0"))
    layout = draw(st.sampled_from((*LAYOUTS, "overlapping") if spread else plain), label=f"layout of {name}")
    if layout == "overlapping":  # every dim steps by one element
        return (
            t.flatten()[: sum(max(0, n - 1) for n in shape) + 1].as_strided(shape, (1,) * len(shape))
            if t.numel()
            else t
        )
    return laid_out(t, layout)


@dataclass
class Situation:
    """An action, its definition, and a shape that it acts on."""

    name: str
    action: Action
    definition: Definition
    shape: tuple[int, ...]

    @property
    def group_order(self) -> int:
        return self.definition.order


def signed_powers(draw: st.DrawFn, n: int, signs: bool) -> tuple[Tensor, Tensor | None]:
    """A cyclic group: the powers of a (signed) permutation of n entries, one of few cycles."""
    g = generator(draw(st.integers(0, 2**16)))
    length = draw(st.sampled_from([k for k in (1, 2, 3, 4) if k <= n]))
    places = torch.randperm(n, generator=g)[: length * draw(st.integers(1, max(1, n // length)))].view(-1, length)
    perm, factors = torch.arange(n), torch.ones(n, dtype=torch.int64)
    perm[places] = places.roll(1, 1)
    if signs:
        factors[places] = torch.randint(0, 2, places.shape, generator=g) * 2 - 1
    rows, flips = [torch.arange(n)], [torch.ones(n, dtype=torch.int64)]
    while True:  # (g·y)[perm[i]] = sign[i] y[i], once more
        nxt, flip = perm[rows[-1]], factors[rows[-1]] * flips[-1]
        if torch.equal(nxt, rows[0]) and torch.equal(flip, flips[0]):
            return torch.stack(rows), torch.stack(flips) if signs else None
        rows.append(nxt)
        flips.append(flip)


def rotations(n: int, turns: int) -> Tensor:
    """Rotations of the first two of n coordinates, in a skew basis."""
    angles = torch.arange(turns, dtype=torch.float64) * (2 * math.pi / turns)
    mats = torch.eye(n, dtype=torch.float64).repeat(turns, 1, 1)
    if n > 1:
        mats[:, 0, 0], mats[:, 0, 1] = angles.cos(), -angles.sin()
        mats[:, 1, 0], mats[:, 1, 1] = angles.sin(), angles.cos()
    basis = torch.eye(n, dtype=torch.float64) + 0.1 * torch.randn(n, n, generator=generator(n), dtype=torch.float64)
    found: Tensor = basis @ mats @ torch.linalg.inv(basis)
    found[0] = torch.eye(n, dtype=torch.float64)
    return found


def grid_sides(draw: st.DrawFn, action: Action) -> tuple[int, ...]:
    if action.square:
        return (draw(SIDES.filter(lambda n: n <= (9 if action.sides == 3 else 33))),) * action.sides
    return tuple(draw(SIDES.filter(lambda n: n <= (9 if action.sides == 3 else 33))) for _ in range(action.sides))


@st.composite
def situations(draw: st.DrawFn, kinds: tuple[str, ...]) -> Situation:
    kind = draw(st.sampled_from(kinds))
    if kind == "grid":
        name = draw(st.sampled_from(GRIDS))
        action: Any = grid(name)
        definition, moved = definitions.on_grid(action.words), grid_sides(draw, action)
    elif kind == "still":
        action = trivial(cyclic_group(draw(st.integers(1, 5))))
        definition, moved = definitions.on_grid(action.words), ()
    elif kind in ("rows", "permutation"):
        n = draw(st.sampled_from((1, 2, 3, 5, 8, 17, 40, 200)))
        perm, signs = signed_powers(draw, n, kind == "permutation" and draw(st.booleans()))
        dim = -1 if kind == "rows" else draw(st.integers(-3, -1))
        behind = tuple(draw(st.integers(0, 9)) for _ in range(-dim - 1))
        action = permutation(perm, signs, dim, group=cyclic_group(len(perm)))
        definition, moved = definitions.on_dim(perm, signs, dim, behind), (n, *behind)
    elif kind == "tokens":
        perm, _ = signed_powers(draw, draw(st.sampled_from((1, 2, 5, 40))), False)
        action, definition, moved = tokens(perm, group=cyclic_group(len(perm))), definitions.on_ids(perm), ()
    elif kind == "matrix":
        n = draw(st.sampled_from((1, 2, 2, 3, 3, 4, 5, 9)))
        if draw(st.booleans()):
            mats = rotations(n, draw(st.integers(1, 5)))
            action = matrix(mats, group=cyclic_group(len(mats)))
        else:
            mats = torch.eye(n, dtype=torch.float64) + 0.3 * torch.rand(
                draw(st.integers(1, 4)), n, n, generator=generator(n), dtype=torch.float64
            )
            action = matrix(mats, closed=False)
        definition, moved = definitions.on_vectors(mats), (n,)
    else:
        turns = grid(draw(st.sampled_from(("hflip", "c2", "c4", "d4", "flips", "flips3d"))))
        channels: Any = draw(st.sampled_from(("vector", "regular", "matrices")))
        if channels == "matrices":
            half = torch.eye(2, dtype=torch.float64)
            skew = torch.tensor([[1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
            some = [skew if turns.group.multiply[g, g] == 0 and g and g % 2 else half for g in range(turns.order)]
            if not _is_action(some, turns.group.multiply):
                some = [half] * turns.order
            channels = matrix(torch.stack(some), group=turns.group)
        action = field(turns, channels)
        definition = definitions.on_fields(turns.words, action.mats)
        moved = (action.size * draw(st.integers(0, 2)), *grid_sides(draw, turns))
    lead: tuple[int, ...] = ()
    for _ in range(draw(st.integers(0, 3))):
        room = MOST // max(1, definition.order * math.prod(moved) * math.prod(lead))
        lead = (*lead, draw(st.integers(0, max(1, min(9, room)))))
    return Situation(kind, action, definition, (*lead, *moved))


def _is_action(mats: list[Tensor], multiply: Tensor) -> bool:
    pairs = ((g, h) for g in range(len(mats)) for h in range(len(mats)))
    return all(torch.equal(mats[g] @ mats[h], mats[int(multiply[g, h])]) for g, h in pairs)


ANY = ("grid", "grid", "still", "permutation", "matrix", "field", "field")
