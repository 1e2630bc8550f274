"""The registered operators: opcheck, and fakes whose strides are those of the real results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equikern import tokens
from equikern.core.decompositions import decompositions
from equikern.ops.score import KINDS
from equikern.views import Kind
from equikern.views import of as views_of
from equikern.views.maps import Maps
from helpers.calls import CALLS, DIFFERENTIABLE, ONE_BACKEND, Call, results
from helpers.looped import each
from helpers.oracles import CASES
from helpers.strategies import FLOATS, LAYOUTS, laid_out, layouts, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests import aot_autograd_check

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
D4 = CASES["d4"].action
C4 = CASES["c4"].action
NAMES = sorted(
    name.rpartition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("equikern::")
)


def of(maps: Maps, like: Tensor) -> tuple[str, Tensor | None]:
    """What an operator takes for a tensor."""
    return maps.code, maps.table(like)


def samples() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for every registered operator: dtypes, layouts, with and without the optional ones."""
    x = random_values((2, 3, 4, 4), torch.float32)
    y = random_values((8, 2, 3, 4, 4), torch.float32, 1)
    cl = laid_out(y, "channels_last")
    weights = random_values((8, 2), torch.float32, 2, "positive")
    index = torch.tensor([5, 0])
    maps, back, plain = (D4.maps.code, None), (D4.inverse_maps.code, None), (". . . . . .", None)
    wide = ("hw hW Hw HW", None)  # rectangles
    rectangle = random_values((2, 3, 5), torch.float64, 3)
    flat = random_values((6, 4, 5), torch.bfloat16, 4)
    ids, pairs = torch.tensor([[0, 2], [1, 1]]), random_values((2, 2, 4, 4), torch.float32, 10)

    swaps, signed = CASES["cycle3"].action, CASES["signed"].action
    logits = random_values((3, 2, 41), torch.float32, 5)
    flow, mixed, matrices = (CASES[name].action for name in ("flow", "mixed", "matrix3"))
    vectors = random_values((3, 2, 3), torch.float32, 9, "positive")
    words = [(". . .", None), of(swaps.inverse_maps, logits)]
    hidden, weight = random_values((3, 2, 7), torch.float32, 6), random_values((41, 7), torch.float32, 7)
    target, classes = torch.tensor([40, -100]), random_values((41,), torch.float32, 8, "positive")

    def out(t: Tensor = x) -> Tensor:
        return torch.zeros_like(t)

    return {
        "orbit": [
            (x, *maps, 1.0, None, None),
            (laid_out(x, "channels_last"), *maps, 0.125, None, None),
            (laid_out(x, "sliced"), *maps, 1.0, weights, None),
            (x, *maps, 1.0, None, index),
            (rectangle, *wide, 1.0, None, None),
            (x.to(torch.int16), *maps, 1.0, None, None),
            (logits[0], *of(swaps.maps, logits), 1.0, None, None),
            (x, *of(signed.maps, x), 0.5, None, None),
            (ids, *of(tokens([[0, 1, 2], [1, 0, 2]]).maps, ids), 1.0, None, None),
            (vectors[0], *of(matrices.maps, vectors), 1.0, None, None),
            (pairs, *of(flow.maps, pairs), 1.0, None, None),
            (pairs.double(), *of(mixed.maps, pairs.double()), 1.0, None, None),
        ],
        "orbit_out": [(x, *maps, torch.zeros(8, *x.shape)), (rectangle, *wide, torch.zeros(4, 2, 3, 5).double())],
        "act": [
            (x, index, *maps),
            (laid_out(x, "channels_last"), index, *maps),
            (x.to(torch.bool), torch.tensor([[1, 0, 7], [2, 2, 2]]), *maps),
            (logits[0], torch.tensor([2, 1]), *of(swaps.maps, logits)),
            (ids, torch.tensor([1, 0]), *of(tokens([[0, 1, 2], [1, 0, 2]]).maps, ids)),
            (vectors, torch.tensor([2, 0, 1]), *of(matrices.maps, vectors)),
            (pairs, torch.tensor([3, 1]), *of(mixed.inverse_maps, pairs)),
        ],
        "act_out": [(x, index, *maps, out()), (x, index, *maps, laid_out(out(), "sliced"))],
        "reduce": [
            (y, *back, "sum", 0.125, None),
            (cl, *back, "sum", 1.0, weights),
            (y[:, :, :, ::2, 1::2], *back, "max", 1.0, None),
            (y, *back, "weighted_mean", 1.0, weights),
            (flat, *plain, "std", 1.0, None),
            (logits, *of(swaps.inverse_maps, logits), "max", 1.0, None),
            (y, *back, "median", 1.0, None),
            (y.to(torch.uint8), *back, "vote", 1.0, None),
            (vectors, *of(matrices.inverse_maps, vectors), "log1p", 1.0, None),
        ],
        "reduce_out": [
            (y, *back, "sum", 0.125, None, out()),
            (cl, *back, "sum", 1.0, weights, laid_out(out(), "sliced")),
        ],
        "mean_plus": [
            (y, x, *back),
            (cl, laid_out(x, "sliced"), *back),
            (rectangle.expand(4, 2, 3, 5), rectangle, *wide),
            (logits, logits[0], *of(swaps.inverse_maps, logits)),
        ],
        "mean_plus_out": [(y, x, *back, out()), (cl, x, *back, laid_out(out(), "sliced"))],
        "mean_std": [(y, *back), (flat, *plain)],
        "mean_std_out": [(y, *back, out(), out())],
        "reduce_backward": [
            (x, None, y, *back, "max"),
            (laid_out(x, "sliced"), None, cl, *back, "std"),
            (x, laid_out(x, "channels_last"), cl, *back, "mean_std"),
            (flat[0], None, flat, *plain, "min"),
            (logits[0], None, logits, *of(swaps.inverse_maps, logits), "max"),
        ],
        "variance": [
            (y, *back, 0),
            (cl, *back, 2),
            (flat, *plain, 1),
            (logits, *of(swaps.inverse_maps, logits), 1),
            (vectors, *of(matrices.inverse_maps, vectors), 0),
        ],
        "variance_backward": [
            (torch.tensor(0.5), y, *back),
            (weights[0], cl, *back),
            (logits[0, ..., 0], logits, *of(swaps.inverse_maps, logits)),
        ],
        "orbit_dot": [(x, y, *maps, weights), (x, cl, *maps, weights)],
        "dot": [(x, y, *maps, 1), (x, y, *maps, 3)],
        "select": [
            (y, weights, *back, True),
            (cl, weights.double(), *back, False),
            (y.to(torch.uint8), weights, *back, True),
        ],
        "select_out": [(y, weights, *back, True, out())],
        "take": [(y, index, *back), (cl, torch.tensor(3), *back)],
        "softmax_mean": [(logits, *w, space) for w in words for space in ("probs", "log_probs")],
        "softmax_mean_out": [(laid_out(logits, "sliced"), *words[1], "probs", torch.zeros(2, 41))],
        "softmax_mean_backward": [
            (logits[0], logits, logits.logsumexp(-1), *words[1], space) for space in ("probs", "log_probs")
        ],
        "score": [(logits, kind) for kind in KINDS],
        "score_select": [(logits, kind, *w, kind != "margin") for w in words for kind in KINDS]
        + [(laid_out(y[..., 0], "channels_last"), "max", ". . . . . . . .", None, True)],
        "score_select_out": [(laid_out(logits, "sliced"), "entropy", *words[1], True, torch.zeros(2, 41))],
        "cross_entropy": [
            (logits, target, *words[1], "logits", -100, 0.0, None, True),
            (logits.bfloat16(), target, *words[0], "probs", -100, 0.1, torch.tensor(0.5), True),
            (laid_out(logits, "transposed"), target, *words[1], "log_probs", -100, 0.1, None, False),
        ],
        "weighed_cross_entropy": [
            (logits, target, *words[1], "logits", -100, 0.0, None, True, 0.0, 5.0, None),
            (logits.bfloat16(), target, *words[0], "probs", -100, 0.1, torch.tensor(0.5), True, 0.01, 5.0, classes),
            (laid_out(logits, "transposed"), target, *words[1], "log_probs", -100, 0.1, None, False, 0.0, 0.0, classes),
        ],
        "linear_cross_entropy": [
            (hidden, weight, bias, target, *words[1], "logits", -100, 0.0, None, True, True, bias is not None)
            for bias in (None, random_values((41,), torch.float32, 8))
        ]
        + [(hidden, weight, None, target, *words[1], "probs", -100, 0.1, torch.ones(2), False, True, False)],
        "weighed_linear_cross_entropy": [
            (hidden, weight, None, target, *words[1], "probs", -100, s, torch.ones(2), *asked, 0.1, 5.0, classes)
            for s, asked in ((0.0, (False, True, False)), (0.1, (True, True, False)))
        ],
        **traced_samples(),
    }


