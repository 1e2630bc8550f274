"""An SO(2)-invariant regression: a plain MLP, the same with canonical inputs, and canonical-λ-equitune.

``python bench/papers/canonical`` trains each of them on ``sin‖x1‖ − ‖x2‖³/2 + x1·x2/(‖x1‖‖x2‖)`` of two planar vectors,
for each seed on data of its own, and measures the squared error on as many fresh points, and how much a prediction
changes when both vectors are turned. Settings, versions and every figure go to a JSON file, with a plot beside it;
``--readme`` writes them into the README. ``--quick`` takes one seed, fewer epochs and one size of Θ. A run that was
stopped goes on from what it has in ``canonical.partial.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import equikern
import torch
from equikern import CanonicalLambdaEquiTune, vector_frame
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

FOLDER = Path(__file__).parent
START, END = "<!-- figures: begin -->", "<!-- figures: end -->"
WIDTH = 200  # of the paper's network: 162,001 parameters
WIDTH_BESIDE_LAMBDA, WIDTH_OF_LAMBDA = 198, 38  # which have 161,990 together
RATE = 1e-3
PAPER = {"plain": "0.91", "canonical": "0.41"}
FRAMES = {"first": vector_frame, "sum": lambda x: vector_frame(x.sum(1, keepdim=True))}


class Residual(nn.Module):
    """x + relu(linear(x))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, size) → (N, size)."""
        y: Tensor = x + self.linear(x).relu()
        return y


def network(width: int, blocks: int) -> nn.Sequential:
    """Linear maps with residual ones between: two vectors (N, 2, 2) → one number (N, 1)."""
    between = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), *between, nn.Linear(width, 1))


def turns(angles: Tensor) -> Tensor:
    """The rotations by angles (n,): (n, 2, 2)."""
    c, s = angles.cos(), angles.sin()
    return torch.stack((c, -s, s, c), -1).reshape(-1, 2, 2)


def system(name: str) -> nn.Module:
    """A model by its name in the tables, such as ``"canonical-λ, sum, |Θ| = 4"``.

    In the middle is the vector whose angle h(x) is, the first or the sum; behind it how many even angles Θ has.
    """
    if name == "plain":
        return network(WIDTH, 4)
    kind, frame, *size = name.split(", ")
    count = int(size[0].rpartition(" ")[2]) if size else 1
    theta = turns(2 * math.pi * torch.arange(count, dtype=torch.float64) / count)
    if kind == "canonical":
        return CanonicalLambdaEquiTune(network(WIDTH, 4), FRAMES[frame], theta, None)
    return CanonicalLambdaEquiTune(network(WIDTH_BESIDE_LAMBDA, 4), FRAMES[frame], theta, network(WIDTH_OF_LAMBDA, 2))


def names(sizes: list[int]) -> list[str]:
    """The systems of a run."""
    found = ["plain"]
    for frame in FRAMES:
        found += [f"canonical, {frame}", *(f"canonical-λ, {frame}, |Θ| = {count}" for count in sizes)]
    return found


def data(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal vectors (count, 2, 2), and the function's values (count, 1)."""
    x = torch.randn(count, 2, 2, generator=generator)
    a, b = x.norm(dim=-1).unbind(1)
    return x, (a.sin() - b**3 / 2 + (x[:, 0] * x[:, 1]).sum(-1) / (a * b)).unsqueeze(1)


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean squared error."""
    return float((model(x) - y).square().mean())


@torch.no_grad()
def change(model: nn.Module, x: Tensor, generator: torch.Generator) -> float:
    """Root mean square of how much predictions change when every input is turned by an angle of its own."""
    g = turns(2 * math.pi * torch.rand(len(x), generator=generator))
    return float((model(x @ g.mT) - model(x)).square().mean().sqrt())


def train(name: str, seed: int, options: argparse.Namespace, advance: Any) -> dict[str, Any]:
    """One model from scratch: its errors after each epoch, and what a turn changes at the end."""
    generator = torch.Generator().manual_seed(seed)
    x, y = data(options.samples, generator)
    unseen = data(options.samples, generator)
    torch.manual_seed(seed)
    model = system(name)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    errors = []
    for _ in range(options.epochs):
        for some in torch.randperm(len(x), generator=generator).split(options.batch):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[some]), y[some]).backward()
            optimizer.step()
        errors.append(error(model, *unseen))
        advance()
    return {
        "seed": seed,
        "train error": error(model, x, y),
        "test error": errors[-1],
        "change under a turn": change(model, unseen[0], generator),
        "test error by epoch": errors,
    }


def picture(record: dict[str, Any], path: Path) -> None:
    """Test errors by epoch, the mean over the seeds and each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for k, (name, runs) in enumerate(record["systems"].items()):
        curves = torch.tensor([run["test error by epoch"] for run in runs])
        epochs = range(1, curves.shape[1] + 1)
        for curve in curves:
            axes.plot(epochs, curve, color=f"C{k}", alpha=0.25, linewidth=0.8)
        axes.plot(epochs, curves.mean(0), color=f"C{k}", label=name)
    axes.set(xlabel="epoch", ylabel="squared error on unseen points", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def paper(name: str) -> str:
    """The paper's test error of a system."""
    return PAPER.get(name.partition(",")[0], "0.11–0.37")


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table: system, paper, test error and its spread, training error, change under a turn."""

    def cell(runs: list[dict[str, Any]], key: str) -> str:
        values = [run[key] for run in runs]
        spread = f" ({statistics.stdev(values):.2g})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2g}{spread}"

    keys = ("test error", "train error", "change under a turn")
    return [(name, paper(name), *(cell(runs, key) for key in keys)) for name, runs in record["systems"].items()]


HEADS = ("system", "paper", "test error (sd)", "training error (sd)", "change under a turn (sd)")


def figures(record: dict[str, Any]) -> str:
    """What the README says of a run."""
    s = record["settings"]
    lines = [
        f"{len(s['seeds'])} seeds, {s['epochs']} epochs, {s['samples']:,} training and test points each, batches of "
        f"{s['batch']}, Adam with rate {s['rate']}:",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|---|---:|---:|---:|---:|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(record)),
    ]
    return "\n".join(lines)


def with_figures(text: str, record: dict[str, Any]) -> str:
    """A README with the figures of a run between its markers."""
    head, _, rest = text.partition(START)
    return f"{head}{START}\n{figures(record)}\n{END}{rest.partition(END)[2]}"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from bench.papers.options import add_lengths, count  # its folder is known when it runs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_lengths(parser, "one seed, 15 epochs, |Θ| = 4: less than 2 minutes")
    parser.add_argument("--seeds", type=count, help="how many (5)")
    parser.add_argument("--epochs", type=count, help="passes over the training points (100)")
    parser.add_argument("--samples", type=count, default=10_000, help="training points, and test points (%(default)s)")
    parser.add_argument("--batch", type=count, default=500, help="points of a step (%(default)s)")
    parser.add_argument("--theta", type=count, nargs="+", help="sizes of Θ (2 4 8 16)")
    parser.add_argument("--threads", type=count, default=2, help="of torch (%(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="folder of the JSON file and the plot")
    parser.add_argument("--readme", action="store_true", help="only write the figures of results/ into the README")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else 5)
    options.epochs = options.epochs or (15 if options.quick else 100)
    options.theta = options.theta or ([4] if options.quick else [2, 4, 8, 16])
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, print, write."""
    options = parsed(arguments)
    console = Console()
    if options.readme:
        readme = FOLDER / "README.md"
        record = json.loads((FOLDER / "results/canonical.json").read_text())
        readme.write_text(with_figures(readme.read_text(), record))
        return
    torch.set_num_threads(options.threads)
    systems = names(options.theta)
    settings = {"epochs": options.epochs, "samples": options.samples, "batch": options.batch, "rate": RATE}
    settings |= {"parameters": {name: sum(p.numel() for p in system(name).parameters()) for name in systems}}
    stem = options.output / ("canonical-quick" if options.quick else "canonical")
    options.output.mkdir(parents=True, exist_ok=True)
    partial = stem.with_suffix(".partial.json")
    kept = json.loads(partial.read_text()) if partial.exists() else {}
    runs = kept["runs"] if kept.get("settings") == settings else []
    with Progress(console=console) as progress:
        whole = progress.add_task("", total=options.seeds * len(systems))
        for seed in range(options.seeds):
            for name in systems:
                if not any(run["system"] == name and run["seed"] == seed for run in runs):
                    task = progress.add_task(f"{name}, seed {seed}", total=options.epochs)
                    run = train(name, seed, options, lambda task=task: progress.advance(task))
                    runs.append({"system": name, **run})
                    progress.remove_task(task)
                    partial.write_text(json.dumps({"settings": settings, "runs": runs}, ensure_ascii=False))
                progress.advance(whole)
    seeds = range(options.seeds)
    by_system = {name: {run["seed"]: run for run in runs if run["system"] == name} for name in systems}
    record = {
        "settings": {"seeds": [*seeds], **settings},
        "versions": {
            "equikern": equikern.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "backend": equikern.active_backend(),
        },
        "systems": {name: [by_system[name][seed] for seed in seeds] for name in systems},
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    picture(record, stem.with_suffix(".png"))
    partial.unlink(missing_ok=True)
    table = Table(*HEADS)
    for row in rows(record):
        table.add_row(*row)
    console.print(table)
    console.print(f"written: {stem}.json and .png")


if __name__ == "__main__":
    sys.path.append(str(FOLDER.resolve().parents[2]))
    main()
