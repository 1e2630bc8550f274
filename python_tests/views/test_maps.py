"""Maps as matrices on a small space: adjoints are transposes, inverses inverses, for every kind and in every kernel."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from math import prod

import pytest
import torch
from equikern import field, grid, matrix, orbit, orbit_mean, orbit_select, permutation
from equikern.views import of
from equikern.views.maps import Maps, Tables
from equikern.views.matrix import matrix_table
from helpers.looped import each
from helpers.mapped import of_ids, permuting, shown
from helpers.oracles import CASES
from helpers.strategies import generator, random_values
from torch import Tensor

OPERATORS = torch.ops.equikern


def shuffled(order: int, size: int, signs: bool, seed: int = 0) -> Tensor:
    """Sources of any permutations, not those of a group."""
    g = generator(seed)
    rows = torch.stack([torch.randperm(size, generator=g) for _ in range(order)])
    return torch.where(torch.rand(rows.shape, generator=g) < 0.4, ~rows, rows) if signs else rows


def few(order: int, size: int) -> Tensor:
    """Sources that move two entries each, so that those that stay are not listed."""
    rows = torch.arange(size).repeat(order, 1)
    for g in range(1, order):
        rows[g, [g, -g]] = rows[g, [-g, g]]
    return rows


def matrices(order: int, size: int, words: str | None = None) -> Maps:
    mats = torch.randn(order, size, size, generator=generator(size), dtype=torch.float64) + 2 * torch.eye(size)
    table = Tables.made(matrix_table(mats, torch.linalg.inv(mats)))
    return Maps(f"matrix {size}: {' '.join('x' * order)}" if words is None else f"mixed {size}: {words}", table)


# Maps, and the shape of what they act on; every view of that shape.
SPACES: dict[str, tuple[Maps, tuple[int, ...]]] = {
    "still": (Maps(". . ."), (3,)),
    "images": (Maps("hw hW Hw HW wh Wh wH WH"), (3, 3)),
    "rectangles": (Maps("hw hW Hw HW"), (2, 3)),
    "volumes": (Maps("dhw whd DHW hwD Wdh"), (2, 2, 2)),
    "boxes": (Maps("dhw Dhw DhW dHw"), (2, 1, 3)),
    "permutations": (permuting(shuffled(4, 7, False)), (7,)),
    "few entries": (permuting(few(3, 12)), (12,)),
    "signs": (permuting(shuffled(3, 5, True)), (5,)),
    "rows": (permuting(shuffled(3, 4, True, 1), -2), (4, 2)),
    "fields": (field(grid("d4"), "regular").maps, (8, 2, 2)),
    "two fields": (field(grid("c4"), "vector").maps, (4, 2, 2)),
    "fields of volumes": (field(grid("flips3d"), "vector").maps, (3, 2, 1, 2)),
    "matrices": (matrices(3, 4), (2, 4)),
    "large matrices": (matrices(2, 9), (9,)),
    "mixed": (matrices(4, 3, "hw Wh hW wH"), (3, 2, 2)),
    "mixed volumes": (matrices(2, 2, "dhw Whd"), (4, 2, 2, 2)),
}
EVERY = pytest.mark.parametrize("name", SPACES)


def dense(shape: tuple[int, ...], view: Callable[[Tensor], Tensor]) -> Tensor:
    """The matrix of a linear map, from what it makes of the unit vectors."""
    n = prod(shape)
    return torch.stack([view(unit.reshape(shape)).flatten() for unit in torch.eye(n, dtype=torch.float64)], 1)


def in_torch(maps: Maps, shape: tuple[int, ...]) -> Tensor:
    return torch.stack([dense(shape, lambda t, g=g: shown(maps, t, g)) for g in range(maps.views.order)])


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@EVERY
def test_adjoints_and_inverses(name: str) -> None:
    maps, shape = SPACES[name]
    forth = in_torch(maps, shape)
    close(in_torch(maps.T, shape), forth.mT)
    close(in_torch(maps.inverse, shape), torch.linalg.inv(forth))
    close(in_torch(maps.inverse.T, shape), torch.linalg.inv(forth).mT)
    close(in_torch(maps.T.inverse, shape), torch.linalg.inv(forth).mT)
    assert maps == maps.T.T
    assert maps.inverse.inverse == maps
    assert maps.T.inverse == maps.inverse.T
    assert maps.T.tables is maps.inverse.tables is maps.tables
    if not maps.views.kind.computes:  # which are orthogonal
        assert maps.inverse == maps.T


@each(*EVERY.args)
@pytest.mark.usefixtures("backend")
def test_every_operator_applies_them(name: str) -> None:
    """orbit, act, reduce, select, dot, each with the maps, their adjoints, their inverses and the adjoints of those."""
    maps, shape = SPACES[name]
    order, n = maps.views.order, prod(shape)
    x = random_values((3, *shape), torch.float64, 1)
    y = random_values((order, 3, *shape), torch.float64, 2)
    weights = random_values((order, 3), torch.float64, 3)
    elements = torch.tensor([order - 1, 0, order // 2])
    flat_x, flat_y = x.reshape(3, n), y.reshape(order, 3, n)
    for some in (maps, maps.T, maps.inverse, maps.T.inverse):
        mats, call = in_torch(some, shape), (some.code, some.table(x))
        views = torch.einsum("gij,bj->gbi", mats, flat_x)
        moved = torch.einsum("gij,gbj->gbi", mats, flat_y)
        close(OPERATORS.orbit(x, *call, 1.0, None, None).reshape(order, 3, n), views)
        close(OPERATORS.orbit(x, *call, 0.5, weights, None).reshape(order, 3, n), 0.5 * weights[..., None] * views)
        put = OPERATORS.orbit(x, *call, 1.0, None, elements).reshape(order, 3, n)
        hit = (torch.arange(order)[:, None] == elements).double()[..., None]
        close(put, hit * views)
        close(OPERATORS.act(x, elements, *call).reshape(3, n), views[elements, torch.arange(3)])
        close(OPERATORS.reduce(y, *call, "sum", 1.0, weights).reshape(3, n), (weights[..., None] * moved).sum(0))
        close(OPERATORS.reduce(y, *call, "max", 1.0, None).reshape(3, n), moved.amax(0))
        close(OPERATORS.reduce(y, *call, "median", 1.0, None).reshape(3, n), middle(moved))
        close(OPERATORS.mean_plus(y, x, *call).reshape(3, n), (moved + views).mean(0))
        mean, std = OPERATORS.mean_std(y, *call)
        close(mean.reshape(3, n), moved.mean(0))
        close(std.reshape(3, n), moved.std(0, correction=0))
        close(OPERATORS.dot(x, y, *call, 2), (views * flat_y).sum(-1))
        out, dots = OPERATORS.orbit_dot(x, y, *call, weights)
        close(out.reshape(order, 3, n), weights[..., None] * views)
        close(dots, (views * flat_y).sum(-1))
        chosen, index = OPERATORS.select(y, weights, *call, True)
        assert torch.equal(index, weights.argmin(0))
        close(chosen.reshape(3, n), moved[index, torch.arange(3)])
        close(OPERATORS.take(y, elements, *call).reshape(3, n), moved[elements, torch.arange(3)])


def middle(v: Tensor) -> Tensor:
    ordered = v.sort(0).values
    return (ordered[(len(v) - 1) // 2] + ordered[len(v) // 2]) / 2


@pytest.mark.usefixtures("backend")
def test_rectangles_that_are_turned() -> None:
    """A map from one space to another: its adjoint and its inverse go the other way."""
    for code, shape, turned in (("Wh wH", (2, 3), (3, 2)), ("whd WHD", (1, 2, 3), (3, 2, 1))):
        maps = Maps(code)
        forth, back = in_torch(maps, shape), in_torch(maps.T, turned)
        assert torch.equal(back, forth.mT)
        assert maps.inverse == maps.T
        x = random_values((2, *shape), torch.float64)
        views = OPERATORS.orbit(x, code, None, 1.0, None, None)
        assert views.shape == (2, 2, *turned)
        assert torch.equal(views.flatten(2), torch.einsum("gij,bj->gbi", forth, x.flatten(1)))
        assert torch.equal(OPERATORS.reduce(views, maps.T.code, None, "sum", 0.5, None), x)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_maps_of_token_ids(dtype: torch.dtype) -> None:
    """Functions of the ids: their inverses stand in the other half of the table, which is the adjoints', too."""
    becomes = shuffled(4, 9, False)
    maps, ids = of_ids(becomes), torch.arange(9, dtype=dtype)
    back = maps.inverse
    assert back == maps.T
    assert back.inverse == maps
    views = OPERATORS.orbit(ids, maps.code, maps.table(ids), 1.0, None, None)
    assert torch.equal(views, becomes.to(dtype))
    undone = OPERATORS.orbit(ids, back.code, back.table(ids), 1.0, None, None)
    assert torch.equal(undone, becomes.argsort(1).to(dtype))
    for g in range(4):
        assert torch.equal(shown(maps, ids, g), views[g])
        assert torch.equal(shown(back, views[g], g), ids)


