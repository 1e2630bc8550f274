"""The Triton backend without its kernels: what importing costs, whom it serves, how launches are planned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

import pytest
import torch
from equikern.backends.triton import Triton
from equikern.backends.triton.layout import Operand, loops, normalize
from equikern.views import of
from helpers import fresh
from hypothesis import example, given
from hypothesis import strategies as st

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def dense(*shape: int) -> Operand:
    return Operand(shape, torch.empty(shape, device="meta").stride(), torch.float32, True)


def test_importing_does_not_import_triton() -> None:
    code = "import sys, equikern, equikern.backends.triton; assert 'triton' not in sys.modules"
    done = fresh.run("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_reason_names_the_device() -> None:
    reason = Triton().unavailable(torch.device("meta"))
    assert reason is not None
    assert "meta" in reason


def test_words_become_numbers() -> None:
    found = loops(of("hw Wh HW wH hW wh Hw WH"))
    assert found.codes == (0, 5, 6, 3, 4, 1, 2, 7)
    assert (found.planar, found.moves) == (True, True)
    assert not loops(of("hw hw")).moves
    assert not loops(of(". .")).moves
    assert not loops(of("dhw Dhw")).planar
    assert loops(of("dhw dhW")).planar
    assert loops(of("dhw dhW")).codes == (0, 4)
    # The channels in front of a field's sides are moved, too: neither they nor the sides are leading dims.
    assert loops(of("field 2: dhw dhW"))[2:] == (False, True)
    assert loops(of("field 2: hw hw"))[2:] == (True, True)


def test_leading_dims_merge() -> None:
    layout = normalize(of("hw wh"), [(dense(2, 3, 4, 8, 8), False), (dense(2, 2, 3, 4, 8, 8), True)], [])
    assert layout is not None
    assert (layout.a, layout.b, layout.h, layout.w, layout.c) == (1, 24, 8, 8, 1)


def test_weights_split_the_leading_dims() -> None:
    moving = [(dense(2, 6, 4, 8, 8), True), (dense(6, 4, 8, 8), False)]
    layout = normalize(of("hw wh"), moving, [(dense(2, 6), True)])
    assert layout is not None
    assert (layout.a, layout.b) == (6, 4)
    assert layout.fixed == ((6, 1, 0),)


def test_entries_nothing_moves_are_runs() -> None:
    layout = normalize(of(". ."), [(dense(2, 6, 100), True), (dense(6, 100), False)], [(dense(2, 6), True)])
    assert layout is not None
    assert (layout.b, layout.c) == (6, 100)
    layout = normalize(of("hw hw"), [(dense(2, 6, 5, 5), True), (dense(6, 5, 5), False)], [])
    assert layout is not None
    assert (layout.a, layout.b, layout.c) == (1, 1, 150)


def test_more_leading_dims_than_loops_are_refused() -> None:
    cut = Operand((2, 3, 4, 8, 8), (4000, 1000, 100, 8, 1), torch.float32, True)
    assert normalize(of("hw wh"), [(cut, False), (dense(2, 2, 3, 4, 8, 8), True)], []) is None


@needs_triton
def test_rows_that_are_whole_vectors_are_moved_as_such() -> None:
    from equikern.backends.triton.reductions import plan

    for width, vector in ((32, 4), (66, 2), (37, 1)):
        found = plan(
            of("hw hW" if width % 4 == 0 else "hw wh"),
            "sum",
            1.0,
            dense(2, width, width),
            dense(width, width),
            None,
            None,
            None,
        )
        assert found is not None
        assert found.constants["VEC"] == vector
    shifted = dense(2, 32, 32)._replace(stride=(1025, 32, 1))
    found = plan(of("hw hW"), "sum", 1.0, shifted, dense(32, 32), None, None, None)
    assert found is not None
    assert found.constants["VEC"] == 1


@needs_triton
def test_wide_batches_stay_on_the_first_grid_axis() -> None:
    from equikern.backends.triton.orbits import plan

    found = plan(of("hw wh"), 1.0, dense(100_000, 32, 32), dense(2, 100_000, 32, 32), None, None)
    assert found is not None
    assert found.grid == (100_000,)
    with pytest.raises(ValueError, match="split the batch"):
        plan(of("hw wh"), 1.0, dense(2**31, 32, 32), dense(2, 2**31, 32, 32), None, None)


@needs_triton
@given(st.integers(1, 2**30 - 1), st.integers(0, 2**30 - 1))
@example(1, 2**30 - 1)
@example(2**30 - 1, 2**30 - 2)
@example(2**29 + 1, 2**30 - 1)
def test_a_reciprocal_divides(d: int, n: int) -> None:
    from equikern.backends.triton.launch import reciprocal

    def quotient(n: int) -> int:
        """As ``device.quotient``, whose words are not signed and have 32 bits."""
        return (2 * n * (reciprocal(d) % 2**32) >> 32) >> ((reciprocal(d) >> 32) % 32)

    assert 0 <= reciprocal(d) < 2**63
    assert not 2**31 <= reciprocal(d) < 2**32
    for k in (n, n // d * d, max(n // d * d - 1, 0)):
        assert quotient(k) == k // d


def gapped(steps: Sequence[int], *shape: int) -> Operand:
    """Memory with gaps: each stride is so many times what the dims behind it need."""
    strides, size = [0] * len(shape), 1
    for k in reversed(range(len(shape))):
        strides[k] = size * steps[k]
        size = max(strides[k] * shape[k], size)
    return Operand(shape, tuple(strides), torch.bfloat16, False)


SIDES = st.sampled_from([1, 3, 16, 37, 64, 225, 4096, 40_000, 2**20])
STEPS = st.sampled_from([0, 1, 1, 1, 2, 5, 4096, 2**20])


@needs_triton
@given(st.sampled_from(["hw hW", "hw wh"]), st.tuples(SIDES, SIDES, SIDES, SIDES), st.tuples(*[STEPS] * 5))
@example("hw wh", (1, 1, 40_000, 40_000), (1, 1, 1, 1, 1))  # a plane of 1.6e9 elements
@example("hw wh", (1, 1, 46_340, 46_340), (1, 1, 1, 1, 1))  # the largest square below 2³¹, without room for a tile
@example("hw wh", (1, 1, 64, 64), (1, 1, 1, 2**20, 1))
@example("hw wh", (1, 40_000, 7, 7), (1, 1, 2**20, 1, 1))
@example("hw hW", (1, 3, 4096, 1), (0, 0, 2**20, 1, 0))
@example("hw hW", (1, 4096, 2**20, 1), (0, 0, 0, 0, 0))
@example("hw hW", (1, 1, 3, 2**20), (1, 1, 1, 1, 4096))
def test_offsets_have_32_bits_only_where_they_fit(
    maps: str, sides: tuple[int, int, int, int], steps: tuple[int, int, int, int, int]
) -> None:
    from equikern.backends.triton import orbits, reductions, selection
    from equikern.backends.triton.launch import ELEMENTS

    views, (n, c, h, w) = of(maps), sides
    if maps == "hw wh":
        w = h
    x, y = gapped(steps[1:], n, c, h, w), gapped(steps, 2, n, c, h, w)
    index = Operand((n,), (1,), torch.int64, True)
    for moving, fixed, plan in (
        ([(x, False), (y, True)], [], lambda: orbits.plan(views, 1.0, x, y, None, None)),
        ([(y, True), (x, False)], [], lambda: reductions.plan(views, "sum", 1.0, y, x, None, None, None)),
        ([(y, True), (x, False)], [(index, False)], lambda: selection.plan(views, True, y, x, None, index)),
    ):
        layout = normalize(views, moving, fixed)
        found = None
        with suppress(ValueError):  # too many programs
            found = plan()
        if found is None or layout is None:
            continue
        if fixed and layout.a == 1 and layout.rows // layout.b * layout.c >= ELEMENTS[2]:
            layout = layout.by_item()  # so does the plan of selections, whose programs look for a view once
        # Offsets are counted from a plane's first element, or from that of a step of the outermost loop.
        tiles = "TI" in found.constants
        sizes = (1 if tiles else layout.b, layout.d, layout.h, layout.w, layout.c)
        spans = [sum((size - 1) * step for size, step in zip(sizes, s[2:], strict=True)) for s in layout.moving]
        if not found.constants["WIDE" if tiles else "BIG"]:
            assert max(spans) < 2**31
            assert max(found.grid[0], layout.rows if not tiles else 0) < 2**30
        elif found.grid[0] < 2**29:
            # Room for tiles that hang over, and for the rows behind the last one.
            room = [sum((size + 2048) * step for size, step in zip(sizes, s[2:], strict=True)) for s in layout.moving]
            assert max(room) >= 2**31 or layout.rows >= 2**29
