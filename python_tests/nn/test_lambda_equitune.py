"""λ-equitune: equivariance, its special cases, where the features come from, and the two stages of training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from equikern import (
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    cyclic_group,
    grid,
    permutation,
    tokens,
    train_backbone,
    train_weights,
    trivial,
    weight_network,
)
from helpers.looped import each
from helpers.oracles import NAMED
from torch import Tensor, nn

SHAPES = pytest.mark.parametrize("shape", [(12, 12), (12, 16)])
NORMALIZE = pytest.mark.parametrize("normalize", ["sum", "softmax", None])


class Backbone(nn.Module):
    """Feature maps and logits, with named parts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU())
        self.head = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.head(self.trunk(x))
        return {"maps": maps, "logits": maps.mean((2, 3))}


class Positive(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = weight_network(features, 8)

    def forward(self, f: Tensor) -> Tensor:
        return self.net(f).exp()


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone().eval()


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@each("name", NAMED)
@SHAPES
@NORMALIZE
@each("frozen", [False, True])
def test_equivariant(backbone: Backbone, name: str, shape: tuple[int, int], normalize: Any, frozen: bool) -> None:
    out = {"maps": name, "logits": "trivial"}
    model = LambdaEquiTune(backbone, name, out, Positive(6), "trunk", frozen, normalize).eval()
    x = images(*shape)
    y, action = model(x), grid(name)
    weights = model.weights(x)
    for g in range(action.order):
        moved = model(action.act(g, x))
        torch.testing.assert_close(moved["maps"], action.act(g, y["maps"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(moved["logits"], y["logits"], rtol=0, atol=1e-5)
        # h·(g·x) has the weight that (h∘g)·x has
        order = action.group.multiply[:, g]
        torch.testing.assert_close(model.weights(action.act(g, x)), weights[order], rtol=0, atol=1e-5)


@SHAPES
def test_is_the_papers_formula(backbone: Backbone, shape: tuple[int, int]) -> None:
    net = Positive(6)
    model = LambdaEquiTune(backbone, "c4", {"maps": "c4", "logits": "trivial"}, net, "trunk", normalize="sum").eval()
    x, c4 = images(*shape), grid("c4")
    top: Any = 0.0
    bottom: Any = 0.0
    for g in range(4):
        view = c4.act(g, x)
        share = net(backbone.trunk(view).mean((2, 3)))[:, :, None, None]
        top = top + share * c4.act(-g % 4, backbone(view)["maps"])
        bottom = bottom + share
    torch.testing.assert_close(model(x)["maps"], top / bottom)


@SHAPES
@pytest.mark.parametrize("name", ["c4", "d4", "flips"])
def test_constant_weights_are_equitune(backbone: Backbone, shape: tuple[int, int], name: str) -> None:
    out = {"maps": name, "logits": "trivial"}
    net = nn.Linear(6, 1)
    nn.init.zeros_(net.weight)
    equitune = EquiTune(backbone, name, out)(images(*shape))
    for views_per_forward in (None, 1, 3):
        model = LambdaEquiTune(backbone, name, out, net, "trunk", views_per_forward=views_per_forward)
        ours = model(images(*shape))
        torch.testing.assert_close(ours["maps"], equitune["maps"])
        torch.testing.assert_close(ours["logits"], equitune["logits"])


class Indicator(nn.Module):
    """One at the view whose largest probability is largest, from the logits of all views at once."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, logits: Tensor) -> Tensor:
        best = logits.softmax(-1).amax(-1).view(self.order, -1)
        return nn.functional.one_hot(best.argmax(0), self.order).T.reshape(-1, 1).to(logits.dtype)


@pytest.mark.parametrize("name", ["c4", "d4", "flips"])
def test_one_hot_weights_are_equizero(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    ours = LambdaEquiTune(model, name, "trivial", Indicator(grid(name).order), normalize="sum")(images(12, 12))
    assert torch.equal(ours, EquiZero(model, name, "trivial")(images(12, 12)))


def test_features_from_everywhere(backbone: Backbone) -> None:
    x, out = images(10, 10), {"maps": "c4", "logits": "trivial"}
    net = weight_network(6)
    by_name = LambdaEquiTune(backbone, "c4", out, net, "trunk")
    by_call = LambdaEquiTune(backbone, "c4", out, net, lambda views: backbone.trunk(views))
    by_copy = LambdaEquiTune(backbone, "c4", out, net, "trunk", frozen=True)
    torch.testing.assert_close(by_call.weights(x), by_name.weights(x))
    torch.testing.assert_close(by_copy.weights(x), by_name.weights(x))
    torch.testing.assert_close(by_call(x), by_name(x))
    with torch.no_grad():
        before = by_copy.weights(x)
        backbone.trunk[0].weight.mul_(3)
    assert torch.equal(by_copy.weights(x), before)
    assert not torch.allclose(by_name.weights(x), before)
    own = LambdaEquiTune(backbone, "c4", out, 4)  # its first output, the maps
    assert own.weights(x).shape == (4, 2)


def test_the_backbone_runs_once_for_its_own_features(backbone: Backbone) -> None:
    batches = []
    backbone.trunk.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    out = {"maps": "d4", "logits": "trivial"}
    LambdaEquiTune(backbone, "d4", out, 6, "trunk")(images(8, 8))
    assert batches == [16]
    LambdaEquiTune(backbone, "d4", out, 6, "trunk", frozen=True)(images(8, 8))
    assert batches == [16, 16, 16]  # the copy was made with the hook, and runs too


def test_sequences_and_words() -> None:
    """Token ids in, logits out: λ reads the hidden states, averaged over the positions."""
    action = tokens([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [2, 0, 1, 3, 4]])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 8), nn.Tanh(), nn.Linear(8, 5))
    model = LambdaEquiTune(net, action, action.logits, 8, "1")
    ids = torch.tensor([[0, 3, 2], [4, 4, 1]])
    for g in range(3):
        torch.testing.assert_close(model(action.act(g, ids)), action.logits.act(g, model(ids)))


@NORMALIZE
def test_gradients(normalize: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1)).double().train()
    model = LambdaEquiTune(net, "c4", "c4", Positive(2).double(), "1", normalize=normalize)
    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64).requires_grad_()

    def call(x: Tensor, *values: Tensor) -> Tensor:
        found = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


def test_two_stages(backbone: Backbone) -> None:
    out = {"maps": "c4", "logits": "trivial"}
    model = LambdaEquiTune(backbone, "c4", out, 6, "trunk")
    x, labels = images(8, 8), torch.tensor([1, 3])

    def step(parameters: list[nn.Parameter]) -> dict[str, Tensor]:
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
        for _ in range(2):
            model.train()  # what training loops say
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x)["logits"], labels).backward()
            optimizer.step()
        return {name: t for name, t in before.items() if not torch.equal(t, model.state_dict()[name])}

    first = step(train_weights(model))
    assert first
    assert all(name.startswith("weight_net.") for name in first)  # batch statistics too stand still
    second = step(train_backbone(model))
    assert "backbone.head.weight" in second
    assert "backbone.trunk.1.running_mean" in second
    assert all(name.startswith("backbone.") for name in second)


def test_a_frozen_copy_is_never_trained(backbone: Backbone) -> None:
    model = LambdaEquiTune(backbone, "c4", {"maps": "c4", "logits": "trivial"}, 6, "trunk", frozen=True)
    train_backbone(model)
    assert isinstance(model.frozen, nn.Module)
    assert not model.frozen.training
    assert model.backbone.training
    model(images(8, 8))["logits"].sum().backward()
    assert all(p.grad is None for p in model.frozen.parameters())


def test_state_is_saved_and_loaded(backbone: Backbone) -> None:
    out = {"maps": "c4", "logits": "trivial"}
    model = LambdaEquiTune(backbone, "c4", out, 6, "trunk", frozen=True).eval()
    other = LambdaEquiTune(Backbone(), "c4", out, 6, "trunk", frozen=True).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images(8, 8)), model(images(8, 8)))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda b: LambdaEquiTune(b, "c4", "c4", "net"), TypeError, "weight_net: expected a module or the number"),
        (lambda b: LambdaEquiTune(b, "c4", "c4", 0), ValueError, "weight_net: expected 1 or more, got 0"),
        (lambda b: weight_network(4, True), TypeError, "hidden: expected a whole number, got bool"),
        (
            lambda b: LambdaEquiTune(b, "c4", "c4", 6, "trunc"),
            ValueError,
            "no submodule 'trunc'; it has trunk, ",
        ),
        (lambda b: LambdaEquiTune(b, "c4", "c4", 6, 3), TypeError, "features: expected a submodule's name, a callable"),
        (lambda b: LambdaEquiTune(b.forward, "c4", "c4", 6, "trunk"), TypeError, "since the backbone is no module"),
        (lambda b: LambdaEquiTune(b.forward, "c4", "c4", 6, frozen=True), TypeError, "frozen: expected a module"),
        (lambda b: LambdaEquiTune(b, "c4", "c4", 6, b, True), ValueError, "frozen: expected False beside a callable"),
        (lambda b: LambdaEquiTune(b, "c4", "c4", 6, normalize="max"), ValueError, "normalize: expected one of"),
        (lambda b: LambdaEquiTune(b, "c4", "d4", 6), ValueError, "out: expected an action of the input's group"),
        (lambda b: train_weights(LambdaEquiTune(b.forward, "c4", "c4", nn.ReLU())), None, ""),
        (lambda b: train_backbone(LambdaEquiTune(b.forward, "c4", "c4", 6)), TypeError, "model: expected a backbone"),
    ],
)
def test_what_is_refused(backbone: Backbone, make: Any, kind: type[Exception] | None, message: str) -> None:
    if kind is None:
        assert make(backbone) == []
        return
    with pytest.raises(kind, match=message):
        make(backbone)


def test_what_is_refused_in_the_forward(backbone: Backbone) -> None:
    out = {"maps": "c4", "logits": "trivial"}
    with pytest.raises(ValueError, match=r"weight_net: expected one number for each of 8 views, .* got \(8, 2\)"):
        LambdaEquiTune(backbone, "c4", out, nn.Linear(6, 2), "trunk")(images(8, 8))
    with pytest.raises(TypeError, match="features: expected a tensor, got str"):
        LambdaEquiTune(backbone, "c4", out, 6, lambda views: "features")(images(8, 8))  # type: ignore[arg-type,return-value]
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    twice.append(twice[1])
    with pytest.raises(ValueError, match="expected submodule '1' to run once in a forward, it ran 2 times"):
        LambdaEquiTune(twice, "c4", "c4", 3, "1")(images(8, 8))


def test_a_signed_permutation_of_states() -> None:
    state = permutation([[0, 1, 2, 3]] * 2, [[1] * 4, [-1] * 4])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model = LambdaEquiTune(net, state, permutation([[0, 1], [1, 0]]), 8, "1")
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(-x), model(x).flip(-1))
    assert LambdaEquiTune(net, state, trivial(cyclic_group(2)), 2)(x).shape == (5, 2)


class ChannelsLast(nn.Module):
    """Like Swin's stages: maps (N, H, W, F), normalised over F, so that means over F say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_features_are_pooled_where_they_are() -> None:
    torch.manual_seed(0)
    last, x = ChannelsLast(), images(9, 9)
    maps = last.norm(last.conv(x).permute(0, 2, 3, 1))
    net = weight_network(6)
    model = LambdaEquiTune(last, "d4", "trivial", net, features="norm", normalize=None)
    torch.testing.assert_close(model.weights(x)[0], net(maps.mean((1, 2))).flatten(), rtol=1e-4, atol=1e-5)
    assert model.weights(x).std(0).min() > 1e-4
    first = LambdaEquiTune(last, "d4", "trivial", net, features="conv", normalize=None)
    torch.testing.assert_close(first.weights(x)[0], net(last.conv(x).mean((2, 3))).flatten(), rtol=1e-4, atol=1e-5)
    square = torch.randn(2, 6, 6, 6).cumsum(1)  # as many in both places: first, unless it is said
    for pool, dims in (("auto", (2, 3)), ("first", (2, 3)), ("last", (1, 2))):
        said = LambdaEquiTune(
            lambda v: v.mean((1, 2, 3))[:, None],
            "c2",
            "trivial",
            net,
            features=lambda v: square.repeat(2, 1, 1, 1),
            normalize=None,
            pool=pool,  # type: ignore[arg-type]
        )
        expected = net(square.mean(dims)).flatten()
        torch.testing.assert_close(said.weights(x)[0], expected, rtol=1e-4, atol=1e-4, msg=pool)


def test_features_as_they_are() -> None:
    """A network of weights of its own, which reads whole maps; layers behind change them in place."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 1))
    model, x = LambdaEquiTune(backbone, "d4", "trivial", net, features="0", normalize=None, pool=None), images(8, 8)
    torch.testing.assert_close(model.weights(x)[0], net(backbone[0](x)).flatten(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pool: expected one of 'auto', 'first', 'last', None, got 'mean'"):
        LambdaEquiTune(backbone, "d4", "trivial", 6, pool="mean")  # type: ignore[arg-type]


def test_features_by_name_inside_of_a_wrapper() -> None:
    """DDP and DataParallel put ``module.`` in front of names; the model's own still count, and so do those."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    x = images(8, 8)
    expected = LambdaEquiTune(backbone, "d4", "trivial", net := weight_network(6), features="1").weights(x)
    for name in ("1", "module.1"):
        wrapped = LambdaEquiTune(nn.DataParallel(backbone), "d4", "trivial", net, features=name)
        torch.testing.assert_close(wrapped.weights(x), expected)
    with pytest.raises(ValueError, match="features: the backbone has no submodule '9'; it has 0, 1, 2"):
        LambdaEquiTune(nn.DataParallel(backbone), "d4", "trivial", net, features="9")


def test_frozen_features_are_copied_before_a_model_is_sharded(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    x, net = images(8, 8), weight_network(6)
    model = LambdaEquiTune(made(), "d4", "trivial", copy.deepcopy(net), features="0", frozen=True)
    expected = model(x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fully_shard(model)
        found = model(x)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        sharded = made()
        fully_shard(sharded)
        torch.testing.assert_close(LambdaEquiTune(sharded, "d4", "trivial", net, features="0")(x), expected)
        with pytest.raises(ValueError, match="frozen: expected a backbone that is not sharded yet"):
            LambdaEquiTune(sharded, "d4", "trivial", net, features="0", frozen=True)
    finally:
        torch.distributed.destroy_process_group()