def traced_samples() -> dict[str, list[tuple[Any, ...]]]:
    """The same for those that have their derivatives with them."""

    def leaf(*shape: int, seed: int, kind: Any = "signed") -> Tensor:
        return random_values(shape, torch.float64, seed, kind).requires_grad_()

    maps, back, words = (D4.maps.code, None), (D4.inverse_maps.code, None), CASES["cycle3"].action.inverse_maps
    x, y, weights = leaf(2, 4, 4, seed=11), leaf(8, 2, 4, 4, seed=12), leaf(8, 2, seed=13, kind="positive")
    logits, hidden, layer = leaf(3, 2, 41, seed=14), leaf(3, 2, 7, seed=15), leaf(41, 7, seed=16)
    index, target, permuted = torch.tensor([5, 0]), torch.tensor([40, -100]), of(words, logits)
    of_loss = (*permuted, "probs", -100, 0.1)
    losses = [(target, None, *of_loss, 0.0, 0.0), (target, torch.ones(41).double(), *of_loss, 0.01, 5.0)]
    return {
        "traced_orbit": [(x, None, *maps, 0.5), (x, weights, *maps, 1.0)],
        "traced_sum": [(y, None, *back, 0.5), (y, weights, *back, 1.0)],
        "traced_symmetrize": [(x, *maps)],
        "traced_mean_plus": [(y, x, *back)],
        "traced_weighted_mean": [(y, weights, *back)],
        "traced_dots": [(x, y, *maps, 2)],
        "traced_orbit_dot": [(x, y, weights, *maps)],
        "traced_take": [(y, index, *back)],
        "traced_put": [(x, index, *maps)],
        "traced_act": [(x, index, *maps)],
        "traced_reduce": [(y, *back, op) for op in ("max", "std", "median")],
        "traced_mean_std": [(y, *back)],
        "traced_variance": [(y, *back, dims) for dims in (0, 1)],
        "traced_score": [(logits, kind) for kind in KINDS],
        "traced_select": [
            (y, weights.detach(), "", *back, True, "mean"),
            (logits, None, "entropy", *permuted, True, "selected"),
        ],
        "traced_select_mean": [
            (t, scores, *back, True, gradient)
            for t in (y, laid_out(y, "channels_last"))
            for scores, gradient in ((weights, "mean"), (weights.round(), "selected"), (weights.round(), "identity"))
        ],
        "traced_estimated": [(y[0].detach(), y.detach(), weights, *back)],
        "traced_softmax_mean": [(logits, *permuted, "probs")],
        "traced_cross_entropy": [(logits, *loss, reduction) for loss in losses for reduction in ("mean", "none")],
        "traced_linear_cross_entropy": [
            (hidden, layer, None, *losses[0], "mean", True, True, False),
            (hidden, layer, None, *losses[1], "sum", False, False, False),
        ],
    }


