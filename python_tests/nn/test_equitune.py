"""EquiTune: equivariance of the wrapped model, several outputs, rectangles, memory cap, training, bad input."""

import warnings
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from equikern import (
    CanonicalEquiTune,
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    cyclic_group,
    grid,
    matrix,
    orbit,
    orbit_mean,
    orbit_reduce,
    permutation,
    trivial,
)
from equikern.reductions import REDUCTIONS
from helpers.looped import each
from helpers.oracles import NAMED
from torch import nn

CYCLE = permutation([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
SHAPES = [(2, 3, 8, 8), (2, 3, 6, 9), (1, 3, 7, 4)]


@pytest.fixture
def dense() -> nn.Module:
    """A convolutional net that keeps height and width, with outputs in (0, 1) so that every reduction is defined."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Sigmoid())


@pytest.fixture
def classifier(dense: nn.Module) -> nn.Module:
    return nn.Sequential(dense, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 5))


def act(action, g, result):
    """The element's action on a result or a pair of results."""
    return tuple(action.act(g, r) for r in result) if isinstance(result, tuple) else action.act(g, result)


@each("shape", SHAPES)
@pytest.mark.parametrize("name", NAMED)
@each("reduce", ["mean", *REDUCTIONS])
def test_equivariant_output(dense, name, shape, reduce):
    backbone = dense if reduce != "vote" else lambda x: (dense(x) * 5).floor().long()  # labels
    action, model = grid(name), EquiTune(backbone, name, name, reduce=reduce)
    x = torch.randn(shape)
    for g in range(action.order):
        torch.testing.assert_close(model(action.act(g, x)), act(action, g, model(x)), atol=1e-5, rtol=1e-5)


@each("shape", SHAPES)
@pytest.mark.parametrize("name", NAMED)
def test_invariant_output(classifier, name, shape):
    action, model = grid(name), EquiTune(classifier, name, "trivial")
    x = torch.randn(shape)
    assert model(x).shape == (shape[0], 5)
    for g in range(action.order):
        torch.testing.assert_close(model(action.act(g, x)), model(x), atol=1e-5, rtol=1e-5)


def test_is_the_mean_of_the_views_transformed_back(dense):
    """The papers' loop, written out: catches g used for its inverse, which equivariance alone would let through."""
    x, action = torch.randn(2, 3, 6, 6), grid("d4")
    slow = torch.zeros(2, 2, 6, 6)
    for flip in (False, True):
        for k in range(4):
            view = torch.rot90(x.flip(-1) if flip else x, k, (-2, -1))
            back = torch.rot90(dense(view), -k, (-2, -1))
            slow += (back.flip(-1) if flip else back) / 8
    torch.testing.assert_close(EquiTune(dense, action, action)(x), slow)


def test_rectangle_is_the_mean_of_the_views_transformed_back(dense):
    x = torch.randn(2, 3, 5, 8)
    slow = sum(torch.rot90(dense(torch.rot90(x, k, (-2, -1))), -k, (-2, -1)) for k in range(4)) / 4
    torch.testing.assert_close(EquiTune(dense, "c4", "c4")(x), slow)


@pytest.mark.parametrize("views", [1, 2, 3, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_views_per_forward_caps_the_batch_and_changes_nothing(dense, views, shape):
    largest = 0

    def counted(x):
        nonlocal largest
        largest = max(largest, x.shape[0])
        return dense(x)

    x = torch.randn(shape)
    expected = EquiTune(dense, "d4", "d4")(x)
    torch.testing.assert_close(EquiTune(counted, "d4", "d4", views_per_forward=views)(x), expected)
    assert largest <= views * shape[0]


Pair = namedtuple("Pair", "dense logits")


class Output(OrderedDict):
    """A dict subclass, as model libraries return."""


@pytest.mark.parametrize("kind", ["tuple", "list", "named", "dict", "subclass", "nested"])
def test_several_outputs(dense, classifier, kind):
    make = {
        "tuple": lambda a, b: (a, b),
        "list": lambda a, b: [a, b],
        "named": Pair,
        "dict": lambda a, b: {"dense": a, "logits": b},
        "subclass": lambda a, b: Output(dense=a, logits=b),
        "nested": lambda a, b: {"all": (a, {"logits": b})},
    }[kind]
    spec = make("c4", "trivial")
    x = torch.randn(2, 3, 6, 6)
    result = EquiTune(lambda v: make(dense(v), classifier(v)), "c4", spec)(x)
    expected = make(EquiTune(dense, "c4", "c4")(x), EquiTune(classifier, "c4", "trivial")(x))
    assert type(result) is type(expected)
    torch.testing.assert_close(result, expected)


def test_training_reaches_the_backbone(classifier):
    model = EquiTune(classifier, "c4", "trivial")
    assert [key.removeprefix("backbone.") for key in model.state_dict()] == list(classifier.state_dict())
    model.train()
    assert classifier.training
    x = torch.randn(4, 3, 6, 6)
    target = torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    assert not classifier.training
    torch.testing.assert_close(model(x.rot90(1, (-2, -1))), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "max", "gmean", "std"])
def test_gradient_of_the_input(dense, reduce):
    model = EquiTune(dense.double(), "c4", "c4", reduce=reduce)
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), fast_mode=True)


def test_compiles_without_graph_breaks(dense):
    torch._dynamo.reset()
    for shape in [(2, 3, 6, 6), (2, 3, 5, 6)]:
        model = EquiTune(dense, "d4", "d4")
        x = torch.randn(shape, requires_grad=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).sum().backward()


def test_compiles_in_pieces_where_the_backbone_breaks_the_graph(dense):
    torch._dynamo.reset()

    def backbone(v):
        torch._dynamo.graph_break()
        return dense(v)

    x = torch.randn(2, 3, 5, 6)  # upright and turned views
    model = EquiTune(backbone, "d4", "d4")
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))


