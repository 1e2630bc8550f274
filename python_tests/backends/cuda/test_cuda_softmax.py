"""The CUDA means of softmaxes without a GPU: their blocks run on the CPU thread by thread."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from equikern import cyclic_group, permutation, trivial
from equikern.actions import Action
from equikern.backends.reference import Reference
from equikern.views import accumulator
from helpers.cuda_blocks import SHARED, Blocks
from helpers.logits import swaps
from helpers.looped import each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.audit
properties = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

EPS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SPACES = ("probs", "log_probs")
TALL = {torch.float64: 10_000, torch.float32: 20_000}  # entries, in two views; others 40,000
reference = Reference()


def mixed(size: int) -> Action:
    """Two views, of which the second has all entries elsewhere."""
    return permutation([[*range(size)], [*reversed(range(size))]])


ACTIONS: dict[str, Action] = {
    "few": swaps(2, 1101, 5),
    "few of a whole number of vectors": swaps(3, 1104, 9),
    "short": swaps(3, 30, 9),
    "shorter than a vector": swaps(2, 5, 2),
    "all": swaps(3, 30, 30),
    "all of many": mixed(2051),
    "none": swaps(2, 33, 0),
    "still": trivial(cyclic_group(3)),
    "one view": trivial(cyclic_group(1)),
    "many views": trivial(cyclic_group(16)),
}


def length(action: Action) -> int:
    return int(getattr(action, "size", 257))


def logits(action: Action, lead: tuple[int, ...], dtype: torch.dtype, size: int | None = None, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(action.order, *lead, size or length(action), generator=g, dtype=torch.float64)).to(dtype)


def shifted(t: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The same values, some elements after a boundary and with a guard around them; and all the memory."""
    memory = torch.full((t.numel() + shift + 9,), 7, dtype=t.dtype)
    memory[shift : shift + t.numel()] = t.flatten()
    return memory[shift : shift + t.numel()].view(t.shape), memory


def aligned() -> Iterator[tuple[torch.dtype, tuple[int, ...], int]]:
    """Dtypes, leading dims, and where the first row begins behind a boundary."""
    for k, dtype in enumerate(EPS):
        # A whole number of vectors of rows, so that all lie alike; rows that do not; one.
        for n, lead in enumerate([(8,), (3, 1), (1,)]):
            yield dtype, lead, (k + n) % 4


def assert_alone(out: Tensor, memory: Tensor) -> None:
    """Nothing was written outside of a result that ``shifted`` made."""
    out.fill_(7)
    assert bool((memory == 7).all()), "written outside of the result"


def check(blocks: Blocks, y: Tensor, action: Action, space: str, out: Tensor | None = None) -> None:
    """Against the reference in float64; the result is rounded once."""
    maps = action.inverse_maps
    views, table = maps.views, maps.table(y)
    out = torch.full(y.shape[1:], math.nan, dtype=y.dtype) if out is None else out
    lse = torch.full(y.shape[:-1], math.nan, dtype=accumulator(y))
    assert blocks.softmax_mean(y, out, lse, views, table, space) == 1
    exact, exact_lse = torch.empty(out.shape, dtype=torch.float64), torch.empty(lse.shape, dtype=torch.float64)
    reference.softmax_mean(y.double(), exact, exact_lse, views, table, space)
    rtol = EPS[y.dtype]
    # Probabilities down to the least exponential; logarithms by the logits' size.
    atol = torch.finfo(y.dtype).tiny + 1e-37 if space == "probs" else rtol * 4
    if y.dtype == torch.float16:
        atol = max(atol, 2**-24)
    torch.testing.assert_close(out.double(), exact, rtol=rtol, atol=atol, equal_nan=True)
    wide = EPS[torch.float64 if y.dtype == torch.float64 else torch.float32]
    torch.testing.assert_close(lse.double(), exact_lse, rtol=wide, atol=wide, equal_nan=True)


