"""Actions: act(g∘h, x) = act(g, act(h, x)), agreement with torch, and what wrong words are told."""

from __future__ import annotations

import copy
import pickle
import re
from itertools import product
from math import prod

import pytest
import torch
from equikern import (
    GridAction,
    GroupAction,
    cyclic_group,
    dihedral_group,
    field,
    grid,
    matrix,
    permutation,
    product_group,
    tokens,
    trivial,
)
from equikern.views.grid import compose, turn_grid
from helpers.looped import each
from helpers.mapped import shown
from helpers.oracles import CASES, NAMED, Case
from helpers.repository import ROOT
from torch import Tensor

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=repr)
WORDS = ["".join(w) for a, b in (("h", "w"), ("w", "h")) for w in product((a, a.upper()), (b, b.upper()))]


def numbered(case: Case) -> Tensor:
    shape = case.shape(2, side=5)
    return torch.arange(prod(shape), dtype=torch.float32 if case.multiplies else torch.int64).reshape(shape)


@each(*EVERY.args)
def test_action_law(case: Case) -> None:
    action = case.action
    assert isinstance(action, GroupAction)
    x = numbered(case)
    for g, h in product(range(case.order), repeat=2):
        gh = int(action.group.multiply[g, h])
        assert torch.equal(action.act(gh, x), action.act(g, action.act(h, x)))
    assert torch.equal(action.act(0, x), x)


@each(*EVERY.args)
def test_act_is_torchs(case: Case) -> None:
    x = numbered(case)
    for g in range(case.order):
        assert torch.equal(case.action.act(g, x), case.forward[g](x))
        assert torch.equal(case.inverse[g](case.forward[g](x)), x)


@each(*EVERY.args)
def test_inverse_maps_undo(case: Case) -> None:
    x, maps, back = numbered(case), case.action.maps, case.action.inverse_maps
    for g in range(case.order):
        assert torch.equal(shown(back, shown(maps, x, g), g), x)
        assert torch.equal(shown(maps, x, g), case.action.act(g, x))
    assert maps.views.words == case.action.words
    assert back.views.order == len(case.action.words)
    assert back.inverse == maps


@pytest.mark.parametrize("outer", WORDS)
@each("inner", WORDS)
def test_compose(outer: str, inner: str) -> None:
    x = torch.arange(5 * 3).reshape(5, 3)
    assert torch.equal(turn_grid(x, compose(outer, inner)), turn_grid(turn_grid(x, inner), outer))


def test_quarter_turn_of_a_rectangle() -> None:
    x = torch.arange(6).reshape(2, 3)
    assert torch.equal(grid("c4").act(1, x), torch.rot90(x))


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_one_action(name: str) -> None:
    assert grid(name) is grid(name)
    assert grid(name).square == any(word[0] in "wW" for word in grid(name).words)
    assert grid(name).dims == 2
    assert name in repr(grid(name))


def test_every_name_is_tested_and_documented() -> None:
    with pytest.raises(ValueError, match="expected one of") as error:
        grid("?")
    names = str(error.value).partition("one of ")[2].partition(", got")[0].split(", ")
    assert set(names) == {*NAMED, "flips3d", "rot3d", "oct"}  # those of volumes: test_volumes.py
    page = (ROOT / "docs" / "reference" / "actions.md").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"^    {name} +\d+ ", grid.__doc__ or "", re.MULTILINE), name
        assert f"`{name}`" in page


def test_trivial_moves_nothing() -> None:
    action = trivial(dihedral_group(3))
    x = torch.arange(5)
    assert (action.dims, action.order, action.square) == (0, 6, False)
    assert all(torch.equal(action.act(g, x), x) for g in range(6))


def test_equality_is_that_of_group_and_words() -> None:
    assert GridAction(cyclic_group(2), ["hw", "hW"], "mirror") == grid("hflip")
    assert hash(GridAction(cyclic_group(2), ["hw", "hW"], "mirror")) == hash(grid("hflip"))
    assert grid("hflip") != grid("vflip")
    # the same words, another group: C2 × C2 and C4 both act on rows by the flip
    words = ["hw", "hW", "hw", "hW"]
    assert GridAction(cyclic_group(4), words) != GridAction(product_group(cyclic_group(2), cyclic_group(2)), words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hw", "Wh", "HW", "Wh"], "words: not an action of C4: r1 after r2 gives 'wH', but r3 is 'Wh'"),
        (["hw", "hW", "HW", "Hw"], "words: not an action of C4: r1 after r1 gives 'hw', but r2 is 'HW'"),
        (["hW", "Wh", "HW", "wH"], "words: not an action of C4: e after e gives 'hw', but e is 'hW'"),
    ],
)
def test_words_that_are_no_action_name_the_pair(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridAction(cyclic_group(4), words)


def test_the_inverse_order_of_turns_is_no_action_of_d4() -> None:
    """Inverting each element gives an anti-homomorphism: accepted for C4, which is abelian, refused for D4."""
    assert GridAction(cyclic_group(4), grid("c4").inverse_maps.views.words).order == 4
    with pytest.raises(ValueError, match="not an action of D4"):
        GridAction(dihedral_group(4), grid("d4").inverse_maps.views.words)


def test_actions_are_made_under_any_default_device() -> None:
    with torch.device("meta"):
        action = GridAction(cyclic_group(4), ["hw", "Wh", "HW", "wH"])
        assert trivial(cyclic_group(3)).maps.code == ". . ."
    assert action == grid("c4")


@EVERY
def test_copies_and_pickles_are_the_same_action(case: Case) -> None:
    action = case.action
    for same in (copy.copy(action), copy.deepcopy(action), pickle.loads(pickle.dumps(action))):
        assert type(same) is type(action)
        assert same == action
        assert hash(same) == hash(action)
        assert (same.name, same.words, same.dims) == (action.name, action.words, action.dims)
        for a, b in zip(same.maps.tables.own, action.maps.tables.own, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(same.act(action.order - 1, numbered(case)), action.act(action.order - 1, numbered(case)))


def test_actions_are_compared_by_what_they_do() -> None:
    """Each pair differs in one thing alone; several in no more than the contents of their tables."""
    turn = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [-1.0, 0.0]]]
    other = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -2.0], [-0.5, 0.0]]]
    pairs = [
        (permutation([[0, 1, 2], [1, 0, 2]]), permutation([[0, 1, 2], [2, 1, 0]])),
        (permutation([[0, 1, 2], [1, 0, 2]]), permutation([[0, 1, 2], [1, 0, 2]], dim=-2)),
        (permutation([[0, 1], [1, 0]]), permutation([[0, 1], [1, 0]], [[1, 1], [-1, -1]])),
        (tokens([[0, 1, 2], [1, 0, 2]]), tokens([[0, 1, 2], [2, 1, 0]])),
        (tokens([[0, 1], [1, 0]]), permutation([[0, 1], [1, 0]])),
        (matrix(turn), matrix(other)),
        (matrix(turn, closed=False), matrix(other, closed=False)),
        (field(grid("hflip"), matrix(turn)), field(grid("hflip"), matrix(other))),
        (field(grid("hflip"), "regular"), field(grid("vflip"), "regular")),
        (field(grid("hflip"), "vector"), field(grid("hflip"), "regular")),
    ]
    for a, b in pairs:
        assert a != b
        assert a == pickle.loads(pickle.dumps(a)) != b
        assert len({a, b, copy.deepcopy(a), pickle.loads(pickle.dumps(b))}) == 2