def test_every_registered_operator_has_samples() -> None:
    assert sorted(samples()) == NAMES


@ONE_BACKEND
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    for arguments in samples()[name]:
        torch.library.opcheck(getattr(torch.ops.equikern, name).default, arguments)


MOVES = ("orbit", "act", "take", "select", "score_select", "put")


@ONE_BACKEND
def test_decompositions_are_the_operators() -> None:
    """In aten alone: what moves or is chosen bit for bit, sums to rounding, in the same layout."""
    made = {operator.name().partition("::")[2] for operator in decompositions}
    assert made == {name for name in NAMES if not name.endswith("_out")}
    for operator, decomposed in decompositions.items():
        name = operator.name().partition("::")[2]
        for k, arguments in enumerate(samples()[name]):
            given = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
            pairs = zip(results(decomposed(*given)), results(operator(*given)), strict=True)
            for ours, expected in pairs:
                same_layout(ours, expected)
                exact = name in MOVES and (name != "orbit" or given[3] == 1.0) and not of_kind(given).computes
                if exact:
                    assert torch.equal(ours, expected), (name, k)
                else:
                    wide = 2e-2 if ours.dtype is torch.bfloat16 else 1e-5
                    torch.testing.assert_close(ours, expected, rtol=wide, atol=wide, msg=lambda m: f"{name} {k}: {m}")  # noqa: B023


