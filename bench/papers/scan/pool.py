"""Jobs in several processes at once; a network is tuned when it is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from . import runs

SECONDS = 1.0  # between two looks at how far the processes are
_updates: SimpleQueue[int]  # of a process that runs jobs, to the one that started it


def _start(updates: SimpleQueue[int], threads: int) -> None:
    global _updates
    _updates = updates
    torch.set_num_threads(threads)


def _run(job: runs.Job, settings: runs.Settings, work: Path, parent: int) -> dict[str, Any]:
    def advance(count: int) -> None:
        if os.getppid() != parent:  # it was killed, and the next run must not meet this one
            os._exit(1)  # the pool would catch an exception, and wait for ever
        _updates.put(count)

    return runs.run(job, settings, work, advance)


def finished(
    jobs: list[runs.Job],
    settings: runs.Settings,
    done: Checkpoint,
    work: Path,
    processes: int,
    threads: int,
    advance: Callable[[int], None],
) -> Iterator[runs.Job]:
    """The jobs one after the other, as they end, their results in ``done``.

    Args:
        processes, threads: how many jobs run at once, and the CPU threads of each.
        advance: called with updates that were made.
    """
    # Spawned, not forked: torch's threads do not outlive a fork.
    context = get_context("spawn")
    waiting = list(jobs)
    running: dict[Future[dict[str, Any]], runs.Job] = {}
    updates: SimpleQueue[int] = context.SimpleQueue()
    with ProcessPoolExecutor(processes, context, _start, (updates, threads)) as pool:
        while waiting or running:
            ready = [job for job in waiting if not job.system or job.network.key in done]
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(_run, job, settings, work, os.getpid())] = job
            ended, _ = wait(running, SECONDS, FIRST_COMPLETED)
            while not updates.empty():
                advance(updates.get())
            for future in ended:
                job = running.pop(future)
                done[job.key] = future.result()
                runs.state(job, work).unlink()  # only now: a job whose results are lost goes on from it
                yield job
