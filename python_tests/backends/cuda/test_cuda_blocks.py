"""The CUDA kernels that compute or choose, without a GPU: their blocks run on the CPU, thread after thread."""

from __future__ import annotations

import mmap

import pytest
import torch
from equikern.backends.reference import Reference
from equikern.views import of
from equikern.views.grid import turn_grid
from helpers.accuracy import assert_rounded_once
from helpers.cuda_blocks import RUNS, TILES, VECTORS, Blocks
from helpers.looped import each
from helpers.strategies import FLOATS, bits, generator, laid_out, random_bits, random_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.audit
C4, D4 = "hw Wh HW wH", "hw Wh HW wH hW wh Hw WH"
MAPS = [C4, D4, "hw", "hw hW", "Hw HW", "WH", "Wh wH wh", "hw hw Hw hW HW", "hw hW Hw HW", " ".join([D4] * 8)]
TURNING = [C4, D4, " ".join([D4] * 8)]
DTYPES = [*FLOATS]
reference = Reference()
properties = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def order(maps: str) -> int:
    return of(maps).order


def guarded(shape: tuple[int, ...], dtype: torch.dtype, layout: str, shift: int) -> tuple[Tensor, Tensor]:
    """A result full of NaN with 7 around it, and all its memory."""
    if layout == "rows":
        big = torch.full((*shape[:-1], shape[-1] + 3), 7, dtype=dtype)
        return big[..., 2:-1].fill_(float("nan")), big
    count = torch.Size(shape).numel()
    memory = torch.full((count + shift + 9,), 7, dtype=dtype)
    result = memory[shift : shift + count].view(shape).fill_(float("nan"))
    return (result.copy_(laid_out(result, layout)) if layout == "contiguous" else laid_out(result, layout)), memory


def untouched(t: Tensor, memory: Tensor) -> bool:
    """Whether all the memory around a result is as it was."""
    t.fill_(7)
    return bool((memory == 7).all())


