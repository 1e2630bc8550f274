"""The command: options, the seeds with their progress bar, the results file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..options import add_lengths, add_output, complain, count, missing

HERE = Path(__file__).resolve().parent
SEEDS = 5
FULL = {"steps": 2800, "lambda_steps": 1000, "tune_steps": 1000, "test_images": 10_000}
QUICK = {"steps": 400, "lambda_steps": 200, "tune_steps": 100, "test_images": 2000}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/fashion",
        description="a small CNN trained on upright Fashion-MNIST, made invariant to quarter turns in four ways",
    )
    add_lengths(arguments, "one seed, a short training: a minute")
    arguments.add_argument("--seeds", type=count, metavar="N", help=f"how many networks ({SEEDS}, quick 1)")
    add_output(arguments, HERE, 2)
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update_from(HERE, "fashion", report)
    if lacking := missing(("matplotlib", "rich")):
        return complain(lacking, '".[bench]"')
    from .. import figures
    from . import report

    settings = QUICK if options.quick else FULL
    seeds = range(options.seeds or (1 if options.quick else SEEDS))
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / ("quick" if options.quick else "fashion")
    try:
        results = measured(settings, seeds, options.threads, stem.with_suffix(".partial.json"))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    return figures.keep(results, stem, report)


def measured(settings: dict[str, int], seeds: range, threads: int, saved: Path) -> dict[str, Any]:
    """Everything that the results file holds; ``saved`` keeps every seed that is done, and a stopped run goes on."""
    import torch
    from bench.ops import machine
    from rich.progress import Progress

    from . import network
    from .data import images_and_labels

    torch.set_num_threads(threads)
    about = machine.describe(threads, "cpu")
    data = {"train": images_and_labels("train"), "test": images_and_labels("t10k", settings["test_images"])}
    runs: list[dict[str, Any]] = []
    if saved.exists():  # a run that was stopped goes on
        kept = json.loads(saved.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            runs = [run for run in kept["runs"] if run["seed"] in seeds]
    start = time.perf_counter()
    work = settings["steps"] + 2 * settings["lambda_steps"] + 2 * settings["tune_steps"]
    with Progress() as progress:
        task = progress.add_task("training", total=work * len(seeds), completed=work * len(runs))
        for seed in seeds:
            if any(run["seed"] == seed for run in runs):
                continue
            runs.append(network.one_seed(seed, settings, data, lambda: progress.advance(task)))
            saved.write_text(json.dumps({"settings": settings, "runs": runs}), encoding="utf-8")
    saved.unlink(missing_ok=True)
    return {
        "settings": settings,
        "machine": about,
        "seconds": round(time.perf_counter() - start),
        "runs": sorted(runs, key=lambda run: run["seed"]),
    }
