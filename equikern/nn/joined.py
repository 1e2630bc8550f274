"""What the processes that share a wrapper's views make of their merges: see ``equikern.distributed.Ranks``.

================================ ======================================================================================
merge                            what processes tell one another
================================ ======================================================================================
sums, means of functions         the partial sums, in the accumulator's dtype
weighted by λ                    Σ λ y and Σ λ together; for a softmax the largest logarithm of each sample before
the choice of a view             the scores of each one's best view; then the best of all from who has it, and their
                                 mean if several tie
largest, smallest                each one's, where no gradient is wanted
all others; views                the views themselves, which are then merged everywhere as one process does
================================ ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..actions import Action
from ..core.act import listed
from ..ops.checked import orbit_sum
from ..ops.select import agree
from ..views import accumulator
from .merging import Extremum, Gathered, Merge, Output, Selected, Summed, Weighted, _each_sample

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from ..distributed import Ranks

    Mesh = DeviceMesh | ProcessGroup | Ranks

__all__ = ["Chosen", "join", "neutral", "ranks_of", "tied"]

_Grads = tuple[Tensor | None, ...]


def ranks_of(mesh: object, owner: str, learns: bool = True) -> Ranks | None:
    """What shares the views of a wrapper called ``owner``; without a mesh torch.distributed is not imported.

    ``learns`` is whether its parameters get gradients through the wrapper.
    """
    if mesh is None:
        return None
    from ..distributed import Ranks

    ranks = Ranks.of(mesh, owner)
    if learns or not ranks.gradients:
        return ranks
    return Ranks.of(Ranks(ranks.group, gradients=False), owner)  # those of another wrapper, if given, stay as they are


class Chosen(Selected):
    """The view of the smallest score of all processes, whose gradient is that of ``orbit_select``'s stand-in."""

    def __init__(
        self, output: Output, gradient: Literal["mean", "identity", "selected"] | None, order: int, ranks: Ranks
    ) -> None:
        super().__init__(output)
        self.gradient, self.order, self.ranks = gradient, order, ranks
        self.parts: list[tuple[Tensor, Action, list[int], Tensor]] = []

    def add(self, y: Tensor, elements: Sequence[int], beside: Tensor | None) -> None:
        super().add(y.detach(), elements, beside)
        if self.gradient is not None and y.requires_grad:
            assert beside is not None
            y, back = self.output.upright(y, elements)
            self.parts.append((y, Action(self.output.action.name, back.inverse), list(elements), beside))

    def join(self, idle: bool) -> None:
        """Find the best view of all processes, or the mean of those that tie."""
        assert self.best is not None
        assert self.score is not None
        assert self.count is not None
        score = torch.full_like(self.score, torch.nan) if idle else self.score
        said = torch.stack((score.double(), self.count.double()))  # both fit, and go in one message
        scores, counts = self.ranks.gathered(
            said[None], self.ranks.size, "the scores of each process's best view"
        ).unbind(1)
        best, owner = scores[0], torch.zeros_like(self.count)
        for rank in range(1, self.ranks.size):
            ahead = (scores[rank] < best) | (best.isnan() & ~scores[rank].isnan())
            owner, best = torch.where(ahead, rank, owner), torch.where(ahead, scores[rank], best)
        self.score = best.to(score.dtype)
        ties = agree(scores.to(score.dtype), self.score)
        count = (counts * ties).sum(0)
        own = self.best
        self.best = self.ranks.chosen(own, owner == self.ranks.rank, "all-reduce of the chosen views")
        several = ties.sum(0) > 1
        if not own.is_cpu or bool(several.any()):
            share = (self.count * ties[self.ranks.rank] / count.clamp(min=1)).to(accumulator(own))
            own = own.to(share.dtype).masked_fill(~_each_sample(ties[self.ranks.rank], own), 0)
            mean = self.ranks.total(own * _each_sample(share, own), "the views that tie").to(self.best.dtype)
            self.best = torch.where(_each_sample(several, mean), mean, self.best)
        if self.parts:
            terms = [self._stand_in(*part, count) for part in self.parts]
            stand_in = sum(terms[1:], terms[0])
            self.parts = []
            self.best = self.ranks.carried(self.best, neutral(stand_in) if idle else stand_in, "the chosen views")

    def _stand_in(self, y: Tensor, action: Action, elements: list[int], scores: Tensor, count: Tensor) -> Tensor:
        """What the views of one part put into the stand-in whose gradient the choice has."""
        if self.gradient == "mean":
            return orbit_sum(y, action, 1.0 / self.order)
        assert self.score is not None
        if self.gradient == "selected":
            shares = agree(scores.to(self.score.dtype), self.score) / count.clamp(min=1)
        else:
            first = listed(elements, y.device).unsqueeze(1) == 0
            shares = first.expand(len(elements), y.shape[1])
        return orbit_sum(y, action, 1.0, shares.to(accumulator(y)))


