"""Matrix actions: the group law, products rounded once, gradients of matrices that are not orthogonal."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from equikern import (
    Action,
    EquiTune,
    GroupAction,
    MatrixAction,
    MatrixSamples,
    cyclic_group,
    dihedral_group,
    grid,
    matrix,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_weighted_mean,
    symmetrize,
)
from equikern.core import autograd
from equikern.views.maps import Maps
from helpers.accuracy import assert_rounded_once
from helpers.calls import CALLS, Call
from helpers.looped import each
from helpers.strategies import FLOATS, LAYOUTS, laid_out, random_values
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")


def turn(angle: float) -> list[list[float]]:
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]


def turns(order: int, size: int = 2) -> Tensor:
    """Rotations of the first two of so many coordinates."""
    mats = torch.eye(size, dtype=torch.float64).repeat(order, 1, 1)
    for k in range(order):
        mats[k, :2, :2] = torch.tensor(turn(2 * math.pi * k / order), dtype=torch.float64)
    return mats


def skewed(mats: Tensor, seed: int = 0) -> Tensor:
    """The same group in other coordinates, where it is not orthogonal."""
    d = mats.shape[-1]
    basis = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2 * torch.eye(d)
    return basis @ mats @ basis.inverse()


def mirrored(order: int) -> Tensor:
    """The dihedral group: element order·s + k turns after a mirroring where s = 1."""
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    return torch.cat([turns(order), turns(order) @ mirror])


def samples(count: int, size: int) -> Tensor:
    """Random rotations (and, in odd rows, reflections)."""
    return torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64))[0]


ACTIONS: dict[str, Callable[[], MatrixAction]] = {
    "c5": lambda: matrix(turns(5)),
    "d3": lambda: matrix(mirrored(3)),
    "c3 skewed": lambda: matrix(skewed(turns(3))),
    "c3 of 3": lambda: matrix(skewed(turns(3, 3))),
    "c2 of 4": lambda: matrix(skewed(turns(2, 4))),
    "c3 of 5": lambda: matrix(skewed(turns(3, 5))),
    "mirror of 1": lambda: matrix([[[1.0]], [[-1.0]]]),
    "twice": lambda: matrix(turns(3)[[0, 1, 2, 0, 1, 2]], cyclic_group(6)),
}
EVERY = pytest.mark.parametrize("name", ACTIONS)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def times(mats: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Every view's product, and a bound of the sum of its terms' absolute values; float64."""
    return torch.einsum("gij,g...j->g...i", mats, y), torch.einsum("gij,g...j->g...i", mats.abs(), y.abs())


def inverses(action: MatrixAction | MatrixSamples) -> Tensor:
    return torch.linalg.inv(action.mats)


@each(*EVERY.args)
@DTYPES
@each("layout", LAYOUTS)
def test_products_are_rounded_once(name: str, dtype: torch.dtype, layout: str) -> None:
    action = ACTIONS[name]()
    d, order = action.size, action.order
    x = laid_out(random_values((3, 7, d), dtype, 1), layout)
    y = laid_out(random_values((order, 3, 7, d), dtype, 2), layout)
    weights = random_values((order, 3), torch.float64 if dtype == torch.float64 else torch.float32, 3, "positive")
    views, size = times(action.mats, x.double().expand(order, *x.shape))
    assert_rounded_once(orbit(x, action), views, size, 2 * d)
    back, size = times(inverses(action), y.double())
    assert_rounded_once(orbit_mean(y, action), back.mean(0), size.mean(0), 2 * d + order)
    share = (weights.double() / weights.double().sum(0)).reshape(order, 3, 1, 1)
    assert_rounded_once(
        orbit_weighted_mean(y, weights, action), (back * share).sum(0), (size * share).sum(0), 3 * d + 3 * order
    )
    largest = orbit_reduce(y, action, "max")
    assert isinstance(largest, Tensor)
    assert_rounded_once(largest, back.amax(0), size.amax(0), 2 * d)
    chosen, index = orbit_select(y, weights, action, "max", return_index=True)
    assert torch.equal(index, weights.argmax(0))
    rows = torch.arange(3)
    assert_rounded_once(chosen, back[index, rows], size[index, rows], 2 * d)
    fixed, size = times(action.mats, x.double().expand(order, *x.shape))
    assert_rounded_once(symmetrize(x, action), fixed.mean(0), size.mean(0), 2 * d + order)


