"""Memory layouts: channels-last stays, inputs and incoming gradients are never written, autocast is inert."""

from __future__ import annotations

import pytest
import torch
from equikern import orbit, orbit_mean, orbit_select
from helpers.calls import CALLS, DIFFERENTIABLE, ONE_BACKEND, Call, gradients, results
from helpers.looped import each
from helpers.oracles import CASES, Case
from helpers.strategies import FLOATS, LAYOUTS, bits, blank, laid_out, random_values
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=repr)
DIFF = pytest.mark.parametrize("call", DIFFERENTIABLE, ids=repr)
D4 = CASES["d4"].action


SUMS = {"symmetrize", "mean", "mean plus", "sum", "std", "mean_std", "gmean", "hmean", "tsharpen", "logodd"}
SUMS |= {"variance", "variance of each"}


def assert_same(call: Call, ours: Tensor, expected: Tensor) -> None:
    """What only moves or compares is the same to the bit in every layout; sums may be taken in another order."""
    if call.name in SUMS or call.name.startswith("weighted"):
        eps = torch.finfo(expected.dtype).eps
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(ours, expected, rtol=2 * eps, atol=8 * eps * scale)
    else:
        assert torch.equal(bits(ours), bits(expected))


def is_channels_last(t: Tensor) -> bool:
    """Whether one sample (C, H, W) keeps a pixel's channels side by side and no gaps."""
    c, w = t.shape[-3], t.shape[-1]
    return t.stride()[-3:] == (1, w * c, c)


@each(*EVERY.args)
@each("lead", [(3,), (2, 3), (2, 2, 3)])
def test_channels_last_stays(call: Call, lead: tuple[int, ...]) -> None:
    first, *rest = call.tensors(D4, lead, 6)
    share = len(lead) == 1 and call.takes in ("weights", "scores")
    scores = [t[:, :1].squeeze(1) if share else t for t in rest]  # the channels share them
    plain = results(call.run(D4, first, *scores))
    turned = results(call.run(D4, laid_out(first, "channels_last"), *scores))
    for ours, expected in zip(turned, plain, strict=True):
        assert_same(call, ours, expected)
        assert expected.is_contiguous()
        if ours.dim() >= 3:
            assert is_channels_last(ours)


@each(*DIFF.args)
def test_channels_last_gradient(call: Call) -> None:
    first, *rest = call.tensors(D4, (2, 3), 6)
    leaf = laid_out(first, "channels_last").requires_grad_()
    outputs = results(call.run(D4, leaf, *rest))
    incoming = [laid_out(random_values(tuple(t.shape), t.dtype, 3), "channels_last") for t in outputs]
    (ours,) = torch.autograd.grad(outputs, leaf, incoming)
    (expected,) = torch.autograd.grad(
        results(call.run(D4, x := first.clone().requires_grad_(), *rest)), x, [t.contiguous() for t in incoming]
    )
    torch.testing.assert_close(ours, expected)
    assert is_channels_last(ours)


@each(*DIFF.args)
def test_channels_last_gradient_of_a_pooled_result(call: Call) -> None:
    # The gradients that a mean and a sum send are contiguous or expanded, whatever layout they got.
    arguments = call.tensors(D4, (2, 3), 6)
    arguments[0] = arguments[0].movedim(-3, -1).contiguous().movedim(-1, -3)
    for pool in (lambda t: (t.mean((-2, -1)) if t.dim() > 1 else t).square().sum(), lambda t: t.sum()):
        plain, last = (arguments[0].contiguous().requires_grad_(), arguments[0].detach().requires_grad_())
        grads = []
        for leaf in (plain, last):
            total = sum(pool(t) for t in results(call.run(D4, leaf, *arguments[1:])))
            grads.append(torch.autograd.grad(total, leaf)[0])
        assert is_channels_last(grads[1])
        torch.testing.assert_close(grads[1], grads[0])


