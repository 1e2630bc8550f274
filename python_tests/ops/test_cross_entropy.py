"""orbit_cross_entropy and linear_orbit_cross_entropy against the predictions they stand for, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import grid, linear_orbit_cross_entropy, orbit_cross_entropy, permutation, use_backend
from equikern.ops.linear_cross_entropy import chunk_rows
from helpers.accuracy import error, spacing
from helpers.logits import ACTIONS, SPACES, loss, size_of, swaps, targets
from helpers.looped import each
from helpers.strategies import FLOATS, laid_out, layouts, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
NAMES = pytest.mark.parametrize("name", ACTIONS)
SPACE = pytest.mark.parametrize("space", SPACES)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
REDUCTION = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
INF, NAN = float("inf"), float("nan")


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def value_and_gradients(call: Callable[..., Tensor], inputs: list[Tensor], seed: int = 4) -> list[Tensor]:
    """The loss and, for a random upstream gradient, the gradient of every input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    value = call(*leaves)
    incoming = random_values(tuple(value.shape), value.dtype, seed, "positive")
    return [value.detach(), *torch.autograd.grad(value, leaves, incoming)]


def assert_as_good_as_torch(
    ours: list[Tensor], call: Callable[..., Tensor], inputs: list[Tensor], terms: float
) -> None:
    """Within 2 × plain torch's error against float64, up to rounding; sums of ``terms`` rows count as many units."""
    exact = value_and_gradients(call, [t.double() for t in inputs])
    plain = value_and_gradients(call, [t.to(wide(t.dtype)) for t in inputs])
    for mine, theirs, right in zip(ours, plain, exact, strict=True):
        assert not mine.isnan().any()
        # Twice rounded: as the pass writes it, and times the upstream gradient.
        unit = 2 * spacing(right, mine.dtype) + 16 * torch.finfo(wide(mine.dtype)).eps * (right.abs().max() + terms)
        excess = (mine.double() - right).abs() - 2 * error(theirs, right) - unit
        assert float(excess.max()) <= 0, (error(mine, right), error(theirs, right))


@NAMES
@SPACE
@settings(max_examples=12)
@given(data=st.data())
def test_value_and_gradient(name: str, space: Any, data: st.DataObject) -> None:
    action = ACTIONS[name]
    size = size_of(action)
    lead = tuple(data.draw(st.lists(st.integers(1, 5), max_size=2)))
    dtype = data.draw(st.sampled_from(FLOATS))
    reduction = data.draw(st.sampled_from(["mean", "sum", "none"]))
    smoothing = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    ignored = data.draw(st.sampled_from([-100, 3, 10**6]))
    seed = data.draw(st.integers(0, 999))
    y = laid_out(random_values((action.order, *lead, size), dtype, seed) * 2, data.draw(layouts))
    target = targets(lead, size, seed, ignored)
    if bool((target == ignored).all()):
        target = target.fill_(0)
        ignored = -1
    options = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing}

    def ours(t: Tensor) -> Tensor:
        return orbit_cross_entropy(t, target, action, space, **options)

    found = value_and_gradients(ours, [y])
    assert (found[0].dtype, found[1].dtype) == (wide(dtype), dtype)
    assert torch.equal(ours(y), found[0])  # without a gradient too
    assert_as_good_as_torch(
        found, lambda t: loss(t, target, action, space, reduction, smoothing, ignored), [y], target.numel() * 4
    )


