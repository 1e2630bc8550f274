"""The groups of the tests and what their elements do, written with torch's rot90, flip and transpose alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from equikern import Action, GridAction, cyclic_group, dihedral_group, grid, product_group, trivial
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """An action, and each element's map and inverse map in plain torch."""

    name: str
    action: Action
    forward: tuple[Map, ...]
    inverse: tuple[Map, ...]

    @property
    def order(self) -> int:
        return len(self.forward)

    def orbit(self, x: Tensor) -> Tensor:
        """All views of x, differentiable."""
        return torch.stack([g(x) for g in self.forward])

    def undone(self, y: Tensor) -> Tensor:
        """Every view transformed back, differentiable."""
        return torch.stack([g(view) for g, view in zip(self.inverse, y, strict=True)])

    def __repr__(self) -> str:
        return self.name


def _turn(k: int, flip: bool = False) -> tuple[Map, Map]:
    def forward(x: Tensor) -> Tensor:
        return torch.rot90(x.flip(-1) if flip else x, k, (-2, -1))

    def inverse(x: Tensor) -> Tensor:
        back = torch.rot90(x, -k, (-2, -1))
        return back.flip(-1) if flip else back

    return forward, inverse


def _same(x: Tensor) -> Tensor:
    return x


def _involution(f: Map) -> tuple[Map, Map]:
    return f, f


_E = _involution(_same)
_HFLIP = _involution(lambda x: x.flip(-1))
_VFLIP = _involution(lambda x: x.flip(-2))
_HALF = _involution(lambda x: x.flip(-1).flip(-2))
_SWAP = _involution(lambda x: x.transpose(-1, -2))
_C4 = [_turn(k) for k in range(4)]
_D4 = _C4 + [_turn(k, flip=True) for k in range(4)]
_D4_WORDS = grid("d4").words


def _case(name: str, action: Action, maps: list[tuple[Map, Map]]) -> Case:
    assert action.order == len(maps)
    return Case(name, action, tuple(f for f, _ in maps), tuple(b for _, b in maps))


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _case("trivial", grid("trivial"), [_E]),
        _case("c2", grid("c2"), [_E, _HALF]),
        _case("c4", grid("c4"), _C4),
        _case("d4", grid("d4"), _D4),
        _case("hflip", grid("hflip"), [_E, _HFLIP]),
        _case("vflip", grid("vflip"), [_E, _VFLIP]),
        _case("flips", grid("flips"), [_E, _HFLIP, _VFLIP, _HALF]),
        # An axis swap, a group of 16 that acts through its first factor, and a group that moves nothing.
        _case("swap", GridAction(cyclic_group(2), ["hw", "wh"], "swap"), [_E, _SWAP]),
        _case(
            "d4xc2",
            GridAction(product_group(dihedral_group(4), cyclic_group(2)), [w for w in _D4_WORDS for _ in range(2)]),
            [m for m in _D4 for _ in range(2)],
        ),
        _case("nothing", trivial(dihedral_group(3)), [_E] * 6),
    )
}
NAMED = ("trivial", "c2", "c4", "d4", "hflip", "vflip", "flips")
SOME = ("c4", "d4", "flips", "nothing")  # what the slower tests go through: abelian, not abelian, no turns, no dims
