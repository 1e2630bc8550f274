"""The C++ kernels of permutations against the torch ones: every dtype, layout, dim and order, sparse and dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from equikern.backends import plain, unavailable
from equikern.backends.cpu import Cpu
from equikern.backends.reference import Reference
from equikern.ops.score import KINDS as SCORES
from equikern.views import Views, still
from equikern.views.maps import Maps
from helpers.looped import each
from helpers.mapped import of_ids, permuting, shown
from helpers.strategies import EXACT, FLOATS, LAYOUTS, Spec, bits, generator, laid_out
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(unavailable("cpu", torch.device("cpu")) is not None, reason="no C++ kernels here"),
    pytest.mark.usefixtures("single_thread"),
]

cpu, reference = Cpu(), Reference()
Told = tuple[Views, Tensor | None]  # what a kernel is told of the maps
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
OPS = (
    "sum",
    "weighted_mean",
    "max",
    "min",
    "gmean",
    "hmean",
    "tsharpen",
    "logodd",
    "log1p",
    "std",
    "mean_std",
    "median",
)
UNSIGNED = (torch.bool, torch.uint8)


def sources(order: int, size: int, moved: int, signs: bool, seed: int) -> Tensor:
    """Any permutations, not those of a group: the first is the identity, the others move `moved` entries or fewer."""
    g = generator(seed)
    views = [torch.arange(size)]
    for _ in range(order - 1):
        view = torch.arange(size)
        chosen = torch.randperm(size, generator=g)[:moved]
        view[chosen] = chosen[torch.randperm(len(chosen), generator=g)]
        views.append(torch.where(torch.rand(size, generator=g) < 0.3, ~view, view) if signs else view)
    return torch.stack(views)


def told(maps: Maps) -> Told:
    return maps.views, maps.tables.own[0]


def nothing(order: int) -> Told:
    return still(order), None


@dataclass(frozen=True)
class Call:
    """Views (order, *lead, size, *tail) of permutations of dim, counted from the end."""

    spec: Spec
    dim: int
    moved: int
    signs: bool

    @property
    def maps(self) -> Told:
        shape = self.spec.shape
        return told(permuting(sources(shape[0], shape[self.dim], self.moved, self.signs, self.spec.seed), self.dim))

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
    layout, seed = draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 2**16))
    signs = not last and dtype not in UNSIGNED and draw(st.booleans())
    return Call(Spec((order, *lead, size, *tail), dtype, layout, seed, signs), dim, min(moved, size), signs)


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
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, *call.maps, 1.0, None, None), out)
    assert torch.equal(bits(ours), bits(theirs))


@given(calls(FLOATS), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_orbit_with_factors(call: Call, k: int, weighted: bool, layout: str) -> None:
    x, weights = call.sample.values(), weights_for(call, k) if weighted else None
    out = call.output(call.spec, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, *call.maps, 0.3, weights, None), out)
    close(ours, theirs)


@given(calls(FLOATS), st.integers(0, 2), st.sampled_from((1.0, 0.5)), st.sampled_from(LAYOUTS))
def test_put(call: Call, m: int, scale: float, layout: str) -> None:
    x, order = call.sample.values(), call.spec.shape[0]
    index = torch.randint(0, order, x.shape[: min(m, x.dim() + call.dim)], generator=generator(call.spec.seed))
    out = call.output(call.spec, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, *call.maps, scale, None, index), out)
    assert torch.equal(ours, theirs)


@given(calls(FLOATS), st.sampled_from(OPS), st.integers(0, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_reduce(call: Call, op: str, k: int, expanded: bool, layout: str) -> None:
    kind = "signed" if op in ("sum", "weighted_mean", "max", "min", "std", "mean_std", "median") else "probs"
    call = replace(call, signs=call.signs and kind == "signed")
    y = call.sample.values(kind).expand(call.spec.shape) if expanded else call.spec.values(kind)
    weights = weights_for(call, k) if op == "weighted_mean" or (op == "sum" and k) else None
    out = call.output(call.sample, layout)
    second = call.output(call.sample, layout) if op == "mean_std" else None
    scale = 0.7 if op == "sum" else 1.0
    if second is None:
        pairs = both(lambda b, t: b.reduce(y, t, *call.maps, op, scale, weights, None, None), out)
    else:
        pairs = both(lambda b, t, u: b.reduce(y, t, *call.maps, op, scale, weights, None, u), out, second)
    for ours, theirs in pairs:
        if op in ("max", "min", "median"):
            assert torch.equal(ours, theirs)
        else:
            close(ours, theirs, 4.0)


INTEGERS = tuple(dtype for dtype in EXACT if not dtype.is_floating_point)


@given(calls(INTEGERS), st.booleans(), st.sampled_from(LAYOUTS))
def test_votes(call: Call, few: bool, layout: str) -> None:
    y = call.spec.values("labels") if few and not call.signs else call.spec.bits()
    out = call.output(call.sample, layout)
    ((ours, theirs),) = both(lambda b, t: b.reduce(y, t, *call.maps, "vote", 1.0, None, None, None), out)
    assert torch.equal(ours, theirs)


@given(calls(FLOATS), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS), st.booleans())
def test_orbit_dot(call: Call, k: int, weighted: bool, layout: str, writes: bool) -> None:
    x, y = call.sample.values(), call.spec.like(call.spec.shape, layout).values()
    weights = weights_for(call, k)
    dots = torch.empty_like(weights)
    maps, chosen = call.maps, weights if weighted else None
    if writes:
        out = call.output(call.spec, layout)
        pair, (ours, theirs) = both(lambda b, t, d: b.orbit_dot(x, y, t, d, *maps, chosen), out, dots)
        close(*pair)
    else:
        ((ours, theirs),) = both(lambda b, d: b.orbit_dot(x, y, None, d, *maps, chosen), dots)
    reference.orbit_dot(x.double(), y.double(), None, exact := theirs.double(), *maps, None)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


@given(calls(EXACT), st.integers(1, 3), st.booleans(), st.sampled_from(LAYOUTS))
def test_select(call: Call, k: int, given_index: bool, layout: str) -> None:
    y, scores = call.spec.bits(), weights_for(call, k)
    out, index = call.output(call.sample, layout), scores.argmin(0)
    if given_index:
        ((ours, theirs),) = both(lambda b, t: b.select(y, t, index, *call.maps, None, True), out)
    else:
        run = both(lambda b, t, i: b.select(y, t, i, *call.maps, scores, False), out, torch.empty_like(index))
        (ours, theirs), (chosen, expected) = run
        assert torch.equal(chosen, expected)
    assert torch.equal(bits(ours), bits(theirs))


@given(
    st.integers(0, 2**16), st.sampled_from((1, 2, 3, 5)), st.sampled_from((1, 7, 100, 5000)), st.sampled_from(LAYOUTS),
    st.sampled_from((torch.int32, torch.int64)), st.lists(st.sampled_from((1, 2, 3, 40)), max_size=3),
)  # fmt: skip
def test_tokens(seed: int, order: int, size: int, layout: str, dtype: torch.dtype, lead: list[int]) -> None:
    ids = torch.randint(0, size, lead, generator=generator(seed)).to(dtype)
    layout = layout if lead else "contiguous"
    maps = told(of_ids(sources(order, size, 20, False, seed)))
    out = Spec((order, *lead), dtype, "sliced" if "e" in layout else layout, seed).bits()
    x = laid_out(ids, layout)
    ((ours, theirs),) = both(lambda b, t: b.orbit(x, t, *maps, 1.0, None, None), out)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [-1, 10, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_out_of_range(bad: int, dtype: torch.dtype) -> None:
    ids = torch.arange(10, dtype=dtype).repeat(3, 1).t()
    ids[4, 1], ids[7, 0] = bad, 99  # the first in the order of the tensor is named
    maps, out = told(of_ids(sources(2, 10, 4, False, 0))), torch.full((2, 10, 3), 5, dtype=dtype)
    messages = []
    for backend in (cpu, reference):
        with pytest.raises(ValueError, match=rf"x: expected token ids from 0 to 9, got {bad}$") as raised:
            backend.orbit(ids, out, *maps, 1.0, None, None)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert bool((out == 5).all())


# --- rows of logits --------------------------------------------------------------------------------------------


def hostile(t: Tensor, kind: str, seed: int) -> Tensor:
    """Logits as they come, in the thousands, with −∞ among them or alone in a row, or with a NaN."""
    t, g = t.clone(), generator(seed)
    if kind == "huge":
        return t * 2500
    if kind == "-inf":
        t[torch.rand(t.shape, generator=g) < 0.2] = -torch.inf
    if kind == "-inf row":
        t[..., : t.shape[-2] // 2 + 1, :] = -torch.inf
    if kind == "nan" and t.numel():
        t.view(-1)[int(torch.randint(0, t.numel(), (), generator=g))] = torch.nan
    return t


KINDS = st.sampled_from(("plain", "plain", "huge", "-inf", "-inf row", "nan"))


@dataclass(frozen=True)
class Logits:
    """Views of logits (order, *lead, V), and maps that permute them or leave them in place."""

    y: Tensor
    maps: Told
    exact: Tensor
    kind: str
    seed: int


@st.composite
def logits(draw: st.DrawFn) -> Logits:
    call = draw(calls(FLOATS, last=True))
    kind, layout = draw(KINDS), draw(st.sampled_from(LAYOUTS))
    y = hostile(call.spec.values().contiguous(), kind, call.spec.seed)
    maps = call.maps if draw(st.booleans()) else nothing(y.shape[0])
    y = laid_out(y, layout)
    return Logits(y, maps, y.double(), kind, call.spec.seed)


def wide_of(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def agree(ours: Tensor, exact: Tensor, case: Logits) -> None:
    """The same NaN and infinities as in float64, and numbers as close as sums of logits of that size allow."""
    tolerance = 4 * TOLERANCE[ours.dtype] * (1000.0 if case.kind == "huge" else 1.0)
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


def output_like(t: Tensor, layout: str) -> Tensor:
    return Spec(tuple(t.shape), t.dtype, "sliced" if layout in ("expanded", "stride 0") else layout, 1).bits()


@given(logits(), st.sampled_from(("probs", "log_probs")), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
def test_softmax_mean(case: Logits, space: str, layout: str, grad_layout: str) -> None:
    y, exact = case.y, case.exact
    out, lse = output_like(y[0], layout), torch.empty(y.shape[:-1], dtype=wide_of(y))
    cpu.softmax_mean(y, out, lse, *case.maps, space)
    expected, expected_lse = torch.empty(out.shape, dtype=torch.float64), torch.empty(lse.shape, dtype=torch.float64)
    reference.softmax_mean(exact, expected, expected_lse, *case.maps, space)
    agree(out, expected, case)
    agree(lse, expected_lse, case)

    grad = laid_out(Spec(tuple(out.shape), y.dtype, "contiguous", case.seed).values(), grad_layout)
    slope, expected_slope = output_like(y, layout), torch.empty(y.shape, dtype=torch.float64)
    cpu.softmax_mean_backward(grad, y, lse, slope, *case.maps, space)
    reference.softmax_mean_backward(grad.double(), exact, expected_lse, expected_slope, *case.maps, space)
    scale = 1.0 + float(grad.abs().sum(-1).max().nan_to_num()) if space == "log_probs" and grad.numel() else 1.0
    agree(slope / scale, expected_slope / scale, case)


@given(logits(), st.sampled_from(SCORES))
def test_score(case: Logits, kind: str) -> None:
    out, expected = torch.empty(case.y.shape[:-1], dtype=wide_of(case.y)), torch.empty(case.y.shape[:-1]).double()
    cpu.score(case.y, out, kind)
    reference.score(case.exact, expected, kind)
    agree(out, expected, case)


@given(logits(), st.sampled_from(SCORES), st.booleans(), st.sampled_from(LAYOUTS), st.integers(1, 4))
def test_score_select(case: Logits, kind: str, minimum: bool, layout: str, threads: int) -> None:
    scores = torch.empty(case.y.shape[:-1], dtype=wide_of(case.y))
    index, expected_index = (torch.full(case.y.shape[1:-1], 99) for _ in range(2))
    out, expected = output_like(case.y[0], layout), output_like(case.y[0], layout)
    torch.set_num_threads(threads)
    cpu.score_select(case.y, out, index, *case.maps, kind, minimum)
    torch.set_num_threads(1)
    cpu.score(case.y, scores, kind)
    cpu.select(case.y, expected, expected_index, *case.maps, scores, minimum)
    assert torch.equal(index, expected_index)
    assert torch.equal(bits(out), bits(expected))


@given(
    logits(), st.sampled_from(("logits", "probs", "log_probs")), st.sampled_from((0.0, 0.1, 1.0)),
    st.booleans(), st.sampled_from(list(product((0.0, 0.02), (0.0, 3.0), (False, True)))), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_cross_entropy(
    case: Logits, space: str, smoothing: float, scaled: bool, terms: tuple[float, float, bool], layout: str
) -> None:
    y, size = case.y, case.y.shape[-1]
    target = torch.randint(0, size, y.shape[1:-1], generator=generator(case.seed))
    target = torch.where(torch.rand(target.shape, generator=generator(case.seed)) < 0.3, -7, target)
    loss, grad = torch.empty(target.shape, dtype=wide_of(y)), output_like(y, layout)
    scale = torch.tensor(0.3, dtype=loss.dtype) if scaled else None
    z_loss, softcap, weighed = terms
    weight = torch.rand(size, dtype=loss.dtype, generator=generator(case.seed)) if weighed else None
    call = *case.maps, space, -7, smoothing, scale, z_loss, softcap, weight
    cpu.cross_entropy(y, target, loss, grad, *call)
    exact_loss, exact_grad = torch.empty(target.shape).double(), torch.empty(y.shape).double()
    # Capped logits are rounded once more before anything is computed of them.
    exact = plain.capped(y, softcap).double() if softcap else case.exact
    wide = None if weight is None else weight.double()
    reference.cross_entropy(exact, target, exact_loss, exact_grad, *call[:-2], 0.0, wide)
    if softcap:
        exact_grad *= plain.cap_slope(case.exact, softcap)
        exact_grad[:, target == -7] = 0.0  # also where a logit, and so the slope, is NaN
    agree(loss, exact_loss, case)
    agree(grad, exact_grad, case)
    assert not grad[:, target == -7].any()
    alone = torch.empty_like(loss)
    cpu.cross_entropy(y, target, alone, None, *call)
    assert torch.equal(bits(alone), bits(loss))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_caps_of_logits_of_every_size(dtype: torch.dtype) -> None:
    """All digits of c · tanh(y / c) and of its slope, as far as they are normal numbers."""
    sizes = torch.logspace(-30, 3, 997, dtype=torch.float64)
    y, c = torch.cat((sizes, -sizes)).to(dtype), 0.75
    exact = y.double()
    loss, slope = torch.empty(1, dtype=dtype), torch.empty(1, 1, len(y), dtype=dtype)
    target = torch.zeros(1, dtype=torch.int64)
    cpu.cross_entropy(y[None, None], target, loss, slope, still(1), None, "logits", -100, 0.0, None, 0.0, c, None)
    capped = c * (exact / c).tanh()
    expected = capped.softmax(0) / (exact / c).cosh() ** 2
    eps = torch.finfo(dtype).eps
    normal = expected > torch.finfo(dtype).tiny * 4
    torch.testing.assert_close(
        slope[0, 0, 1:][normal[1:]].double(), expected[1:][normal[1:]], rtol=2000 * eps, atol=0.0
    )
    # The loss of two words tells the logit of one: log(1 + e^(y − y')) for y' = 0.
    for x in (1e-9, 1e-4, 0.3, 0.46, 0.47, 0.8, 5.0, -0.3, -0.47, -2.0):
        pair, value = torch.tensor([[[x, 0.0]]], dtype=dtype), torch.empty(1, dtype=dtype)
        cpu.cross_entropy(pair, target, value, None, still(1), None, "logits", -100, 0.0, None, 0.0, c, None)
        exact = torch.nn.functional.softplus(-c * (pair[0, 0, 0].double() / c).tanh())
        torch.testing.assert_close(value[0].double(), exact, rtol=4 * eps, atol=0.0)


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_invalid_target(bad: int) -> None:
    y, target = torch.randn(2, 3, 2, 5), torch.zeros(3, 2, dtype=torch.int64)
    target[1, 1], target[2, 0] = bad, 77
    loss, grad = torch.full((3, 2), 5.0), torch.full(y.shape, 5.0)
    messages = []
    for backend in (cpu, reference):
        with pytest.raises(ValueError, match=rf"target: expected 0 … 4 or -100, got {bad}$") as raised:
            backend.cross_entropy(y, target, loss, grad, *nothing(2), "logits", -100, 0.0, None)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert bool((loss == 5).all())
    assert bool((grad == 5).all())


@pytest.mark.parametrize("size", [8, 1000, 70_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_with_any_number_of_threads(size: int, dtype: torch.dtype) -> None:
    rows = max(2, 200_000 // size)
    maps = told(permuting(sources(3, size, min(size, 40), False, 0)))
    y, target = torch.randn(3, rows, size).to(dtype), torch.arange(rows) % size

    def results() -> list[Tensor]:
        mean, p, grad, back = (torch.empty_like(t) for t in (y[0], y[0], y, y))
        lse, loss, dots = torch.empty(3, rows), torch.empty(rows), torch.empty(3)
        cpu.reduce(y, mean, *maps, "sum", 1 / 3, None, None, None)
        cpu.softmax_mean(y, p, lse, *maps, "probs")
        cpu.cross_entropy(y, target, loss, grad, *maps, "probs", -100, 0.1, None)
        cpu.orbit_dot(mean, y, None, dots, *maps, None)
        cpu.softmax_mean_backward(mean, y, lse, back, *maps, "log_probs")
        return [mean, p, lse, loss, grad, dots, back]

    first = results()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            again = results()
        finally:
            torch.set_num_threads(1)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, again, strict=True))


PRECISION = (("logits", 0.0), ("logits", 0.1), ("probs", 0.0), ("log_probs", 0.1))


@pytest.mark.parametrize(("space", "smoothing"), PRECISION)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_loss_and_gradient_as_precise_as_torch(space: str, smoothing: float, scale: float) -> None:
    order, size = 2, 5000
    whole = sources(order, size, 60, False, 3)
    maps = told(permuting(whole))
    y = torch.randn(order, 6, size, generator=generator(0)) * scale
    target = torch.randint(0, size, (6,), generator=generator(1))

    def plain(t: Tensor) -> tuple[Tensor, Tensor]:
        leaf = t.clone().requires_grad_()
        views = torch.stack([view[:, source] for view, source in zip(leaf, whole, strict=True)])
        if space == "logits":
            log_q = views.mean(0).log_softmax(-1)
        elif space == "log_probs":
            log_q = views.log_softmax(-1).mean(0)
        else:
            log_q = views.softmax(-1).mean(0).log()
        picked = log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        loss = -(1 - smoothing) * picked - smoothing * log_q.mean(-1)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), slope

    loss, grad = torch.empty(6), torch.empty_like(y)
    cpu.cross_entropy(y, target, loss, grad, *maps, space, -100, smoothing, None)
    for ours, theirs, exact in zip((loss, grad), plain(y), plain(y.double()), strict=True):
        unit = torch.finfo(torch.float32).eps * exact.abs().max()
        if bool(theirs.isfinite().all()):  # probabilities themselves may underflow in torch
            assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + unit
        else:
            assert bool(ours.isfinite().all())


@each("weighted", [False, True])
@each("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
# From all in place to most moved, across the share from which a band is rearranged; and a result that outgrows caches.
@each(("rows", "size", "moved"), [(3, 4096, n) for n in (0, 1, 50, 90, 2000)] + [(64, 50_257, 61)])
def test_moved_entries_are_summed_like_all_others(
    rows: int, size: int, moved: int, dtype: torch.dtype, signed: bool, weighted: bool
) -> None:
    g, perms = generator(5), [torch.arange(size) for _ in range(3)]
    for view in perms[1:]:
        chosen = torch.randperm(size, generator=g)[:moved]
        view[chosen] = chosen.roll(1) if not signed else ~chosen.roll(1)
    maps = permuting(torch.stack(perms))
    y = torch.randn(3, rows, size).to(dtype)
    weights = (
        torch.rand(3, rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32) if weighted else None
    )
    views = torch.stack([shown(maps, view, g) for g, view in enumerate(y)])
    sums = [torch.empty(rows, size, dtype=dtype) for _ in range(2)]
    cpu.reduce(y, sums[0], *told(maps), "sum", 0.5, weights, None, None)
    cpu.reduce(views, sums[1], *nothing(3), "sum", 0.5, weights, None, None)
    assert torch.equal(bits(sums[0]), bits(sums[1]))
