"""The CUDA kernels as machine code for Hopper, executed on the CPU: see ``test_machine_code.py``."""

from __future__ import annotations

import pytest
import torch
from equikern import cyclic_group, trivial
from equikern.actions import Action
from equikern.backends.reference import Reference
from equikern.views import accumulator, of
from helpers.cuda_blocks import Blocks
from helpers.emulated import TOLERANCE, MachineCode, blank, cuda_codes, made
from helpers.logits import swaps
from helpers.looped import each
from torch import Tensor

pytestmark = pytest.mark.audit

reference = Reference()
MAPS = {"c4": "hw Wh HW wH", "d4": "hw Wh HW wH hW wh Hw WH", "flips": "hw hW Hw HW"}
# Whole tiles and parts, runs of odd and of small planes, rectangles.
SHAPES = [(1, 64, 64), (2, 40, 40), (1, 37, 37), (5, 7, 7), (1, 70, 34)]
CALLS = [
    ("flips" if shape[-1] != shape[-2] else ("c4", "d4")[(k + n) % 2], shape, dtype)
    for k, shape in enumerate(SHAPES)
    for n, dtype in enumerate(TOLERANCE)
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def blocks(cuda_blocks: Blocks) -> MachineCode:
    codes = cuda_codes()
    if isinstance(codes, str):
        pytest.skip(codes)
    return MachineCode(cuda_blocks.library, codes)


def agree(blocks: MachineCode, found: list[Tensor], expected: list[Tensor], ran: int, tolerance: float = 0.0) -> None:
    assert ran > 0, "no kernel"
    if blocks.only_planned is not None:
        return
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


@each(("group", "shape", "dtype"), CALLS)
def test_sums(blocks: MachineCode, group: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps, views = MAPS[group], of(MAPS[group])
    y, x = made((views.order, *shape), dtype), made(shape, dtype)
    # Small planes of one column are left to Triton: there all share their weights.
    weights = torch.rand(views.order, *shape[: shape[-1] > 7], dtype=accumulator(x))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = blank(y), blank(y)
    reference.orbit(x, a, views, None, 0.3, weights, None)
    agree(blocks, [b], [a], blocks.orbit(x, b, maps, 0.3, weights), TOLERANCE[dtype])
    for given, op in ((None, "sum"), (weights, "weighted_mean")):
        c, d = blank(x), blank(x)
        reference.reduce(y, c, views, None, op, 1.0, given, None, None)
        agree(blocks, [d], [c], blocks.reduce(y, d, maps, op, 1.0, given), TOLERANCE[dtype])
    same = x.expand(views.order, *shape)
    c, d = blank(x), blank(x)
    reference.reduce(same, c, views, None, "sum", 0.125, None, None, None)
    agree(blocks, [d], [c], blocks.reduce(same, d, maps, "sum", 0.125), TOLERANCE[dtype])
    dots, found = (torch.full_like(weights, float("nan")) for _ in range(2))
    reference.orbit_dot(x, y, a, dots, views, None, weights)
    ran = blocks.orbit_dot(x, y, b, found, maps, weights)
    agree(blocks, [b], [a], ran, TOLERANCE[dtype])
    agree(blocks, [found], [dots], ran, 20 * TOLERANCE[wide] * x.numel() ** 0.5)


@each("maps", ["hw hW", "hw HW", "hw wh", "hw WH wh HW", *MAPS.values()])
@each("dtype", TOLERANCE)
def test_symmetrize(blocks: MachineCode, maps: str, dtype: torch.dtype) -> None:
    """Where the views are a group, bit for bit the same seen by any of them."""
    views = of(maps)
    for shape in ((3, 9, 9), (2, 1, 32, 32)):
        x = made(shape, dtype)
        c, d = blank(x), blank(x)
        same = x.expand(views.order, *shape)
        reference.reduce(same, c, views, None, "sum", 1.0 / views.order, None, None, None)
        agree(blocks, [d], [c], blocks.reduce(same, d, maps, "sum", 1.0 / views.order), TOLERANCE[dtype])
        assert all(torch.equal(turned, d) for turned in every_view(d, maps)) or blocks.only_planned is not None


MOVED = [torch.uint8, torch.int16, torch.int32, torch.int64, torch.complex128]  # 1 … 16 bytes


def every_view(x: Tensor, maps: str) -> Tensor:
    """The orbit in plain torch, which the reference backend does not take 16 bytes for."""
    views = of(maps)
    return torch.stack([views.kind.apply(x, views, None, g) for g in range(views.order)])


def best_views(y: Tensor, scores: Tensor, maps: str) -> tuple[Tensor, Tensor]:
    """The selection, of one score for each view and entry of the first dim, or for each view."""
    views, index = of(maps), scores.argmin(0)
    mapped = torch.stack([views.kind.apply(y[g], views, None, g) for g in range(views.order)])
    chosen = mapped[index, torch.arange(len(index))] if index.dim() else mapped[index]
    return chosen, index


@each("shape", SHAPES)
@each("dtype", MOVED)
def test_moves(blocks: MachineCode, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = MAPS["flips" if shape[-1] != shape[-2] else "d4"]
    order = of(maps).order
    y, x = torch.randint(100, (order, *shape)).to(dtype), torch.randint(100, shape).to(dtype)
    b, d = torch.zeros_like(y), torch.zeros_like(x)
    agree(blocks, [b], [every_view(x, maps)], blocks.orbit(x, b, maps))
    scores = torch.rand(order, *shape[: shape[-1] > 7])
    index = torch.zeros(scores.shape[1:], dtype=torch.int64)
    agree(blocks, [d, index], [*best_views(y, scores, maps)], blocks.select(y, d, index, maps, scores))


@each("dtype", MOVED)
def test_moves_pixels_of_channels(blocks: MachineCode, dtype: torch.dtype) -> None:
    """Channels-last planes: single elements, and whole vectors where there are channels enough."""
    for channels in (3, 16):
        x = torch.randint(100, (2, 6, 6, channels)).to(dtype).movedim(-1, -3)
        b = torch.zeros(4, 2, 6, 6, channels, dtype=dtype).movedim(-1, -3)
        agree(blocks, [b], [every_view(x, MAPS["c4"])], blocks.orbit(x, b, MAPS["c4"]))


@each("dtype", [*MOVED, *TOLERANCE])
def test_rows_with_gaps(blocks: MachineCode, dtype: torch.dtype) -> None:
    """Rows that are no whole vectors, as parts of longer ones: tiles of single elements."""
    maps, views = MAPS["d4"], of(MAPS["d4"])

    def gapped(*shape: int) -> Tensor:
        values = torch.randint(1, 5, (*shape[:-1], shape[-1] + 3)).to(dtype)
        return values[..., 1 : shape[-1] + 1]

    x, y, b, d = gapped(1, 41, 41), gapped(8, 1, 41, 41), gapped(8, 1, 41, 41), gapped(1, 41, 41)
    agree(blocks, [b], [every_view(x, maps)], blocks.orbit(x, b, maps))
    scores, index = torch.rand(8, 1), torch.zeros(1, dtype=torch.int64)
    agree(blocks, [d, index], [*best_views(y, scores, maps)], blocks.select(y, d, index, maps, scores))
    if dtype in MOVED:
        return
    a, c, tolerance, weights = blank(y), blank(x), TOLERANCE[dtype], torch.rand(8, 1, dtype=accumulator(x))
    reference.orbit(x, a, views, None, 0.3, None, None)
    agree(blocks, [b], [a], blocks.orbit(x, b, maps, 0.3), tolerance)
    reference.reduce(y, c, views, None, "sum", 0.125, None, None, None)
    agree(blocks, [d], [c], blocks.reduce(y, d, maps, "sum", 0.125), tolerance)
    dots, found = (torch.full_like(weights, float("nan")) for _ in range(2))
    reference.orbit_dot(x, y, a, dots, views, None, weights)
    ran = blocks.orbit_dot(x, y, b, found, maps, weights)
    agree(blocks, [b], [a], ran, tolerance)
    # Sums of 1,681 products up to 16, in whole numbers: float32 holds them all.
    agree(blocks, [found], [dots], ran)


ROWS: dict[str, tuple[Action, tuple[int, ...]]] = {
    "several steps": (swaps(2, 9001, 6), (1, 9001)),  # the last of which are not whole, nor are the vectors
    "whole vectors": (swaps(3, 1104, 9), (2, 1104)),
    "any start": (swaps(2, 1101, 5), (3, 1101)),
    "all moved": (swaps(3, 30, 30), (2, 2, 30)),
    "still": (trivial(cyclic_group(4)), (3, 57)),
}


@each("name", ROWS)
@each("dtype", TOLERANCE)
def test_means_of_softmaxes(blocks: MachineCode, name: str, dtype: torch.dtype) -> None:
    """And their gradients, also of rows of which all is masked."""
    action, shape = ROWS[name]
    maps, y, x = action.inverse_maps, 3 * made((action.order, *shape), dtype), made(shape, dtype)
    y[:, -1, ..., 5:], y[0, -1] = torch.finfo(dtype).min, torch.finfo(dtype).min
    views, table = maps.views, maps.table(y)
    for space in ("probs", "log_probs"):
        a, b = blank(x), blank(x)
        c, d = (torch.full(y.shape[:-1], float("nan"), dtype=accumulator(y)) for _ in range(2))
        reference.softmax_mean(y, a, c, views, table, space)
        agree(blocks, [b, d], [a, c], blocks.softmax_mean(y, b, d, views, table, space), TOLERANCE[dtype])
        e, f = blank(y), blank(y)
        reference.softmax_mean_backward(x, y, c, e, views, table, space)
        ran = blocks.softmax_mean_backward(x, y, c, f, views, table, space)
        agree(blocks, [f], [e], ran, 4 * TOLERANCE[dtype])


def test_no_cuda_kernel_is_left_out(blocks: MachineCode) -> None:
    """The tests above launch every kernel; but elements of 16 bytes are whole vectors, and none moves them singly."""
    reached: set[str] = set()
    blocks.only_planned = reached
    for test in (
        test_sums,
        test_symmetrize,
        test_moves,
        test_moves_pixels_of_channels,
        test_rows_with_gaps,
        test_means_of_softmaxes,
    ):
        test(blocks=blocks)
    prefix = "equikern::cuda::run_blocks<equikern::cuda::"
    singly = {f"{prefix}{name}Tiles<equikern::cuda::Bytes16, false> >" for name in ("Orbit", "Select")}
    assert blocks.codes.keys() - reached == singly
