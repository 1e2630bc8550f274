"""How the registered operators run on DTensors, whose batch may be sharded.

Every process runs the operator on its part of the batch, and no message is sent. The dims that an action moves, the
classes of a softmax and the group axis must be whole: what is sharded there, or is a partial sum, is redistributed.
A plain tensor beside DTensors, such as an action's table, is what every process has alike.

The rules are those of ``torch.library.register_torch_dispatch``, not of ``register_sharding``: DTensor remembers what
that says of an operator by shapes and whole numbers, while here the code, a string, says which dims move. Importing
``equikern.distributed`` registers them. The operators ``traced_…``, which compiled functions contain, need no rule:
on DTensors each runs the operators that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..core import library
from ..views import of

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """Which dims of an operator's tensors are the batch's.

    ``"x"`` is a tensor (*lead, *moved), ``"y"`` one with a group axis before, ``"w"`` and ``"l"`` have the group axis
    and the first, or all, of the lead, ``"i"`` and ``"t"`` the first, or all, of the lead alone; ``"-"`` has no dim of
    the batch, and ``"s"`` is a sum over it.

    Attributes:
        tensors: for each argument one of these, ``"."`` for what is no tensor.
        results: for each result.
        summed: whether a result sums over the lead that weights lack, so that only that of the weights can be sharded.
        rows: whether the last dim is one of classes.
    """

    tensors: str
    results: str
    summed: bool = False
    rows: bool = False


RULES = {
    "orbit": Rule("x.-.wi", "y"),
    "orbit_out": Rule("x.-y", ""),
    "act": Rule("xi.-", "x"),
    "act_out": Rule("xi.-x", ""),
    "reduce": Rule("y.-..w", "x"),
    "reduce_out": Rule("y.-..wx", ""),
    "mean_plus": Rule("yx.-", "x"),
    "mean_plus_out": Rule("yx.-x", ""),
    "mean_std": Rule("y.-", "xx"),
    "mean_std_out": Rule("y.-xx", ""),
    "orbit_dot": Rule("xy.-w", "yw", summed=True),
    "dot": Rule("xy.-.", "w", summed=True),
    "reduce_backward": Rule("xxy.-.", "y"),
    "variance": Rule("y.-.", "i", summed=True),
    "variance_backward": Rule("iy.-", "y"),
    "select": Rule("yw.-.", "xi"),
    "select_out": Rule("yw.-.x", "i"),
    "take": Rule("yi.-", "x"),
    "softmax_mean": Rule("y.-.", "xl", rows=True),
    "softmax_mean_out": Rule("y.-.x", "", rows=True),
    "softmax_mean_backward": Rule("xyl.-.", "y", rows=True),
    "score": Rule("x.", "t", rows=True),
    "score_select": Rule("y..-.", "xt", rows=True),
    "score_select_out": Rule("y..-.x", "t", rows=True),
    "cross_entropy": Rule("yt.-...-.", "ty", rows=True),
    "weighed_cross_entropy": Rule("yt.-...-...-", "ty", rows=True),
    "linear_cross_entropy": Rule("y--t.-...t...", "tyss", rows=True),
    "weighed_linear_cross_entropy": Rule("y--t.-...t.....-", "tyss", rows=True),
}
_GROUPED = "ywl"
_CODE = "views"  # what schemas call it


def _run(rule: Rule, func: Any, args: Sequence[Any]) -> Any:
    """Run an operator on every process's part of the batch."""
    names = [argument.name for argument in func._schema.arguments]
    tensors = [(k, args[k]) for k, kind in enumerate(rule.tensors) if kind != "." and isinstance(args[k], Tensor)]
    mesh = next(t.device_mesh for _, t in tensors if isinstance(t, DTensor))
    moved = of(args[names.index(_CODE)]).dims if _CODE in names else 0
    moved = max(moved, 1) if rule.rows else moved
    main = next(k for k, kind in enumerate(rule.tensors) if kind in "xy")
    grouped = rule.tensors[main] in _GROUPED
    lead = args[main].dim() - grouped - moved
    sizes = args[main].shape[grouped : grouped + lead]
    most = lead
    if "dims" in names:
        most = args[names.index("dims")]
    elif rule.summed:
        most = (args[names.index("weight_dims")] if "weight_dims" in names else args[rule.tensors.index("w")].dim()) - 1
    written = [k for k, _ in tensors if names[k] in ("out", "mean", "std")]

    def wanted(axis: int) -> int | None:
        """The dim of the lead that an axis of the mesh shards."""
        found: int | None = None
        for k, t in sorted(tensors, key=lambda pair: pair[0] not in written):  # where results go is not ours to say
            placement = t.placements[axis] if isinstance(t, DTensor) else None
            dim = placement.dim - (rule.tensors[k] in _GROUPED) if type(placement) is Shard else -1
            fits = rule.tensors[k] != "-" and 0 <= dim < most
            if k in written and not fits and not isinstance(placement, Replicate):
                raise ValueError(f"{names[k]}: expected a DTensor sharded over its batch or nowhere, got {placement}")
            if fits or k in written:
                return dim if fits else None
        return found

    axes = [wanted(axis) for axis in range(mesh.ndim)]

    def placements(kind: str, dims: int) -> list[Placement]:
        """Of a tensor with so many dims."""
        skip = int(kind in _GROUPED)
        held = dims - skip if kind != "-" else 0
        return [Replicate() if axis is None or axis >= held else Shard(axis + skip) for axis in axes]

    local = list(args)
    for k, t in tensors:
        local[k] = _local(t, mesh, placements(rule.tensors[k], t.dim()), names[k], k in written)
    results = func(*local)
    for k in written:
        library.written(args[k])
    if not rule.results:
        return None
    found = []
    for kind, t in zip(rule.results, results if isinstance(results, tuple) else (results,), strict=True):
        where: list[Placement] = [Replicate()] * mesh.ndim
        if kind == "s":
            parts = [Replicate() if axis is None else Partial() for axis in axes]
            found.append(DTensor.from_local(t, mesh, parts, run_check=False).redistribute(mesh, where))
            continue
        if kind != "y" or t.dim() == 1 + lead + moved:  # else a gradient that nobody wants
            where = placements(kind, t.dim())
        found.append(_whole(t, mesh, where, sizes, int(kind in _GROUPED)))
    return found[0] if len(found) == 1 else tuple(found)


