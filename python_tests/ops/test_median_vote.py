"""Medians, votes and log1p: orbit_reduce and EquiTune against numpy and statistics; ties, NaN, gradients, bad input."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from equikern import EquiTune, cyclic_group, field, grid, matrix, orbit, orbit_reduce, permutation, trivial
from helpers.bad_input import assert_error
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case
from helpers.strategies import FLOATS, LAYOUTS, bits, laid_out, layouts, orbits, random_bits, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)
MOVING = pytest.mark.parametrize("case", [case for case in CASES.values() if not case.multiplies], ids=repr)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# One network of comparisons for each small number, whole vectors and what is beyond them.
ORDERS = (*range(1, 36), 48, 64, 65, 127, 128, 200, 1000)


def numpys(views: Tensor) -> Tensor:
    """The median of views in float64, as numpy finds it."""
    return torch.from_numpy(numpy.asarray(numpy.median(views.double().numpy(), axis=0)))


def most_frequent(views: Tensor) -> Tensor:
    """The smallest of the most frequent values, as statistics finds them."""
    rows = views.flatten(1).T.tolist()
    found = torch.tensor([min(statistics.multimode(row)) for row in rows], dtype=views.dtype)
    return found.reshape(views.shape[1:])


def votes_in(case: Case, dtype: torch.dtype) -> bool:
    return not (case.signed and dtype in (torch.bool, torch.uint8))


# -- medians


@FEW
@settings(max_examples=15)
@given(data=st.data())
def test_median(case: Case, data: st.DataObject) -> None:
    """Exactly: half of each of the two middle values are added and rounded once."""
    spec = data.draw(orbits(case, FLOATS))
    y = spec.values()
    ours = orbit_reduce(y, case.action, "median")
    assert (ours.dtype, ours.shape) == (y.dtype, y.shape[1:])
    if y.numel():
        assert torch.equal(ours, numpys(case.undone(y)).to(y.dtype))


@each("order", ORDERS)
def test_median_of_any_number_of_views(order: int) -> None:
    action = trivial(cyclic_group(order))
    for seed, dtype in enumerate(FLOATS):
        y = laid_out(random_values((order, 3, 19), dtype, seed), LAYOUTS[(order + seed) % len(LAYOUTS)])
        assert torch.equal(orbit_reduce(y, action, "median"), numpys(y).to(dtype))
    one = orbit_reduce(y.contiguous()[:, :1, :1], action, "median")
    assert float(one) == statistics.median(y[:, 0, 0].tolist())
    ties = torch.randint(0, 3, (order, 50), generator=torch.Generator().manual_seed(order)).float()
    assert torch.equal(orbit_reduce(ties, action, "median"), numpys(ties).float())


@DTYPES
@each("name", ["flips", "cycle3", "diagonal"])
def test_nan_in_any_view_is_nan(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for g in range(case.order):
        y = random_values((case.order, *case.shape(2, side=5)), dtype, 1)
        y[g].view(-1)[7] = math.nan
        ours = orbit_reduce(y, case.action, "median")
        assert int(ours.isnan().sum()) == 1
        assert torch.equal(ours.isnan(), case.undone(y).isnan().any(0))


def test_infinities_and_zeros_have_medians() -> None:
    inf = math.inf
    rows = [[inf, inf, 1, 2], [-inf, 0, 1, inf], [-inf, -inf, inf, inf], [-inf, -inf, -inf, 3], [-0.0, 0.0, 0.0, -0.0]]
    y = torch.tensor(rows).T.contiguous()
    ours = orbit_reduce(y, trivial(cyclic_group(4)), "median")
    assert torch.equal(ours[[0, 1, 3, 4]], torch.tensor([inf, 0.5, -inf, 0.0]))
    assert ours[2].isnan()  # of −∞ and ∞
    largest = torch.full((2, 3), torch.finfo(torch.float32).max)
    assert torch.equal(orbit_reduce(largest, trivial(cyclic_group(2)), "median"), largest[0])


@each(*FEW.args)
def test_derivatives_of_medians(case: Case) -> None:
    y = random_values((case.order, *case.shape(2, side=2)), torch.float64, 3).requires_grad_()
    assert gradcheck(lambda t: orbit_reduce(t, case.action, "median"), y, fast_mode=True)
    assert gradgradcheck(lambda t: orbit_reduce(t, case.action, "median"), y, fast_mode=True)


SHARES = [
    ([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.5, 0.0]),
    ([1.0, 2.0, 2.0, 5.0], [0.0, 0.5, 0.5, 0.0]),
    ([2.0, 2.0, 2.0, 5.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
    ([1.0, 1.0, 2.0, 2.0], [0.25, 0.25, 0.25, 0.25]),
    ([1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25]),
    ([4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.5, 0.5]),
    ([9.0, 1.0, 2.0], [0.0, 0.0, 1.0]),
    ([2.0, 1.0, 2.0], [0.5, 0.0, 0.5]),
    ([-0.0, 0.0, 7.0], [0.5, 0.5, 0.0]),
    ([3.0], [1.0]),
]


@DTYPES
@each(("values", "shares"), SHARES)
def test_ties_share_the_gradient_of_a_median(values: list[float], shares: list[float], dtype: torch.dtype) -> None:
    y = torch.tensor(values, dtype=dtype)[:, None].repeat(1, 3).requires_grad_()
    found = orbit_reduce(y, trivial(cyclic_group(len(values))), "median")
    (grad,) = torch.autograd.grad(found, y, torch.tensor([1.0, 2.0, -4.0], dtype=dtype))
    expected = torch.outer(torch.tensor(shares, dtype=torch.float64), torch.tensor([1.0, 2.0, -4.0]).double())
    torch.testing.assert_close(grad, expected.to(dtype))


def test_the_gradient_of_a_median_goes_where_the_view_was() -> None:
    case = CASES["d4"]
    y = random_values((8, 3, 6, 6), torch.float32, 1).requires_grad_()
    incoming = random_values((3, 6, 6), torch.float32, 2)
    (grad,) = torch.autograd.grad(orbit_reduce(y, case.action, "median"), y, incoming)
    place = case.undone(y.detach()).argsort(0)
    shares = torch.zeros(8, 3, 6, 6).scatter(0, place[3:5], 0.5)
    expected = torch.stack([g(share * incoming) for g, share in zip(case.forward, shares, strict=True)])
    assert torch.equal(grad, expected)


def test_nan_reaches_the_gradient_of_a_median() -> None:
    y = torch.tensor([[1.0, 2.0], [5.0, math.nan], [4.0, 3.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(orbit_reduce(y, trivial(cyclic_group(3)), "median").sum(), y)
    assert grad[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert grad[:, 1].isnan().all()


# -- votes


@MOVING
@settings(max_examples=10)
@given(data=st.data())
def test_vote(case: Case, data: st.DataObject) -> None:
    """Few labels, so that there are votes and ties, in any layout."""
    dtype = data.draw(st.sampled_from([dtype for dtype in INTEGERS if votes_in(case, dtype)]))
    spec = data.draw(orbits(case, (torch.int32,)))
    y = laid_out(random_values(spec.shape, torch.int64, spec.seed, "labels").to(dtype), data.draw(layouts))
    ours = orbit_reduce(y, case.action, "vote")
    assert (ours.dtype, ours.shape) == (dtype, y.shape[1:])
    if y.numel():
        assert torch.equal(ours, most_frequent(case.undone(y)))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@each("order", ORDERS)
def test_vote_of_any_number_of_views(order: int, dtype: torch.dtype) -> None:
    """Of any values, too, most of which are there once: then the smallest one wins."""
    action = trivial(cyclic_group(order))
    for y in (
        random_bits((order, 2, 21), dtype, order),
        random_values((order, 2, 21), torch.int64, order, "labels").to(dtype),
        random_bits((order, 42), dtype, order)[torch.arange(order) // 2].view(order, 2, 21),
    ):
        assert torch.equal(orbit_reduce(y, action, "vote"), most_frequent(y))


def test_bytes_above_127_are_no_negative_numbers() -> None:
    action = trivial(cyclic_group(4))
    y = torch.tensor([[200, 255, 128, 0], [100, 1, 127, 254], [200, 255, 127, 255], [100, 1, 128, 253]])
    assert orbit_reduce(y.to(torch.uint8), action, "vote").tolist() == [100, 1, 127, 0]
    assert orbit_reduce(y.to(torch.uint8).to(torch.int8), action, "vote").tolist() == [-56, -1, -128, -3]
    wide = y.to(torch.uint8).repeat(1, 100)  # whole vectors
    assert orbit_reduce(wide, action, "vote").tolist() == [100, 1, 127, 0] * 100


def test_extremes_of_every_dtype() -> None:
    action = trivial(cyclic_group(3))
    for dtype in INTEGERS[1:]:
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        y = torch.tensor([[low, high, low, high], [high, low, low, high], [high, low, high, low]], dtype=dtype)
        assert orbit_reduce(y, action, "vote").tolist() == [high, low, low, high]
    far = torch.tensor([[2**40 + 5], [5], [2**40 + 5]])  # alike in the lower half
    assert orbit_reduce(far, action, "vote").tolist() == [2**40 + 5]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_tie_of_truths_is_false(count: int) -> None:
    y = torch.arange(2**count)[None] >> torch.arange(count)[:, None] & 1 == 1  # every way to vote
    expected = 2 * y.sum(0) > count
    assert torch.equal(orbit_reduce(y, trivial(cyclic_group(count)), "vote"), expected)


def test_votes_under_signs() -> None:
    case = CASES["signed"]
    y = torch.tensor([[-3, 1, 2, 5], [3, -2, -1, 4]], dtype=torch.int8)
    assert torch.equal(case.undone(y), torch.tensor([[-3, 1, 2, 5], [-3, 1, 2, 4]], dtype=torch.int8))
    assert orbit_reduce(y, case.action, "vote").tolist() == [-3, 1, 2, 4]


def test_a_vote_takes_no_gradient() -> None:
    y = torch.randint(0, 3, (4, 2, 5, 5))
    with torch.enable_grad():
        assert not orbit_reduce(y, grid("c4"), "vote").requires_grad


# -- log1p


@DTYPES
def test_log1p_keeps_small_values(dtype: torch.dtype) -> None:
    """What it is for: beside 1 they would be lost."""
    small = 2.0**-20 if dtype == torch.float16 else 1e-17  # whose squares are nothing beside them
    y = (small * torch.tensor([1.0, 2.0, 3.0, 6.0])[:, None].double().expand(4, 40)).to(dtype)
    ours = orbit_reduce(y, trivial(cyclic_group(4)), "log1p")
    torch.testing.assert_close(ours.double(), y.double().mean(0), rtol=2 * torch.finfo(dtype).eps, atol=0)
    ours = orbit_reduce(-y, trivial(cyclic_group(4)), "log1p")
    torch.testing.assert_close(ours.double(), -y.double().mean(0), rtol=2 * torch.finfo(dtype).eps, atol=0)


@DTYPES
def test_log1p_from_minus_one_to_large_values(dtype: torch.dtype) -> None:
    grown = torch.logspace(-6, 4, 101, dtype=torch.float64)
    values = torch.cat((grown, -grown[grown < 0.99], torch.zeros(3, dtype=torch.float64)))
    y = torch.stack((values, values.flip(0), values.roll(7))).to(dtype)
    ours = orbit_reduce(y, trivial(cyclic_group(3)), "log1p")
    exact = torch.from_numpy(numpy.expm1(numpy.log1p(y.double().numpy()).mean(0)))
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # A mean of logarithms, up to 9 in size, is off by units of theirs.
    bound = (1 + exact) * 40 * wide + exact.abs() * torch.finfo(dtype).eps
    assert bool(((ours.double() - exact).abs() <= bound + torch.finfo(dtype).tiny).all())


def test_log1p_at_and_below_minus_one() -> None:
    y = torch.tensor([[-1.0, -1.5, 0.0, math.inf, math.nan], [3.0, 3.0, 0.0, 1.0, 1.0]])
    ours = orbit_reduce(y, trivial(cyclic_group(2)), "log1p")
    assert ours[0] == -1.0
    assert ours[1].isnan()
    assert ours[2:4].tolist() == [0.0, math.inf]
    assert ours[4].isnan()


@each(*FEW.args)
def test_derivatives_of_log1p(case: Case) -> None:
    y = random_values((case.order, *case.shape(2, side=2)), torch.float64, 3, "positive")
    y = case.moved_alike(y).mul(0.4).requires_grad_()  # above −1 where signs change
    assert gradcheck(lambda t: orbit_reduce(t, case.action, "log1p"), y, fast_mode=True)
    assert gradgradcheck(lambda t: orbit_reduce(t, case.action, "log1p"), y, fast_mode=True)


# -- equivariance


def decided(case: Case, y: Tensor) -> Tensor:
    """Where one label alone is the most frequent."""
    views = case.undone(y)
    votes = (views[:, None] == views).sum(1)
    return (views == views.gather(0, votes.argmax(0, keepdim=True))).sum(0) == (votes == votes.amax(0)).sum(0)


@each(*FEW.args)
@each("op", ["median", "log1p", "vote"])
def test_merges_of_moved_views(case: Case, op: Any) -> None:
    """``reduce(orbit of (g x)) = g reduce(orbit of x)`` for the views of a model: here, some that depend on places."""
    if op == "vote" and case.multiplies:
        pytest.skip("matrices multiply floats")
    x = random_values(case.shape(2, side=4), torch.float64, 1)
    noise = random_values((case.order, *x.shape), torch.float64, 2).abs()

    def model(t: Tensor) -> Tensor:
        views = orbit(t, case.action)
        seen = views * noise[0] + views.roll(1, -1).abs()  # the same for every view, and no group leaves it alone
        return (seen / 2).round().long() if op == "vote" else case.moved_alike(seen.abs()) if op == "log1p" else seen

    merged = orbit_reduce(model(x), case.action, op)
    assert isinstance(merged, Tensor)
    for g in range(case.order):
        seen = model(case.action.act(g, x))
        moved = orbit_reduce(seen, case.action, op)
        expected = case.action.act(g, merged)
        if op == "log1p" and case.signed:
            continue  # which changes signs under the logarithm
        if op == "vote" and case.signed:  # of two labels that are as frequent, a minus makes the other one the smaller
            assert decided(case, seen).any()
            moved = moved * decided(case, seen)
            expected = case.action.act(g, merged * decided(case, model(x)))
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


class Labels(nn.Module):
    """The class of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).argmax(1)


