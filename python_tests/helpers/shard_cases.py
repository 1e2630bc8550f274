"""What the processes of ``helpers.ranks`` check of operators on DTensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from equikern import field as make_field
from equikern import (
    grid,
    linear_orbit_cross_entropy,
    matrix,
    orbit,
    orbit_act,
    orbit_cross_entropy,
    orbit_mean,
    orbit_score,
    orbit_select,
    permutation,
    tokens,
    trivial,
)
from equikern.actions import Action
from equikern.distributed.sharding import RULES
from helpers.calls import CALLS, results
from helpers.ranks import World
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

_SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2]])
ACTIONS: dict[str, Action] = {
    "d4": grid("d4"),
    "permutation": _SWAP,
    "signed": permutation([[0, 1, 2, 3], [1, 0, 3, 2]], [[1, 1, 1, 1], [-1, -1, 1, 1]]),
    "field": make_field(grid("c4"), "vector"),
    "matrix": matrix(
        [
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        ]
    ),
    "trivial": trivial(grid("hflip").group),
}
LEAD = (3, 1, 2)  # the first does not divide among two
FEW = ("orbit", "mean", "weighted", "weighted softmax", "select", "select selected", "max", "std", "median")
Run = Callable[..., Any]


def _checked(
    name: str,
    run: Run,
    given: Sequence[Tensor],
    skips: list[int],
    axis: int,
    mesh: DeviceMesh,
    quiet: bool,
) -> None:
    """A call on shards is the call on whole tensors, bit for bit, and its gradients are the same.

    ``skips``: how many dims each tensor has before the batch; ``axis``: which dim of the batch is sharded, if it is
    one; ``quiet``: whether no message must be sent.
    """

    def placed(t: Tensor, skip: int) -> list[Placement]:
        return [Shard(axis + skip) if 0 <= axis + skip < t.dim() else Replicate()]

    expected = _called(run, [t.clone() for t in given])
    forward = len(results(run(*given)))
    shards = [distribute_tensor(t, mesh, placed(t, skip)) for t, skip in zip(given, skips, strict=True)]
    if quiet:
        with CommDebugMode() as heard, torch.no_grad():
            run(*shards)
        assert heard.get_total_counts() == 0, f"{name}: {heard.get_comm_counts()}"
    found = _called(run, [t.detach() for t in shards])
    _alike(name, found[:forward], expected[:forward], 0.0, 0.0)
    # Gradients that are sums over the batch are added up in another order.
    _alike(f"{name}, gradients", found[forward:], expected[forward:], 1e-4, 1e-5)


def _alike(name: str, found: Sequence[Tensor], expected: Sequence[Tensor], rtol: float, atol: float) -> None:
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        whole = a.full_tensor() if isinstance(a, DTensor) else a
        assert whole.shape == b.shape, f"{name}, result {k}: {whole.shape} for {b.shape}"
        assert torch.allclose(whole, b, rtol, atol, equal_nan=True), f"{name}, result {k}: {whole} for {b}"


def _called(run: Run, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results, and the gradients of what can have one."""
    floats = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    found = list(results(run(*tensors)))
    learning = [t for t in found if t.requires_grad]
    if not learning:
        return found
    # Not square, nor t + 1: torch 2.8 takes those of partial sums one by one.
    loss = sum(((t * t).sum() for t in learning[1:]), (learning[0] * learning[0]).sum())
    grads = torch.autograd.grad(loss, floats, allow_unused=True)
    return [t.detach() for t in found] + [torch.zeros(()) if g is None else g for g in grads]


def operators(world: World) -> int:
    """Every public operator with every kind of action, sharded over a dim of the batch or one that must be whole.

    Each pair of processes has half of them.
    """
    mesh, half, done = world.mesh["views"], world.rank // 2, 0
    for kind, action in ACTIONS.items():
        for number, call in enumerate(CALLS.values()):
            if number % 2 != half or (kind != "d4" and call.name not in FEW):
                continue
            given = call.tensors(action, LEAD, 4)
            grouped = call.takes != "image"
            skips = [int(grouped), *([0] if call.takes == "plus" else [1] * (len(given) - 1))]
            last = len(LEAD) + 1
            for axis in (0, 1, 2, last, *[-1] * grouped) if kind == "d4" else (0, last):
                free = 1 if call.takes in ("weights", "scores") else last + 1 - action.dims
                free = free if call.dims is None else call.dims
                name = f"{call.name} under {kind}, dim {axis}"
                _checked(name, partial(call.run, action), given, skips, axis, mesh, 0 <= axis < free)
                done += 1
    return done


