"""Rotated Fashion-MNIST: a small CNN trained upright, then made invariant to quarter turns in four ways.

``python bench/papers/fashion`` trains the CNN here on upright images, for each seed anew, and measures its accuracy on
the test images, each turned by a random multiple of 90°: plain, equitune, equizero and λ-equitune. Only λ learns
anything more, and in the last row the backbone with it, as in the two stages of the paper. Settings, versions and every
figure go to a JSON file, with a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equikern
import torch
from data import CLASSES, images_and_labels
from equikern import EquiTune, EquiZero, LambdaEquiTune, grid, train_backbone, train_weights
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

C4 = grid("c4")
BATCH = 128
RESULTS = Path(__file__).parent / "results"
SYSTEMS = ("plain, upright", "plain", "equitune", "equizero", "λ-equitune", "λ-equitune, tuned")


def network() -> nn.Sequential:
    """Three convolutions and two linear layers; "features" gives the 64 numbers that λ reads."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()),
        *(nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, len(CLASSES))),
    )


FEATURES = "11"  # behind the second last ReLU


def batches(x: Tensor, labels: Tensor, steps: int, size: int, generator: torch.Generator) -> Any:
    """So many random batches, in epochs."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        some, order = order[:size], order[size:]
        yield x[some], labels[some]


def fit(
    model: nn.Module,
    parameters: list[nn.Parameter],
    data: tuple[Tensor, Tensor],
    steps: int,
    rate: float,
    generator: torch.Generator,
    advance: Callable[[], None],
    momentum: bool = False,
) -> None:
    """Cross-entropy on random batches: Adam with a falling rate, or the papers' SGD with momentum 0.9."""
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, rate, momentum=0.9) if momentum else torch.optim.Adam(parameters, rate)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for x, labels in batches(*data, steps, BATCH if not momentum else 32, generator):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        schedule.step()
        advance()
    model.eval()


@torch.inference_mode()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    right = [(model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(500), labels.split(500), strict=True)]
    return sum(right) / len(x)


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image turned by a random multiple of 90°."""
    k = torch.randint(4, (len(x),), generator=generator)
    return torch.stack([C4.act(int(g), image) for g, image in zip(k, x, strict=True)])


def one_seed(seed: int, settings: dict[str, int], data: dict[str, Any], advance: Callable[[], None]) -> dict[str, Any]:
    """Accuracies of every system for a network trained from one seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = network()
    fit(backbone, list(backbone.parameters()), data["train"], settings["steps"], 2e-3, generator, advance)
    upright, labels = data["test"]
    x = turned(upright, generator)
    found = {"plain, upright": accuracy(backbone, upright, labels), "plain": accuracy(backbone, x, labels)}
    found["equitune"] = accuracy(EquiTune(backbone, C4, "trivial"), x, labels)
    found["equizero"] = accuracy(EquiZero(backbone, C4, "trivial", loss="max_prob"), x, labels)
    weighted = LambdaEquiTune(backbone, C4, "trivial", 64, FEATURES)
    parameters = train_weights(weighted)
    fit(weighted, parameters, data["train"], settings["lambda_steps"], 0.1, generator, advance, momentum=True)
    found["λ-equitune"] = accuracy(weighted, x, labels)
    trust = weighted.weights(upright[:1000]).mean(1).tolist()  # by the angle that an upright image is turned by
    parameters = train_backbone(weighted)
    fit(weighted, parameters, data["train"], settings["tune_steps"], 2e-3, generator, advance, momentum=True)
    found["λ-equitune, tuned"] = accuracy(weighted, x, labels)
    return {"seed": seed, "accuracy": found, "trust": trust}


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds."""
    by_system = {name: [run["accuracy"][name] for run in runs] for name in SYSTEMS}
    return {
        name: {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        for name, values in by_system.items()
    }


def table(found: dict[str, Any]) -> Table:
    """Accuracy by system."""
    count = len(found["runs"])
    shown = Table(title=f"Fashion-MNIST, test images at random quarter turns ({count} seed{'s' * (count > 1)})")
    shown.add_column("system")
    shown.add_column("accuracy, %", justify="right")
    for name, value in found["summary"].items():
        shown.add_row(name, f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}")
    trust = [statistics.mean(run["trust"][g] for run in found["runs"]) for g in range(4)]
    shown.caption = "λ of an upright image's views: " + ", ".join(
        f"{name} {value:.2f}" for name, value in zip(C4.group.names, trust, strict=True)
    )
    return shown


def plot(found: dict[str, Any], path: Path) -> None:
    """Bars of the accuracies, and of what λ trusts."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 1), constrained_layout=True)
    values = found["summary"]
    bars = left.barh(
        list(values)[::-1],
        [100 * v["mean"] for v in values.values()][::-1],
        xerr=[100 * v["sd"] for v in values.values()][::-1],
        color="#4477aa",
    )
    left.bar_label(bars, fmt="%.1f", padding=4)
    left.set_xlim(0, 105)
    left.set_xlabel("accuracy, %")
    left.set_title("test images at random quarter turns")
    trust = [statistics.mean(run["trust"][g] for run in found["runs"]) for g in range(4)]
    right.bar(["0°", "90°", "180°", "270°"], trust, color="#cc6677")
    right.set_title("λ of an upright image's views")
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(prog="python bench/papers/fashion", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a short training: a minute")
    parser.add_argument("--seeds", type=int, default=None, help="how many networks (default 5, quick 1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    console = Console()
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, got {options.seeds}")
    torch.set_num_threads(options.threads)
    settings = (
        {"steps": 400, "lambda_steps": 200, "tune_steps": 100, "test_images": 2000}
        if options.quick
        else {"steps": 2800, "lambda_steps": 1000, "tune_steps": 1000, "test_images": 10_000}
    )
    try:
        data = {"train": images_and_labels("train"), "test": images_and_labels("t10k", settings["test_images"])}
    except FileNotFoundError as error:
        console.print(f"[red]{error}")
        return 2
    seeds = range(options.seeds or (1 if options.quick else 5))
    name = "quick" if options.quick else "fashion"
    path, saved = options.output / f"{name}.json", options.output / f"{name}.partial.json"
    options.output.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    if saved.exists():  # a run that was stopped goes on
        kept = json.loads(saved.read_text())
        if kept["settings"] == settings:
            runs = [run for run in kept["runs"] if run["seed"] in seeds]
    start = time.perf_counter()
    work = settings["steps"] + settings["lambda_steps"] + settings["tune_steps"]
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=work * len(seeds), completed=work * len(runs))
        for seed in seeds:
            if any(run["seed"] == seed for run in runs):
                continue
            runs.append(one_seed(seed, settings, data, lambda: progress.advance(task)))
            saved.write_text(json.dumps({"settings": settings, "runs": runs}))
    found = {
        "settings": settings,
        "summary": summary(runs),
        "runs": sorted(runs, key=lambda run: run["seed"]),
        "seconds": round(time.perf_counter() - start),
        "versions": {"equikern": equikern.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    saved.unlink(missing_ok=True)
    plot(found, path.with_suffix(".png"))
    console.print(table(found))
    console.print(f"{path} and {path.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