@each(*EVERY.args)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("layout", LAYOUTS)
def test_any_layout_gives_the_same_result(call: Call, layout: str, dtype: torch.dtype) -> None:
    first, *rest = call.tensors(D4, (2, 3), 9, dtype)
    strided = laid_out(first, layout)
    expected = results(call.run(D4, strided.contiguous(), *rest))
    for ours, plain in zip(results(call.run(D4, strided, *rest)), expected, strict=True):
        assert_same(call, ours, plain)


@ONE_BACKEND
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("c2", "vflip", "d4xc2")])
def test_every_operand_has_a_layout_of_its_own(name: str) -> None:
    """Layouts of the data and of what lies beside it, under every kind of action; all pairs of two large tensors."""
    case = CASES[name]
    for call in CALLS.values():
        if case.signed and call.kind != "signed":
            continue
        first, *rest = arguments_for(call, case)
        for k, one in enumerate(LAYOUTS):
            for other in LAYOUTS if call.takes == "plus" else (LAYOUTS[k - 3],):
                given = [laid_out(first, one), *(laid_out(t, other) for t in rest)]
                expected = results(call.run(case.action, *(t.contiguous() for t in given)))
                for ours, plain in zip(results(call.run(case.action, *given)), expected, strict=True):
                    where = f"{call}, {one}, {other}"
                    if call.kind == "labels":
                        assert torch.equal(ours, plain), where
                    else:
                        torch.testing.assert_close(
                            ours, plain, rtol=2e-6, atol=1e-5, msg=lambda m, where=where: f"{where}: {m}"
                        )


def arguments_for(call: Call, case: Case) -> list[Tensor]:
    """Arguments of the shape that the action moves; of three dims or more, so that every layout is another one."""
    lead = (3, 2) if len(case.shape(side=5)) < 2 else (2,)
    dtype = torch.int32 if call.kind == "labels" else torch.float32
    view = case.shape(*lead, side=5)
    shape = view if call.takes == "image" else (case.order, *view)
    data = random_values(shape, dtype, 0, call.kind)
    if call.takes == "plus":
        return [data, random_values(view, dtype, 1)]
    if call.takes in ("weights", "scores"):
        return [data, random_values((case.order, *lead), torch.float32, 1, "positive")]
    return [data]


@each(*DIFF.args)
@each("layout", LAYOUTS)
def test_incoming_gradients_in_any_layout(call: Call, layout: str) -> None:
    leaves = [t.requires_grad_() for t in call.tensors(D4, (2, 3), 9)]
    wanted = leaves if call.of_both else leaves[:1]
    outputs = results(call.run(D4, *leaves))
    incoming = [laid_out(random_values(tuple(t.shape), t.dtype, i), layout) for i, t in enumerate(outputs)]
    ours = torch.autograd.grad(outputs, wanted, incoming, retain_graph=True)
    expected = torch.autograd.grad(outputs, wanted, [t.contiguous() for t in incoming])
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each(*DIFF.args)
@each("layout", ["contiguous", "sliced", "channels_last"])
def test_nothing_given_is_written(call: Call, layout: str) -> None:
    given = [laid_out(t, layout) for t in call.tensors(D4, (2, 3), 9)]
    leaves = [t.detach().requires_grad_() for t in given]
    outputs = results(call.run(D4, *leaves))
    incoming = [laid_out(random_values(tuple(t.shape), t.dtype, i), layout) for i, t in enumerate(outputs)]
    kept = [t.detach().clone() for t in (*given, *incoming, *outputs)]
    wanted = [leaf for leaf in leaves if call.of_both or leaf is leaves[0]]
    first = torch.autograd.grad(outputs, wanted, incoming, create_graph=True)
    seconds = [t for t in first if t.requires_grad]
    if seconds:
        torch.autograd.grad(seconds, wanted, [torch.ones_like(t) for t in seconds], allow_unused=True)
    for t, before in zip((*given, *incoming, *outputs), kept, strict=True):
        assert torch.equal(bits(t.detach()), bits(before))


