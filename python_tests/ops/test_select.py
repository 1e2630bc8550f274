"""orbit_select: the chosen view bit for bit, how it is chosen, and the gradient of every stand-in."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from equikern import grid, orbit_mean, orbit_select
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case
from helpers.strategies import EXACT, FLOATS, bits, layouts, orbits, per_view_shape, random_values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
ALL = pytest.mark.parametrize("case", CASES.values(), ids=repr)
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)
MODES = pytest.mark.parametrize("mode", ["min", "max"])
Mode = Literal["min", "max"]
NAN, INF = float("nan"), float("inf")


def chosen(case: Case, y: Tensor, index: Tensor) -> Tensor:
    """The view named by index, transformed back, in plain torch."""
    views = case.undone(y)
    index = index.reshape(index.shape + (1,) * (views.dim() - 1 - index.dim())).expand(views.shape[1:])
    return views.gather(0, index.unsqueeze(0)).squeeze(0)


@ALL
@given(data=st.data())
def test_select_is_torch_bit_for_bit(case: Case, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["min", "max"]), label="mode")
    spec = data.draw(orbits(case, EXACT))
    y = spec.bits()
    shape = data.draw(per_view_shape(spec, case))
    # few distinct values, so that ties are common
    scores = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(spec.seed)).to(
        data.draw(st.sampled_from(FLOATS), label="dtype of the scores")
    )
    result, index = orbit_select(y, scores, case.action, mode, return_index=True)
    expected = scores.argmin(0) if mode == "min" else scores.argmax(0)
    best = scores.amin(0) if mode == "min" else scores.amax(0)
    lowest = (scores == best).to(torch.uint8).argmax(0) if scores.numel() else expected
    assert index.dtype == torch.int64
    assert torch.equal(index, lowest)
    assert result.dtype == y.dtype
    # gathered as integers: torch's own gather of float16 may quiet a signalling NaN
    assert torch.equal(bits(result), bits(chosen(case, y, lowest)) if case.signed else chosen(case, bits(y), lowest))


@MODES
@each(
    ("column", "smallest", "largest"),
    [
        ([0.3, 0.1, 0.7, 0.2], 1, 2),
        ([0.5, 0.1, 0.1, 0.5], 1, 0),
        ([2.0, 2.0, 2.0, 2.0], 0, 0),
        ([NAN, 0.1, 0.7, 0.2], 1, 2),
        ([0.3, NAN, 0.2, NAN], 2, 0),
        ([NAN, NAN, NAN, 5.0], 3, 3),
        ([NAN, NAN, 1.0, 1.0], 2, 2),
        ([NAN, NAN, NAN, NAN], 0, 0),
        ([INF, NAN, INF, NAN], 0, 0),
        ([NAN, INF, NAN, INF], 1, 1),
        ([NAN, -INF, NAN, INF], 1, 3),
        ([NAN, NAN, -INF, -INF], 2, 2),
        ([INF, -INF, NAN, 0.0], 1, 0),
        ([0.0, -0.0, NAN, 0.0], 0, 0),
        ([-0.0, 0.0, -1.0, NAN], 2, 0),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_choice(mode: Mode, column: list[float], smallest: int, largest: int, dtype: torch.dtype) -> None:
    y = random_values((4, 5, 5), torch.float32)
    result, index = orbit_select(y, torch.tensor(column, dtype=dtype), grid("c4"), mode, return_index=True)
    assert int(index) == (smallest if mode == "min" else largest)
    assert torch.equal(result, CASES["c4"].undone(y)[int(index)])


@MODES
@given(data=st.data())
def test_choice_among_nan_and_infinity(mode: Mode, data: st.DataObject) -> None:
    """NaN never wins, whatever stands beside it; all NaN gives the identity; ties the lowest index."""
    case = CASES["d4"]
    batch = data.draw(st.integers(0, 40))
    value = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 3e38])
    rows = data.draw(st.lists(st.lists(value, min_size=batch, max_size=batch), min_size=8, max_size=8))
    scores = torch.tensor(rows).reshape(8, batch)
    y = random_values((8, batch, 2, 3, 3), torch.bfloat16)
    result, index = orbit_select(y, scores, case.action, mode, return_index=True)
    for b in range(batch):
        valid = [(s if mode == "min" else -s, g) for g, s in enumerate(scores[:, b].tolist()) if s == s]
        assert int(index[b]) == (min(valid)[1] if valid else 0)
    assert torch.equal(result, chosen(case, y, index))


def test_close_float64_scores_are_told_apart() -> None:
    scores = torch.tensor([1.0, 1.0 - 1e-15], dtype=torch.float64)
    assert int(orbit_select(torch.zeros(2, 3, 3), scores, grid("hflip"), return_index=True)[1]) == 1


def test_nan_beside_the_chosen_view_stays_out() -> None:
    y = torch.full((4, 3, 3), NAN)
    y[2] = 1.0
    assert torch.equal(orbit_select(y, torch.tensor([1.0, 1.0, 0.0, 1.0]), grid("c4")), torch.ones(3, 3))


def stand_in(case: Case, y: Tensor, index: Tensor, gradient: str) -> Tensor:
    """S of ``S + (out − S).detach()``, in plain torch."""
    if gradient == "mean":
        return case.undone(y).mean(0)
    return y[0] if gradient == "identity" else chosen(case, y, index)


@FEW
@pytest.mark.parametrize("gradient", ["mean", "identity", "selected"])
@given(data=st.data())
def test_gradient_is_the_stand_ins(
    case: Case, gradient: Literal["mean", "identity", "selected"], data: st.DataObject
) -> None:
    spec = data.draw(orbits(case, FLOATS))
    y = spec.values().requires_grad_()
    scores = random_values(data.draw(per_view_shape(spec, case)), torch.float32, spec.seed)
    result, index = orbit_select(y, scores, case.action, gradient=gradient, return_index=True)
    incoming = spec.like(result.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    (ours,) = torch.autograd.grad(result, y, incoming)
    (expected,) = torch.autograd.grad(stand_in(case, y, index, gradient), y, incoming)
    assert torch.equal(result, chosen(case, y.detach(), index))
    # One unit in the last place, which below the normal numbers is no share of the value.
    finfo = torch.finfo(y.dtype)
    torch.testing.assert_close(ours, expected, rtol=finfo.eps, atol=finfo.smallest_normal * finfo.eps)


@pytest.mark.parametrize("gradient", ["mean", "identity", "selected"])
def test_second_derivative_is_the_stand_ins(gradient: Literal["mean", "identity", "selected"]) -> None:
    case = CASES["d4"]
    y = random_values((8, 2, 3, 5, 5), torch.float64, 1).requires_grad_()
    scores = random_values((8, 2), torch.float64, 2)
    incoming = random_values((2, 3, 5, 5), torch.float64, 3).requires_grad_()
    direction = random_values(tuple(y.shape), torch.float64, 4)
    seconds = []
    for ours in (True, False):
        result, index = orbit_select(y, scores, case.action, gradient=gradient, return_index=True)
        output = result if ours else stand_in(case, y, index, gradient)
        (first,) = torch.autograd.grad(output, y, incoming, create_graph=True)
        seconds.append(torch.autograd.grad(first, incoming, direction)[0])
    torch.testing.assert_close(*seconds)


def test_without_gradient_the_result_takes_none() -> None:
    y = torch.randn(4, 3, 3, requires_grad=True)
    assert not orbit_select(y, torch.randn(4), grid("c4"), gradient=None).requires_grad


def test_scores_take_no_gradient() -> None:
    y, scores = torch.randn(4, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    orbit_select(y, scores, grid("c4")).sum().backward()
    assert y.grad is not None
    assert scores.grad is None


def test_only_y_decides_whether_there_is_a_gradient() -> None:
    assert not orbit_select(torch.randn(4, 3, 3), torch.randn(4, requires_grad=True), grid("c4")).requires_grad


def test_index_alone_changes_with_the_mode() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    y = torch.arange(2 * 2 * 1 * 2.0).reshape(2, 2, 1, 2)
    for mode, expected in (("min", [0, 1]), ("max", [1, 0])):
        result, index = orbit_select(y, scores, grid("hflip"), mode, return_index=True)
        assert index.tolist() == expected
        assert torch.equal(result, chosen(CASES["hflip"], y, index))


def test_the_mean_stand_in_is_equitunes_gradient() -> None:
    y = torch.randn(8, 2, 4, 4, requires_grad=True)
    weight = torch.randn(2, 4, 4)
    (ours,) = torch.autograd.grad((orbit_select(y, torch.randn(8), grid("d4")) * weight).sum(), y)
    (expected,) = torch.autograd.grad((orbit_mean(y, grid("d4")) * weight).sum(), y)
    assert torch.equal(ours, expected)