@st.composite
def shapes(draw: st.DrawFn, maps: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of an image (*lead, H, W) and of what a view shows, about 30,000 elements in all views at most."""
    sizes = st.one_of(st.integers(0, 67), st.sampled_from([7, 8, 14, 16, 32, 37, 64, 66]))
    height = draw(sizes)
    width = height if maps in TURNING else draw(sizes)
    room = 30_000 // max(1, order(maps) * height * width)
    lead = tuple(draw(st.lists(st.integers(0, max(1, min(6, room))), max_size=3)))
    if lead and torch.Size(lead).numel() > max(1, room):
        lead = lead[:1]
    shown = (width, height) if maps[0] in "wW" else (height, width)
    return (*lead, height, width), (*lead, *shown)


def shifted(t: Tensor, shift: int) -> Tensor:
    """The same values, starting `shift` elements after a boundary of memory."""
    memory = torch.zeros(t.numel() + shift, dtype=t.dtype)
    return memory[shift:].view(t.shape).copy_(t)


RESULTS = st.tuples(st.sampled_from(["contiguous", "rows"]), st.integers(0, 7))  # layout and shift
SOURCES = st.sampled_from(["contiguous", "contiguous", "rows", "transposed", "channels_last", "sliced", "expanded"])


def draw_image(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    values = random_values(shape, dtype, seed)
    layout, shift = data.draw(SOURCES), data.draw(st.integers(0, 7))
    return shifted(values, shift) if layout == "contiguous" else laid_out(values, layout)


def draw_weights(data: st.DataObject, maps: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    dims = data.draw(st.one_of(st.none(), st.integers(0, len(shape) - 2)))
    return None if dims is None else random_values((order(maps), *shape[:dims]), wide(dtype), 5, "positive")


@properties
@given(data=st.data())
@pytest.mark.parametrize("maps", MAPS)
def test_sums(cuda_blocks: Blocks, maps: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]) -> None:
    shape, shown = data.draw(shapes(maps))
    dtype = data.draw(st.sampled_from(DTYPES))
    if data.draw(st.booleans()):
        y = draw_image(data, (order(maps), *shape), dtype, 1)
    else:  # symmetrize: one tensor for all views
        y = draw_image(data, shape, dtype, 1).expand(order(maps), *shape)
    weights = draw_weights(data, maps, shape, dtype)
    op = data.draw(st.sampled_from(["sum", "weighted_mean"])) if weights is not None else "sum"
    scale = 1.0 if op == "weighted_mean" else data.draw(st.sampled_from([1.0, 1 / order(maps)]))
    out, memory = guarded(
        shown, dtype, data.draw(st.sampled_from(["contiguous", "rows"])), data.draw(st.integers(0, 7))
    )
    found = cuda_blocks.reduce(y, out, maps, op, scale, weights)
    if found <= 0:
        return
    exact, magnitude = torch.zeros(shown, dtype=torch.float64), torch.zeros(shown, dtype=torch.float64)
    lambdas = None if weights is None else weights.double()
    reference.reduce(y.double(), exact, of(maps), None, op, scale, lambdas, None, None)
    reference.reduce(y.double().abs(), magnitude, of(maps), None, op, scale, lambdas, None, None)
    assert_rounded_once(out, exact, magnitude, 2 * order(maps) + 4)
    assert untouched(out, memory)
    assert "runtime error" not in capfd.readouterr().err


GROUPS = [C4, D4, "hw hW Hw HW", "hw hW", "hw Hw", "hw HW", "hw wh", "hw WH", "WH hw wh HW"]
SIDES = [(7, 7), (8, 8), (37, 37), (64, 64), (16, 16), (1, 1), (24, 24), (5, 9), (20, 36), (1, 16), (9, 2)]


@each("maps", GROUPS)
def test_means_of_a_group_are_invariant(cuda_blocks: Blocks, maps: str) -> None:
    """Bit for bit; also where a block has several planes, and the last one fewer."""
    views = of(maps)
    for k, shape in enumerate([*((3, 5, *sides) for sides in SIDES), (1100, 7, 7), (1100, 8, 8), (1100, 4, 4)]):
        if views.turns and shape[-2] != shape[-1]:
            continue
        dtype = DTYPES[k % len(DTYPES)]
        x = shifted(random_values(shape, dtype, k), k % 3)
        out, memory = guarded(shape, dtype, "contiguous", k % 8)
        assert cuda_blocks.reduce(x.expand(views.order, *shape), out, maps, "sum", 1.0 / views.order) > 0
        (kernel,) = cuda_blocks.launches()
        assert "SymmetrizeRuns<" in kernel
        wholes = x.double().expand(views.order, *shape)
        exact, magnitude = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        reference.reduce(wholes, exact, views, None, "sum", 1.0 / views.order, None, None, None)
        reference.reduce(wholes.abs(), magnitude, views, None, "sum", 1.0 / views.order, None, None, None)
        assert_rounded_once(out, exact, magnitude, 2 * views.order + 4)
        assert all(torch.equal(turn_grid(out, word), out) for word in views.words)
        assert untouched(out, memory)


@properties
@given(data=st.data())
@pytest.mark.parametrize("maps", MAPS)
def test_scaled_orbits(cuda_blocks: Blocks, maps: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]) -> None:
    shape, shown = data.draw(shapes(maps))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = draw_image(data, shape, dtype, 2)
    weights = draw_weights(data, maps, shape, dtype)
    dims = data.draw(st.one_of(st.none(), st.integers(0, len(shape) - 2)))
    index = None if dims is None else torch.randint(-1, order(maps) + 1, shape[:dims], generator=generator(6))
    scale = data.draw(st.sampled_from([1.0, 0.125, 1 / 3]))
    full = (order(maps), *shown)
    out, memory = guarded(full, dtype, *data.draw(RESULTS))
    if cuda_blocks.orbit(x, out, maps, scale, weights, index) <= 0:
        return
    exact = torch.zeros(full, dtype=torch.float64)
    lambdas = None if weights is None else weights.double()
    reference.orbit(x.double(), exact, of(maps), None, scale, lambdas, index)
    assert_rounded_once(out, exact, exact.abs(), 3)
    assert untouched(out, memory)
    assert "runtime error" not in capfd.readouterr().err


@properties
@given(data=st.data())
@pytest.mark.parametrize("maps", MAPS)
def test_selections(cuda_blocks: Blocks, maps: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]) -> None:
    shape, shown = data.draw(shapes(maps))
    dtype = data.draw(st.sampled_from([*DTYPES, torch.uint8]))
    y = laid_out(random_bits((order(maps), *shape), dtype, 3), data.draw(SOURCES))
    seed = data.draw(st.integers(0, 2**16))
    items = shape[: data.draw(st.integers(0, len(shape) - 2))]
    minimum = data.draw(st.booleans())
    scores: Tensor | None = None
    if data.draw(st.booleans()):
        scores = torch.randint(0, 4, (order(maps), *items)).to(
            data.draw(st.sampled_from([torch.float32, torch.float64]))
        )
        scores[torch.rand(scores.shape) < 0.3] = float("nan")
        index = torch.full(items, 77)
    else:
        index = torch.randint(-2, order(maps) + 2, items, generator=generator(seed))
    out = laid_out(torch.zeros(shown, dtype=dtype), data.draw(st.sampled_from(["contiguous", "rows"])))
    expected, best = torch.zeros(shown, dtype=dtype), index.clone()
    if cuda_blocks.select(y, out, index, maps, scores, minimum) <= 0:
        return
    reference.select(y, expected, best, of(maps), None, scores, minimum)
    assert torch.equal(bits(out), bits(expected))
    assert torch.equal(index, best)
    assert "runtime error" not in capfd.readouterr().err


@properties
@given(data=st.data())
@pytest.mark.parametrize("maps", [maps for maps in MAPS if order(maps) <= 16])
def test_orbits_with_dots(
    cuda_blocks: Blocks, maps: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    shape, shown = data.draw(shapes(maps))
    dtype = data.draw(st.sampled_from(DTYPES))
    x, full = draw_image(data, shape, dtype, 3), (order(maps), *shown)
    y = draw_image(data, full, dtype, 4)
    dims = data.draw(st.integers(0, len(shape) - 2))
    columns = (order(maps), *shape[:dims])
    weights = random_values(columns, wide(dtype), 5, "positive") if data.draw(st.booleans()) else None
    dots = torch.full(columns, float("nan"), dtype=wide(dtype))
    out, memory = guarded(full, dtype, *data.draw(RESULTS))
    wanted = data.draw(st.booleans())
    if cuda_blocks.orbit_dot(x, y, out if wanted else None, dots, maps, weights) <= 0:
        return
    views, exact, magnitude = (torch.zeros(s, dtype=torch.float64) for s in (full, columns, columns))
    lambdas = None if weights is None else weights.double()
    reference.orbit_dot(x.double(), y.double(), views, exact, of(maps), None, lambdas)
    reference.orbit_dot(x.double().abs(), y.double().abs(), None, magnitude, of(maps), None, None)
    if wanted:
        assert_rounded_once(out, views, views.abs(), 2)
        assert untouched(out, memory)
    else:
        assert out.isnan().all()
    assert_rounded_once(dots, exact, magnitude, 64)
    assert "runtime error" not in capfd.readouterr().err


SERVED = [
    ((8, 3, 224, 224), torch.bfloat16, TILES + VECTORS + 2),
    ((2, 3, 225, 225), torch.float32, TILES + 4),
    ((8, 1280, 7, 7), torch.float16, RUNS + 2),
    ((2, 64, 37, 37), torch.bfloat16, RUNS + 2),
    ((2, 8, 16, 16), torch.float32, RUNS + VECTORS + 4),
    ((2, 8, 56, 56), torch.float64, TILES + VECTORS + 8),
]


@pytest.mark.parametrize(("shape", "dtype", "layout"), SERVED)
def test_which_layout_serves_which_shape(
    cuda_blocks: Blocks, shape: tuple[int, ...], dtype: torch.dtype, layout: int
) -> None:
    """Planned, not run: weights of every image, D4."""
    planner = Blocks(cuda_blocks.library, plan_only=True)
    x, y = torch.zeros(shape, dtype=dtype), torch.zeros((8, *shape), dtype=dtype)
    weights, index = torch.zeros(8, shape[0], dtype=wide(dtype)), torch.zeros(shape[0], dtype=torch.int64)
    assert planner.reduce(y, x, D4, "weighted_mean", 1.0, weights) == layout
    assert planner.orbit(x, y, D4, 0.5, weights) == layout
    assert planner.select(y, x, index, D4, weights) == layout
    assert planner.orbit_dot(x, y, y, weights.clone(), D4, weights) == layout


def test_one_tensor_for_all_views_is_staged_whole(cuda_blocks: Blocks) -> None:
    planner = Blocks(cuda_blocks.library, plan_only=True)
    for side in (56, 64, 96):
        x = torch.zeros(4, 8, side, side, dtype=torch.bfloat16)
        layout = RUNS if side * side * 2 * 2 + 1024 < 48 * 1024 else TILES
        assert planner.reduce(x.expand(8, *x.shape), x, D4) == layout + VECTORS + 2


def test_calls_left_to_triton(cuda_blocks: Blocks) -> None:
    planner = Blocks(cuda_blocks.library, plan_only=True)
    x, y = torch.zeros(2, 6, 20, 20), torch.zeros(4, 2, 6, 20, 20)
    last = x.contiguous(memory_format=torch.channels_last)
    assert planner.reduce(y, last, C4) == -1  # gaps within the rows
    assert planner.orbit(last, y, C4, 0.25) == -1
    assert planner.select(y[..., ::2], x[..., ::2], torch.zeros(2, dtype=torch.int64), "hw hw hw hw", None) == -1
    views = " ".join(["hw"] * 17)
    y = torch.zeros(17, 2, 6, 20, 20)
    assert planner.orbit_dot(x, y, y, torch.zeros(17), views, None) == -1  # too many views for the threads' sums
    small, weights = torch.zeros(4, 50, 80, 5, 5), torch.zeros(4, 50, 80)
    assert planner.reduce(small, small[0], C4, "sum", 1.0, weights) == -1  # weights for every small plane


def test_repeatable_whatever_the_batch(cuda_blocks: Blocks) -> None:
    """An image's results do not depend on what is beside it."""
    y = random_values((8, 3, 4, 37, 37), torch.float32, 1)
    both, alone = torch.empty(3, 4, 37, 37), torch.empty(1, 4, 37, 37)
    assert cuda_blocks.reduce(y, both, D4) > 0
    assert cuda_blocks.reduce(y[:, 1:2].contiguous(), alone, D4) > 0
    assert torch.equal(both[1:2], alone)


def far_apart(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose first dim steps over 2³¹ elements; the memory between is never touched."""
    step, inner = 2**31 + 64, torch.Size(shape[1:])
    size = ((shape[0] - 1) * step + inner.numel()) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)
    return memory.as_strided(shape, (step, *torch.empty(inner, device="meta").stride()))


@pytest.mark.parametrize("side", [37, 64])
def test_offsets_beyond_2_to_the_31(cuda_blocks: Blocks, side: int) -> None:
    """Between images, and between views."""
    for dtype in (torch.float16, torch.float32):
        x = random_values((2, 2, side, side), dtype, 1)
        y, weights = random_values((2, 2, 2, side, side), dtype, 2), torch.rand(2, 2)
        maps, far, views = "hw WH", far_apart((2, 2, side, side), dtype), far_apart((2, 2, 2, side, side), dtype)
        expected, dots, exact = torch.zeros_like(y), torch.zeros(2, 2), torch.zeros(2, 2)
        reference.orbit(x, expected, of(maps), None, 1.0, weights, None)
        assert cuda_blocks.orbit(x, views, maps, 1.0, weights) > 0
        assert torch.equal(views, expected)
        assert cuda_blocks.orbit(far.copy_(x), y.clone(), maps) > 0
        views.copy_(y)
        total, found = torch.zeros_like(x), torch.zeros_like(x)
        reference.reduce(y, total, of(maps), None, "sum", 1.0, None, None, None)
        assert cuda_blocks.reduce(views, found, maps) > 0
        assert torch.equal(found, total)
        assert cuda_blocks.reduce(y, far, maps) > 0
        assert torch.equal(far, total)
        assert cuda_blocks.select(views, found, torch.tensor([1, 0]), maps, None) > 0
        assert torch.equal(found, torch.stack([turn_grid(y[1, 0], "WH"), y[0, 1]]))
        reference.orbit_dot(x, y, None, exact, of(maps), None, None)
        assert cuda_blocks.orbit_dot(far.copy_(x), views, None, dots, maps, None) > 0
        torch.testing.assert_close(dots, exact, rtol=1e-4, atol=1e-2)
