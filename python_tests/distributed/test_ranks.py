"""Several processes that share views, and operators on DTensors: one pool of four serves all tests of this file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from equikern import EquiDetector, EquiTune, boxes
from helpers import rank_cases, rank_training, shard_cases
from helpers.ranks import Pool, pool


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    with pool() as found:
        yield found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_several_give_what_one_gives(four: Pool, size: int) -> None:
    assert four(rank_cases.wrappers, size)[0] > 30


def test_each_runs_its_share_of_the_views(four: Pool) -> None:
    b, c, h, w = rank_cases.SQUARE
    for size, counts in ((2, (4, 4)), (3, (3, 3, 2)), (4, (2, 2, 2, 2))):
        found = four(rank_cases.shares, size)[:size]
        assert [each["square"] for each in found] == [[(b * n, c, h, w)] for n in counts]
    b, c, h, w = rank_cases.WIDE  # the first four views are upright, the last four turned
    upright, turned = (2 * b, c, h, w), (2 * b, c, w, h)
    two, three = four(rank_cases.shares, 2), four(rank_cases.shares, 3)
    assert [each["wide"] for each in two[:2]] == [[(4 * b, c, h, w)], [(4 * b, c, w, h)]]
    assert [each["in parts"] for each in two[:2]] == [[upright] * 2, [turned] * 2]
    # Three, one and two, two; who has one batch alone runs a spare one before it.
    assert [each["wide"] for each in three[:3]] == [
        [(b, c, h, w), (3 * b, c, h, w)],
        [(b, c, h, w), turned],
        [(b, c, w, h), turned],
    ]


def test_one_message_for_sums(four: Pool) -> None:
    one, two = {"allreduce": 1}, {"allreduce": 2}
    expected = {
        "mean": (one, two),  # back: the gradients of the sum and of the input
        "sum in parts": (one, two),
        "weights as they are": (one, two),
        "softmax of weights": (two, two),
        "choice": ({"allgather": 1, "allreduce": 1}, two),
        "largest": (one, two),
        "median": ({"allgather": 1}, two),
    }
    for found in four(rank_cases.messages):
        assert found == expected


def test_choices_and_orders_are_the_same_bit_for_bit(four: Pool) -> None:
    for size in (2, 3):
        assert four(rank_cases.bits, size)[0] > 60
    for size in (2, 4):
        assert four(rank_cases.detectors, size)[0] == 12


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
def test_language_models(four: Pool) -> None:
    from helpers import rank_lm_cases

    for size in (2, 4):
        assert four(rank_lm_cases.models, size)[0] == 7
        assert four(rank_lm_cases.generation, size)[0] == 7
        assert four(rank_lm_cases.choices, size)[0] == 8
    four(rank_lm_cases.beside)
    four(rank_lm_cases.sharded)


def test_data_parallel_training_is_that_of_one_process(four: Pool) -> None:
    four(rank_training.data_parallel)


def test_sharded_backbones_train_as_whole_ones(four: Pool) -> None:
    four(rank_training.fully_sharded)


def test_accumulated_second_and_compiled_gradients(four: Pool) -> None:
    four(rank_training.gradients)


def test_meshes_that_do_not_fit_are_refused(four: Pool) -> None:
    four(rank_training.refusals)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_and_groups_that_are_no_more_are_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        group, net = dist.group.WORLD, rank_cases.conv()
        model = EquiTune(net, "d4", "d4", mesh=group)
        with pytest.raises(RuntimeError, match=r"EquiTune: torch\.jit\.trace takes no wrapper with a mesh"):
            torch.jit.trace(model, torch.zeros(1, 2, 4, 4))
    finally:
        dist.destroy_process_group()
    for kind in (EquiTune, EquiDetector):
        with pytest.raises(ValueError, match="mesh: expected one of processes that have met"):
            kind(net, "d4", boxes("d4"), mesh=group)


def test_every_operator_takes_shards_of_the_batch(four: Pool) -> None:
    assert min(four(shard_cases.operators)) > 80


def test_rows_of_logits_and_single_elements(four: Pool) -> None:
    assert min(four(shard_cases.logits)) == 22


def test_memory_layouts_compiled_calls_and_refusals(four: Pool) -> None:
    four(shard_cases.corners)


def test_a_rank_that_is_elsewhere_or_dies_ends_in_an_error_that_names_the_collective() -> None:
    with pool(timeout=30.0) as others:
        others.send(rank_training.waits)
        went, told = others.received(0)
        assert went, told
        for rank in (1, 2, 3):
            assert not others.received(rank)[0], "it was to end"
    said = (
        "EquiTune: rank 0 waited in vain for [1] in the all-reduce of the views' sums",
        "EquiZero: rank 0 waited in vain for [1] in the all-gather of the scores",
        "LambdaEquiTune: rank 0 waited in vain for [2] in the all-reduce of gradient of the weighted sums",
        "EquiDetector: rank 0 waited in vain for [3] in the all-gather of what is found in the views",
    )
    for (message, seconds), expected in zip(told, said, strict=True):
        assert expected in message
        assert seconds < 20, f"it was found out by the timeout: {message}"