@each(*EVERY.args)
def test_the_memory_around_an_input_is_not_read(call: Call) -> None:
    """NaN in the gaps of a strided input must not reach the result."""
    first, *rest = call.tensors(D4, (2, 3), 9)
    big = first.new_full([2 * n + 1 for n in first.shape], blank(first.dtype))
    inside = big[(slice(1, None, 2),) * first.dim()]
    inside.copy_(first)
    for ours, expected in zip(results(call.run(D4, inside, *rest)), results(call.run(D4, first, *rest)), strict=True):
        assert_same(call, ours, expected)


@each(*EVERY.args)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(call: Call, dtype: torch.dtype) -> None:
    arguments = call.tensors(D4, (2, 3), 9, dtype)
    if not call.differentiable:
        expected = results(call.run(D4, *arguments))
        with torch.autocast("cpu", torch.bfloat16):
            found = results(call.run(D4, *arguments))
    else:
        expected = gradients(call, D4, arguments)
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(call, D4, arguments)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


@each(*EVERY.args)
def test_grad_mode_changes_no_value(call: Call) -> None:
    arguments = call.tensors(D4, (2, 3), 9)
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in arguments]
    recorded = results(call.run(D4, *leaves))
    with torch.no_grad():
        plain = results(call.run(D4, *leaves))
    with torch.inference_mode():
        inference = results(call.run(D4, *arguments))
    for a, b, c in zip(recorded, plain, inference, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not b.requires_grad
        assert a.requires_grad == (call.differentiable and a.is_floating_point())


@each(*EVERY.args)
@each("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 0), (0, 0), (0,)])
def test_empty_tensors(call: Call, shape: tuple[int, ...]) -> None:
    case: Case = CASES["nothing"] if len(shape) == 1 else CASES["d4"]
    action = case.action
    dtype = torch.int64 if call.kind == "labels" else torch.float32
    first = torch.zeros(shape if call.takes == "image" else (case.order, *shape), dtype=dtype)
    rest = {"image": [], "views": [], "plus": [torch.zeros(shape)]}.get(call.takes, [torch.ones(case.order)])
    leaf = first.requires_grad_(first.is_floating_point())
    outputs = results(call.run(action, leaf, *rest))
    expected = (case.order, *shape) if call.name == "orbit" else shape[: call.dims]
    if call.name == "variance of each" and len(shape) == action.dims:
        expected = ()
    assert outputs[0].shape == expected
    if call.differentiable and leaf.requires_grad:
        (grad,) = torch.autograd.grad(outputs, leaf, [torch.ones_like(t) for t in outputs])
        assert grad.shape == leaf.shape


def test_a_view_of_the_orbit_can_be_a_batch() -> None:
    x = random_values((2, 3, 5, 5), torch.float32)
    views = orbit(x, D4)
    assert views.flatten(0, 1).data_ptr() == views.data_ptr()
    turned = orbit(laid_out(x, "channels_last"), D4)
    assert turned.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_lazily_negated_views() -> None:
    y = torch.randn(8, 2, 4, 4, dtype=torch.complex64).conj().imag
    assert y.is_neg()
    plain = y.clone()
    assert torch.equal(orbit_mean(y, D4), orbit_mean(plain, D4))
    assert torch.equal(orbit_select(y, torch.arange(8.0), D4, "max"), orbit_select(plain, torch.arange(8.0), D4, "max"))


def test_many_dims(backend: str) -> None:
    """As many as torch has, whether they merge in memory or lie apart."""
    turns = CASES["c4"].action
    for x in (
        random_values((2,) * 14 + (1,) * 20 + (3, 3), torch.float32),
        random_values((3, 3) + (1,) * 44 + (2,) * 17, torch.float32).permute(*range(62, -1, -1)),
    ):
        views = orbit(x, turns)
        assert torch.equal(views[1], x.rot90(1, (-2, -1)))
        assert torch.equal(orbit_mean(views, turns), x)
        assert torch.equal(orbit_mean(laid_out(views, "reversed"), turns), x)