def join(merge: Merge, ranks: Ranks, parts: list[list[int]]) -> None:
    """Make a merge of one process's views one of all ``parts``: what ``result`` then gives is the same everywhere."""
    count = sum(map(len, parts))
    idle = ranks.idle(count)
    if isinstance(merge, Chosen):
        merge.join(idle)
    elif isinstance(merge, Weighted):
        _join_weighted(merge, ranks, idle)
    elif isinstance(merge, Extremum):
        assert merge.total is not None
        worst = -math.inf if merge.op == "max" else math.inf
        own = torch.full_like(merge.total, worst) if idle else merge.total
        merge.total = ranks.extremum(own, merge.op, f"all-reduce of the views' {merge.op}")
    elif isinstance(merge, Summed):
        assert merge.total is not None
        merge.total = ranks.total(neutral(merge.total) if idle else merge.total, "the views' sums")
    else:
        assert isinstance(merge, Gathered)
        ys, _, besides = zip(*merge.parts, strict=True)
        merge.parts = []
        y = ranks.gathered(torch.cat(ys), count, "all views")
        beside = None if besides[0] is None else ranks.gathered(torch.cat(besides), count, "the views' weights")
        merge.parts = [(y, [g for part in parts for g in part], beside)]
        merge.words = [word for part in parts for word in merge.output.back(part).views.words]


def _join_weighted(merge: Weighted, ranks: Ranks, idle: bool) -> None:
    total, weight = merge.total, merge.weight
    assert total is not None
    assert weight is not None
    if idle:
        total, weight = neutral(total), neutral(weight)
    if merge.top is not None:
        top = torch.full_like(merge.top, -math.inf) if idle else merge.top
        merge.top = ranks.extremum(top, "max", "all-reduce of the largest weights")
        fades = (top - merge.top).exp()
        total, weight = total * _each_sample(fades, total), weight * fades
    size = math.prod(total.shape[1:])
    both = torch.cat((total.reshape(len(total), size), weight.unsqueeze(1)), 1)
    both = ranks.total(both, "the weighted sums and the weights")
    merge.total, merge.weight = both[:, :size].reshape(total.shape), both[:, size]


def neutral(t: Tensor) -> Tensor:
    """Zeros in the place of what counts for nothing, which get a gradient of zero."""
    return cast(Tensor, _Neutral.apply(t)) if t.requires_grad else torch.zeros_like(t)  # type: ignore[no-untyped-call]


def tied(t: Any, others: Sequence[Any]) -> Any:
    """The same tensor, beside which others get a gradient of zero: for forwards that all processes must take back."""
    others = [other for other in others if isinstance(other, Tensor) and other.requires_grad]
    return _Tied.apply(t, *others) if others and isinstance(t, Tensor) and t.requires_grad else t  # type: ignore[no-untyped-call]


class _Neutral(Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class _Tied(Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, *others: Tensor) -> Tensor:
        ctx.like = [(other.shape, other.dtype, other.device) for other in others]
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        return grad, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