@EVERY
def test_law(name: str) -> None:
    action = ACTIONS[name]()
    x = random_values((4, action.size), torch.float64, 1)
    for g in range(action.order):
        for h in range(action.order):
            gh = int(action.group.multiply[g, h])
            torch.testing.assert_close(action.act(gh, x), action.act(g, action.act(h, x)))
    torch.testing.assert_close(orbit(x, action), torch.stack([action.act(g, x) for g in range(action.order)]))
    torch.testing.assert_close(orbit_mean(orbit(x, action), action), x)


TRUE = [c for c in CALLS.values() if c.differentiable and c.name not in ("select", "select identity")]


def arguments(call: Call, action: Action, size: int) -> list[Tensor]:
    tensors = [random_values((2, 1, size), torch.float64, 3, call.kind)]
    if call.takes != "image":
        views = [action.act(g, tensors[0] + 0.1 * g) for g in range(action.order)]  # so that undone, they are alike
        tensors = [torch.stack(views)]
    if call.takes in ("weights", "scores"):
        tensors.append(random_values((action.order, 2), torch.float64, 4, "positive"))
    if call.takes == "plus":
        tensors.append(random_values((2, 1, size), torch.float64, 4))
    return [t.requires_grad_(i == 0 or call.of_both) for i, t in enumerate(tensors)]


@each("call", TRUE)
@pytest.mark.parametrize("name", ["c5", "c3 skewed", "c3 of 3"])
def test_derivatives(call: Call, name: str) -> None:
    action = ACTIONS[name]()
    leaves = arguments(call, action, action.size)
    assert gradcheck(lambda *t: call.run(action, *t), leaves, fast_mode=True)
    assert gradgradcheck(lambda *t: call.run(action, *t), leaves, fast_mode=True)


def test_building_blocks() -> None:
    """What only a higher derivative of a public operator calls."""
    action = ACTIONS["c3 skewed"]()
    back = action.inverse_maps
    forth = back.T
    index = torch.tensor([2, 1])
    shapes = {"x": (2, 2), "y": (3, 2, 2), "w": (3, 2)}
    blocks: dict[str, Callable[..., Any]] = {
        "xw": lambda x, w: autograd.orbit(x, forth, 0.5, w),
        "yw": lambda y, w: autograd.total(y, back, 0.5, w),
        "x": lambda x: autograd.symmetrize(x, back),
        "xy": lambda x, y: autograd.dots(x, y, forth, 2),
        "xyw": lambda x, y, w: autograd.orbit_dot_by(x, y, forth.placed(y), w),
        "y": lambda y: autograd.take(y, index, back),
        " x": lambda x: autograd.put(x, index, forth),
        "x ": lambda x: autograd.act(x, index, back),
        "y ": lambda y: autograd.each(y, 0, back),
    }
    for takes, call in blocks.items():
        leaves = [
            random_values(shapes[t], torch.float64, i, "positive").requires_grad_() for i, t in enumerate(takes.strip())
        ]
        assert gradcheck(call, leaves, fast_mode=True)
        assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("gradient", ["mean", "identity", "selected"])
