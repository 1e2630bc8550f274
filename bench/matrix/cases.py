"""What is tried: operators and wrappers, all as modules on small inputs whose batch may have any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from equikern import (
    CanonicalEquiTune,
    CanonicalLambdaEquiTune,
    EquiTune,
    EquiZero,
    GroupConv2d,
    GroupLinear,
    InvariantSymmetric,
    LambdaEquiTune,
    MultiInputEquiTune,
    ProductEquiTune,
    RegularLift,
    cyclic_group,
    energy_network,
    field,
    grid,
    keypoints,
    linear_orbit_cross_entropy,
    matrix,
    orbit,
    orbit_act,
    orbit_cross_entropy,
    orbit_mean,
    orbit_reduce,
    orbit_score,
    orbit_select,
    orbit_variance,
    orbit_weighted_mean,
    patches,
    permutation,
    symmetrize,
    tokens,
    vector_frame,
)
from equikern.reductions import REDUCTIONS
from torch import Tensor, nn

__all__ = ["CASES", "OPERATORS", "WRAPPERS", "Case"]

TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2]], signs=[[1, 1, 1, 1], [1, 1, -1, -1]])
CYCLE = permutation([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [2, 0, 1, 3, 4]])
WORDS = tokens([[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 5, 4]])


@dataclass(frozen=True)
class Case:
    """One operator or wrapper.

    Attributes:
        name: what the table calls it.
        make: the module, in evaluation mode; where it has ``sides``, of a group's name, one with quarter turns or not.
        draw: its inputs for a batch of some size.
        batch: for each input the dim of the batch; -1: an input without.
        names: those of the last inputs, which are given by keyword.
        sides: how many trailing dims of images or volumes may have any length.
        smooth: whether the results have gradients by the inputs.
        integers: whether the results are integers.
    """

    name: str
    make: Callable[..., nn.Module]
    draw: Callable[[int], tuple[Tensor, ...]]
    batch: tuple[int, ...] = (0,)
    names: tuple[str, ...] = ()
    sides: int = 0
    smooth: bool = True
    integers: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def operator(self) -> bool:
        """Whether it is an operator, and no wrapper."""
        return self in OPERATORS

    def module(self, group: str | None = None) -> nn.Module:
        """The module, always with the same parameters; of another group where it has sides."""
        torch.manual_seed(0)
        return (self.make() if group is None else self.make(group)).eval()

    def inputs(self, batch: int, group: str | None = None) -> tuple[Tensor, ...]:
        """Inputs, always the same ones for a batch; where they are the views of a group, as many as it has."""
        views = None if group is None else grid(group).order
        return tuple(t[:views] if at == 1 else t for t, at in zip(self.draw(batch), self.batch, strict=True))

    def call(self, program: Any) -> Any:
        """The module, or what was made of it, called with its inputs by position."""
        return _Placed(program, self.names) if self.names else program


class _Placed(nn.Module):
    """A module that is given the last inputs by their names, and takes all by position.

    It is what torch.export and torch.jit.trace need: neither names dynamic sizes of, or takes, any ``**kwargs``.
    """

    def __init__(self, program: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.program, self.names = program, names

    def forward(self, *inputs: Tensor) -> Any:
        count = len(inputs) - len(self.names)
        return self.program(*inputs[:count], **dict(zip(self.names, inputs[count:], strict=True)))


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _numbers(most: int, *shape: int) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(1))


def _views(n: int) -> Tensor:
    return _drawn(8, n, 3, 6, 6)


def _rows(n: int) -> Tensor:
    return _drawn(3, n, 5)


def _weights(n: int) -> Tensor:
    return _drawn(8, n, seed=2)


def _operator(
    name: str, call: Callable[..., Any], draw: Callable[[int], Any], batch: tuple[int, ...] = (1,), **flags: Any
) -> Case:
    return Case(name, lambda: _Call(call), draw, batch, **flags)


def _on_grid(
    name: str, call: Callable[..., Any], draw: Callable[[int], Any], batch: tuple[int, ...] = (1,), **flags: Any
) -> Case:
    """An operator of tensors and, behind them, an action on images."""

    def make(group: str = "d4") -> nn.Module:
        action = grid(group)
        return _Call(lambda *tensors: call(*tensors, action))

    return Case(name, make, draw, batch, sides=2, **flags)


_WEIGHTED = (1, 1)
_DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gmean", "hmean", "tsharpen", "log1p"), lambda y: y.abs() + 0.2),
    "logodd": torch.sigmoid,
    "vote": lambda y: (2 * y).to(torch.int32),
}


def _reduction(op: Any) -> Case:
    change = _DOMAINS.get(op, lambda y: y)
    integers = REDUCTIONS[op].integers
    return _on_grid(
        f"orbit_reduce {op}",
        lambda y, action: orbit_reduce(y, action, op),
        lambda n: (change(_views(n)),),
        smooth=not integers,
        integers=integers,
    )


OPERATORS = [
    _on_grid("orbit", orbit, lambda n: (_drawn(n, 3, 6, 6),), (0,)),
    _on_grid("orbit_act", orbit_act, lambda n: (_drawn(n, 3, 6, 6), _numbers(4, n)), (0, 0)),
    _on_grid("symmetrize", symmetrize, lambda n: (_drawn(n, 3, 6, 6),), (0,)),
    _on_grid("orbit_mean", orbit_mean, lambda n: (_views(n),)),
    _on_grid(
        "orbit_mean plus",
        lambda y, z, action: orbit_mean(y, action, plus=z),
        lambda n: (_views(n), _drawn(n, 3, 6, 6)),
        (1, 0),
    ),
    _operator("orbit_mean probs", lambda y: orbit_mean(y, CYCLE, "probs"), lambda n: (_rows(n),)),
    _operator("orbit_mean log_probs", lambda y: orbit_mean(y, CYCLE, "log_probs"), lambda n: (_rows(n),)),
    _on_grid("orbit_weighted_mean", orbit_weighted_mean, lambda n: (_views(n), _weights(n).abs() + 0.1), _WEIGHTED),
    _on_grid(
        "orbit_weighted_mean softmax",
        lambda y, w, action: orbit_weighted_mean(y, w, action, "softmax"),
        lambda n: (_views(n), _weights(n)),
        _WEIGHTED,
    ),
    _on_grid("orbit_select", orbit_select, lambda n: (_views(n), _weights(n)), _WEIGHTED),
    _on_grid(
        "orbit_select selected",
        lambda y, s, action: orbit_select(y, s, action, "max", "selected"),
        lambda n: (_views(n), _weights(n)),
        _WEIGHTED,
    ),
    _on_grid(
        "orbit_select, ties averaged",
        lambda y, s, action: orbit_select(y, s, action, ties="mean"),
        lambda n: (_views(n), _weights(n)),
        _WEIGHTED,
    ),
    _operator("orbit_select entropy", lambda y: orbit_select(y, "entropy", CYCLE), lambda n: (_rows(n),)),
    _operator("orbit_score", lambda y: orbit_score(y, "margin"), lambda n: (_rows(n),)),
    _operator(
        "orbit_cross_entropy",
        lambda y, t: orbit_cross_entropy(y, t, CYCLE, "probs"),
        lambda n: (_rows(n), _numbers(5, n)),
        (1, 0),
    ),
    _operator(
        "linear_orbit_cross_entropy",
        lambda h, w, t: linear_orbit_cross_entropy(h, w, t, CYCLE, reduction="none"),
        lambda n: (_drawn(3, n, 7), _drawn(5, 7, seed=2), _numbers(5, n)),
        (1, -1, 0),
    ),
    _on_grid("orbit_variance", lambda y, action: orbit_variance(y, action, 1), lambda n: (_views(n),)),
    *(_reduction(op) for op in REDUCTIONS if op != "sum"),  # which is the kernel of the mean
]


def conv() -> nn.Module:
    """A map of an image."""
    return nn.Conv2d(3, 4, 3, padding=1)


def conv3d() -> nn.Module:
    """A map of a volume."""
    return nn.Conv3d(2, 3, 3, padding=1)


def classifier() -> nn.Module:
    """Five classes of an image."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class TwoHeads(nn.Module):
    """A map and classes of an image, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.classes = conv(), classifier()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.map(x), "classes": self.classes(x)}


class Points(nn.Module):
    """Three points of an image, in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).unflatten(1, (3, 2))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """An image less its noise, of a time for each, and of another image to go by."""

    def __init__(self) -> None:
        super().__init__()
        self.map = conv()

    def forward(self, sample: Tensor, timestep: Tensor, control: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        found = self.map(sample + control) * timestep[:, None, None, None].cos() * scale
        return {"sample": found, "times": timestep[:, None]}


class Pyramid(nn.Module):
    """Maps of two sizes in a list, and what else models return beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.map = conv()

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.map(x)
        return {"maps": [y, y[..., 1:-1, 1:-1]], "hidden": y.relu(), "levels": 2, "cache": None}


@dataclass
class Found:
    """What a backbone may return."""

    map: Tensor
    classes: Tensor


torch.export.register_dataclass(Found, serialized_type_name="bench.matrix.Found")


class Described(TwoHeads):
    """The same two in a dataclass."""

    def forward(self, x: Tensor) -> Any:
        return Found(**super().forward(x))


class WithLoss(nn.Module):
    """A classifier that computes its loss as those of transformers do."""

    loss_type = "ForImageClassification"
    config = None

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def loss_function(self, labels: Tensor, logits: Tensor, **_: Any) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.inner(pixel_values)
        return {"logits": logits} if labels is None else {"loss": self.loss_function(labels, logits), "logits": logits}


class Tokens(nn.Module):
    """A class token, and one for each patch of an image, that have met."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6)
        self.first = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).mT
        t = torch.cat((self.first.expand(t.shape[0], 1, 6), t), 1)
        return self.mix(t) * t.mean(1, keepdim=True)  # type: ignore[no-any-return]


