"""Triton's launch plans: programs that write every element once, read and write elements alone, and fit the grid.

What is tested are the kernels themselves with the numbers of their plans, in Triton's interpreter, which is chosen when
Triton is imported: so in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch
from equikern import field, grid, matrix, permutation
from equikern.actions import Action
from equikern.views import accumulator, of
from equikern.views.grid import numbers
from torch import Tensor

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") != "1":
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    import numpy as np
    from equikern.backends.triton import Triton, orbits
    from equikern.backends.triton.layout import operand
    from helpers.strategies import EXACT, FLOATS, laid_out
    from helpers.traced import Traced, traced
    from hypothesis import given, settings
    from hypothesis import strategies as st
    from numpy.typing import NDArray

    kernels = Triton()
    C4, D4 = "hw Wh HW wH", "hw Wh HW wH hW wh Hw WH"
    MAPS = [C4, D4, "hw hW Hw HW", "hw HW", "WH", "Wh wH wh", ". . .", "dhw dhW dHw Dhw", "dhw hwd wdh"]
    LAYOUTS = ["contiguous", "contiguous", "channels_last", "sliced", "rows", "transposed", "reversed"]

    def check(launches: list[Traced], *outputs: str) -> None:
        """All the outputs that a launch has are written once; chosen views by every plane of their item."""
        assert launches, "nothing was launched"
        for launch in launches:
            launch.check(again=("index",))
            assert {*launch.stores} == {*outputs} & {*launch.tensors}
            assert all(map(launch.covers, launch.stores)), f"{launch.kernel} leaves elements out"

    @st.composite
    def shapes(draw: st.DrawFn, maps: str) -> tuple[int, ...]:
        """Of an image, few thousand elements in all."""
        sides, turning = of(maps).sides, maps in (C4, D4, "dhw hwd wdh")
        most = 9 if sides == 3 else 70
        size = st.one_of(st.integers(1, most), st.sampled_from([1, 7, 8, 9] if sides == 3 else [7, 8, 16, 32, 37, 64]))
        plane = [draw(size)] * sides if turning else [draw(size) for _ in range(sides)]
        room = max(1, 12_000 // (of(maps).order * torch.Size(plane).numel()))
        lead: list[int] = []
        for _ in range(draw(st.integers(0, 3))):
            lead.append(draw(st.integers(1, min(6, room))))
            room //= lead[-1]
        return (*lead, *plane)

    def made(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Its memory starts anywhere: on 16 bytes or not."""
        t = laid_out(torch.ones(shape, dtype=dtype), data.draw(st.sampled_from(LAYOUTS)))
        if not t.is_contiguous() or data.draw(st.booleans()):
            return t
        return torch.ones(t.numel() + 1, dtype=dtype)[1:].view(shape)

    def per_item(data: st.DataObject, shape: tuple[int, ...], sides: int) -> tuple[int, ...]:
        return shape[: data.draw(st.integers(0, len(shape) - sides))]

    @given(maps=st.sampled_from(MAPS), data=st.data())
    def test_orbits(maps: str, data: st.DataObject) -> None:
        views, shape = of(maps), data.draw(shapes(maps))
        dtype = data.draw(st.sampled_from(EXACT))
        x, out = made(data, shape, dtype), made(data, (views.order, *views.shape(shape)), dtype)
        weights = index = None
        if data.draw(st.booleans()) and dtype in FLOATS:
            weights = torch.ones(views.order, *per_item(data, shape, views.sides), dtype=accumulator(x))
        if data.draw(st.booleans()):
            index = torch.zeros(per_item(data, shape, views.sides), dtype=torch.int64)
        with traced() as launches:
            kernels.orbit(x, out, views, None, 1.0, weights, index)
        check(launches, "out")

    @given(maps=st.sampled_from(MAPS), data=st.data())
    def test_reductions(maps: str, data: st.DataObject) -> None:
        views, shape = of(maps), data.draw(shapes(maps))
        dtype, op = (
            data.draw(st.sampled_from(FLOATS)),
            data.draw(st.sampled_from(["sum", "plus", "mean_std", "median"])),
        )
        y, out = made(data, (views.order, *shape), dtype), made(data, views.shape(shape), dtype)
        plus = made(data, shape, dtype) if op == "plus" else None
        spread = torch.empty_like(out) if op == "mean_std" else None
        with traced() as launches:
            kernels.reduce(y, out, views, None, "sum" if op == "plus" else op, 1.0, None, plus, spread)
        check(launches, "out", "spread")

    @given(maps=st.sampled_from(MAPS), data=st.data())
    def test_selections(maps: str, data: st.DataObject) -> None:
        views, shape = of(maps), data.draw(shapes(maps))
        dtype, items = data.draw(st.sampled_from(EXACT)), per_item(data, shape, views.sides)
        y, out = made(data, (views.order, *shape), dtype), made(data, views.shape(shape), dtype)
        index = torch.randint(views.order, items)
        scores = torch.rand(views.order, *items) if data.draw(st.booleans()) else None
        with traced() as launches:
            kernels.select(y, out, index, views, None, scores, True)
        check(launches, "out", *(["index"] if scores is not None else []))

    @given(maps=st.sampled_from(MAPS), data=st.data())
    def test_dots(maps: str, data: st.DataObject) -> None:
        views, shape = of(maps), data.draw(shapes(maps))
        dtype, items = data.draw(st.sampled_from(FLOATS)), per_item(data, shape, views.sides)
        x, y = made(data, shape, dtype), made(data, (views.order, *views.shape(shape)), dtype)
        dots = torch.empty(views.order, *items, dtype=accumulator(x))
        out = torch.empty_like(y) if data.draw(st.booleans()) else None
        with traced() as launches:
            kernels.orbit_dot(x, y, out, dots, views, None, None)
        if y.numel() > dots.numel():
            check(launches, "out", "partial")

    TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
    CYCLE = [[(i + g) % 5 for i in range(5)] for g in range(5)]
    OTHERS: dict[str, tuple[Action, tuple[int, ...]]] = {
        "matrix": (TURN, (2,)),
        "vectors": (field(grid("c4"), "vector"), (2, 9, 9)),
        "mixed": (field(grid("c4"), TURN), (2, 5, 5)),
        "few": (permutation([[*range(60)], [3, 1, 2, 0, *range(4, 60)]]), (60,)),
        "all": (permutation(CYCLE), (5,)),
        "rows": (permutation(CYCLE, dim=-2), (5, 3)),
        "long": (permutation([[*range(1101)], [1100, 2, 1, *range(3, 1100), 0]]), (1101,)),
    }
    NAN, REALS = float("nan"), [torch.float16, torch.float32, torch.float64]  # of which the interpreter has zeros

    def written(launches: list[Traced], *outputs: Tensor, anew: bool = False) -> None:
        """By launches of several kernels together, or by what copies entries that no view moves."""
        assert launches, "nothing was launched"
        for launch in launches:
            launch.one_program_each() if anew else launch.check(again=("index",))
        for out in outputs:
            assert not out.isnan().any(), "not all is written"
            out.fill_(1.0)

    @settings(max_examples=5)
    @given(data=st.data())
    @pytest.mark.parametrize("name", OTHERS)
    def test_other_kinds(name: str, data: st.DataObject) -> None:
        action, rest = OTHERS[name]
        lead = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=1 if action.views.sides else 2))
        shape, dtype = (*lead, *rest), data.draw(st.sampled_from(REALS))
        maps, order = action.inverse_maps, action.order
        x, y = made(data, shape, dtype), made(data, (order, *shape), dtype)
        out, image = (made(data, t.shape, dtype).fill_(NAN) for t in (y, x))
        views, table, items = maps.views, maps.table(x), shape[:1]
        index, scores = torch.zeros(items, dtype=torch.int64), torch.rand(order, *items)
        dots = torch.full((order, *items), NAN, dtype=accumulator(x))
        calls = [
            (lambda: kernels.orbit(x, out, views, table, 1.0, None, None), [out]),
            (lambda: kernels.reduce(y, image, views, table, "sum", 1.0, None, None, None), [image]),
            (lambda: kernels.select(y, image, index, views, table, scores, True), [image]),
            (lambda: kernels.orbit_dot(x, y, out, dots, views, table, None), [out, dots]),
        ]
        for call, outputs in calls:
            for t in outputs:
                t.fill_(NAN)
            with traced() as launches:
                call()
            written(launches, *outputs)

    @settings(max_examples=4)
    @given(data=st.data())
    @pytest.mark.parametrize("name", ["few", "all", "long"])
    def test_rows(name: str, data: st.DataObject) -> None:
        """Entries that some view moves are written anew by the program that has the row."""
        action, rest = OTHERS[name]
        shape, dtype = (
            (*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)), *rest),
            data.draw(st.sampled_from(REALS)),
        )
        maps, order = action.inverse_maps, action.order
        x, y = made(data, shape, dtype), made(data, (order, *shape), dtype)
        out, image = (made(data, t.shape, dtype).fill_(NAN) for t in (y, x))
        views, table = maps.views, maps.table(x)
        lse, loss = (torch.full(t.shape[:-1], NAN, dtype=accumulator(x)) for t in (y, x))
        target = torch.zeros(shape[:-1], dtype=torch.int64)
        space = data.draw(st.sampled_from(["probs", "log_probs"]))
        with traced() as launches:
            kernels.softmax_mean(y, image, lse, views, table, space)
        written(launches, image, lse, anew=True)
        with traced() as launches:
            kernels.softmax_mean_backward(x, y, lse, out, views, table, space)
        written(launches, out, anew=True)
        for scored in ("logits", space):
            loss.fill_(NAN)
            out.fill_(NAN)
            with traced() as launches:
                kernels.cross_entropy(y, target, loss, out, views, table, scored, -100, 0.1, None)
            written(launches, loss, out, anew=True)

    def described(shape: tuple[int, ...], last: bool = False) -> Tensor:
        """Integers of which there is only the description; last: their channels are."""
        if not last:
            return torch.empty(shape, dtype=torch.int64, device="meta")
        *lead, c, h, w = shape
        return described((*lead, h, w, c)).movedim(-1, -3)

    def places_of(t: Tensor, indices: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
        found = np.zeros(indices[0].shape, np.int64)
        for index, step in zip(indices, t.stride(), strict=True):
            found += index * step
        return found

    @settings(max_examples=4)
    @given(data=st.data())
    @pytest.mark.parametrize("layout", ["tiles", "points", "vectors", "runs"])
    def test_beyond_2_to_the_31(layout: str, data: st.DataObject) -> None:
        """Programs at the start, somewhere and at the end: each element comes from where its view has it."""
        more = data.draw(st.integers(1, 99))
        maps, shape = {
            "tiles": ("hw Wh", (2 + more % 3, 2**15 + more, 2**15 + more)),
            "points": ("hw Wh HW", (2**31 // 49 + more, 7, 7)),
            "vectors": ("hw HW", (2**31 // 16 // 7 // 9 + more, 16, 7, 9)),
            "runs": (". .", (2**31 + more,)),
        }[layout]
        views, codes = of(maps), numbers(of(maps).words).codes
        x, out = (described(s, layout == "vectors") for s in (shape, (views.order, *shape)))
        with traced(lambda n: sorted({0, data.draw(st.integers(0, n - 1)), n - 1})) as launches:
            kernels.orbit(x, out, views, None, 1.0, None, None)
        (launch,) = launches
        launch.fits()
        found = launch.stores["out"]
        source = np.concatenate([store.values for store in found])
        places = np.concatenate([store.places for store in found])
        # Coordinates from places, the dim that is farthest apart first.
        left, indices = places, {}
        for d in sorted(range(out.dim()), key=lambda d: -out.stride(d)):
            indices[d], left = left // out.stride(d), left % out.stride(d)
        view, *lead = (indices[d] for d in range(out.dim()))
        if views.sides:
            *lead, i, j = lead
            code = np.array(codes)[view]
            row, col = np.where(code & 1, j, i), np.where(code & 1, i, j)
            lead += [np.where(code & 2, shape[-2] - 1 - row, row), np.where(code & 4, shape[-1] - 1 - col, col)]
        assert np.array_equal(source, places_of(x, tuple(lead)))
        assert np.unique(places).size == places.size
        # Backwards in the last view or not, the input's first element and its last are seen.
        assert {0, x.numel() - 1} <= {*source.tolist()}
        assert places.max() > 2**31

    def test_more_programs_than_a_grid_has_are_refused() -> None:
        views = of("hw HW")
        for planes, limit in ((2**31 - 1, False), (2**31, True)):  # a program each
            x, out = described((planes, 32, 32)), described((2, planes, 32, 32))
            if limit:
                with pytest.raises(ValueError, match="split the batch"):
                    orbits.plan(views, 1.0, operand(x), operand(out), None, None)
            else:
                plan = orbits.plan(views, 1.0, operand(x), operand(out), None, None)
                assert plan is not None
                assert plan.grid == (planes,)