def check_backward(
    blocks: Blocks, y: Tensor, grad: Tensor, action: Action, space: str, out: Tensor | None = None
) -> None:
    """The gradient against the reference in float64: sums are of some thousands, in another order."""
    maps = action.inverse_maps
    views, table = maps.views, maps.table(y)
    out = torch.full(y.shape, math.nan, dtype=y.dtype) if out is None else out
    mean, lse = torch.empty(y.shape[1:], dtype=torch.float64), torch.empty(y.shape[:-1], dtype=torch.float64)
    reference.softmax_mean(y.double(), mean, lse, views, table, space)
    assert blocks.softmax_mean_backward(grad, y, lse.to(accumulator(y)), out, views, table, space) == 1
    exact = torch.empty(y.shape, dtype=torch.float64)
    reference.softmax_mean_backward(grad.double(), y.double(), lse, exact, views, table, space)
    wide = 1e-5 if y.dtype != torch.float64 else 1e-12
    largest = 1 + grad.abs().amax().double()
    torch.testing.assert_close(out.double(), exact, rtol=2 * EPS[y.dtype] + wide, atol=float(wide * largest))


@each(("name", "space"), [(name, space) for name in ACTIONS for space in SPACES])
def test_every_gradient_dtype_and_alignment(
    cuda_blocks: Blocks, name: str, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    action = ACTIONS[name]
    for dtype, lead, shift in aligned():
        y, _ = shifted(logits(action, lead, dtype), shift)
        grad, _ = shifted(logits(action, lead, dtype, seed=1)[0], shift if lead != (8,) else 0)
        for start in (0, shift):
            out, memory = shifted(torch.full(y.shape, math.nan, dtype=dtype), start)
            check_backward(cuda_blocks, y, grad, action, space, out)
            assert_alone(out, memory)
    assert "runtime error" not in capfd.readouterr().err


@each("space", SPACES)
def test_strides_of_gradients(cuda_blocks: Blocks, space: str) -> None:
    """Rows with gaps in every tensor; a gradient that all rows share."""
    action, V = ACTIONS["few"], 1101
    for dtype in EPS:
        y = logits(action, (3, 2, 4), dtype, V + 19)[:, :, :, ::2, 8 : 8 + V].transpose(1, 2)
        out = torch.full((2, 3, 2, 2, V + 3), math.nan, dtype=dtype)[..., 1 : V + 1].transpose(1, 2)
        grad = logits(action, (2, 3, 2), dtype, V, seed=1)[0]
        check_backward(cuda_blocks, y, grad, action, space, out)
        check_backward(cuda_blocks, y, grad[:1, :1, :1].expand(2, 3, 2, V), action, space)


@each(("name", "space"), [(name, space) for name in ACTIONS for space in SPACES])
def test_every_table_dtype_and_alignment(
    cuda_blocks: Blocks, name: str, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    action = ACTIONS[name]
    for dtype, lead, shift in aligned():
        y, _ = shifted(logits(action, lead, dtype), shift)
        for start in (0, shift):
            out, memory = shifted(torch.full(y.shape[1:], math.nan, dtype=dtype), start)
            check(cuda_blocks, y, action, space, out)
            assert_alone(out, memory)
    assert "runtime error" not in capfd.readouterr().err


@each("space", SPACES)
def test_strides(cuda_blocks: Blocks, space: str) -> None:
    """Rows of some dims that do not merge, with gaps between them and between views; expanded views."""
    action, V = ACTIONS["few"], 1101
    for dtype in EPS:
        big = logits(action, (3, 2, 4), dtype, 1101 + 19)
        y = big[:, :, :, ::2, 8 : 8 + V].transpose(1, 2)
        out = torch.full((3, 2, 2, V + 3), math.nan, dtype=dtype)[..., 1 : V + 1].transpose(0, 1)
        check(cuda_blocks, y, action, space, out)
        check(cuda_blocks, y[:1].expand(2, *y.shape[1:]), action, space)


def test_what_has_no_kernel(cuda_blocks: Blocks) -> None:
    planner = Blocks(cuda_blocks.library, plan_only=True)
    action = ACTIONS["still"]
    views = action.inverse_maps.views
    y, lse = torch.zeros(3, 4, 40), torch.zeros(3, 4)
    assert planner.softmax_mean(y, y[0].clone(), lse, views, None, "probs") == 1
    assert planner.softmax_mean(y[..., ::2], y[0, :, :20], lse, views, None, "probs") == -1
    assert planner.softmax_mean(y, y[0].T.contiguous().T, lse, views, None, "probs") == -1
    assert planner.softmax_mean(y[:, :0], y[0, :0], lse[:, :0], views, None, "probs") == 0
    assert planner.softmax_mean(y[..., :1], y[0, :, :1], lse, views, None, "probs") == 1


@properties
@given(data=st.data())
def test_plans(cuda_blocks: Blocks, data: st.DataObject) -> None:
    """Of any size: a block a row, what it stages lies one behind the other within what the GPU has, or no kernel."""
    dtype = data.draw(st.sampled_from([*EPS]))
    order, rows = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 2**36))
    V = data.draw(st.integers(1, 130_000))
    limit = data.draw(st.sampled_from([99 * 1024, 163 * 1024, SHARED]))
    planner = Blocks(cuda_blocks.library, plan_only=True)
    y = torch.empty(order, rows, V, dtype=dtype, device="meta")
    lse = torch.empty(order, rows, dtype=accumulator(y), device="meta")
    views = trivial(cyclic_group(order)).inverse_maps.views
    wide, gradient = accumulator(y).itemsize, data.draw(st.booleans(), label="gradient")
    if gradient:  # a block a view's row, which it stages with the mean's gradient's
        found = planner.softmax_mean_backward(y[0], y, lse, y, views, None, "probs", limit)
        staged, scales, lanes = 2, 0, (256 + 32) * wide
    else:
        found = planner.softmax_mean(y, y[0], lse, views, None, "probs", limit)
        staged, scales, lanes = order, order * 4 * wide, order * (256 + 32) * 2 * wide
    least = staged * V * dtype.itemsize + lanes + scales
    if found == -1:
        assert least + staged * 31 > limit
        return
    (launched,) = planner.parameters()
    plan = RowPlan.from_buffer_copy(launched.plan)
    assert plan.rows == rows
    assert launched.blocks == plan.blocks == rows * (order if gradient else 1)
    assert least <= launched.shared <= limit
    assert plan.lanes_start >= scales
    assert plan.rows_start >= plan.lanes_start + lanes
    assert plan.run_bytes >= V * dtype.itemsize + 15
    assert plan.run_bytes % 16 == plan.rows_start % 16 == plan.lanes_start % 16 == 0
    assert launched.shared >= plan.rows_start + staged * plan.run_bytes


