"""Every kind of views in Triton's interpreter against the reference: what needs all values at once, and token ids.

The interpreter is chosen when Triton is imported, so the tests run in a process of their own.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable

import pytest
import torch
from equikern import Action, field, grid, matrix, permutation, tokens
from equikern.backends.base import Backend
from equikern.backends.reference import Reference
from equikern.reductions import REDUCTIONS
from equikern.views import Views, of
from equikern.views.maps import Maps
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

CYCLES = [[*range(9)], [1, 2, 0, *range(3, 9)], [2, 0, 1, *range(3, 9)]]  # three of nine move: they are listed
ROLLS = [[(i + g) % 5 for i in range(5)] for g in range(5)]
SWAP = permutation([[0, 1, 2], [1, 0, 2]], [[1, 1, 1], [1, 1, -1]])
TURN = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])
SHEAR = matrix([[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 2, 3], [0, -1, 0], [0, 0, -1]]])
# By name: an action, and the shape of one view.
KINDS: dict[str, tuple[Action, tuple[int, ...]]] = {
    "d4": (grid("d4"), (2, 5, 5)),
    "tiles": (grid("c4"), (17, 17)),
    "rectangles": (grid("flips"), (2, 3, 4)),
    "volumes": (grid("flips3d", dims=3), (2, 2, 3, 2)),
    "still": (grid("trivial"), (3, 2, 2)),
    "few": (permutation(CYCLES), (4, 9)),
    "all": (permutation(ROLLS), (2, 3, 5)),
    "rows": (permutation(ROLLS, dim=-2), (2, 5, 3)),
    "signed": (permutation([[0, 1, 2], [1, 0, 2]], [[1, 1, 1], [-1, -1, 1]]), (4, 3)),
    "vectors": (field(grid("c4"), "vector"), (2, 4, 3, 3)),
    "swapped": (field(grid("hflip"), SWAP), (3, 3, 4)),
    "vector volumes": (field(grid("flips3d", dims=3), "vector"), (3, 2, 1, 2)),
    "matrix": (TURN, (3, 5, 2)),
    "sheared": (SHEAR, (7, 3)),
    "mixed": (field(grid("c4"), TURN), (2, 4, 3, 3)),
}
PERMUTED = [name for name, (action, _) in KINDS.items() if not action.views.kind.computes]
EVERY = pytest.mark.parametrize("name", KINDS)
MOVED = pytest.mark.parametrize("name", PERMUTED)

if not INTERPRETED:
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    from equikern.backends.triton import Triton, tables

    kernels, reference = Triton(), Reference()

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    def told(maps: Maps, t: Tensor) -> tuple[Views, Tensor | None]:
        """What kernels are told of maps."""
        return maps.views, maps.table(t)

    def compare(call: Callable[[Backend, Tensor], None], like: Tensor, tolerance: float = 0.0) -> Tensor:
        """That both backends write the same; the result."""
        ours, expected = torch.full_like(like, -7), torch.full_like(like, -7)
        call(kernels, ours)
        call(reference, expected)
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        return ours

    def channels_last(t: Tensor) -> Tensor:
        """The same values with those of the third last dim next to one another."""
        return t.movedim(-3, -1).contiguous().movedim(-1, -3)

    @EVERY
    @pytest.mark.parametrize("op", ["median", "log1p"])
    def test_reductions(op: str, name: str) -> None:
        action, shape = KINDS[name]
        for maps in (action.maps, action.inverse_maps):
            y = torch.randint(-3, 9, (action.order, *shape)) / 8  # some values come twice
            if op == "log1p":
                y = y.clamp_min(-0.25) / 8
            views, table = told(maps, y)
            like = y.new_empty(views.shape(shape))

            def call(b: Backend, o: Tensor, y: Tensor = y, v: Views = views, t: Tensor | None = table) -> None:
                b.reduce(y, o, v, t, op, 1.0, None, None, None)

            compare(call, like, 0.0 if op == "median" and not views.kind.computes else 1e-5)

    @EVERY
    def test_variances(name: str) -> None:
        action, shape = KINDS[name]
        y = 10 + torch.randn(action.order, *shape)
        views, table = told(action.inverse_maps, y)
        for dims in range(len(shape) - action.dims + 1):
            of_each = y.new_empty(shape[:dims])
            compare(lambda b, o: b.variance(y, o, views, table), of_each, 1e-4 if views.kind.computes else 1e-5)
            if not views.signed:
                factors = torch.rand(shape[:dims])
                compare(lambda b, o, f=factors: b.variance_backward(f, y, o, views, table), y, 1e-5)

    @MOVED
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_votes(name: str, dtype: torch.dtype) -> None:
        action, shape = KINDS[name]
        views, table = told(action.inverse_maps, torch.empty(0))
        if dtype not in views.dtypes:
            pytest.skip("integers without a sign")
        y = (torch.randint(0, 3, (action.order, *shape)) * 100 - (50 if dtype.is_signed else 0)).to(dtype)
        like = y.new_empty(views.shape(shape))
        compare(lambda b, o: b.reduce(y, o, views, table, "vote", 1.0, None, None, None), like)

    def test_votes_of_bool_and_their_ties() -> None:
        y = torch.tensor([[False, True, True, True], [False, True, False, True], [False, False, True, True]])
        y = torch.cat((y, torch.tensor([[True, False, False, True]])))
        out = torch.empty(4, dtype=torch.bool)
        kernels.reduce(y, out, of(". . . ."), None, "vote", 1.0, None, None, None)
        assert out.tolist() == [False, False, False, True]
        least = torch.tensor([[5, -3], [-9, 255], [5, -3], [-9, 255]])
        into = torch.empty(2, dtype=torch.int64)
        kernels.reduce(least, into, of(". . . ."), None, "vote", 1.0, None, None, None)
        assert into.tolist() == [-9, -3]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)  # the interpreter cuts bfloat16 off
    def test_medians_of_an_even_number_are_rounded_once(dtype: torch.dtype) -> None:
        y = torch.randn(4, 3, 6).to(dtype)
        ordered = y.double().sort(0).values
        out = torch.empty(3, 6, dtype=dtype)
        kernels.reduce(y, out, of(". . . ."), None, "median", 1.0, None, None, None)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert torch.equal(out, (0.5 * ordered[1].to(wide) + 0.5 * ordered[2].to(wide)).to(dtype))

    @pytest.mark.parametrize("order", [1, 2, 3, 4, 8])
    def test_medians_with_nan_and_infinities(order: int) -> None:
        views = of(" ".join(["hw", "Wh", "HW", "wH", "hW", "wh", "Hw", "WH"][:order]))
        for side in (6, 20):  # points, and tiles that stick out
            y = torch.tensor([-math.inf, -1.0, 0.0, 2.0, math.inf])[torch.randint(0, 5, (order, side, side))]
            y[order // 2, 2, 1] = math.nan
            compare(lambda b, o, y=y: b.reduce(y, o, views, None, "median", 1.0, None, None, None), y[0])
            y[order - 1, side - 1] = math.nan
            found = compare(lambda b, o, y=y: b.reduce(y, o, views, None, "median", 1.0, None, None, None), y[0])
            assert found.isnan().any()

    def test_votes_of_tiles() -> None:
        for name, shape in (("d4", (20, 20)), ("c4", (2, 36, 36)), ("flips", (9, 40)), ("hflip", (2, 24, 16))):
            views = grid(name).inverse_maps.views
            for dtype, count in ((torch.uint8, 3), (torch.int16, 9), (torch.int64, 2)):
                y = (torch.randint(0, count, (views.order, *shape)) * 100).to(dtype)
                compare(lambda b, o, y=y, v=views: b.reduce(y, o, v, None, "vote", 1.0, None, None, None), y[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_spreads_of_two_bytes(dtype: torch.dtype) -> None:
        """As exact where all views nearly agree, and where their squares pass float32."""
        least, most = (1e-30, 1e30) if dtype == torch.bfloat16 else (1e-6, 6e4)
        # The interpreter cuts bfloat16 off where a GPU rounds; float16 has no numbers between multiples of 6e-8.
        close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 6e-8 if dtype == torch.float16 else 1e-33}
        for order in (1, 2, 3, 5, 7, 8):
            y = torch.randn(order, 9, 5).to(dtype)
            y[:, 0] = y[0, 0].clone()
            y[:, 1] = 1.0 + y[:, 1] * 2 * torch.finfo(dtype).eps
            y[:, 2], y[:, 3] = y[:, 2] * least, y[:, 3].clamp(-1, 1) * most
            y[0, 4], y[-1, 5], y[order // 2, 6] = most, math.inf, math.nan
            mean, std = torch.full_like(y[0], -7), torch.full_like(y[0], -7)
            kernels.reduce(y, mean, of(" ".join("." * order)), None, "mean_std", 1.0, None, None, std)
            exact = y.double()
            assert bool((std[0] == 0).all()), order
            torch.testing.assert_close(mean.double(), exact.mean(0), **close, equal_nan=True)
            torch.testing.assert_close(std.double(), exact.std(0, correction=0), **close, equal_nan=True)

    def test_channels_last_medians_have_the_same_bits() -> None:
        y, ints = torch.randn(8, 2, 5, 4, 4), torch.randint(0, 3, (8, 2, 5, 4, 4))
        views = grid("d4").inverse_maps.views
        for op, given in (("median", y), ("log1p", y.abs()), ("vote", ints)):
            like = channels_last(given[0])
            for source in (given, channels_last(given)):
                ours = torch.full_like(like, -7)
                assert ours.stride() == like.stride()
                kernels.reduce(source, ours, views, None, op, 1.0, None, None, None)
                expected = torch.empty_like(given[0])
                reference.reduce(given, expected, views, None, op, 1.0, None, None, None)
                torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)

    def test_log1p_of_small_and_large_values() -> None:
        """Relative to the result, where log and exp alone would have lost all digits."""
        small = torch.cat([torch.logspace(-39, 10, 500), -torch.logspace(-39, -0.01, 500)])
        large = torch.tensor([1e30, 3e38, math.inf, -1 + 2**-24, -1.0, -2.0, -math.inf, math.nan])
        for values, close in ((small, 2e-6), (large, 2e-5)):
            y = values.expand(2, -1)
            out = torch.empty_like(values)
            kernels.reduce(y, out, of(". ."), None, "log1p", 1.0, None, None, None)
            expected = y.double().log1p().mean(0).expm1()
            torch.testing.assert_close(out.double(), expected, rtol=close, atol=1e-44, equal_nan=True)

    def test_log_odds_of_certain_and_uncertain_values() -> None:
        values = torch.cat([torch.linspace(0, 1, 1001), torch.logspace(-8, 0, 500), 1 - torch.logspace(-6, 0, 500)])
        y = torch.stack([values, values.flip(0)])
        y = torch.cat([y, torch.tensor([[-1.0, 2.0, math.inf, math.nan], [0.25, 0.5, 0.5, 0.5]])], 1)
        out = torch.empty(y.size(1))
        kernels.reduce(y, out, of(". ."), None, "logodd", 1.0, None, None, None)
        expected = torch.sigmoid(torch.logit(y.clamp(1e-6, 1 - 1e-6).double()).mean(0))
        torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=0, equal_nan=True)

    def test_every_reduction_has_its_kernel() -> None:
        y = torch.rand(3, 4)
        for op, reduction in REDUCTIONS.items():
            given = (9 * y).int() if reduction.integers else y
            second = torch.empty_like(given[0]) if reduction.results == 2 else None

            def call(b: Backend, o: Tensor, y: Tensor = given, s: Tensor | None = second, op: str = op) -> None:
                b.reduce(y, o, of(". . ."), None, op, 1.0, None, None, s)

            compare(call, given[0], 1e-5)

    # One element for each sample: a group axis of stride 0.

    @EVERY
    @pytest.mark.parametrize("dims", [0, 1, 2])
    def test_samples_seen_by_their_own_elements(name: str, dims: int) -> None:
        action, shape = KINDS[name]
        x = torch.randn(shape)
        views, table = told(action.maps, x)
        lead = shape[: len(shape) - views.dims][:dims]
        if not views.keeps(shape) or len(lead) < dims:
            pytest.skip("no such dims")
        index = torch.randint(0, action.order, lead)
        tolerance = 1e-5 if views.kind.computes else 0.0
        seen = x.expand(action.order, *shape)
        compare(lambda b, o: b.select(seen, o, index, views, table, None, True), x, tolerance)

    @pytest.mark.parametrize("action", [grid("c4"), permutation(ROLLS), TURN], ids=["grid", "permutation", "matrix"])
    def test_more_leading_dims_than_loops_are_copied_once(action: Action, monkeypatch: pytest.MonkeyPatch) -> None:
        n = action.views.size or 5
        x = torch.randn(4, 6, 4, n, n)[::2, ::2, ::2]
        views, table = told(action.maps, x)
        index, seen = torch.randint(0, action.order, (2, 3)), x.expand(action.order, *x.shape)
        copied, plain = [], Tensor.contiguous
        monkeypatch.setattr(Tensor, "contiguous", lambda t: (copied.append(t.shape), plain(t))[1])
        compare(lambda b, o: b.select(seen, o, index, views, table, None, True), torch.empty(x.shape), 1e-6)
        assert x.shape in copied
        assert seen.shape not in copied

    # Token ids

    WORDS = tokens([[*range(40)], [1, 2, 0, *range(3, 40)], [2, 0, 1, *range(3, 40)]])

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    @pytest.mark.parametrize(
        "index", [torch.tensor(2), torch.tensor([0, 2, 1]), torch.tensor([-5, 99, 1]), torch.arange(15).view(3, 5) % 3]
    )
    def test_ids_of_chosen_views(index: Tensor, dtype: torch.dtype) -> None:
        for maps in (WORDS.maps, WORDS.inverse_maps):
            views, table = told(maps, torch.empty(0, dtype=torch.int32))
            ids = torch.randint(0, 40, (3, 3, 5)).to(dtype)
            turned = ids.transpose(-1, -2).contiguous().transpose(-1, -2)
            for y in (ids, turned, ids[:1].expand(3, 3, 5), turned[:1].expand(3, 3, 5)):
                for like in (ids[0], turned[0]):

                    def call(b: Backend, o: Tensor, y: Tensor = y, v: Views = views, t: Tensor | None = table) -> None:
                        b.select(y, o, index, v, t, None, True)

                    compare(call, like)

    def test_ids_of_the_best_views() -> None:
        views, table = told(WORDS.maps, torch.empty(0, dtype=torch.int32))
        y, scores = torch.randint(0, 40, (3, 4, 5)), torch.randn(3, 4)
        ours, index = torch.zeros_like(y[0]), torch.full((4,), -1)
        kernels.select(y, ours, index, views, table, scores, False)
        assert torch.equal(index, scores.argmax(0))
        assert table is not None
        assert torch.equal(ours, table[0].long()[index[:, None], y[index, torch.arange(4)]])

    def test_ids_outside_of_the_vocabulary_are_named() -> None:
        views, table = told(WORDS.maps, torch.empty(0, dtype=torch.int32))
        for wrong in (40, -1):
            y = torch.tensor([3, wrong])
            with pytest.raises(ValueError, match=rf"expected token ids from 0 to 39, got {wrong}$"):
                kernels.select(y.expand(3, 2), y.clone(), torch.tensor(1), views, table, None, True)

    def test_what_has_no_kernel_is_the_fallbacks() -> None:
        views, table = told(WORDS.maps, torch.empty(0, dtype=torch.int32))
        y = torch.randint(0, 40, (3, 4))
        compare(lambda b, o: b.reduce(y, o, views, table, "vote", 1.0, None, None, None), y[0])

    # What is kept with a table

    def a_table() -> tuple[Views, Tensor]:
        """A table that nobody else has, of three in thirty entries that move."""
        views, table = told(permutation([[*row, *range(9, 30)] for row in CYCLES]).maps, torch.empty(0))
        assert table is not None
        return views, table.clone()

    def test_what_is_derived_from_a_table_goes_with_it() -> None:
        gc.collect()
        before = len(tables._kept)
        views, table = a_table()
        y, lse = torch.randn(3, 4, 30), torch.empty(3, 4)
        kernels.softmax_mean(y, y[0].clone(), lse, views, table, "probs")
        kernels.softmax_mean_backward(y[0], y, lse, y.clone(), views, table, "probs")
        kernels.orbit_dot(y[0], y, None, torch.empty(3), views, table, None)
        assert len(tables._kept) == before + 1
        assert tables.whole(views, table) is tables.whole(views, table)
        del table
        gc.collect()
        assert len(tables._kept) == before

    def test_a_table_that_is_written_anew_is_read_anew() -> None:
        x, (views, table) = torch.randn(30), a_table()
        for _ in range(2):
            compare(lambda b, o: b.orbit(x, o, views, table, 1.0, None, None), x.expand(3, 30).clone())
            y = torch.randn(3, 30)
            compare(lambda b, o, y=y: b.orbit_dot(x, y, None, o, views, table, None), torch.empty(3), 1e-5)
            table[[2, 3]] = table[[3, 2]]  # the second view does what the third did

    @pytest.mark.parametrize("name", ["few", "all", "signed", "vectors", "sheared", "mixed"])
    def test_tables_may_start_anywhere(name: str) -> None:
        """Of a table that starts behind 16 bytes every part is read as if it did not."""
        action, shape = KINDS[name]
        x = torch.randn(shape)
        for maps in (action.maps, action.maps.T, action.inverse_maps):
            views, table = told(maps, x)
            assert table is not None
            shifted = torch.cat((table.flatten()[:1], table.flatten()))[1:].view(table.shape)
            assert shifted.data_ptr() % 16
            out, again = (torch.zeros(action.order, *views.shape(shape)) for _ in range(2))
            kernels.orbit(x, out, views, table, 1.0, None, None)
            kernels.orbit(x, again, views, shifted, 1.0, None, None)
            assert torch.equal(out, again)
