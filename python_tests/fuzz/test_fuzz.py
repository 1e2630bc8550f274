"""Random calls of every operator against its definition: actions × dtypes × layouts × special values × gradients.

Each operand has a layout of its own. 60 examples a backend and instruction set, 500 with ``EQUIKERN_THOROUGH=1``,
50,000 with ``--nightly``. A failure is shrunk, and hypothesis prints how to reproduce it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import equikern
import pytest
import torch
from equikern import (
    linear_orbit_cross_entropy,
    orbit,
    orbit_act,
    orbit_cross_entropy,
    orbit_mean,
    orbit_reduce,
    orbit_score,
    orbit_select,
    orbit_variance,
    orbit_weighted_mean,
    symmetrize,
)
from equikern.backends import unavailable
from helpers import definitions, fresh
from helpers.situations import ANY, Situation, drawn_tensor, situations
from helpers.strategies import EXACT, FLOATS, LAYOUTS, bits, generator, laid_out
from helpers.thorough import THOROUGH
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("max_prob", "entropy", "margin", "max")
SPACES = (None, "probs", "log_probs")


def equal(what: str, got: Tensor, exact: Tensor, moved: bool) -> None:
    """Bit for bit where entries only move; else the same values, and NaN where there is one."""
    assert got.shape == exact.shape, f"{what}: {tuple(got.shape)} for {tuple(exact.shape)}"
    if moved:
        assert torch.equal(bits(got), bits(exact)), what
    else:
        torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")


def near(what: str, got: Tensor, exact: Tensor, scale: Tensor | None = None, factor: float = 1.0) -> None:
    """Within the rounding of the result, and of sums as large as ``scale``."""
    assert got.shape == exact.shape, f"{what}: {tuple(got.shape)} for {tuple(exact.shape)}"
    info = torch.finfo(got.dtype)
    wide = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32)
    found = got.detach().double()
    exact = exact.detach()
    size = exact.abs() if scale is None else scale.detach().expand_as(exact)
    room = 2 * info.eps * exact.abs() + 2 * info.smallest_normal + factor * 64 * wide.eps * size
    overflow = exact.abs() > info.max * (1 - 2 * info.eps)
    right = (
        ((found - exact).abs() <= room)
        | (found.isnan() & exact.isnan())
        | (found == exact)
        | (overflow & found.isinf())
    )
    # Where sums of infinities and numbers meet, the oracle's own scale is not finite.
    right |= ~size.isfinite() & (found.isnan() | found.isinf()) & ~exact.isfinite()
    if not bool(right.all()):
        at = tuple((~right).nonzero()[0].tolist())
        raise AssertionError(f"{what} at {at}: {found[at]} for {exact[at]}, allowed {room[at]}")


def wanted_out(draw: st.DrawFn, call: Callable[..., Any], result: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """The same call into memory of the caller's in any layout that has room, and into an input's, which is refused."""
    layout = draw(st.sampled_from(("contiguous", "channels_last", "sliced", "rows", "transposed", "reversed")))
    blank = torch.zeros_like(result, memory_format=torch.contiguous_format)
    out = laid_out(blank, layout)
    with torch.no_grad():
        again = call(out=out)
        assert (again[0] if isinstance(again, tuple) else again).data_ptr() == out.data_ptr()
        equal(f"out {layout}", out, result.detach(), False)
        for t in inputs:
            if t.shape == result.shape and t.dtype == result.dtype and t.numel() and t.is_contiguous():
                with pytest.raises(ValueError, match="out"):
                    call(out=t)


def gradients(
    draw: st.DrawFn,
    what: str,
    call: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    steep: float = 1.0,
) -> None:
    """First and second derivatives in float64 of a call and of its definition, the second's terms as large as steep."""
    ours = [t.detach().double().requires_grad_() for t in inputs]
    theirs = [t.detach().double().clone().requires_grad_() for t in inputs]
    result, truth = call(*ours), exact(*theirs)
    if not result.requires_grad:
        return
    incoming = drawn_tensor(draw, "the incoming gradient", tuple(result.shape), torch.float64, "positive")
    once = torch.autograd.grad(result, ours, incoming, retain_graph=True)  # which may be another kernel's
    found = torch.autograd.grad(result, ours, incoming, create_graph=True)
    right = torch.autograd.grad(truth, theirs, incoming, create_graph=True)
    for k, (a, c, b) in enumerate(zip(found, once, right, strict=True)):
        near(f"{what}: gradient {k}", a, b, b.detach().abs().max() + 1 if b.numel() else None, 1e3)
        near(f"{what}: gradient {k}, once", c, b, b.detach().abs().max() + 1 if b.numel() else None, 1e3)
    again = [(t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in found]
    truths = [(t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in right]
    if not any(t.requires_grad for t in truths):
        return
    second = torch.autograd.grad(sum(again), ours, allow_unused=True)  # type: ignore[arg-type]
    expected = torch.autograd.grad(sum(truths), theirs, allow_unused=True)  # type: ignore[arg-type]
    for k, (c, d) in enumerate(zip(second, expected, strict=True)):
        if c is not None and d is not None:
            near(f"{what}: second derivative {k}", c, d, d.abs().max() + steep if d.numel() else None, 1e4)
        else:
            assert all(t is None or not t.any() for t in (c, d)), what


Linear = Callable[[Tensor], Tensor]


def dtype_for(draw: st.DrawFn, s: Situation, exact: bool) -> torch.dtype:
    dtypes = EXACT if exact and not s.definition.computes else FLOATS
    if s.definition.signed:
        dtypes = tuple(d for d in dtypes if d not in (torch.bool, torch.uint8))
    return draw(st.sampled_from(dtypes))


def moves(s: Situation) -> bool:
    return not s.definition.signed


def whole(draw: st.DrawFn, s: Situation, x: Tensor, call: Callable[..., Tensor], exact: Linear) -> None:
    """A linear operator of one tensor that makes views."""
    result = call(x)
    if s.definition.computes:
        wide = exact(x.double())
        scale = size_of(x)
        near(s.name, result, wide, scale)
    else:
        equal(s.name, result, exact(x), moves(s))
    if draw(st.booleans()):
        wanted_out(draw, lambda out: call(x, out=out), result, (x,))


def size_of(t: Tensor) -> Tensor:
    """How large the sums of a few of its numbers can be."""
    return t.double().abs().nan_to_num(0, 0, 0).max() * 8 if t.numel() else torch.zeros(())


# -- the operators


def an_orbit(draw: st.DrawFn) -> None:
    s = draw(situations((*ANY, "tokens")))
    if s.definition.ids:
        return an_orbit_of_ids(draw, s)
    dtype = dtype_for(draw, s, True)
    x = drawn_tensor(draw, "x", s.shape, dtype)
    whole(draw, s, x, lambda t, **out: orbit(t, s.action, **out), s.definition.orbit)
    if dtype.is_floating_point and draw(st.booleans()):
        t = drawn_tensor(draw, "x", s.shape, torch.float64, "positive")
        gradients(draw, "orbit", lambda t: orbit(t, s.action), s.definition.orbit, (t,))


def an_orbit_of_ids(draw: st.DrawFn, s: Situation) -> None:
    dtype = draw(st.sampled_from((torch.int32, torch.int64)))
    ids = drawn_tensor(draw, "ids", s.shape, dtype).abs() % s.action.views.size
    ids = laid_out(ids, draw(st.sampled_from(LAYOUTS)))
    equal("ids", orbit(ids, s.action), s.definition.orbit(ids), True)


def an_act(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    x = drawn_tensor(draw, "x", (draw(st.integers(0, 5)), *s.shape), dtype_for(draw, s, True))
    elements = torch.randint(0, s.group_order, (len(x),), generator=generator(draw(st.integers(0, 99))))
    elements = laid_out(elements, draw(st.sampled_from(("contiguous", "sliced", "stride 0"))))
    inverse = draw(st.booleans())
    maps = s.definition.inverses if inverse else s.definition.maps

    def exact(t: Tensor) -> Tensor:
        return torch.stack([maps[g](v) for g, v in zip(elements.tolist(), t, strict=True)]) if len(t) else t

    whole(draw, s, x, lambda t, **out: orbit_act(t, elements, s.action, inverse=inverse, **out), exact)
    t = drawn_tensor(draw, "x", tuple(x.shape), torch.float64, "positive")
    gradients(draw, "act", lambda t: orbit_act(t, elements, s.action, inverse=inverse), exact, (t,))


def a_symmetrize(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    x = drawn_tensor(draw, "x", s.shape, dtype_for(draw, s, False))
    result = symmetrize(x, s.action)
    near("symmetrize", result, s.definition.orbit(x.double()).mean(0), size_of(x))
    if draw(st.booleans()):
        wanted_out(draw, lambda out: symmetrize(x, s.action, out=out), result, (x,))
    t = drawn_tensor(draw, "x", s.shape, torch.float64, "positive")
    gradients(draw, "symmetrize", lambda t: symmetrize(t, s.action), lambda t: s.definition.orbit(t).mean(0), (t,))


def views_of(draw: st.DrawFn, s: Situation, dtype: torch.dtype, kind: str = "signed", spread: bool = True) -> Tensor:
    return drawn_tensor(draw, "y", (s.group_order, *s.shape), dtype, kind, spread)


def a_mean(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    dtype = dtype_for(draw, s, False)
    y = views_of(draw, s, dtype)
    group = isinstance(s.action, equikern.GroupAction)
    plus = drawn_tensor(draw, "plus", s.shape, dtype) if group and draw(st.booleans()) else None
    scale = size_of(y)

    def exact(y: Tensor, plus: Tensor | None = None) -> Tensor:
        mean = s.definition.undone(y).mean(0)
        return mean if plus is None else mean + s.definition.orbit(plus).mean(0)

    result = orbit_mean(y, s.action, plus=plus)
    near("mean", result, exact(y.double(), None if plus is None else plus.double()), scale + 8)
    if draw(st.booleans()):
        wanted_out(draw, lambda out: orbit_mean(y, s.action, plus=plus, out=out), result, (y,))
    given = [views_of(draw, s, torch.float64, "positive")]
    if plus is not None:
        given.append(drawn_tensor(draw, "plus", s.shape, torch.float64, "positive"))
    gradients(draw, "mean", lambda y, plus=None: orbit_mean(y, s.action, plus=plus), exact, tuple(given))


def a_weighted_mean(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    y = views_of(draw, s, dtype_for(draw, s, False))
    k = draw(st.integers(1, 1 + len(s.shape) - s.action.dims))
    normalize: Any = draw(st.sampled_from(("sum", "softmax", None)))
    dtype = draw(st.sampled_from(FLOATS))
    weights = drawn_tensor(draw, "weights", tuple(y.shape[:k]), dtype, "positive")

    def exact(y: Tensor, w: Tensor) -> Tensor:
        if normalize is not None:
            w = w / w.sum(0) if normalize == "sum" else w.softmax(0)
        return (w.reshape(*w.shape, *(1,) * (y.dim() - w.dim())) * s.definition.undone(y)).sum(0)

    result = orbit_weighted_mean(y, weights, s.action, normalize)
    scale = 2 * size_of(y)
    wide = weights.to(torch.float64 if y.dtype == torch.float64 else torch.float32).double()
    near("weighted mean", result, exact(y.double(), wide), scale + 8)
    t, w = (
        views_of(draw, s, torch.float64, "positive"),
        drawn_tensor(draw, "w", tuple(y.shape[:k]), torch.float64, "positive"),
    )
    gradients(draw, "weighted mean", lambda y, w: orbit_weighted_mean(y, w, s.action, normalize), exact, (t, w))


def a_reduction(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    op: Any = draw(st.sampled_from((*definitions.REDUCTIONS, "mean_std")))
    dtype = dtype_for(draw, s, False)
    kind = {"logodd": "shares", "std": "far", "mean_std": "far"}.get(op, "positive")
    y = views_of(draw, s, dtype, kind)
    if s.definition.signed and op in ("gmean", "tsharpen", "log1p", "hmean"):
        return  # values of any sign
    v = s.definition.undone(y.double())
    scale = v.abs().amax() + 1 if v.numel() else torch.zeros(())
    if op == "logodd" and s.definition.computes and v.numel():  # products near the poles
        edge = (v * (1 - v)).abs().amin(0)
        if bool((edge < 1e-4).any()):
            return
        scale = scale / edge
    result = orbit_reduce(y, s.action, op)
    if op in ("max", "min"):
        shares_of_extrema(draw, s, op, y)
    if op == "mean_std":
        near("mean", result[0], v.mean(0), scale)
        near("std of a pair", result[1], definitions.REDUCTIONS["std"](v), spread_scale(v, dtype))
        return
    truth = definitions.REDUCTIONS[op](v)
    near(op, result, truth, spread_scale(v, dtype) if op == "std" else scale, 4.0)
    if draw(st.booleans()):
        wanted_out(draw, lambda out: orbit_reduce(y, s.action, op, out=out), result, (y,))
    t = views_of(draw, s, torch.float64, "shares" if op == "logodd" else "positive", False)
    if op != "std" or s.group_order > 1:
        exact = definitions.REDUCTIONS[op]
        steep = 1.0  # of a deviation d they are differences of terms as large as 1/d
        if op == "std" and t.numel():
            steep = max(1.0, 1.0 / (float(exact(s.definition.undone(t)).min()) + 1e-300))
        gradients(
            draw, op, lambda y: orbit_reduce(y, s.action, op), lambda y: exact(s.definition.undone(y)), (t,), steep
        )


def shares_of_extrema(draw: st.DrawFn, s: Situation, op: Any, y: Tensor) -> None:
    """The gradient is the same, bit by bit, whether or not it will be differentiated again: ties, NaN and all."""
    leaf = y.detach().requires_grad_()
    result = orbit_reduce(leaf, s.action, op)
    incoming = drawn_tensor(draw, "the incoming gradient", tuple(result.shape), y.dtype)
    (once,) = torch.autograd.grad(result, leaf, incoming, retain_graph=True)
    (again,) = torch.autograd.grad(result, leaf, incoming, create_graph=True)
    equal(f"{op}: gradient", once, again.detach(), False)


def spread_scale(v: Tensor, dtype: torch.dtype) -> Tensor:
    """A spread is off by roundings of values around their mean, and of products where views are computed; in float64,
    where nothing is wider, by those of the values.
    """
    if not v.numel():
        return torch.zeros(())
    if dtype == torch.float64:
        return v.abs().amax()
    return (v - v.mean(0)).abs().amax() + v.abs().amax() * 2e-3


def a_variance(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    dims = draw(st.integers(0, len(s.shape) - s.action.dims))
    dtype = dtype_for(draw, s, False)
    y = views_of(draw, s, dtype, "far")
    v = s.definition.undone(y.double())
    # Deviations are rounded to y's dtype, and are off as those of std.
    widest, off = (v - v.mean(0)).abs().amax() if v.numel() else 0.0, spread_scale(v, dtype)
    scale = (widest + off) * off * (torch.finfo(dtype).eps / torch.finfo(torch.float32).eps + 1.0)
    near("variance", orbit_variance(y, s.action, dims), definitions.variance(v, dims), scale, 8.0)
    t = views_of(draw, s, torch.float64, "positive", False)

    def exact(y: Tensor) -> Tensor:
        return definitions.variance(s.definition.undone(y), dims)

    gradients(draw, "variance", lambda y: orbit_variance(y, s.action, dims), exact, (t,))


def a_vote(draw: st.DrawFn) -> None:
    s = draw(situations(("grid", "still", "permutation")))
    if s.definition.signed:
        return
    dtype = draw(st.sampled_from(tuple(d for d in EXACT if not d.is_floating_point)))
    y = drawn_tensor(draw, "y", (s.group_order, *s.shape), dtype)
    y = laid_out(y if dtype == torch.bool else y % 3, draw(st.sampled_from(LAYOUTS)))
    v = s.definition.undone(y)
    counts = torch.stack([(v == w).sum(0) for w in v])
    best = v.to(torch.int64).masked_fill(counts < counts.amax(0), 2**40).amin(0).to(dtype)
    equal("vote", orbit_reduce(y, s.action, "vote"), best, True)


def a_select(draw: st.DrawFn) -> None:
    s = draw(situations(ANY))
    y = views_of(draw, s, dtype_for(draw, s, True))
    k = draw(st.integers(1, 1 + len(s.shape) - s.action.dims))
    scores = drawn_tensor(draw, "scores", tuple(y.shape[:k]), draw(st.sampled_from(FLOATS)))
    mode: Any = draw(st.sampled_from(("min", "max")))
    result, index = orbit_select(y, scores, s.action, mode, return_index=True)
    key = scores.double() if mode == "min" else -scores.double()
    key = key.nan_to_num(nan=math.inf, posinf=1e300, neginf=-1e300)
    best = torch.zeros(key.shape[1:], dtype=torch.int64)
    least = key[0]
    for g in range(1, len(key)):
        best, least = torch.where(key[g] < least, g, best), torch.minimum(least, key[g])
    equal("index", index, best, True)
    if y.numel():
        v = s.definition.undone(y.double() if s.definition.computes else y)
        where = best.reshape(1, *best.shape, *(1,) * (v.dim() - 1 - best.dim())).expand(1, *v.shape[1:])
        exact = bits(v).gather(0, where)[0].view(v.dtype)  # torch's own makes other NaN of a bfloat16's
        if s.definition.computes:
            near("select", result, exact, size_of(y))
        else:
            equal("select", result, exact, moves(s))


def logits(draw: st.DrawFn, s: Situation) -> Tensor:
    """Views of logits, of models as unsure or as sure as they come."""
    y = drawn_tensor(draw, "y", (s.group_order, *s.shape), draw(st.sampled_from(FLOATS)), "positive")
    return (y - 0.7) * draw(st.sampled_from((1, 1, 30, 300)))


@st.composite
def rows(draw: st.DrawFn) -> Situation:
    s: Situation = draw(situations(("rows", "still")))
    if s.name == "still":
        s.shape = (*s.shape, draw(st.sampled_from((1, 2, 5, 17, 200))))
    return s


def a_score(draw: st.DrawFn) -> None:
    s = draw(rows())
    kind: Any = draw(st.sampled_from(KINDS))
    y = logits(draw, s)
    near(
        kind,
        orbit_score(y, kind),
        definitions.score(y.double(), kind),
        y.double().abs().amax() + 1 if y.numel() else None,
    )
    result, index = orbit_select(y, kind, s.action, return_index=True)
    same, other = orbit_select(y, orbit_score(y, kind), s.action, return_index=True)
    equal("score_select", result, same, True)
    equal("choice", index, other, True)
    t = drawn_tensor(draw, "y", (s.group_order, *s.shape), torch.float64, "signed", False)
    gradients(draw, kind, lambda y: orbit_score(y, kind), lambda y: definitions.score(y, kind), (t,))


def a_mean_of_probabilities(draw: st.DrawFn) -> None:
    s = draw(rows())
    space: Any = draw(st.sampled_from(SPACES[1:]))
    y = logits(draw, s)
    result = orbit_mean(y, s.action, space)
    scale = y.double().abs().amax() * 2 + 1 if y.numel() else None

    def exact(y: Tensor) -> Tensor:
        p = y.softmax(-1) if space == "probs" else y.log_softmax(-1)
        return s.definition.undone(p).mean(0)

    near(space, result, exact(y.double()), scale)
    t = drawn_tensor(draw, "y", (s.group_order, *s.shape), torch.float64, "positive")
    gradients(draw, space, lambda y: orbit_mean(y, s.action, space), exact, (t,))


def a_cross_entropy(draw: st.DrawFn) -> None:
    s = draw(rows())
    space: Any = draw(st.sampled_from(SPACES))
    smoothing = draw(st.sampled_from((0.0, 0.0, 0.1, 1.0)))
    g = generator(draw(st.integers(0, 99)))
    target = torch.randint(0, s.shape[-1], s.shape[:-1], generator=g)
    target = torch.where(torch.rand(target.shape, generator=g) < 0.2, -100, target)
    y = logits(draw, s)
    chosen = drawn_tensor(draw, "class weights", s.shape[-1:], torch.float32, "positive", spread=False)
    chosen[: draw(st.integers(0, 1))] = 0.0
    chosen = chosen if draw(st.booleans()) else None
    z_loss, softcap = draw(st.sampled_from((0.0, 0.0, 0.02))), draw(st.sampled_from((None, None, 3.0)))
    if y.dtype.itemsize == 2:  # where capped logits are rounded
        softcap = None
    terms: dict[str, Any] = {"z_loss": z_loss, "softcap": softcap}

    def exact(y: Tensor) -> Tensor:
        return definitions.cross_entropy(s.definition.undone(y), target, space, -100, smoothing, chosen, **terms)

    def call(y: Tensor) -> Tensor:
        options: Any = {"reduction": "none", "label_smoothing": smoothing, "weight": chosen, **terms}
        return orbit_cross_entropy(y, target, s.action, space, **options)

    most = y.double().abs().amax() if y.numel() else torch.zeros(())
    near("loss", call(y), exact(y.double()), most * 5 + 10 + z_loss * (most + 8) ** 2 if y.numel() else None)
    t = drawn_tensor(draw, "y", (s.group_order, *s.shape), torch.float64, "positive")
    gradients(draw, "loss", call, exact, (t,))
    hidden = drawn_tensor(draw, "hidden", (*t.shape[:-1], 3), torch.float64, "positive")
    weight = drawn_tensor(draw, "weight", (s.shape[-1], 3), torch.float64, "positive")
    gradients(
        draw,
        "linear loss",
        lambda h, w: linear_orbit_cross_entropy(
            h, w, target, s.action, space, reduction="none", label_smoothing=smoothing, class_weight=chosen, **terms
        ),
        lambda h, w: exact(h @ w.T),
        (hidden, weight),
    )


OPERATORS = (
    an_orbit,
    an_act,
    a_symmetrize,
    a_mean,
    a_weighted_mean,
    a_reduction,
    a_variance,
    a_vote,
    a_select,
    a_score,
    a_mean_of_probabilities,
    a_cross_entropy,
)


EXAMPLES = int(os.environ.get("EQUIKERN_FUZZ", "500" if THOROUGH else "60"))


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_calls(backend: str, single_thread: None, data: st.DataObject) -> None:
    operator = data.draw(st.sampled_from(OPERATORS), label="operator")
    operator(data.draw)


def _others() -> list[str]:
    """The instruction sets of this machine that no other test here uses."""
    if unavailable("cpu", torch.device("cpu")) is not None:
        return []
    from equikern import _C

    return [name for name in _C.cpu_features() if name != _C.cpu_isa()]


@pytest.mark.parametrize("name", _others())
def test_calls_of_other_instruction_sets(name: str) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_calls and cpu")
    done = fresh.run(*command, EQUIKERN_CPU=name, EQUIKERN_FUZZ=str(EXAMPLES))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
