"""``orbit_select``: equizero's reduction, the best view transformed back, by given scores or by its own."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..actions import Action
from ..core import autograd, checks, library
from ..core import rows as kernels
from ..core.functions import Differentiable, needs_grad
from ..views import EXACT, of
from ..views.maps import Placed
from .score import KINDS, Kind

__all__ = ["orbit_select"]


def orbit_select(
    y: Tensor,
    scores: Tensor | Kind,
    action: Action,
    mode: Literal["min", "max"] = "min",
    gradient: Literal["mean", "identity", "selected"] | None = "mean",
    *,
    return_index: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Equizero's reduction: ``g*⁻¹ y[g*]`` with ``g* = argmin_g scores[g]``, reading only the chosen views.

    Choosing has no useful gradient, so the backward is that of a stand-in S, as if by
    ``S + (out − S).detach()``. The scores get no gradient.

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
        return_index: also return the chosen elements.
        out: optional memory for the result, (\\*lead, H, W) of y's dtype; without grad.

    Returns:
        (\\*lead, H, W), bit for bit the chosen view transformed back; channels-last if y is. With ``return_index`` the
        pair (result, index), index int64 of shape y.shape[1:k].

    Raises:
        TypeError: y or scores is not a dense tensor of a supported dtype (a float one where y's rows are scored), or
            action is not an action.
        ValueError: scores that are not y.shape[:k] or on another device, an unknown kind, a kind where the action
            moves anything but the last dim or changes signs, dim 0 not |G|, wrong rank, no logits, not square under a
            90° rotation, an unknown mode or gradient, or an out that does not fit.

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
    if not isinstance(scores, str):
        scores = checks.per_view("scores", scores, y, action, _score_dtype(scores))
        if scores.requires_grad:
            scores = scores.detach()  # choosing has no gradient
    minimum, back = mode == "min", action.inverse_maps
    placed = back.placed(y)
    if out is not None:
        result = checks.output("out", out, tuple(y.shape[1:]), y, None if isinstance(scores, str) else scores)
        if isinstance(scores, str):
            index = kernels.score_select_out(y, scores, *placed, minimum, result)
        else:
            index = library.select_out(y, scores, *placed, minimum, result)
    elif gradient is not None and needs_grad(y):
        given = (None, scores) if isinstance(scores, str) else (scores, "")
        result, index = _Select.call(y, *given, placed, minimum, gradient)
    else:
        result, index = _select(y.detach() if y.requires_grad else y, scores, placed, minimum)
    return (result, index) if return_index else result


def _select(y: Tensor, scores: Tensor | str, placed: Placed, minimum: bool) -> tuple[Tensor, Tensor]:
    if isinstance(scores, str):
        return cast(tuple[Tensor, Tensor], kernels.score_select(y, scores, *placed, minimum))
    return cast(tuple[Tensor, Tensor], library.select(y, scores, *placed, minimum))


def _score_dtype(scores: Tensor) -> torch.dtype:
    # float64 scores are compared as they are: rounding them could make ties. The halves fit into float32 exactly.
    return torch.float64 if isinstance(scores, Tensor) and scores.dtype == torch.float64 else torch.float32


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
        if gradient == "mean":
            grad_y = autograd.orbit_by(grad, back, 1.0 / of(back[0]).order)
        elif gradient == "identity":
            first = torch.zeros((), dtype=torch.int64, device=grad.device)
            grad_y = autograd.put_by(grad, first, back)
        else:
            grad_y = autograd.put_by(grad, index, back)
        return grad_y, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, y_t: Tensor, *_: Any) -> tuple[Tensor, None]:
        (index,), (back, gradient, _last) = ctx.saved_tensors, ctx.call
        placed = autograd.adjoint(back)
        if gradient == "mean":
            return autograd.total_by(y_t, placed, 1.0 / y_t.shape[0]), None
        chosen = torch.zeros((), dtype=torch.int64, device=y_t.device) if gradient == "identity" else index
        return autograd.take_by(y_t, chosen, placed), None