def test_gradients_of_select_are_the_stand_ins(gradient: Any) -> None:
    action = ACTIONS["c3 skewed"]()
    y = random_values((3, 4, 2), torch.float64, 1).requires_grad_()
    scores, incoming = random_values((3, 4), torch.float64, 2), random_values((4, 2), torch.float64, 3)
    back = times(inverses(action), y)[0]
    index = scores.argmin(0)
    stand_in = {"mean": back.mean(0), "identity": back[0], "selected": back[index, torch.arange(4)]}[gradient]
    (expected,) = torch.autograd.grad(stand_in, y, incoming)
    (ours,) = torch.autograd.grad(orbit_select(y, scores, action, gradient=gradient), y, incoming)
    torch.testing.assert_close(ours, expected)


@DTYPES
def test_gradients_in_every_dtype(dtype: torch.dtype) -> None:
    action = ACTIONS["c3 of 3"]()
    y = random_values((3, 5, 3), dtype, 1).requires_grad_()
    incoming = random_values((5, 3), dtype, 2)
    (grad,) = torch.autograd.grad(orbit_mean(y, action), y, incoming)
    exact, size = times(inverses(action).mT, incoming.double().expand(3, 5, 3))
    assert grad.dtype == dtype
    assert_rounded_once(grad, exact / 3, size / 3, 8)
    std = orbit_reduce(y, action, "std")
    assert isinstance(std, Tensor)
    assert std.dtype == dtype
    with torch.no_grad():
        fused = orbit_reduce(y, action, "std")
    assert isinstance(fused, Tensor)
    torch.testing.assert_close(fused, std.detach(), rtol=16 * torch.finfo(dtype).eps, atol=0)


def test_results_repeat_with_any_number_of_threads() -> None:
    action = ACTIONS["c3 of 3"]()
    y = random_values((3, 40_000, 3), torch.float32, 1)
    weights = random_values((3, 4), torch.float32, 2, "positive")
    found = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            leaf, factors = y.unflatten(1, (4, 10_000)).requires_grad_(), weights.clone().requires_grad_()
            out = orbit_weighted_mean(leaf, factors, action)
            found.append((out, *torch.autograd.grad(out, (leaf, factors), torch.ones_like(out))))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_empty_tensors() -> None:
    action = ACTIONS["d3"]()
    assert orbit(torch.empty(0, 2), action).shape == (6, 0, 2)
    assert orbit_mean(torch.empty(6, 3, 0, 2), action).shape == (3, 0, 2)
    weights = torch.ones(6, 0, requires_grad=True)
    assert orbit_weighted_mean(torch.empty(6, 0, 5, 2), weights, action).shape == (0, 5, 2)
    none = torch.ones(6, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(orbit_weighted_mean(torch.empty(6, 3, 0, 2), none, action).sum(), none)
    assert torch.equal(grad, torch.zeros(6, 3))


def test_given_memory() -> None:
    action = ACTIONS["c5"]()
    x, y = torch.randn(3, 4, 2), torch.randn(5, 3, 4, 2)
    out = torch.empty(5, 3, 2, 4).transpose(-1, -2)
    assert orbit(x, action, out=out) is out
    assert torch.equal(out, orbit(x, action))
    mean = torch.empty(3, 8, 2)[:, ::2]
    assert torch.equal(orbit_mean(y, action, out=mean), orbit_mean(y, action))


def test_the_group_is_read_off_the_matrices() -> None:
    action = matrix(mirrored(3))
    assert action.group.order == 6
    assert isinstance(action, GroupAction)
    assert not torch.equal(action.group.multiply, action.group.multiply.T)
    assert matrix(turns(4)).group == cyclic_group(4)
    given = matrix(turns(5), cyclic_group(5))
    assert given == matrix(turns(5).numpy()) == matrix(turns(5).tolist())
    assert given.views.kind.name == "matrix"


def test_float32_matrices_are_close_enough() -> None:
    action = matrix(turns(7).float())
    assert action.group == cyclic_group(7)
    x = random_values((100, 2), torch.float32, 1)
    torch.testing.assert_close(orbit_mean(orbit(x, action), action), x)


def test_maps_are_compared_by_their_contents() -> None:
    action = matrix(turns(3))
    assert matrix(turns(3)).maps == action.maps
    assert matrix(skewed(turns(3))).maps != action.maps  # of the same code
    assert action.maps.subset([0]) == matrix(turns(5)).maps.subset([0])
    adjoint = action.maps.T
    (rows, _) = (adjoint.views.kind.rows(adjoint.views, t) for t in adjoint.tables.own)
    assert torch.equal(rows, action.mats.mT)
    assert torch.equal(rows[0], action.mats[0])
    copied = pickle.loads(pickle.dumps(action))
    assert copied == action
    assert hash(copied) == hash(action)


def test_matrices_of_another_orbit_are_not_the_users_memory() -> None:
    mats = turns(3)
    action = matrix(mats)
    mats.zero_()
    assert torch.equal(action.mats, turns(3))


def test_samples_need_no_group() -> None:
    mats = samples(4, 3)
    action = matrix(mats, closed=False)
    assert isinstance(action, MatrixSamples)
    assert not isinstance(action, GroupAction)
    x = random_values((5, 3), torch.float64, 1)
    torch.testing.assert_close(orbit(x, action), torch.einsum("gij,bj->gbi", mats, x))
    torch.testing.assert_close(orbit_mean(orbit(x, action), action), x)
    again = pickle.loads(pickle.dumps(action))
    assert again.maps == action.maps
    with pytest.raises(ValueError, match="not a group: row 1 after row 1 is not among the 4 rows; samples"):
        matrix(torch.cat([torch.eye(3, dtype=torch.float64)[None], mats])[:4])


def test_vectors_out_of_an_image() -> None:
    """A backbone from images to directions (B, 2): turned images, turned directions."""
    torch.manual_seed(0)
    quarter = [[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [-1.0, 0.0]]
    action = matrix(list(quarter), grid("c4").group)
    model = EquiTune(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double(), "c4", action)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x.rot90(1, (-2, -1))), action.act(1, model(x)))
    points = EquiTune(nn.Linear(2, 2).double(), matrix(skewed(mirrored(3))), matrix(skewed(mirrored(3))))
    y = torch.randn(4, 2, dtype=torch.float64)
    for g in range(6):
        torch.testing.assert_close(points(points.inp.act(g, y)), points.inp.act(g, points(y)))


