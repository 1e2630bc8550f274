"""Several processes that share views, and operators on DTensors: one pool of four serves all tests of this file."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

import pytest
from helpers import rank_cases, rank_training, shard_cases
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


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
def test_language_models(four: Pool) -> None:
    from helpers import rank_lm_cases

    for size in (2, 4):
        assert four(rank_lm_cases.models, size)[0] == 7
    assert four(rank_lm_cases.generation, 2)[0] == 4


def test_data_parallel_training_is_that_of_one_process(four: Pool) -> None:
    four(rank_training.data_parallel)


def test_sharded_backbones_train_as_whole_ones(four: Pool) -> None:
    four(rank_training.fully_sharded)


def test_accumulated_second_and_compiled_gradients(four: Pool) -> None:
    four(rank_training.gradients)


def test_meshes_that_do_not_fit_are_refused(four: Pool) -> None:
    four(rank_training.refusals)


def test_every_operator_takes_shards_of_the_batch(four: Pool) -> None:
    assert min(four(shard_cases.operators)) > 80


def test_rows_of_logits_and_single_elements(four: Pool) -> None:
    assert min(four(shard_cases.logits)) == 22


def test_memory_layouts_compiled_calls_and_refusals(four: Pool) -> None:
    four(shard_cases.corners)


def test_a_rank_that_is_elsewhere_or_dies_ends_in_an_error_that_names_the_collective() -> None:
    with pool(2, timeout=2.0) as two:
        start = time.monotonic()
        waited, _ = two(rank_training.elsewhere)
        assert "EquiTune: rank 0 waited in vain for [1] in the all-reduce of the views' sums" in waited, waited
    with pool(2, timeout=30.0) as two:
        start = time.monotonic()
        two.send(rank_training.dies)
        went, told = two.received(0)
        assert went, told
        assert "EquiZero: rank 0 waited in vain for [1] in the all-gather of the scores" in told, told
        assert time.monotonic() - start < 20, "it was found out by the timeout"
        assert not two.received(1)[0]
