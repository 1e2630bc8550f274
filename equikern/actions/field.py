"""Fields: tensors whose channels change when their grid is turned, such as flows, gradients and group features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..groups import Group, outside_of_compiled
from ..views.field import MOST_MIXED
from ..views.grid import sides_of
from ..views.maps import Maps, Tables
from ..views.matrix import matrix_table
from .base import GroupAction
from .grid import GridAction
from .matrix import MatrixAction
from .permutation import PermutationAction, dim_from_end

__all__ = ["FieldAction", "field", "regular"]

Channels = str | PermutationAction | MatrixAction


class FieldAction(GroupAction):
    """A group that turns the grid and mixes the channels in front of it; made by ``field``.

    ``(g·x)[c] = Σ_c' M[g, c, c'] · grid_g(x[c'])`` for every field of ``size`` channels.

    Attributes:
        grid: what happens to the grid.
        channels: what happens to the channels: the action, or the name that was given.
        size: n, the channels of one field.
        mats: (|G|, n, n) float64 tensor on the CPU, M.
        signs: (|G|, n) int64 tensor of 1 and −1, the sign that each channel of a view has, or None: no sign changes.
        mixes: whether M is more than a signed permutation, so that views are computed.

    Example:
        >>> from equikern import grid
        >>> flow = field(grid("c4"), "vector")
        >>> right = torch.tensor([[[1.0]], [[0.0]]])  # dx = 1, dy = 0
        >>> flow.act(1, right).flatten().tolist()  # rot90 turns it to point upwards: dy = −1
        [0.0, -1.0]
    """

    def __init__(self, grid: GridAction, channels: Channels) -> None:
        mats = _mats(grid, channels)
        sources = _sources(mats)
        self.mixes = sources is None
        words, name = " ".join(grid.words), channels if isinstance(channels, str) else channels.name
        if sources is None:
            inverse = mats[grid.group.inverse]
            maps = Maps(f"mixed {mats.shape[-1]}: {words}", Tables.made(matrix_table(mats, inverse)))
        else:
            signed = " signed" if bool((sources < 0).any()) else ""
            table = torch.stack((sources, sources[grid.group.inverse])).to(torch.int32)
            maps = Maps(f"field {mats.shape[-1]}{signed}: {words}", Tables.made(table))
        super().__init__(grid.group, f"{name} field on {grid.name}", maps)
        self.grid, self.channels, self.mats = grid, channels, mats
        signs = torch.where(mats.sum(2) < 0, -1, 1)
        self.signs = None if self.mixes or bool((signs > 0).all()) else signs

    @property
    def size(self) -> int:
        """n, the channels of one field."""
        return self.mats.shape[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldAction, (self.grid, self.channels)


def _sources(mats: Tensor) -> Tensor | None:
    """(|G|, n): the channel that each channel of a view shows, ~channel for minus that one; None for what is more."""
    outside_of_compiled("a field")
    entries = mats.abs()
    if not bool((((entries == 0) | (entries == 1)).all()) & (entries.sum(1) == 1).all() & (entries.sum(2) == 1).all()):
        return None
    source = entries.argmax(2)
    return torch.where(mats.sum(2) < 0, ~source, source)


def field(grid: GridAction, channels: Channels) -> FieldAction:
    """A group acting on a grid and on the channels in front of it at once, fused in every operator.

    ``(g·x)[…, c, :, :] = Σ_c' M[g, c, c'] · grid_g(x[…, c', :, :])``. A tensor (\\*lead, C, H, W) (or (\\*lead, C, D,
    H, W)) holds C / n fields one behind the other, n channels each. Weights and scores are per entry of the dims in
    front of C.

    ================ =============================================== ==================================================
    channels         n                                               what
    ================ =============================================== ==================================================
    ``"regular"``    \\|G\\|                                           group features: channel h moves to h g⁻¹
    ``"vector"``     2 (3 in volumes)                                flows, gradients: see below
    a permutation    its size                                        label channels (left and right), signs allowed
    matrices         their size, at most 16                          anything else, orthogonal or not
    ================ =============================================== ==================================================

    A vector's channels are (dx, dy) in pixels: channel 0 points to the right, along W, channel 1 downwards, along H
    (and channel 2 along D). The vector turns with the image: what pointed to the right points upwards after
    ``torch.rot90``, and to the left after a horizontal flip. A gradient (∂/∂x, ∂/∂y) transforms likewise.

    Signed permutations, and so regular and vector fields, move planes and cost what the grid alone does; no channel
    sees another's NaN. Matrices take products in full, zeros included: where one channel of a field is NaN or infinite,
    all results made of it by a zero are NaN.

    Args:
        grid: an action on two or three dims.
        channels: a name of the table, a ``permutation`` (of whatever dim), or ``matrix`` action of the grid's group.

    Raises:
        TypeError: not a grid action, or channels of another kind.
        ValueError: a grid without dims, an unknown name, an action of another group, or more than 16 channels to be
            mixed by matrices.

    Example:
        >>> import torch
        >>> from equikern import field, grid, orbit, permutation
        >>> hands = field(grid("hflip"), permutation([[0, 1], [1, 0]]))  # label channels: left hand, right hand
        >>> labels = torch.tensor([[[1, 2]], [[3, 4]]])
        >>> orbit(labels, hands)[1].tolist()
        [[[4, 3]], [[2, 1]]]
        >>> field(grid("d4"), "regular").size
        8
    """
    return FieldAction(grid, channels)


def _mats(grid: GridAction, channels: Channels) -> Tensor:
    """Checked, what the elements do to the channels of one field."""
    if not isinstance(grid, GridAction):
        raise TypeError(f"grid: expected a grid action such as grid('c4'), got {type(grid).__name__}")
    if not grid.dims:
        raise ValueError(f"grid: expected an action on two or three dims, got {grid!r}, which moves nothing")
    if isinstance(channels, str):
        if channels == "vector":
            return torch.stack([_turned_vector(word) for word in grid.words])
        if channels == "regular":
            return _as_matrices(regular(grid.group))
        raise ValueError(f"channels: expected 'regular', 'vector' or an action, got {channels!r}")
    if not isinstance(channels, (PermutationAction, MatrixAction)):
        raise TypeError(
            "channels: expected 'regular', 'vector', a permutation or matrices, got " + type(channels).__name__
        )
    if channels.group != grid.group:
        raise ValueError(
            f"channels: expected an action of the grid's group {grid.group!r} ({grid.name!r}), got {channels.name!r} "
            f"of {channels.group!r}"
        )
    if isinstance(channels, MatrixAction) and channels.size > MOST_MIXED:
        raise ValueError(f"channels: expected matrices that mix at most {MOST_MIXED} channels, got {channels.size}")
    return channels.mats if isinstance(channels, MatrixAction) else _as_matrices(channels)


def regular(group: Group, dim: int = -3) -> PermutationAction:
    """The regular representation: a group permuting a dim whose entries are its own elements.

    ``x → h·x`` moves entry g to entry g h⁻¹: what acting by h on an input does to the features ``M(g x)`` of all its
    views. Acting on a grid behind that dim as well is ``field(grid, "regular")``.

    Args:
        group: the acting group.
        dim: the dim of the elements, counted from the end.

    Raises:
        TypeError: group is not a Group, or dim is not a whole number.
        ValueError: dim is not negative.

    Example:
        >>> from equikern import cyclic_group
        >>> regular(cyclic_group(3), dim=-1).act(1, torch.tensor([10, 11, 12])).tolist()
        [11, 12, 10]
    """
    outside_of_compiled("the regular action")
    if not isinstance(group, Group):
        raise TypeError(f"group: expected a Group, got {type(group).__name__}; pass the group, e.g. grid('c4').group")
    moved = group.multiply[:, group.inverse].T  # moved[h, g] = g h⁻¹
    return PermutationAction.made(group, moved.contiguous(), None, dim_from_end(dim), "regular")


def _as_matrices(channels: PermutationAction) -> Tensor:
    """M[g, perm[g, i], i] = sign[g, i]."""
    signs = torch.ones_like(channels.perm) if channels.signs is None else channels.signs
    order, n = channels.perm.shape
    mats = torch.zeros((order, n, n), dtype=torch.float64, device="cpu")
    return mats.scatter_(1, channels.perm.unsqueeze(1), signs.to(torch.float64).unsqueeze(1))


def _turned_vector(word: str) -> Tensor:
    """What a view of the grid does to steps along w, h (and d): it moves them as it moves what they point at."""
    last = len(word) - 1
    m = torch.zeros((len(word), len(word)), dtype=torch.float64, device="cpu")
    for k, (side, back) in enumerate(sides_of(word)):  # steps are counted from w
        m[last - k, last - side] = -1.0 if back else 1.0
    return m
