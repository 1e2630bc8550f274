"""orbit_mean and orbit_weighted_mean against plain torch, λ's special cases, and gradients in every dtype."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from equikern import (
    cyclic_group,
    grid,
    orbit,
    orbit_mean,
    orbit_select,
    orbit_weighted_mean,
    permutation,
    trivial,
)
from helpers.accuracy import assert_rounded_once, assert_within_twice, error, spacing
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case
from helpers.strategies import FLOATS, laid_out, layouts, orbits, per_view_shape, random_values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
ALL = pytest.mark.parametrize("case", CASES.values(), ids=repr)
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)
NORMALIZE = pytest.mark.parametrize("normalize", ["sum", "softmax", None])


def broadcast(weights: Tensor, y: Tensor) -> Tensor:
    return weights.reshape(weights.shape + (1,) * (y.dim() - weights.dim()))


def plain_weighted(case: Case, normalize: str | None) -> Any:
    """The torch expression that orbit_weighted_mean replaces."""

    def expression(y: Tensor, weights: Tensor) -> Tensor:
        if normalize == "sum":
            weights = weights / weights.sum(0)
        elif normalize == "softmax":
            weights = weights.softmax(0)
        return (case.undone(y) * broadcast(weights, y)).sum(0)

    return expression


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@ALL
@given(data=st.data())
def test_mean(case: Case, data: st.DataObject) -> None:
    spec = data.draw(orbits(case, FLOATS))
    y = spec.values().requires_grad_()
    ours = orbit_mean(y, case.action)
    assert ours.dtype == y.dtype
    views = case.undone(y.detach().double())
    assert_rounded_once(ours.detach(), views.mean(0), views.abs().mean(0), case.order)
    assert_within_twice(
        ours.detach(),
        lambda y: case.undone(y).mean(0),
        [y.detach()],
        lambda: [random_values((case.order, *case.many), y.dtype)],
        f"mean {case}",
    )

    incoming = spec.like(ours.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    (grad,) = torch.autograd.grad(ours, y, incoming)
    exact = case.spread(incoming.double()) / case.order
    assert_rounded_once(grad, exact, exact.abs(), 1)


@ALL
@given(data=st.data())
def test_mean_plus(case: Case, data: st.DataObject) -> None:
    """``1/|G| Σ g⁻¹ (y[g] + z)``: the mean of the views and the symmetrised z, rounded once."""
    spec = data.draw(orbits(case, FLOATS))
    y = spec.values()
    one = spec.like(y.shape[1:], data.draw(layouts, label="layout of what is added"))
    leaves = [y.requires_grad_(), one.values().requires_grad_()]
    ours = orbit_mean(leaves[0], case.action, plus=leaves[1])
    assert ours.dtype == y.dtype
    alike = one.values().detach().double().expand(y.shape)
    terms = torch.cat((case.undone(y.detach().double()), case.undone(alike)))
    assert_rounded_once(ours.detach(), terms.mean(0) * 2, terms.abs().mean(0) * 2, 2 * case.order)

    incoming = spec.like(ours.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    grad_y, grad_plus = torch.autograd.grad(ours, leaves, incoming)
    exact = case.spread(incoming.double())
    assert_rounded_once(grad_y, exact / case.order, exact.abs() / case.order, 1)
    assert_rounded_once(grad_plus, exact.mean(0), exact.abs().mean(0), case.order)


@pytest.mark.parametrize("order", [5, 35, 1000])
def test_mean_plus_of_many_views(order: int, backend: str) -> None:
    if order > 35 and backend == "reference":
        pytest.skip("plain torch goes through any number of views in one way")
    group = cyclic_group(order)
    turns = permutation([[(i + g) % 5 for i in range(5)] for g in range(order)], group=group)
    y, z = random_values((order, 3, 5), torch.float32), random_values((3, 5), torch.float32, 1)
    for action in (trivial(group), turns):
        expected = orbit_mean((y + z).double(), action)
        torch.testing.assert_close(orbit_mean(y, action, plus=z).double(), expected, rtol=1e-5, atol=1e-5)


@FEW
@NORMALIZE
@given(data=st.data())
def test_weighted_mean(case: Case, normalize: Literal["sum", "softmax"] | None, data: st.DataObject) -> None:
    spec = data.draw(orbits(case, FLOATS))
    y = spec.values()
    weights = spec.like(data.draw(per_view_shape(spec, case)), data.draw(layouts)).values("positive")
    ours = orbit_weighted_mean(y, weights, case.action, normalize)
    assert ours.dtype == y.dtype
    # in float16 plain torch would round the weights too: it gets them in the dtype they are documented to be used in
    plain, wide = plain_weighted(case, normalize), accumulator(y.dtype)

    def pool() -> list[Tensor]:
        return [
            random_values((case.order, *case.many), y.dtype),
            random_values((case.order, case.many[0]), wide, 1, "positive"),
        ]

    assert_within_twice(ours, plain, [y, weights.to(wide)], pool, f"weighted {normalize} {case}")


@FEW
@NORMALIZE
@given(data=st.data())
def test_weighted_mean_gradients(case: Case, normalize: Literal["sum", "softmax"] | None, data: st.DataObject) -> None:
    spec = data.draw(orbits(case, FLOATS))
    wide = accumulator(spec.dtype)
    y = spec.values().requires_grad_()
    weights = random_values(data.draw(per_view_shape(spec, case)), wide, spec.seed, "positive").requires_grad_()
    ours = orbit_weighted_mean(y, weights, case.action, normalize)
    incoming = spec.like(ours.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    grad_y, grad_weights = torch.autograd.grad(ours, (y, weights), incoming)
    assert (grad_y.dtype, grad_weights.dtype) == (y.dtype, wide)

    def plain_gradients(y: Tensor, weights: Tensor, incoming: Tensor) -> tuple[Tensor, ...]:
        y, weights = y.detach().requires_grad_(), weights.detach().requires_grad_()
        result = plain_weighted(case, normalize)(y, weights)
        return torch.autograd.grad(result, (y, weights), incoming.to(result.dtype))

    exact_y, exact_weights = plain_gradients(y.double(), weights.double(), incoming.double())
    rounding = spacing(exact_y, y.dtype) + 8 * torch.finfo(wide).eps * exact_y.abs()
    assert bool(((grad_y.double() - exact_y).abs() <= rounding).all()), error(grad_y, exact_y)

    # ∂λ sums over lead and plane: beside the result's spacing, the unit is that of a sum of random signs
    products = case.undone(y.detach().double()) * incoming.double()
    dims = tuple(range(weights.dim(), y.dim()))
    size = products.square().sum(dims).sqrt() if dims else products.abs()
    total = products.abs().sum(dims) if dims else products.abs()
    # the mean's share is subtracted: of products of one sign each of the two sums rounds at its size, whatever is left
    size = size + total / 16
    if wide == torch.float64:  # the reference itself is off by the rounding of its sums, of equal products all one way
        size = size + 2 * total
    unit = 32 * torch.finfo(wide).eps * size.max() + spacing(exact_weights, wide).max() if size.numel() else 0.0
    theirs = plain_gradients(y.to(wide), weights, incoming.to(wide))[1]
    assert not grad_weights.isnan().any()
    assert error(grad_weights, exact_weights) <= 2 * error(theirs, exact_weights) + float(unit)


@each(*FEW.args)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dots_do_not_lose_small_terms(case: Case, dtype: torch.dtype) -> None:
    """∂λ is accumulated in the wide dtype: a sum of many equal terms would stall in float16 or bfloat16."""
    ones = torch.ones(case.shape(4, 30, side=40), dtype=dtype)
    y = case.orbit(ones)
    weights = torch.ones((case.order, 4), dtype=accumulator(dtype), requires_grad=True)
    incoming = ones / 2
    (grad,) = torch.autograd.grad(orbit_weighted_mean(y, weights, case.action, None), weights, incoming)
    assert torch.equal(grad, torch.full_like(grad, ones.numel() / 8))


@each(*FEW.args)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mean_of_an_orbit_is_the_input(case: Case, dtype: torch.dtype) -> None:
    x = random_values(case.shape(2, 3, side=15), dtype, 3)
    # sums of six equal numbers round, sums of two, four or eight do not
    torch.testing.assert_close(orbit_mean(orbit(x, case.action), case.action), x, rtol=2**-20, atol=0)


@each("name", ["c4", "d4", "flips"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("weight", [1.0, 0.3])
def test_constant_weights_are_equitune(name: str, dtype: torch.dtype, weight: float) -> None:
    case = CASES[name]
    y = random_values((case.order, 2, 3, 11, 11), dtype, 7)
    expected = orbit_mean(y, case.action)
    rtol = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 16 * torch.finfo(dtype).eps
    for shape in [(case.order,), (case.order, 2), (case.order, 2, 3)]:
        for normalize in ("sum", "softmax"):
            weights = torch.full(shape, weight, dtype=accumulator(dtype))
            ours = orbit_weighted_mean(y, weights, case.action, normalize)
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol)


@each(*FEW.args)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("normalize", ["sum", None])
def test_indicator_weights_are_equizero(case: Case, dtype: torch.dtype, normalize: Literal["sum"] | None) -> None:
    batch = 2 * case.order
    y = random_values((case.order, *case.shape(batch, 3, side=11)), dtype, 8)
    scores = torch.randn((case.order, batch), generator=torch.Generator().manual_seed(1))
    scores[:, : case.order].fill_diagonal_(-9.0)  # every element is chosen somewhere
    chosen, index = orbit_select(y, scores, case.action, return_index=True)
    assert set(index.tolist()) == set(range(case.order))
    indicator = torch.nn.functional.one_hot(index, case.order).T.to(accumulator(dtype))
    assert torch.equal(orbit_weighted_mean(y, indicator, case.action, normalize), chosen)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_in_any_float_dtype(dtype: torch.dtype) -> None:
    case = CASES["c4"]
    y = random_values((4, 2, 5, 5), torch.float32, 2)
    weights = random_values((4, 2), dtype, 3, "positive")
    expected = orbit_weighted_mean(y, weights.float(), case.action)
    assert torch.equal(orbit_weighted_mean(y, weights, case.action), expected)
    leaf = weights.clone().requires_grad_()
    orbit_weighted_mean(y, leaf, case.action).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


def test_zero_weights_give_nan_as_division_does() -> None:
    y = torch.ones(2, 3, 3)
    assert orbit_weighted_mean(y, torch.zeros(2), grid("hflip")).isnan().all()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "stride 0", "sliced"])
def test_weights_in_any_layout(layout: str) -> None:
    case = CASES["d4"]
    y = random_values((8, 4, 3, 6, 6), torch.float64, 2)
    weights = laid_out(random_values((8, 4, 3), torch.float64, 3, "positive"), layout)
    expected = plain_weighted(case, "sum")(y, weights)
    torch.testing.assert_close(orbit_weighted_mean(y, weights, case.action), expected)
