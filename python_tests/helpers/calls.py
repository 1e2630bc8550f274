"""Every operator as a function of tensors alone: what the tests that concern all of them go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from equikern import (
    Action,
    active_backend,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_variance,
    orbit_weighted_mean,
    symmetrize,
)
from equikern.reductions import REDUCTIONS
from helpers.strategies import random_values
from torch import Tensor

# For tests of what torch does around an operator, which is the same whoever computes it.
ONE_BACKEND = pytest.mark.parametrize("backend", [active_backend()], indirect=True, scope="module")
Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One operator with its options.

    ``takes``: "image" (*lead, H, W), "views" (|G|, *lead, H, W), or these with "weights", "scores" or an image to
    add ("plus") beside them.
    """

    name: str
    run: Callable[..., Result]  # (action, *tensors)
    takes: str
    kind: str = "signed"  # of the numbers it is made for
    differentiable: bool = True
    dims: int | None = None  # how many dims of a view its result has, where these are not all

    def tensors(
        self, action: Action, lead: tuple[int, ...], side: int, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> list[Tensor]:
        """Arguments for it: the data, and weights or scores for every entry of the first lead dim.

        Labels are of a dtype of theirs.
        """
        shape = (*lead, side, side)
        dtype = torch.int32 if self.kind == "labels" else dtype
        if self.takes == "image":
            return [random_values(shape, dtype, seed, self.kind)]
        data = random_values((action.order, *shape), dtype, seed, self.kind)
        if self.takes == "views":
            return [data]
        if self.takes == "plus":
            return [data, random_values(shape, dtype, seed + 1, self.kind)]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return [data, random_values((action.order, *lead[:1]), wide, seed + 1, "positive")]

    @property
    def of_both(self) -> bool:
        """Whether what lies beside the data has a gradient too."""
        return self.takes in ("weights", "plus")

    def __repr__(self) -> str:
        return self.name


_KINDS = {
    **dict.fromkeys(("gmean", "hmean", "tsharpen", "log1p"), "positive"),
    "logodd": "probabilities",
    "vote": "labels",
}

CALLS: dict[str, Call] = {
    call.name: call
    for call in (
        Call("orbit", lambda a, x: orbit(x, a), "image"),
        Call("symmetrize", lambda a, x: symmetrize(x, a), "image"),
        Call("mean", lambda a, y: orbit_mean(y, a), "views"),
        Call("mean plus", lambda a, y, z: orbit_mean(y, a, plus=z), "plus"),
        Call("weighted", lambda a, y, w: orbit_weighted_mean(y, w, a), "weights"),
        Call("weighted softmax", lambda a, y, w: orbit_weighted_mean(y, w, a, "softmax"), "weights"),
        Call("weighted as is", lambda a, y, w: orbit_weighted_mean(y, w, a, None), "weights"),
        Call("variance", lambda a, y: orbit_variance(y, a), "views", dims=0),
        Call(
            "variance of each",
            lambda a, y: orbit_variance(y, a, min(1, y.dim() - 1 - a.dims)),
            "views",
            dims=1,
        ),
        Call("select", lambda a, y, s: orbit_select(y, s, a), "scores"),
        Call("select identity", lambda a, y, s: orbit_select(y, s, a, "max", "identity"), "scores"),
        Call("select selected", lambda a, y, s: orbit_select(y, s, a, "max", "selected"), "scores"),
        Call(
            "select index",
            lambda a, y, s: orbit_select(y, s, a, gradient=None, return_index=True),
            "scores",
            differentiable=False,
        ),
        *(
            Call(
                op,
                lambda a, y, op=op: orbit_reduce(y, a, op),
                "views",
                _KINDS.get(op, "signed"),
                differentiable=not reduction.integers,
            )
            for op, reduction in REDUCTIONS.items()
        ),
    )
}
DIFFERENTIABLE = [call for call in CALLS.values() if call.differentiable]


def results(result: Result) -> tuple[Tensor, ...]:
    """The tensors of a result, be it one or a pair."""
    return result if isinstance(result, tuple) else (result,)


def gradients(call: Call, action: Action, arguments: list[Tensor], seed: int = 9) -> tuple[Tensor, ...]:
    """The results and the gradients of every argument that has one, for random incoming gradients."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in arguments]
    outputs = results(call.run(action, *leaves))
    incoming = [random_values(tuple(t.shape), t.dtype, seed + i) for i, t in enumerate(outputs)]
    found = torch.autograd.grad(outputs, leaves, incoming, allow_unused=True)
    return (*(t.detach() for t in outputs), *(t for t in found if t is not None))
