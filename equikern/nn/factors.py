"""One of several groups that act on a model's outputs: what products of groups and layers of several inputs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..actions import GroupAction
from ..ops import orbit_mean
from .inputs import Given
from .merging import Gathered, Merge, Output, Summed
from .outputs import MergedOutputs
from .specs import InputSpec, Together
from .views import Call, OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["Factor", "each_output", "means_of", "one_each"]


class Factor(OrbitModule):
    """The views of one group, on whose outputs others act too.

    Args:
        outs: how all of them act on every output, ``specs.together``.
        index: which of them this one is.
    """

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        outs: Any,
        index: int,
        views_per_forward: int | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        own = each_output(outs, lambda spec: spec.actions[index])
        super().__init__(backbone, inp, own, views_per_forward, strict, mesh)
        self.out, self.index = outs, index

    def _output(self, spec: Together, x: Tensor, turned: bool, dtypes: frozenset[torch.dtype]) -> Output:
        return super()._output(spec.actions[self.index], x, turned, dtypes)


def means_of(module: OrbitModule, given: Given, call: Call | None = None) -> MergedOutputs:
    """The mean of the views of every output."""
    parts = module._parts(given)

    def make(output: Output) -> Merge:
        if len(parts) > 1:
            return Summed(output, 1.0 / module.inp.order)
        return Gathered(output, lambda y, action, *_: orbit_mean(y, action))

    return module._each_merged(given, make, call=call, parts=parts)


def each_output(outs: Any, change: Callable[[Any], Any]) -> Any:
    """Other specs of outputs, in the same containers; what is dropped or shared stays that."""
    if isinstance(outs, dict):
        return {key: each_output(part, change) for key, part in outs.items()}
    if isinstance(outs, tuple):
        return tuple(each_output(part, change) for part in outs)
    return change(outs) if isinstance(outs, (GroupAction, Together)) else outs


def one_each(name: str, given: Any, count: int) -> list[Any]:
    """A list with one for each of ``count``, from such a list or from one for all."""
    if isinstance(given, (list, tuple, nn.ModuleList)):
        if len(given) != count:
            raise ValueError(f"{name}: expected {count}, one for each of inps, got {len(given)}")
        return list(given)
    return [given] * count
