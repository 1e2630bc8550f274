"""Actions by small matrices on coordinates: rotations of keypoints, point sets, vectors of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy
import torch
from torch import Tensor

from ..core import checks
from ..groups import Group, outside_of_compiled
from ..views.maps import Maps, Tables
from ..views.matrix import LARGEST, matrix_table
from .base import Action, GroupAction, Tabled, a_group, check_rows

__all__ = ["MatrixAction", "MatrixSamples", "matrix"]

TOLERANCE = 1e-5
Matrices = Tensor | numpy.ndarray[Any, Any] | Sequence[Sequence[Sequence[float]]]


class MatrixAction(Tabled):
    """A group that acts on the last dim by matrices, ``(g·x) = mats[g] @ x``; made by ``matrix``.

    Made directly, it checks what ``matrix`` checks.

    Attributes:
        mats: (|G|, d, d) float64 tensor on the CPU.

    Example:
        >>> action = matrix([[[1, 0], [0, 1]], [[0, -1], [-1, 0]]])
        >>> action.act(1, torch.tensor([2.0, 3.0])).tolist(), action.size
        ([-3.0, -2.0], 2)
    """

    def __init__(self, group: Group, mats: Matrices, name: str = "matrix") -> None:
        rows = _from_identity(mats)
        self._set(_checked(rows, a_group(group)), rows, name)

    def _set(self, group: Group, mats: Tensor, name: str = "matrix") -> None:
        GroupAction.__init__(self, group, name, _maps(mats))
        self.mats = mats

    @property
    def size(self) -> int:
        """d, the entries of a vector."""
        return self.mats.shape[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return MatrixAction.made, (self.group, self.mats, self.name)


class MatrixSamples(Action):
    """Finitely many elements of a group of matrices, which need not be a group; made by ``matrix(…, closed=False)``.

    Attributes:
        mats: (n, d, d) float64 tensor on the CPU.

    Example:
        >>> matrix([[[0.6, -0.8], [0.8, 0.6]]], closed=False)
        MatrixSamples('matrix samples', order 1)
    """

    def __init__(self, mats: Matrices, name: str = "matrix samples") -> None:
        self.mats = _matrices(mats)
        super().__init__(name, _maps(self.mats))

    @property
    def size(self) -> int:
        """d, the entries of a vector."""
        return self.mats.shape[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return MatrixSamples, (self.mats, self.name)


def _maps(mats: Tensor) -> Maps:
    words = " ".join(["x"] * len(mats))
    return Maps(f"matrix {mats.shape[-1]}: {words}", Tables.made(matrix_table(mats, torch.linalg.inv(mats))))


@overload
def matrix(mats: Matrices, group: Group | None = None, *, closed: Literal[True] = True) -> MatrixAction:
    """A group's matrices (|G|, d, d): a ``GroupAction``."""


@overload
def matrix(mats: Matrices, group: None = None, *, closed: Literal[False]) -> MatrixSamples:
    """Samples (|Θ|, d, d), which need not be a group's: an ``Action``."""


@overload
def matrix(mats: Matrices, group: Group | None = None, *, closed: bool) -> MatrixAction | MatrixSamples:
    """Either, as ``closed`` says."""


def matrix(mats: Matrices, group: Group | None = None, *, closed: bool = True) -> MatrixAction | MatrixSamples:
    """A group acting on the last dim by matrices, ``(g·x)[…, i] = Σ_j mats[g, i, j] · x[…, j]``.

    What rotations and reflections do to coordinates: keypoints, boxes' corners, point sets (B, points, d), single
    vectors (B, d). Any invertible matrices are welcome, not only orthogonal ones; the operators' gradients use the
    transposes. Values are multiplied and summed in float32 (float64 for float64), rounded once. Products are full ones,
    zeros included, also of the identity: where one of the d numbers is NaN or infinite, all results made of it
    by a zero are NaN.

    Args:
        mats: (|G|, d, d) numbers, d up to 64 (2, 3 and 4 are the fast ones), row 0 the identity. The product of two
            rows must agree with the third to 1e-5 of its largest entry (at least of 1), so float32 is enough.
        group: the group that the rows stand for; by default the one that they form, which asks that they differ.
        closed: False for samples Θ of a continuous group, such as a few angles of SO(2): the rows may then be any
            invertible matrices, without a group law and without the identity. The result is an ``Action`` for
            ``orbit``, ``orbit_weighted_mean`` and ``CanonicalLambdaEquiTune``, not a ``GroupAction``.

    Raises:
        TypeError: not numbers, not a Group.
        ValueError: not (|G|, d, d), a matrix that is not finite or has no inverse, a row 0 other than the identity, or
            rows that are no action of the group; the message names the row, or the pair that breaks it.

    Example:
        >>> import torch
        >>> from equikern import orbit, orbit_mean
        >>> mirror = matrix([[[1, 0], [0, 1]], [[-1, 0], [0, 1]]])
        >>> orbit(torch.tensor([[3.0, 4.0]]), mirror)[1].tolist()
        [[-3.0, 4.0]]
        >>> orbit_mean(torch.tensor([[1.0, 2.0], [-3.0, 6.0]]), mirror).tolist()
        [2.0, 4.0]
    """
    checks.flag("closed", closed)
    if not closed:
        if group is not None:
            raise ValueError("group: expected None for samples (closed=False), which are no group's, got a group")
        return MatrixSamples(mats)
    rows = _from_identity(mats)
    return MatrixAction.made(_checked(rows, group), rows)


