"""The launch plans of the CUDA kernels, without a GPU: every element of a result is written by one block, once; what is
staged fits; and what counts planes and elements is wide enough.
"""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from equikern.views import accumulator, of
from helpers.cuda_blocks import RUNS, TILES, Blocks
from helpers.strategies import FLOATS, laid_out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.audit
properties = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

C4, D4 = "hw Wh HW wH", "hw Wh HW wH hW wh Hw WH"
MAPS = [C4, D4, "hw hW", "hw hW Hw HW", "WH", "Wh wH wh"]
BITS = [torch.uint8, torch.int16, torch.int32, torch.int64]
SHARED = 48 * 1024


def call(operator: str, blocks: Blocks, maps: str, image: Tensor, views: Tensor, weights: Tensor | None) -> int:
    """The operator on one image (*lead, H, W) and its views, one of which is the result."""
    if operator == "orbit":
        return blocks.orbit(image, views, maps)
    if operator == "scaled orbit":
        return blocks.orbit(image, views, maps, 0.5, weights)
    if operator == "select":
        return blocks.select(
            views, image, torch.zeros(image.shape[:1], dtype=torch.int64, device=image.device), maps, None
        )
    if operator == "sum":
        return blocks.reduce(views, image, maps, "sum", 1.0, weights)
    dots = torch.zeros(len(views), *image.shape[:1], dtype=accumulator(image), device=image.device)
    return blocks.orbit_dot(image, torch.zeros_like(views), views, dots, maps, weights)


