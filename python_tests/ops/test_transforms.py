"""torch.func: vmap, grad, jacobians of both modes, Hessians and per-sample gradients, alone and nested."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import (
    CanonicalLambdaEquiTune,
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    grid,
    linear_orbit_cross_entropy,
    orbit,
    orbit_act,
    orbit_cross_entropy,
    orbit_mean,
    orbit_score,
    orbit_select,
    permutation,
    trivial,
    vector_frame,
)
from equikern.core import functions
from helpers.calls import CALLS, results
from helpers.looped import each
from helpers.oracles import CASES
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

pytestmark = pytest.mark.usefixtures("single_thread")
C4, D4 = CASES["c4"].action, CASES["d4"].action
CLASSES = torch.tensor([0.5, 1.0, 0.0, 2.0], dtype=torch.float64)
SWAPS = permutation([[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]])
TARGET = torch.tensor([0, 3, -100])

Function = Callable[..., Any]


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_calls() -> dict[str, tuple[Function, tuple[Tensor, ...]]]:
    """Every differentiable operator as a function of what has a derivative, and values for it."""
    found = {}
    for call in CALLS.values():
        if call.differentiable:
            tensors = call.tensors(C4, (2, 1), 2, torch.float64, seed=3)
            count = len(tensors) if call.of_both else 1
            rest = tensors[count:]
            found[call.name] = (
                lambda *t, call=call, rest=rest: results(call.run(C4, *t, *rest)),
                tuple(tensors[:count]),
            )
    return found


def of_rows() -> dict[str, tuple[Function, tuple[Tensor, ...]]]:
    """The same of those on logits."""
    y, hidden, weight, bias = made(3, 3, 4), made(3, 3, 5, seed=1), made(4, 5, seed=2), made(4, seed=3)
    found: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
        "act": (lambda x: orbit_act(x, torch.tensor([1, 0, 2]), SWAPS), (y,)),
        "select": (lambda x: orbit_select(x, "entropy", SWAPS, gradient="selected"), (y,)),
    }
    for kind in ("max_prob", "entropy", "margin", "max"):
        found[f"score {kind}"] = (lambda t, kind=kind: orbit_score(t, kind), (y,))
    terms = {"z_loss": 0.05, "softcap": 2.0}
    for space, reduction, more in (
        (None, "mean", {}),
        ("probs", "sum", {}),
        ("log_probs", "none", {}),
        ("probs", "mean", {}),
        (None, "mean", terms),
        ("probs", "none", terms),
    ):
        options = {"reduction": reduction, "label_smoothing": 0.0 if space is None and more else 0.1, **more}
        classes = CLASSES if more else None
        found[f"loss {space} {reduction} {len(more)}"] = (
            lambda t, space=space, options=options, classes=classes: orbit_cross_entropy(
                t, TARGET, SWAPS, space, weight=classes, **options
            ),
            (y,),
        )
        found[f"linear loss {space} {reduction} {len(more)}"] = (
            lambda h, w, b, space=space, options=options, classes=classes: linear_orbit_cross_entropy(
                h, w, TARGET, SWAPS, space, bias=b, class_weight=classes, **options
            ),
            (hidden, weight, bias),
        )
        if space is not None:
            found[f"mean {space}"] = (lambda t, space=space: orbit_mean(t, SWAPS, space), (y,))
    return found


EVERY = {**of_calls(), **of_rows()}


def close(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def squares(function: Function) -> Function:
    return lambda *t: sum(x.square().sum() for x in results(function(*t)))


@each("name", of_rows())
def test_forward_mode_of_rows(name: str) -> None:
    function, tensors = EVERY[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    assert gradcheck(function, leaves, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


@each("name", EVERY)
def test_jacobians_of_both_modes_agree(name: str) -> None:
    function, tensors = EVERY[name]
    places = tuple(range(len(tensors)))
    close(jacfwd(function, places)(*tensors), jacrev(function, places)(*tensors))


@each("name", [name for name in EVERY if name not in ("select", "select identity")])
def test_hessians(name: str) -> None:
    """Forward over reverse and reverse over reverse, against autograd's own."""
    function, tensors = EVERY[name]
    places, loss = tuple(range(len(tensors))), squares(function)
    expected = torch.autograd.functional.hessian(loss, tensors)
    for ours in (hessian(loss, places)(*tensors), jacrev(jacrev(loss, places), places)(*tensors)):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)


