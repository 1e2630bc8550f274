"""``orbit_select``: equizero's reduction, the best view transformed back, by given scores or by its own."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks, estimates, library
from ..core import rows as kernels
from ..core.functions import Differentiable, functional, needs_grad
from ..views import EXACT, accumulator, of
from ..views.maps import Placed
from .score import KINDS, Kind, orbit_score

__all__ = ["agree", "orbit_select", "tied"]


def orbit_select(
    y: Tensor,
    scores: Tensor | Kind,
    action: Action,
    mode: Literal["min", "max"] = "min",
    gradient: Literal["mean", "identity", "selected"] | None = "mean",
    *,
    ties: Literal["lowest", "mean"] = "lowest",
    estimator: Literal["straight_through"] | None = None,
    return_index: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Equizero's reduction: ``g*⁻¹ y[g*]`` with ``g* = argmin_g scores[g]``, reading only the chosen views.

    Choosing has no useful gradient, so the backward is that of a stand-in S, as if by
    ``S + (out − S).detach()``. The scores get no gradient, or one by an estimator's name.

    Args:
        y: (|G|, \\*lead, H, W), any strides; float16, bfloat16, float32 or float64, or an integer dtype or bool (which
            take no gradient). Square where the action turns by 90°; a permutation's n entries on the dim that it
            permutes, whatever is behind it.
        scores: ℓ of shape y.shape[:k], k ≥ 1: one choice for every entry of y.shape[1:k]; any float dtype. Ties go to
            the lowest element, NaN never wins, and where all are NaN the identity is chosen. Or the kind of a loss:
            ``orbit_select(y, "entropy", action)`` is ``orbit_select(y, orbit_score(y, "entropy"), action)`` bit for
            bit, in one pass over y: one choice for every row of logits, of shape y.shape[1:-1], under an action that
            permutes their dim, the last one, or moves nothing.
        action: how the group acts on one output.
        mode: ``"min"`` (a loss) or ``"max"`` (a similarity).
        gradient: ``"mean"``: S is the mean of all views (equitune, the authors' choice); ``"identity"``: S = y[0];
            ``"selected"``: the chosen view, the choice held fixed; None: the result takes no gradient.
        ties: what becomes of views that tie for the best: ``"lowest"``: the lowest element is chosen; ``"mean"``: they
            are averaged, so that the result does not depend on the order of the views, as that of a choice has to where
            inputs are symmetric. Scores tie that are the same to 2⁻¹⁸ (2⁻⁴⁷ in float64) of the best one: equal views
            in other places of a batch give scores that differ by some roundings. Where views tie all of them are read.
        estimator: what gradient the scores get, of what gave them: None; or ``"straight_through"``: that of
            ``Σ_g w_g g⁻¹ y[g]`` with ``w = softmax(−scores)`` over g (``softmax(scores)`` where the largest wins), the
            views held fixed: ``∂L/∂w_g = ⟨∂L/∂out, g⁻¹ y[g]⟩``, which the backward reads all views for. Scores divided
            by a temperature make it softer. This is how a network that chooses poses learns from what comes of them.
        return_index: also return the chosen elements, of those that tie the best or the lowest.
        out: optional memory for the result, (\\*lead, H, W) of y's dtype; without grad.

    Returns:
        (\\*lead, H, W), bit for bit the chosen view transformed back; channels-last if y is. With ``return_index`` the
        pair (result, index), index int64 of shape y.shape[1:k].

    Raises:
        TypeError: y or scores is not a dense tensor of a supported dtype (a float one where y's rows are scored), or
            action is not an action.
        ValueError: scores that are not y.shape[:k] or on another device, an unknown kind, a kind where the action
            moves anything but the last dim or changes signs, dim 0 not |G|, wrong rank, no logits, not square under a
            90° rotation, an unknown mode, gradient, ties or estimator, ties="mean" or an estimator of integers or
            beside out, or an out that does not fit.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> y = torch.tensor([[[1.0, 2.0]], [[5.0, 3.0]]])
        >>> orbit_select(y, torch.tensor([0.7, 0.2]), grid("hflip")).tolist()
        [[3.0, 5.0]]
        >>> from equikern import permutation
        >>> swap = permutation([[0, 1, 2], [1, 0, 2]])
        >>> orbit_select(torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, 1.0]]), "max_prob", swap).tolist()
        [0.0, 5.0, 1.0]
    """
    if isinstance(scores, str):
        checks.choice("scores", scores, KINDS)
        y, action = checks.scored_views("y", y, action, scores)
    else:
        y, action = checks.views("y", y, action, EXACT)
    checks.flag("return_index", return_index)
    checks.choice("mode", mode, ("min", "max"))
    checks.choice("gradient", gradient, ("mean", "identity", "selected", None))
    checks.choice("ties", ties, ("lowest", "mean"))
    checks.choice("estimator", estimator, ("straight_through", None))
    averages = ties == "mean"
    for name, value, usual in (("ties", ties, "lowest"), ("estimator", estimator, None)):
        if value != usual and (out is not None or not y.is_floating_point()):
            raise ValueError(f"{name}: expected {usual!r} beside out and for integers, got {value!r} for {y.dtype}")
    learning: Tensor | None = None
    if estimator is not None:
        learning = scores = orbit_score(y, scores) if isinstance(scores, str) else scores
    if not isinstance(scores, str):
        scores = checks.per_view("scores", scores, y, action, _score_dtype(scores))
        if learning is not None:
            learning = (scores if mode == "max" else -scores).to(accumulator(y)).softmax(0)
        if scores.requires_grad:
            scores = scores.detach()  # choosing itself has no gradient
    elif averages:
        scores = cast(Tensor, kernels.score(y.detach(), scores))
    minimum, back = mode == "min", action.inverse_maps
    placed = back.placed(y)
    if out is not None:
        result = checks.output("out", out, tuple(y.shape[1:]), y, None if isinstance(scores, str) else scores)
        if isinstance(scores, str):
            index = kernels.score_select_out(y, scores, *placed, minimum, result)
        else:
            index = library.select_out(y, scores, *placed, minimum, result)
    elif averages:
        assert isinstance(scores, Tensor)
        if gradient is not None and needs_grad(y):
            result, index = _SelectMean.call(y, scores, placed, minimum, gradient)
        else:
            result, index, _ = _select_mean(y.detach(), scores, placed, minimum)
    elif gradient is not None and needs_grad(y):
        given = (None, scores) if isinstance(scores, str) else (scores, "")
        result, index = _Select.call(y, *given, placed, minimum, gradient)
    else:
        result, index = _select(y.detach() if y.requires_grad else y, scores, placed, minimum)
    if learning is not None:
        result = estimates.estimated(result, y, learning, back)
    return (result, index) if return_index else result


