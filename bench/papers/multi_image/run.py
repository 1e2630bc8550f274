"""Several rotated images classified together (arXiv 2310.09675), and what a product of groups costs.

``python bench/papers/multi_image/run.py`` trains what is not done yet, measures the costs, writes the results, two
tables and a plot; ``--help`` shows the options.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("rich", "matplotlib", "numpy")
SEEDS = range(1, 6)  # 0 was looked at while the networks were chosen


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    from bench.papers.options import add_lengths, count  # its folder is known when it runs

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_lengths(arguments, "one seed, pairs of images, few steps: that it runs")
    arguments.add_argument("--seeds", type=int, nargs="+", default=None, metavar="N", help="seeds to train (1 … 5)")
    arguments.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads (%(default)s)")
    arguments.add_argument(
        "--work", type=Path, default=HERE / "work", metavar="DIR", help="finished trainings, kept (%(default)s)"
    )
    arguments.add_argument(
        "--output", type=Path, default=HERE / "results", metavar="DIR", help="results, tables, plot (%(default)s)"
    )
    arguments.add_argument("--readme", action="store_true", help="no more than the README's figures, from the results")
    return arguments


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from bench.papers.multi_image import report

        return report.update(HERE / "README.md", options.output / "results.json")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'{", ".join(missing)} not installed: pip install -c constraints.txt -e ".[bench]"', file=sys.stderr)
        return 2
    import torch
    from bench.papers import figures
    from bench.papers.multi_image import cost, report, train
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    torch.set_num_threads(options.threads)
    seeds = options.seeds if options.seeds is not None else SEEDS[: 1 if options.quick else None]
    sizes = train.IMAGES[:1] if options.quick else train.IMAGES
    jobs = [train.job(name, seed, size, options.quick) for seed in seeds for size in sizes for name in train.SYSTEMS]
    folder = options.work / ("quick" if options.quick else "full")
    columns = (
        TextColumn("{task.description:52}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    runs = []
    try:
        with Progress(*columns) as bars:
            for job in jobs:
                bar = bars.add_task(job.name, total=job.steps)
                runs.append(train.run(job, folder, lambda step, bar=bar: bars.update(bar, completed=step)))  # type: ignore[misc]
                bars.update(bar, completed=job.steps)
                if not sys.stdout.isatty():
                    print(f"{job.name} done", flush=True)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    costs = cost.measure(cost.QUICK if options.quick else cost.ORDERS, 3 if options.quick else 15)
    path = options.output / ("quick.json" if options.quick else "results.json")
    results = report.written(runs, costs, path)
    print(path, report.plotted(results, path), sep="\n")
    figures.show(report.tables(results))
    return 0


if __name__ == "__main__":
    sys.path.append(str(HERE.parents[2]))
    sys.exit(main())