# -- some of the views


@EVERY
@each("elements", [[0], [1, 0], [-1], [1, 1, 0]])
def test_subsets(name: str, elements: list[int]) -> None:
    maps, shape = SPACES[name]
    elements = [g % maps.views.order for g in elements]
    forth = in_torch(maps, shape)
    some = maps.subset(elements)
    assert some.views.order == len(elements)
    close(in_torch(some, shape), forth[elements])
    close(in_torch(some.T, shape), forth[elements].mT)
    close(in_torch(some.inverse, shape), torch.linalg.inv(forth[elements]))
    for other in (maps.T, maps.inverse, maps.T.inverse):
        close(in_torch(other.subset(elements), shape), in_torch(other, shape)[elements])
    assert maps.T.subset(elements) == some.T
    assert maps.inverse.subset(elements) == some.inverse


@EVERY
def test_the_subset_of_all_is_the_maps(name: str) -> None:
    maps, _ = SPACES[name]
    order = maps.views.order
    assert maps.subset(range(order)) is maps
    turned = maps.subset(list(reversed(range(order))))
    assert turned.subset(list(reversed(range(order)))) == maps


@each(*EVERY.args)
@pytest.mark.usefixtures("backend")
def test_operators_take_subsets(name: str) -> None:
    maps, shape = SPACES[name]
    x = random_values((2, *shape), torch.float64)
    elements = [maps.views.order - 1, 0]
    some = maps.subset(elements)
    views = OPERATORS.orbit(x, maps.code, maps.table(x), 1.0, None, None)
    assert torch.equal(OPERATORS.orbit(x, some.code, some.table(x), 1.0, None, None), views[elements])


