"""Jobs in several processes at once; a network is tuned when it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from . import runs

SECONDS = 1.0  # between two looks at how far the processes are


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
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool,
    ):
        updates = manager.Queue()
        try:
            while waiting or running:
                ready = [job for job in waiting if not job.system or job.network.key in done]
                for job in ready[: processes - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(runs.run, job, settings, work, updates.put)] = job
                ended, _ = wait(running, SECONDS, FIRST_COMPLETED)
                while not updates.empty():
                    advance(updates.get())
                for future in ended:
                    job = running.pop(future)
                    done[job.key] = future.result()
                    runs.state(job, work).unlink()  # only now: a job whose results are lost goes on from it
                    yield job
        finally:
            pool.shutdown(cancel_futures=True)