def _select(y: Tensor, scores: Tensor | str, placed: Placed, minimum: bool) -> tuple[Tensor, Tensor]:
    if isinstance(scores, str):
        return cast(tuple[Tensor, Tensor], kernels.score_select(y, scores, *placed, minimum))
    return cast(tuple[Tensor, Tensor], library.select(y, scores, *placed, minimum))


def tied(scores: Tensor, minimum: bool = True) -> Tensor:
    """Which views have the best score or one that ties with it, like scores (|G|, …); NaN never does.

    Example:
        >>> tied(torch.tensor([[2.0, torch.nan], [1.0, 3.0], [1.0 + 1e-6, 4.0]])).tolist()
        [[False, False], [True, True], [True, False]]
    """
    key = scores if minimum else -scores
    return agree(key, key.masked_fill(key.isnan(), torch.inf).amin(0))


def agree(scores: Tensor, best: Tensor) -> Tensor:
    """Which losses are at most the best one, or higher by no more than roundings."""
    limits = torch.finfo(best.dtype)
    return scores <= best + _ROUNDINGS * limits.eps * best.abs().clamp(max=limits.max)  # also beside infinities


_ROUNDINGS = 32


def _select_mean(y: Tensor, scores: Tensor, placed: Placed, minimum: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The best view, or the mean of those that tie, the best one's element, and what every view counts."""
    result, index = cast(tuple[Tensor, Tensor], library.select(y, scores, *placed, minimum))
    best = tied(scores, minimum)
    more = best.sum(0) > 1
    shares = best.to(scores.dtype) / best.sum(0).clamp(min=1)
    if y.is_cpu and not functional(y) and not bool(more.any()):  # a GPU is not asked
        return result, index, shares
    # A weight of 0 would leave NaN of what is infinite, such as a logit that is masked.
    views = y.masked_fill(~best.view(*best.shape, *(1,) * (y.dim() - best.dim())), 0)
    mean = library.reduce(views, *placed, "weighted_mean", 1.0, best.to(accumulator(y)))
    more = more.view(*more.shape, *(1,) * (result.dim() - more.dim()))
    if functional(result):
        return library.strided_as_views(torch.where(more, mean, result), y, 1), index, shares
    return torch.where(more, mean, result, out=result), index, shares


def _score_dtype(scores: Tensor) -> torch.dtype:
    # float64 scores are compared as they are: rounding them could make ties. The halves fit into float32 exactly.
    return torch.float64 if isinstance(scores, Tensor) and scores.dtype == torch.float64 else torch.float32


def _stand_in(y: Tensor, gradient: str, placed: Placed) -> Tensor | None:
    """S of ``orbit_select``, of all views or the first one; None where it is what was selected."""
    if gradient == "mean":
        return autograd.total_by(y, placed, 1.0 / y.shape[0])
    return autograd.take_by(y, _first(y), placed) if gradient == "identity" else None


def _of_stand_in(grad: Tensor, gradient: str, back: Placed) -> Tensor | None:
    """The gradient of the views through S; None where it goes to what was selected."""
    if gradient == "mean":
        return autograd.orbit_by(grad, back, 1.0 / of(back[0]).order)
    return autograd.put_by(grad, _first(grad), back) if gradient == "identity" else None


def _first(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device)


class _Select(
    Differentiable,
    schema="select(Tensor y, Tensor? scores, str kind, str views, Tensor? table, bool minimum, str gradient) "
    "-> (Tensor, Tensor)",
    tuples={3: 2},
):
    @staticmethod
    def forward(
        y: Tensor, scores: Tensor | None, kind: str, placed: Placed, minimum: bool, gradient: str
    ) -> tuple[Tensor, Tensor]:
        return _select(y, kind if scores is None else scores, placed, minimum)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        y, _, _, placed, _, gradient = inputs
        _, index = output
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index)
        ctx.call = autograd.adjoint(placed), gradient, library.channels_dim(y, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        back, gradient, channels_last = ctx.call
        grad = autograd.laid_out(grad, channels_last)
        grad_y = _of_stand_in(grad, gradient, back)
        return autograd.put_by(grad, index, back) if grad_y is None else grad_y, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> tuple[Tensor, None]:
        (index,), (back, gradient, _last) = ctx.saved_tensors, ctx.call
        placed = autograd.adjoint(back)
        found = _stand_in(y_t, gradient, placed)
        return autograd.take_by(y_t, index, placed) if found is None else found, None


class _SelectMean(
    Differentiable,
    schema="select_mean(Tensor y, Tensor scores, str views, Tensor? table, bool minimum, str gradient) "
    "-> (Tensor, Tensor, Tensor)",
    tuples={2: 2},
):
    hidden = 1

    @staticmethod
    def forward(
        y: Tensor, scores: Tensor, placed: Placed, minimum: bool, gradient: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _select_mean(y, scores, placed, minimum)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        y, _, placed, _, gradient = inputs
        _, index, shares = output
        ctx.mark_non_differentiable(index, shares)
        ctx.save_for_backward(shares)
        ctx.call = autograd.adjoint(placed), gradient, library.channels_dim(y, 1), accumulator(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (shares,) = ctx.saved_tensors
        back, gradient, channels_last, wide = ctx.call
        grad = autograd.laid_out(grad, channels_last)
        grad_y = _of_stand_in(grad, gradient, back)
        grad_y = autograd.orbit_by(grad, back, 1.0, shares.to(wide)) if grad_y is None else grad_y
        return grad_y, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> tuple[Tensor, None]:
        (shares,), (back, gradient, _last, wide) = ctx.saved_tensors, ctx.call
        placed = autograd.adjoint(back)
        found = _stand_in(y_t, gradient, placed)
        return autograd.total_by(y_t, placed, 1.0, shares.to(wide)) if found is None else found, None