def test_other_words_leave_the_table() -> None:
    maps = field(grid("c4"), "vector").maps
    other = maps.with_words(["hw", "hw", "hw", "hw"])
    assert other.tables is maps.tables
    assert other.code == "field 2 signed: hw hw hw hw"
    close(in_torch(other, (2, 1, 1)), field(grid("c4"), "vector").mats)


# -- tables


def test_maps_are_equal_by_their_contents() -> None:
    one, same = (permuting(shuffled(3, 6, True, 5)) for _ in range(2))
    other = permuting(torch.cat((shuffled(3, 6, True, 5)[:, 1:], shuffled(3, 6, True, 5)[:, :1]), 1))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != one.T
    assert one != "permutation"
    assert Maps("hw Wh") == Maps("hw Wh") != Maps("hw wH")
    elsewhere = one.with_tables(*(t.clone() for t in one.tables.own))
    assert elsewhere == one
    assert elsewhere.tables is not one.tables
    assert "permutation" in repr(one)


def test_tables_come_in_the_dtype_of_the_accumulator() -> None:
    mats, perm = matrices(2, 3), permuting(shuffled(2, 3, False))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.zeros(3, dtype=dtype)
        table = mats.table(x)
        assert table is not None
        assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        found = perm.table(x)
        assert found is not None
        assert found.dtype == torch.int32
    assert Maps("hw").table(torch.zeros(2, 2)) is None
    torch.testing.assert_close(mats.tables.own[1], mats.tables.own[0].float(), rtol=0, atol=0)