@st.composite
def shapes(draw: st.DrawFn, maps: str, room: int) -> tuple[int, ...]:
    """(batch, channels, H, W) of an image, of so many elements in all views at most or as many as two planes have."""
    size = st.one_of(st.integers(1, 70), st.sampled_from([7, 8, 14, 16, 32, 37, 64, 66]))
    height = draw(size)
    width = height if maps in (C4, D4) else draw(size)
    planes = max(2, room // (of(maps).order * height * width))
    batch = draw(st.integers(1, min(5, planes)))
    return batch, draw(st.integers(1, max(1, planes // batch))), height, width


@properties
@given(data=st.data())
@pytest.mark.parametrize("operator", ["orbit", "scaled orbit", "select", "sum", "orbit_dot"])
def test_every_element_is_written_by_one_block(cuda_blocks: Blocks, operator: str, data: st.DataObject) -> None:
    maps = data.draw(st.sampled_from(MAPS))
    dtype = data.draw(st.sampled_from(BITS if operator in ("orbit", "select") else FLOATS))
    shape = data.draw(shapes(maps, 6000))
    views = of(maps)
    full = views.shape(shape) if operator in ("sum", "select") else (views.order, *views.shape(shape))
    layouts = st.sampled_from(["contiguous", "contiguous", "rows", *(["channels_last"] if operator == "orbit" else [])])
    shift = data.draw(st.integers(0, 3))
    memory = torch.full((math.prod(full) + shift + 8,), 1, dtype=dtype)
    out = memory[shift : shift + math.prod(full)].view(full)
    if (layout := data.draw(layouts)) != "contiguous":
        out = laid_out(out, layout)
        memory = torch.empty(0, dtype=dtype).set_(out.untyped_storage())
    to_image = operator in ("sum", "select")
    source = laid_out(torch.zeros((views.order, *shape) if to_image else shape, dtype=dtype), data.draw(layouts))
    image, others = (out, source) if to_image else (source, out)
    weights = None
    if operator not in ("orbit", "select") and data.draw(st.booleans()):
        weights = torch.ones(views.order, *shape[:1], dtype=accumulator(source))
    planner, one = Blocks(cuda_blocks.library, plan_only=True), Blocks(cuda_blocks.library)
    if call(operator, planner, maps, image, others, weights) <= 0:
        return
    first = planner.parameters()[0]
    assert first.blocks > 0
    assert first.shared <= SHARED
    writers = torch.zeros(memory.shape, dtype=torch.int64)
    for one.one_block in range(first.blocks):
        memory.fill_(1)
        assert call(operator, one, maps, image, others, weights) > 0
        writers += memory == 0  # zeros are what all operators make of zeros
    mine = torch.zeros_like(writers).as_strided(out.shape, out.stride(), out.storage_offset())
    expected = torch.zeros_like(writers)
    expected.as_strided(mine.shape, mine.stride(), mine.storage_offset()).fill_(1)
    assert torch.equal(writers, expected)


class Side(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), *((name, ctypes.c_int64) for name in ("view", "row", "col"))]
    _fields_ += [("lead", ctypes.c_int64 * 8)]


class Divider(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("divisor", "multiplier")]

    def quotient(self, n: int) -> int:
        return (n + 1) * int(self.multiplier) >> 32


class View(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("origin", "down", "right")]


class Plan(ctypes.Structure):
    """The beginning of ``Plan`` in csrc/cuda/plan.h."""

    _fields_ = [
        *((name, Side) for name in ("x", "out", "y")),
        *((name, ctypes.c_int64) for name in ("H", "W", "out_H", "out_W")),
        ("lead", ctypes.c_int64 * 8),
        *((name, ctypes.c_int64) for name in "planes blocks blocks_per_column planes_per_column".split()),
        *((name, ctypes.c_int64) for name in "planes_per_weight weight_columns planes_per_index index_columns".split()),
        *((name, ctypes.c_uint64) for name in ("weights", "index", "scores", "partial", "dots")),
        ("scale", ctypes.c_double),
        *(
            (name, ctypes.c_int32)
            for name in (
                "n_lead n_views planes_per_block staged_start run_bytes shared_bytes row_bytes plane_bytes".split()
            )
        ),
        *((name, Divider) for name in ("by_plane", "by_out_W", "by_parts")),
        ("views", View * 64),
        ("by_row", Divider),
    ]


@properties
@given(data=st.data())
@pytest.mark.parametrize("operator", ["orbit", "scaled orbit", "select", "sum", "orbit_dot"])
def test_plans_of_any_size(cuda_blocks: Blocks, operator: str, data: st.DataObject) -> None:
    """Of descriptions alone, with up to 2⁴⁰ elements a view; of dots, whose partial sums are allocated, 2³³."""
    maps = data.draw(st.sampled_from(MAPS))
    dtype = data.draw(st.sampled_from(BITS if operator in ("orbit", "select") else FLOATS))
    *_, height, width = data.draw(shapes(maps, 1))
    most = 2 ** (33 if operator == "orbit_dot" else 40) // (height * width)
    batch = data.draw(st.integers(1, most))
    shape = (batch, data.draw(st.integers(1, max(1, most // batch))), height, width)
    views = of(maps)
    image = torch.empty(shape if operator not in ("sum", "select") else views.shape(shape), dtype=dtype, device="meta")
    inner = shape if operator in ("sum", "select") else views.shape(shape)
    others = torch.empty(views.order, *inner, dtype=dtype, device="meta")
    weights = None
    if operator not in ("orbit", "select") and data.draw(st.booleans()):
        weights = torch.empty(views.order, batch, dtype=accumulator(image), device="meta")
    planner = Blocks(cuda_blocks.library, plan_only=True)
    found = call(operator, planner, maps, image, others, weights)
    if found <= 0:
        return
    launched = planner.parameters()[0]
    plan = Plan.from_buffer_copy(launched.plan)
    assert plan.planes == batch * shape[1]
    assert launched.blocks == plan.blocks
    assert launched.shared <= SHARED
    # The last plane is where the tensors have it.
    lead = plan.lead[: plan.n_lead]
    assert math.prod(lead) == plan.planes
    for side in (plan.x, plan.out):
        last = sum((n - 1) * step for n, step in zip(lead, side.lead, strict=False))
        assert last == (plan.planes - 1) * height * width
    columns = plan.planes // plan.planes_per_column
    assert columns * plan.planes_per_column == plan.planes
    if found < RUNS + 100:
        area, count = height * width, plan.planes_per_block
        assert count * plan.blocks_per_column >= plan.planes_per_column > count * (plan.blocks_per_column - 1)
        assert plan.blocks == columns * plan.blocks_per_column
        # Room for all planes wherever they start within 16 bytes, in front of what is staged behind them.
        assert plan.row_bytes >= plan.W * dtype.itemsize
        assert plan.plane_bytes == plan.H * plan.row_bytes
        assert plan.run_bytes >= count * plan.plane_bytes + 15
        staged = views.order if operator == "sum" else 1
        assert plan.staged_start + staged * plan.run_bytes <= launched.shared
        vectors = max(1, plan.W * dtype.itemsize // 16)
        parts = max(1, 8 // staged)
        dividers = (plan.by_plane, area), (plan.by_out_W, plan.out_W), (plan.by_row, vectors), (plan.by_parts, parts)
        for divider, by in dividers:
            assert divider.divisor == by
            for n in data.draw(st.lists(st.integers(0, count * area // by), min_size=1)):
                for near in (n * by - 1, n * by, n * by + by - 1):
                    assert near < 0 or divider.quotient(near) == near // by
    else:
        assert TILES <= found < TILES + 100