@each("size", [8, 49_152, 151_936, 262_144])
@SPACE
def test_vocabularies_of_models(size: int, space: Any) -> None:
    action, target = swaps(3, size, min(size, 60) // 3 * 3), torch.tensor([0, size - 1])
    y = random_values((3, 2, size), torch.float32, 7) * 3

    def ours(t: Tensor) -> Tensor:
        return orbit_cross_entropy(t, target, action, space)

    assert_as_good_as_torch(
        value_and_gradients(ours, [y]), lambda t: loss(t, target, action, space, "mean", 0.0, -100), [y], 1.0
    )


@SPACE
@REDUCTION
def test_backward_twice_and_second_derivatives(space: Any, reduction: str) -> None:
    action = ACTIONS["9 of 50"]
    y = random_values((3, 4, 50), torch.float64, 2).requires_grad_()
    target = targets((4,), 50, 1, -100)

    def ours(t: Tensor) -> Tensor:
        return orbit_cross_entropy(t, target, action, space, reduction=reduction, label_smoothing=0.2)  # type: ignore[arg-type]

    value = ours(y)
    ones = torch.ones_like(value)
    first, second, third = (torch.autograd.grad(value, y, k * ones, retain_graph=True)[0] for k in (1.0, 1.0, 3.0))
    assert torch.equal(first, second)
    torch.testing.assert_close(third, 3 * first)
    first.zero_()  # it is the caller's, and nobody else's
    assert torch.equal(torch.autograd.grad(value, y, ones)[0], second)

    def derivatives(call: Callable[[Tensor], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(call(y).square().sum(), y, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), y)[0]

    plain = derivatives(lambda t: loss(t, target, action, space, reduction, 0.2, -100))
    torch.testing.assert_close(derivatives(ours), plain)


def test_second_derivatives_where_probabilities_underflow() -> None:
    """A target whose probability is zero in float64 still has a finite loss in the mean of probabilities."""
    action = ACTIONS["2 of 50"]
    y = torch.zeros(2, 1, 50, dtype=torch.float64)
    y[:, :, 5] = 900.0
    target = torch.tensor([9])
    value = orbit_cross_entropy(y.requires_grad_(), target, action, "probs")
    torch.testing.assert_close(value, torch.tensor(900.0, dtype=torch.float64))
    (grad,) = torch.autograd.grad(value, y)
    assert grad[0, 0, 9].item() == -0.5
    assert grad[0, 0, 5].item() == 0.5


@each(*SPACE.args)
@DTYPES
@each(*REDUCTION.args)
def test_all_ignored_and_nothing_at_all(space: Any, dtype: torch.dtype, reduction: Any) -> None:
    """As torch's: NaN for the mean of nothing, 0 for its sum."""
    action = ACTIONS["9 of 50"]
    for rows in (0, 3):
        y = random_values((3, rows, 50), dtype, 1).requires_grad_()
        value = orbit_cross_entropy(y, torch.full((rows,), -100), action, space, reduction=reduction)
        expected = torch.nn.functional.cross_entropy(y[0], torch.full((rows,), -100), reduction=reduction)
        torch.testing.assert_close(value, expected.to(value.dtype), equal_nan=True)
        value.sum().backward()
        assert y.grad is not None
        assert reduction == "mean" or not y.grad.any()


@each(*SPACE.args)
@DTYPES
def test_words_ruled_out(space: Any, dtype: torch.dtype) -> None:
    action = ACTIONS["9 of 50"]
    y = random_values((3, 4, 50), dtype, 6)
    y[:, :, 20:] = -INF
    y[:, 3, 7] = 3e4
    target = torch.tensor([0, 3, 19, 7])
    leaf, exact = y.clone().requires_grad_(), y.double().requires_grad_()
    ours = orbit_cross_entropy(leaf, target, action, space)
    plain = loss(exact, target, action, space, "mean", 0.0, -100)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-3 if dtype.itemsize == 2 else 1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(ours, leaf)
    assert not grad.isnan().any()
    assert not grad[:, :, 31:].any()


@SPACE
def test_losses_of_single_positions_have_no_neighbours(space: Any) -> None:
    """A row of NaN or +inf makes its own loss NaN and no other."""
    action = ACTIONS["2 of 50"]
    y = random_values((2, 5, 50), torch.float32, 8)
    y[0, 1, 4] = NAN
    y[1, 3, 9] = INF
    target = torch.tensor([1, 2, -100, 4, 5])
    found = orbit_cross_entropy(y, target, action, space, reduction="none")
    assert found.isnan().tolist() == [False, True, False, True, False]
    assert found[2] == 0


def hidden_case(dtype: torch.dtype, action: Any, lead: tuple[int, ...], bias: bool) -> tuple[list[Tensor], Tensor]:
    size = size_of(action)
    inputs = [
        random_values((action.order, *lead, 12), dtype, 1),
        random_values((size, 12), dtype, 2) / 2,
        *([random_values((size,), dtype, 3)] if bias else []),
    ]
    return inputs, targets(lead, size, 5, -100)


@each("name", ["none of 3", "9 of 50", "all of 30"])
@SPACE
@REDUCTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each("bias", [False, True])
def test_from_the_hidden_state(name: str, space: Any, reduction: Any, dtype: torch.dtype, bias: bool) -> None:
    action = ACTIONS[name]
    inputs, target = hidden_case(dtype, action, (3, 21), bias)
    options = {"reduction": reduction, "label_smoothing": 0.1}

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_orbit_cross_entropy(hidden, weight, target, action, space, bias=bias, **options)

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return loss(logits, target, action, space, reduction, 0.1, -100)

    found = value_and_gradients(ours, inputs)
    assert torch.equal(ours(*inputs), found[0])
    assert_as_good_as_torch(found, plain, inputs, target.numel() * 4)


@SPACE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_from_a_hidden_state_of_half_precision(space: Any, dtype: torch.dtype) -> None:
    """The weight's gradient is summed over the chunks in float32: no worse than torch's one matrix product."""
    action = ACTIONS["9 of 50"]
    inputs, target = hidden_case(dtype, action, (640,), True)
    arguments = (target, action, space, "mean", 0.0, -100)

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return loss(logits.to(wide(logits.dtype)), *arguments)

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_orbit_cross_entropy(hidden, weight, target, action, space, bias=bias)

    exact = value_and_gradients(plain, [t.double() for t in inputs])
    theirs = value_and_gradients(plain, inputs)
    for mine, torchs, right in zip(value_and_gradients(ours, inputs), theirs, exact, strict=True):
        assert error(mine, right) <= 2 * error(torchs, right) + float(spacing(right.abs().max(), mine.dtype))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    action = ACTIONS["9 of 50"]
    (hidden, weight, bias), target = hidden_case(torch.float64, action, (9,), True)
    everything = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    linear_orbit_cross_entropy(everything[0], everything[1], target, action, bias=everything[2]).backward()
    for wanted in range(3):
        some = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((hidden, weight, bias))]
        linear_orbit_cross_entropy(some[0], some[1], target, action, bias=some[2]).backward()
        for i, (t, all_of) in enumerate(zip(some, everything, strict=True)):
            assert (t.grad is not None) == (i == wanted)
            if t.grad is not None and all_of.grad is not None:
                torch.testing.assert_close(t.grad, all_of.grad)


@REDUCTION
def test_linear_backward_twice_and_second_derivatives(reduction: Any) -> None:
    action = ACTIONS["9 of 50"]
    inputs, target = hidden_case(torch.float64, action, (6,), True)
    leaves = [t.requires_grad_() for t in inputs]

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_orbit_cross_entropy(hidden, weight, target, action, bias=bias, reduction=reduction)

    value = ours(*leaves)
    ones = torch.ones_like(value)
    first, second, third = (torch.autograd.grad(value, leaves, k * ones, retain_graph=True) for k in (1.0, 1.0, 3.0))
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3 * a)

    def derivatives(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return loss(torch.nn.functional.linear(hidden, weight, bias), target, action, None, reduction, 0.0, -100)

    torch.testing.assert_close(derivatives(ours), derivatives(plain))


def test_one_hidden_state_for_each_view() -> None:
    action = ACTIONS["9 of 50"]
    inputs, _ = hidden_case(torch.float64, action, (), False)
    target = torch.tensor(7)
    ours = linear_orbit_cross_entropy(*inputs, target, action)
    torch.testing.assert_close(ours, loss(inputs[0] @ inputs[1].T, target, action, None, "sum", 0.0, -100))


def test_autocast_is_that_of_linear() -> None:
    action = ACTIONS["9 of 50"]
    (hidden, weight), target = hidden_case(torch.float32, action, (16,), False)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_orbit_cross_entropy(hidden, weight, target, action)
        logits = torch.nn.functional.linear(hidden, weight)
        plain = orbit_cross_entropy(logits, target, action)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    (grad,) = torch.autograd.grad(ours, weight)
    assert grad.dtype == torch.float32


def test_chunks_stay_below_an_eighth_of_the_logits() -> None:
    for order, rows, size in ((2, 2048, 49152), (3, 100_000, 151_936), (1, 33, 8)):
        chunk = chunk_rows(order, rows, 4 * size, "cpu")
        assert 2 * chunk <= max(2, rows / 8)
        assert 2 * order * chunk * 4 * size <= 2**27
    assert chunk_rows(2, 5, 4 * 49152, "cpu") == 1


def test_chunks_give_every_multiprocessor_work() -> None:
    """At least 4 rows each, as far as the memory goes."""
    assert chunk_rows(2, 2048, 2 * 49_152, "cuda", 132) == 528
    assert chunk_rows(2, 100_000, 2 * 49_152, "cuda", 132) == 2**29 // (4 * 2 * 49_152) // 8 * 8
    assert chunk_rows(8, 2048, 4 * 262_144, "cuda", 132) == 2**29 // (16 * 4 * 262_144)
    assert chunk_rows(2, 100_000, 2 * 8, "cuda", 132) == 100_000 // 18 // 8 * 8
    assert chunk_rows(2, 100_000, 2 * 49_152, "cuda", 132, 5) == 2**29 // (5 * 2 * 2 * 49_152) // 8 * 8  # with softcap


@pytest.mark.parametrize("dynamic", [False, True])
@SPACE
def test_compiled(space: Any, dynamic: bool) -> None:
    action = ACTIONS["9 of 50"]
    inputs, target = hidden_case(torch.float32, action, (5,), False)

    def both(hidden: Tensor, weight: Tensor) -> Tensor:
        fused = linear_orbit_cross_entropy(hidden, weight, target, action, space)
        return fused + 2 * orbit_cross_entropy(hidden @ weight.T, target, action, space)

    compiled = torch.compile(both, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for mine, plain in zip(value_and_gradients(compiled, inputs), value_and_gradients(both, inputs), strict=True):
        torch.testing.assert_close(mine, plain)


LOGITS = torch.zeros(3, 4, 50)
NINE = ACTIONS["9 of 50"]
TARGET = torch.zeros(4, dtype=torch.int64)


@each(
    ("call", "kind", "message"),
    [
        (
            lambda f: f(TARGET.int(), NINE),
            TypeError,
            r"target: expected the classes' numbers in int64, got torch.int32",
        ),
        (lambda f: f(TARGET[:3], NINE), ValueError, r"target: expected shape \(4,\), one class .*, got \(3,\)"),
        (lambda f: f(TARGET + 50, NINE), ValueError, r"target: expected 0 … 49 or -100, got 50"),
        (lambda f: f(TARGET - 1, NINE), ValueError, r"target: expected 0 … 49 or -100, got -1"),
        (lambda f: f([0] * 4, NINE), TypeError, r"target: expected a torch.Tensor, got list"),
        (lambda f: f(TARGET, NINE, "logits"), ValueError, r"space: expected one of 'probs', 'log_probs', None"),
        (lambda f: f(TARGET, NINE, reduction="max"), ValueError, r"reduction: expected one of 'mean', 'sum', 'none'"),
        (
            lambda f: f(TARGET, NINE, label_smoothing=1.5),
            ValueError,
            r"label_smoothing: expected .* 0 to 1, got 1.5",
        ),
        (
            lambda f: f(TARGET, NINE, label_smoothing="a"),
            TypeError,
            r"label_smoothing: expected a number .*, got str",
        ),
        (lambda f: f(TARGET, NINE, ignore_index=1.0), TypeError, r"ignore_index: expected a whole number, got float"),
        (lambda f: f(TARGET, grid("hflip")), ValueError, r"views on dim 0|whose softmax goes over"),
        (lambda f: f(TARGET, ACTIONS["all of 30"]), ValueError, r"with 30 entries on dim -1"),
        (lambda f: f(TARGET, permutation([[*range(50)]] * 3, group=NINE.group, dim=-2)), ValueError, r"dim -[12]"),
    ],
)
@pytest.mark.parametrize("linear", [False, True])
def test_what_is_refused(call: Any, kind: type[Exception], message: str, linear: bool) -> None:
    hidden, weight = torch.zeros(3, 4, 6), torch.zeros(50, 6)

    def fused(*arguments: Any, **options: Any) -> Tensor:
        return linear_orbit_cross_entropy(hidden, weight, *arguments, **options)

    def from_logits(*arguments: Any, **options: Any) -> Tensor:
        return orbit_cross_entropy(LOGITS, *arguments, **options)

    with pytest.raises(kind, match=message):
        call(fused if linear else from_logits)


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "kind", "message"),
    [
        (torch.zeros(3, 4, 6), torch.zeros(50, 7), None, ValueError, r"weight: expected shape \(V, 6\) for hidden"),
        (torch.zeros(3, 4, 6), torch.zeros(6), None, ValueError, r"weight: expected shape \(V, 6\)"),
        (torch.zeros(3, 4, 6), torch.zeros(50, 6).double(), None, TypeError, r"weight: expected torch.float32 like"),
        (torch.zeros(3, 4, 6), torch.zeros(50, 6), torch.zeros(49), ValueError, r"bias: expected shape \(50,\)"),
        (torch.zeros(2, 4, 6), torch.zeros(50, 6), None, ValueError, r"hidden @ weightᵀ: expected 3 views on dim 0"),
        (torch.zeros(3, 4, 6).long(), torch.zeros(50, 6), None, TypeError, r"hidden: expected float16"),
        ([1.0], torch.zeros(50, 6), None, TypeError, r"hidden: expected a torch.Tensor, got list"),
        (torch.zeros(3, 4, 6), torch.zeros(50, 6, device="meta"), None, ValueError, r"weight: .* on cpu like hidden"),
    ],
)
def test_operands_that_are_refused(hidden: Any, weight: Any, bias: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        linear_orbit_cross_entropy(hidden, weight, TARGET, NINE, bias=bias)


def test_backends_agree() -> None:
    y, target = random_values((3, 6, 50), torch.float32, 3), targets((6,), 50, 2, -100)
    ours = value_and_gradients(lambda t: orbit_cross_entropy(t, target, NINE, "probs"), [y])
    with use_backend("reference"):
        reference = value_and_gradients(lambda t: orbit_cross_entropy(t, target, NINE, "probs"), [y])
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


@each("reduction", ["mean", "sum", "none"])
def test_linear_loss_on_meta(reduction: Any) -> None:
    """Shapes alone, with gradients: what a model on ``meta`` asks for."""
    hidden, weight, bias = (torch.empty(s, device="meta", requires_grad=True) for s in ((2, 4, 5), (3, 5), (3,)))
    target, swap = torch.empty(4, dtype=torch.int64, device="meta"), permutation([[0, 1, 2], [1, 0, 2]])
    loss = linear_orbit_cross_entropy(hidden, weight, target, swap, bias=bias, reduction=reduction)
    assert (loss.shape, loss.device.type) == ((4,) if reduction == "none" else (), "meta")
    loss.sum().backward()
    for t in (hidden, weight, bias):
        assert t.grad is not None
        assert t.grad.shape == t.shape
