"""The Triton kernels of matrices: their arithmetic in the interpreter on the CPU, and whether they compile for GPUs.

The interpreter is chosen when Triton is imported, so its tests run in a process of their own.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:
    from helpers.audits import EXTRA, TARGETS, family, interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

    @pytest.mark.audit
    @pytest.mark.parametrize("path", [None, *EXTRA])
    def test_compiles_for_every_target(path: str | None) -> None:
        records = family("matrix_audit", path)
        assert len(records) >= len(TARGETS) * 4
        assert {record["target"] for record in records} == {*TARGETS}
        assert [record for record in records if "error" in record] == []
        for record in records:
            assert record["spills"] == record["atomics"] == 0, record
            if record["case"].startswith("dot"):  # the sums of all views meet once
                assert record["barriers"] <= 5, record
            else:  # a thread has whole vectors: it asks its neighbours for nothing
                assert record["barriers"] == record["shuffles"] == record["shared"] == 0, record

else:
    from equikern import field, grid, matrix
    from equikern.backends.reference import Reference
    from equikern.backends.triton import Triton
    from equikern.backends.triton import matrices as small
    from equikern.reductions import REDUCTIONS
    from equikern.views import Views

    kernels, reference = Triton(), Reference()

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    SHAPES = [(7, 2), (2, 5, 3), (3, 2, 4), (33, 3), (2, 3, 5), (1, 1), (3,), (2, 9)]  # the last for torch's products
    OPS = [name for name, reduction in REDUCTIONS.items() if not reduction.integers]

    def views(count: int, size: int, wide: torch.dtype = torch.float32) -> tuple[Views, Tensor | None]:
        """Some matrices, none of them orthogonal; positive, so that products of positive numbers are."""
        maps = matrix(torch.rand(count, size, size, dtype=torch.float64) + torch.eye(size), closed=False).maps
        return maps.views, maps.table(torch.empty((), dtype=wide))

    def apart(t: Tensor) -> Tensor:
        """The same values in memory with gaps everywhere."""
        big = torch.zeros([2 * size for size in t.shape], dtype=t.dtype)
        return big[(slice(None, None, 2),) * t.dim()].copy_(t)

    def swapped(t: Tensor) -> Tensor:
        """The same values with the entries of a vector far apart."""
        return t.movedim(-1, 0).contiguous().movedim(0, -1)

    LAYOUTS = {"dense": lambda t: t, "apart": apart, "swapped": swapped}
    EVERY = pytest.mark.parametrize("shape", SHAPES)
    LAID_OUT = pytest.mark.parametrize("layout", LAYOUTS)

    def blank(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return LAYOUTS[layout](torch.full(shape, float("nan"), dtype=dtype))

    def close(ours: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    @EVERY
    @LAID_OUT
    def test_orbit(shape: tuple[int, ...], layout: str) -> None:
        maps = views(3, shape[-1])
        x = LAYOUTS[layout](torch.randn(shape))
        for k in range(len(shape)):
            weights, index = torch.rand(3, *shape[:k]), torch.randint(0, 3, shape[:k])
            for scale, w, i in ((1.0, None, None), (0.5, weights, None), (1.0, None, index)):
                ours, expected = blank((3, *shape), layout), torch.empty(3, *shape)
                kernels.orbit(x, ours, *maps, scale, w, i)
                reference.orbit(x, expected, *maps, scale, w, i)
                close(ours, expected)

    @EVERY
    @LAID_OUT
    def test_reduce(shape: tuple[int, ...], layout: str) -> None:
        maps = views(3, shape[-1])
        y = LAYOUTS[layout](torch.rand(3, *shape))
        for op in OPS if layout == "dense" else ("sum", "mean_std"):
            pair = op == "mean_std"
            ours, expected = [blank(shape, layout) for _ in range(2)], [torch.empty(shape) for _ in range(2)]
            kernels.reduce(y, ours[0], *maps, op, 0.5, None, None, ours[1] if pair else None)
            reference.reduce(y, expected[0], *maps, op, 0.5, None, None, expected[1] if pair else None)
            for a, b in list(zip(ours, expected, strict=True))[: 1 + pair]:
                close(a, b)
        added, ours_, expected_ = LAYOUTS[layout](torch.rand(shape)), blank(shape, layout), torch.empty(shape)
        kernels.reduce(y, ours_, *maps, "sum", 0.5, None, added, None)
        reference.reduce(y, expected_, *maps, "sum", 0.5, None, added, None)
        close(ours_, expected_)
        for k in range(len(shape)):
            weights = torch.rand(3, *shape[:k])
            for op in ("sum", "weighted_mean"):
                ours_, expected_ = blank(shape, layout), torch.empty(shape)
                kernels.reduce(y, ours_, *maps, op, 2.0, weights, None, None)
                reference.reduce(y, expected_, *maps, op, 2.0, weights, None, None)
                close(ours_, expected_)

    @EVERY
    @LAID_OUT
    def test_orbit_dot(shape: tuple[int, ...], layout: str) -> None:
        maps = views(3, shape[-1])
        x, y = LAYOUTS[layout](torch.randn(shape)), LAYOUTS[layout](torch.randn(3, *shape))
        for k in range(len(shape)):
            for weights in (None, torch.rand(3, *shape[:k])):
                out = None if weights is None else blank((3, *shape), layout)
                wanted = None if weights is None else torch.empty(3, *shape)
                ours, expected = torch.full((3, *shape[:k]), float("nan")), torch.empty(3, *shape[:k])
                kernels.orbit_dot(x, y, out, ours, *maps, weights)
                reference.orbit_dot(x, y, wanted, expected, *maps, weights)
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
                if out is not None and wanted is not None:
                    close(out, wanted)

    @EVERY
    @LAID_OUT
    def test_select(shape: tuple[int, ...], layout: str) -> None:
        maps = views(4, shape[-1])
        y = LAYOUTS[layout](torch.randn(4, *shape))
        for k in range(len(shape)):
            scores = torch.randn(4, *shape[:k])
            for minimum in (True, False):
                ours, expected = blank(shape, layout), torch.empty(shape)
                index, wanted = torch.full(shape[:k], -1), torch.empty(shape[:k], dtype=torch.int64)
                kernels.select(y, ours, index, *maps, scores, minimum)
                reference.select(y, expected, wanted, *maps, scores, minimum)
                assert torch.equal(index, wanted)
                close(ours, expected)
                again = blank(shape, layout)
                kernels.select(y, again, index, *maps, None, minimum)
                assert torch.equal(again, ours)

    @pytest.mark.parametrize("size", [2, 3, 4, 5])
    def test_products_with_zeros_are_taken_in_full(size: int) -> None:
        """0 · NaN and 0 · ∞ are NaN, of the identity, too."""
        shift = torch.eye(size, dtype=torch.float64).roll(1, 0)
        maps = matrix(torch.stack((torch.eye(size, dtype=torch.float64), shift)), closed=False).maps
        views, table = maps.views, maps.table(torch.empty(()))
        x = torch.randn(9, size)
        x[2, 0], x[4, -1], x[5, 1] = float("nan"), float("inf"), -float("inf")
        ours, expected = blank((2, 9, size), "dense"), torch.empty(2, 9, size)
        kernels.orbit(x, ours, views, table, 1.0, None, None)
        reference.orbit(x, expected, views, table, 1.0, None, None)
        torch.testing.assert_close(ours, expected, equal_nan=True)
        assert ours.isnan().any(-1).sum().item() == 6
        summed, plain = blank((9, size), "dense"), torch.empty(9, size)
        kernels.reduce(expected.nan_to_num(float("inf")), summed, views, table, "sum", 1.0, None, None, None)
        reference.reduce(expected.nan_to_num(float("inf")), plain, views, table, "sum", 1.0, None, None, None)
        torch.testing.assert_close(summed, plain, equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_dtypes(dtype: torch.dtype) -> None:
        maps = views(3, 3, dtype)
        x, y = torch.randn(6, 3).to(dtype), torch.rand(3, 6, 3).to(dtype)
        ours, expected = blank((3, 6, 3), "dense", dtype), torch.empty(3, 6, 3, dtype=dtype)
        kernels.orbit(x, ours, *maps, 1.0, None, None)
        reference.orbit(x, expected, *maps, 1.0, None, None)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        kernels.reduce(y, ours[0], *maps, "gmean", 1.0, None, None, None)
        reference.reduce(y, expected[0], *maps, "gmean", 1.0, None, None, None)
        torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=tolerance)

    def test_many_vectors_have_partial_sums() -> None:
        maps = views(2, 4)
        x, y = torch.randn(2, 1100, 4), torch.randn(2, 2, 1100, 4)
        ours, expected = torch.full((2, 2), float("nan")), torch.empty(2, 2)
        kernels.orbit_dot(x, y, None, ours, *maps, None)
        reference.orbit_dot(x, y, None, expected, *maps, None)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)

    def test_numbers_of_vectors_with_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(small, "MOST_ROWS", 0)  # in the place of 2³⁰
        plans = (small.plan_orbit, small.plan_reduce, small.plan_dot, small.plan_select)
        turn = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])
        for action, shape in ((turn, (3, 299, 2)), (field(grid("c4"), turn), (3, 4, 5, 5))):
            for plan in plans:
                plan.cache_clear()
            x, y = torch.randn(shape), torch.randn(4, *shape)
            maps = action.maps.views, action.maps.table(x)
            weights, found = torch.rand(4, 3), []
            for k in (kernels, reference):
                out, one, dots = torch.empty_like(y), torch.empty_like(x), torch.empty(4, 3)
                index, chosen = torch.empty(3, dtype=torch.int64), torch.empty_like(x)
                k.orbit(x, out, *maps, 1.0, weights, None)
                k.reduce(y, one, *maps, "sum", 1.0, weights, None, None)
                k.orbit_dot(x, y, None, dots, *maps, None)
                k.select(y, chosen, index, *maps, weights, True)
                found.append((out, one, dots, index, chosen))
            torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
            assert all(plan.cache_info().currsize == 1 for plan in plans)
        for plan in plans:
            plan.cache_clear()

    def test_empty_tensors() -> None:
        maps = views(3, 2)
        index = torch.full((4,), -1)
        kernels.orbit(torch.empty(0, 2), torch.empty(3, 0, 2), *maps, 1.0, None, None)
        kernels.reduce(torch.empty(3, 0, 2), torch.empty(0, 2), *maps, "sum", 1.0, None, None, None)
        scores = torch.tensor([[0.0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0]])
        kernels.select(torch.empty(3, 4, 0, 2), torch.empty(4, 0, 2), index, *maps, scores, True)
        assert index.tolist() == [0, 1, 2, 2]
        dots = torch.ones(3)
        kernels.orbit_dot(torch.empty(0, 2), torch.empty(3, 0, 2), None, dots, *maps, None)
        assert not dots.any()

    def test_infinite_entries_stay_in_their_vectors() -> None:
        maps = views(2, 3)
        x, y = torch.ones(2, 3), torch.ones(2, 2, 3)
        x[1, 0] = float("inf")
        ours, expected = torch.full((2, 2), float("nan")), torch.empty(2, 2)
        kernels.orbit_dot(x, y, None, ours, *maps, None)
        reference.orbit_dot(x, y, None, expected, *maps, None)
        torch.testing.assert_close(ours, expected, equal_nan=True)
