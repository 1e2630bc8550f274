"""What the processes of ``helpers.ranks`` check: that several give what one gives."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from equikern import (
    CanonicalLambdaEquiTune,
    EquiDetector,
    EquiTune,
    EquiZero,
    InvariantSymmetric,
    LambdaEquiTune,
    MultiInputEquiTune,
    ProductEquiTune,
    RegularLift,
    boxes,
    keypoints,
    permutation,
    vector_frame,
)
from equikern.nn.containers import leaves
from helpers.rank_models import (
    Asked,
    ByName,
    Clouds,
    Finder,
    First,
    Frame,
    Maps,
    Several,
    classifier,
    conv,
    coordinates,
    positive,
    regressor,
)
from helpers.ranks import World
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Make = Callable[[nn.Module, Any], Any]


Shapes = list[tuple[int, ...]]
SQUARE: tuple[int, ...] = (3, 2, 6, 6)
WIDE: tuple[int, ...] = (3, 2, 6, 8)
QUARTERS = [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]
Case = tuple[str, Callable[[], nn.Module], Make, Shapes]


MIXED = ("d4", "d4", None, "shared")


def _tuned(out: Any, group: Any = "d4", **keywords: Any) -> Make:
    return lambda net, mesh: EquiTune(net, group, out, mesh=mesh, **keywords)


def _zero(out: Any, **keywords: Any) -> Make:
    return lambda net, mesh: EquiZero(net, "d4", out, mesh=mesh, **keywords)


def _weighted(out: Any, net: Callable[[], nn.Module], **keywords: Any) -> Make:
    def make(backbone: nn.Module, mesh: Any) -> Any:
        torch.manual_seed(1)
        return LambdaEquiTune(backbone, "d4", out, net(), mesh=mesh, **keywords)

    return make


def _canonical(weight_net: bool, **keywords: Any) -> Make:
    def make(backbone: nn.Module, mesh: Any) -> Any:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(10, 1)) if weight_net else None
        return CanonicalLambdaEquiTune(backbone, vector_frame, QUARTERS, net, mesh=mesh, **keywords)

    return make


def _several(net: nn.Module, mesh: Any) -> Any:
    torch.manual_seed(1)
    return MultiInputEquiTune(net, ["c4", "flips"], ["c4", "flips"], conv(), mesh=mesh)


_SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
CASES: list[Case] = [  # what it is, the model, the wrapper, the inputs' shapes
    ("mean", conv, _tuned("d4"), [SQUARE]),
    ("mean of a rectangle", conv, _tuned("d4"), [WIDE]),
    ("two views", conv, _tuned("hflip", "hflip"), [WIDE]),
    ("one view after another", conv, _tuned("d4", views_per_forward=1), [WIDE]),
    ("dict", Maps, _tuned({"map": "d4", "logits": "trivial"}), [SQUARE]),
    ("a dict without one of its outputs", Maps, _tuned({"map": "d4"}, strict=False, views_per_forward=1), [SQUARE]),
    (
        "a loss of one output",
        Maps,
        lambda net, mesh: First(_tuned({"map": "d4", "logits": "trivial"}, views_per_forward=1)(net, mesh)),
        [SQUARE],
    ),
    ("several inputs", Several, _tuned("d4", MIXED), [SQUARE, (3, 1, 6, 6), (3, 3), (3, 2, 3, 3)]),
    ("several rectangles", Several, _tuned("d4", MIXED), [WIDE, (3, 1, 6, 8), (3, 3), (3, 2, 3, 3)]),
    *(
        (
            f"by name, {shape}",
            Asked,
            lambda net, mesh: ByName(
                EquiTune(
                    net,
                    {"image": "d4", "extra": {"mask": "d4"}},
                    {"map": "d4", "pair": ("trivial", None), "anchors": "shared"},
                    views_per_forward=2,
                    mesh=mesh,
                )
            ),
            [shape, (3, 1, *shape[2:]), (3, 3)],
        )
        for shape in (SQUARE, WIDE)
    ),
    ("keypoints", regressor, _tuned(keypoints("d4", swap=[1, 0, 2])), [WIDE]),
    (
        "permuted classes",
        lambda: nn.Linear(4, 4),
        lambda net, mesh: EquiTune(net, _SWAP, _SWAP, mesh=mesh),
        [(3, 4)],
    ),
    *(
        (f"{op} of a rectangle", positive, _tuned("d4", reduce=op), [WIDE])
        for op in ("sum", "max", "min", "gmean", "hmean", "tsharpen", "logodd", "log1p", "std", "mean_std", "median")
    ),
    ("probabilities", classifier, _tuned("trivial", space="probs"), [SQUARE]),
    ("log-probabilities", classifier, _tuned("trivial", space="log_probs"), [WIDE]),
    ("maps of probabilities", conv, _tuned("d4", space="probs"), [WIDE]),
    ("largest probabilities", conv, _tuned("d4", space="probs", reduce="max"), [WIDE]),
    *(
        (f"choice, gradient {g}, {shape}", classifier, _zero("trivial", gradient=g), [shape])
        for g in ("mean", "identity", "selected")
        for shape in (SQUARE, WIDE)
    ),
    ("choice of a map", conv, _zero("d4", loss="entropy", classes=-3), [WIDE]),
    ("choice for a dict", Maps, _zero({"map": "d4", "logits": "trivial"}, scored="logits"), [WIDE]),
    ("choice among equals", conv, _zero("d4", loss=lambda y: torch.zeros(y.shape[:2])), [WIDE]),
    *(
        (
            f"weights, {n}, {shape}",
            classifier,
            _weighted("trivial", lambda: nn.Linear(6, 1), features="1", normalize=n),
            [shape],
        )
        for n in ("softmax", None)
        for shape in (SQUARE, WIDE)
    ),
    (
        "weights, sum",
        conv,
        _weighted("d4", lambda: nn.Sequential(nn.Linear(3, 1), nn.Softplus()), normalize="sum"),
        [WIDE],
    ),
    (
        "frozen weights",
        classifier,
        _weighted("trivial", lambda: nn.Linear(6, 1), features="1", frozen=True),
        [SQUARE],
    ),
    ("canonical, mean", coordinates, _canonical(False), [(3, 5, 2)]),
    ("canonical, weights", coordinates, _canonical(True, out="equivariant", undo=True), [(3, 5, 2)]),
    (
        "canonical, learned",
        coordinates,
        lambda net, mesh: CanonicalLambdaEquiTune(net, Frame(), QUARTERS, out="equivariant", mesh=mesh),
        [(3, 5, 2)],
    ),
    (
        "canonical, several inputs and outputs",
        Clouds,
        _canonical(True, out=("invariant", "equivariant"), inp=("turned", "turned", None)),
        [(3, 5, 2), (3, 3, 2), (3, 4)],
    ),
    (
        "product",
        conv,
        lambda net, mesh: ProductEquiTune(net, ["hflip", "vflip"], ["hflip", "vflip"], mesh=mesh),
        [WIDE],
    ),
    ("regular features", conv, lambda net, mesh: RegularLift(net, "d4", "d4", mesh=mesh), [WIDE]),
    ("regular features of rows", classifier, lambda net, mesh: RegularLift(net, "c4", "trivial", 1, mesh=mesh), [WIDE]),
    ("two inputs", lambda: nn.Conv2d(2, 3, 3, padding=1), _several, [SQUARE, SQUARE]),
    ("invariant", conv, lambda net, mesh: InvariantSymmetric(net, "c4", "flips", mesh=mesh), [SQUARE]),
]


def _ran(model: Any, shapes: Shapes) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients of inputs and parameters."""
    numbers = torch.Generator().manual_seed(5)
    xs = [torch.randn(shape, generator=numbers).requires_grad_() for shape in shapes]
    found = leaves(model(*xs))
    loss = sum(((t.square() * torch.rand(t.shape, generator=numbers)).sum() for t in found), torch.zeros(()))
    loss.backward()
    grads = {f"x{k}": x.grad for k, x in enumerate(xs)} | {name: p.grad for name, p in model.named_parameters()}
    return [t.detach() for t in found], {name: g for name, g in grads.items() if g is not None}


