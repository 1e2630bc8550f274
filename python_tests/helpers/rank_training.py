"""What the processes of ``helpers.ranks`` check of training, and of what goes wrong."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from equikern import EquiDetector, EquiTune, EquiZero, LambdaEquiTune, RegularLift, boxes, permutation
from equikern.distributed import Ranks
from helpers.rank_models import classifier
from helpers.ranks import World
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

_CYCLE = permutation([[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]])


def _batch(size: tuple[int, ...] = (4, 2, 6, 8)) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(2)
    return torch.randn(size, generator=numbers), torch.randint(4, size[:1], generator=numbers)


def _step(model: nn.Module, x: Tensor, target: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Two steps of training; the gradients of the second. Those of the model are ``scale`` times too large."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / scale)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        found[name.removeprefix("module.")] = grad / scale
    return found


def _same(name: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        off = float((found[key] - grad).abs().max())
        assert off <= 1e-5 * (1 + float(grad.abs().max())), f"{name}, {key}: off by {off}"


def _models(mesh: Any) -> list[nn.Module]:
    torch.manual_seed(0)
    backbone = classifier()
    return [
        EquiTune(copy.deepcopy(backbone), "d4", "trivial", mesh=mesh),
        EquiZero(copy.deepcopy(backbone), "c4", "trivial", mesh=mesh),
        LambdaEquiTune(copy.deepcopy(backbone), "hflip", "trivial", 6, features="1", mesh=mesh),
    ]


def data_parallel(world: World) -> None:
    """DDP over the batch beside shared views, and DDP over everything that does the views' gradients, too."""
    mesh = world.mesh
    x, target = _batch()
    half = slice(2 * mesh.get_local_rank("batch"), 2 * mesh.get_local_rank("batch") + 2)
    ways = {
        "over the batch": (mesh["views"], mesh["batch"].get_group()),
        "over all": (Ranks(mesh["views"], gradients=False), None),
        "over all, twice": (mesh["views"], None),
    }
    for way, (views, group) in ways.items():
        for plain, shared in zip(_models(None), _models(views), strict=True):
            expected = _step(plain, x, target)
            found = _step(DistributedDataParallel(shared, process_group=group), x[half], target[half])
            _same(f"{type(plain).__name__}, DDP {way}", found, expected)


def scale_of_fsdp(mesh: Any) -> float:
    """What FSDP2 multiplies gradients by: torch 2.8's adds them up over gloo, where it is to take their mean."""
    layer = nn.Linear(1, 1, bias=False)
    fully_shard(layer, mesh=mesh)
    layer(torch.ones(1, 1)).sum().backward()
    grad = layer.weight.grad
    assert isinstance(grad, DTensor)
    return float(grad.full_tensor())


