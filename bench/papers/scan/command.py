"""The command: options, the jobs with their progress bar, the results file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..options import add_lengths, add_output, add_work, complain, count, missing

HERE = Path(__file__).resolve().parent
# Updates, sentences of each, Adam's rate, updates between validations, weight decay, whether the rate falls to 0.
FULL = {
    "seeds": 3,
    "pretraining": {
        "add_jump": (4000, 64, 2e-3, 500, 0.0, True),
        "around_right": (4000, 64, 2e-3, 500, 0.0, True),
        "scan_ii": (8000, 64, 2e-3, 1000, 0.0, True),
    },
    "tuning": {
        "add_jump": (10_000, 1, 2e-5, 1000, 1e-4, False),
        "around_right": (10_000, 1, 5e-5, 1000, 1e-4, False),
        "scan_ii": (10_000, 1, 2e-5, 1000, 1e-4, False),
    },
    "validated": (3000, 1000),
    "tested": (1, 10),
}
QUICK = {
    **FULL,
    "seeds": 1,
    "tuning": {"add_jump": (60, 8, 3e-4, 20, 1e-4, False)},
    "validated": (300, 100),
    "tested": (20, 40),
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/scan",
        description="SCAN's commands translated by RNN, GRU and LSTM, made equivariant to swaps of words",
    )
    add_lengths(arguments, "the committed network, a part of the test, a short tuning: a minute")
    arguments.add_argument("--seeds", type=count, metavar="N", help="networks of each kind (3)")
    arguments.add_argument(
        "--processes", type=count, default=os.cpu_count() or 1, metavar="N", help="trainings at once (%(default)s)"
    )
    add_output(arguments, HERE, 1)
    add_work(arguments, HERE)
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update_from(HERE, "scan", report)
    if lacking := missing(("matplotlib", "rich", "safetensors")):
        return complain(lacking, '".[bench]"')
    from .. import figures
    from . import report

    try:
        results = quick(options.threads) if options.quick else full(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    stem = options.output / ("quick" if options.quick else "scan")
    return figures.keep(results, stem, report)


def full(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the results file holds; ``options.work`` keeps what is done, and a stopped run goes on.

    Raises:
        ValueError: the folder's results were made with other settings.
    """
    import torch
    from bench.ops import machine
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from ..checkpoint import Checkpoint
    from . import pool, runs

    torch.set_num_threads(options.threads)
    settings = runs.Settings.of({**FULL, "seeds": options.seeds or FULL["seeds"]})
    done = Checkpoint(options.work / "scan.checkpoint.jsonl", {**settings._asdict(), "seeds": None}, "--work")
    todo = list(runs.jobs(settings.seeds))
    if not options.report:
        columns = TextColumn("{task.description:38.38}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns) as bar:
            sizes = {job: (settings.tuning if job.system else settings.pretraining)[job.split].updates for job in todo}
            left = [job for job in todo if job.key not in done]
            task = bar.add_task(f"{len(left)} left", total=sum(sizes[job] for job in left))
            for job in pool.finished(
                left, settings, done, options.work, options.processes, options.threads, partial(bar.advance, task)
            ):
                left.remove(job)
                bar.update(task, description=f"{len(left)} left")
                print(f"{job.key}: {json.dumps(done[job.key]['accuracy'])}", flush=True)
    return {
        "settings": settings._asdict(),
        "machine": machine.describe(options.threads, "cpu"),
        "runs": {job.key: done[job.key] for job in todo if job.key in done},
    }


def quick(threads: int) -> dict[str, Any]:
    """What the committed network does, and a short tuning of it.

    It is the LSTM of seed 0, and its results are named as in the whole run.
    """
    import tempfile

    import torch
    from bench.ops import machine
    from rich.progress import Progress

    from .. import figures
    from . import runs
    from .names import TUNED
    from .systems import accuracy

    torch.set_num_threads(threads)
    settings = runs.Settings.of(QUICK)
    first = runs.Job("add_jump", "LSTM", 0)
    found = runs.prepared(first.split, first.seed)
    network = runs.load(runs.untrained(first.cell, found.about.language), HERE / runs.PRETRAINED)
    kept = accuracy(network.eval(), found.validation.of(torch.arange(settings.validated[0])))
    done: dict[str, Any] = {
        first.key: {
            "history": [{"update": 0, "validation": kept}],
            "accuracy": runs.zero_shot(network, found, settings.tested[0]),
            "commit": figures.commit(),
        }
    }
    tunings = [first._replace(system=name) for name in TUNED[first.split]]
    with Progress() as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task("tuning", total=len(tunings) * settings.tuning[first.split].updates)
        for job in tunings:
            runs.load(network, HERE / runs.PRETRAINED)
            done[job.key] = runs.tuned(
                job, settings, network, found, Path(folder), lambda count: bar.advance(task, count)
            )
    return {"settings": settings._asdict(), "machine": machine.describe(threads, "cpu"), "runs": done}
