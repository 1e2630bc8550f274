"""Operators on DTensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import shard_cases
from helpers.ranks import Pool, pool


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    with pool() as found:
        yield found


def test_every_operator_takes_shards_of_the_batch(four: Pool) -> None:
    assert min(four(shard_cases.operators)) > 80


def test_rows_of_logits_and_single_elements(four: Pool) -> None:
    assert min(four(shard_cases.logits)) == 20


def test_memory_layouts_compiled_calls_and_refusals(four: Pool) -> None:
    four(shard_cases.corners)