def _from_identity(mats: Matrices) -> Tensor:
    """Checked matrices, the first of which is the identity."""
    rows = _matrices(mats)
    identity = torch.eye(rows.shape[-1], dtype=torch.float64, device="cpu")
    if not _same(rows[0], identity):
        raise ValueError(f"mats: row 0 must be the identity, but it is {rows[0].tolist()}")
    rows[0] = identity
    return rows


def _matrices(values: object) -> Tensor:
    outside_of_compiled("matrices")
    try:
        given = isinstance(values, (Tensor, numpy.ndarray))  # a list's numbers would be rounded to float32
        mats = torch.as_tensor(values, dtype=None if given else torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"mats: expected numbers of shape (|G|, d, d), got this: {error}") from None
    if mats.is_complex() or mats.dtype == torch.bool:
        raise TypeError(f"mats: expected real numbers, got {mats.dtype}")
    if mats.dim() != 3 or 0 in mats.shape or mats.shape[1] != mats.shape[2]:
        raise ValueError(f"mats: expected square matrices of shape (|G|, d, d), got shape {tuple(mats.shape)}")
    if mats.shape[1] > LARGEST:
        raise ValueError(f"mats: expected matrices of at most {LARGEST} rows, got {mats.shape[1]}")
    mats = mats.detach().to(torch.float64, copy=True).contiguous()
    for g, one in enumerate(mats):
        if not bool(one.isfinite().all()):
            raise ValueError(f"mats: expected finite numbers, got {one.tolist()} in row {g}")
        spread = torch.linalg.svdvals(one)
        if float(spread[-1]) <= 1e-12 * float(spread[0]):
            raise ValueError(f"mats: expected matrices that have an inverse, got {one.tolist()} in row {g}")
    return mats


def _same(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))


def _checked(rows: Tensor, group: Group | None) -> Group:
    """The group of the rows, which must be an action of it."""
    order = len(rows)
    check_rows("mats", order, group)
    limits = TOLERANCE * rows.abs().amax((1, 2)).clamp(min=1.0)
    for g in range(1, order if group is None else 0):
        same = ((rows[:g] - rows[g]).abs().amax((1, 2)) <= limits[:g]).nonzero()
        if len(same):
            raise ValueError(f"mats: rows {int(same[0])} and {g} are the same; expected different ones, or group=…")
    names = group.names if group is not None else [f"row {g}" for g in range(order)]
    multiply = torch.empty((order, order), dtype=torch.int64, device="cpu")
    flat = rows.flatten(1)
    for g in range(order):
        products = rows[g] @ rows
        if group is None:  # the nearest row to each
            found = torch.cdist(products.flatten(1), flat, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        else:
            found = group.multiply[g]
        wrong = ((products - rows[found]).abs().amax((1, 2)) > limits[found]).nonzero()
        if len(wrong):
            h = int(wrong[0])
            gh = int(found[h])
            if group is None:
                raise ValueError(
                    f"mats: not a group: row {g} after row {h} is not among the {order} rows; "
                    "samples of a larger group take closed=False"
                )
            raise ValueError(
                f"mats: not an action of {group.name}: {names[g]} after {names[h]} is not row {gh}, which is to "
                f"be {names[gh]}"
            )
        multiply[g] = found
    return group if group is not None else Group(multiply, name=f"matrices of {rows.shape[1]}×{rows.shape[1]}")
