"""What orbit_act and Action.act take as elements, and bad input to them: errors that name the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from equikern import boxes, field, grid, keypoints, matrix, orbit_act, permutation, tokens
from helpers.bad_input import assert_error
from helpers.looped import each
from helpers.oracles import CASES, powers
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
IDS = tokens(powers([1, 2, 0, 3, 5, 4], 6))
TURN = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])
VECTOR = field(grid("d4"), "vector")


@pytest.mark.parametrize(
    "one", [1, numpy.int64(1), numpy.uint8(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32)], ids=repr
)
def test_one_element_is_a_whole_number_of_any_library(one: Any) -> None:
    x = torch.arange(6).reshape(2, 3)
    assert torch.equal(grid("c4").act(one, x), torch.rot90(x))
    assert torch.equal(
        keypoints("c4").act(one, torch.tensor([3.0, 1.0]), (4, 6)),
        keypoints("c4").act(1, torch.tensor([3.0, 1.0]), (4, 6)),
    )


NO_NUMBERS = [True, numpy.True_, torch.tensor(True), 1.0, numpy.float32(1), torch.tensor(1.0), "1", None, [1]]


@pytest.mark.parametrize("one", NO_NUMBERS, ids=repr)
def test_what_is_no_whole_number_is_no_element(one: Any) -> None:
    for call in (
        lambda: grid("c4").act(one, torch.ones(2, 2)),
        lambda: permutation([[0, 1], [1, 0]]).act(one, torch.ones(2)),
        lambda: keypoints("c4").act(one, torch.zeros(2), (4, 6)),
        lambda: boxes("c4").undo(one, torch.zeros(4), (4, 6)),
    ):
        kind = f"{'numpy.' * isinstance(one, numpy.generic)}{type(one).__name__}"
        with pytest.raises(TypeError, match=f"^g: expected a whole number, got {kind}$"):
            call()


@pytest.mark.parametrize("one", [4, -1, numpy.int64(4), torch.tensor(-1)], ids=repr)
def test_a_number_that_is_no_element(one: Any) -> None:
    with pytest.raises(ValueError, match=f"^g: expected an element 0 … 3 of 'c4', got {int(one)}$"):
        grid("c4").act(one, torch.ones(2, 2))


X, E = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
C4 = grid("c4")
any_act: Any = orbit_act
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str, str, str]] = {
    "x as a list": (lambda: any_act([1], E, C4), TypeError, "x", "a torch.Tensor", "list"),
    "complex x": (lambda: orbit_act(X * 1j, E, C4), TypeError, "x", "float16", "complex64"),
    "sparse x": (lambda: orbit_act(torch.eye(4).to_sparse(), E, C4), TypeError, "x", "a dense tensor", "sparse"),
    "x of one row": (lambda: orbit_act(torch.zeros(4), E, C4), ValueError, "x", "at least 2 dims", r"\(4,\)"),
    "action by name": (lambda: any_act(X, E, "c4"), TypeError, "action", r"an action such as grid\('c4'\)", "str"),
    "elements as a list": (lambda: any_act(X, [0, 1], C4), TypeError, "elements", "a torch.Tensor of int64", "list"),
    "one element": (lambda: any_act(X, 1, C4), TypeError, "elements", "a torch.Tensor of int64", "int"),
    "elements of numpy": (lambda: any_act(X, numpy.zeros(2), C4), TypeError, "elements", "a torch.Tensor", "ndarray"),
    "elements of int32": (lambda: orbit_act(X, E.int(), C4), TypeError, "elements", "int64", "torch.int32"),
    "elements of uint8": (lambda: orbit_act(X, E.byte(), C4), TypeError, "elements", "int64", "torch.uint8"),
    "elements of bool": (lambda: orbit_act(X, E.bool(), C4), TypeError, "elements", "int64", "torch.bool"),
    "elements of float": (lambda: orbit_act(X, E.float(), C4), TypeError, "elements", "int64", "torch.float32"),
    "elements elsewhere": (lambda: orbit_act(X, E.to("meta"), C4), ValueError, "elements", "a tensor on cpu", "meta"),
    "no dim of elements": (
        lambda: orbit_act(X, torch.tensor(1), C4),
        *(ValueError, "elements", r"one for each sample, of shape \(2,\), \(2, 3\) for x", r"\(\)"),
    ),
    "too few": (lambda: orbit_act(X, E[:1], C4), ValueError, "elements", r"of shape \(2,\), \(2, 3\)", r"\(1,\)"),
    "too many": (lambda: orbit_act(X, E.repeat(2), C4), ValueError, "elements", r"of shape \(2,\)", r"\(4,\)"),
    "elements of rows": (
        lambda: orbit_act(X, torch.zeros(2, 3, 4, dtype=torch.int64), C4),
        *(ValueError, "elements", r"of shape \(2,\), \(2, 3\)", r"\(2, 3, 4\)"),
    ),
    "elements that broadcast": (
        lambda: orbit_act(X, torch.zeros(2, 1, dtype=torch.int64), C4),
        *(ValueError, "elements", r"of shape \(2,\), \(2, 3\)", r"\(2, 1\)"),
    ),
    "no batch": (lambda: orbit_act(X[0, 0], E, C4), ValueError, "elements", "none: x has no batch", r"\(2,\)"),
    "beyond the group": (lambda: orbit_act(X, E + 3, C4), ValueError, "elements", "elements 0 … 3 of 'c4'", "4"),
    "below zero": (lambda: orbit_act(X, E - 1, C4), ValueError, "elements", "elements 0 … 3 of 'c4'", "-1"),
    "far below zero": (
        lambda: orbit_act(X, torch.tensor([0, -(2**63)]), C4),
        *(ValueError, "elements", "elements 0 … 3", "-9223372036854775808"),
    ),
    "beyond the samples": (
        lambda: orbit_act(torch.zeros(2, 2), E + 1, matrix(torch.eye(2)[None], closed=False)),
        *(ValueError, "elements", "elements 0 … 0", "2"),
    ),
    "signs of bytes": (
        lambda: orbit_act(torch.zeros(2, 4, dtype=torch.uint8), E, CASES["signed"].action),
        *(TypeError, "x", "a dtype that has negative numbers", "torch.uint8"),
    ),
    "integers by matrices": (
        lambda: orbit_act(torch.zeros(2, 2, dtype=torch.int64), E, TURN),
        *(TypeError, "x", "float16, bfloat16, float32 or float64", "torch.int64"),
    ),
    "numbers as ids": (lambda: orbit_act(torch.zeros(2, 3), E, IDS), TypeError, "x", "token ids", "torch.float32"),
    "channels": (
        lambda: orbit_act(X, E, VECTOR),
        *(ValueError, "x", "a multiple of 2 channels on dim -3", r"3 in shape \(2, 3, 4, 4\)"),
    ),
    "channels as samples": (
        lambda: orbit_act(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, dtype=torch.int64), VECTOR),
        *(ValueError, "elements", r"of shape \(2,\) for x", r"\(2, 2\)"),
    ),
    "another size": (
        lambda: orbit_act(torch.zeros(2, 5), E, CASES["signed"].action),
        *(ValueError, "x", "4 entries on dim -1", r"\(2, 5\)"),
    ),
    "out of another shape": (
        lambda: orbit_act(X, E, C4, out=torch.zeros(2, 3, 4, 5)),
        *(ValueError, "out", r"shape \(2, 3, 4, 4\)", r"\(2, 3, 4, 5\)"),
    ),
    "out of a rectangle": (
        lambda: orbit_act(torch.zeros(2, 4, 6), E * 2 + 1, C4, out=torch.zeros(2, 4, 6)),
        *(ValueError, "out", r"shape \(2, 6, 4\)", r"\(2, 4, 6\)"),
    ),
    "out of another dtype": (
        lambda: orbit_act(X, E, C4, out=torch.zeros(2, 3, 4, 4).double()),
        *(TypeError, "out", "torch.float32", "torch.float64"),
    ),
    "out elsewhere": (
        lambda: orbit_act(X, E, C4, out=torch.zeros(2, 3, 4, 4, device="meta")),
        *(ValueError, "out", "a tensor on cpu", "meta"),
    ),
    "out as a list": (lambda: any_act(X, E, C4, out=[1]), TypeError, "out", "a torch.Tensor", "list"),
    "out in the input": (lambda: orbit_act(X, E, C4, out=X), ValueError, "out", "no range of memory", "one that does"),
    "out in the elements": (
        lambda: orbit_act(E.clone()[:, None], E, CASES["nothing"].action, out=E[:, None]),
        *(ValueError, "out", "no range of memory", "one that does"),
    ),
    "out seen twice": (
        lambda: orbit_act(X, E, C4, out=torch.zeros(3, 4, 4).expand(2, 3, 4, 4)),
        *(ValueError, "out", "memory of its own", "an expanded or overlapping tensor"),
    ),
    "points without a batch": (
        lambda: keypoints("c4").act(E, torch.zeros(2), (4, 6)),
        *(ValueError, "t", r"a batch \(B, …, 2\) for many elements", r"\(2,\)"),
    ),
    "points of another batch": (
        lambda: keypoints("c4").act(E, torch.zeros(3, 2), (4, 6)),
        *(ValueError, "g", r"one for each sample, of shape \(3,\)", r"\(2,\)"),
    ),
    "points beyond the group": (
        lambda: boxes("c4").undo(E + 3, torch.zeros(2, 4), (4, 6)),
        *(ValueError, "g", "elements 0 … 3", "4"),
    ),
    "elements of points in int32": (
        lambda: boxes("c4").act(E.int(), torch.zeros(2, 4), (4, 6)),
        *(TypeError, "g", "int64", "torch.int32"),
    ),
    "points as a list": (lambda: any_points([[0.0, 1.0]] * 2), TypeError, "t", "a torch.Tensor", "list"),
}


def any_points(t: Any) -> Tensor:
    return keypoints("c4").act(E, t, (4, 6))


@each("name", WRONG)
def test_wrong_input_is_named(name: str) -> None:
    assert_error(*WRONG[name])


def test_out_takes_no_gradient() -> None:
    with pytest.raises(ValueError, match=r"^out: an output given by the caller takes no gradient"):
        orbit_act(X.clone().requires_grad_(), E, C4, out=torch.zeros_like(X))