def _alike(name: str, found: Tensor, expected: Tensor, bits: float) -> None:
    assert found.shape == expected.shape, f"{name}: shape {tuple(found.shape)} for {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{name}: {found.dtype} for {expected.dtype}"
    off = float((found - expected).abs().max()) if found.numel() else 0.0
    assert off <= bits * (1 + float(expected.abs().max())), f"{name}: off by {off}: {found} for {expected}"


def wrappers(world: World, size: int) -> int:
    """Outputs and gradients of every wrapper, shared by so many, are those of one process."""
    mesh = world.views.get(size)
    for name, net, make, shapes in CASES if mesh is not None else ():
        torch.manual_seed(0)
        backbone = net()
        expected, gradients = _ran(make(copy.deepcopy(backbone), None), shapes)
        found, own = _ran(make(backbone, mesh), shapes)
        for a, b in zip(found, expected, strict=True):
            _alike(name, a, b, 1e-6)
        assert own.keys() == gradients.keys(), f"{name}: {own.keys()} for {gradients.keys()}"
        for key, grad in gradients.items():
            _alike(f"{name}, gradient of {key}", own[key], grad, 1e-5)
    return len(CASES)


class Pointwise(nn.Module):
    """What rounds alike in a batch of any size."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.scale, self.classes = nn.Parameter(torch.tensor(1.5)), classes

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.linspace(0, 1, x.shape[-1]).to(x)
        y = x * self.scale.to(x) - slope  # not equivariant
        return y[:, : self.classes, 0, 0] if self.classes else y


def bits(world: World, size: int) -> int:
    """What is chosen, gathered or ordered is the same bit for bit, in every dtype, with signs of zeros and NaN."""
    mesh, done = world.views.get(size), 0
    if mesh is None:
        return 0
    numbers = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(4, 3, 6, 8, generator=numbers).to(dtype)
        x[0] = -0.0
        x[1, 0, 2, 3] = torch.nan
        nets = Pointwise(), Pointwise(3)
        losses: Any = ("d4", lambda y: y[:, :, 0, 1, 2]), ("trivial", "max_prob"), ("trivial", "margin")
        for kind, loss in losses:
            net = nets[kind == "trivial"]
            one, several = (EquiZero(net, "d4", kind, loss, mesh=m) for m in (None, mesh))
            with torch.no_grad():
                for call in ("forward", "scores", "chosen", "views"):
                    a, b = getattr(several, call)(x), getattr(one, call)(x)
                    assert a.dtype == b.dtype
                    a, b = (t[call == "forward" :] for t in (a, b))  # the mean of ties is added up in another order
                    assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), (
                        f"{call} under {kind}, {loss}, {dtype}: {a} for {b}"
                    )
                    done += 1
        for op in ("max", "min", "median"):
            a, b = (EquiTune(nets[0], "d4", "d4", reduce=op, mesh=m)(x).detach() for m in (mesh, None))
            assert torch.allclose(a, b, 0, 0, equal_nan=True), f"{op}, {dtype}: {a} for {b}"
            with torch.inference_mode():
                c = EquiTune(nets[0], "d4", "d4", reduce=op, mesh=mesh)(x)
            assert torch.allclose(a, c, 0, 0, equal_nan=True), f"{op} without gradients, {dtype}: {c} for {a}"
            done += 2
    labels = torch.randint(4, (2, 6, 8), generator=numbers)

    def segment(t: Tensor) -> Tensor:
        return t + (torch.arange(t.shape[-1]) > 3)

    for integer in (torch.int64, torch.uint8, torch.int16):
        a, b = (EquiTune(segment, "d4", "d4", reduce="vote", mesh=m)(labels.to(integer)) for m in (mesh, None))
        assert torch.equal(a, b), f"vote, {integer}"
        done += 1
    weighted = [LambdaEquiTune(Pointwise(3), "d4", "trivial", nn.Linear(3, 1), mesh=m) for m in (mesh, None)]
    weighted[0].load_state_dict(weighted[1].state_dict())
    found, expected = (model.weights(torch.ones(2, 3, 6, 8)).detach() for model in weighted)
    _alike("weights", found, expected, 1e-6)
    return done


def detectors(world: World, size: int) -> int:
    """What a detector finds in a batch and in images of several sizes, shared by so many, is what one finds."""
    mesh, done = world.views.get(size), 0
    if mesh is None:
        return 0
    numbers = torch.Generator().manual_seed(4)
    out: dict[str, Any] = {"boxes": boxes("d4"), "masks": "d4", "points": keypoints("d4", swap=[1, 0])}
    inputs: list[Any] = [torch.rand(2, 2, *sides, generator=numbers) for sides in ((6, 6), (6, 8))]
    inputs.append([*inputs[0], *inputs[1], torch.rand(2, 5, 4, generator=numbers)])
    for x in inputs:
        for views_per_forward in (None, 1):
            one, several = (
                EquiDetector(Finder(), "d4", out, 0.3, 0.0, "avg", views_per_forward, m) for m in (None, mesh)
            )
            for call in ("forward", "views"):
                expected, found = (leaves(getattr(model, call)(x)) for model in (one, several))
                assert len(found) == len(expected) > 0
                for a, b in zip(found, expected, strict=True):
                    assert a.dtype == b.dtype
                    assert torch.equal(a, b), f"{call}: {a} for {b}"
                done += 1
        assert one(x)[0]["boxes"].numel(), "nothing to find"
    ranks: Any = EquiTune(Finder(), "d4", {"boxes": boxes("d4")}, mesh=mesh).ranks
    EquiDetector(Finder(), "d4", out, mesh=ranks)
    assert ranks.gradients, "a detector takes no gradients, the wrapper whose processes it shares does"
    return done


class Counted(nn.Module):
    """A backbone that keeps the shapes that it has seen."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        y: Tensor = self.net(x)
        return y


