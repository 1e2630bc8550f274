"""How close a result must be: within twice plain torch's own error at that precision, plus one rounding unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def spacing(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of dtype around every element of t (float64)."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(t.abs().clamp(min=info.smallest_normal, max=info.max)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


def error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference."""
    return float((result.double() - exact).abs().max()) if result.numel() else 0.0


_pool_errors: dict[tuple[str, torch.dtype], float] = {}


def assert_within_twice(
    ours: Tensor,
    plain: Callable[..., Tensor],
    arguments: Sequence[Tensor],
    pool: Callable[[], Sequence[Tensor]],
    label: str,
) -> None:
    """Every element of ours lies within twice plain torch's largest error, plus the spacing of numbers at its place.

    ``plain`` is the torch expression; in float64 it gives the exact result. Its error is measured on the arguments and
    on a pool of the same kind of numbers, since on a handful of elements it may be zero by luck. The ``label`` names
    expression and pool, whose error is measured once for each dtype.
    """
    exact = plain(*(t.double() for t in arguments))
    assert ours.shape == exact.shape
    assert not ours.isnan().any(), "NaN in the result"
    if ours.dtype == torch.float64:  # float64 itself is the reference: both only have to agree
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13 * max(1.0, scale))
        return
    key = label, ours.dtype
    if key not in _pool_errors:
        kept = pool()
        _pool_errors[key] = error(plain(*kept).to(ours.dtype), plain(*(t.double() for t in kept)))
    theirs = max(error(plain(*arguments).to(ours.dtype), exact), _pool_errors[key])
    excess = (ours.double() - exact).abs() - 2 * theirs - spacing(exact, ours.dtype)
    assert not ours.numel() or float(excess.max()) <= 0, f"off by {error(ours, exact):.3g}, plain torch {theirs:.3g}"


def assert_rounded_once(ours: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """Each element is the exact sum computed in the wide dtype and rounded once: sharper than plain torch needs be.

    ``magnitude`` bounds the sum of the terms' absolute values; a sum of ``terms`` of them in the wide dtype may be off
    by terms · eps of it, and rounding adds half the spacing of numbers.
    """
    wide = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    slack = (terms + 2) * wide * magnitude * (2 if ours.dtype == torch.float64 else 1)  # "exact" is off by as much
    bound = spacing(exact.abs() + slack, ours.dtype) / 2 + slack
    assert ours.shape == exact.shape
    assert not ours.isnan().any(), "NaN in the result"
    assert bool(((ours.double() - exact).abs() <= bound).all()), f"off by {error(ours, exact):.3g}"
