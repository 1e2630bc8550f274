"""Groups: laws, constructors, products, and the message that names the law a wrong table breaks."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch
from equikern import Group, cyclic_group, dihedral_group, grid, product_group

GROUPS = {
    **{f"C{n}": cyclic_group(n) for n in (1, 2, 3, 4, 7)},
    **{f"D{n}": dihedral_group(n) for n in (1, 2, 3, 4, 6)},
    "C2 x C3": product_group(cyclic_group(2), cyclic_group(3)),
    "D3 x C2 x C2": product_group(dihedral_group(3), cyclic_group(2), cyclic_group(2)),
    "grid d4": grid("d4").group,
    "grid flips": grid("flips").group,
}
EVERY = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@EVERY
def test_laws(group: Group) -> None:
    table, n = group.multiply.tolist(), group.order
    for g in range(n):
        assert table[0][g] == table[g][0] == g
        assert table[g][int(group.inverse[g])] == table[int(group.inverse[g])][g] == 0
        assert sorted(table[g]) == list(range(n))
    for g, h, k in product(range(n), repeat=3):
        assert table[table[g][h]][k] == table[g][table[h][k]]


@EVERY
def test_attributes(group: Group) -> None:
    assert len(group.names) == len(set(group.names)) == group.order
    assert group.names[0] == "e"
    for t in (group.multiply, group.inverse):
        assert t.dtype == torch.int64
        assert t.device.type == "cpu"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_cyclic_group_adds(n: int) -> None:
    group = cyclic_group(n)
    for j, k in product(range(n), repeat=2):
        assert int(group.multiply[j, k]) == (j + k) % n


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_dihedral_group_is_that_of_matrices(n: int) -> None:
    """Element n·s + k as the matrix of k turns after s flips; the table is matrix multiplication."""
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(n, 2, 2)
    flip = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    matrices = torch.cat([turn, turn @ flip])
    table = dihedral_group(n).multiply
    for g, h in product(range(2 * n), repeat=2):
        torch.testing.assert_close(matrices[g] @ matrices[h], matrices[table[g, h]])


def test_dihedral_group_is_not_abelian_from_three_on() -> None:
    table = dihedral_group(3).multiply
    assert not torch.equal(table, table.T)


def test_d4_is_the_dihedral_group() -> None:
    assert grid("d4").group == dihedral_group(4)
    assert grid("c4").group == cyclic_group(4)
    assert grid("flips").group == product_group(cyclic_group(2), cyclic_group(2))


def test_product_group_multiplies_factor_by_factor() -> None:
    a, b, c = cyclic_group(2), dihedral_group(3), cyclic_group(2)
    group = product_group(a, b, c)
    elements = list(product(range(2), range(6), range(2)))
    for (i, (g1, g2, g3)), (j, (h1, h2, h3)) in product(enumerate(elements), repeat=2):
        expected = int(a.multiply[g1, h1]), int(b.multiply[g2, h2]), int(c.multiply[g3, h3])
        assert elements[int(group.multiply[i, j])] == expected


def test_product_of_one_group_is_that_group() -> None:
    assert product_group(dihedral_group(3)) == dihedral_group(3)


def test_equality_is_that_of_the_tables() -> None:
    assert cyclic_group(2) == Group([[0, 1], [1, 0]], names=["e", "swap"], name="swaps")
    assert hash(cyclic_group(2)) == hash(Group([[0, 1], [1, 0]]))
    assert cyclic_group(6) != dihedral_group(3)
    assert cyclic_group(2) != "C2"


def test_the_table_is_a_copy() -> None:
    table = torch.tensor([[0, 1], [1, 0]])
    group = Group(table)
    table[0, 0] = 1
    assert int(group.multiply[0, 0]) == 0


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_groups_live_on_the_cpu_whatever_the_default_device(device: str) -> None:
    with torch.device(device):
        assert product_group(cyclic_group(2), dihedral_group(3)).inverse.tolist()[0] == 0
        assert Group([[0, 1], [1, 0]]).multiply.device.type == "cpu"


# a quasigroup with identity 0 that is not associative, the smallest there is
LOOP = [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 0], [0, 1]], r"multiply: element 0 must be the identity, but 0∘g = 1 for g = 0"),
        ([[0, 1, 2], [1, 2, 0], [1, 0, 1]], r"multiply: element 0 must be the identity, but g∘0 = 1 for g = 2"),
        ([[0, 1], [1, 1]], r"multiply: g1 has no inverse"),
        ([[0, 1], [1, 2]], r"multiply: g1∘g1 = 2 is not an element 0 … 1"),
        ([[0, 1], [-1, 0]], r"multiply: g1∘e = -1 is not an element 0 … 1"),
        (LOOP, r"multiply: not associative: \(g1∘g1\)∘g2 ≠ g1∘\(g1∘g2\)"),
    ],
    ids=["left identity", "right identity", "inverse", "outside", "negative", "associativity"],
)
def test_a_wrong_table_names_the_broken_law(table: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Group(table)


def test_the_elements_named_do_break_associativity() -> None:
    with pytest.raises(ValueError, match="not associative") as caught:
        Group(LOOP)
    found = re.search(r"\((\w+)∘(\w+)\)∘(\w+)", str(caught.value))
    assert found is not None
    g, h, k = (0 if name == "e" else int(name[1:]) for name in found.groups())
    assert LOOP[LOOP[g][h]][k] != LOOP[g][LOOP[h][k]]
