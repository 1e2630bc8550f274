"""``Ranks``: the processes that share the views of a wrapper, and what they tell one another."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..core import checks

__all__ = ["Ranks"]

_Grads = tuple[Tensor | None, ...]


class Ranks:
    """The processes among which a wrapper's views are split: what its ``mesh`` is, with the choices that it leaves.

    Every process gives the wrapper the same batch and gets the whole output; each runs the backbone on its share of
    the views, of which there need not be as many for each. What merges them, and what their gradients go through, is
    differentiable: it counts the loss as the mean of the processes' losses, which are equal where all go on alike, so
    that the gradients of the input are on every process those of one process alone. Those of a parameter come from the
    views of each process, in a scale in which their mean over the processes is that of one process alone. The wrapper
    takes this mean itself, by one all-reduce for every parameter as backward gets to it.

    - ``DistributedDataParallel`` over the batch: ``DDP(model, process_group=mesh["batch"].get_group())``, or over all
      processes. It takes the mean over all of them itself then, in large buckets, and ``gradients=False`` leaves it to
      it alone.
    - ``fully_shard(backbone, mesh=…)`` by a mesh that has the processes of the views, too, such as the whole mesh; it
      takes their mean where it scatters the gradients.

    Batch statistics of a backbone in training mode are those of a process's own views.

    A process that waits for one that has died, has raised or has gone another way gets a ``RuntimeError`` that names
    the wrapper and what it waited for, at once or after the timeout of the process group. NCCL waits on the GPU: there
    torch's watchdog ends the process after the timeout, unless ``TORCH_NCCL_BLOCKING_WAIT=1`` makes it an error.

    Args:
        mesh: one axis of a ``DeviceMesh``, such as ``mesh["views"]``, or a process group.
        gradients: whether the wrapper takes the mean of its parameters' gradients.

    Attributes:
        size: how many processes.
        rank: which of them this one is.

    Raises:
        TypeError: a mesh that is neither.
        ValueError: a mesh of several axes, one that this process does not belong to, or one of processes that have
            not met.

    Example:
        >>> import os, tempfile
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from equikern import EquiTune
        >>> file = "file://" + os.path.join(tempfile.mkdtemp(), "meeting")
        >>> torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
        >>> mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("batch", "views"))
        >>> net = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.equal(EquiTune(net, "d4", "d4", mesh=mesh["views"])(x), EquiTune(net, "d4", "d4")(x))
        True
        >>> torch.distributed.destroy_process_group()
    """

    def __init__(self, mesh: DeviceMesh | dist.ProcessGroup, gradients: bool = True) -> None:
        if isinstance(mesh, (DeviceMesh, dist.ProcessGroup)) and not dist.is_initialized():
            raise ValueError(
                "mesh: expected one of processes that have met, but torch.distributed is not initialized, or is no more"
            )
        if isinstance(mesh, DeviceMesh):
            if mesh.ndim != 1:
                names = mesh.mesh_dim_names
                one = f"mesh[{names[-1]!r}]" if names else "mesh['views'] of one with mesh_dim_names"
                raise ValueError(f"mesh: expected one axis, such as {one}, got {mesh.ndim} in {tuple(mesh.shape)}")
            if mesh.get_coordinate() is None:
                raise ValueError(f"mesh: expected one that this process belongs to, got {mesh}")
            mesh = mesh.get_group()
        if not isinstance(mesh, dist.ProcessGroup):
            raise TypeError(f"mesh: expected one axis of a DeviceMesh or a process group, got {type(mesh).__name__}")
        checks.flag("gradients", gradients)
        self.group, self.gradients = mesh, gradients
        self.size, self.rank = dist.get_world_size(mesh), dist.get_rank(mesh)
        if self.rank < 0:
            raise ValueError("mesh: expected a process group that this process belongs to")
        self.owner = ""
        self._listening: dict[int, weakref.ref[Tensor]] = {}

    @staticmethod
    def of(mesh: object, owner: str) -> Ranks:
        """Those of a wrapper's ``mesh``; ``owner`` is what messages call it. The parts of a wrapper get its own."""
        if not isinstance(mesh, Ranks):
            found = Ranks(cast(Any, mesh))
        elif mesh.owner:
            return mesh
        else:
            found = Ranks(mesh.group, mesh.gradients)
        found.owner = owner
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        copied = Ranks(self.group, self.gradients)  # the copies of parameters have no hooks
        copied.owner = self.owner
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self.owner or 'Ranks'}: expected no mesh, whose processes no other program knows; save "
            "model.state_dict() instead"
        )

    def __repr__(self) -> str:
        return f"Ranks(rank {self.rank} of {self.size})"

    # Who does what.

    def start(self, rank: int, count: int) -> int:
        """The first of ``count`` views that a process takes; the next one's is behind its last."""
        return -(-rank * count // self.size)

    def cut(self, buckets: Iterable[list[int]]) -> list[list[int]]:
        """Buckets of views, one after another, cut where the shares of two processes meet."""
        buckets = list(buckets)
        count = sum(map(len, buckets))
        borders = {self.start(rank, count) for rank in range(self.size)}
        found: list[list[int]] = []
        done = 0
        for bucket in buckets:
            for k, g in enumerate(bucket):
                if k == 0 or done in borders:
                    found.append([])
                found[-1].append(g)
                done += 1
        return found

    def shares(self, parts: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """For every process its parts, of such as ``cut`` gives, cut further or not."""
        count = sum(map(len, parts))
        found: list[list[list[int]]] = [[] for _ in range(self.size)]
        done, rank = 0, 0
        for part in parts:
            while done >= self.start(rank + 1, count):
                rank += 1
            found[rank].append(list(part))
            done += len(part)
        return found

    def own(self, parts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        """The parts that this process runs, and how many of the first of them are spare.

        All run as many forwards, as a backbone that is sharded itself needs: who has fewer parts repeats a view, whose
        outputs count for nothing. Who has none runs spare ones alone.
        """
        shares = self.shares(parts)
        own = shares[self.rank]
        spare = max(map(len, shares)) - len(own)
        return [[own[0][0] if own else parts[0][0]]] * spare + own, spare

    def views(self, count: int) -> list[int]:
        """Those of ``count`` views that this process takes; the first one if there is none for it."""
        return list(range(self.start(self.rank, count), self.start(self.rank + 1, count))) or [0]

    def idle(self, count: int) -> bool:
        """Whether there is none of ``count`` views for this process."""
        return self.start(self.rank, count) == self.start(self.rank + 1, count)

    def counts(self, count: int) -> list[int]:
        """How many of ``count`` views each process has."""
        return [self.start(rank + 1, count) - self.start(rank, count) for rank in range(self.size)]

    # What they tell one another.

    def total(self, t: Tensor, what: str) -> Tensor:
        """Σ of what all say, by one all-reduce; the gradient is that of all of them together."""
        return cast(Tensor, _Total.apply(t, self, what))  # type: ignore[no-untyped-call]

    def extremum(self, t: Tensor, op: Literal["max", "min"], what: str) -> Tensor:
        """The largest or the smallest of what all say, float32 or float64, NaN where one says NaN; without gradient."""
        # As integers in the same order, where NaN is what is asked for: which of a number and NaN is larger to a
        # backend depends on which comes first.
        keys = _ordered(t.detach().contiguous())
        most = torch.iinfo(keys.dtype)
        keys = keys.masked_fill(t.isnan(), most.max if op == "max" else most.min)
        return _unordered(self._reduced(keys, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.MIN, what), t.dtype)

    def gathered(self, t: Tensor, count: int, what: str) -> Tensor:
        """All ``count`` rows, of which each process has its share, bit for bit; differentiable."""
        return cast(Tensor, _Gathered.apply(t, self, count, what))  # type: ignore[no-untyped-call]

    def chosen(self, t: Tensor, mine: Tensor, what: str) -> Tensor:
        """For every sample, (B, …), what the one process says whose ``mine`` (B,) is true, bit for bit."""
        t = torch.where(mine.reshape(-1, *(1,) * (t.dim() - 1)), t.detach(), torch.zeros_like(t)).contiguous()
        if t.numel():
            # As bytes: sums of numbers would lose the sign of a zero, and not every dtype has sums everywhere.
            self._call(lambda: dist.all_reduce(_bytes(t), group=self.group), what)
        return t

    def carried(self, value: Tensor, stand_in: Tensor, what: str) -> Tensor:
        """A value of which all have the same, whose gradient goes to every process's own stand-in."""
        return cast(Tensor, _Carried.apply(stand_in, value, self, what))  # type: ignore[no-untyped-call]

    def entered(self, x: Tensor) -> Tensor:
        """An input of which all have the same: its gradient is whole on every process."""
        needed = x.requires_grad and torch.is_grad_enabled()
        return cast(Tensor, _Entered.apply(x, self)) if needed else x  # type: ignore[no-untyped-call]

    def told(self, said: Any, what: str) -> list[Any]:
        """What every process says, in their order: anything that can be pickled, tensors on the CPU bit for bit."""
        found: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(found, said, group=self.group), f"all-gather of {what}")
        return found

    def share_generator(self, device: torch.device) -> None:
        """The random numbers of the first process for all, so that all draw alike."""
        self._share_state(torch.get_rng_state(), device, torch.set_rng_state)
        if device.type == "cuda":
            self._share_state(torch.cuda.get_rng_state(device), device, torch.cuda.set_rng_state)

    def _share_state(self, state: Tensor, device: torch.device, use: Callable[[Tensor], None]) -> None:
        there = state.to(device)
        source = dist.get_process_group_ranks(self.group)[0]
        self._call(lambda: dist.broadcast(there, source, group=self.group), "broadcast of the generator's state")
        use(there.to(state.device))

    def _reduced(self, t: Tensor, op: Any, what: str) -> Tensor:
        out = t.clone(memory_format=torch.contiguous_format)
        if out.numel():
            self._call(lambda: dist.all_reduce(out, op, group=self.group), what)
        return out

    def _call(self, collective: Callable[[], object], what: str) -> None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(f"{self.owner}: torch.jit.trace takes no wrapper with a mesh")
        if torch.compiler.is_compiling():  # which cannot follow what becomes of errors
            collective()
            return
        try:
            collective()
        except RuntimeError as error:
            if "No backend type associated with device type" in str(error):  # torch's words, in all its releases
                raise ValueError(f"mesh: expected one for the device of the model, in the {what}: {error}") from error
            others = [rank for rank in dist.get_process_group_ranks(self.group) if rank != dist.get_rank()]
            raise RuntimeError(
                f"{self.owner}: rank {dist.get_rank()} waited in vain for {others} in the {what}: one has died, has "
                f"raised an error of its own or is elsewhere. {error}"
            ) from error

    # The gradients of parameters.

    def listen(self, module: nn.Module) -> None:
        """See to it that the gradients of a module's parameters become their means over the processes.

        Raises:
            ValueError: parameters sharded over processes that do not include those of the views.
            RuntimeError: in a compiled call, parameters that no call before has met.
        """
        if not self.gradients:
            return
        if torch.compiler.is_compiling():
            found = (p for p in module.parameters() if p.is_floating_point() or p.is_complex())
            if not all(id(p) in self._listening for p in found):
                raise RuntimeError(
                    f"{self.owner}: expected one call before torch.compile after it was copied or got other "
                    "parameters, whose gradients are not added up over the mesh yet"
                )
            return
        for name, p in module.named_parameters():
            known = self._listening.get(id(p))
            if known is not None and known() is p:
                continue
            if not (p.is_floating_point() or p.is_complex()):
                continue
            learns = p.requires_grad
            p.requires_grad_(True)
            p.register_hook(_Mean(self, f"gradient of {name}"))  # type: ignore[no-untyped-call]
            p.requires_grad_(learns)  # one that stands still now may learn later
            # Forgotten with it: another one may get its number, and compiled calls go by that alone.
            self._listening[id(p)] = weakref.ref(p, functools.partial(_forget, self._listening, id(p)))
        if self.size > 1:
            self._check_shards(module)

    def check_whole(self, module: nn.Module) -> None:
        """Refuse what takes all of its processes for every forward, where each makes as many as it needs.

        Raises:
            ValueError: a module that ``fully_shard`` has sharded.
        """
        for name, part in module.named_modules():
            if isinstance(part, FSDPModule):
                raise ValueError(
                    f"{self.owner}: expected a model that is whole in every process, which each goes on with by "
                    f"itself, got fully_shard on {name or 'the model'}"
                )

    def _check_shards(self, module: nn.Module) -> None:
        views = set(dist.get_process_group_ranks(self.group))
        for name, part in module.named_modules():
            for p in part.parameters() if isinstance(part, FSDPModule) else ():  # type: ignore[attr-defined]
                if isinstance(p, DTensor) and not views <= set(p.device_mesh.mesh.flatten().tolist()):
                    raise ValueError(
                        f"{self.owner}: expected fully_shard to take a mesh with the ranks of the views {sorted(views)}"
                        f", over which gradients have to be added up, got {p.device_mesh} for {name or 'the model'}"
                    )


def _forget(known: dict[int, weakref.ref[Tensor]], key: int, gone: weakref.ref[Tensor]) -> None:
    if known.get(key) is gone:
        del known[key]


def _ordered(t: Tensor) -> Tensor:
    """Integers in the order of floats, −0 before 0."""
    return _flipped(t.view(torch.int32 if t.dtype == torch.float32 else torch.int64))


def _unordered(keys: Tensor, dtype: torch.dtype) -> Tensor:
    return _flipped(keys).view(dtype)


def _flipped(bits: Tensor) -> Tensor:
    """All bits but the sign of negative numbers turned over: twice, they are what they were."""
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def _bytes(t: Tensor) -> Tensor:
    return t.flatten().view(torch.uint8)


class _Mean:
    """What a parameter's gradient goes through: its mean over the processes."""

    def __init__(self, ranks: Ranks, what: str) -> None:
        self.ranks, self.what = ranks, what

    def __call__(self, grad: Tensor) -> Tensor:
        if isinstance(grad, DTensor):  # of a parameter that tensor parallelism has sharded
            local = self(grad.to_local())
            return DTensor.from_local(local, grad.device_mesh, grad.placements, shape=grad.shape, stride=grad.stride())
        return self.ranks.total(grad, self.what) / self.ranks.size


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, ranks: Ranks, what: str) -> Tensor:
        ctx.call = ranks, what
        return ranks._reduced(t, dist.ReduceOp.SUM, f"all-reduce of {what}")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        ranks, what = ctx.call
        return ranks.total(grad, _gradient(what)), None, None


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, ranks: Ranks, count: int, what: str) -> Tensor:
        ctx.call = ranks, count, what, len(t)
        counts = ranks.counts(count)
        if not t.numel():
            return t.new_empty(count, *t.shape[1:])
        most = max(counts)
        padded = t.new_zeros(most, *t.shape[1:])
        padded[: counts[ranks.rank]] = t[: counts[ranks.rank]]
        rows = [torch.empty_like(padded) for _ in counts]
        ranks._call(
            lambda: dist.all_gather([_bytes(some) for some in rows], _bytes(padded), group=ranks.group),
            f"all-gather of {what}",
        )
        return torch.cat([some[:n] for some, n in zip(rows, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        ranks, count, what, rows = ctx.call
        start = ranks.start(ranks.rank, count)
        whole = ranks.total(grad, _gradient(what))
        own = whole[start : ranks.start(ranks.rank + 1, count)]
        if len(own) < rows:  # of a process that has none
            own = torch.cat((own, own.new_zeros(rows - len(own), *own.shape[1:])))
        return own, None, None, None


class _Carried(Function):
    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, value: Tensor, ranks: Ranks, what: str) -> Tensor:
        ctx.call = ranks, what
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        ranks, what = ctx.call
        return ranks.total(grad, _gradient(what)), None, None, None


class _Entered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        return ctx.ranks.total(grad, "gradient of the input") / ctx.ranks.size, None


def _gradient(what: str) -> str:
    return what if what.startswith("gradient of ") else f"gradient of {what}"