class RowSide(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("view", ctypes.c_int64), ("lead", ctypes.c_int64 * 8)]


class RowPlan(ctypes.Structure):
    """``RowPlan`` of csrc/cuda/row_plan.h."""

    _fields_ = [
        *((name, RowSide) for name in ("y", "out", "grad")),
        *((name, ctypes.c_uint64) for name in ("lse", "positions", "sources")),
        ("lead", ctypes.c_int64 * 8),
        ("rows", ctypes.c_int64),
        *(
            (name, ctypes.c_int32)
            for name in "n_lead n_views V moved lanes_start rows_start run_bytes shared_bytes".split()
        ),
        ("blocks", ctypes.c_int64),
    ]


def longest(fits: Callable[[int], bool]) -> int:
    """The largest number up to 130,000 that fits, where all smaller ones do."""
    low, high = 1, 130_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@each(("dtype", "space"), [(dtype, space) for dtype in EPS for space in SPACES])
def test_the_longest_row(cuda_blocks: Blocks, dtype: torch.dtype, space: str) -> None:
    """One entry more has no kernel."""
    planner, order = Blocks(cuda_blocks.library, plan_only=True), 2

    def fits(V: int) -> bool:
        y = torch.empty(order, 1, V, dtype=dtype, device="meta")
        lse = torch.empty(order, 1, dtype=accumulator(y), device="meta")
        return planner.softmax_mean(y, y[0], lse, trivial(cyclic_group(2)).inverse_maps.views, None, space) == 1

    low = longest(fits)
    assert low > TALL.get(dtype, 40_000)
    check(cuda_blocks, logits(swaps(2, low, 40), (1,), dtype), swaps(2, low, 40), space)


