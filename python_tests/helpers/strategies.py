"""Hypothesis strategies: tensors of any shape, dtype and memory layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from helpers.oracles import Case
from hypothesis import strategies as st
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EXACT = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "rows", "transposed", "reversed", "expanded", "stride 0")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST = 30_000  # elements of one drawn tensor, so that 67 × 67 planes stay cheap


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(t: Tensor) -> Tensor:
    """The memory of the elements as integers: equal exactly when every bit is, NaN included."""
    return t if t.dtype == torch.bool else t.contiguous().view(_BITS[t.element_size()])


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bit pattern of the dtype: for floats also infinities, subnormals and NaN."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator(seed)).bool()
    size = torch.zeros((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), generator=generator(seed), dtype=torch.uint8)
    return raw.view(dtype).squeeze(-1)


def random_values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, kind: str = "signed") -> Tensor:
    """Random numbers rounded to dtype: any sign, positive (0.2 … 2), probabilities, or labels 0 … 3."""
    g = generator(seed)
    if kind == "signed":
        values = torch.randn(shape, generator=g, dtype=torch.float64) * 2
    elif kind == "positive":
        values = torch.rand(shape, generator=g, dtype=torch.float64) * 1.8 + 0.2
    elif kind == "labels":
        values = torch.randint(0, 4, shape, generator=g, dtype=torch.int64)
    else:
        values = torch.rand(shape, generator=g, dtype=torch.float64) * 0.98 + 0.01
    return values.to(dtype)


def blank(dtype: torch.dtype) -> float | int:
    """What no result holds: NaN, or the largest integer."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The values of t in another memory layout (the expanded ones repeat some of them)."""
    n = t.dim()
    if layout == "channels_last" and n >= 3:
        return t.movedim(-3, -1).contiguous().movedim(-1, -3)
    if layout == "sliced" and n:
        # every second element of every dim of a larger tensor, from an odd offset
        big = t.new_zeros([2 * size + 1 for size in t.shape])
        view = big[(slice(1, None, 2),) * n]
        return view.copy_(t)
    if layout == "rows" and n:
        big = t.new_zeros((*t.shape[:-1], t.shape[-1] + 3))
        return big[..., 2:-1].copy_(t)
    if layout == "transposed" and n >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "reversed" and n:
        return t.permute(*range(n - 1, -1, -1)).contiguous().permute(*range(n - 1, -1, -1))
    if layout == "expanded" and n >= 2 and t.shape[0]:
        return t[:1].expand(t.shape)
    if layout == "stride 0" and n and t.numel():
        return t[(slice(0, 1),) * n].expand(t.shape)
    return t.contiguous()


@dataclass(frozen=True)
class Spec:
    """A tensor to be made: small enough to print when a test fails."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    seed: int
    signed: bool = False

    def bits(self) -> Tensor:
        if self.signed and self.dtype.is_floating_point:  # a NaN need not keep its bits in arithmetic
            return self.values()
        return laid_out(random_bits(self.shape, self.dtype, self.seed), self.layout)

    def values(self, kind: str = "signed") -> Tensor:
        return laid_out(random_values(self.shape, self.dtype, self.seed, kind), self.layout)

    def like(self, shape: tuple[int, ...], layout: str) -> Spec:
        return replace(self, shape=shape, layout=layout, seed=self.seed + 1)


layouts = st.sampled_from(LAYOUTS)


@st.composite
def images(draw: st.DrawFn, case: Case, dtypes: tuple[torch.dtype, ...]) -> Spec:
    """An input (*lead, H, W) that fits the action: sides 0 … 67, rectangles where no view turns.

    For a permutation the permuted dim stands for H and W, with whatever is behind it.
    """
    if case.size is None:
        most = 67 if case.sides == 2 else 21
        height = draw(st.integers(0, most))
        more = (height if case.action.square else draw(st.integers(0, most)) for _ in range(case.sides - 1))
        moved = (*(n * draw(st.integers(0, 2)) for n in case.channels), height, *more)
    else:
        moved = (case.size, *(draw(st.integers(0, 21)) for _ in range(case.action.dims - 1)))
    lead: tuple[int, ...] = ()
    for _ in range(draw(st.integers(0, 3))):
        room = _LARGEST // max(1, case.order * torch.Size((*moved, *lead)).numel())
        lead = (*lead, draw(st.integers(0, max(1, min(9, room)))))
    if case.multiplies:
        dtypes = FLOATS
    elif case.signed:
        dtypes = tuple(dtype for dtype in dtypes if dtype not in (torch.bool, torch.uint8))
    return Spec((*lead, *moved), draw(st.sampled_from(dtypes)), draw(layouts), draw(st.integers(0, 2**16)), case.signed)


@st.composite
def orbits(draw: st.DrawFn, case: Case, dtypes: tuple[torch.dtype, ...]) -> Spec:
    """The backbone's outputs for every view, (|G|, *lead, H, W)."""
    spec = draw(images(case, dtypes))
    return replace(spec, shape=(case.order, *spec.shape))


@st.composite
def per_view_shape(draw: st.DrawFn, spec: Spec, case: Case) -> tuple[int, ...]:
    """The shape of weights or scores for an orbit: y.shape[:k], k ≥ 1."""
    return spec.shape[: draw(st.integers(1, len(spec.shape) - case.action.dims))]
