"""The Triton backend without its kernels: what importing costs, whom it serves, how launches are planned."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from equikern.backends.triton import Triton
from equikern.backends.triton.layout import Operand, loops, normalize
from equikern.views import of
from helpers import fresh

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

    for width, vector in ((32, 4), (34, 2), (37, 1)):
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