def fully_sharded(world: World) -> None:
    """FSDP2 on the backbone, over all processes, beside shared views; uneven shares make as many forwards."""
    x, target = _batch()
    every = world.views[4]
    batch = world.mesh.get_local_rank("batch")
    half = slice(2 * batch, 2 * batch + 2)
    for mesh in (every, world.mesh):
        for plain, shared in zip(_models(None), _models(world.mesh["views"]), strict=True):
            backbone: Any = shared.backbone
            for layer in (backbone[0], backbone[4], backbone, *[shared] * isinstance(shared, LambdaEquiTune)):
                fully_shard(layer, mesh=mesh)  # type: ignore[arg-type]
            assert isinstance(next(backbone.parameters()), DTensor)
            found = _step(shared, x[half], target[half], scale_of_fsdp(mesh))
            _same(f"{type(plain).__name__}, FSDP2", found, _step(plain, x, target))
    x, target = _batch((4, 4))
    for views_per_forward in (1, 2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
        plain = EquiTune(copy.deepcopy(net), _CYCLE, _CYCLE, views_per_forward=views_per_forward)
        fully_shard(net, mesh=every)  # type: ignore[arg-type]
        shared = EquiTune(net, _CYCLE, _CYCLE, views_per_forward=views_per_forward, mesh=world.mesh["views"])
        found = _step(shared, x[half], target[half], scale_of_fsdp(every))
        _same("uneven shares", found, _step(plain, x, target))
    wrong = classifier()
    fully_shard(wrong, mesh=world.mesh["batch"])
    with pytest.raises(ValueError, match="EquiTune: expected fully_shard to take a mesh with the ranks of the views"):
        EquiTune(wrong, "d4", "trivial", mesh=world.mesh["views"])


def gradients(world: World) -> None:
    """Gradients that are added up, differentiated again, of copies, of what stood still, and of compiled models."""
    mesh = world.mesh["views"]
    x, target = _batch()
    for plain, shared in zip(_models(None), _models(mesh), strict=True):
        expected: list[dict[str, Tensor]] = []
        found: list[dict[str, Tensor]] = []
        for model, grads in ((plain, expected), (copy.deepcopy(shared), found)):
            for p in model.parameters():
                p.requires_grad_(False)
            assert not model(x).requires_grad
            for p in model.parameters():
                p.requires_grad_(True)
            for some in (x, x.flip(0)):
                nn.functional.cross_entropy(model(some), target).backward()
            grads.append({name: cast(Tensor, p.grad) for name, p in model.named_parameters()})
            z = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(z).square().sum(), z, create_graph=True)
            second = torch.autograd.grad(slope.square().sum(), list(model.parameters()), allow_unused=True)
            names = [name for name, _ in model.named_parameters()]
            grads.append(
                {name: g for name, g in zip(names, second, strict=True) if g is not None} | {"x": slope.detach()}
            )
        for a, b in zip(found, expected, strict=True):
            _same(type(plain).__name__, a, b)
    for plain, shared in zip(_models(None), _models(mesh), strict=True):
        both: list[dict[str, Tensor]] = []
        for model in (plain.double(), shared.double()):  # after it was made, as models are moved to devices
            nn.functional.cross_entropy(model(x.double()), target).backward()
            both.append({name: cast(Tensor, p.grad) for name, p in model.named_parameters()})
        _same(f"{type(plain).__name__}, moved", both[1], both[0])
    torch.manual_seed(0)
    net = classifier()
    x = x[..., :6]
    several = EquiTune(net, "d4", "trivial", mesh=mesh)
    if world.rank > 1:  # a copy, whose parameters are found by a call that is not compiled: Dynamo gives it up
        several = copy.deepcopy(several)
    one = EquiTune(copy.deepcopy(net), "d4", "trivial")
    for call in (one, torch.compile(several, backend="aot_eager")):
        nn.functional.cross_entropy(call(x), target).backward()
    grads = [{name: cast(Tensor, p.grad) for name, p in model.named_parameters()} for model in (several, one)]
    _same("compiled", *grads)
    former = list(several.parameters())
    several.load_state_dict(copy.deepcopy(several.state_dict()), assign=True)  # as many parameters, but others
    nn.functional.cross_entropy(torch.compile(several, backend="aot_eager")(x), target).backward()
    found_anew = {name: cast(Tensor, p.grad) for name, p in several.named_parameters()}
    assert all(old is not new for old, new in zip(former, several.parameters(), strict=True))
    _same("compiled with assigned weights", found_anew, grads[1])