class Segments(nn.Module):
    """The class of every pixel, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.map = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x).argmax(1)  # type: ignore[no-any-return]


class Ends(nn.Module):
    """What a point set says of a vector beside it, and a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 3)

    def forward(self, points: Tensor, arrow: Tensor) -> dict[str, Tensor]:
        seen = self.inner(torch.cat((points.flatten(1), arrow), 1))
        return {"arrow": seen[:, :2], "size": seen[:, 2]}


def _wrapper(name: str, make: Callable[..., nn.Module], *shape: int, **flags: Any) -> Case:
    return Case(name, make, lambda n: (_drawn(n, *shape),), **flags)


def _of_images(name: str, make: Callable[[str], nn.Module], group: str, *shape: int, **flags: Any) -> Case:
    """A wrapper whose group may be another one."""
    return _wrapper(name, lambda other=group: make(other), *shape, sides=2, **flags)


SQUARE, WIDE = (3, 8, 8), (3, 6, 8)
WRAPPERS = [
    _of_images("EquiTune", lambda g: EquiTune(conv(), g, g), "d4", *SQUARE),
    _of_images("EquiTune, rectangle", lambda g: EquiTune(conv(), g, g), "d4", *WIDE),
    _of_images("EquiTune, rectangle in parts", lambda g: EquiTune(conv(), g, g, views_per_forward=3), "d4", *WIDE),
    _of_images("EquiTune, std of a rectangle", lambda g: EquiTune(conv(), g, g, reduce="std"), "c4", *WIDE),
    _of_images("EquiTune, flips", lambda g: EquiTune(conv(), g, g), "flips", *WIDE),
    _wrapper("EquiTune, volumes", lambda g="rot3d": EquiTune(conv3d(), g, g), *(2, 4, 4, 4), sides=3),
    _of_images("EquiTune, vector field", lambda g: EquiTune(conv(), g, field(grid(g), "vector")), "c4", *SQUARE),
    _wrapper("EquiTune, mixed field", lambda: EquiTune(conv(), "c4", field(grid("c4"), TURN)), *SQUARE),
    _wrapper("EquiTune, permutation", lambda: EquiTune(nn.Linear(4, 4), SWAP, SWAP), 4),
    _wrapper("EquiTune, matrices", lambda: EquiTune(nn.Linear(2, 2), TURN, TURN), 2),
    Case(
        "EquiTune, words",
        lambda: EquiTune(nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6)), WORDS, WORDS.logits, space="probs"),
        lambda n: (_numbers(6, n, 3),),
        smooth=False,
    ),
    _wrapper("EquiTune, tokens of patches", lambda: EquiTune(Tokens(), "d4", patches("d4", 4)), *SQUARE),
    _of_images("EquiTune, in parts", lambda g: EquiTune(conv(), g, g, views_per_forward=1), "c4", *SQUARE),
    _of_images(
        "EquiTune, vote", lambda g: EquiTune(Segments(), g, g, "vote"), "c4", *SQUARE, smooth=False, integers=True
    ),
    _of_images("EquiTune, dict", lambda g: EquiTune(TwoHeads(), g, {"map": g, "classes": "trivial"}), "d4", *SQUARE),
    _of_images(
        "EquiTune, dataclass", lambda g: EquiTune(Described(), g, {"map": g, "classes": "trivial"}), "c4", *SQUARE
    ),
    _of_images("EquiTune, nested", lambda g: EquiTune(Pyramid(), g, {"maps": (g, g), "hidden": None}), "d4", *SQUARE),
    Case(
        "EquiTune, keywords",
        lambda g="c4": EquiTune(Denoiser(), {"sample": g, "control": g}, {"sample": g, "times": "trivial"}),
        lambda n: (_drawn(n, *SQUARE), _drawn(n, seed=1), _drawn(n, *SQUARE, seed=2)),
        (0, 0, 0),
        names=("timestep", "control"),
        sides=2,
    ),
    Case(
        "EquiTune, labels",
        lambda g="c4": EquiTune(WithLoss(), g, {"logits": "trivial"}),
        lambda n: (_drawn(n, *SQUARE), _numbers(5, n)),
        (0, 0),
        names=("pixel_values", "labels"),
        sides=2,
    ),
    _of_images("EquiTune, key points", lambda g: EquiTune(Points(), g, keypoints(g)), "d4", *SQUARE),
    _of_images("LambdaEquiTune", lambda g: LambdaEquiTune(classifier(), g, "trivial", 8, features="1"), "d4", *SQUARE),
    _of_images(
        "LambdaEquiTune, frozen",
        lambda g: LambdaEquiTune(classifier(), g, "trivial", 8, features="1", frozen=True),
        "flips",
        *WIDE,
    ),
    _of_images(
        "LambdaEquiTune, dict",
        lambda g: LambdaEquiTune(TwoHeads(), g, {"map": g, "classes": "trivial"}, 8, features="classes.1"),
        "c4",
        *SQUARE,
    ),
    _of_images("EquiZero", lambda g: EquiZero(classifier(), g, "trivial"), "flips", *WIDE),
    _of_images(
        "EquiZero, dict in parts",
        lambda g: EquiZero(TwoHeads(), g, {"map": g, "classes": "trivial"}, scored="classes", views_per_forward=3),
        "d4",
        *SQUARE,
    ),
    _of_images("CanonicalEquiTune", lambda g: CanonicalEquiTune(conv(), g, g, "moments", 3, "softmax"), "d4", *SQUARE),
    _of_images(
        "CanonicalEquiTune, trained energy",
        lambda g: CanonicalEquiTune(classifier(), g, "trivial", energy_network(3, size=4), size=4),
        "c4",
        *SQUARE,
    ),
    _of_images(
        "CanonicalEquiTune, auto",
        lambda g: CanonicalEquiTune(classifier(), g, "trivial", "gradient", "auto"),
        "d4",
        *SQUARE,
    ),
    _of_images("RegularLift", lambda g: RegularLift(conv(), g, g), "c4", *SQUARE),
    _of_images(
        "ProductEquiTune",
        lambda _: ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], verified="never"),
        "flips",
        *WIDE,
    ),
    _of_images("InvariantSymmetric", lambda g: InvariantSymmetric(conv(), g, "flips"), "c4", *SQUARE),
    Case(
        "MultiInputEquiTune",
        lambda g="c4": MultiInputEquiTune(conv(), [g, "flips"], [g, "flips"], conv()),
        lambda n: (_drawn(n, *SQUARE), _drawn(n, *SQUARE, seed=1)),
        (0, 0),
        sides=2,
    ),
    _wrapper(
        "CanonicalLambdaEquiTune",
        lambda: CanonicalLambdaEquiTune(nn.Sequential(nn.Flatten(), nn.Linear(10, 3)), vector_frame, TURN),
        *(5, 2),
    ),
    Case(
        "CanonicalLambdaEquiTune, keywords",
        lambda: CanonicalLambdaEquiTune(
            Ends(),
            vector_frame,
            TURN,
            nn.Sequential(nn.Flatten(), nn.Linear(10, 1)),
            {"arrow": "equivariant", "size": "invariant"},
            undo=True,
            inp={"points": "turned", "arrow": "turned"},
        ),
        lambda n: (_drawn(n, 5, 2), _drawn(n, 2, seed=1)),
        (0, 0),
        names=("arrow",),
    ),
    _of_images("GroupConv2d", lambda _: GroupConv2d("c4", 3, 4, 3, inp="trivial"), "c4", *SQUARE),
    _wrapper("GroupLinear", lambda: GroupLinear(cyclic_group(3), 5, 7), *(5, 3)),
]
CASES = [*OPERATORS, *WRAPPERS]
