"""The CUDA orbit without a GPU: its blocks run on the CPU thread by thread, its machine code is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from equikern.backends.reference import Reference
from equikern.views import of
from helpers.cuda_blocks import RUNS, STRIDED, TILES, VECTORS, Blocks
from helpers.looped import each
from helpers.strategies import EXACT, LAYOUTS, bits, laid_out, random_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.audit
TURNS = ["hw Wh HW wH", "hw Wh HW wH hW wh Hw WH"]
MAPS = [*TURNS, "hw hW", "hw HW", "WH", "Wh wH wh", "hw Hw hW HW", "."]

reference = Reference()
Run = Callable[[Tensor, Tensor, str], int]


@pytest.fixture(scope="session")
def run(cuda_blocks: Blocks) -> Run:
    return cuda_blocks.orbit


def shape_of(x: Tensor, maps: str) -> tuple[int, ...]:
    """The shape of the orbit."""
    words = maps.split(" ")
    turned = words[0][0] in "wW"
    return (len(words), *x.shape[:-2], *(x.shape[:-3:-1] if turned else x.shape[-2:]))


def check(run: Run, x: Tensor, out: Tensor, maps: str) -> int:
    expected = torch.zeros(out.shape, dtype=out.dtype)
    reference.orbit(x, expected, of(maps), None, 1.0, None, None)
    chosen = run(x, out, maps)
    assert torch.equal(bits(out), bits(expected))
    return chosen


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("maps", MAPS)
def test_blocks_move_the_right_bits(
    run: Run, maps: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    dtype = data.draw(st.sampled_from(EXACT))
    height = data.draw(st.integers(0, 67))
    width = height if maps in TURNS else data.draw(st.integers(0, 67))
    lead = data.draw(st.lists(st.integers(0, 3), max_size=3))  # a block has one plane, or a part of it
    x = random_bits((*lead, height, width), dtype)
    x = laid_out(x, data.draw(st.sampled_from(LAYOUTS)))
    order = data.draw(st.sampled_from(["contiguous", "channels_last", "sliced", "rows", "transposed", "reversed"]))
    out = laid_out(torch.zeros(shape_of(x, maps), dtype=dtype), order)
    check(run, x, out, maps)
    assert "runtime error" not in capfd.readouterr().err


@pytest.mark.parametrize("maps", MAPS)
@each("side", [1, 7, 14, 16, 37, 64, 100])
@each("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128])
def test_blocks_on_aligned_and_shifted_memory(
    run: Run, maps: str, side: int, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tensors that start anywhere relative to a 16-byte boundary, and views that do."""
    lead = 1 if side > 40 else 5
    for shift in (0, 1, 3):
        count = lead * side * side
        raw = torch.randint(0, 256, ((count + shift) * dtype.itemsize,), dtype=torch.uint8)
        x = raw.view(dtype)[shift:].view(lead, side, side)
        order = len(maps.split(" "))
        # A gap after every view and guards around it all: nothing beyond the views may be written.
        memory = torch.full((shift + order * (count + shift) + 5,), 7, dtype=dtype)
        out = memory[shift : shift + order * (count + shift)].view(order, -1)[:, :count].view(order, lead, side, side)
        run(x, out, maps)
        expected = torch.full_like(memory, 7)
        target = expected[shift : shift + order * (count + shift)].view(order, -1)[:, :count]
        views = torch.zeros(order, lead, side, side, dtype=dtype)
        reference.orbit(x, views, of(maps), None, 1.0, None, None)
        target.copy_(views.view(order, count))
        assert torch.equal(memory.view(torch.uint8), expected.view(torch.uint8))
    assert "runtime error" not in capfd.readouterr().err


@each("maps", ["hw hW", "Wh wH", "HW"])
@each("plane", [(8, 12), (8, 13), (13, 8), (64, 48), (40, 72)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
def test_blocks_on_padded_memory(
    run: Run, maps: str, plane: tuple[int, int], dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    """Vectors only where every row, plane and view starts on 16 bytes; nothing is written between the rows."""
    order, (height, width) = len(maps.split(" ")), plane
    tall, wide = (width, height) if maps[0] in "wW" else plane

    def strides(rows: int, cols: int, row_pad: int, plane_pad: int, view_pad: int) -> list[int]:
        row = cols + row_pad
        one = rows * row + plane_pad
        return [2 * one + view_pad, one, row, 1]

    none = (0, 0, 0, 0)
    pads = [none, (3, 0, 0, 0), (16 - width % 16, 0, 0, 0), (16 - height % 16, 0, 0, 0)]
    pads += [(0, 3, 0, 0), (0, 0, 3, 0), (0, 0, 0, 3), (16, 32, 48, 16)]
    source = random_bits((20_000,), dtype)
    for (*x_pads, x_start), (*out_pads, out_start) in [(none, pad) for pad in pads] + [(pad, none) for pad in pads]:
        x = source.as_strided((2, height, width), strides(height, width, *x_pads)[1:], x_start)
        memory = torch.full((60_000,), 7, dtype=dtype)
        expected = memory.clone()
        shape, stride = (order, 2, tall, wide), strides(tall, wide, *out_pads)
        run(x, memory.as_strided(shape, stride, out_start), maps)
        reference.orbit(x, expected.as_strided(shape, stride, out_start), of(maps), None, 1.0, None, None)
        assert torch.equal(bits(memory), bits(expected))
    assert "runtime error" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "kernel"),
    [
        ((32, 3, 224, 224), torch.float32, "contiguous", TILES + VECTORS + 4),
        ((4, 64, 56, 56), torch.bfloat16, "contiguous", TILES + VECTORS + 2),
        ((2, 3, 225, 225), torch.float32, "contiguous", TILES + 4),
        ((8, 1280, 7, 7), torch.float32, "contiguous", RUNS + 4),
        ((2, 64, 37, 37), torch.bfloat16, "contiguous", RUNS + 2),
        ((2, 8, 16, 16), torch.float32, "contiguous", RUNS + VECTORS + 4),
        ((2, 64, 14, 14), torch.float32, "channels_last", STRIDED + 16),
        ((2, 64, 14, 14), torch.bool, "channels_last", STRIDED + 16),
        ((2, 3, 14, 14), torch.float32, "channels_last", STRIDED + 4),
        ((2, 3, 64, 64), torch.float32, "transposed", TILES + VECTORS + 4),
        ((2, 3, 64, 64), torch.float32, "sliced", STRIDED + 4),
    ],
)
def test_which_kernel_serves_which_layout(
    run: Run, shape: tuple[int, ...], dtype: torch.dtype, layout: str, kernel: int
) -> None:
    x = laid_out(random_bits(shape, dtype), layout)
    out = laid_out(torch.zeros((4, *shape), dtype=dtype), layout)
    assert check(run, x, out, TURNS[0]) == kernel


def test_refusals(run: Run) -> None:
    x = torch.zeros(2, 3, 4)
    assert run(x, torch.zeros(2, 2, 3, 4), "hw Wh") == -1  # a rectangle, turned and not
    assert run(x, torch.zeros(65, 2, 3, 4), " ".join(["hw"] * 65)) == -1
    crowded = torch.zeros(9, *[3] * 9, 2, 2).permute(*range(9, -1, -1), 10, 11)[::2, ::2]
    assert run(crowded, torch.zeros(1, *crowded.shape), "hw") == -1
