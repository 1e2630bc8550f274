"""The groups of the tests and what their elements do, written in torch's rot90, flip, transpose and indexing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from equikern import (
    Action,
    GridAction,
    MatrixAction,
    PermutationAction,
    cyclic_group,
    dihedral_group,
    grid,
    matrix,
    permutation,
    product_group,
    trivial,
)
from equikern import (
    field as make_field,
)
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """An action, and each element's map and inverse map in plain torch; their adjoints where those are others."""

    name: str
    action: Action
    forward: tuple[Map, ...]
    inverse: tuple[Map, ...]
    adjoints: tuple[tuple[Map, ...], tuple[Map, ...]] = field(default=((), ()))  # of inverse and of forward

    @property
    def size(self) -> int | None:
        """The entries of the dim that is acted on, or None for a grid, whose images have any size."""
        views = self.action.views
        return views.size if views.dim and not views.sides else None

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of one field, in front of its grid; nothing where there are no fields."""
        views = self.action.views
        return (views.size,) if views.dim and views.sides else ()

    @property
    def sides(self) -> int:
        """The dims of a grid."""
        return self.action.sides or 2

    def shape(self, *lead: int, side: int) -> tuple[int, ...]:
        """The shape of one view with these leading dims; a grid's image is side × side."""
        if self.size is None:
            return (*lead, *self.channels, *(side,) * self.sides)
        return (*lead, self.size, *(side,) * (self.action.dims - 1))

    def moved_alike(self, y: Tensor) -> Tensor:
        """An orbit y with the signs (and factors) that make its views, transformed back, have y's own."""
        return y * self.orbit(torch.ones_like(y[0])) if self.signed else y

    @property
    def many(self) -> tuple[int, ...]:
        """A shape of one view with entries enough to see how far plain torch can be off."""
        if self.size is None:
            return (7, 19, 19) if self.action.dims in (0, 2) else self.shape(3, side=9)
        return self.shape(171, side=4)

    @property
    def signed(self) -> bool:
        """Whether entries change and not only move."""
        return self.action.views.signed

    @property
    def multiplies(self) -> bool:
        """Whether the action is for floats alone."""
        return self.action.views.kind.computes

    @property
    def order(self) -> int:
        return len(self.forward)

    def orbit(self, x: Tensor) -> Tensor:
        """All views of x, differentiable."""
        return torch.stack([g(x) for g in self.forward])

    def undone(self, y: Tensor) -> Tensor:
        """Every view transformed back, differentiable."""
        return torch.stack([g(view) for g, view in zip(self.inverse, y, strict=True)])

    def spread(self, x: Tensor) -> Tensor:
        """The adjoint of the sum of ``undone``: what an incoming gradient becomes in every view."""
        return torch.stack([g(x) for g in self.adjoints[0] or self.forward])

    def gathered(self, y: Tensor) -> Tensor:
        """The terms of the adjoint of ``orbit``: every view's incoming gradient pulled back."""
        return torch.stack([g(view) for g, view in zip(self.adjoints[1] or self.inverse, y, strict=True)])

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


def _permuted(action: PermutationAction) -> list[tuple[Map, Map]]:
    """(g·y)[perm[i]] = sign[i] · y[i], and back."""
    dim = action.dim

    def element(perm: Tensor, sign: Tensor | None) -> tuple[Map, Map]:
        def signed(x: Tensor) -> Tensor:
            if sign is None:
                return x
            return torch.where(sign.reshape(-1, *(1,) * (-dim - 1)) < 0, -x, x)

        def forward(x: Tensor) -> Tensor:
            return torch.zeros_like(x).index_copy(dim, perm, signed(x))

        return forward, lambda x: signed(x.index_select(dim, perm))

    signs = [None] * action.order if action.signs is None else list(action.signs)
    return [element(perm, sign) for perm, sign in zip(action.perm, signs, strict=True)]


def _times(mats: Tensor) -> tuple[Map, ...]:
    def element(rows: Tensor) -> Map:
        return lambda x: (x.unsqueeze(-2) * rows.to(x.dtype)).sum(-1)

    return tuple(map(element, mats))


def monomial(perm: list[int], factors: list[float], order: int) -> Case:
    """Powers of a permutation's matrix in other units of length: not orthogonal, yet exact in every dtype."""
    units = torch.diag(torch.tensor(factors, dtype=torch.float64))
    turn = units @ torch.eye(len(perm), dtype=torch.float64)[perm] @ units.inverse()
    if order == 2 * len(perm):  # an even order: with a sign
        turn[0] *= -1
    mats = torch.stack([torch.linalg.matrix_power(turn, g) for g in range(order)])
    back = mats[-torch.arange(order) % order]
    action = matrix(mats)
    adjoints = _times(back.mT), _times(mats.mT)
    return Case(f"matrix{len(perm)}", action, _times(mats), _times(back), adjoints)