def _local(t: Tensor, mesh: DeviceMesh, placements: list[Placement], name: str, written: bool) -> Tensor:
    """A process's part of a tensor in some placements."""
    if not isinstance(t, DTensor):
        if written:
            raise TypeError(f"{name}: expected a DTensor beside DTensors, got a plain tensor")
        if all(isinstance(placement, Replicate) for placement in placements):
            return t
        t = DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)
    if t.device_mesh != mesh:
        raise ValueError(f"{name}: expected DTensors on one mesh, {mesh}, got one on {t.device_mesh}")
    if tuple(t.placements) != tuple(placements):
        alone = cast(DTensor, t.detach())  # autograd is above, but redistribute does not know
        t = alone.redistribute(mesh, placements)
    return t.to_local()


def _whole(t: Tensor, mesh: DeviceMesh, placements: list[Placement], sizes: Sequence[int], skip: int) -> DTensor:
    """The tensor of which ``t`` is this process's part; the batch has these sizes, behind ``skip`` dims."""
    shape = list(t.shape)
    for placement in placements:
        if isinstance(placement, Shard):
            shape[placement.dim] = sizes[placement.dim - skip]
    strides, step = [1] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (t.stride(d), -d)):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return DTensor.from_local(t, mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(strides))


def _registered(rule: Rule) -> Callable[..., Any]:
    return _dispatched(lambda func, arguments: _run(rule, func, arguments))


def _made_of(operators: Callable[..., Any]) -> Callable[..., Any]:
    return _dispatched(lambda _, arguments: operators(*arguments))


def _dispatched(run: Callable[[Any, list[Any]], Any]) -> Callable[..., Any]:
    def call(cls: type, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        return run(func, [*args, *(named[a.name] for a in func._schema.arguments[len(args) :])])

    return call


_CALLS = {name: _registered(rule) for name, rule in RULES.items()}
# Those with derivatives, and what each is made of: operators without, and torch's own.
_TRACED = {operator.name().partition("::")[2]: made for operator, made in library.decompositions.items()}
_CALLS |= {name: _made_of(made) for name, made in _TRACED.items() if name.startswith("traced_")}
for _name, _call in _CALLS.items():
    torch.library.register_torch_dispatch(f"equikern::{_name}", DTensor, _call, lib=library.library)
