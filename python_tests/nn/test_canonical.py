"""CanonicalLambdaEquiTune: Theorem 1 under random continuous rotations, its special cases, frames, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from equikern import CanonicalLambdaEquiTune, grid, matrix, principal_frame, vector_frame
from helpers.looped import each
from torch import Tensor, nn
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
SIZES = pytest.mark.parametrize("d", [2, 3])
Frame = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rotations(count: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random elements of SO(d)."""
    q, r = torch.linalg.qr(torch.randn(count, d, d, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    q[:, :, 0] *= torch.linalg.det(q).unsqueeze(-1)
    return q.to(dtype)


def turned(g: Tensor, x: Tensor) -> Tensor:
    """One rotation for each sample."""
    return torch.einsum("bij,b...j->b...i", g, x)


def theta(d: int, count: int = 4) -> Tensor:
    return torch.cat([torch.eye(d, dtype=torch.float64)[None], rotations(count - 1, d)])


def network(points: int, d: int, outputs: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(points * d, 32), nn.Tanh(), nn.Linear(32, outputs)).to(dtype)


def vectors(points: int, d: int) -> nn.Sequential:
    return nn.Sequential(*network(points, d, 2 * d), nn.Unflatten(1, (2, d)))


class Learned(nn.Module):
    """A canonicalising network: two equivariant combinations of the points, made into a frame."""

    def __init__(self, points: int, d: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(d - 1, points))

    def forward(self, x: Tensor) -> Tensor:
        return vector_frame(self.mix.to(x.dtype) @ x)


FRAMES: dict[str, Callable[[int, int], Frame]] = {
    "vectors": lambda points, d: vector_frame,
    "others": lambda points, d: partial(vector_frame, points=3 if d == 2 else (3, 1)),
    "centred": lambda points, d: partial(vector_frame, centred=True),
    "principal": lambda points, d: principal_frame,
    "learned": Learned,
}
EVERY = pytest.mark.parametrize("frame", FRAMES)


def cloud(batch: int, points: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points of different spread along different axes, whose frames are well defined."""
    x = torch.randn(batch, points, d, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.4][:d], dtype=torch.float64)
    x[:, 0] += torch.tensor([4.0, 1.0, 0.3][:d], dtype=torch.float64)
    return turned(rotations(batch, d), x).to(dtype)


def assert_theorem(model: CanonicalLambdaEquiTune, x: Tensor, equivariant: bool) -> None:
    result = model(x)
    assert float(result.std()) > 0.01
    for _ in range(20):
        g = rotations(len(x), x.shape[-1], x.dtype)
        expected = turned(g, result) if equivariant else result
        torch.testing.assert_close(model(turned(g, x)), expected, rtol=1e-5, atol=1e-5)


@SIZES
@each(*EVERY.args)
@each("normalize", ["softmax", "sum", None])
def test_theorem_1_invariant(d: int, frame: str, normalize: Any) -> None:
    weight_net: nn.Module = network(6, d, 1)
    if normalize != "softmax":
        weight_net = nn.Sequential(weight_net, nn.Softplus())
    model = CanonicalLambdaEquiTune(network(6, d, 3), FRAMES[frame](6, d), theta(d), weight_net, normalize=normalize)
    assert_theorem(model, cloud(16, 6, d), equivariant=False)


@SIZES
@each(*EVERY.args)
@each("undo", [False, True])
def test_theorem_1_equivariant(d: int, frame: str, undo: bool) -> None:
    model = CanonicalLambdaEquiTune(
        vectors(6, d), FRAMES[frame](6, d), theta(d), network(6, d, 1), "equivariant", undo=undo
    )
    assert_theorem(model, cloud(16, 6, d), equivariant=True)


@SIZES
def test_the_backbone_alone_is_not_equivariant(d: int) -> None:
    """So that the theorem's tests can fail."""
    x, backbone = cloud(16, 6, d), network(6, d, 3)
    g = rotations(16, d, torch.float32)
    assert float((backbone(turned(g, x)) - backbone(x)).abs().max()) > 0.05


def test_single_vectors() -> None:
    model = CanonicalLambdaEquiTune(network(1, 2, 3), vector_frame, theta(2), network(1, 2, 1))
    x = torch.randn(8, 2)
    assert_theorem(model, x, equivariant=False)
    expected = torch.stack((x.norm(dim=-1), torch.zeros(8)), -1)
    torch.testing.assert_close(model.canonicalized(x), expected, rtol=1e-6, atol=1e-6)
    moving = CanonicalLambdaEquiTune(network(1, 2, 2), vector_frame, theta(2), None, "equivariant")
    with pytest.raises(ValueError, match=r"backbone: expected outputs \(B, …, 2\) to turn with x, got \(8, 3\)"):
        CanonicalLambdaEquiTune(network(1, 2, 3), vector_frame, theta(2), None, "equivariant")(x)
    assert_theorem(moving, x, equivariant=True)


def formula(model: CanonicalLambdaEquiTune, x: Tensor, mats: Tensor, undo: bool = False) -> Tensor:
    """The paper's sums, one pose after the other."""
    h = model.canonical(x)
    z = turned(h.mT, x)
    total, whole = torch.zeros(()), torch.zeros(())
    for one in mats.to(x.dtype):
        pose = z @ one.T
        weight = model.weight_net(pose).exp() if model.weight_net is not None else torch.ones(len(x), 1)
        y = model.backbone(pose)
        weight = weight.reshape(-1, *(1,) * (y.dim() - 1))
        total, whole = total + weight * (y @ one if undo else y), whole + weight
    return turned(h, total / whole) if model.out == "equivariant" else total / whole


@SIZES
def test_it_is_the_papers_formula(d: int) -> None:
    x, mats = cloud(5, 4, d, torch.float64), theta(d, 3)
    weight_net = network(4, d, 1, torch.float64)
    invariant = CanonicalLambdaEquiTune(network(4, d, 3, torch.float64), vector_frame, mats, weight_net)
    torch.testing.assert_close(invariant(x), formula(invariant, x, mats))
    for undo in (False, True):
        moving = CanonicalLambdaEquiTune(
            vectors(4, d).double(), vector_frame, mats, weight_net, "equivariant", undo=undo
        )
        torch.testing.assert_close(moving(x), formula(moving, x, mats, undo))


@SIZES
@pytest.mark.parametrize("weighted", [False, True])
def test_the_identity_alone_is_plain_canonicalisation(d: int, weighted: bool) -> None:
    x, backbone = cloud(7, 5, d), vectors(5, d)
    weight_net = network(5, d, 1) if weighted else None
    one = torch.eye(d)[None]
    z = turned(vector_frame(x).mT, x)
    invariant = CanonicalLambdaEquiTune(backbone, vector_frame, one, weight_net)
    torch.testing.assert_close(invariant(x), backbone(z))
    torch.testing.assert_close(invariant.canonicalized(x), z)
    moving = CanonicalLambdaEquiTune(backbone, vector_frame, matrix(one), weight_net, "equivariant")
    torch.testing.assert_close(moving(x), turned(vector_frame(x), backbone(z)))


@SIZES
def test_a_constant_weight_is_the_mean_over_theta(d: int) -> None:
    x, backbone, mats = cloud(7, 5, d), network(5, d, 3), theta(d)
    plain = CanonicalLambdaEquiTune(backbone, vector_frame, mats)
    for normalize in ("softmax", "sum"):
        constant = CanonicalLambdaEquiTune(
            backbone, vector_frame, mats, lambda poses: torch.full((len(poses), 1), 0.3), normalize=normalize
        )
        torch.testing.assert_close(constant(x), plain(x))
    torch.testing.assert_close(plain.weights(x), torch.full((4, 7), 0.25))


def test_an_equivariant_backbone_stays_as_it_is_where_poses_are_turned_back() -> None:
    def backbone(x: Tensor) -> Tensor:
        return x.mean(1) + x[:, 0] * x[:, 1].norm(dim=-1, keepdim=True)

    x = cloud(6, 5, 3)
    model = CanonicalLambdaEquiTune(backbone, vector_frame, theta(3), network(5, 3, 1), "equivariant", undo=True)
    torch.testing.assert_close(model(x), backbone(x), rtol=1e-5, atol=1e-5)


@SIZES
@each("views", [1, 2, 3])
@each("normalize", ["softmax", "sum", None])
def test_theorem_1_for_the_best_poses(d: int, views: int, normalize: Any) -> None:
    weight_net: nn.Module = network(6, d, 1)
    if normalize != "softmax":
        weight_net = nn.Sequential(weight_net, nn.Softplus())
    mats, x = theta(d), cloud(16, 6, d)
    for backbone, out, undo in (
        (network(6, d, 3), "invariant", False),
        (vectors(6, d), "equivariant", False),
        (vectors(6, d), "equivariant", True),
    ):
        model = CanonicalLambdaEquiTune(backbone, vector_frame, mats, weight_net, out, normalize, undo, views=views)
        assert_theorem(model, x, out == "equivariant")


@SIZES
@each("undo", [False, True])
def test_the_best_poses_are_those_of_most_weight(d: int, undo: bool) -> None:
    """Each sample by itself: the formula over the poses that its own λ puts first."""
    x, mats = cloud(5, 4, d, torch.float64), theta(d, 4)
    backbone, weight_net = vectors(4, d).double(), network(4, d, 1, torch.float64)
    rows: list[int] = []

    def counted(poses: Tensor) -> Tensor:
        rows.append(len(poses))
        return backbone(poses)

    whole = CanonicalLambdaEquiTune(backbone, vector_frame, mats, weight_net, "equivariant", undo=undo)
    best = whole.weights(x).argsort(0, descending=True)
    assert len({tuple(column) for column in best.T.tolist()}) > 1
    for views in range(1, 5):
        model = CanonicalLambdaEquiTune(counted, vector_frame, mats, weight_net, "equivariant", undo=undo, views=views)
        result = model(x)
        assert rows.pop() == 5 * views
        chosen = best[:views]
        weights = model.weights(x)
        assert torch.equal(weights > 0, torch.zeros(4, 5).scatter(0, chosen, 1.0) > 0)
        torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64))
        for b in range(5):
            expected = formula(whole, x[b : b + 1], mats[chosen[:, b]], undo)
            torch.testing.assert_close(result[b : b + 1], expected)
    torch.testing.assert_close(result, whole(x))


def test_gradients_of_the_best_poses_reach_the_backbone_and_the_weights() -> None:
    x = cloud(3, 6, 3, torch.float64)
    backbone, weight_net = network(6, 3, 2, torch.float64), network(6, 3, 1, torch.float64)
    model = CanonicalLambdaEquiTune(backbone, Learned(6, 3), theta(3), weight_net, views=2).double()
    model(x).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if bool(p.grad.any())}
    assert reached | {"weight_net.3.bias"} == {name for name, _ in model.named_parameters()}
    assert gradcheck(model, x.clone().requires_grad_(), fast_mode=True)


