"""orbit_mean of probabilities and log-probabilities, and orbit_score, against plain torch and float64."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from equikern import cyclic_group, grid, orbit_mean, orbit_score, orbit_select, permutation, trivial
from equikern.ops.score import KINDS, Kind
from helpers.accuracy import assert_within_twice, spacing
from helpers.logits import ACTIONS, size_of, undone
from helpers.looped import each
from helpers.oracles import powers
from helpers.strategies import FLOATS, laid_out, layouts, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
NAMES = pytest.mark.parametrize("name", ACTIONS)
SPACE = pytest.mark.parametrize("space", ["probs", "log_probs"])
KIND = pytest.mark.parametrize("kind", KINDS)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
INF = float("inf")


def plain(y: Tensor, action: Any, space: str) -> Tensor:
    views = undone(y, action)
    return (views.softmax(-1) if space == "probs" else views.log_softmax(-1)).mean(0)


@st.composite
def some_logits(draw: st.DrawFn, lead: int, size: int) -> Tensor:
    """(lead, *more, size) in any dtype and layout."""
    shape = (lead, *draw(st.lists(st.integers(0, 5), max_size=2)), size)
    dtype = draw(st.sampled_from(FLOATS))
    return laid_out(random_values(shape, dtype, draw(st.integers(0, 2**16))) * 2, draw(layouts))


@NAMES
@SPACE
@settings(max_examples=15)
@given(data=st.data())
def test_mean_and_gradient(name: str, space: Literal["probs", "log_probs"], data: st.DataObject) -> None:
    action = ACTIONS[name]
    y = data.draw(some_logits(action.order, size_of(action))).requires_grad_()
    ours = orbit_mean(y, action, space)
    assert (ours.dtype, ours.shape) == (y.dtype, y.shape[1:])

    def pool() -> list[Tensor]:
        return [random_values((action.order, 40, size_of(action)), y.dtype, 1) * 2]

    assert_within_twice(ours.detach(), lambda y: plain(y, action, space), [y.detach()], pool, f"{space} {name}")
    incoming = laid_out(random_values(tuple(ours.shape), y.dtype, 5), data.draw(layouts))
    (grad,) = torch.autograd.grad(ours, y, incoming)
    assert grad.dtype == y.dtype
    leaf = y.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(plain(leaf, action, space), leaf, incoming.double())
    # Each element is a difference of two of the row's numbers, of which one is a sum over the row.
    wide = torch.finfo(torch.float64 if y.dtype == torch.float64 else torch.float32).eps
    units = 8 + 2 * float(y.detach().abs().max()) if y.numel() else 8  # exp magnifies the logits' rounding
    bound = spacing(exact, y.dtype) + units * wide * incoming.double().abs().sum(-1, keepdim=True)
    assert not grad.isnan().any()
    assert bool(((grad.double() - exact).abs() <= bound).all())


@SPACE
def test_of_a_dim_in_front(space: Literal["probs", "log_probs"]) -> None:
    action = permutation(powers([1, 2, 0, 3], 3), dim=-2)
    y = random_values((3, 2, 4, 5), torch.float64).requires_grad_()
    expected = plain(y.transpose(-1, -2), action, space).transpose(-1, -2)
    ours = orbit_mean(y, action, space)
    torch.testing.assert_close(ours, expected)
    out = torch.empty(2, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        assert orbit_mean(y, action, space, out=out) is out
    assert torch.equal(out, ours)
    (grad,) = torch.autograd.grad(ours, y, y[0].detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, y, y[0].detach())[0])


@each(*NAMES.args)
@SPACE
def test_second_derivatives(name: str, space: Literal["probs", "log_probs"]) -> None:
    action = ACTIONS[name]
    y = random_values((action.order, 2, size_of(action)), torch.float64, 3).requires_grad_()

    def derivatives(result: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(result.square().sum(), y, create_graph=True)
        return torch.autograd.grad(first.square().sum(), y)[0]

    torch.testing.assert_close(derivatives(orbit_mean(y, action, space)), derivatives(plain(y, action, space)))


@SPACE
@DTYPES
def test_words_ruled_out(space: Literal["probs", "log_probs"], dtype: torch.dtype) -> None:
    """−inf is a probability of zero, however many there are; a row of nothing else has no softmax."""
    action = ACTIONS["9 of 50"]
    y = random_values((3, 4, 50), dtype, 6)
    y[:, 0, 3:] = -INF
    y[1, 1, ::2] = -INF
    y[:, 2] = -INF
    y[:, 2, 7] = 1.0
    y[:, 3] = -INF
    ours = orbit_mean(y, action, space)
    torch.testing.assert_close(ours, plain(y.double(), action, space).to(dtype), equal_nan=True)
    assert ours[3].isnan().all()


@SPACE
@each("size", [1e4, 6e4])
@DTYPES
def test_large_logits(space: Literal["probs", "log_probs"], size: float, dtype: torch.dtype) -> None:
    action = ACTIONS["2 of 50"]
    y = (random_values((2, 6, 50), torch.float64, 7) / 8 * size).clamp(-size, size).to(dtype)
    ours = orbit_mean(y, action, space)
    torch.testing.assert_close(ours.double(), plain(y.double(), action, space).to(dtype).double(), rtol=2e-3, atol=1e-6)


@SPACE
@each("size", [1, 2, 7, 8, 63, 1000, 5003, 50_257, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vocabularies_of_any_size(space: Literal["probs", "log_probs"], size: int, dtype: torch.dtype) -> None:
    action = permutation([[*range(size)], [size - 1, *range(1, size - 1), 0][:size]], group=cyclic_group(2))
    y = random_values((2, 3, size), dtype, size)
    expected = plain(y.double(), action, space).to(dtype)
    torch.testing.assert_close(
        orbit_mean(y, action, space), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
    )


def test_what_has_no_softmax_is_refused() -> None:
    y = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="action: expected a permutation or the trivial action, whose softmax"):
        orbit_mean(y, grid("hflip"), "probs")
    with pytest.raises(ValueError, match="action: expected permutations without signs for probabilities"):
        orbit_mean(y, permutation([[0, 1, 2, 3]] * 2, [[1] * 4, [-1] * 4]), "log_probs")
    with pytest.raises(ValueError, match="space: expected one of 'probs', 'log_probs', None, got 'logits'"):
        orbit_mean(y, trivial(cyclic_group(2)), "logits")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="space: expected one of"):
        orbit_mean(y, trivial(cyclic_group(2)), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"y: expected views \(\|G\|, …, n\) of n logits, got shape \(2,\)"):
        orbit_mean(y[:, 0, 0], trivial(cyclic_group(2)), "probs")


def plain_score(y: Tensor, kind: str) -> Tensor:
    """As the docstring has it."""
    p = y.softmax(-1)
    if kind == "max":
        return -y.amax(-1)
    if kind == "max_prob":
        return -p.amax(-1).log()
    if kind == "entropy":
        return -(p * y.log_softmax(-1)).sum(-1)
    first = p.amax(-1)
    return -(first if y.shape[-1] == 1 else first - p.topk(2, -1).values[..., 1]).log()


@KIND
@settings(max_examples=40)
@given(data=st.data())
def test_score_and_gradient(kind: Kind, data: st.DataObject) -> None:
    y = data.draw(some_logits(3, data.draw(st.integers(1, 70)))).requires_grad_()
    ours = orbit_score(y, kind)
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    assert (ours.dtype, ours.shape) == (wide, y.shape[:-1])
    detached = y.detach().to(wide)
    torch.testing.assert_close(ours.double(), plain_score(detached.double(), kind), rtol=2e-6, atol=2e-6)
    if y.unique().numel() < y.numel():
        return  # equal largest logits: torch's amax would share the gradient
    (grad,) = torch.autograd.grad(ours.sum(), y)
    leaf = y.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(plain_score(leaf, kind).sum(), leaf)
    torch.testing.assert_close(grad.double(), expected.to(y.dtype).double(), rtol=1e-2, atol=2e-6)


@KIND
def test_score_of_another_dim(kind: Kind) -> None:
    y = random_values((2, 7, 3, 4), torch.float32)
    assert torch.equal(orbit_score(y, kind, dim=1), orbit_score(y.movedim(1, -1).contiguous(), kind))


@each(
    ("row", "max_prob", "entropy", "margin", "most"),
    [
        ([0.0, 0.0], 0.6931472, 0.6931472, INF, 0.0),
        ([5.0, 5.0, -INF], 0.6931472, 0.6931472, INF, 5.0),
        ([3.0, -INF, -INF], 0.0, 0.0, 0.0, 3.0),
        ([7.0], 0.0, 0.0, 0.0, 7.0),
        ([8192.0, -8192.0, 0.0], 0.0, 0.0, 0.0, 8192.0),
        ([2.0, float("nan"), 0.0], float("nan"), float("nan"), float("nan"), float("nan")),
        ([-INF, -INF], float("nan"), float("nan"), float("nan"), -INF),
        ([-3.0, INF], float("nan"), float("nan"), float("nan"), INF),
    ],
)
@DTYPES
def test_scores_of_special_rows(
    row: list[float], max_prob: float, entropy: float, margin: float, most: float, dtype: torch.dtype
) -> None:
    y = torch.tensor(row, dtype=dtype)
    for kind, expected in (("max_prob", max_prob), ("entropy", entropy), ("margin", margin), ("max", -most)):
        ours = orbit_score(y, kind)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=ours.dtype), rtol=1e-6, atol=1e-6, equal_nan=True)


def test_the_smallest_score_is_the_surest_view() -> None:
    y = torch.tensor([[1.0, 0.9, 0.8], [4.0, 0.0, 0.0], [2.0, 1.9, 0.0]])
    action = trivial(cyclic_group(3))
    for kind in KINDS:
        assert torch.equal(orbit_select(y, orbit_score(y, kind), action), y[1])  # type: ignore[arg-type]


def test_scores_that_are_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of 'max_prob', 'entropy', 'margin', 'max', got 'best'"):
        orbit_score(torch.zeros(2, 3), "best")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logits: expected float16, .* got torch.int64"):
        orbit_score(torch.zeros(2, 3, dtype=torch.int64), "entropy")
    with pytest.raises(ValueError, match=r"logits: expected one or more logits on dim -1, got shape \(2, 0\)"):
        orbit_score(torch.zeros(2, 0), "entropy")
    with pytest.raises(ValueError, match=r"dim: expected a dim of logits"):
        orbit_score(torch.zeros(2, 3), "entropy", dim=5)
    with pytest.raises(TypeError, match="dim: expected a whole number, got NoneType"):
        orbit_score(torch.zeros(2, 3), "entropy", dim=None)  # type: ignore[arg-type]