@each("sides", [(6, 6), (4, 7)])
@each("views_per_forward", [None, 1, 3])
@each("name", ["c4", "d4"])
def test_equitune_votes(name: str, views_per_forward: int | None, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone, action = Labels().double(), grid(name)
    model = EquiTune(backbone, name, name, "vote", views_per_forward)
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    inverse = action.group.inverse.tolist()
    views = torch.stack([action.act(inverse[g], backbone(action.act(g, x))) for g in range(action.order)])
    result = model(x)
    assert torch.equal(result, most_frequent(views))
    assert result.dtype == torch.int64
    for g in range(action.order):
        assert torch.equal(model(action.act(g, x)), action.act(g, result))


@each("sides", [(6, 6), (4, 7)])
@each("views_per_forward", [None, 1, 3])
@pytest.mark.parametrize("op", ["median", "log1p"])
def test_equitune_merges(op: str, views_per_forward: int | None, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    action, backbone = grid("d4"), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Softplus()).double()
    model = EquiTune(backbone, "d4", "d4", op, views_per_forward)
    x = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
    inverse = action.group.inverse.tolist()
    views = torch.stack([action.act(inverse[g], backbone(action.act(g, x))) for g in range(8)])
    if op == "median":
        ordered = views.sort(0).values
        expected = (ordered[3] + ordered[4]) / 2
    else:
        expected = views.log1p().mean(0).expm1()
    torch.testing.assert_close(model(x), expected)
    grads = [torch.autograd.grad(t.square().sum(), (x, *backbone.parameters())) for t in (model(x), expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    for g in range(8):
        torch.testing.assert_close(model(action.act(g, x)), action.act(g, model(x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("views_per_forward", [None, 2])
def test_medians_of_probabilities(views_per_forward: int | None) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
    model = EquiTune(backbone, "c4", "trivial", "median", views_per_forward, "probs")
    x = torch.randn(3, 3, 6, 6)
    views = torch.stack([backbone(torch.rot90(x, k, (-2, -1))).softmax(-1) for k in range(4)])
    torch.testing.assert_close(model(x), numpys(views.detach()).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16], ids=str)
def test_votes_of_several_outputs_in_their_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1)

    def backbone(x: Tensor) -> dict[str, Tensor]:
        found = conv(x)
        return {"mask": (found > 0).to(dtype), "class": (found.mean((1, 2, 3)) * 9).round().int()}

    model = EquiTune(backbone, "c4", {"mask": "c4", "class": "trivial"}, "vote")
    x = torch.randn(4, 1, 5, 5)
    outputs = [backbone(torch.rot90(x, k, (-2, -1))) for k in range(4)]
    masks = torch.stack([torch.rot90(o["mask"], -k, (-2, -1)) for k, o in enumerate(outputs)])
    found = model(x)
    assert torch.equal(found["mask"], most_frequent(masks))
    assert torch.equal(found["class"], most_frequent(torch.stack([o["class"] for o in outputs])))


def test_bits_of_layouts_agree() -> None:
    case = CASES["d4"]
    y = random_values((8, 2, 5, 6, 6), torch.bfloat16, 1, "positive")
    labels = random_values((8, 2, 5, 6, 6), torch.int64, 1, "labels").to(torch.uint8)
    for op, values in (("median", y), ("vote", labels)):
        expected = orbit_reduce(values, case.action, op)
        for layout in LAYOUTS[:6]:
            ours = orbit_reduce(laid_out(values, layout), case.action, op)
            assert torch.equal(bits(ours), bits(expected))


# -- bad input

Y = torch.zeros(4, 2, 3, 3)
TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
MIXED = field(grid("c4"), matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]]))
SIGNED = permutation([[0, 1], [0, 1]], [[1, 1], [-1, 1]])
any_reduce: Any = orbit_reduce
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str, str, str]] = {
    "vote of floats": (lambda: orbit_reduce(Y, grid("c4"), "vote"), TypeError, "y", "an integer dtype or bool", "32"),
    "vote of complex": (lambda: orbit_reduce(Y * 1j, grid("c4"), "vote"), TypeError, "y", "an integer", "complex64"),
    "vote of bytes that change sign": (
        lambda: orbit_reduce(torch.zeros(2, 2, dtype=torch.uint8), SIGNED, "vote"),
        *(TypeError, "y", "a dtype that has negative numbers", "torch.uint8"),
    ),
    "vote of truths that change sign": (
        lambda: orbit_reduce(torch.zeros(2, 2, dtype=torch.bool), SIGNED, "vote"),
        *(TypeError, "y", "a dtype that has negative numbers", "torch.bool"),
    ),
    "vote under matrices": (
        lambda: orbit_reduce(torch.zeros(4, 2, dtype=torch.int64), TURN, "vote"),
        *(TypeError, "y", "float16, bfloat16, float32 or float64", "torch.int64"),
    ),
    "vote of mixed channels": (
        lambda: orbit_reduce(torch.zeros(4, 2, 3, 3, dtype=torch.int64), MIXED, "vote"),
        *(TypeError, "y", "float16, bfloat16, float32 or float64", "torch.int64"),
    ),
    "median of integers": (
        lambda: orbit_reduce(Y.long(), grid("c4"), "median"),
        *(TypeError, "y", "float16, bfloat16, float32 or float64", "torch.int64"),
    ),
    "log1p of bytes": (lambda: orbit_reduce(Y.byte(), grid("c4"), "log1p"), TypeError, "y", "float16", "torch.uint8"),
    "mode": (lambda: any_reduce(Y, grid("c4"), "mode"), ValueError, "op", "'median', 'vote'", "'mode'"),
    "fewer views": (lambda: orbit_reduce(Y[:3], grid("c4"), "median"), ValueError, "y", "4 views on dim 0", "3"),
    "out of another dtype": (
        lambda: orbit_reduce(Y.long(), grid("c4"), "vote", out=torch.zeros(2, 3, 3)),
        *(TypeError, "out", "torch.int64", "torch.float32"),
    ),
    "model of floats that votes": (
        lambda: EquiTune(nn.Identity(), "c4", "c4", "vote")(torch.zeros(2, 1, 4, 4)),
        *(TypeError, "backbone", "outputs of an integer dtype to merge", "torch.float32"),
    ),
    "model of integers with a median": (
        lambda: EquiTune(lambda x: x.long(), "c4", "c4", "median")(torch.zeros(2, 1, 4, 4)),
        *(TypeError, "backbone", "outputs of a floating-point dtype to merge", "torch.int64"),
    ),
}


@each("name", WRONG)
def test_wrong_input_is_named(name: str) -> None:
    assert_error(*WRONG[name])