def test_weights_are_readable_and_move_with_nothing() -> None:
    x = cloud(9, 5, 2)
    model = CanonicalLambdaEquiTune(network(5, 2, 3), vector_frame, theta(2), network(5, 2, 1))
    weights = model.weights(x)
    assert weights.shape == (4, 9)
    torch.testing.assert_close(weights.sum(0), torch.ones(9))
    assert float(weights.std()) > 1e-3
    torch.testing.assert_close(model.weights(turned(rotations(9, 2, x.dtype), x)), weights, rtol=1e-5, atol=1e-5)
    positive = CanonicalLambdaEquiTune(
        network(5, 2, 3), vector_frame, theta(2), nn.Sequential(network(5, 2, 1), nn.Softplus()), normalize="sum"
    )
    torch.testing.assert_close(positive.weights(x).sum(0), torch.ones(9))
    positive.normalize = None
    assert float((positive.weights(x).sum(0) - 1).abs().max()) > 0.1


@SIZES
@each(*EVERY.args)
def test_gradients(d: int, frame: str) -> None:
    """Through the backbone, λ and h alike; the loss of an invariant model has the same gradients for every turn."""
    x = cloud(3, 6, d, torch.float64)
    backbone, weight_net = network(6, d, 2, torch.float64), network(6, d, 1, torch.float64)
    model = CanonicalLambdaEquiTune(backbone, FRAMES[frame](6, d), theta(d, 3), weight_net).double()
    parameters = list(model.parameters())

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x).square().sum(), parameters)

    reached = {name for (name, _), g in zip(model.named_parameters(), gradients(x), strict=True) if bool(g.any())}
    # The softmax over the poses takes away what weight_net adds to all of them.
    assert reached | {"weight_net.3.bias"} == {name for name, _ in model.named_parameters()} | {"weight_net.3.bias"}
    for ours, expected in zip(gradients(turned(rotations(3, d), x)), gradients(x), strict=True):
        torch.testing.assert_close(ours, expected)
    assert gradcheck(model, x.clone().requires_grad_(), fast_mode=True)


