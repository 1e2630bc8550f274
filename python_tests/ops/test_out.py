"""out=: the caller's memory in any layout receives the same bits, and autograd is told that it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import orbit, orbit_mean, orbit_reduce, orbit_select, orbit_weighted_mean, symmetrize
from equikern.reductions import REDUCTIONS
from helpers.looped import each
from helpers.oracles import CASES
from helpers.strategies import LAYOUTS, bits, blank, random_values
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
ACTION = CASES["d4"].action
SIDE = 7
WEIGHTS = random_values((8, 2), torch.float32, 2, "positive")

Run = Callable[..., Any]
# name → the operator on x (2, 3, 7, 7) or y (8, 2, 3, 7, 7), with and without out
RUNS: dict[str, Run] = {
    "orbit": lambda x, **out: orbit(x, ACTION, **out),
    "symmetrize": lambda x, **out: symmetrize(x, ACTION, **out),
    "mean": lambda y, **out: orbit_mean(y, ACTION, **out),
    "mean plus": lambda y, **out: orbit_mean(y, ACTION, plus=y[0].flip(-1), **out),
    "weighted": lambda y, **out: orbit_weighted_mean(y, WEIGHTS, ACTION, **out),
    "weighted softmax": lambda y, **out: orbit_weighted_mean(y, WEIGHTS, ACTION, "softmax", **out),
    "select": lambda y, **out: orbit_select(y, WEIGHTS, ACTION, **out),
    **{op: (lambda y, op=op, **out: orbit_reduce(y, ACTION, op, **out)) for op in REDUCTIONS if op != "mean_std"},
}
EVERY = pytest.mark.parametrize("name", RUNS)
OF_FLOATS = pytest.mark.parametrize("name", [name for name in RUNS if name != "vote"])


def argument(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (2, 3, SIDE, SIDE) if name in ("orbit", "symmetrize") else (8, 2, 3, SIDE, SIDE)
    if name == "vote":
        return random_values(shape, torch.int64, 1, "labels")
    return random_values(shape, dtype, 1, "positive")


def memory(like: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Room for a result in the given layout, all NaN, and the whole block of memory it lies in."""
    shape = like.shape
    if layout == "channels_last":
        block = like.new_full((*shape[:-3], *shape[-2:], shape[-3]), blank(like.dtype))
        return block.movedim(-1, -3), block
    if layout in ("transposed", "expanded"):
        block = like.new_full((*shape[:-2], shape[-1], shape[-2]), blank(like.dtype))
        return block.transpose(-1, -2), block
    if layout in ("reversed", "stride 0"):
        block = like.new_full(shape[::-1], blank(like.dtype))
        return block.permute(*range(like.dim() - 1, -1, -1)), block
    if layout == "rows":
        block = like.new_full((*shape[:-1], shape[-1] + 3), blank(like.dtype))
        return block[..., 2:-1], block
    if layout == "sliced":
        block = like.new_full([2 * n + 1 for n in shape], blank(like.dtype))
        return block[(slice(1, None, 2),) * like.dim()], block
    block = like.new_full(shape, blank(like.dtype))
    return block, block


@each(*EVERY.args)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each("layout", [name for name in LAYOUTS if name not in ("expanded", "stride 0")])
def test_out_in_any_layout(name: str, layout: str, dtype: torch.dtype) -> None:
    data = argument(name, dtype)
    expected = RUNS[name](data)
    out, block = memory(expected, layout)
    result = RUNS[name](data, out=out)
    assert result is out
    assert torch.equal(bits(out), bits(expected))
    # and not an element beside it
    left = block.isnan() if block.is_floating_point() else block == blank(block.dtype)
    assert int(left.sum()) == block.numel() - out.numel()


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels_last"])
def test_a_pair_for_mean_and_std(layout: str) -> None:
    y = argument("mean")
    mean, std = orbit_reduce(y, ACTION, "mean_std")
    out = memory(mean, layout)[0], memory(std, "contiguous")[0]
    result = orbit_reduce(y, ACTION, "mean_std", out=out)
    assert result[0] is out[0]
    assert result[1] is out[1]
    assert torch.equal(out[0], mean)
    assert torch.equal(out[1], std)


def test_select_gives_the_index_beside_out() -> None:
    y = argument("select")
    expected, expected_index = orbit_select(y, WEIGHTS, ACTION, return_index=True)
    out = torch.zeros_like(expected)
    result, index = orbit_select(y, WEIGHTS, ACTION, return_index=True, out=out)
    assert result is out
    assert torch.equal(out, expected)
    assert torch.equal(index, expected_index)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_out_of_integers(dtype: torch.dtype) -> None:
    x = (torch.arange(2 * 3 * 49).reshape(2, 3, 7, 7) % 5).to(dtype)
    out = torch.zeros(8, 2, 3, 7, 7, dtype=dtype)
    assert torch.equal(orbit(x, ACTION, out=out), CASES["d4"].orbit(x))


@each(*EVERY.args)
def test_out_under_no_grad_may_come_from_leaves(name: str) -> None:
    data = argument(name)
    data.requires_grad_(data.is_floating_point())
    expected = RUNS[name](data).detach()
    out = torch.zeros_like(expected)
    with torch.no_grad():
        RUNS[name](data, out=out)
    assert torch.equal(out, expected)
    assert not out.requires_grad


@each(*EVERY.args)
def test_writing_out_is_a_change_autograd_sees(name: str) -> None:
    """A tensor saved for a backward and then overwritten must raise there, not give a wrong gradient."""
    data = argument(name)
    out = torch.zeros_like(RUNS[name](data))
    scale = torch.ones(out.shape, requires_grad=True)
    loss = (scale * out).sum()  # saves out
    RUNS[name](data, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each(*EVERY.args)
def test_out_in_inference_mode(name: str) -> None:
    data = argument(name)
    expected = RUNS[name](data)
    with torch.inference_mode():
        out = torch.zeros_like(expected)
        assert torch.equal(RUNS[name](data, out=out), expected)


@each(*EVERY.args)
def test_empty_out(name: str) -> None:
    data = argument(name)[..., :0, :0]
    expected = RUNS[name](data)
    assert RUNS[name](data, out=torch.zeros_like(expected)).shape == expected.shape


def test_neighbours_in_one_block_may_be_input_and_output() -> None:
    """An output beside the input, in the same storage, is no overlap."""
    block = torch.randn(9, 2, 5, 5)
    expected = orbit(block[0].clone(), ACTION)
    assert torch.equal(orbit(block[0], ACTION, out=block[1:]), expected)
