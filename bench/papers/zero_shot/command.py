"""The command: options, the steps with their progress bars, the results file."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..options import add_lengths, add_output, complain, missing
from . import data
from .names import WORDINGS, answers, candidates

HERE = Path(__file__).resolve().parent
FULL: dict[str, Any] = {"images": 20, "groups": ("c4", "flips", "d4"), "seeds": 5, "folds": 5}
QUICK: dict[str, Any] = {"images": 2, "groups": ("c4",), "seeds": 1, "folds": 2}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/zero_shot",
        description="EfficientNet-lite0 on rotated and flipped images: classification and an image-text proxy",
    )
    add_lengths(arguments, f"{QUICK['images']} images under C4, one seed: shows that it runs, no more")
    add_output(arguments, HERE, 2, "results and picture")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from .. import figures
        from . import report

        return figures.update_from(HERE, "zero_shot", report)
    if lacking := missing(data.PACKAGES):
        return complain(lacking, f'".[zero-shot]" && pip install --no-deps {data.BESIDE}')
    from .. import figures
    from . import picture, report

    results = measured(QUICK if options.quick else FULL, options.threads)
    path: Path = options.output / ("quick.json" if options.quick else "zero_shot.json")
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(written(results), encoding="utf-8")
    picture.save(results, path.with_suffix(".png"))
    figures.show(report.tables(results))
    print(f"{path} and {path.with_suffix('.png').name}")
    return 0


def written(results: dict[str, Any]) -> str:
    """The results as JSON, with every row on a line of its own.

    Example:
        >>> print(written({"labels": [1], "rows": [{"a": [1, 2]}, {"a": []}]}))
        {
         "labels": [1],
         "rows": [
          {"a": [1, 2]},
          {"a": []}
         ]
        }
        <BLANKLINE>
    """
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in results.items() if key != "rows"]
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in results["rows"])
    return "{\n " + ",\n ".join([*lines, f'"rows": [\n  {rows}\n ]']) + "\n}\n"


def measured(settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """Everything that the results file holds."""
    import torch
    from bench.ops import machine
    from equikern import grid, orbit
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..fairness.proxies import MiniLM
    from . import systems
    from .report import CLASSIFICATION, IMAGE_TEXT

    torch.set_num_threads(threads)
    about = machine.describe(threads, "cpu") | {name: version(name) for name in data.PACKAGES.values()}
    actions = {name: grid(name) for name in settings["groups"]}
    images, labels = data.images()[: settings["images"]], data.labels()[: settings["images"]]
    network = systems.Remembered(data.network(), "_dropout")
    rows: list[dict[str, Any]] = []
    columns = TextColumn("{task.description:40.40}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as bar:
        widest = max(actions.values(), key=lambda action: action.order)
        step = bar.add_task("the network on every view", total=len(images) * widest.order)
        for view in orbit(images, widest):
            for some in view.split(systems.BATCH):
                network(some)
                bar.advance(step, len(some))

        def add(task: str, group: str, system: str, found: list[list[int]], names: str = "", seed: int = 0) -> None:
            place = {"task": task, "group": group, "system": system, "names": names, "seed": seed}
            rows.append({**place, "predictions": found})

        step = bar.add_task(CLASSIFICATION, total=6 * len(actions))
        for group, action in actions.items():
            for name, system in systems.classifiers(network, action).items():
                bar.update(step, description=f"{CLASSIFICATION}: {group}, {name}")
                add(CLASSIFICATION, group, name, systems.predictions(system, images, action))
                bar.advance(step)

        step = bar.add_task(IMAGE_TEXT, total=len(WORDINGS) * len(actions) * (3 + settings["seeds"]))
        text_model = MiniLM()
        classes = text_model.embed(data.class_names())
        for group, action in actions.items():
            for wording in WORDINGS:
                proxy = systems.ImageText(network, classes, text_model.embed(candidates(wording)))
                for name, system in systems.image_text(proxy, action).items():
                    bar.update(step, description=f"{IMAGE_TEXT}: {group}, {name}")
                    add(IMAGE_TEXT, group, name, systems.predictions(system, images, action), wording)
                    bar.advance(step)
                wanted = torch.tensor(answers(wording, labels))
                for seed in range(settings["seeds"]):
                    bar.update(step, description=f"{IMAGE_TEXT}: {group}, λ-equitune")
                    found = systems.weighted(proxy, network.features, action, images, wanted, settings["folds"], seed)
                    add(IMAGE_TEXT, group, "λ-equitune", found, wording, seed)
                    bar.advance(step)
    rows.sort(key=lambda row: (row["task"], [*actions].index(row["group"])))
    return {
        "settings": {
            **settings,
            "groups": {name: action.group.names for name, action in actions.items()},
            "top": systems.TOP,
            "weights": {"steps": systems.STEPS, "rate": systems.RATE, "scale": systems.SCALE},
        },
        "machine": about,
        "labels": labels,
        "names": {wording: candidates(wording) for wording in WORDINGS},
        "rows": rows,
    }