@each("dtype", EPS)
def test_the_longest_row_with_a_gradient(cuda_blocks: Blocks, dtype: torch.dtype) -> None:
    """A row of one view and one of the gradient, however many views there are."""
    planner = Blocks(cuda_blocks.library, plan_only=True)

    def fits(order: int, V: int) -> bool:
        y = torch.empty(order, 1, V, dtype=dtype, device="meta")
        lse = torch.empty(order, 1, dtype=accumulator(y), device="meta")
        views = trivial(cyclic_group(order)).inverse_maps.views
        return planner.softmax_mean_backward(y[0], y, lse, y, views, None, "probs") == 1

    low = longest(lambda V: fits(9, V))
    assert low > 56_000 * 2 // dtype.itemsize
    assert fits(1, low)
    assert not fits(1, low + 1)
    y = logits(swaps(2, low, 40), (1,), dtype)
    check_backward(cuda_blocks, y, y[1].flip(-1), swaps(2, low, 40), "probs")


def hostile(dtype: torch.dtype) -> Tensor:
    """(2, rows, 1101): masks, numbers at the ends of the range, NaN and infinities in some places and in all."""
    y = logits(ACTIONS["few"], (11,), dtype)
    least = torch.finfo(dtype).min
    y[:, 0, 100:] = least
    y[:, 1] = least
    y[0, 2] = least
    y[:, 3] = -math.inf
    y[0, 4, 7:] = -math.inf
    y[:, 5, 50], y[0, 6, 60] = math.inf, math.nan
    y[:, 7] = torch.finfo(dtype).max
    y[:, 8, 9] = torch.finfo(dtype).max
    y[:, 9, ::2] = -3e38 if dtype != torch.float16 else -6e4
    y[:, 10, 1:] = 0.9 * least
    return y


@each(("dtype", "space"), [(dtype, space) for dtype in EPS for space in SPACES])
def test_hostile_logits(cuda_blocks: Blocks, dtype: torch.dtype, space: str) -> None:
    y, action = hostile(dtype), ACTIONS["few"]
    maps = action.inverse_maps
    views, table = maps.views, maps.table(y)
    out, lse = torch.empty(y.shape[1:], dtype=dtype), torch.empty(y.shape[:-1], dtype=accumulator(y))
    assert cuda_blocks.softmax_mean(y, out, lse, views, table, space) == 1
    expected, expected_lse = torch.empty_like(out), torch.empty_like(lse)
    reference.softmax_mean(y, expected, expected_lse, views, table, space)
    torch.testing.assert_close(out, expected, rtol=4 * EPS[dtype], atol=4 * EPS[dtype], equal_nan=True)
    expected_lse[expected_lse == math.inf] = math.nan  # as Triton's kernels have it
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5, equal_nan=True)


@each(("dtype", "space"), [(dtype, space) for dtype in EPS for space in SPACES])
def test_hostile_logits_with_gradients(cuda_blocks: Blocks, dtype: torch.dtype, space: str) -> None:
    """Rows with masks and the largest numbers; rows whose log Σ is not finite have no gradient to compare."""
    y, action = hostile(dtype), ACTIONS["few"]
    maps = action.inverse_maps
    views, table = maps.views, maps.table(y)
    mean, lse = torch.empty(y.shape[1:], dtype=dtype), torch.empty(y.shape[:-1], dtype=accumulator(y))
    reference.softmax_mean(y, mean, lse, views, table, space)
    grad = logits(action, (11,), dtype, seed=2)[0]
    expected, found = torch.empty_like(y), torch.full_like(y, math.nan)
    reference.softmax_mean_backward(grad, y, lse, expected, views, table, space)
    assert cuda_blocks.softmax_mean_backward(grad, y, lse, found, views, table, space) == 1
    good = lse.isfinite()
    tolerance = max(4 * EPS[dtype], 1e-4 if dtype != torch.float64 else 0)
    torch.testing.assert_close(found[good], expected[good], rtol=tolerance, atol=tolerance)
    assert good.sum() > 12


def test_the_same_whatever_is_beside(cuda_blocks: Blocks) -> None:
    y = logits(ACTIONS["few"], (8,), torch.float32)
    maps = ACTIONS["few"].inverse_maps
    both, alone = torch.empty(8, 1101), torch.empty(4, 1101)
    assert cuda_blocks.softmax_mean(y, both, torch.empty(2, 8), maps.views, maps.table(y), "probs") == 1
    part = y[:, 4:].contiguous()
    assert cuda_blocks.softmax_mean(part, alone, torch.empty(2, 4), maps.views, maps.table(y), "probs") == 1
    assert torch.equal(both[4:], alone)
