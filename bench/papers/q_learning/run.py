"""Q-learning of the equizero paper: plain, equitune and equizero on Gridworld, CartPole and Acrobot.

``python bench/papers/q_learning/run.py`` trains and evaluates what is not done yet, then writes the results, a
table and a plot; ``--help`` shows the options.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("stable_baselines3", "gymnasium", "rich", "matplotlib")
SEEDS = 5


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    from bench.papers.options import add_lengths  # its folder is known when it runs

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_lengths(arguments, "one seed and few steps: shows that it runs, no more")
    arguments.add_argument("--seeds", type=int, nargs="+", default=None, metavar="N", help="seeds to train (0 … 4)")
    arguments.add_argument("--tasks", nargs="+", default=None, metavar="TASK", help="environments to train (all)")
    arguments.add_argument(
        "--work", type=Path, default=HERE / "work", metavar="DIR", help="checkpoints, to go on from (%(default)s)"
    )
    arguments.add_argument(
        "--output", type=Path, default=HERE / "results", metavar="DIR", help="results, table and plot (%(default)s)"
    )
    arguments.add_argument("--report", action="store_true", help="train nothing: results of the jobs that are finished")
    arguments.add_argument("--readme", action="store_true", help="no more than the README's figures, from the results")
    return arguments


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from bench.papers.q_learning import report

        return report.update(HERE / "README.md", options.output / "results.json")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'{", ".join(missing)} not installed: pip install -c constraints.txt -e ".[rl]"', file=sys.stderr)
        return 2
    import torch
    from bench.papers.q_learning import report, train
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    torch.set_num_threads(1)  # nets this small are slower with more
    tasks = options.tasks or list(train.TASKS)
    unknown = [name for name in tasks if name not in train.TASKS]
    if unknown:
        print(f"--tasks: expected some of {', '.join(train.TASKS)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    folder = options.work / ("quick" if options.quick else "full")
    seeds = options.seeds if options.seeds is not None else range(1 if options.quick else SEEDS)
    jobs = [] if options.report else [train.job(name, seed, options.quick) for seed in seeds for name in tasks]
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bars:
        overall = bars.add_task("all", total=sum(job.steps for job in jobs))
        before = 0
        for job in jobs:
            bar = bars.add_task(job.name, total=job.steps)

            def tell(steps: int, bar: object = bar, before: int = before) -> None:
                bars.update(bar, completed=steps)  # type: ignore[arg-type]
                bars.update(overall, completed=before + steps)

            train.run(job, folder, tell)
            before += job.steps
            bars.update(bar, completed=job.steps)
            bars.update(overall, completed=before)
            if not sys.stdout.isatty():
                print(f"{job.name} done", flush=True)
    results = report.collect(folder, options.output / ("quick.json" if options.quick else "results.json"))
    for path in report.write(results, options.output):
        print(path)
    print(report.table(results))
    return 0


if __name__ == "__main__":
    sys.path.append(str(HERE.parents[2]))
    sys.exit(main())
