"""The command: options, the parts with their progress bar, the results file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..options import add_lengths, add_output, complain, missing

HERE = Path(__file__).resolve().parent
NEEDED = ("matplotlib", "rich", "transformers")
FULL: dict[str, Any] = {
    "seeds": [1, 2, 3],  # 0 was looked at while the parts were written, 1 in short runs
    "flow": {"steps": 1500, "points": 4000, "side": 240, "samples": 50_000, "jacobians": 200, "picture": 48},
    "sequences": {"samples": 4000, "context_words": 2},
}
QUICK: dict[str, Any] = {
    "seeds": [1],
    "flow": {"steps": 30, "points": 200, "side": 40, "samples": 2000, "jacobians": 20, "picture": 12},
    "sequences": {"samples": 50, "context_words": 1},
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/propositions",
        description="equizero of a flow and of a language model, and the dimensions of linear equivariant maps",
    )
    add_lengths(arguments, "one seed, hardly trained: shows that it runs")
    add_output(arguments, HERE, 1)
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update_from(HERE, "propositions", report)
    if lacking := missing(NEEDED):
        return complain(lacking, '".[bench,lm]"')
    from .. import figures
    from . import report

    stem = options.output / ("quick" if options.quick else "propositions")
    try:
        results = measured(QUICK if options.quick else FULL, options.threads, stem.with_suffix(".checkpoint.jsonl"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return figures.keep(results, stem, report, None)


def measured(settings: dict[str, Any], threads: int, saved: Path) -> dict[str, Any]:
    """Everything that the results file holds; what is in the checkpoint is not measured again."""
    import torch
    from bench.ops import machine
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from . import flow, ranks, sequences

    torch.set_num_threads(threads)
    done = Checkpoint(saved, settings)
    about = machine.describe(threads, "cpu")
    with Progress(TextColumn("{task.description:24}"), BarColumn(30), TimeElapsedColumn()) as bars:
        for seed in settings["seeds"]:
            bar = bars.add_task(f"flows, seed {seed}", total=2 * settings["flow"]["steps"])
            if f"flow/{seed}" not in done:
                made = flow.systems(settings["flow"]["steps"], seed, lambda bar=bar: bars.advance(bar))  # type: ignore[misc]
                done[f"flow/{seed}"] = {
                    name: flow.measure(model, settings["flow"], seed) for name, model in made.items()
                }
                if seed == settings["seeds"][0]:
                    side = settings["flow"]["picture"]
                    done["pictures"] = {name: flow.pictures(model, side) for name, model in made.items()}
            bars.update(bar, completed=2 * settings["flow"]["steps"])
            bar = bars.add_task(f"sequences, seed {seed}", total=1)
            if f"sequences/{seed}" not in done:
                done[f"sequences/{seed}"] = sequences.measure(seed, **settings["sequences"])
            bars.advance(bar)
        bar = bars.add_task("linear maps", total=len(ranks.multi_input_cases()) + len(ranks.product_cases()))
        if "ranks" not in done:
            done["ranks"] = ranks.measure(settings["seeds"][0], lambda: bars.advance(bar))
    return {
        "settings": settings,
        "machine": about,
        "flow": {seed: done[f"flow/{seed}"] for seed in settings["seeds"]},
        "pictures": done["pictures"],
        "sequences": {seed: done[f"sequences/{seed}"] for seed in settings["seeds"]},
        "ranks": done["ranks"],
    }
