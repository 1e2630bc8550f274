"""The command: options, the volumes with their progress bar, the results file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.papers import options as shared

HERE = Path(__file__).resolve().parent
CROPS = 5
FULL: dict[str, Any] = {"shape": (10, 128, 128), "platelets": 80, "seed": 100}  # the first volume's, the others follow
QUICK: dict[str, Any] = {"shape": (4, 48, 48), "platelets": 10, "seed": 0}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/forwards/volumes",
        description="a trained 3D U-Net: the mean of 8 views beside 1 to 3 views after canonicalisation",
    )
    shared.add_lengths(arguments, "one small volume: half a minute")
    arguments.add_argument("--crops", type=shared.count, metavar="N", help=f"how many volumes ({CROPS}, quick 1)")
    shared.add_output(arguments, HERE, 1)
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    from bench.papers import figures

    if options.readme:
        from . import report

        return figures.update_from(HERE, "volumes", report)
    if lacking := shared.missing(("matplotlib", "rich")):
        return shared.complain(lacking, '".[bench]"')
    try:
        return measured(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def measured(options: argparse.Namespace) -> int:
    """Measure what is not there yet and write the results; the output's folder keeps every volume that is done.

    Raises:
        FileNotFoundError: the network's package is not installed.
        ValueError: the folder's results were made with other settings.
    """
    import torch
    from bench.ops import machine
    from bench.papers import figures
    from bench.papers.checkpoint import Checkpoint
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from . import measure, network, report

    torch.set_num_threads(options.threads)
    settings = {**(QUICK if options.quick else FULL), "pages_kept": machine.keep_pages()}
    count = options.crops or (1 if options.quick else CROPS)
    seeds = range(settings["seed"], settings["seed"] + count)
    name = "quick" if options.quick else "volumes"
    net = network.trained()
    about = machine.describe(options.threads, "cpu")
    depends = {**settings, "commit": about["commit"], "threads": options.threads}
    done = Checkpoint(options.output / f"{name}.checkpoint.jsonl", depends)
    columns = TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=sum(measure.cost(seed == seeds[0]) for seed in seeds))
        for seed in seeds:
            bar.update(task, description=f"volume {seed - seeds[0] + 1} of {count}")
            if str(seed) in done:
                bar.advance(task, measure.cost(seed == seeds[0]))
                continue
            start = time.perf_counter()
            found = measure.measured(net, seed, settings, seed == seeds[0], lambda n: bar.advance(task, n))
            done[str(seed)] = found | {"took": time.perf_counter() - start}
    about["load_at_end"] = os.getloadavg()[0]
    results: dict[str, Any] = {
        "settings": settings,
        "machine": about,
        "took": round(sum(done[str(seed)]["took"] for seed in seeds)),
        "parameters": sum(p.numel() for p in net.parameters()),
        "crops": {str(seed): done[str(seed)] for seed in seeds},
    }
    return figures.keep(results | {"curves": report.curves(results)}, options.output / name, report)
