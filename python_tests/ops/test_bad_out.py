"""An out= that does not fit: an error that names it, what was expected and what came, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import grid, orbit, orbit_mean, orbit_reduce, orbit_select, orbit_weighted_mean, symmetrize, trivial
from helpers.bad_input import assert_error
from helpers.looped import each
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread", "backend")

C4 = grid("c4")
X, Y, W = torch.ones(2, 3, 6, 6), torch.ones(4, 2, 3, 6, 6), torch.ones(4)
VIEWS, ONE = (4, 2, 3, 6, 6), (2, 3, 6, 6)

RUNS: dict[str, tuple[Callable[[Any], object], tuple[int, ...]]] = {
    "orbit": (lambda out: orbit(X, C4, out=out), VIEWS),
    "symmetrize": (lambda out: symmetrize(X, C4, out=out), ONE),
    "orbit_mean": (lambda out: orbit_mean(Y, C4, out=out), ONE),
    "orbit_mean plus": (lambda out: orbit_mean(Y, C4, plus=X, out=out), ONE),
    "orbit_weighted_mean": (lambda out: orbit_weighted_mean(Y, W, C4, out=out), ONE),
    "orbit_select": (lambda out: orbit_select(Y, W, C4, out=out), ONE),
    "orbit_select by y's rows": (lambda out: orbit_select(Y, "max", trivial(C4.group), out=out), ONE),
    "orbit_reduce": (lambda out: orbit_reduce(Y, C4, "max", out=out), ONE),
}
EVERY = pytest.mark.parametrize("name", RUNS)


def overlapping(shape: tuple[int, ...]) -> Tensor:
    """Rows that share all but one element, as unfold gives them."""
    return torch.zeros(10_000).as_strided(shape, [*[700] * (len(shape) - 2), 1, 1])


def negated(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.complex64).conj().imag


# how out differs: given the right shape, a wrong out; the error, what it expected and what it got
WRONG: dict[str, tuple[Callable[[tuple[int, ...]], object], type[Exception], str, str]] = {
    "a list": (lambda shape: [0.0], TypeError, "torch.Tensor", "list"),
    "a pair": (lambda shape: (torch.zeros(shape), torch.zeros(shape)), TypeError, "torch.Tensor", "tuple"),
    "sparse": (lambda shape: torch.zeros(shape).to_sparse(), TypeError, "dense", "sparse_coo"),
    "float64": (lambda shape: torch.zeros(shape).double(), TypeError, "torch.float32", "torch.float64"),
    "bfloat16": (lambda shape: torch.zeros(shape).bfloat16(), TypeError, "torch.float32", "torch.bfloat16"),
    "meta": (lambda shape: torch.zeros(shape, device="meta"), ValueError, "on cpu", "on meta"),
    "one dim less": (lambda shape: torch.zeros(shape[1:]), ValueError, r"shape \(", r"\("),
    "another side": (lambda shape: torch.zeros((*shape[:-1], 7)), ValueError, r"shape \(.*6, 6\)", r"6, 7\)"),
    "a broadcast dim": (lambda shape: torch.zeros((1, *shape[1:])), ValueError, r"shape \(", r"\(1, "),
    "empty": (lambda shape: torch.zeros(0), ValueError, r"shape \(", r"\(0,\)"),
    "expanded": (lambda shape: torch.zeros(shape[1:]).expand(shape), ValueError, "memory of its own", "strides"),
    "overlapping rows": (overlapping, ValueError, "memory of its own", r"strides \(.*1, 1\)"),
    "negated lazily": (negated, ValueError, "memory that holds its values", "negated"),
}


@EVERY
@each("wrong", WRONG)
def test_out_that_does_not_fit(name: str, wrong: str) -> None:
    run, shape = RUNS[name]
    make, error, expected, got = WRONG[wrong]
    out = make(shape)
    assert_error(lambda: run(out), error, "out", expected, got)
    if isinstance(out, Tensor) and out.device.type == "cpu" and not out.is_sparse:
        assert not out.any(), "written all the same"


@EVERY
def test_out_that_requires_grad(name: str) -> None:
    run, shape = RUNS[name]
    out = torch.zeros(shape, requires_grad=True)
    with pytest.raises(ValueError, match=r"^out: .*takes no gradient.*requires grad.*no_grad"):
        run(out)
    assert not out.any()


@pytest.mark.parametrize(
    "call",
    [
        lambda leaf, out: orbit(leaf[0], C4, out=out.expand(4, *ONE).contiguous()),
        lambda leaf, out: symmetrize(leaf[0], C4, out=out),
        lambda leaf, out: orbit_mean(leaf, C4, out=out),
        lambda leaf, out: orbit_mean(Y, C4, plus=leaf[0], out=out),
        lambda leaf, out: orbit_weighted_mean(Y, leaf[:, 0, 0, 0, 0], C4, out=out),
        lambda leaf, out: orbit_select(leaf, W, C4, out=out),
        lambda leaf, out: orbit_reduce(leaf, C4, "std", out=out),
        lambda leaf, out: orbit_reduce(leaf, C4, "mean_std", out=(out, out.clone())),
    ],
    ids=["orbit", "symmetrize", "mean", "plus", "weights", "select", "std", "mean_std"],
)
def test_out_where_an_input_requires_grad(call: Callable[[Tensor, Tensor], object]) -> None:
    leaf = torch.ones(VIEWS, requires_grad=True)
    with pytest.raises(ValueError, match=r"^out(\[0\])?: .*takes no gradient.*requires grad.*no_grad"):
        call(leaf, torch.zeros(ONE))


@each(
    ("call", "argument"),
    [
        (lambda b: orbit(b[0], C4, out=b[:4]), "out"),
        (lambda b: orbit(b[3], C4, out=b[1:5]), "out"),
        (lambda b: symmetrize(b[0], C4, out=b[0]), "out"),
        (lambda b: symmetrize(b[0], C4, out=b[0].transpose(-1, -2)), "out"),
        (lambda b: orbit_mean(b[:4], C4, out=b[2]), "out"),
        (lambda b: orbit_select(b[:4], W, C4, out=b[0]), "out"),
        (lambda b: orbit_weighted_mean(b[:4], W, C4, out=b[3]), "out"),
        (lambda b: orbit_weighted_mean(Y, b.flatten()[:4], C4, None, out=b[0]), "out"),
        (lambda b: orbit_select(Y, b.flatten()[:4], C4, out=b[0]), "out"),
        (lambda b: orbit_reduce(b[:4], C4, "sum", out=b[0]), "out"),
        (lambda b: orbit_reduce(b[:4], C4, "mean_std", out=(b[0], b[4])), r"out\[0\]"),
        (lambda b: orbit_reduce(b[:4], C4, "mean_std", out=(b[4], b[3])), r"out\[1\]"),
        (lambda b: orbit_reduce(b[:4], C4, "mean_std", out=(b[4], b[4])), r"out\[1\]"),
    ],
)
def test_out_that_shares_memory(call: Callable[[Tensor], object], argument: str) -> None:
    block = torch.ones(5, *ONE)
    assert_error(
        lambda: call(block), ValueError, argument, "shares no range of memory with the inputs", "one that does"
    )
    assert bool((block == 1).all())


@pytest.mark.parametrize(
    ("out", "got"),
    [(torch.zeros(ONE), "Tensor"), ((torch.zeros(ONE),), "tuple"), ((torch.zeros(ONE),) * 3, "tuple")],
    ids=["one tensor", "one of two", "three"],
)
def test_mean_std_wants_a_pair(out: Any, got: str) -> None:
    message = f"^out: expected a pair of tensors .*mean, std.*got {got}"
    with pytest.raises(TypeError, match=message):
        orbit_reduce(Y, C4, "mean_std", out=out)


@pytest.mark.parametrize("at", [0, 1])
def test_each_of_a_pair_must_fit(at: int) -> None:
    out = [torch.zeros(ONE), torch.zeros(ONE)]
    out[at] = torch.zeros(3, 3)
    expected = r"shape \(2, 3, 6, 6\)"
    assert_error(
        lambda: orbit_reduce(Y, C4, "mean_std", out=(out[0], out[1])),
        ValueError,
        rf"out\[{at}\]",
        expected,
        r"\(3, 3\)",
    )
