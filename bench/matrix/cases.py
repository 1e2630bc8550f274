"""What is tried: operators and wrappers, all as modules on small inputs whose batch may have any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from equikern import (
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
    orbit_weighted_mean,
    permutation,
    symmetrize,
    tokens,
    vector_frame,
)
from equikern.reductions import REDUCTIONS
from torch import Tensor, nn

__all__ = ["CASES", "OPERATORS", "WRAPPERS", "Case"]

D4 = grid("d4")
TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2]], signs=[[1, 1, 1, 1], [1, 1, -1, -1]])
CYCLE = permutation([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [2, 0, 1, 3, 4]])
WORDS = tokens([[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 5, 4]])


@dataclass(frozen=True)
class Case:
    """One operator or wrapper.

    Attributes:
        name: what the table calls it.
        make: the module, in evaluation mode.
        inputs: its inputs for a batch of some size.
        batch: for each input the dim of the batch.
        result: the dim of the batch in each result; None: a result without.
        sides: whether the sides of an image may be dynamic, since no view exchanges them.
        smooth: whether its inputs have gradients.
        choice: whether its results are views that are chosen, by whose gradient another one stands in.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    batch: tuple[int, ...] = (0,)
    result: int | None = 0
    sides: bool = False
    smooth: bool = True
    choice: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def operator(self) -> bool:
        """Whether it is an operator, and no wrapper."""
        return self in OPERATORS

    def module(self) -> nn.Module:
        """The module, always with the same parameters."""
        torch.manual_seed(0)
        return self.make().eval()


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


def _operator(name: str, call: Callable[..., Any], inputs: Callable[[int], Any], *more: Any, **flags: Any) -> Case:
    return Case(name, lambda: _Call(call), inputs, *more, **flags)


_ROWS, _WEIGHTED = (1,), (1, 1)
_DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gmean", "hmean", "tsharpen", "log1p"), lambda y: y.abs() + 0.2),
    "logodd": torch.sigmoid,
    "vote": lambda y: (2 * y).to(torch.int32),
}


def _reduction(op: Any) -> Case:
    change = _DOMAINS.get(op, lambda y: y)
    return _operator(
        f"orbit_reduce {op}",
        lambda y: orbit_reduce(y, D4, op),
        lambda n: (change(_views(n)),),
        _ROWS,
        smooth=not REDUCTIONS[op].integers,
    )


OPERATORS = [
    _operator("orbit", lambda x: orbit(x, D4), lambda n: (_drawn(n, 3, 6, 6),), (0,), 1),
    _operator("orbit_act", lambda x, g: orbit_act(x, g, D4), lambda n: (_drawn(n, 3, 6, 6), _numbers(8, n)), (0, 0)),
    _operator("symmetrize", lambda x: symmetrize(x, D4), lambda n: (_drawn(n, 3, 6, 6),)),
    _operator("orbit_mean", lambda y: orbit_mean(y, D4), lambda n: (_views(n),), _ROWS),
    _operator(
        "orbit_mean plus", lambda y, z: orbit_mean(y, D4, plus=z), lambda n: (_views(n), _drawn(n, 3, 6, 6)), (1, 0)
    ),
    _operator("orbit_mean probs", lambda y: orbit_mean(y, CYCLE, "probs"), lambda n: (_drawn(3, n, 5),), _ROWS),
    _operator("orbit_mean log_probs", lambda y: orbit_mean(y, CYCLE, "log_probs"), lambda n: (_drawn(3, n, 5),), _ROWS),
    _operator(
        "orbit_weighted_mean",
        lambda y, w: orbit_weighted_mean(y, w, D4),
        lambda n: (_views(n), _drawn(8, n, seed=2).abs() + 0.1),
        _WEIGHTED,
    ),
    _operator(
        "orbit_weighted_mean softmax",
        lambda y, w: orbit_weighted_mean(y, w, D4, "softmax"),
        lambda n: (_views(n), _drawn(8, n, seed=2)),
        _WEIGHTED,
    ),
    _operator(
        "orbit_select",
        lambda y, s: orbit_select(y, s, D4),
        lambda n: (_views(n), _drawn(8, n, seed=2)),
        _WEIGHTED,
        choice=True,
    ),
    _operator(
        "orbit_select selected",
        lambda y, s: orbit_select(y, s, D4, "max", "selected"),
        lambda n: (_views(n), _drawn(8, n, seed=2)),
        _WEIGHTED,
    ),
    _operator(
        "orbit_select entropy",
        lambda y: orbit_select(y, "entropy", CYCLE),
        lambda n: (_drawn(3, n, 5),),
        _ROWS,
        choice=True,
    ),
    _operator("orbit_score", lambda y: orbit_score(y, "margin"), lambda n: (_drawn(3, n, 5),), _ROWS, 1),
    _operator(
        "orbit_cross_entropy",
        lambda y, t: orbit_cross_entropy(y, t, CYCLE, "probs"),
        lambda n: (_drawn(3, n, 5), _numbers(5, n)),
        (1, 0),
        None,
    ),
    _operator(
        "linear_orbit_cross_entropy",
        lambda h, w, t: linear_orbit_cross_entropy(h, w, t, CYCLE, reduction="none"),
        lambda n: (_drawn(3, n, 7), _drawn(5, 7, seed=2), _numbers(5, n)),
        (1, -1, 0),
    ),
    *(_reduction(op) for op in REDUCTIONS if op != "sum"),  # which is the kernel of the mean
]