def shares(world: World, size: int) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the batches that this process's backbone is given."""
    mesh, found = world.views.get(size), dict[str, list[tuple[int, ...]]]()
    for name, shape, most in (("square", SQUARE, None), ("wide", WIDE, None), ("in parts", WIDE, 2)):
        if mesh is not None:
            net = Counted(conv())
            EquiTune(net, "d4", "d4", views_per_forward=most, mesh=mesh)(torch.zeros(shape))
            found[name] = net.shapes
    return found


def messages(world: World) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    """How many messages forwards send, and their backward passes for the input alone."""
    mesh, found = world.views[2], dict[str, tuple[dict[str, int], dict[str, int]]]()
    ways: dict[str, tuple[Callable[[], nn.Module], Make]] = {
        "mean": (conv, _tuned("d4")),
        "sum in parts": (conv, _tuned("d4", reduce="sum", views_per_forward=1)),
        "weights as they are": (conv, _weighted("d4", lambda: nn.Linear(3, 1), normalize=None)),
        "softmax of weights": (conv, _weighted("d4", lambda: nn.Linear(3, 1))),
        "choice": (classifier, _zero("trivial")),
        "largest": (conv, _tuned("d4", reduce="max")),
        "median": (conv, _tuned("d4", reduce="median")),
    }
    for name, (net, make) in ways.items():
        model = make(net().requires_grad_(False), mesh).requires_grad_(False)
        for shape in (SQUARE, WIDE):
            x = torch.ones(shape).flatten().cumsum(0).sqrt().view(shape)  # without ties, which take one more
            with Heard() as forward, torch.no_grad():
                model(x)
            y = model(x.requires_grad_())
            with Heard() as backward:
                y.sum().backward()
            both = dict(forward.counts), dict(backward.counts)
            assert found.setdefault(name, both) == both, shape
    return found


class Heard(TorchDispatchMode):
    """How often each collective is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__.strip("_")] += 1
        return func(*args, **(kwargs or {}))
