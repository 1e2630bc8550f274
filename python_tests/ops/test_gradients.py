"""gradcheck and gradgradcheck in float64 for every operator.

``fast_mode`` compares a random projection of each Jacobian, in which a single wrong entry shows.
"""

from __future__ import annotations

import pytest
import torch
from equikern import orbit_act, orbit_mean, orbit_reduce
from equikern.core import autograd
from helpers.calls import CALLS, Call
from helpers.looped import each
from helpers.oracles import CASES, Case
from helpers.strategies import random_values
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
# "mean" and "identity" of select are gradients of a stand-in on purpose: test_select compares them with it
TRUE = [c for c in CALLS.values() if c.differentiable and c.name not in ("select", "select identity")]
EVERY = pytest.mark.parametrize("call", TRUE, ids=repr)
GROUPS = pytest.mark.parametrize("case", [CASES[name] for name in ("c4", "d4", "nothing")], ids=repr)


def arguments(call: Call, case: Case, lead: tuple[int, ...], side: int) -> list[Tensor]:
    """Leaves in float64; distinct everywhere, so that max and min are differentiable. Scores take no gradient."""
    tensors = call.tensors(case.action, lead, side, torch.float64, seed=3)
    return [t.requires_grad_(i == 0 or call.of_both) for i, t in enumerate(tensors)]


@EVERY
@each(*GROUPS.args)
def test_first_derivative(call: Call, case: Case) -> None:
    assert gradcheck(lambda *t: call.run(case.action, *t), arguments(call, case, (2, 1), 3), fast_mode=True)


@EVERY
@each(*GROUPS.args)
def test_second_derivative(call: Call, case: Case) -> None:
    # one image: 8 × 3 × 3 unknowns against as many; the incoming gradient is differentiated too
    assert gradgradcheck(lambda *t: call.run(case.action, *t), arguments(call, case, (2,), 3), fast_mode=True)


@pytest.mark.parametrize("name", ["weighted", "weighted softmax", "weighted as is"])
@GROUPS
def test_second_derivative_of_the_weighted_mean_in_full(name: str, case: Case) -> None:
    call = CALLS[name]
    assert gradgradcheck(lambda *t: call.run(case.action, *t), arguments(call, case, (2,), 2))


@pytest.mark.parametrize("name", ["weighted", "weighted softmax", "weighted as is"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weights_of_every_rank(name: str, k: int) -> None:
    case, call = CASES["d4"], CALLS[name]
    y = random_values((8, 2, 2, 2, 2), torch.float64, 1).requires_grad_()
    weights = random_values((8, 2, 2)[:k], torch.float64, 2, "positive").requires_grad_()
    assert gradcheck(lambda *t: call.run(case.action, *t), (y, weights), fast_mode=True)
    assert gradgradcheck(lambda *t: call.run(case.action, *t), (y, weights), fast_mode=True)


@pytest.mark.parametrize("name", ["weighted", "weighted softmax"])
def test_gradient_of_y_or_of_the_weights_alone(name: str) -> None:
    case, call = CASES["d4"], CALLS[name]
    y, weights = call.tensors(case.action, (2, 2), 4, torch.float64)
    incoming = random_values((2, 2, 4, 4), torch.float64, 5)
    y.requires_grad_(), weights.requires_grad_()
    both = torch.autograd.grad(call.run(case.action, y, weights), (y, weights), incoming)
    (only_y,) = torch.autograd.grad(call.run(case.action, y, weights.detach()), y, incoming)
    (only_weights,) = torch.autograd.grad(call.run(case.action, y.detach(), weights), weights, incoming)
    assert torch.equal(both[0], only_y)
    torch.testing.assert_close(both[1], only_weights)


INDEX = torch.tensor([5, 2])
D4 = CASES["d4"].action
FORTH, BACK = D4.maps, D4.inverse_maps
# the building blocks whose derivatives are one another, on x (2, 2, 2), y (8, 2, 2, 2), weights and dots (8, 2)
BLOCKS = {
    "orbit": (lambda x, w: autograd.orbit(x, FORTH, 0.5, w), "xw"),
    "total": (lambda y, w: autograd.total(y, BACK, 0.5, w), "yw"),
    "weighted_mean": (lambda y, w: autograd.weighted_mean(y, w, BACK), "yw"),
    "mean_plus": (lambda y, x: autograd.mean_plus(y, x, BACK), "yx"),
    "symmetrize": (lambda x: autograd.symmetrize(x, BACK), "x"),
    "dots": (lambda x, y: autograd.dots(x, y, FORTH, 2), "xy"),
    "orbit_dot": (lambda x, y, w: autograd.orbit_dot_by(x, y, (FORTH.code, None), w), "xyw"),
    "take": (lambda y: autograd.take(y, INDEX, BACK), "y"),
    "put": (lambda x: autograd.put(x, INDEX, FORTH), "x"),
    "act": (lambda x: autograd.act(x, INDEX, FORTH), "x"),
    "each": (lambda y: autograd.each(y, 0, BACK), "y"),
}


@each("name", BLOCKS)
def test_building_blocks(name: str) -> None:
    """What only a higher derivative of a public operator calls."""
    call, takes = BLOCKS[name]
    shapes = {"x": (2, 2, 2), "y": (8, 2, 2, 2), "w": (8, 2)}
    leaves = [random_values(shapes[t], torch.float64, i, "positive").requires_grad_() for i, t in enumerate(takes)]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)
    for i in range(len(leaves)):  # one argument at a time takes other ways through the backward
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(leaves)]
        assert gradcheck(call, alone, fast_mode=True)