def test_tables_are_copied_to_a_device_once() -> None:
    for maps in (matrices(2, 3), permuting(shuffled(2, 3, False))):
        first = maps.tables.on(torch.device("meta"))
        assert all(t.device.type == "meta" for t in first)
        assert [t.shape for t in first] == [t.shape for t in maps.tables.own]
        assert maps.tables.on(torch.device("meta")) is first
        assert maps.tables.on(torch.device("cpu")) is maps.tables.own
        assert maps.T.tables.on(torch.device("meta")) is first


def test_tables_hold_no_memory_of_the_users() -> None:
    mats = torch.eye(2, dtype=torch.float64)[None].repeat(2, 1, 1)
    mats[1] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    perm = torch.tensor([[0, 1], [1, 0]])
    actions = matrix(mats), permutation(perm)
    before = [[t.clone() for t in action.maps.tables.own] for action in actions]
    mats.zero_()
    perm.zero_()
    for action, kept in zip(actions, before, strict=True):
        for table, copy in zip(action.maps.tables.own, kept, strict=True):
            assert torch.equal(table, copy)
            assert not table.requires_grad


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_actions_made_in_any_mode_take_part_in_gradients(made_in: Callable[[], torch.inference_mode]) -> None:
    with made_in():
        flip = matrix([[[1, 0], [0, 1]], [[0, 2], [0.5, 0]]])
        actions = [flip, permutation([[0, 1], [1, 0]]), field(grid("hflip"), flip)]
        for action in actions:
            action.maps.tables.on(torch.device("meta"))
    for action in actions:
        x = torch.randn(*((2, 3, 3) if action.sides else (5, 2)), requires_grad=True)
        (grad,) = torch.autograd.grad(orbit_mean(orbit(x, action), action).sum(), x)
        torch.testing.assert_close(grad, torch.ones_like(x))


def test_matrices_that_require_grad_are_taken_as_they_are() -> None:
    mats = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]], requires_grad=True)
    assert not orbit(torch.ones(3, 2), matrix(mats)).requires_grad


@pytest.mark.parametrize("name", ["d4", "cycle3", "signed", "matrix3", "flow", "mixed"])
def test_what_an_action_says_is_what_its_maps_do(name: str) -> None:
    case = CASES[name]
    maps = case.action.maps
    assert case.action.inverse_maps == maps.inverse
    x = random_values(case.shape(2, side=3), torch.float64)
    for some, expected in (
        (maps, case.forward),
        (maps.inverse, case.inverse),
        (maps.T, case.adjoints[1] or case.inverse),
        (maps.inverse.T, case.adjoints[0] or case.forward),
    ):
        for g in range(case.order):
            assert torch.equal(shown(some, x, g), expected[g](x))


def test_tables_are_not_pickled_twice() -> None:
    """An action is its group and what it was made of; a model of two copies of it has one."""
    action = matrix([[[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    first, second = pickle.loads(pickle.dumps((action, action)))
    assert first is second
    assert first.maps == action.maps
    index = torch.tensor([1.0, 0.0])
    y = random_values((2, 3, 2), torch.float32)
    assert torch.equal(orbit_select(y, index, first), orbit_select(y, index, action))


def test_many_codes_do_not_fill_memory() -> None:
    """Codes are kept up to a number, and made anew beyond it."""
    first = of("permutation -1 777777: . x")
    for size in range(800_000, 806_000):
        of(f"tokens {size}: x")
    again = of("permutation -1 777777: . x")
    assert again is not first
    assert (again.code, again.size, again.back) == (first.code, first.size, first.back)


def codes_of(maps: Sequence[Maps]) -> list[str]:
    return [one.code for one in maps]


def test_codes_do_not_tell_contents() -> None:
    """So a compiled graph serves all actions of one shape."""
    assert codes_of([permuting(shuffled(3, 9, False, s)) for s in (1, 2)]) == ["permutation -1 9: x x x"] * 2