@each("name", EVERY)
def test_gradients_of_every_sample(name: str) -> None:
    """``vmap(grad(loss))`` is what one sample after the other gives, whatever dim the batch has."""
    function, tensors = EVERY[name]
    places, loss = tuple(range(len(tensors))), squares(function)
    many = [torch.stack([t, 0.5 * t, 0.75 * t], -1) for t in tensors]
    ours = vmap(grad(loss, places), -1)(*many)
    values = vmap(loss, -1)(*many)
    for k in range(3):
        leaves = [m[..., k].clone().requires_grad_() for m in many]
        value = loss(*leaves)
        close(values[k], value.detach())
        close([t[k] for t in ours], list(torch.autograd.grad(value, leaves)))


@each("reduction", ["mean", "sum", "none"])
def test_a_target_for_every_sample(reduction: Any) -> None:
    y, target = made(4, 3, 5, 4), torch.randint(0, 4, (4, 5), generator=torch.Generator().manual_seed(1))
    target[0, 1] = -100

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return orbit_cross_entropy(y, target, SWAPS, "probs", reduction=reduction, label_smoothing=0.1).sum()

    ours = vmap(grad(loss))(y, target)
    for k in range(4):
        close(ours[k], grad(loss)(y[k], target[k]))


def test_what_is_batched_beside_the_data() -> None:
    """Elements, weights, scores and one of two operands, each batched alone."""
    x, elements = made(4, 6, 2, 3, 3), torch.arange(24).view(4, 6) % 8
    turned = vmap(lambda x, e: orbit_act(x, e, D4))(x, elements)
    assert torch.equal(turned, torch.stack([orbit_act(*pair, D4) for pair in zip(x, elements, strict=True)]))
    assert torch.equal(
        vmap(lambda e: orbit_act(x[0], e, D4))(elements), torch.stack([orbit_act(x[0], e, D4) for e in elements])
    )
    y, scores = orbit(x[0], D4), made(4, 8, 6, seed=1)
    chosen, index = vmap(lambda s: orbit_select(y, s, D4, return_index=True))(scores)
    for k in range(4):
        pair = orbit_select(y, scores[k], D4, return_index=True)
        assert torch.equal(chosen[k], pair[0])
        assert torch.equal(index[k], pair[1])
    plus = vmap(lambda z: orbit_mean(y, D4, plus=z))(x)
    assert torch.equal(plus, torch.stack([orbit_mean(y, D4, plus=z) for z in x]))


def test_vmap_in_vmap() -> None:
    x = made(2, 3, 4, 4)
    ours = vmap(vmap(lambda t: orbit(t, D4), in_dims=0), in_dims=1)(x)
    assert torch.equal(ours, orbit(x, D4).movedim(0, 2).transpose(0, 1))


NET = nn.Sequential(
    nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
).double()
WRAPPERS = {
    "maps": EquiTune(nn.Conv2d(2, 2, 3, padding=1).double(), "d4", "d4"),
    "classes": EquiTune(NET, "c4", trivial(grid("c4").group)),
    "zero": EquiZero(NET, "c4", trivial(grid("c4").group), "max_prob"),
    "lambda": LambdaEquiTune(NET, "c4", trivial(grid("c4").group), nn.Linear(4, 1).double(), features="3"),
}


@each("name", WRAPPERS)
def test_wrappers(name: str) -> None:
    model, x = WRAPPERS[name], made(3, 2, 4, 4)
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x[None],)).square().sum()

    ours = vmap(grad(loss), (None, 0))(parameters, x)
    for k in range(3):
        model.zero_grad()
        model(x[k : k + 1]).square().sum().backward()
        close({key: t[k] for key, t in ours.items()}, {key: p.grad for key, p in model.named_parameters()})
    tangent = made(3, 2, 4, 4, seed=1)
    value, slope = jvp(model, (x,), (tangent,))
    expected, difference = torch.autograd.functional.jvp(model, x, tangent)
    close(value, expected)
    close(slope, difference)


@each("name", of_rows())
def test_pullbacks_after_their_transform(name: str) -> None:
    """What ``torch.func.vjp`` returns is called when no transform is under way any more."""
    function, tensors = EVERY[name]
    result, back = torch.func.vjp(function, *tensors)  # type: ignore[misc]
    _, expected = torch.autograd.functional.vjp(function, tensors, torch.ones_like(result))
    close(back(torch.ones_like(result)), expected)


