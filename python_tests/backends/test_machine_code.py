"""Triton's kernels as machine code for Hopper, executed on the CPU: what it computes, reads and writes, its barriers.

Every access is checked against the bounds of its tensor, every byte of shared memory against warps that have not met at
a barrier, every byte of a tensor against other blocks: see ``helpers/warps.py``. Results are the reference's.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import equikern
import pytest
import torch
from equikern import cyclic_group, field, grid, matrix, permutation, tokens, trivial
from equikern.actions import Action
from equikern.backends.base import Backend
from equikern.backends.reference import Reference
from equikern.views import accumulator
from helpers.emulated import TOLERANCE, blank, made, on_machine_code
from helpers.looped import each
from helpers.machine_code import cuobjdump
from torch import Tensor

pytestmark = [
    pytest.mark.audit,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(cuobjdump() is None, reason="no tools to read machine code"),
]

reference = Reference()
BF16, FP16, FP32, FP64 = TOLERANCE
TURN = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [-1.0, 0.0]]]
SHEARED = [TURN[0], [[0.0, -2.0], [0.5, 0.0]], TURN[2], [[0.0, 2.0], [-0.5, 0.0]]]  # no signs, but factors
SOME = permutation([[*range(60)], [3, 1, 2, 0, *range(4, 59), 59]])  # of which most stay
ALL = permutation([[*range(12)], [*range(4, 12), *range(4)], [*range(8, 12), *range(8)]])
LONG = permutation([[*range(1101)], [1100, 2, 1, *range(3, 1100), 0]])

# An action, the shape of one view, its dtype; True: channels-last.
CASES: dict[str, tuple[Action, tuple[int, ...], torch.dtype, bool]] = {
    "whole tiles": (grid("d4"), (3, 64, 64), BF16, False),
    "parts of tiles": (grid("d4"), (2, 40, 40), FP32, False),
    "odd tiles": (grid("c4"), (1, 2, 47, 47), FP16, False),
    "odd planes": (grid("d4"), (2, 37, 37), BF16, False),
    "rectangles": (grid("flips"), (2, 20, 36), FP64, False),
    "small planes": (grid("d4"), (2, 3, 7, 7), FP32, False),
    "channels last": (grid("c4"), (2, 16, 18, 18), BF16, True),
    "volumes": (grid("flips3d", dims=3), (2, 4, 6, 10), FP32, False),
    "turned volumes": (grid("rot3d"), (1, 15, 15, 15), FP32, False),
    "vectors": (field(grid("c4"), "vector"), (2, 4, 20, 20), FP32, False),
    "mixed": (field(grid("c4"), matrix(SHEARED)), (2, 2, 9, 9), FP32, False),
    "few moved": (SOME, (3, 60), BF16, False),
    "all moved": (ALL, (2, 2, 12), FP32, False),
    "a dim in the middle": (permutation([[0, 1, 2], [2, 0, 1], [1, 2, 0]], dim=-3), (2, 3, 4, 8), FP16, False),
    "matrices": (matrix(TURN), (5, 3, 2), FP32, False),
}


def tolerance_of_moves(name: str) -> float:
    """What moves comes out with the same bits, unless it is multiplied on the way."""
    action, _, dtype, _ = CASES[name]
    return TOLERANCE[dtype] if action.views.kind.name == "matrix" or name == "mixed" else 0.0


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def triton() -> Backend:
    from equikern.backends.triton import Triton

    return Triton()


def compared(triton: Backend, call: Callable[..., None], outputs: list[Tensor], tolerance: float) -> None:
    """Both backends write the outputs; a tolerance of 0 asks for the same bits."""
    expected, found = ([blank(t) for t in outputs] for _ in range(2))
    with on_machine_code(run=not COLLECTED) as launches:
        call(triton, *found)
    assert launches, "nothing was launched"
    if COLLECTED:
        return COLLECTED[-1].update(name for name, _ in launches)
    call(reference, *expected)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)


COLLECTED: list[set[str]] = []  # where the names of kernels go instead of running them


@each("name", CASES)
def test_views(triton: Backend, name: str) -> None:
    action, shape, dtype, last = CASES[name]
    x, maps, order = made(shape, dtype, last), action.maps, action.order
    table, out = maps.table(x), torch.stack([x] * order)
    if last:
        out = made((order, *shape), dtype, True)
    moves = tolerance_of_moves(name)
    compared(triton, lambda k, o: k.orbit(x, o, maps.views, table, 1.0, None, None), [out], moves)
    if [*CASES].index(name) % 2:
        weights = torch.rand(order, shape[0], dtype=accumulator(x))
        compared(triton, lambda k, o: k.orbit(x, o, maps.views, table, 0.3, weights, None), [out], TOLERANCE[dtype])
    else:
        index = torch.randint(order, shape[:1])
        compared(triton, lambda k, o: k.orbit(x, o, maps.views, table, 1.0, None, index), [out], moves)


# Every case of one operation, every second of sums too, and every operation of two cases.
OPS = ["sum", "weighted_mean", "plus", "max", "median", "mean_std", "logodd", "hmean", "log1p"]
REDUCED = {(name, OPS[k % len(OPS)]) for k, name in enumerate(CASES)} | {(name, "sum") for name in [*CASES][1::2]}
REDUCED |= {(name, op) for name in ("parts of tiles", "small planes") for op in OPS}


@each(("name", "op"), sorted(REDUCED))
def test_reductions(triton: Backend, name: str, op: str) -> None:
    action, shape, dtype, last = CASES[name]
    maps, order = action.inverse_maps, action.order
    y, x = made((order, *shape), dtype, last), made(shape, dtype, last)
    if op in ("logodd", "hmean", "log1p"):
        y = y.sigmoid()
    table = maps.table(y)
    weights = torch.rand(order, shape[0], dtype=accumulator(x)) + 0.1 if op == "weighted_mean" else None
    plus, named = (x, "sum") if op == "plus" else (None, op)
    if op == "mean_std":
        pair = [x, blank(x)]
        call: Callable[..., None] = lambda k, o, s: k.reduce(  # noqa: E731
            y, o, maps.views, table, op, 1.0, None, None, s
        )
        return compared(triton, call, pair, TOLERANCE[dtype])
    compared(
        triton, lambda k, o: k.reduce(y, o, maps.views, table, named, 1.0, weights, plus, None), [x], TOLERANCE[dtype]
    )


SYMMETRIC: dict[str, tuple[str, tuple[int, ...], torch.dtype]] = {
    "whole tiles": ("d4", (3, 64, 64), BF16),
    "a vector in the middle": ("c4", (3, 40, 40), FP16),
    "parts of tiles": ("d4", (2, 40, 40), FP32),
    "odd tiles": ("c4", (2, 37, 37), FP16),
    "odd triangles": ("d4", (2, 23, 23), FP64),
    "rectangles": ("flips", (2, 20, 36), FP64),
    "halves": ("c2", (2, 19, 24), BF16),
    "small planes": ("d4", (3, 5, 7, 7), FP32),
}


@each("name", SYMMETRIC)
def test_symmetrize(triton: Backend, name: str) -> None:
    """The result is as invariant as can be, and every element is written once."""
    group, shape, dtype = SYMMETRIC[name]
    views, x = grid(group).views, made(shape, dtype)
    out, same = blank(x), x.expand(views.order, *shape)
    scale = 1.0 / views.order
    with on_machine_code(run=not COLLECTED) as launches:
        triton.reduce(same, out, views, None, "sum", scale, None, None, None)
    if COLLECTED:
        return COLLECTED[-1].update(name for name, _ in launches)
    ((kernel, counts),) = launches
    assert kernel == "symmetrize_tiles"
    assert counts.stored == x.nbytes
    expected = blank(x)
    reference.reduce(same, expected, views, None, "sum", scale, None, None, None)
    torch.testing.assert_close(out, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for g in range(views.order):
        assert torch.equal(views.kind.apply(out, views, None, g), out)


# Every case whose views only move entries, every reduction of two of them, and channels that are permuted.
SHARED = {name: case for name, case in CASES.items() if not case[0].views.signed}
SHARED["regular fields"] = (field(grid("c4"), "regular"), (2, 8, 20, 20), FP32, False)
FUSED = ["max", "min", "std", "mean_std"]
SHARES = {(name, FUSED[k % 4]) for k, name in enumerate(SHARED)}
SHARES |= {(name, op) for name in ("parts of tiles", "small planes") for op in FUSED}


@each(("name", "op"), sorted(SHARES))
def test_gradients_of_reductions(triton: Backend, name: str, op: str) -> None:
    action, shape, dtype, last = SHARED[name]
    maps, y, grad = action.inverse_maps, made((action.order, *shape), dtype, last), made(shape, dtype, last)
    y[:, -1] = y[:1, -1]  # views that agree
    y[0, 0, ..., 0], y[0, 0, ..., 1] = float("nan"), float("inf")
    spread = made(shape, dtype, last) if op == "mean_std" else None
    table = maps.table(y)
    compared(triton, lambda k, o: k.reduce_backward(grad, spread, y, o, maps.views, table, op), [y], TOLERANCE[dtype])


# Sums of every case whose views multiply nothing, and the gradients of those that only move entries.
@each("name", [name for name, case in {**CASES, **SHARED}.items() if not case[0].views.kind.computes])
def test_variances(triton: Backend, name: str) -> None:
    action, shape, dtype, last = {**CASES, **SHARED}[name]
    maps, y = action.inverse_maps, made((action.order, *shape), dtype, last)
    wide = accumulator(y)
    of_each, factors, table = torch.empty(shape[0], dtype=wide), torch.rand(shape[0], dtype=wide), maps.table(y)
    tolerance = TOLERANCE[FP64 if dtype == FP64 else FP32]
    compared(triton, lambda k, o: k.variance(y, o, maps.views, table), [of_each], tolerance)
    if not action.views.signed:
        compared(triton, lambda k, o: k.variance_backward(factors, y, o, maps.views, table), [y], TOLERANCE[dtype])


@each("op", FUSED)
def test_one_view_that_is_not_finite(triton: Backend, op: str) -> None:
    """Its deviation is NaN, and so is what it gets of the gradient."""
    views, y, grad = trivial(cyclic_group(1)).views, made((1, 3, 40), FP32), made((3, 40), FP32)
    y[0, 1, 3], y[0, 2, 5] = float("nan"), float("inf")
    spread = made((3, 40), FP32) if op == "mean_std" else None
    compared(triton, lambda k, o: k.reduce_backward(grad, spread, y, o, views, None, op), [y], TOLERANCE[FP32])
    if op != "mean_std":
        compared(triton, lambda k, o: k.reduce(y, o, views, None, op, 1.0, None, None, None), [grad], TOLERANCE[FP32])


@each("name", CASES)
def test_dots(triton: Backend, name: str) -> None:
    action, shape, dtype, last = CASES[name]
    maps, order = action.maps, action.order
    y, x = made((order, *shape), dtype, last), made(shape, dtype, last)
    table, dots = maps.table(y), torch.empty(order, shape[0], dtype=accumulator(y))
    weights = torch.rand_like(dots)
    tolerance = 20 * TOLERANCE[FP64 if dtype == FP64 else FP32] * x[0].numel() ** 0.5
    views = maps.views
    if [*CASES].index(name) % 3 == 1:
        return compared(triton, lambda k, d: k.orbit_dot(x, y, None, d, views, table, None), [dots], tolerance)
    compared(
        triton,
        lambda k, o, d: k.orbit_dot(x, y, o, d, views, table, weights),
        [y, dots],
        max(tolerance, TOLERANCE[dtype]),
    )


@each("name", CASES)
def test_selections(triton: Backend, name: str) -> None:
    action, shape, dtype, last = CASES[name]
    maps, order = action.inverse_maps, action.order
    y, x = made((order, *shape), dtype, last), made(shape, dtype, last)
    table, index = maps.table(y), torch.randint(order, shape[:1])
    scores = torch.randn(order, shape[0])
    scores[0, 0] = float("nan")
    moves = tolerance_of_moves(name)
    compared(triton, lambda k, o, i: k.select(y, o, i, maps.views, table, scores, True), [x, index], moves)
    compared(triton, lambda k, o: k.select(y, o, index, maps.views, table, None, True), [x], moves)


ROWS: dict[str, tuple[Action, tuple[int, ...], torch.dtype]] = {
    "short": (ALL, (2, 3, 12), FP32),
    "dense": (ALL, (3, 12), FP64),
    "few moved": (SOME, (5, 60), BF16),
    # Rows that start anywhere within 16 bytes, in tensors that do not end with them.
    "long": (LONG, (3, 1101), BF16),
    "long, whole": (LONG, (8, 1101), FP16),
    "long, wide": (LONG, (1, 1101), FP64),
}


@each(("name", "space"), [(name, ("probs", "log_probs")[k % 2]) for k, name in enumerate(ROWS)])
def test_softmax(triton: Backend, name: str, space: str) -> None:
    action, shape, dtype = ROWS[name]
    y, x = made((action.order, *shape), dtype), made(shape, dtype)
    maps = action.inverse_maps
    table, lse, grad = maps.table(y), torch.zeros(y.shape[:-1], dtype=accumulator(y)), made(shape, dtype)
    tolerance = TOLERANCE[dtype]
    compared(triton, lambda k, o, s: k.softmax_mean(y, o, s, maps.views, table, space), [x, lse], tolerance)
    reference.softmax_mean(y, x, lse, maps.views, table, space)
    compared(
        triton, lambda k, o: k.softmax_mean_backward(grad, y, lse, o, maps.views, table, space), [y], 4 * tolerance
    )


# What reads each tensor once asks for as many sectors as it has. Two blocks ask for those that they share: a row's end
# and the next one's start, or an odd plane's end. With ``plus`` read |G| times it would be a third to two thirds more.
READ: dict[str, tuple[str, str, tuple[int, ...], torch.dtype, float]] = {
    **{f"{op}, tiles": (op, "d4", (2, 64, 64), BF16, 1.0) for op in ("orbit", "sum", "dot", "plus", "symmetrize")},
    **{f"{op}, tiles of 4 bytes": (op, "c4", (1, 64, 64), FP32, 1.0) for op in ("sum", "plus", "dot")},
    "plus, parts of tiles": ("plus", "d4", (1, 56, 56), BF16, 1.3),
    "plus, rectangles": ("plus", "flips", (2, 32, 64), FP32, 1.0),
    "symmetrize, parts of tiles": ("symmetrize", "d4", (2, 56, 56), FP32, 1.3),
    **{f"{op}, small planes": (op, "d4", (64, 7, 7), FP32, 1.15) for op in ("orbit", "sum", "dot", "plus")},
}


@each("name", READ)
def test_nothing_is_read_again(triton: Backend, name: str) -> None:
    """Neither by two programs: whole sectors that blocks load, against what all tensors have."""
    op, group, shape, dtype, factor = READ[name]
    views = grid(group).views
    y, x = made((views.order, *shape), dtype), made(shape, dtype)
    dots, out = torch.empty(views.order, shape[0], dtype=accumulator(y)), torch.empty_like(x)
    calls: dict[str, tuple[Callable[[], None], int]] = {
        "orbit": (lambda: triton.orbit(x, y, views, None, 1.0, None, None), x.nbytes),
        "sum": (lambda: triton.reduce(y, out, views, None, "sum", 1.0, None, None, None), y.nbytes),
        "plus": (lambda: triton.reduce(y, out, views, None, "sum", 1.0, None, x, None), y.nbytes + x.nbytes),
        "symmetrize": (
            lambda: triton.reduce(x.expand(y.shape), out, views, None, "sum", 1.0, None, None, None),
            x.nbytes,
        ),
        "dot": (lambda: triton.orbit_dot(x, y, None, dots, views, None, None), y.nbytes + x.nbytes),
    }
    call, wanted = calls[op]
    with on_machine_code() as launches:
        call()
    sectors = sum(counts.sectors for _, counts in launches)
    assert wanted <= 32 * sectors, "not all is read"
    assert 32 * sectors <= factor * wanted, f"{32 * sectors / wanted:.3f} times what it must read"


KINDS = ["entropy", "max_prob", "margin", "max"]


@each(("name", "kind"), [(name, KINDS[(k + n) % 4]) for k, name in enumerate(ROWS) for n in range(1 + (k == 3))])
def test_scores(triton: Backend, name: str, kind: str) -> None:
    action, shape, dtype = ROWS[name]
    y, maps = made((action.order, *shape), dtype), action.inverse_maps
    y[0, 0, ..., -1], y[0, 0, ..., shape[-1] // 2] = 9.0, float("nan")  # which a lane meets that has not the largest
    out = torch.empty(y.shape[:-1], dtype=accumulator(y))
    compared(triton, lambda k, o: k.score(y, o, kind), [out], TOLERANCE[FP64 if dtype == FP64 else FP32])
    if action.views.size > 100:
        return
    y = made((action.order, 13, 10, action.views.size), dtype)  # rows enough that one kernel scores and moves them
    x, index, table = y[0].clone(), torch.zeros(y.shape[1:-1], dtype=torch.int64), maps.table(y)
    compared(triton, lambda k, o, i: k.score_select(y, o, i, maps.views, table, kind, True), [x, index], 0.0)


SPACES = ["logits", "probs", "log_probs"]


@each(("name", "space", "smoothing"), [(name, SPACES[k % 3], k // 3 * 0.1) for k, name in enumerate(ROWS)])
def test_losses(triton: Backend, name: str, space: str, smoothing: float) -> None:
    action, shape, dtype = ROWS[name]
    y, maps = made((action.order, *shape), dtype), action.inverse_maps
    target = torch.randint(action.views.size, shape[:-1])
    target.view(-1)[0] = -100
    loss, table = torch.empty(shape[:-1], dtype=accumulator(y)), maps.table(y)
    scale, classes = torch.tensor(0.5, dtype=accumulator(y)), torch.rand(y.shape[-1], dtype=accumulator(y))

    def of(k: Backend, o: Tensor, g: Tensor, z_loss: float, weight: Tensor | None) -> None:
        k.cross_entropy(y, target, o, g, maps.views, table, space, -100, smoothing, scale, z_loss, 0.0, weight)

    # Class weights are factors of the rows there, beside a smoothing they have no kernel.
    for z_loss, weight in ((0.0, None), (0.01, None if smoothing else classes)):
        compared(triton, partial(of, z_loss=z_loss, weight=weight), [loss, y], 4 * TOLERANCE[dtype])


def test_token_ids(triton: Backend) -> None:
    action = tokens([[*range(60)], [3, 1, 2, 0, *range(4, 60)]])
    ids = torch.randint(60, (3, 5))
    maps, table = action.maps, action.maps.table(ids)
    compared(triton, lambda k, o: k.orbit(ids, o, maps.views, table, 1.0, None, None), [torch.stack([ids] * 2)], 0.0)
    views, index, scores = torch.randint(60, (2, 3, 5)), torch.zeros(3, dtype=torch.int64), torch.randn(2, 3)
    compared(triton, lambda k, o, i: k.select(views, o, i, maps.views, table, scores, True), [ids, index], 0.0)


def test_no_kernel_is_left_out(triton: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above launch every kernel of Triton's."""
    reached: set[str] = set()
    monkeypatch.setattr(f"{__name__}.COLLECTED", [reached])
    tests: list[Callable[..., None]] = [test_views, test_reductions, test_symmetrize, test_gradients_of_reductions]
    tests += [test_variances, test_dots, test_selections, test_token_ids, test_softmax, test_scores, test_losses]
    for test in tests:
        test(triton=triton)
    folder = Path(equikern.__file__).parent / "backends" / "triton"
    kernels = {
        node.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "jit_kernel" for d in node.decorator_list)
    }
    assert kernels
    assert kernels - reached == set()
