"""The C++ kernels of permutations against the torch ones: every dtype, layout, dim and order, sparse and dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from equikern import tables
from equikern.backends import cpu, reference, unavailable
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXACT, FLOATS, LAYOUTS, Spec, bits, generator
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(unavailable("cpu", torch.device("cpu")) is not None, reason="no C++ kernels here"),
    pytest.mark.usefixtures("single_thread"),
]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
OPS = ("sum", "weighted_mean", "max", "min", "gmean", "hmean", "tsharpen", "logodd", "std", "mean_std")
UNSIGNED = (torch.bool, torch.uint8)


def words(kind: str, order: int, size: int, moved: int, signs: bool, seed: int) -> str:
    """Any permutations, not those of a group: the first is the identity, the others move `moved` entries or fewer."""
    g = generator(seed)
    views = [torch.arange(size)]
    for _ in range(order - 1):
        view = torch.arange(size)
        chosen = torch.randperm(size, generator=g)[:moved]
        view[chosen] = chosen[torch.randperm(len(chosen), generator=g)]
        views.append(torch.where(torch.rand(size, generator=g) < 0.3, ~view, view) if signs else view)
    return " ".join(tables.register(kind, view) for view in views)


@dataclass(frozen=True)
class Call:
    """Views (order, *lead, size, *tail) of permutations of dim, counted from the end."""

    spec: Spec
    dim: int
    moved: int
    signs: bool

    @property
    def maps(self) -> str:
        shape = self.spec.shape
        return words(f"p{self.dim}", shape[0], shape[self.dim], self.moved, self.signs, self.spec.seed)

    @property
    def sample(self) -> Spec:
        return replace(self.spec, shape=self.spec.shape[1:])

    def output(self, spec: Spec, layout: str) -> Tensor:
        """Memory with something in it, of any strides that do not overlap."""
        layout = "sliced" if layout in ("expanded", "stride 0") else layout
        return spec.like(spec.shape, layout).bits()


@st.composite
def calls(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], last: bool = False) -> Call:
    dtype = draw(st.sampled_from(dtypes))
    order = draw(st.sampled_from((1, 2, 3, 5)))
    size = draw(st.sampled_from((1, 2, 3, 7, 8, 16, 31, 33, 64, 130, 1500)))
    dim = -1 if last else draw(st.sampled_from((-1, -1, -2, -3)))
    lead = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 9)), max_size=2)))
    tail = tuple(draw(st.sampled_from((1, 2, 5, 17, 40))) for _ in range(-dim - 1))
    moved = draw(st.sampled_from((0, 2, 5, size)))
    spec = Spec((order, *lead, size, *tail), dtype, draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 2**16)))
    return Call(spec, dim, min(moved, size), not last and dtype not in UNSIGNED and draw(st.booleans()))


def weights_for(call: Call, k: int) -> Tensor:
    shape = call.spec.shape[: max(1, min(k, len(call.spec.shape) + call.dim))]
    wide = torch.float64 if call.spec.dtype == torch.float64 else torch.float32
    return torch.rand(shape, generator=generator(call.spec.seed), dtype=torch.float64).to(wide) + 0.1


def both(run: Any, *outputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each backend writes into copies of the outputs, strides kept."""
    ours = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in outputs]
    theirs = [t.clone() for t in outputs]
    run(cpu, *ours)
    run(reference, *theirs)
    return list(zip(ours, theirs, strict=True))


def close(ours: Tensor, theirs: Tensor, scale: float = 1.0) -> None:
    tolerance = TOLERANCE[theirs.dtype] * scale
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


@given(calls(EXACT), st.sampled_from(LAYOUTS))
def test_orbit_moves_bits(call: Call, layout: str) -> None:
    x = call.sample.bits()
    out = call.output(call.spec, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, call.maps, 1.0, None, None), out)
    assert torch.equal(bits(ours), bits(theirs))


@given(calls(FLOATS), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_orbit_with_factors(call: Call, k: int, weighted: bool, layout: str) -> None:
    x, weights = call.sample.values(), weights_for(call, k) if weighted else None
    out = call.output(call.spec, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, call.maps, 0.3, weights, None), out)
    close(ours, theirs)


@given(calls(FLOATS), st.integers(0, 2), st.sampled_from((1.0, 0.5)), st.sampled_from(LAYOUTS))
def test_put(call: Call, m: int, scale: float, layout: str) -> None:
    x, order = call.sample.values(), call.spec.shape[0]
    index = torch.randint(0, order, x.shape[: min(m, x.dim() + call.dim)], generator=generator(call.spec.seed))
    out = call.output(call.spec, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, call.maps, scale, None, index), out)
    assert torch.equal(ours, theirs)


@given(calls(FLOATS), st.sampled_from(OPS), st.integers(0, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_reduce(call: Call, op: str, k: int, expanded: bool, layout: str) -> None:
    kind = "signed" if op in ("sum", "weighted_mean", "max", "min", "std", "mean_std") else "probs"
    call = replace(call, signs=call.signs and kind == "signed")
    y = call.sample.values(kind).expand(call.spec.shape) if expanded else call.spec.values(kind)
    weights = weights_for(call, k) if op == "weighted_mean" or (op == "sum" and k) else None
    out = call.output(call.sample, layout)
    second = call.output(call.sample, layout) if op == "mean_std" else None
    scale = 0.7 if op == "sum" else 1.0
    if second is None:
        pairs = both(lambda b, t: b.reduce(y, t, call.maps, op, scale, weights, None), out)
    else:
        pairs = both(lambda b, t, u: b.reduce(y, t, call.maps, op, scale, weights, u), out, second)
    for ours, theirs in pairs:
        if op in ("max", "min"):
            assert torch.equal(ours, theirs)
        else:
            close(ours, theirs, 4.0)


@given(calls(FLOATS), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS), st.booleans())
def test_orbit_dot(call: Call, k: int, weighted: bool, layout: str, writes: bool) -> None:
    x, y = call.sample.values(), call.spec.like(call.spec.shape, layout).values()
    weights = weights_for(call, k)
    dots = torch.empty_like(weights)
    maps, chosen = call.maps, weights if weighted else None
    if writes:
        out = call.output(call.spec, layout)
        pair, (ours, theirs) = both(lambda b, t, d: b.orbit_dot(x, y, t, d, maps, chosen), out, dots)
        close(*pair)
    else:
        ((ours, theirs),) = both(lambda b, d: b.orbit_dot(x, y, None, d, maps, chosen), dots)
    reference.orbit_dot(x.double(), y.double(), None, exact := theirs.double(), maps, None)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


@given(calls(EXACT), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_select(call: Call, k: int, given_index: bool, layout: str) -> None:
    y, scores = call.spec.bits(), weights_for(call, k)
    out, index = call.output(call.sample, layout), scores.argmin(0)
    if given_index:
        ((ours, theirs),) = both(lambda b, t: b.select(y, t, index, call.maps, None, True), out)
    else:
        run = both(lambda b, t, i: b.select(y, t, i, call.maps, scores, False), out, torch.empty_like(index))
        (ours, theirs), (chosen, expected) = run
        assert torch.equal(chosen, expected)
    assert torch.equal(bits(ours), bits(theirs))
