"""The Triton kernels of fields: their arithmetic in the interpreter on the CPU, and whether they compile for GPUs.

The interpreter is chosen when Triton is imported, so its tests run in a process of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

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
        records = family("field_audit", path)
        assert len(records) >= len(TARGETS) * 9
        assert {record["target"] for record in records} == {*TARGETS}
        assert [record for record in records if "error" in record] == []
        for record in records:
            assert record["spills"] == record["atomics"] == 0, record
            if record["case"].startswith("mixed"):  # a thread has whole vectors; the sums of all views meet once
                assert record["barriers"] <= 4 * record["case"].endswith("dot"), record
            if record["target"] == "sm_90" and record["case"].startswith("vector"):  # as wide as without channels
                assert max(map(int, record["loads"])) == 128, record

else:
    from equikern import Action, FieldAction, field, grid, matrix, permutation
    from equikern.backends.reference import Reference
    from equikern.backends.triton import Triton
    from equikern.views import Views

    kernels, reference = Triton(), Reference()

    SWAP = permutation([[0, 1, 2], [1, 0, 2]], [[1, 1, 1], [1, 1, -1]])
    TURN = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])
    SHEAR = matrix([[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 2, 3], [0, -1, 0], [0, 0, -1]]])
    VECTOR = field(grid("c4"), "vector")
    CASES: list[tuple[FieldAction, tuple[int, ...]]] = [
        (VECTOR, (2, 17, 17)),  # tiles
        (field(grid("hflip"), SWAP), (3, 13, 20)),
        (VECTOR, (2, 2, 4, 3, 3)),  # points, several leading dims
        (VECTOR, (2, 1, 1)),
        (field(grid("flips3d", dims=3), "vector"), (3, 2, 3, 2)),
        (field(grid("c4"), TURN), (2, 4, 3, 3)),
        (field(grid("hflip"), SHEAR), (3, 2, 3)),
    ]

    def told(action: Action, x: Tensor) -> tuple[Views, Tensor | None]:
        """What kernels are told of an action on a tensor."""
        return action.maps.views, action.maps.table(x)

    @pytest.mark.parametrize(("action", "shape"), CASES)
    @pytest.mark.parametrize("layout", ["dense", "channels_last"])
    def test_as_plain_torch(action: FieldAction, shape: tuple[int, ...], layout: str) -> None:
        if layout != "dense" and shape[-1] > 16:
            pytest.skip("tiles are of dense planes")
        torch.manual_seed(0)
        order, dims = action.order, action.dims
        x, y = torch.randn(shape), torch.rand(order, *shape) + 0.1
        maps = told(action, x)
        if layout == "channels_last":
            x, y = (t.movedim(-dims, -1).contiguous().movedim(-1, -dims) for t in (x, y))

        def compare(call: Callable[..., None], *results: tuple[tuple[int, ...], torch.dtype]) -> None:
            ours, plain = ([torch.full(size, -7, dtype=dtype) for size, dtype in results] for _ in range(2))
            call(kernels, *ours)
            call(reference, *plain)
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

        views, wide, count = (order, *shape), torch.float32, len(shape) - dims
        tiles = shape[-1] > 16  # which the interpreter takes seconds for
        for k in {0, count} if layout == "dense" and not tiles else {min(1, count)}:
            lead = shape[:k]
            weights, index = torch.rand(order, *lead), torch.randint(0, order, lead)
            compare(lambda b, o, w=weights: b.orbit(x, o, *maps, 0.5, w, None), (views, wide))
            compare(lambda b, o, w=weights: b.reduce(y, o, *maps, "weighted_mean", 1.0, w, None, None), (shape, wide))
            compare(lambda b, o, d, w=weights: b.orbit_dot(x, y, o, d, *maps, w), (views, wide), ((order, *lead), wide))
            compare(lambda b, o, n, w=weights: b.select(y, o, n, *maps, w, True), (shape, wide), (lead, torch.int64))
            if not tiles:
                compare(lambda b, o, i=index: b.orbit(x, o, *maps, 1.0, None, i), (views, wide))
                compare(lambda b, o, i=index: b.select(y, o, i, *maps, None, True), (shape, wide))
        if not tiles:
            compare(lambda b, m, s: b.reduce(y, m, *maps, "mean_std", 1.0, None, None, s), (shape, wide), (shape, wide))

    @pytest.mark.parametrize("action", [field(grid("c4"), TURN), VECTOR], ids=["mixed", "moved"])
    def test_values_that_are_none(action: FieldAction) -> None:
        """Mixed channels are full products, in which 0 · NaN is NaN; channels that move carry it along."""
        x = torch.randn(2, 3, 3)
        x[0, 1, 2], x[1, 0, 0] = float("nan"), float("inf")
        ours, plain = torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3, 3)
        kernels.orbit(x, ours, *told(action, x), 1.0, None, None)
        reference.orbit(x, plain, *told(action, x), 1.0, None, None)
        torch.testing.assert_close(ours, plain, equal_nan=True)
        assert ours.isnan().sum().item() == (4 if action is VECTOR else 12)

    def test_integers_change_their_sign() -> None:
        x = torch.arange(18, dtype=torch.int32).reshape(2, 3, 3)
        ours, plain = (torch.zeros(4, 2, 3, 3, dtype=torch.int32) for _ in range(2))
        kernels.orbit(x, ours, *told(VECTOR, x), 1.0, None, None)
        reference.orbit(x, plain, *told(VECTOR, x), 1.0, None, None)
        assert torch.equal(ours, plain)

    def test_all_rotations_and_reflections_of_the_cube() -> None:
        action = grid("oct", dims=3)
        x: Tensor = torch.randn(2, 2, 2)
        ours, plain = torch.zeros(48, 2, 2, 2), torch.zeros(48, 2, 2, 2)
        kernels.orbit(x, ours, *told(action, x), 1.0, None, None)
        reference.orbit(x, plain, *told(action, x), 1.0, None, None)
        assert torch.equal(ours, plain)