@each("name", [c.name for c in TRUE])
def test_third_derivative_exists(name: str) -> None:
    call, case = CALLS[name], CASES["d4"]
    leaves = arguments(call, case, (1,), 2)
    outputs = call.run(case.action, *leaves)
    value = sum(t.square().sum() for t in (outputs if isinstance(outputs, tuple) else (outputs,)))
    wanted = [t for t in leaves if t.requires_grad]
    for _ in range(3):
        found = torch.autograd.grad(value, wanted, create_graph=True, allow_unused=True)
        value = sum((t**3).sum() for t in found if t is not None and t.requires_grad)
        if not isinstance(value, Tensor):  # a linear operator's higher derivatives are zero
            break
        assert value.isfinite()


def test_second_derivative_of_std_at_zero_is_finite() -> None:
    y = torch.ones(4, 2, 2, dtype=torch.float64, requires_grad=True)
    std = orbit_reduce(y, CASES["c4"].action, "std")
    assert isinstance(std, Tensor)
    (first,) = torch.autograd.grad(std.sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), y)
    assert torch.equal(second, torch.zeros_like(second))


def test_gradients_accumulate_over_two_uses() -> None:
    case = CASES["d4"]
    y = random_values((8, 2, 3, 3), torch.float64).requires_grad_()
    orbit_mean(y, case.action).sum().backward()
    assert y.grad is not None
    once = y.grad.clone()
    (orbit_mean(y, case.action) * 2).sum().backward()
    torch.testing.assert_close(y.grad, 3 * once)


ACT = Call("act", lambda a, x: orbit_act(x, torch.arange(len(x)) % a.order, a), "image")


@each("call", [*TRUE, ACT])
def test_forward_mode(call: Call) -> None:
    given = arguments(call, CASES["c4"], (2,), 3)
    assert gradcheck(
        lambda *t: call.run(CASES["c4"].action, *t),
        given,
        fast_mode=True,
        check_forward_ad=True,
        check_backward_ad=False,
    )


@each("name", BLOCKS)
def test_forward_mode_of_building_blocks(name: str) -> None:
    call, takes = BLOCKS[name]
    shapes = {"x": (2, 2, 2), "y": (8, 2, 2, 2), "w": (8, 2)}
    leaves = [random_values(shapes[t], torch.float64, i, "positive").requires_grad_() for i, t in enumerate(takes)]
    assert gradcheck(call, leaves, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


def test_forward_mode_into_given_memory_is_refused() -> None:
    y = torch.rand(4, 2, 3, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y, torch.ones_like(y))
        with pytest.raises(ValueError, match=r"out: .* forward mode"):
            orbit_mean(dual, CASES["c4"].action, out=torch.empty(2, 3, 3))
        assert torch.equal(
            orbit_mean(y, CASES["c4"].action, out=torch.empty(2, 3, 3)), orbit_mean(y, CASES["c4"].action)
        )
