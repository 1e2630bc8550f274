"""The tables of ``bench/papers/README.md``: the papers' numbers beside ours, from the experiments' results and reports.

What an experiment's ``report`` has of the papers' numbers is taken from there; the others are here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .figures import Table, markdown, middle, newest, show, update

HERE = Path(__file__).resolve().parent
NOT_YET = "–"
TUNING = {"AlexNet": (88.9, 93.1), "VGG": (78.3, 91.0)}  # arXiv 2210.06475: plain and equi-tuned, turned test images
MULTI_IMAGE = {"plain CNN": 0.56, "multi-group CNN, IS layers": 0.695}  # arXiv 2310.09675, Caltech-101
ORDERS = {  # arXiv 2305.09900, from the lowest
    "q_learning": "plain < equitune < equizero",
    "classifiers": "equizero < equitune < λ-equitune",
}


def _report(name: str) -> Any:
    """An experiment's report, None where there is none."""
    module = f"bench.papers.{name}.report"
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        return None
    return importlib.import_module(module) if found else None


def _results(name: str, file: str) -> Any:
    """An experiment's results, None where there are none."""
    path = HERE / name / "results" / file
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def spread(values: list[float], digits: int = 1, sign: str = "") -> str:
    """Mean ± standard deviation over seeds; a dash where nothing is measured.

    Example:
        >>> spread([1.0, 2.0]), spread([1.0], 2), spread([])
        ('1.5 ± 0.7', '1.00', '–')
    """
    if not values:
        return NOT_YET
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"


def _seeds(counts: set[int]) -> str:
    """Over how many seeds, for a title.

    Example:
        >>> _seeds({5}), _seeds({3, 1}), _seeds(set())
        ('ours over 5 seeds', 'ours over 1 to 3 seeds', 'ours not measured yet')
    """
    if not counts - {0}:
        return "ours not measured yet"
    low, high = min(counts - {0}), max(counts)
    return f"ours over {low} seed{'s' * (low > 1)}" if low == high else f"ours over {low} to {high} seeds"


