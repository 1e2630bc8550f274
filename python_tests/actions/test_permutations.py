"""Permutation and token actions: what the constructors accept and refuse, and what the group does to ids and logits."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from equikern import (
    EquiTune,
    TokenAction,
    cyclic_group,
    dihedral_group,
    grid,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    permutation,
    product_action,
    product_group,
    symmetrize,
    tokens,
    trivial,
)
from helpers.looped import each
from helpers.mapped import shown
from helpers.oracles import powers
from helpers.strategies import laid_out, layouts, random_values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

CYCLE = powers([1, 2, 0, 3, 4], 3)
SWAP = powers([0, 1, 2, 4, 3], 2)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[TokenAction, int]:
    """A cyclic group of order 1, 2, 3 or 5 that moves few or many of the words."""
    order = draw(st.sampled_from([1, 2, 3, 5]))
    size = draw(st.integers(order, 90))
    shuffled = draw(st.permutations(range(size)))
    perm = list(range(size))
    for start in range(0, order * draw(st.integers(0, size // order)), order):
        cycle = shuffled[start : start + order]
        for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            perm[a] = b
    return tokens(powers(perm, order), group=cyclic_group(order)), size


@pytest.mark.usefixtures("backend")
@given(data=st.data())
def test_orbit_of_tokens(data: st.DataObject) -> None:
    action, size = data.draw(vocabularies())
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=3)))
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    seed = data.draw(st.integers(0, 2**16))
    ids = torch.randint(0, size, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    ids = laid_out(ids, data.draw(layouts))
    views = orbit(ids, action)
    assert views.dtype == dtype
    assert torch.equal(views, action.perm.to(dtype)[:, ids.long()])
    for g in range(action.order):
        assert torch.equal(action.act(g, ids), views[g])
    into = laid_out(torch.zeros(views.shape, dtype=dtype), "sliced")
    assert torch.equal(orbit(ids, action, out=into), views)


@pytest.mark.usefixtures("backend")
@given(data=st.data())
def test_a_model_of_words_becomes_equivariant(data: st.DataObject) -> None:
    """g acts on the ids of the input, so the logits, transformed back and averaged, follow."""
    action, size = data.draw(vocabularies())
    table = random_values((size, size), torch.float64, data.draw(st.integers(0, 99)))
    ids = torch.arange(size)

    def model(t: Tensor) -> Tensor:
        return orbit_mean(table[orbit(t, action)], action.logits)

    for g in range(action.order):
        torch.testing.assert_close(model(action.act(g, ids)), action.logits.act(g, model(ids)))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("ids", [[0, 5], [-1, 2], [2**31 + 1, 0]])
def test_ids_outside_the_vocabulary(ids: list[int]) -> None:
    wrong = next(i for i in ids if not 0 <= i < 5)
    with pytest.raises(ValueError, match=f"expected token ids from 0 to 4, got {wrong}$"):
        orbit(torch.tensor(ids), tokens(CYCLE))


@pytest.mark.parametrize("views_per_forward", [None, 1, 2])
def test_equitune_of_a_language_model(views_per_forward: int | None) -> None:
    action = tokens(CYCLE)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    tuned = EquiTune(model, action, action.logits, views_per_forward=views_per_forward)
    ids = torch.tensor([[0, 1, 3], [4, 2, 2]])
    expected = torch.stack([model(action.perm[g][ids])[..., action.perm[g]] for g in range(3)]).mean(0)
    torch.testing.assert_close(tuned(ids), expected)
    for g in range(3):
        torch.testing.assert_close(tuned(action.act(g, ids)), action.logits.act(g, tuned(ids)))


def test_cartpole() -> None:
    """C2 negates the state and swaps the two moves."""
    state = permutation([[0, 1, 2, 3]] * 2, [[1] * 4, [-1] * 4])
    moves = permutation([[0, 1], [1, 0]])
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    policy = EquiTune(net, state, moves)
    x = random_values((6, 4), torch.float32)
    torch.testing.assert_close(policy(-x), policy(x).flip(-1))


def test_g_inverse_is_not_g() -> None:
    """Invisible at |G| = 2: the logits are gathered back by y[perm[g, v]]."""
    action = permutation(CYCLE)
    y = torch.tensor([[0.0] * 5, [10.0, 20.0, 30.0, 0.0, 0.0], [0.0] * 5])
    assert orbit_reduce(y, action, "sum").tolist() == [20.0, 30.0, 10.0, 0.0, 0.0]  # type: ignore[union-attr]
    assert orbit(y[1], action)[1].tolist() == [30.0, 10.0, 20.0, 0.0, 0.0]


def test_few_moved_entries_are_kept_as_a_list() -> None:
    perm = torch.arange(50_000).repeat(2, 1)
    perm[1, [7, 40_000]] = torch.tensor([40_000, 7])
    maps = tokens(perm).logits.maps
    (table,) = maps.tables.own
    assert table.tolist() == [[7, 40_000]] + 2 * [[7, 40_000], [40_000, 7]]
    assert table.dtype == torch.int32
    assert maps.views.words == (".", "x")
    x = torch.arange(50_000)
    assert shown(maps, x, 1).tolist() == perm[1].tolist()
    (turned,) = permutation(powers([*range(1, 40), 0], 40)).maps.tables.own
    assert turned[0].tolist() == list(range(40))  # all are listed


def test_maps_are_made_from_the_contents() -> None:
    assert permutation(CYCLE).maps == permutation(torch.tensor(CYCLE)).maps == permutation(np.array(CYCLE)).maps
    assert permutation(CYCLE) == permutation(CYCLE)
    assert permutation(CYCLE) != permutation(CYCLE, dim=-2)
    assert len({permutation(CYCLE), permutation(CYCLE), tokens(CYCLE)}) == 2


@pytest.mark.parametrize(
    "action", [permutation(CYCLE, dim=-2), tokens(CYCLE), permutation([[0, 1]] * 2, [[1, 1], [-1, 1]])]
)
def test_copies_and_pickles_are_the_same_action(action: Any) -> None:
    for copied in (copy.deepcopy(action), pickle.loads(pickle.dumps(action))):
        assert copied == action
        assert torch.equal(copied.perm, action.perm)


def test_a_group_that_acts_through_a_quotient_is_named() -> None:
    action = permutation([[0, 1], [1, 0], [0, 1], [1, 0]], group=cyclic_group(4))
    assert action.group == cyclic_group(4)
    with pytest.raises(ValueError, match="rows 0 and 2 are the same; expected different ones, or group="):
        permutation([[0, 1], [1, 0], [0, 1], [1, 0]])


def test_the_group_is_read_off_the_rows() -> None:
    s3 = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]]
    group = permutation(s3).group
    for g in range(6):
        for h in range(6):
            assert s3[int(group.multiply[g, h])] == [s3[g][i] for i in s3[h]]
    assert permutation(CYCLE).group == cyclic_group(3)


def test_product_of_commuting_actions() -> None:
    action = product_action(tokens(CYCLE), tokens(SWAP))
    assert action.group == product_group(cyclic_group(3), cyclic_group(2))
    for g in range(3):
        for h in range(2):
            assert action.perm[2 * g + h].tolist() == [CYCLE[g][SWAP[h][i]] for i in range(5)]  # type: ignore[attr-defined]
    signed = product_action(permutation(SWAP), permutation([list(range(5))] * 2, [[1] * 5, [-1] * 5]))
    x = torch.arange(5.0)
    assert signed.act(3, x).tolist() == [-0.0, -1.0, -2.0, -4.0, -3.0]
    flips = product_action(grid("vflip"), grid("hflip"))
    assert set(flips.words) == set(grid("flips").words)
    assert product_action(permutation(SWAP), permutation(SWAP), permutation(SWAP)).order == 8


S3_PART = powers([1, 0, 2], 2)
TABLE_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([[0, 1], [1, 1]], {}, ValueError, r"perm: row 1 is no permutation: 1 comes from 0 and from 1"),
    ([[0, 1], [2, 0]], {}, ValueError, r"perm: expected entries from 0 to 1, got 2 in row 1 at 0"),
    ([[0, 1], [-1, 0]], {}, ValueError, r"perm: expected entries from 0 to 1, got -1 in row 1 at 0"),
    ([[1, 0], [0, 1]], {}, ValueError, r"perm: row 0 must be the identity, but it takes 0 to 1"),
    ([[0, 1, 2], [1, 2, 0]], {}, ValueError, r"perm: not a group: row 1 after row 1 is not among the 2 rows"),
    ([0, 1], {}, ValueError, r"perm: expected a table of shape \(\|G\|, n\), got shape \(2,\)"),
    (torch.zeros(1, 0, dtype=torch.int64), {}, ValueError, r"perm: expected a table of shape"),
    ([[0.0, 1.0]], {}, TypeError, r"perm: expected a table of integers, got torch.float32"),
    ([[True, False]], {}, TypeError, r"perm: expected a table of integers, got torch.bool"),
    ([[0, 1], [0]], {}, TypeError, r"perm: expected a table of integers of shape"),
    ("words", {}, TypeError, r"perm: expected a table of integers of shape"),
    (CYCLE, {"group": "c3"}, TypeError, r"group: expected a Group, got str"),
    (CYCLE, {"group": cyclic_group(2)}, ValueError, r"perm: expected 2 rows, one per element of C2, got 3"),
    (
        [CYCLE[0], CYCLE[1], CYCLE[1]],
        {"group": cyclic_group(3)},
        ValueError,
        r"perm: not an action of C3: r1 after r1 is not row 2, which is to be r2",
    ),
]


@pytest.mark.parametrize("make", [permutation, tokens])
@each(("rows", "options", "kind", "message"), TABLE_ERRORS)
def test_rows_that_are_no_action(make: Any, rows: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(rows, **options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"signs": [[1] * 5]}, ValueError, r"signs: expected the shape of perm, \(3, 5\), got \(1, 5\)"),
        ({"signs": [[1] * 5, [1, 1, 0, 1, 1], [1] * 5]}, ValueError, r"signs: expected 1 or -1, got 0 in row 1 at 2"),
        ({"signs": [[-1] * 5] * 3}, ValueError, r"signs: row 0 belongs to the identity"),
        ({"signs": [[1] * 5, [-1] * 5, [1] * 5]}, ValueError, r"not a group"),
        ({"signs": [[1.0] * 5] * 3}, TypeError, r"signs: expected a table of integers"),
        ({"dim": 1}, ValueError, r"dim: expected a negative number, counted from the end"),
        ({"dim": None}, TypeError, r"dim: expected a whole number, got NoneType"),
    ],
)
def test_signs_and_dims_that_are_wrong(options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        permutation(CYCLE, **options)


@pytest.mark.parametrize(
    ("actions", "kind", "message"),
    [
        ((permutation(S3_PART), permutation(powers([0, 2, 1], 2))), ValueError, r"but g1 of .* and g1 of .* do not"),
        ((grid("c4"), grid("hflip")), ValueError, r"rot90 of 'c4' and hflip of 'hflip' do not"),
        ((permutation(SWAP), tokens(SWAP)), TypeError, r"of one kind \(grid, permutation or tokens\), got"),
        ((permutation(SWAP),), TypeError, r"two or more"),
        ((permutation(SWAP), permutation(S3_PART)), ValueError, r"permutations of one size, got 5"),
        ((permutation(SWAP), permutation(CYCLE, dim=-2)), ValueError, r"of one dim, got dims -1 and -2"),
        ((grid("c2"), trivial(cyclic_group(2))), ValueError, r"got the trivial one"),
        ((grid("flips3d", dims=3), grid("c4")), ValueError, r"one number of dims, got 3 \('flips3d'\) and 2 \('c4'\)"),
    ],
)
def test_products_that_are_refused(actions: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        product_action(*actions)


Y = torch.zeros(3, 2, 5)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: orbit(torch.zeros(2, 4), permutation(CYCLE)),
            ValueError,
            r"5 entries on dim -1, .* got shape \(2, 4\)",
        ),
        (lambda: orbit(torch.zeros(5), permutation(CYCLE, dim=-2)), ValueError, r"x: expected a tensor \(…\) with 5"),
        (lambda: orbit_mean(Y[:2], permutation(CYCLE)), ValueError, r"y: expected 3 views on dim 0"),
        (lambda: orbit_mean(Y, permutation(CYCLE, dim=-2)), ValueError, r"y: expected a tensor \(\|G\|, …\) with 5"),
        (lambda: orbit(torch.zeros(5), tokens(CYCLE)), TypeError, r"x: expected token ids of dtype int32 or int64"),
        (lambda: orbit_mean(Y, tokens(CYCLE)), TypeError, r"action: expected one on outputs, .* logits acts on logits"),
        (lambda: symmetrize(Y, tokens(CYCLE)), TypeError, r"action: expected one on numbers"),
        (
            lambda: orbit_select(Y, Y, permutation(CYCLE)),
            ValueError,
            r"scores: expected shape y.shape\[:k\] with 1 ≤ k ≤ 2",
        ),
        (
            lambda: orbit(torch.zeros(2, dtype=torch.uint8), permutation([[0, 1]] * 2, [[1, 1], [-1, 1]])),
            TypeError,
            r"x: expected a dtype that has negative numbers .*, got torch.uint8",
        ),
        (
            lambda: orbit_select(
                torch.zeros(2, 2).bool(), torch.zeros(2), permutation([[0, 1]] * 2, [[1, 1], [-1, 1]])
            ),
            TypeError,
            r"y: expected a dtype that has negative numbers .*, got torch.bool",
        ),
        (
            lambda: EquiTune(torch.nn.ReLU(), tokens(CYCLE), trivial(dihedral_group(3))),
            ValueError,
            r"out: expected an action",
        ),
    ],
)
def test_tensors_that_do_not_fit(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_actions_are_made_under_any_default_device() -> None:
    with torch.device("meta"):
        action = tokens(CYCLE)
        assert product_action(permutation(SWAP), permutation(SWAP)).order == 4
        assert action.maps.tables.own[0].device.type == "cpu"
    assert action == tokens(CYCLE)