def logits(world: World) -> int:
    """Operators on rows of logits, and one element a sample, on a mesh of two axes."""
    mesh, done = world.mesh, 0
    numbers = torch.Generator().manual_seed(world.mesh.ndim)
    y = torch.randn(2, 6, 5, 4, generator=numbers)
    target = torch.randint(4, (6, 5), generator=numbers)
    target[0, 0] = -100
    rows_sharded: list[Placement] = [Shard(1), Shard(2)]
    x, elements = y[0], torch.randint(2, (6,), generator=numbers)
    ids = torch.randint(4, (6, 5), generator=numbers)
    turns = tokens([[0, 1, 2, 3], [1, 0, 3, 2]])
    calls: dict[str, tuple[Run, list[Tensor], list[list[Placement]]]] = {}
    for space in (None, "probs", "log_probs"):
        for reduction in ("mean", "sum", "none"):
            calls[f"loss, {space}, {reduction}"] = (
                partial(_loss, space=space, reduction=reduction),
                [y, target],
                [rows_sharded, [Shard(0), Shard(1)]],
            )
        calls[f"mean, {space}"] = partial(_mean, space=space), [y], [rows_sharded]
    for score in ("max_prob", "entropy"):
        calls[f"score, {score}"] = partial(orbit_score, kind=score), [y], [[Shard(0), Shard(1)]]
        calls[f"select by {score}"] = partial(_select, scores=score), [y], [rows_sharded]
    sharded: list[Placement] = [Shard(0), Replicate()]
    calls["act"] = _act, [x, elements], [[Shard(0), Shard(1)], sharded]
    calls["act by a plain tensor"] = _act, [x, elements], [[Shard(0), Shard(1)], []]
    calls["tokens"] = partial(orbit, action=turns), [ids], [[Shard(0), Shard(1)]]
    calls["loss of hidden states"] = (
        _linear,
        [torch.randn(2, 6, 3, generator=numbers), torch.randn(4, 3, generator=numbers), target[:, 0]],
        [[Shard(1), Replicate()], [Replicate(), Replicate()], [Shard(0), Replicate()]],
    )
    classes = torch.tensor([0.5, 1.0, 2.0, 0.0])
    everywhere: list[Placement] = [Replicate(), Replicate()]
    calls["weighed loss"] = _weighed, [y, target, classes], [rows_sharded, [Shard(0), Shard(1)], everywhere]
    calls["weighed loss of hidden states"] = (
        _weighed_linear,
        [*calls["loss of hidden states"][1], classes],
        [*calls["loss of hidden states"][2], everywhere],
    )
    for name, (run, given, placements) in calls.items():
        expected = _called(run, [t.clone() for t in given])
        shards = [distribute_tensor(t, mesh, p) if p else t for t, p in zip(given, placements, strict=True)]
        _alike(name, _called(run, shards), expected, 1e-5, 1e-6)
        done += 1
    return done


def _loss(y: Tensor, target: Tensor, **keywords: Any) -> Tensor:
    return orbit_cross_entropy(y, target, _SWAP, label_smoothing=0.1, **keywords)


def _mean(y: Tensor, **keywords: Any) -> Tensor:
    return orbit_mean(y, _SWAP, **keywords)


def _select(y: Tensor, **keywords: Any) -> Any:
    return orbit_select(y, action=_SWAP, return_index=True, **keywords)


def _act(x: Tensor, elements: Tensor) -> Tensor:
    return orbit_act(x, elements, _SWAP)