def refusals(world: World) -> None:
    """Meshes that are none, or not this process's, and what cannot be saved."""
    net = classifier()
    with pytest.raises(ValueError, match=r"mesh: expected one axis, such as mesh\['views'\], got 2 in \(2, 2\)"):
        EquiTune(net, "d4", "trivial", mesh=world.mesh)
    unnamed = DeviceMesh("cpu", torch.arange(4).reshape(2, 2))
    with pytest.raises(ValueError, match=r"such as mesh\['views'\] of one with mesh_dim_names, got 2 in \(2, 2\)"):
        EquiTune(net, "d4", "trivial", mesh=unnamed)
    with pytest.raises(TypeError, match="mesh: expected one axis of a DeviceMesh or a process group, got str"):
        EquiTune(net, "d4", "trivial", mesh="views")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gradients: expected True or False, got int"):
        Ranks(world.mesh["views"], gradients=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mesh: expected one axis of a DeviceMesh or a process group, got NoneType"):
        Ranks(None)  # type: ignore[arg-type]
    for kind in (EquiDetector, RegularLift):
        with pytest.raises(ValueError, match="mesh: expected one axis"):
            kind(net, "d4", boxes("d4"), mesh=world.mesh)
    elsewhere = dist.new_group(backend="cuda:gloo")  # which no tensor of a CPU can go through
    with pytest.raises(ValueError, match="mesh: expected one for the device of the model, in the all-reduce of"):
        EquiTune(net, "d4", "trivial", mesh=elsewhere)(torch.zeros(1, 2, 6, 6))
    if world.rank == 3:
        with pytest.raises((ValueError, TypeError), match="mesh: expected"):
            EquiTune(net, "d4", "trivial", mesh=dist.GroupMember.NON_GROUP_MEMBER)  # type: ignore[arg-type]
    model = EquiTune(net, "d4", "trivial", mesh=world.mesh["views"])
    with pytest.raises(TypeError, match="EquiTune: expected no mesh, whose processes no other program knows"):
        pickle.dumps(model)
    copy.deepcopy(model).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="x: expected a batch"):
        model(torch.zeros(3))


def waits(_: object) -> list[tuple[str, float]]:
    """The first process waits for others, one that is elsewhere and some that end in the middle: what it is told.

    Each pair has a group of its own, since none is of use after an error.
    """
    rank, pair = dist.get_rank(), {}
    dist.barrier()  # the timeout is one for its making, too, and a busy machine may start the processes far apart
    short = dist.new_group([0, 1], timeout=timedelta(seconds=4))
    for other in (1, 2, 3):
        pair[other] = dist.new_group([0, other])
    x, target = _batch()
    ends: list[Callable[[], None]] = [
        lambda: _elsewhere(short, x),
        lambda: _chooses(pair[1], x),
        lambda: _trains(pair[2], x, target),
        lambda: _finds(pair[3], x),
    ]
    found: list[tuple[str, float]] = []
    for other, end in zip((1, 1, 2, 3), ends, strict=True):
        if rank == other:
            end()
        elif rank == 0:
            start = time.monotonic()
            with pytest.raises(RuntimeError) as caught:
                end()
            found.append((str(caught.value), time.monotonic() - start))
    return found


def _elsewhere(group: Any, x: Tensor) -> None:
    if dist.get_rank():
        time.sleep(6)
        return
    with torch.no_grad():
        EquiTune(classifier(), "c4", "trivial", mesh=group)(x)


def _chooses(group: Any, x: Tensor) -> None:
    model = EquiZero(classifier(), "c4", "trivial", mesh=group)
    with torch.no_grad():
        model(x)
        if dist.get_rank():
            os._exit(3)
        model(x)


def _trains(group: Any, x: Tensor, target: Tensor) -> None:
    model = LambdaEquiTune(classifier(), "c4", "trivial", 6, features="1", normalize=None, mesh=group)
    loss = nn.functional.cross_entropy(model(x), target)
    if dist.get_rank():
        os._exit(3)
    loss.backward()


def _finds(group: Any, x: Tensor) -> None:
    def fails(images: Tensor) -> Any:
        if dist.get_rank():
            os._exit(3)
        return [{"boxes": x[0, 0, :1, :4], "scores": x[0, 0, 0, :1], "labels": x[0, 0, 0, :1].long()} for _ in images]

    EquiDetector(fails, "c4", boxes("c4"), mesh=group)(x)