def _diagonal(k: int) -> tuple[Map, Map]:
    """The k-th power of a third of a turn of the cube about its diagonal followed by a point reflection, and back."""

    def forward(x: Tensor) -> Tensor:
        for _ in range(k):
            x = x.movedim(-3, -1).flip((-3, -2, -1))
        return x

    def inverse(x: Tensor) -> Tensor:
        for _ in range(k):
            x = x.movedim(-1, -3).flip((-3, -2, -1))
        return x

    return forward, inverse


def _flow(k: int) -> tuple[Map, Map]:
    """Vectors (dx, dy) turned with their image k times: what points to the right points upwards then."""

    def turned(x: Tensor, times: int) -> Tensor:
        x = torch.rot90(x, times, (-2, -1))
        for _ in range(times % 4):
            dx, dy = x[..., 0::2, :, :], x[..., 1::2, :, :]
            x = torch.stack((dy, -dx), -3).flatten(-4, -3)
        return x

    return lambda x: turned(x, k), lambda x: turned(x, -k)


def _mixed(channels: Case) -> Case:
    """A field on C4 whose channels a group of matrices multiplies."""
    assert isinstance(channels.action, MatrixAction)
    size = channels.action.size

    def both(maps: tuple[Map, ...], sign: int) -> tuple[Map, ...]:
        def element(k: int) -> Map:
            def act(x: Tensor) -> Tensor:
                fields = torch.rot90(x, sign * k, (-2, -1)).unflatten(-3, (-1, size)).movedim(-3, -1)
                return maps[k](fields).movedim(-1, -3).flatten(-4, -3)

            return act

        return tuple(map(element, range(4)))

    adjoints = both(channels.adjoints[0], 1), both(channels.adjoints[1], -1)
    action = make_field(grid("c4"), channels.action)
    return Case("mixed", action, both(channels.forward, 1), both(channels.inverse, -1), adjoints)


def powers(perm: list[int], order: int) -> list[list[int]]:
    """The rows of a cyclic group's action, perm being the generator's."""
    rows = [list(range(len(perm)))]
    for _ in range(order - 1):
        rows.append([perm[i] for i in rows[-1]])
    return rows


_CYCLE3 = permutation(powers([*range(9), 30, 10, 9, *range(12, 30), 11, *range(31, 41)], 3))  # 9 → 30 → 11 → 9 of 41
_DENSE5 = permutation(powers([3, 4, 0, 1, 2, 7, 8, 9, 5, 6], 5))  # two five-cycles, nothing stays
_SIGNED = permutation([[0, 1, 2, 3], [0, 2, 1, 3]], [[1, 1, 1, 1], [-1, -1, -1, 1]])
_S3 = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]]
_CHANNELS = permutation([[*row, 3, 4] for row in _S3], dim=-3)  # not abelian, of a dim further in front


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
        _case("cycle3", _CYCLE3, _permuted(_CYCLE3)),
        _case("dense5", _DENSE5, _permuted(_DENSE5)),
        _case("signed", _SIGNED, _permuted(_SIGNED)),
        _case("channels", _CHANNELS, _permuted(_CHANNELS)),
        monomial([1, 0], [2.0, 1.0], 4),
        monomial([1, 2, 0], [1.0, 2.0, 0.25], 3),
        # Volumes whose axes all change places; a field that moves planes, and one that is computed.
        _case(
            "diagonal",
            GridAction(cyclic_group(6), ["dhw", "HWD", "wdh", "DHW", "hwd", "WDH"], "diagonal"),
            [_diagonal(k) for k in range(6)],
        ),
        _case("flow", make_field(grid("c4"), "vector"), [_flow(k) for k in range(4)]),
        _mixed(monomial([1, 0], [2.0, 1.0], 4)),
    )
}
NAMED = ("trivial", "c2", "c4", "d4", "hflip", "vflip", "flips")
# What the slower tests go through: abelian, not abelian, no turns, no dims, few entries moved, signs, a dim in front,
# factors.
SOME = (
    "c4",
    "d4",
    "flips",
    "nothing",
    "cycle3",
    "signed",
    "channels",
    "matrix2",
    "matrix3",
    "diagonal",
    "flow",
    "mixed",
)
