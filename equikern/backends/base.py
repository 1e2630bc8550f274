"""What a backend offers; ``plain.py`` says what each function computes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from ..views import Views, still

__all__ = ["Backend", "Maybe"]

Maybe: TypeAlias = Tensor | None


class Backend(ABC):
    """The kernels of one implementation: inputs and outputs are tensors that the caller has checked and allocated.

    ``views`` and ``table`` are what an operator got: what is static about the maps, and what they contain, on the
    tensors' device (None for views that need no table). Tensors with all dims may have any strides; weights, scores,
    dots, index, lse, target and loss are contiguous.

    Attributes:
        name: what ``use_backend`` calls it.
        fallback: the backend that serves what this one has no kernel for; None: there is nothing like that.
    """

    name: ClassVar[str]
    fallback: ClassVar[str | None] = None

    @abstractmethod
    def unavailable(self, device: torch.device) -> str | None:
        """None if the kernels can run on the device, else why not and what to do about it."""

    @abstractmethod
    def orbit(
        self, x: Tensor, out: Tensor, views: Views, table: Maybe, scale: float, weights: Maybe, index: Maybe
    ) -> None:
        """``out[g] = scale · weights[g] · map_g(x)``, with neither factor a copy of the bits.

        Views other than index are zero when an index is given. Of token ids only the map counts.
        """

    @abstractmethod
    def reduce(
        self,
        y: Tensor,
        out: Tensor,
        views: Views,
        table: Maybe,
        op: str,
        scale: float,
        weights: Maybe,
        plus: Maybe,
        spread: Maybe,
    ) -> None:
        """Reduce ``map_g(y[g])`` over g; "sum" is ``scale · Σ weights[g] · map_g(y[g] + plus)``."""

    @abstractmethod
    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Maybe, dots: Tensor, views: Views, table: Maybe, weights: Maybe
    ) -> None:
        """``out[g] = weights[g] · map_g(x)`` and ``dots[g, …] = ⟨map_g(x), y[g]⟩``, whose sums repeat bit by bit."""

    @abstractmethod
    def reduce_backward(
        self, grad: Tensor, spread: Maybe, y: Tensor, out: Tensor, views: Views, table: Maybe, op: str
    ) -> None:
        """The gradient of ``reduce`` in y, of views that only move entries.

        spread is the gradient of the second result of "mean_std".
        """

    @abstractmethod
    def variance(self, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        """The variance of ``map_g(y[g])`` over g, averaged over all but the first dims, those of out.

        out (*lead[:k]) is contiguous, in the accumulator's dtype. Here it is made of the standard deviation in y's
        dtype, written and read again: for backends that have no kernel of it for some views.
        """
        spread = y.new_empty(views.shape(y.shape[1:]))
        self.reduce(y, spread, views, table, "std", 1.0, None, None, None)
        squares = out.new_empty((1, *out.shape))
        self.orbit_dot(spread, spread.unsqueeze(0), None, squares, still(1), None, None)
        torch.div(squares[0], math.prod(spread.shape[out.dim() :]), out=out)

    @abstractmethod
    def variance_backward(self, factors: Tensor, y: Tensor, out: Tensor, views: Views, table: Maybe) -> None:
        """``out[g] = map_g⁻¹(factors · (map_g(y[g]) − mean))``, of views that only move entries.

        factors (*lead[:k]), contiguous, are in the accumulator's dtype.
        """

    @abstractmethod
    def select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, scores: Maybe, minimum: bool
    ) -> None:
        """``out = map_i(y[i])`` with i = index, of which values outside 0 … |G| − 1 count as the nearest.

        Given scores, i is the best of them, the least or the greatest, and is written to index: NaN never wins, ties go
        to the lowest.
        """

    @abstractmethod
    def coarse(self, x: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """``out = rowsᵀ · x · columns``, of planes (*lead, H, W), rows (H, m) and columns (W, n), in float64.

        All are contiguous, and no entry of x is read twice. x is of floats.
        """

    @abstractmethod
    def softmax_mean(self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Maybe, space: str) -> None:
        """``out = 1/|G| Σ_g map_g(p_g)`` with p_g the softmax of y[g], or its logarithm."""

    @abstractmethod
    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Maybe, space: str
    ) -> None:
        """The gradient of ``softmax_mean`` in y; views are those of ``softmax_mean``."""

    @abstractmethod
    def score(self, logits: Tensor, out: Tensor, kind: str) -> None:
        """The loss of each row of logits."""

    @abstractmethod
    def score_select(
        self, y: Tensor, out: Tensor, index: Tensor, views: Views, table: Maybe, kind: str, minimum: bool
    ) -> None:
        """``select`` by what ``score`` says of the rows of y."""

    @abstractmethod
    def cross_entropy(
        self,
        y: Tensor,
        target: Tensor,
        loss: Tensor,
        grad: Maybe,
        views: Views,
        table: Maybe,
        space: str,
        ignore_index: int,
        smoothing: float,
        scale: Maybe,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        weight: Maybe = None,
    ) -> None:
        """The loss of the mean prediction, and its gradient in y."""
