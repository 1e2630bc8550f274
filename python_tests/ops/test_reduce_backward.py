"""The fused gradients of max, min, std and mean_std: like those that can be differentiated again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equikern import GridAction, cyclic_group, field, grid, orbit_reduce, permutation, trivial
from equikern.actions import Action
from equikern.reductions import REDUCTIONS
from helpers.calls import results
from helpers.looped import each
from helpers.strategies import FLOATS, LAYOUTS, laid_out, random_values
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")
OPS: list[Any] = [op for op, reduction in REDUCTIONS.items() if reduction.fused]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-5, torch.float64: 1e-12}
NAN, INF = float("nan"), float("inf")

CASES: dict[str, tuple[Action, tuple[int, ...]]] = {
    "squares": (grid("d4"), (2, 3, 40, 40)),
    "a large plane": (grid("c4"), (1, 1, 270, 270)),
    "small planes": (grid("d4"), (40, 7, 7)),
    "rectangles": (grid("flips"), (2, 3, 20, 36)),
    # Planes of one row, more views than a band of it holds, one plane more than whole chunks.
    "many views of a row": (GridAction(cyclic_group(16), ["hw", "hW"] * 8), (33, 1, 40)),
    "volumes": (grid("oct", dims=3), (2, 2, 6, 6, 6)),
    "large volumes": (grid("rot3d", dims=3), (1, 1, 24, 24, 24)),
    "nothing moves": (trivial(cyclic_group(3)), (5, 6)),
    "fields": (field(grid("c4"), "regular"), (2, 8, 9, 9)),
    "few moved": (permutation([[*range(60)], [3, 1, 2, 0, *range(4, 59), 59]]), (3, 60)),
    "all moved": (permutation([[*range(12)], [*range(4, 12), *range(4)], [*range(8, 12), *range(8)]]), (2, 3, 12)),
    "a dim in the middle": (permutation([[0, 1, 2], [2, 0, 1], [1, 2, 0]], dim=-3), (2, 3, 4, 8)),
    "signs": (permutation([[0, 1, 2], [1, 0, 2]], signs=[[1, 1, 1], [1, 1, -1]]), (4, 3)),
    "one view": (trivial(cyclic_group(1)), (4, 5)),
    "empty": (grid("d4"), (0, 3, 8, 8)),
    "no pixels": (grid("d4"), (2, 3, 0, 0)),
}


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Some views agree, exactly or nearly, some are not finite."""
    y = random_values(shape, dtype, 1).clamp(-1, 1)
    if y.numel():
        places = torch.arange(y[0].numel()).reshape(y.shape[1:])
        y[:, places % 5 == 0] = y[:1, places % 5 == 0]
        for k, value in enumerate((NAN, INF, -INF)):
            y[k % len(y), places % 31 == 7 * k + 3] = value
        y[-1, places % 31 == 30] = INF
        y[0, places % 31 == 30] = INF
    return y


def both(y: Tensor, action: Action, op: Any, incoming: list[Tensor]) -> tuple[Tensor, Tensor]:
    leaf = y.detach().requires_grad_()
    found = results(orbit_reduce(leaf, action, op))
    (fused,) = torch.autograd.grad(found, leaf, incoming, retain_graph=True)
    (composed,) = torch.autograd.grad(found, leaf, incoming, create_graph=True)
    assert fused.grad_fn is None
    return fused, composed.detach()


def close(fused: Tensor, composed: Tensor, op: str) -> None:
    tolerance = 0.0 if op in ("max", "min") else TOLERANCE[fused.dtype]
    torch.testing.assert_close(fused, composed, rtol=tolerance, atol=tolerance, equal_nan=True)


@each("name", CASES)
@pytest.mark.parametrize("op", OPS)
def test_as_the_composed_one(name: str, op: Any) -> None:
    action, shape = CASES[name]
    for dtype in FLOATS:
        y = values((action.order, *shape), dtype)
        incoming = [random_values(shape, dtype, 2 + k) for k in range(REDUCTIONS[op].results)]
        close(*both(y, action, op, incoming), op)


@each("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(layout: str, op: Any) -> None:
    for name in ("squares", "small planes", "rectangles", "volumes", "fields", "a dim in the middle"):
        action, shape = CASES[name]
        y = laid_out(values((action.order, *shape), torch.float32), layout)
        count = REDUCTIONS[op].results
        incoming = [
            laid_out(random_values(shape, y.dtype, 2 + k), LAYOUTS[(k + 3) % len(LAYOUTS)]) for k in range(count)
        ]
        close(*both(y, action, op, incoming), op)


@pytest.mark.parametrize("op", OPS)
def test_channels_last_stays(op: Any) -> None:
    y = laid_out(random_values((4, 2, 8, 6, 6), torch.float32), "channels_last")
    incoming = [torch.ones(2, 8, 6, 6)] * REDUCTIONS[op].results
    fused, _ = both(y, grid("c4"), op, incoming)
    assert fused.stride() == y.stride()


@pytest.mark.parametrize("op", OPS)
def test_nothing_else_is_written(op: Any) -> None:
    y, grad = random_values((4, 2, 9, 9), torch.float32), random_values((2, 9, 9), torch.float32, 1)
    incoming = [grad.clone() for _ in range(REDUCTIONS[op].results)]
    kept = y.clone()
    both(y, grid("c4"), op, incoming)
    assert torch.equal(y, kept)
    assert all(torch.equal(t, grad) for t in incoming)


def test_large_close_values() -> None:
    """Deviations keep their digits, however far from zero the mean is."""
    steps = torch.tensor([0.0, 0.25, 0.5, 1.0])
    y = (4096 + steps).reshape(4, 1, 1).expand(4, 5, 5)
    near_zero = steps.reshape(4, 1, 1).expand(4, 5, 5)
    far, near = (both(t, trivial(cyclic_group(4)), "std", [torch.ones(5, 5)])[0] for t in (y, near_zero))
    torch.testing.assert_close(far, near, rtol=1e-6, atol=0)


def test_refusals() -> None:
    y, x = torch.zeros(2, 4, 4), torch.zeros(4, 4)
    call = torch.ops.equikern.reduce_backward
    with pytest.raises(ValueError, match="op: expected"):
        call(x, None, y, "hw Hw", None, "median")
    with pytest.raises(ValueError, match="spread: expected"):
        call(x, x, y, "hw Hw", None, "max")
    with pytest.raises(ValueError, match="spread: expected"):
        call(x, None, y, "hw Hw", None, "mean_std")
    signs = permutation([[0, 1], [1, 0]], signs=[[1, 1], [-1, -1]]).maps
    with pytest.raises(ValueError, match="views: expected"):
        call(torch.zeros(2), None, torch.zeros(2, 2), signs.code, signs.table(y), "max")
    with pytest.raises(ValueError, match=r"grad: expected shape \(\d+, \d+\) in torch.float32, got"):
        call(x[:1, :1], None, y, "hw Hw", None, "max")
    with pytest.raises(ValueError, match="spread: expected shape"):
        call(x, x.double(), y, "hw Hw", None, "mean_std")