@SIZES
@each(*EVERY.args)
def test_frames_are_rotations_that_turn_with_the_input(d: int, frame: str) -> None:
    x = cloud(50, 6, d, torch.float64)
    h = FRAMES[frame](6, d)
    found, g = h(x), rotations(50, d)
    torch.testing.assert_close(found.mT @ found, torch.eye(d, dtype=torch.float64).expand(50, d, d))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(h(turned(g, x)), g @ found)


def test_the_vector_frame_is_the_points_angle() -> None:
    x = torch.randn(20, 3, 2)
    angle = torch.atan2(x[:, 2, 1], x[:, 2, 0])
    expected = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).reshape(20, 2, 2)
    torch.testing.assert_close(vector_frame(x, 2), expected)


@SIZES
def test_the_principal_frame_knows_no_order_of_points(d: int) -> None:
    x = cloud(10, 6, d)
    torch.testing.assert_close(principal_frame(x[:, torch.randperm(6)]), principal_frame(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(principal_frame(x + 3), principal_frame(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["no vector", "no second", "one line", "opposite", "two zeros"])
def test_the_identity_where_no_frame_is_defined(name: str) -> None:
    v = torch.tensor([0.3, -1.2, 0.7])
    x = {
        "no vector": torch.zeros(1, 2),
        "no second": torch.stack((v, 0 * v)),
        "one line": torch.stack((v, 3 * v)),
        "opposite": torch.stack((v, -v)),
        "two zeros": torch.zeros(2, 3),
    }[name].requires_grad_()
    both = torch.stack((x, torch.randn_like(x)))
    frame = vector_frame(both)
    torch.testing.assert_close(frame[0], torch.eye(x.shape[-1]))
    torch.testing.assert_close(frame[1].mT @ frame[1], torch.eye(x.shape[-1]))
    (grad,) = torch.autograd.grad(frame.square().sum() + frame.sum(), x)
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    x = cloud(4, 5, 3).to(dtype)
    model = CanonicalLambdaEquiTune(lambda z: z * 1.5, vector_frame, torch.eye(3)[None], None, "equivariant")
    result = model(x)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), x.double() * 1.5, rtol=1e-2 if dtype != torch.float64 else 1e-6, atol=0.1
    )


def test_poses_stay_exact_under_autocast() -> None:
    x = cloud(4, 5, 3)
    model = CanonicalLambdaEquiTune(nn.Identity(), vector_frame, theta(3), None, "equivariant", undo=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), x, rtol=1e-5, atol=1e-5)