def test_wrapper_of_a_rectangle_has_matrix_outputs() -> None:
    torch.manual_seed(0)
    action = matrix(turns(4), grid("c4").group)
    model = EquiTune(lambda x: x.mean((-1, -3))[..., :2], "c4", action)
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    expected = torch.stack(
        [action.act(-k % 4, torch.rot90(x, k, (-2, -1)).mean((-1, -3))[..., :2]) for k in range(4)]
    ).mean(0)
    torch.testing.assert_close(model(x), expected)


E = [[1.0, 0.0], [0.0, 1.0]]
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "text": (lambda: matrix("c4"), TypeError, "mats: expected numbers"),  # type: ignore[arg-type]
    "ragged": (lambda: matrix([E, [[1.0]]]), TypeError, "mats: expected numbers"),
    "complex": (lambda: matrix(torch.eye(2, dtype=torch.cfloat)[None]), TypeError, "mats: expected real numbers"),
    "one matrix": (lambda: matrix(E), ValueError, r"mats: expected square matrices .* got shape \(2, 2\)"),  # type: ignore[arg-type]
    "oblong": (lambda: matrix(torch.ones(2, 2, 3)), ValueError, r"got shape \(2, 2, 3\)"),
    "none": (lambda: matrix(torch.ones(0, 2, 2)), ValueError, r"got shape \(0, 2, 2\)"),
    "large": (lambda: matrix(torch.eye(65)[None]), ValueError, "at most 64 rows, got 65"),
    "infinite": (lambda: matrix([E, [[1.0, math.inf], [0.0, 1.0]]]), ValueError, r"finite numbers, got .* in row 1"),
    "singular": (lambda: matrix([E, [[1.0, 1.0], [1.0, 1.0]]]), ValueError, r"an inverse, got .* in row 1"),
    "zero": (lambda: matrix([E, [[0.0, 0.0], [0.0, 0.0]]], closed=False), ValueError, r"an inverse, got .* in row 1"),
    "no identity": (lambda: matrix(turns(4)[1:]), ValueError, "row 0 must be the identity"),
    "same rows": (lambda: matrix(turns(3)[[0, 1, 1]]), ValueError, "rows 1 and 2 are the same"),
    "no group": (lambda: matrix(turns(5)[:3]), ValueError, "not a group: row 1 after row 2 is not among the 3 rows"),
    "another group": (
        lambda: matrix(mirrored(3), cyclic_group(6)),
        ValueError,
        "mats: not an action of C6: r1 after r2 is not row 3, which is to be r3",
    ),
    "wrong order": (lambda: matrix(turns(4), dihedral_group(4)), ValueError, "expected 8 rows, .* got 4"),
    "group by name": (lambda: matrix(turns(4), "c4"), TypeError, "group: expected a Group, got str"),  # type: ignore[call-overload]
    "samples of a group": (
        lambda: matrix(turns(4), cyclic_group(4), closed=False),  # type: ignore[call-overload]
        ValueError,
        "group: expected None for samples",
    ),
    "other size": (
        lambda: orbit(torch.ones(4, 3), matrix(turns(4))),
        ValueError,
        r"x: .* 2×2 matrices, got shape \(4, 3\)",
    ),
    "no dims": (lambda: orbit(torch.tensor(1.0), matrix(turns(4))), ValueError, r"x: .* got shape \(\)"),
    "integers": (lambda: orbit(torch.ones(2, dtype=torch.int64), matrix(turns(4))), TypeError, "x: .* got torch.int64"),
    "integer views": (
        lambda: orbit_select(torch.ones(4, 2, dtype=torch.int64), torch.ones(4), matrix(turns(4))),
        TypeError,
        "y: .* got torch.int64",
    ),
    "views of another size": (
        lambda: orbit_mean(torch.ones(4, 3), matrix(turns(4))),
        ValueError,
        r"y: .* \(\|G\|, …, 2\)",
    ),
    "mixed words": (
        lambda: Action("x", Maps("matrix 2: x hw")),
        ValueError,
        "views: expected such as 'matrix 3: x x', got 'matrix 2: x hw'",
    ),
    "matrices of another size": (
        lambda: orbit(torch.ones(2), Action("x", Maps("matrix 2: x x", matrix(turns(2, 3)).maps.tables))),
        ValueError,
        r"table: expected a contiguous one of torch.float32 and shape \(4, 2, 2, 2\) .*, got .*\(4, 2, 3, 3\)",
    ),
    "matrices of more elements": (
        lambda: orbit(torch.ones(2), Action("x", Maps("matrix 2: x x", matrix(turns(3)).maps.tables))),
        ValueError,
        r"table: expected a contiguous one of torch.float32 and shape \(4, 2, 2, 2\) .*, got .*\(4, 3, 2, 2\)",
    ),
}


@each("name", WRONG)
def test_wrong_input_is_named(name: str) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call()


def test_nothing_is_rounded_under_autocast() -> None:
    action = matrix(turns(3))
    x, y = random_values((50, 2), torch.float32, 1), random_values((3, 50, 2), torch.float32, 2)
    with torch.autocast("cpu", torch.bfloat16):
        views, mean = orbit(x, action), orbit_mean(y, action)
    assert torch.equal(views, orbit(x, action))
    assert torch.equal(mean, orbit_mean(y, action))


def test_numpy_and_float32_arrays() -> None:
    mats = numpy.array([turn(0.0), turn(math.pi)], dtype=numpy.float32)
    assert matrix(mats).group == cyclic_group(2)