def tuning() -> list[Table]:
    """Fine-tuning against equi-tuning."""
    rows = [[f"{name}, paper", f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"] for name, (a, b) in TUNING.items()]
    report, results = _report("tuning"), _results("tuning", "tuning.json")
    counts: set[int] = set()
    if report is not None and results is not None:
        names = importlib.import_module("bench.papers.tuning.names")
        for case in names.CASES:
            for group in names.GROUPS:
                plain, equitune = (
                    report.accuracies(report.of(results["runs"], case, group, system, False), "turned")
                    for system in ("plain", "equitune")
                )
                gains = [equitune[seed] - plain[seed] for seed in plain if seed in equitune]
                cells = [report.spread(list(plain.values())), report.spread(list(equitune.values()))]
                cells.append(report.spread(gains, "+"))
                rows.append([f"{case}, {group}, ours", *cells])
                counts.add(len(plain))
    else:
        rows.append(["ours", *[NOT_YET] * 3])
    title = f"Accuracy on turned test images after tuning on upright ones, percent, {_seeds(counts)}"
    return [Table(title, ["", "plain fine-tuning", "equi-tuning", "difference"], rows)]


def fairness() -> list[Table]:
    """The largest gap between groups, perplexity, and whose samples are the other group's."""
    report = _report("fairness")
    path = report.largest(HERE / "fairness" / "results")
    results = json.loads(path.read_text(encoding="utf-8"))
    gaps, rows = results["gaps"], []
    proxies = list(dict.fromkeys(gap["proxy"] for gap in gaps))
    texts = {row["system"]: row for row in results["perplexity"]["values"]}
    pairs = list(dict.fromkeys(gap["pair"] for gap in gaps))
    for system in results["settings"]["systems"]:
        row = [system]
        for proxy in proxies:
            some = [gap for gap in gaps if (gap["system"], gap["proxy"]) == (system, proxy)]
            worst = max(some, key=lambda gap: abs(gap["mean_gap"]))
            row.append(f"{abs(worst['mean_gap']):.3f} ± {worst['standard_error']:.3f}, {worst['pair']}")
        row.append(f"{max(texts[system][pair] for pair in pairs):.2f}" if system in texts else "")
        row.append(f"{100 * min(results['transforms'][system][pair] for pair in pairs):.1f} %")
        rows.append(row)
    count = results["settings"]["samples"]
    columns = ["", *(f"largest gap, {proxy}" for proxy in proxies), "perplexity, at most", "samples alike, at least"]
    return [Table(f"Three pairs of groups, two kinds of contexts, ours with {count} samples a context", columns, rows)]


def intersectional() -> list[Table]:
    """Groups that differ in everything at once, and the perplexity of every text."""
    report = _report("fairness")
    results = json.loads(report.largest(HERE / "fairness" / "results").read_text(encoding="utf-8"))
    lines = report.joint_tables(results["intersectional"]) if "intersectional" in results else []
    lines += [report.text_table(results["texts"])] if "texts" in results else []
    if not lines:
        return [Table("Ours not measured yet", ["", "widest gap"], [[s, NOT_YET] for s in ("plain", "ProductEquiLM")])]
    return [Table(*each) for each in lines]


def scan() -> list[Table]:
    """SCAN: zero-shot, tuned, and the product of groups."""
    report, results = _report("scan"), _results("scan", "scan.json")
    names = importlib.import_module("bench.papers.scan.names")
    runs = {} if results is None else results["runs"]
    first, tuned = [], []
    counts: tuple[set[int], set[int]] = (set(), set())
    for (split, cell), papers in report.PAPER.items():
        found = report.of(runs, split, cell, "network")
        counts[0].add(len(found))
        row = [f"{split}, {cell}"]
        for system, (mean, deviation) in zip(names.SYSTEMS, papers, strict=True):
            row += [
                f"{mean:.1f} ± {deviation:.1f}" if deviation else f"{mean:.1f}",
                spread(report.accuracies(found, system)),
            ]
        first.append(row)
        row = [f"{split}, {cell}"]
        for system, value in zip(names.TUNED[split], report.PAPER_TUNED[split, cell], strict=True):
            found = report.of(runs, split, cell, system)
            counts[1].add(len(found))
            row += [f"{value:.1f}", spread(report.accuracies(found, system))]
        tuned.append(row)
    made = [
        Table(
            f"Zero-shot, test sentences translated exactly, percent, the papers' over 3 seeds, {_seeds(counts[0])}",
            ["", *(head for system in names.SYSTEMS for head in (f"{system}, paper", "ours"))],
            first,
        ),
        Table(
            f"After 10,000 iterations of tuning, {_seeds(counts[1])}",
            ["", *(head for system in names.TUNED["add_jump"] for head in (f"{system}, paper", "ours"))],
            tuned,
        ),
    ]
    return [*made, _scan_ii(report, names, runs)]


def _scan_ii(report: Any, names: Any, runs: Any) -> Table:
    systems = (*names.SYSTEMS, *names.PRODUCTS)
    rows, count = [], set()
    for cell in names.CELLS:
        found = report.of(runs, "scan_ii", cell, "network")
        if found or cell == "LSTM":
            count.add(len(found))
            rows.append([cell, *(spread(report.accuracies(found, system)) for system in systems)])
    return Table(f"SCAN-II, three groups, zero-shot, percent, {_seeds(count)}", ["", *systems], rows)


def q_learning() -> list[Table]:
    """Returns of greedy play at the end of training."""
    report, results = _report("q_learning"), _results("q_learning", "results.json")
    rows = []
    for task in report.tasks(results):
        runs = report.of(results, task)
        values = [[report.means(run, system)[-1] for run in runs] for system in report.COLORS]
        means = list(map(statistics.mean, values))
        steps = f"{sum(b > a for a, b in zip(*values[:2], strict=True))}, "
        steps += f"{sum(b > a for a, b in zip(*values[1:], strict=True))} of {len(runs)}"
        held = "holds" if means[0] < means[1] < means[2] else "with ≤" if means == sorted(means) else "does not hold"
        rows.append([report.TITLES[task], *map(report.cell, values), steps, held])
    columns = ["", *report.COLORS, "seeds in which each step is above 0", f"paper: {ORDERS['q_learning']}"]
    return [Table("Mean return, last evaluation, 5 seeds as in the paper", columns, rows)]


def zero_shot() -> list[Table]:
    """The image-text proxy and the classifier, as they were trained."""
    report, results = _report("zero_shot"), _results("zero_shot", "zero_shot.json")
    return [report.order(results)._replace(title="Shares of right answers, 20 images under every element")]


def fashion() -> list[Table]:
    """A CNN trained on upright images."""
    report, results = _report("fashion"), _results("fashion", "fashion.json")
    runs = results["runs"] if results else []

    def values(system: str) -> list[float]:
        return report.accuracies(runs, system) if runs and system in runs[0]["accuracy"] else []

    systems = [[system, spread(values(system))] for system in report.SYSTEMS]
    steps = []
    for low, high in report.STEPS:
        gains = [b - a for a, b in zip(values(low), values(high), strict=False)]
        above = f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else NOT_YET
        steps.append([f"{low} < {high}", spread(gains, 1, "+"), above])
    return [
        Table(f"Accuracy on turned test images, percent, {_seeds({len(runs)})}", ["", "ours"], systems),
        Table("What the paper finds, and ours", ["paper", "ours, points", "seeds in which above 0"], steps),
    ]


def canonical() -> list[Table]:
    """The regression with continuous rotations."""
    report = importlib.import_module("bench.papers.canonical.__main__")
    results = _results("canonical", "canonical.json")
    if results is None or "parameters" not in results["settings"]:  # of another network than the paper's
        rows = [[name, report.paper(name), NOT_YET, NOT_YET] for name in report.names([2, 4, 8, 16])]
        counts = set()
    else:
        rows = [[name, paper, test, moved] for name, paper, test, _, moved in report.rows(results)]
        counts = {len(results["settings"]["seeds"])}
    columns = ["", "test error, paper", "ours (sd)", "change under a turn (sd)"]
    return [Table(f"162,001 parameters, 100 epochs, {_seeds(counts)}", columns, rows)]


def cost() -> list[Table]:
    """Time and memory."""
    report = _report("cost")
    names = importlib.import_module("bench.papers.cost.names")
    found = newest(HERE / "cost" / "results")
    results, gpu = found.get("cpu"), found.get("cuda")
    theirs = [
        [name, *(f"{seconds:.2f} s, {memory} MB" for seconds, memory in systems.values())]
        for name, systems in report.PAPER.items()
    ]
    made = [Table("The paper's, on a GPU of theirs", ["", *report.PAPER["RN50"]], theirs)]
    if results is not None:
        tables = {title: report.case_table(title, results, gpu) for title in results["cases"]}
        rows = [[f"{title}: {row[0]}", *row[1:]] for title, table in tables.items() for row in table.rows]
    else:
        rows = [["ours", *[NOT_YET] * (len(names.WAYS) + 1)]]
    columns = ["", *names.WAYS, report.GPU]
    title = "Ours, one call on a CPU: seconds, median (range), and memory"
    if results is None:
        return [*made, Table(title, columns, rows)]
    title += f"; {results['settings']['rounds']} rounds, load {results['machine']['load_at_start']:.1f} at the start"
    return [*made, Table(title, columns, rows), report.ratios(results, gpu)]


def pipeline() -> list[Table]:
    """What a wrapper takes beside its backbone."""
    report = _report("pipeline")
    rows = []
    for kind in ("cpu", "cuda"):
        results = newest(HERE / "pipeline" / "results").get(kind)
        device = {"cpu": "CPU", "cuda": "GPU"}[kind]
        if results is None:
            rows.append([device, NOT_YET, NOT_YET])
            continue
        for group, found in results["groups"].items():
            for name, rounds in found["wrappers"].items():
                ratio = report.over(rounds, found["wrappers"]["equitune"]) if name == "λ-equitune" else []
                share = middle(report.outside(rounds), 2, 100)
                rows.append([f"{device}, {group}, {name}", share, middle(ratio, 2) if ratio else ""])
    return [Table("EfficientNet-lite0", ["", "beside the backbone, % of it", "λ-equitune over equitune"], rows)]


def propositions() -> list[Table]:
    """Propositions 1 and 2, and the dimensions of linear maps."""
    report, results = _report("propositions"), _results("propositions", "propositions.json")
    if report is None or results is None:
        columns = ["", "paper", "ours"]
        rows = [
            ["an autoregressive equizero", "equivariant", NOT_YET],
            ["an invertible equizero", "equivariant, invertible", NOT_YET],
            ["linear maps of several inputs", "dimension by its formula", NOT_YET],
        ]
        return [Table("Ours not measured yet", columns, rows)]
    flow = report.flow_table(results)
    return [
        flow._replace(rows=flow.rows[: len(report.ERRORS)]),
        *report.sequence_tables(results)[:1],
        *report.rank_tables(results),
    ]


def multi_image() -> list[Table]:
    """Sets of images, each turned by itself."""
    results = _results("multi_image", "results.json")
    runs = results["runs"] if results else []
    sizes = sorted({run["job"]["images"] for run in runs})
    rows = [[f"{name}, Caltech-101", f"{value:.3g}", *[""] * len(sizes)] for name, value in MULTI_IMAGE.items()]
    counts = set()
    for system in dict.fromkeys(run["job"]["system"] for run in runs):
        row = [f"{system}, Fashion-MNIST", ""]
        for size in sizes:
            found = [run["accuracy"] for run in runs if (run["job"]["system"], run["job"]["images"]) == (system, size)]
            counts.add(len(found))
            row.append(spread(found, 3))
        rows.append(row)
    columns = ["", "paper", *(f"ours, {size} images" for size in sizes)]
    return [Table(f"Accuracy on sets of turned images, {_seeds(counts)}", columns, rows)]


SECTIONS: dict[str, Callable[[], list[Table]]] = {
    made.__name__.replace("_", " "): made
    for made in (
        *(tuning, fairness, scan, q_learning, zero_shot, fashion, canonical, cost, pipeline),
        *(propositions, multi_image, intersectional),
    )
}


def sections() -> dict[str, str]:
    """What stands between the markers of each section."""
    return {name: "\n\n".join(map(markdown, made())) for name, made in SECTIONS.items()}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers", description="the papers' numbers beside ours, from the committed results"
    )
    arguments.add_argument("--readme", action="store_true", help="write them into README.md instead of printing them")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    if parser().parse_args(arguments).readme:
        return update(HERE / "README.md", sections())
    show([table for made in SECTIONS.values() for table in made()])
    return 0