def test_channels_last_stays(dense):
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    seen = []

    def backbone(v):
        seen.append(v.is_contiguous(memory_format=torch.channels_last))
        return dense(v)

    EquiTune(backbone, "c4", "c4")(x)
    assert seen == [True]


def test_action_objects_and_custom_groups(dense):
    x = torch.randn(2, 3, 6, 6)
    action = grid("c4")
    torch.testing.assert_close(EquiTune(dense, action, action)(x), EquiTune(dense, "c4", "c4")(x))
    views = orbit(x, action)
    y = dense(views.flatten(0, 1)).unflatten(0, (4, 2))
    torch.testing.assert_close(EquiTune(dense, "c4", "c4")(x), orbit_mean(y, action))
    torch.testing.assert_close(EquiTune(dense, "c4", "c4", "max")(x), orbit_reduce(y, action, "max"))
    assert EquiTune(dense, action, trivial(action.group))(x).shape == (2, 2, 6, 6)


def returns(value):
    return lambda x: value


BAD = {
    "backbone": (lambda: EquiTune(3, "c4", "c4"), TypeError, "backbone: expected a module or a callable, got int"),
    "inp type": (lambda: EquiTune(nn.Identity(), 4, "c4"), TypeError, "inp: expected an action or a name.*got int"),
    "a class": (
        lambda: EquiTune(nn.Identity, "c4", "c4"),  # type: ignore[arg-type]
        TypeError,
        r"backbone: expected a module, got the class Identity: pass Identity\(…\)",
    ),
    "out by another name": (
        lambda: EquiTune(nn.Identity(), "c4", "invariant"),
        ValueError,
        r"out: .*got 'invariant' \('trivial' for what does not change\)",
    ),
    "inp of samples": (
        lambda: EquiTune(nn.Identity(), matrix([[[1, 0], [0, 1]]], closed=False), "trivial"),
        TypeError,
        "inp: .*got MatrixSamples; samples, which are no group, are for CanonicalLambdaEquiTune",
    ),
    "inp name": (lambda: EquiTune(nn.Identity(), "c5", "c4"), ValueError, "expected one of .*d4.*got 'c5'"),
    "out name": (lambda: EquiTune(nn.Identity(), "c4", "x"), ValueError, "expected one of .*got 'x'"),
    "out group": (
        lambda: EquiTune(nn.Identity(), "c4", "d4"),
        ValueError,
        "out: expected an action of .*order 4.*'d4'",
    ),
    "same order": (lambda: EquiTune(nn.Identity(), "c4", "flips"), ValueError, "out: expected an action of .*'flips'"),
    "out entry": (
        lambda: EquiTune(nn.Identity(), "c4", ("c4", trivial(cyclic_group(3)))),
        ValueError,
        r"out\[1\]: expected an action of .*order 3",
    ),
    "out type": (lambda: EquiTune(nn.Identity(), "c4", None), TypeError, "out: expected an action .*got NoneType"),
    "reduce": (lambda: EquiTune(nn.Identity(), "c4", "c4", "mode"), ValueError, "reduce: expected one of .*'mode'"),
    "views type": (
        lambda: EquiTune(nn.Identity(), "c4", "c4", views_per_forward=1.5),
        TypeError,
        "views_per_forward: expected a whole number, got float",
    ),
    "views zero": (
        lambda: EquiTune(nn.Identity(), "c4", "c4", views_per_forward=0),
        ValueError,
        "views_per_forward: expected 1 or more, got 0",
    ),
    "x type": (lambda: EquiTune(nn.Identity(), "c4", "c4")([1]), TypeError, "x: expected a torch.Tensor, got list"),
    "x rank": (
        lambda: EquiTune(nn.Identity(), "c4", "c4")(torch.zeros(4, 4)),
        ValueError,
        r"x: expected a batch \(B, …, H, W\) for 'c4', got shape \(4, 4\)",
    ),
    "output type": (
        lambda: EquiTune(returns(3), "c4", "c4")(torch.zeros(1, 1, 4, 4)),
        TypeError,
        "backbone: expected it to return a tensor, tuple or dict, got int",
    ),
    "output batch": (
        lambda: EquiTune(returns(torch.zeros(3, 2)), "c4", "trivial")(torch.zeros(1, 1, 4, 4)),
        ValueError,
        r"backbone: expected an output whose first dim is the batch 4 \(4 views of 1\), got shape \(3, 2\)",
    ),
    "output scalar": (
        lambda: EquiTune(returns(torch.zeros(())), "c4", "trivial")(torch.zeros(1, 1, 4, 4)),
        ValueError,
        r"backbone: expected an output whose first dim is the batch 4 .*got shape \(\)",
    ),
    "output square": (
        lambda: EquiTune(returns(torch.zeros(4, 2, 3)), "c4", "c4")(torch.zeros(1, 1, 4, 4)),
        ValueError,
        "backbone: expected square outputs .*got 2×3",
    ),
    "output rank": (
        lambda: EquiTune(returns(torch.zeros(4)), "c4", "c4")(torch.zeros(1, 1, 4, 4)),
        ValueError,
        r"out: expected outputs \(B, …, H, W\) .*got \(1,\)",
    ),
    "one for two": (
        lambda: EquiTune(lambda x: (x, x), "c4", "c4")(torch.zeros(1, 1, 4, 4)),
        ValueError,
        r"out: the backbone returns a tuple with \[0, 1\]; expected a tuple with an action for each",
    ),
    "two for one": (
        lambda: EquiTune(nn.Identity(), "c4", ("c4", "c4"))(torch.zeros(1, 1, 4, 4)),
        ValueError,
        "out: expected one action, since the backbone returns one tensor",
    ),
    "missing key": (
        lambda: EquiTune(lambda x: {"a": x, "b": x}, "c4", {"a": "c4"})(torch.zeros(1, 1, 4, 4)),
        ValueError,
        r"out: the backbone returns a dict with \['a', 'b'\]; expected a dict with an action for each",
    ),
    "turned shape": (
        lambda: EquiTune(lambda x: x[..., :2, :], "c4", "c4")(torch.zeros(1, 1, 4, 6)),
        ValueError,
        r"backbone: expected the same output shape for an image and the turned image",
    ),
    "permuted dim of a rectangle": (
        lambda: EquiTune(lambda x: x.flatten(1)[:, :3], "c4", CYCLE)(torch.zeros(1, 1, 4, 6)),
        ValueError,
        "output: expected a tensor .* with 4 entries on dim -1",
    ),
    "integer output": (
        lambda: EquiTune(lambda x: x.long(), "c4", "c4")(torch.zeros(1, 1, 4, 4)),
        TypeError,
        "backbone: expected outputs of a floating-point dtype to merge, got torch.int64",
    ),
}


@each("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("wrapper", [EquiTune, EquiZero, LambdaEquiTune, CanonicalEquiTune])
def test_a_map_that_is_said_to_stand_still_is_warned_of(wrapper: Any) -> None:
    x = torch.randn(2, 3, 8, 8)
    options = {LambdaEquiTune: {"weight_net": 192, "features": lambda views: views.flatten(1)}}.get(wrapper, {})
    with pytest.warns(UserWarning, match=r"out: 'trivial' merges outputs \(B, 2, 8, 8\) .* H, W: .* write 'd4'"):
        wrapper(nn.Conv2d(3, 2, 3, padding=1), "d4", "trivial", **options)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper(nn.Conv2d(3, 2, 3, padding=1), "d4", "d4", **options)(x)
        wrapper(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "d4", "trivial", **options)(x)
        wrapper(nn.Conv2d(3, 2, 3), "d4", "trivial", **options)(x)  # of other sides: an embedding of places, perhaps
