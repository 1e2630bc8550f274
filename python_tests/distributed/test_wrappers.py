"""Wrappers whose views are shared by several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import rank_cases
from helpers.ranks import Pool, pool


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    with pool() as found:
        yield found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_several_give_what_one_gives(four: Pool, size: int) -> None:
    assert four(rank_cases.wrappers, size)[0] > 30


def test_choices_and_orders_are_the_same_bit_for_bit(four: Pool) -> None:
    for size in (2, 3):
        assert four(rank_cases.bits, size)[0] > 60