def test_an_empty_batch() -> None:
    model = CanonicalLambdaEquiTune(network(5, 3, 2), vector_frame, theta(3), network(5, 3, 1))
    assert model(torch.empty(0, 5, 3)).shape == (0, 2)
    assert model.weights(torch.empty(0, 5, 3)).shape == (4, 0)


def test_state_and_print() -> None:
    model = CanonicalLambdaEquiTune(network(5, 3, 2), Learned(5, 3), theta(3), network(5, 3, 1))
    names = {name.partition(".")[0] for name in model.state_dict()}
    assert names == {"backbone", "canonical", "weight_net"}
    assert "canonical=Learned" in repr(model)


def build(**changes: Any) -> CanonicalLambdaEquiTune:
    given: dict[str, Any] = {"backbone": network(4, 2, 2), "canonical": vector_frame, "theta": theta(2), **changes}
    return CanonicalLambdaEquiTune(**given)


X = torch.ones(3, 4, 2)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "backbone": (lambda: build(backbone=3), TypeError, "backbone: expected a module or a callable, got int"),
    "canonical": (lambda: build(canonical=None), TypeError, "canonical: .* got NoneType"),
    "weight_net": (lambda: build(weight_net=2), TypeError, "weight_net: .* got int"),
    "out": (lambda: build(out="both"), ValueError, "out: expected one of 'invariant', 'equivariant', got 'both'"),
    "normalize": (lambda: build(normalize="max"), ValueError, "normalize: .* got 'max'"),
    "undo": (lambda: build(undo=True), ValueError, "undo: expected False for an invariant output"),
    "too many views": (
        lambda: build(weight_net=network(4, 2, 1), views=5),
        ValueError,
        "views: expected at most 4, the poses of theta, got 5",
    ),
    "no views": (lambda: build(weight_net=network(4, 2, 1), views=0), ValueError, "views: .* got 0"),
    "views of none": (lambda: build(views=2), ValueError, "views: expected None without weight_net"),
    "theta by name": (lambda: build(theta="c4"), TypeError, "theta: expected numbers"),
    "theta of a grid": (lambda: build(theta=grid("c4")), TypeError, r"theta: .* made by matrix\(…\), got GridAction"),
    "one theta": (lambda: build(theta=torch.eye(2)), ValueError, r"theta: .* got shape \(2, 2\)"),
    "a list": (lambda: build()([1.0]), TypeError, "x: expected a torch.Tensor, got list"),
    "no batch": (lambda: build()(torch.ones(2)), ValueError, r"x: expected a batch .* got shape \(2,\)"),
    "of space": (lambda: build()(torch.ones(3, 4, 3)), ValueError, r"x: expected a batch \(B, …, 2\) .* \(3, 4, 3\)"),
    "h of one": (
        lambda: build(canonical=lambda x: torch.eye(2))(X),
        ValueError,
        r"canonical: .*\(3, 2, 2\), got \(2, 2\)",
    ),
    "h of none": (lambda: build(canonical=lambda x: None)(X), ValueError, r"canonical: .* got NoneType"),
    "h that stretches": (
        lambda: build(canonical=lambda x: 2 * torch.eye(2).expand(3, 2, 2))(X),
        ValueError,
        r"canonical: expected orthogonal matrices, got \[\[2.0, 0.0\], \[0.0, 2.0\]\] for sample 0",
    ),
    "no tensor": (
        lambda: build(backbone=lambda x: (x,))(X),
        ValueError,
        r"out: the backbone returns a tuple with \[0\]; expected a tuple with an action for each",
    ),
    "no poses": (lambda: build(backbone=lambda x: x[:3])(X), ValueError, r"backbone: .* first dim is the batch 12"),
    "two weights": (
        lambda: build(weight_net=network(4, 2, 2))(X),
        ValueError,
        r"weight_net: expected one number for each of 12 poses, \(12, 1\), got \(12, 2\)",
    ),
    "points of a word": (lambda: vector_frame("x"), TypeError, "x: expected a torch.Tensor, got str"),  # type: ignore[arg-type]
    "whole points": (lambda: vector_frame(torch.ones(3, 2, dtype=torch.int64)), TypeError, "x: .* got torch.int64"),
    "four dims": (lambda: vector_frame(torch.ones(3, 2, 4)), ValueError, r"x: expected .* got shape \(3, 2, 4\)"),
    "vectors in space": (lambda: vector_frame(torch.ones(3, 3)), ValueError, r"x: expected \(B, points, 3\), got"),
    "one point": (lambda: vector_frame(torch.ones(3, 1, 3)), ValueError, "points: expected 2 of the 1 points"),
    "point 7": (lambda: vector_frame(X, 7), ValueError, "points: expected 1 of the 4 points of x, got 7"),
    "two in the plane": (lambda: vector_frame(X, (0, 1)), ValueError, "points: expected 1 of the 4 points"),
    "no set": (lambda: principal_frame(torch.ones(3, 2)), ValueError, r"x: expected \(B, points, 2\) with one point"),
    "no points": (lambda: principal_frame(torch.ones(3, 0, 2)), ValueError, "x: .* with one point or more"),
}


@each("name", WRONG)
def test_wrong_input_is_named(name: str) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call()


def test_compiled() -> None:
    model = CanonicalLambdaEquiTune(network(5, 2, 3), vector_frame, theta(2), network(5, 2, 1))
    x = cloud(6, 5, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_equal_angles_are_a_group_too() -> None:
    angles = [2 * math.pi * k / 5 for k in range(5)]
    group = matrix([[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles])
    model = CanonicalLambdaEquiTune(network(4, 2, 3), vector_frame, group, network(4, 2, 1))
    assert_theorem(model, cloud(8, 4, 2), equivariant=False)
