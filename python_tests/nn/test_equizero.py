"""Equizero: equivariance, the exact choice, every loss, and gradients that are those of the stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equikern import EquiTune, EquiZero, grid, orbit_score, orbit_select, permutation, tokens, trivial
from helpers.looped import each
from helpers.oracles import NAMED
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LOSSES = ("max_prob", "entropy", "margin", "similarity", "max_q")
SHAPES = pytest.mark.parametrize("shape", [(12, 12), (12, 16)])


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 5, 3, padding=1)).eval()


@pytest.fixture
def classifier(dense: nn.Module) -> nn.Module:
    return nn.Sequential(dense, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images(*shape: int, batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(seed)) * 3


def plain_loss(logits: Tensor, loss: str) -> Tensor:
    """The loss of (…, classes) logits, in plain torch."""
    p = logits.softmax(-1)
    best = p.topk(2, -1).values
    return {
        "max_prob": -best[..., 0].log(),
        "max_q": -best[..., 0].log(),
        "margin": -(best[..., 0] - best[..., 1]).log(),
        "entropy": -(p * p.log()).sum(-1),
        "similarity": -logits.amax(-1),
    }[loss]


@each("name", NAMED)
@pytest.mark.parametrize("loss", LOSSES)
@each(*SHAPES.args)
def test_equivariant_and_invariant(
    dense: nn.Module, classifier: nn.Module, name: str, loss: Any, shape: tuple[int, int]
) -> None:
    x, action = images(*shape), grid(name)
    maps = EquiZero(dense, name, name, loss, classes=-3)
    logits = EquiZero(classifier, name, "trivial", loss)
    y, z = maps(x), logits(x)
    for g in range(action.order):
        torch.testing.assert_close(maps(action.act(g, x)), action.act(g, y), rtol=0, atol=1e-5)
        torch.testing.assert_close(logits(action.act(g, x)), z, rtol=0, atol=1e-5)


@each("name", NAMED)
@pytest.mark.parametrize("loss", LOSSES)
@each(*SHAPES.args)
@each("views", [None, 1, 3])
def test_is_the_chosen_view_bit_for_bit(
    classifier: nn.Module, name: str, loss: Any, shape: tuple[int, int], views: int | None
) -> None:
    x, action = images(*shape), grid(name)
    model = EquiZero(classifier, name, "trivial", loss, views_per_forward=views)
    outputs = model.views(x)
    scores = plain_loss(outputs.double(), loss)
    best = scores.argmin(0)
    torch.testing.assert_close(model.scores(x).double(), scores, rtol=0, atol=1e-6)
    assert torch.equal(model.chosen(x), best)
    assert torch.equal(model(x), outputs[best, torch.arange(len(x))])
    assert model.scores(x).shape == (action.order, len(x))


def test_dense_outputs_are_chosen_whole(dense: nn.Module) -> None:
    """One choice for each image, by the mean of the pixels' losses."""
    x, c4 = images(8, 8), grid("c4")
    model = EquiZero(dense, "c4", "c4", "entropy", classes=-3)
    views = torch.stack([c4.act(-g % 4, dense(c4.act(g, x))) for g in range(4)])
    p = views.softmax(2)
    entropy = -(p * p.log()).sum(2).mean((2, 3))
    chosen = entropy.argmin(0)
    assert torch.equal(model.chosen(x), chosen)
    assert torch.equal(model(x), views[chosen, torch.arange(len(x))])


@SHAPES
def test_views_that_tie_are_averaged(shape: tuple[int, int]) -> None:
    """Also where the turned views of a rectangle run behind the upright ones, and in parts; the lowest is named."""
    x = images(*shape)
    model = EquiZero(lambda x: x.amax((2, 3)), "d4", "trivial", lambda y: torch.zeros(y.shape[:2]))
    assert not model.chosen(x).any()
    for views in (None, 1, 3):
        same = EquiZero(lambda x: x, "d4", "d4", lambda y: torch.zeros(y.shape[:2]), views_per_forward=views)
        torch.testing.assert_close(same(x), x, rtol=0, atol=1e-6)
        slope = EquiZero(lambda x: x[:, :1] * 0 + torch.linspace(0, 1, x.shape[-1]), "flips", "flips", classes=-3)
        slope.views_per_forward = views
        torch.testing.assert_close(slope(x), torch.full_like(x[:, :1], 0.5))


