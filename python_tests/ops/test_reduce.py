"""orbit_reduce: every op against plain torch, in every dtype, with its gradient, ties and edge values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from equikern import cyclic_group, grid, orbit_reduce, trivial
from equikern.reductions import REDUCTIONS
from helpers.accuracy import assert_within_twice
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case
from helpers.strategies import FLOATS, Spec, layouts, orbits, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)
EPS = 1e-6

# the torch expression over dim 0, and the numbers it is made for
PLAIN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sum": (lambda v: v.sum(0), "signed"),
    "max": (lambda v: v.amax(0), "signed"),
    "min": (lambda v: v.amin(0), "signed"),
    "gmean": (lambda v: v.log().mean(0).exp(), "positive"),
    "hmean": (lambda v: v.reciprocal().mean(0).reciprocal(), "positive"),
    "tsharpen": (lambda v: v.sqrt().mean(0), "positive"),
    "log1p": (lambda v: v.log1p().mean(0).expm1(), "positive"),
    "logodd": (lambda v: torch.logit(v, eps=EPS).mean(0).sigmoid(), "probabilities"),
    "std": (lambda v: v.std(0, correction=0), "signed"),
}
OPS = pytest.mark.parametrize("op", PLAIN)
ELSEWHERE = {"mean_std", "median", "vote"}  # below, and in test_median_vote.py
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def _pool(case: Case, dtype: torch.dtype, kind: str = "signed", incoming: int = 0) -> Callable[[], list[Tensor]]:
    """More numbers of the same kind: views, and as many incoming gradients."""

    def make() -> list[Tensor]:
        views = case.moved_alike(random_values((case.order, *case.many), dtype, 1, kind))
        return [views, *(random_values(case.many, dtype, 2 + i) for i in range(incoming))]

    return make


def test_no_reduction_is_left_out() -> None:
    assert PLAIN.keys() | ELSEWHERE == REDUCTIONS.keys()
    for op, reduction in REDUCTIONS.items():
        ways = (reduction.gradient is not None) + (reduction.shares is not None)
        assert ways == (op not in ("sum", "mean_std") and not reduction.integers), op


@FEW
@OPS
@settings(max_examples=15)
@given(data=st.data())
def test_reduction(case: Case, op: str, data: st.DataObject) -> None:
    plain, kind = PLAIN[op]
    spec = data.draw(orbits(case, FLOATS))
    y = case.moved_alike(spec.values(kind))
    ours = orbit_reduce(y, case.action, op)
    assert ours.dtype == y.dtype
    assert_within_twice(ours, lambda y: plain(case.undone(y)), [y], _pool(case, y.dtype, kind), f"{op} {case}")
    if op in ("max", "min"):
        assert torch.equal(ours, plain(case.undone(y)))


@FEW
@settings(max_examples=15)
@given(data=st.data())
def test_mean_and_std_in_one_pass(case: Case, data: st.DataObject) -> None:
    y = data.draw(orbits(case, FLOATS)).values()
    mean, std = orbit_reduce(y, case.action, "mean_std")
    pool = _pool(case, y.dtype)
    assert_within_twice(mean, lambda y: case.undone(y).mean(0), [y], pool, f"mean {case}")
    assert_within_twice(std, lambda y: case.undone(y).std(0, correction=0), [y], pool, f"std {case}")


def _unequal(spec: Spec) -> Spec:
    """No expanded values: views that agree everywhere have no deviation, and torch's gradient there is NaN."""
    return replace(spec, layout="sliced") if spec.layout in ("expanded", "stride 0") else spec