def frozen_lambda() -> LambdaEquiTune:
    torch.manual_seed(0)
    return LambdaEquiTune(
        copy.deepcopy(NET), "c4", trivial(grid("c4").group), nn.Linear(4, 1).double(), features="3", frozen=True
    )


def test_frozen_features_have_no_derivative_of_any_mode() -> None:
    model, x, tangent = frozen_lambda(), made(2, 2, 4, 4), made(2, 2, 4, 4, seed=1)
    close(jvp(model, (x,), (tangent,))[1], torch.autograd.functional.jvp(model, x, tangent)[1])
    with torch.no_grad():
        program = torch.export.export(model, (x,)).module()
    found = []
    for run in (model, program):
        leaf = x.clone().requires_grad_()
        found += torch.autograd.grad(run(leaf).square().sum(), leaf)
    close(found[1], found[0])


def test_canonical_poses_of_every_sample() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    quarters = torch.tensor([[[1.0, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
    model, x = CanonicalLambdaEquiTune(network, vector_frame, quarters), made(5, 3, 2)
    close(vmap(lambda t: model(t[None])[0])(x), model(x).detach())


def test_given_memory_is_refused() -> None:
    out = made(8, 2, 2)
    with pytest.raises(ValueError, match=r"out: .*transform of torch.func"):
        vmap(lambda t: orbit(t, D4, out=out))(made(3, 2, 2))


def test_graphs_train() -> None:
    """What torch.export and torch.jit.trace record has its derivatives with it."""
    model, x = WRAPPERS["lambda"], made(2, 2, 4, 4)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (x,), check_trace=False)  # type: ignore[no-untyped-call]
    for recorded in (traced, torch.export.export(model, (x,)).module()):
        ours = torch.autograd.grad(recorded(x).square().sum(), list(recorded.parameters()))
        for a, b in zip(ours, expected, strict=True):
            close(a, b)


def test_transforms_are_compiled() -> None:
    def loss(x: Tensor) -> Tensor:
        return (orbit(x, D4) ** 3).sum()

    x = made(2, 3, 3)
    for function in (grad(loss), lambda x: jvp(loss, (x,), (x,))[1], vmap(grad(loss)), vmap(lambda t: orbit(t, D4))):
        torch._dynamo.reset()
        close(torch.compile(function, backend="aot_eager", fullgraph=True)(x), function(x))
    torch._dynamo.reset()


def test_transforms_of_graphs() -> None:
    """Of a recorded operator, as a loaded program contains it."""
    x = made(2, 3, 3)

    def loss(x: Tensor) -> Tensor:
        return (torch.ops.equikern.traced_orbit(x, None, D4.maps.code, None, 1.0) ** 3).sum()

    expected = grad(lambda x: (orbit(x, D4) ** 3).sum())
    close(grad(loss)(x), expected(x))
    close(vmap(grad(loss))(x), vmap(expected)(x))
    close(hessian(loss)(x), jacrev(expected)(x))


def test_a_batch_of_tables_is_refused() -> None:
    y, table = made(3, 4), SWAPS.maps.table(made(4))
    assert table is not None
    with pytest.raises(ValueError, match=r"action: expected the same one for all samples of vmap"):
        vmap(lambda t, n: torch.ops.equikern.orbit(t, SWAPS.maps.code, n, 1.0, None, None))(y, table.expand(3, -1, -1))


def test_without_torchs_question_every_call_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch is asked has no public name: without it, all calls take the form that transforms need."""
    monkeypatch.setattr(functions, "_transforms_active", lambda: True)
    x = made(2, 3, 3).requires_grad_()
    loss = orbit_cross_entropy(orbit(x, D4).flatten(2), torch.tensor([0, 1]), trivial(D4.group))
    (ours,) = torch.autograd.grad(loss, x)
    assert torch.equal(orbit(x.detach(), D4, out=made(8, 2, 3, 3)), orbit(x.detach(), D4))
    monkeypatch.undo()
    loss = orbit_cross_entropy(orbit(x, D4).flatten(2), torch.tensor([0, 1]), trivial(D4.group))
    close(ours, torch.autograd.grad(loss, x)[0])