def conv() -> nn.Module:
    """A map of an image."""
    return nn.Conv2d(3, 4, 3, padding=1)


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
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).unflatten(1, (3, 2))  # type: ignore[no-any-return]


def _wrapper(name: str, make: Callable[[], nn.Module], *shape: int, **flags: Any) -> Case:
    return Case(name, make, lambda n: (_drawn(n, *shape),), **flags)


SQUARE, WIDE = (3, 8, 8), (3, 6, 8)
WRAPPERS = [
    _wrapper("EquiTune", lambda: EquiTune(conv(), "d4", "d4"), *SQUARE),
    _wrapper("EquiTune, rectangle", lambda: EquiTune(conv(), "d4", "d4"), *WIDE),
    _wrapper("EquiTune, rectangle in parts", lambda: EquiTune(conv(), "d4", "d4", views_per_forward=3), *WIDE),
    _wrapper("EquiTune, std of a rectangle", lambda: EquiTune(conv(), "c4", "c4", reduce="std"), *WIDE),
    _wrapper("EquiTune, flips", lambda: EquiTune(conv(), "flips", "flips"), *WIDE, sides=True),
    _wrapper("EquiTune, vector field", lambda: EquiTune(conv(), "c4", field(grid("c4"), "vector")), *SQUARE),
    _wrapper("EquiTune, mixed field", lambda: EquiTune(conv(), "c4", field(grid("c4"), TURN)), *SQUARE),
    _wrapper("EquiTune, permutation", lambda: EquiTune(nn.Linear(4, 4), SWAP, SWAP), 4),
    _wrapper("EquiTune, matrices", lambda: EquiTune(nn.Linear(2, 2), TURN, TURN), 2),
    Case(
        "EquiTune, words",
        lambda: EquiTune(nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6)), WORDS, WORDS.logits, space="probs"),
        lambda n: (_numbers(6, n, 3),),
        smooth=False,
    ),
    _wrapper("EquiTune, in parts", lambda: EquiTune(conv(), "c4", "c4", views_per_forward=1), *SQUARE),
    _wrapper("EquiTune, dict", lambda: EquiTune(TwoHeads(), "d4", {"map": "d4", "classes": "trivial"}), *SQUARE),
    _wrapper("EquiTune, key points", lambda: EquiTune(Points(), "d4", keypoints("d4")), *SQUARE),
    _wrapper("LambdaEquiTune", lambda: LambdaEquiTune(classifier(), "d4", "trivial", 8, features="1"), *SQUARE),
    _wrapper(
        "LambdaEquiTune, frozen",
        lambda: LambdaEquiTune(classifier(), "flips", "trivial", 8, features="1", frozen=True),
        *WIDE,
        sides=True,
    ),
    _wrapper("EquiZero", lambda: EquiZero(classifier(), "flips", "trivial"), *WIDE, sides=True, choice=True),
    _wrapper("RegularLift", lambda: RegularLift(conv(), "c4", "c4"), *SQUARE),
    _wrapper(
        "ProductEquiTune",
        lambda: ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], verified="never"),
        *WIDE,
        sides=True,
    ),
    _wrapper("InvariantSymmetric", lambda: InvariantSymmetric(conv(), "c4", "flips"), *SQUARE),
    Case(
        "MultiInputEquiTune",
        lambda: MultiInputEquiTune(conv(), ["c4", "flips"], ["c4", "flips"], conv()),
        lambda n: (_drawn(n, *SQUARE), _drawn(n, *SQUARE, seed=1)),
        (0, 0),
    ),
    _wrapper(
        "CanonicalLambdaEquiTune",
        lambda: CanonicalLambdaEquiTune(nn.Sequential(nn.Flatten(), nn.Linear(10, 3)), vector_frame, TURN),
        *(5, 2),
    ),
    _wrapper("GroupConv2d", lambda: GroupConv2d("c4", 3, 4, 3, inp="trivial"), *SQUARE, sides=True),
    _wrapper("GroupLinear", lambda: GroupLinear(cyclic_group(3), 5, 7), *(5, 3)),
]
CASES = [*OPERATORS, *WRAPPERS]