@pytest.mark.parametrize("views", [None, 3])
def test_no_answer_of_a_symmetric_image_depends_on_its_frame(dense: nn.Module, views: int | None) -> None:
    """Constant and mirrored images, whose views are equal, so that outputs that turn may not be those of one view."""
    x = images(8, 8, batch=4)
    x[0] = 0.5
    x[1] = x[1] + x[1].flip(-1)
    x[2] = x[2] + x[2].mT
    d4, moves = grid("d4"), grid("d4").group.multiply
    head = nn.Sequential(dense, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 8))
    where = permutation(moves, group=d4.group)
    models: list[tuple[nn.Module, Any]] = [
        (EquiZero(dense, "d4", "d4", "entropy", classes=-3, views_per_forward=views), d4),
        (EquiZero(head, "d4", where, "margin", views_per_forward=views), where),
        (EquiZero(head, "d4", "trivial", views_per_forward=views), None),
    ]
    for model, out in models:
        with torch.no_grad():
            y = model(x)
            for g in range(8):
                expected = y if out is None else out.act(g, y)
                torch.testing.assert_close(model(d4.act(g, x)), expected, rtol=0, atol=1e-6)
            assert torch.equal(y[3], model.views(x)[model.chosen(x)[3], 3])  # without a symmetry one view, bit for bit


@pytest.mark.parametrize("loss", ["max_prob", "margin"])
def test_saturated_classifiers(loss: Any) -> None:
    """With top-two gaps of 14 and 42 the largest probability is 1.0, and with 400 its logarithm 0, for every view."""
    x, c4 = images(8, 8, batch=64), grid("c4")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        best = net(x).topk(2, -1).values
        unit = 1 / (best[:, 0] - best[:, 1]).median()
        for gap in (14, 42, 400):
            model = EquiZero(lambda t, by=gap * unit: net(t) * by, "c4", "trivial", loss)
            y = model(x)
            for g in range(1, 4):
                assert torch.equal(model(c4.act(g, x)).argmax(-1), y.argmax(-1)), f"gap {gap}, {g}"
                torch.testing.assert_close(model(c4.act(g, x)), y, rtol=1e-4, atol=1e-4)


def test_a_logit_that_is_masked_spoils_no_tie() -> None:
    """−∞ in one of the views that count nothing, and in those that tie."""
    y = torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]], [[-torch.inf, 0.0]], [[1.5, 0.5]]])
    found = orbit_select(y, torch.tensor([[0.0], [0.0], [1.0], [torch.nan]]), trivial(grid("c4").group), ties="mean")
    assert isinstance(found, Tensor)
    assert found.tolist() == [[1.5, 1.5]]


@pytest.mark.parametrize("gradient", ["mean", "identity", "selected"])
def test_the_gradient_of_a_tie(gradient: Any) -> None:
    """In both modes, twice, under vmap and compiled: that of the stand-in, of those that tie alike."""
    c4 = grid("c4")
    y = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = torch.tensor([[0.0, 1, 2], [0, 0, 2], [1, 0, 0], [2, 0, 1]], dtype=torch.float64)

    def call(y: Tensor) -> Any:
        return orbit_select(y, scores, c4, gradient=gradient, ties="mean")

    def stand_in(y: Tensor) -> Tensor:
        back = torch.stack([c4.act(-g % 4, view) for g, view in enumerate(y)])
        if gradient == "mean":
            return back.mean(0)
        if gradient == "identity":
            return back[0]
        best = (scores == 0).to(y.dtype)
        return (back * (best / best.sum(0))[..., None, None]).sum(0)

    weight = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((stand_in(y) * weight).sum(), y)
    (found,) = torch.autograd.grad((call(y) * weight).sum(), y)
    torch.testing.assert_close(found, expected)
    tangent = torch.randn_like(y)
    torch.testing.assert_close(torch.func.jvp(call, (y,), (tangent,))[1], stand_in(tangent))
    batch = torch.stack((y, y * 2)).detach()
    torch.testing.assert_close(torch.vmap(call)(batch), torch.stack([call(one) for one in batch]))
    if gradient == "selected":
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(y), call(y))
        torch.testing.assert_close(torch.autograd.grad((compiled(y) * weight).sum(), y)[0], expected)


