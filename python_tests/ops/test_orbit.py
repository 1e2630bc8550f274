"""orbit and symmetrize: bit for bit what torch's rot90 and flip give, and their gradients."""

from __future__ import annotations

import pytest
import torch
from equikern import grid, orbit, symmetrize
from helpers.accuracy import assert_rounded_once, assert_within_twice
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case
from helpers.strategies import EXACT, FLOATS, bits, images, layouts, random_values
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("backend")
ALL = pytest.mark.parametrize("case", CASES.values(), ids=repr)
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)


@ALL
@given(data=st.data())
def test_orbit_is_torch_bit_for_bit(case: Case, data: st.DataObject) -> None:
    x = data.draw(images(case, EXACT)).bits()
    views = orbit(x, case.action)
    assert views.dtype == x.dtype
    assert views.shape == (case.order, *x.shape)
    assert torch.equal(bits(views), bits(case.orbit(x)))


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@each("side", [1, 7, 8, 16, 31, 56, 64])
def test_orbit_in_every_dtype(dtype: torch.dtype, side: int) -> None:
    case = CASES["d4"]
    x = (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 50).to(dtype)
    assert torch.equal(bits(orbit(x, case.action)), bits(case.orbit(x)))


def test_orbit_of_c4_is_rot90() -> None:
    x = torch.arange(25).reshape(5, 5)
    for k, view in enumerate(orbit(x, grid("c4"))):
        assert torch.equal(view, torch.rot90(x, k, (-2, -1)))


def test_orbit_of_d4_turns_after_a_flip() -> None:
    x = torch.arange(25).reshape(5, 5)
    for g, view in enumerate(orbit(x, grid("d4"))):
        assert torch.equal(view, torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1)))


def test_orbit_of_lazily_negated_values() -> None:
    x = torch.randn(2, 4, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert torch.equal(orbit(x, grid("d4")), CASES["d4"].orbit(x.clone()))


@ALL
@given(data=st.data())
def test_orbit_gradient(case: Case, data: st.DataObject) -> None:
    spec = data.draw(images(case, FLOATS))
    x = spec.values().requires_grad_()
    views = orbit(x, case.action)
    incoming = spec.like(views.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    (ours,) = torch.autograd.grad(views, x, incoming)
    assert ours.dtype == x.dtype
    terms = case.gathered(incoming.double())
    assert_rounded_once(ours, terms.sum(0), terms.abs().sum(0), case.order)


@ALL
@given(data=st.data())
def test_symmetrize(case: Case, data: st.DataObject) -> None:
    spec = data.draw(images(case, FLOATS))
    x = spec.values().requires_grad_()
    ours = symmetrize(x, case.action)
    assert ours.dtype == x.dtype
    views = case.orbit(x.detach().double())
    assert_rounded_once(ours.detach(), views.mean(0), views.abs().mean(0), case.order)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return case.orbit(x).mean(0)

    pool_shape = case.many
    assert_within_twice(
        ours.detach(), plain, [x.detach()], lambda: [random_values(pool_shape, x.dtype)], f"symmetrize {case}"
    )

    incoming = spec.like(x.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    (grad,) = torch.autograd.grad(ours, x, incoming)
    terms = case.spread(incoming.double())
    assert_rounded_once(grad, terms.mean(0), terms.abs().mean(0), case.order)


@each(*FEW.args)
def test_symmetrize_is_a_projection(case: Case) -> None:
    x = random_values(case.shape(2, 3, side=9), torch.float64, 5)
    fixed = symmetrize(x, case.action)
    torch.testing.assert_close(symmetrize(fixed, case.action), fixed)
    for g in range(case.order):
        torch.testing.assert_close(case.action.act(g, fixed), fixed)
        torch.testing.assert_close(symmetrize(case.action.act(g, x), case.action), fixed)
