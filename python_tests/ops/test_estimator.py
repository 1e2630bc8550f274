"""orbit_select with an estimator: the choice as it is, and for the scores the gradient of softly weighted views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equikern import grid, orbit_score, orbit_select, permutation
from helpers.oracles import CASES, SOME
from helpers.strategies import random_values
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
EACH = pytest.mark.parametrize(
    ("mode", "ties"), [(mode, ties) for mode in ("min", "max") for ties in ("lowest", "mean")]
)


def soft(views: Tensor, scores: Tensor, mode: str) -> Tensor:
    """The views by softmax weights, in plain torch."""
    weights = (scores if mode == "max" else -scores).softmax(0)
    return (views * weights.reshape(*weights.shape, *(1,) * (views.dim() - weights.dim()))).sum(0)


@EACH
def test_scores_get_the_gradient_of_soft_weights(mode: Any, ties: Any) -> None:
    for name in SOME:
        case = CASES[name]
        y = random_values((case.action.order, *case.shape(2, 3, side=4)), torch.float64, 1).requires_grad_()
        for k in (1, 2):
            scores = random_values(tuple(y.shape[:k]), torch.float64, 2).requires_grad_()
            hard, index = orbit_select(y, scores.detach(), case.action, mode, "selected", ties=ties, return_index=True)
            ours, again = orbit_select(
                y, scores, case.action, mode, "selected", ties=ties, estimator="straight_through", return_index=True
            )
            assert torch.equal(ours, hard), name
            assert torch.equal(again, index), name
            assert not again.requires_grad
            expected = soft(case.undone(y.detach()), scores, mode)
            incoming = random_values(tuple(ours.shape), torch.float64, 3).requires_grad_()
            firsts = [torch.autograd.grad(t, scores, incoming, create_graph=True)[0] for t in (ours, expected)]
            torch.testing.assert_close(*firsts, msg=lambda m, n=name: f"{n}: {m}")
            direction = random_values(tuple(scores.shape), torch.float64, 4)
            seconds = [torch.autograd.grad((t * direction).sum(), (scores, incoming)) for t in firsts]
            torch.testing.assert_close(*seconds, msg=lambda m, n=name: f"{n}, second: {m}")
            of_views = (torch.autograd.grad(t, y, incoming.detach())[0] for t in (ours, hard))
            torch.testing.assert_close(*of_views, rtol=0, atol=0)


def test_rows_that_score_themselves() -> None:
    y = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    swap = permutation([[0, 1, 2, 3], [1, 0, 2, 3]])
    result = orbit_select(y, "entropy", swap, gradient=None, estimator="straight_through")
    assert isinstance(result, Tensor)
    views = torch.stack([y[0], y[1][..., [1, 0, 2, 3]]]).detach()
    incoming = torch.randn(5, 4, dtype=torch.float64)
    expected = soft(views, orbit_score(y, "entropy"), "min")
    torch.testing.assert_close(*(torch.autograd.grad(t, y, incoming)[0] for t in (result, expected)))


def test_half_precision_transforms_and_compiled_calls() -> None:
    y, scores = torch.randn(4, 2, 3, 5, 5), torch.randn(4, 2)

    def loss(s: Tensor, t: Tensor = y) -> Tensor:
        chosen = orbit_select(t, s, grid("c4"), estimator="straight_through")
        assert isinstance(chosen, Tensor)
        return chosen.float().square().mean()

    leaf = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert bool(expected.abs().sum() > 0)
    torch.testing.assert_close(torch.func.grad(loss)(scores), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(scores), expected)
    each = torch.func.vmap(torch.func.grad(loss))(torch.stack((scores, -scores)))
    torch.testing.assert_close(each[0], expected)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], expected)
    for dtype in (torch.float16, torch.bfloat16):
        (rounded,) = torch.autograd.grad(loss(leaf, y.to(dtype)), leaf)
        torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0.02)


def test_wrong_calls() -> None:
    with pytest.raises(
        ValueError, match=r"estimator: expected None beside out and for integers, got 'straight_through'"
    ):
        orbit_select(torch.ones(4, 3, 3, dtype=torch.int32), torch.rand(4), grid("c4"), estimator="straight_through")
    with pytest.raises(ValueError, match="estimator: expected one of 'straight_through', None, got 'reinforce'"):
        orbit_select(torch.rand(4, 3, 3), torch.rand(4), grid("c4"), estimator="reinforce")  # type: ignore[arg-type]