def _linear(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return linear_orbit_cross_entropy(hidden, weight, target, _SWAP)


def _weighed(y: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return orbit_cross_entropy(y, target, _SWAP, label_smoothing=0.1, weight=weight.detach(), z_loss=0.1, softcap=3.0)


def _weighed_linear(hidden: Tensor, weight: Tensor, target: Tensor, classes: Tensor) -> Tensor:
    return linear_orbit_cross_entropy(
        hidden, weight, target, _SWAP, class_weight=classes.detach(), z_loss=0.1, softcap=3.0
    )


def corners(world: World) -> None:
    """Memory of the caller's, layouts, compiled calls, and what is refused."""
    mesh = world.mesh["views"]
    operators = {name for name in dir(torch.ops.equikern) if name != "name" and not name.startswith("_")}
    ruled = {*RULES, *(name for name in operators if name.startswith("traced_"))}  # these are made of the others
    assert operators == ruled, f"no rule for {operators ^ ruled}"
    action, flip = grid("d4"), grid("hflip")
    y = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    shards = distribute_tensor(y, mesh, [Shard(1)])
    out = distribute_tensor(torch.zeros(y.shape[1:]), mesh, [Shard(0)])
    code, table = flip.inverse_maps.placed(y)
    torch.ops.equikern.reduce_out(shards, code, table, "sum", 0.5, None, out)
    assert torch.equal(out.full_tensor(), orbit_mean(y, flip))
    assert orbit_mean(shards, flip, out=out.zero_()) is out
    assert torch.equal(out.full_tensor(), orbit_mean(y, flip))
    wide = distribute_tensor(torch.zeros(y.shape[1:]), mesh, [Shard(2)])
    with pytest.raises(ValueError, match="out: expected a DTensor sharded over its batch"):
        torch.ops.equikern.reduce_out(shards, code, table, "sum", 0.5, None, wide)
    other = distribute_tensor(y[0], world.mesh, [Shard(0), Replicate()])
    with pytest.raises(ValueError, match="plus: expected DTensors on one mesh"):
        orbit_mean(shards, flip, plus=other)
    # Channels-last stays, and says so.
    last = y.movedim(2, -1).contiguous().movedim(-1, 2)
    own = last.chunk(2, 1)[mesh.get_local_rank()]
    whole, part = orbit_mean(last, flip), orbit_mean(DTensor.from_local(own, mesh, [Shard(1)]), flip)
    assert isinstance(part, DTensor)
    assert part.stride() == whole.stride(), f"{part.stride()} for {whole.stride()}"
    assert part.to_local().stride(1) == 1
    assert torch.equal(part.full_tensor(), whole)
    # A code alone tells which dims move: the same shapes under another action must not share a plan.
    square = distribute_tensor(torch.randn(8, 4, 4), mesh, [Shard(1)])
    for acting, expected in ((trivial(action.group), Shard(0)), (action, Replicate())):
        mean = orbit_mean(square, acting)
        assert isinstance(mean, DTensor)
        assert mean.placements == (expected,)

    def training(t: Tensor) -> Tensor:
        return orbit_mean(t, flip) * 2

    # Sharded over the batch, or over dims that are made whole; each pair of processes has half of these.
    calls: list[tuple[str, Run, list[Tensor], list[int]]] = [("mean in a function", training, [y], [1])]
    for call in CALLS.values():
        if call.name in FEW:
            given = call.tensors(flip, LEAD, 4)
            grouped = int(call.takes != "image")
            calls.append((call.name, partial(call.run, flip), given, [grouped, *[1] * len(given)]))
            given = call.tensors(action, LEAD, 4)
            calls.append((f"{call.name} of sharded columns", partial(call.run, action), given, [-1, *[1] * len(given)]))
    for name, run, given, skips in calls[world.rank // 2 :: 2]:
        parts = [distribute_tensor(t, mesh, [Shard(skip)]).detach() for t, skip in zip(given, skips, strict=False)]
        torch.compiler.reset()  # which forgets how often the same code was compiled before
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        found = _called(compiled, parts)
        assert isinstance(found[0], DTensor), f"{name} compiled: a plain tensor"
        _alike(f"{name} compiled", found, _called(run, [t.clone() for t in given]), 1e-5, 1e-6)