def test_a_callable_sees_every_output(dense: nn.Module) -> None:
    def backbone(x: Tensor) -> dict[str, Any]:
        maps = dense(x)
        return {"maps": maps, "more": (maps.mean((2, 3)), maps.amax((2, 3)))}

    def loss(outputs: Any) -> Tensor:
        assert outputs["maps"].shape[1:] == (3, 5, 8, 8)
        return outputs["more"][0].sum(-1)

    out = {"maps": "c4", "more": ("trivial", "trivial")}
    x = images(8, 8)
    model = EquiZero(backbone, "c4", out, loss)
    assert torch.equal(model.chosen(x), EquiTune(backbone, "c4", out).views(x)["more"][0].sum(-1).argmin(0))
    keyed = EquiZero(backbone, "c4", out, "max_prob", classes=-3, scored="maps")
    assert keyed(x)["more"][1].shape == (3, 5)


class Operators(TorchDispatchMode):
    """Takes down which of equikern's operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("equikern."):
            self.names.append(name.split(".")[1])
        return func(*args, **(kwargs or {}))


def operators(model: EquiZero, x: Tensor) -> list[str]:
    with Operators() as seen, torch.no_grad():
        model(x)
    return seen.names


def test_only_the_chosen_views_are_read(dense: nn.Module, classifier: nn.Module) -> None:
    """Where none tie, and that is asked of a CPU alone."""
    x, two = images(8, 8), ["orbit", "score", "select"]

    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        return dense(x), classifier(x)

    assert operators(EquiZero(classifier, "d4", "trivial"), x) == two
    assert operators(EquiZero(dense, "c4", "c4", classes=-3), x) == two
    assert operators(EquiZero(pair, "c4", ("c4", "trivial"), scored=1), x) == [*two, "select"]
    assert operators(EquiZero(classifier, "c4", "trivial", lambda y: -y.amax(-1)), x) == ["orbit", "select"]
    assert operators(EquiZero(classifier, "c4", "trivial"), torch.ones(2, 3, 8, 8)) == [*two, "reduce"]


@pytest.mark.parametrize("gradient", ["mean", "identity", "selected", None])
def test_gradient_is_that_of_the_stand_in(classifier: nn.Module, gradient: Any) -> None:
    classifier.train()
    x = images(8, 8).requires_grad_()
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    model = EquiZero(classifier, "d4", "trivial", "entropy", gradient)
    parameters = [x, *classifier.parameters()]
    result = (model(x) * weight).sum()
    if gradient is None:
        assert not result.requires_grad
        return
    ours = torch.autograd.grad(result, parameters)
    if gradient == "mean":
        stand_in = EquiTune(classifier, "d4", "trivial")(x)
    elif gradient == "identity":
        stand_in = classifier(x)
    else:
        d4, chosen = grid("d4"), model.chosen(x).tolist()
        stand_in = torch.cat([classifier(d4.act(g, x[i : i + 1])) for i, g in enumerate(chosen)])
    theirs = torch.autograd.grad((stand_in * weight).sum(), parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_q_values() -> None:
    """Gridworld: C4 turns the grid and permutes the four moves; the largest softmax-normalised Q decides."""
    moves = permutation([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 16), nn.Tanh(), nn.Linear(16, 4))
    policy = EquiZero(net, "c4", moves, "max_q")
    x = torch.randn(6, 5, 5)
    for g in range(4):
        assert torch.equal(policy(grid("c4").act(g, x)).argmax(-1), moves.perm[g][policy(x).argmax(-1)])


def test_words_are_scored_by_the_whole_sequence() -> None:
    action = tokens([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [2, 0, 1, 3, 4]])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 8), nn.Tanh(), nn.Linear(8, 5))
    model = EquiZero(net, action, action.logits, "max_prob")
    ids = torch.tensor([[0, 3, 2], [4, 4, 1]])
    losses = torch.stack([orbit_score(net(action.act(g, ids)), "max_prob") for g in range(3)])
    scores = 1 - (-losses).exp().mean(-1)  # by the mean probability
    torch.testing.assert_close(model.scores(ids), scores)
    for g in range(3):
        torch.testing.assert_close(model(action.act(g, ids)), action.logits.act(g, model(ids)))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"loss": "best"}, ValueError, "loss: expected one of 'max_prob', 'entropy', 'margin', 'similarity', 'max_q'"),
        ({"loss": 3}, TypeError, "loss: expected one of"),
        ({"gradient": "sum"}, ValueError, "gradient: expected one of"),
        ({"classes": 1}, ValueError, "classes: expected a negative number, counted from the end, got 1"),
        ({"classes": None}, TypeError, "classes: expected a whole number, got NoneType"),
    ],
)
def test_what_is_refused(options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        EquiZero(nn.ReLU(), "c4", "c4", **options)


def test_what_is_refused_in_the_forward(classifier: nn.Module) -> None:
    x = images(8, 8)
    with pytest.raises(ValueError, match=r"classes: expected outputs \(n, B, …\) with a dim -2 behind the batch"):
        EquiZero(classifier, "c4", "trivial", classes=-2)(x)
    with pytest.raises(ValueError, match="scored: the backbone's outputs have no 'y'"):
        EquiZero(lambda x: {"z": x}, "c4", {"z": "c4"}, scored="y")(x)
    with pytest.raises(ValueError, match=r"scored: expected the key or position .* since the backbone returns a tuple"):
        EquiZero(lambda x: (x, x), "c4", ("c4", "c4"))(x)
    with pytest.raises(TypeError, match="loss: expected it to return a tensor of losses"):
        EquiZero(classifier, "c4", "trivial", lambda y: 1.0)(x)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"loss: expected one number for every view and sample, \(4, 3\), got \(4,\)"):
        EquiZero(classifier, "c4", "trivial", lambda y: y.sum((1, 2)))(x)


def test_views_are_in_the_groups_order(dense: nn.Module) -> None:
    x, d4 = images(8, 12), grid("d4")
    views = EquiTune(dense, "d4", "d4").views(x)
    for g, back in enumerate(d4.group.inverse.tolist()):
        torch.testing.assert_close(views[g], d4.act(back, dense(d4.act(g, x))))


@pytest.mark.parametrize("space", ["probs", "log_probs"])
@pytest.mark.parametrize("reduce", ["mean", "max", "gmean", "mean_std"])
def test_equitune_of_probabilities(classifier: nn.Module, space: Any, reduce: str) -> None:
    x = images(8, 8)
    p = EquiTune(classifier, "c4", "trivial").views(x)
    p = p.softmax(-1) if space == "probs" else p.log_softmax(-1)
    expected = EquiTune(lambda _: p.flatten(0, 1), "c4", "trivial", reduce)(x)
    torch.testing.assert_close(EquiTune(classifier, "c4", "trivial", reduce, space=space)(x), expected, equal_nan=True)
    with pytest.raises(ValueError, match="space: expected one of"):
        EquiTune(classifier, "c4", "trivial", space="logits")  # type: ignore[arg-type]