def of_kind(arguments: list[Any]) -> Kind:
    """The kind of the views that an operator is given: of its strings, the one that says some."""
    codes = [a for a in arguments if isinstance(a, str) and (" " in a or a == ".")]
    return views_of(codes[0]).kind


@ONE_BACKEND
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=repr)
def test_traced_forward_and_backward_are_the_eager_ones(call: Call, dynamic: bool) -> None:
    """opcheck's test for AOT autograd, with inputs that require grad; autograd is outside the registered operators."""
    arguments = call.tensors(D4, (2, 3), 4)
    leaves = [t.requires_grad_(i == 0 or call.of_both) for i, t in enumerate(arguments)]
    aot_autograd_check(lambda *t: call.run(D4, *t), tuple(leaves), {}, dynamic=dynamic, check_gradients=True)


def same_layout(real: Tensor, fake: Tensor) -> None:
    assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
    steps = [(a, b) for size, a, b in zip(real.shape, real.stride(), fake.stride(), strict=True) if size > 1]
    assert not real.numel() or all(a == b for a, b in steps), f"real {real.stride()}, fake {fake.stride()}"


@settings(max_examples=80)
@given(data=st.data())
def test_fake_strides_are_the_real_ones(data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(list(CALLS.values())), label="call")
    lead = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3), label="lead"))
    side = data.draw(st.integers(0, 9), label="side")
    dtype = data.draw(st.sampled_from(FLOATS), label="dtype")
    first, *rest = call.tensors(C4, lead, side, dtype)
    first = laid_out(first, data.draw(layouts, label="layout"))
    real = results(call.run(C4, first, *rest))
    for device in ("cpu", "cuda"):
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) for t in (first, *rest)]
            if device == "cuda":  # no GPU is touched
                fakes = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in fakes]
            fake = results(call.run(C4, *fakes))
        assert all(t.device.type == device for t in fake)
        for a, b in zip(real, fake, strict=True):
            same_layout(a, b)


@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=repr)
@each("layout", LAYOUTS)
def test_fake_gradients_have_the_real_strides(call: Call, layout: str) -> None:
    def backward(mode: FakeTensorMode | None) -> list[Tensor]:
        leaves = [laid_out(t, layout) for t in call.tensors(C4, (2, 3), 4)]
        if mode is not None:
            leaves = [mode.from_tensor(t) for t in leaves]
        leaves = [t.requires_grad_(i == 0 or call.of_both) for i, t in enumerate(leaves)]
        outputs = results(call.run(C4, *leaves))
        incoming = [torch.ones_like(t) for t in outputs]
        return list(torch.autograd.grad(outputs, [t for t in leaves if t.requires_grad], incoming))

    real = backward(None)
    with FakeTensorMode() as mode:
        fake = backward(mode)
    for a, b in zip(real, fake, strict=True):
        same_layout(a, b)
