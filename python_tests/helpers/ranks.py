"""Four processes that meet over gloo and run what a test hands them: functions of a module, by name."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

SIZE = 4
_TIMEOUT = 60.0
_CASES = ("helpers.rank_cases", "helpers.rank_lm_cases", "helpers.rank_training", "helpers.shard_cases")


class World:
    """What a process knows of the others.

    Attributes:
        rank: which of the four it is.
        mesh: two by two, "batch" and "views".
        views: by their number, the processes that share views: all, the first three, two and two, each alone.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batch", "views"))
        three = dist.new_group([0, 1, 2])
        alone = init_device_mesh("cpu", (SIZE, 1), mesh_dim_names=("batch", "views"))
        self.views: dict[int, DeviceMesh | dist.ProcessGroup] = {
            4: init_device_mesh("cpu", (SIZE,)),
            2: self.mesh["views"],
            1: alone["views"],
        }
        if rank < 3:
            assert isinstance(three, dist.ProcessGroup)
            self.views[3] = three


def _serve(rank: int, size: int, folder: str, seconds: float, own: Connection) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    where = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=timeout)
    world = World(rank) if size == SIZE else None
    while (asked := own.recv()) is not None:
        module, name, given = asked
        try:
            torch.manual_seed(0)
            own.send((True, getattr(importlib.import_module(module), name)(world, *given)))
        except BaseException:
            own.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    """Processes that serve one call after another."""

    def __init__(self, size: int = SIZE, timeout: float = _TIMEOUT) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *_CASES])  # imported once for all
        self._folder = tempfile.TemporaryDirectory()
        self.connections, self.processes = [], []
        for rank in range(size):
            connection, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, self._folder.name, timeout, other), daemon=True)
            process.start()
            other.close()
            self.connections.append(connection)
            self.processes.append(process)

    def __call__(self, case: Callable[..., Any], *given: Any) -> list[Any]:
        """What a function returns in every process; a failure in one of them is one of the caller's."""
        self.send(case, *given)
        results = [self.received(rank) for rank in range(len(self.connections))]
        wrong = [f"rank {rank}:\n{told}" for rank, (went, told) in enumerate(results) if not went]
        assert not wrong, "\n".join(wrong)
        return [told for _, told in results]

    def send(self, case: Callable[..., Any], *given: Any) -> None:
        """Have every process run a function."""
        for connection in self.connections:
            connection.send((case.__module__, case.__name__, given))

    def received(self, rank: int) -> tuple[bool, Any]:
        """Whether a process's function returned, and what; or what went wrong."""
        if not self.connections[rank].poll(2 * _TIMEOUT):
            return False, "no answer"
        try:
            went, told = self.connections[rank].recv()
            return went, told
        except EOFError:
            return False, "it has ended"

    def close(self) -> None:
        """End them."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


@contextlib.contextmanager
def pool(size: int = SIZE, timeout: float = _TIMEOUT) -> Iterator[Pool]:
    """Processes for a while."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = Pool(size, timeout)
    try:
        yield found
    finally:
        found.close()