@FEW
@OPS
@settings(max_examples=15)
@given(data=st.data())
def test_gradient(case: Case, op: str, data: st.DataObject) -> None:
    plain, kind = PLAIN[op]
    spec = data.draw(orbits(case, FLOATS))
    y = case.moved_alike((_unequal(spec) if op == "std" else spec).values(kind)).requires_grad_()
    ours = orbit_reduce(y, case.action, op)
    incoming = spec.like(ours.shape, data.draw(layouts, label="layout of the incoming gradient")).values()
    (grad,) = torch.autograd.grad(ours, y, incoming)
    assert grad.dtype == y.dtype

    def plain_gradient(y: Tensor, incoming: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        return torch.autograd.grad(plain(case.undone(y)), y, incoming)[0]

    pool = _pool(case, y.dtype, kind, incoming=1)
    assert_within_twice(grad, plain_gradient, [y, incoming], pool, f"{op} gradient {case}")


@FEW
@settings(max_examples=15)
@given(data=st.data())
def test_gradient_of_mean_and_std(case: Case, data: st.DataObject) -> None:
    spec = _unequal(data.draw(orbits(case, FLOATS)))
    y = spec.values().requires_grad_()
    mean, std = orbit_reduce(y, case.action, "mean_std")
    incoming = spec.like(mean.shape, "contiguous").values(), spec.like(mean.shape, data.draw(layouts)).values()
    (grad,) = torch.autograd.grad((mean, std), y, incoming)

    def plain_gradient(y: Tensor, *incoming: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        std, mean = torch.std_mean(case.undone(y), 0, correction=0)
        return torch.autograd.grad((mean, std), y, incoming)[0]

    pool = _pool(case, y.dtype, incoming=2)
    assert_within_twice(grad, plain_gradient, [y, *incoming], pool, f"mean_std gradient {case}")


@DTYPES
@each("op", ["max", "min"])
@each("name", ["c4", "d4"])
def test_nan_in_any_view_is_nan_in_max_and_min(op: str, dtype: torch.dtype, name: str) -> None:
    case = CASES[name]
    for g in range(case.order):
        y = random_values((case.order, 3, 7, 7), dtype)
        y[g, 1, 2, 5] = float("nan")
        ours = orbit_reduce(y, case.action, op)
        expected = PLAIN[op][0](case.undone(y))
        assert int(ours.isnan().sum()) == 1
        torch.testing.assert_close(ours, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("op", PLAIN)
def test_infinities_behave_as_in_torch(op: str) -> None:
    case = CASES["c4"]
    y = random_values((4, 3, 3), torch.float32, 1, "positive")
    y[1, 0, 0], y[2, 1, 1], y[3, 2, 2] = float("inf"), float("-inf"), float("inf")
    y[0, 2, 0] = float("-inf")
    ours, expected = orbit_reduce(y, case.action, op), PLAIN[op][0](case.undone(y))
    torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("op", ["gmean", "hmean", "tsharpen", "log1p"])
def test_zeros_and_negative_values_behave_as_in_torch(op: str) -> None:
    case = CASES["d4"]
    y = random_values((8, 2, 5, 5), torch.float32, 1, "positive")
    y[:, 1].neg_()
    y[3, 0, 1, 1] = 0.0
    ours, expected = orbit_reduce(y, case.action, op), PLAIN[op][0](case.undone(y))
    torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 2.0])
def test_logodd_clamps_to_the_open_interval(value: float) -> None:
    y = torch.full((4, 3, 3), value, dtype=torch.float64, requires_grad=True)
    ours = orbit_reduce(y, grid("c4"), "logodd")
    torch.testing.assert_close(ours, torch.full((3, 3), EPS if value <= 0 else 1 - EPS, dtype=torch.float64))
    (grad,) = torch.autograd.grad(ours.sum(), y)
    assert torch.equal(grad, torch.zeros_like(grad))


@DTYPES
@pytest.mark.parametrize("op", ["max", "min"])
def test_ties_share_the_gradient(op: str, dtype: torch.dtype) -> None:
    case = CASES["c4"]
    y = torch.zeros(4, 3, 3, dtype=dtype)
    extreme = 1.0 if op == "max" else -1.0
    for g in (1, 3):  # two of the four views agree on the extreme everywhere
        y[g] = extreme
    y.requires_grad_()
    (grad,) = torch.autograd.grad(orbit_reduce(y, case.action, op).sum(), y)
    assert torch.equal(grad, y.detach().abs() / 2)
    equal = torch.ones(4, 3, 3, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(orbit_reduce(equal, case.action, op).sum(), equal)
    assert torch.equal(grad, torch.full_like(grad, 0.25))


@DTYPES
@pytest.mark.parametrize("op", ["std", "mean_std"])
def test_zero_std_has_zero_gradient(op: str, dtype: torch.dtype) -> None:
    ones = torch.ones((4, 2, 3, 3), dtype=dtype, requires_grad=True)
    result = orbit_reduce(ones, grid("c4"), op)
    std = result[1] if isinstance(result, tuple) else result
    assert torch.equal(std, torch.zeros_like(std))
    (grad,) = torch.autograd.grad(std.sum(), ones)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_std_of_large_close_values_does_not_cancel() -> None:
    """Two passes: with Σv² − (Σv)² nothing would be left."""
    y = 10_000 + torch.tensor([0.0, 0.25, 0.5, 0.75]).reshape(4, 1, 1).expand(4, 5, 5)
    expected = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64).std(correction=0)
    torch.testing.assert_close(orbit_reduce(y, grid("c4"), "std"), expected.float().expand(5, 5), rtol=1e-5, atol=1e-6)


@DTYPES
def test_half_precision_is_accumulated_wide(dtype: torch.dtype) -> None:
    """Sixteen views whose sum would stall in a narrow accumulator."""
    case = CASES["d4xc2"]
    y = torch.ones(16, 2, 5, 5, dtype=dtype)
    y[0] = 2048.0 if dtype == torch.float16 else 256.0
    ours = orbit_reduce(y, case.action, "sum")
    assert torch.equal(ours, (y.double().sum(0)).to(dtype))


@pytest.mark.parametrize("op", ["max", "min"])
def test_nan_reaches_the_gradient_of_max_and_min(op: str) -> None:
    y = torch.tensor([[[1.0, 2.0]], [[5.0, float("nan")]]], requires_grad=True)
    result = orbit_reduce(y, trivial(cyclic_group(2)), op)
    (grad,) = torch.autograd.grad(result.sum(), y)
    assert grad[:, 0, 0].isfinite().all()
    assert grad[:, 0, 1].isnan().all()
