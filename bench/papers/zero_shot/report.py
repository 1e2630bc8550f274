"""What the predictions say: right answers, consistency, gains over the plain network; tables for terminal and README.

A row of the results holds the predictions of one system, (|G|, N): of every image under every element of the group.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from ..figures import Table, page
from .names import answers

Row = dict[str, Any]
CLASSIFICATION, IMAGE_TEXT = "classification", "image-text proxy"
COMPARED = {  # plain, equitune and equizero of each task
    CLASSIFICATION: ("plain", "equitune, logits", "equizero, max_prob"),
    IMAGE_TEXT: ("plain", "equitune", "equizero, similarity"),
}
# From the lowest: the paper finds equizero above equitune with CLIP, and below it with CNN classifiers.
PAPER = {CLASSIFICATION: ("plain", "equizero", "equitune"), IMAGE_TEXT: ("plain", "equitune", "equizero")}
DRAWS = 10_000


def right(row: Row, labels: list[int]) -> Tensor:
    """Where the prediction is right, (|G|, N) of 0 and 1.

    Example:
        >>> row = {"task": "classification", "predictions": [[7, 5], [7, 6]]}
        >>> right(row, [7, 6]).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    wanted = labels if row["task"] == CLASSIFICATION else answers(row["names"], labels)
    return (torch.tensor(row["predictions"]) == torch.tensor(wanted)).double()


def consistent(row: Row) -> int:
    """Of how many images the prediction is the same under every element.

    Example:
        >>> consistent({"predictions": [[7, 5], [7, 6]]})
        1
    """
    predictions = torch.tensor(row["predictions"])
    return int((predictions == predictions[0]).all(0).sum())


def of(
    results: dict[str, Any], task: str, group: str, system: str | None = None, names: str | None = None
) -> list[Row]:
    """The rows of a task and group, and of a system and wording where they are given."""
    return [
        row
        for row in results["rows"]
        if (row["task"], row["group"]) == (task, group)
        and system in (None, row["system"])
        and names in (None, row["names"])
    ]


def unique(rows: list[Row], key: str) -> list[Any]:
    """A column's values, each once, in the order in which they come."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_image(rows: list[Row], labels: list[int]) -> Tensor:
    """Each image's share of right answers over elements, wordings and seeds: (N,)."""
    return torch.stack([right(row, labels).mean(0) for row in rows]).mean(0)


def interval(gains: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of gains (N,), drawn anew with replacement, from a fixed seed.

    Example:
        >>> interval(torch.ones(5))
        (1.0, 1.0)
    """
    picks = torch.randint(len(gains), (DRAWS, len(gains)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(gains.double()[picks].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero takes the sign off a rounded −0


def _gain(rows: list[Row], plain: list[Row], labels: list[int]) -> str:
    gains = by_image(rows, labels) - by_image(plain, labels)
    low, high = interval(gains)
    return f"{_signed(float(gains.mean()))} ({_signed(low)} to {_signed(high)})"


def _spread(values: list[float]) -> str:
    """The value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.0f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def classification_tables(results: dict[str, Any]) -> list[Table]:
    """For each group: right answers by element and system, of how many images all are the same, the gain over plain."""
    labels, tables = results["labels"], []
    for group, elements in results["settings"]["groups"].items():
        plain, rows = of(results, CLASSIFICATION, group, "plain"), []
        for row in of(results, CLASSIFICATION, group):
            correct = right(row, labels)
            share = f"{int(correct.sum())}/{correct.numel()} = {float(correct.mean()):.3f}"
            gain = "" if row in plain else _gain([row], plain, labels)
            counts = [f"{int(count)}" for count in correct.sum(1)]
            rows.append([row["system"], *counts, share, f"{consistent(row)}/{len(labels)}", gain])
        title = f"Classification, {group}: right answers of {len(labels)} images, by what was done to them"
        tables.append(Table(title, ["system", *elements, "all", "same answer", "all − plain (95 %)"], rows))
    return tables


def image_text_tables(results: dict[str, Any]) -> list[Table]:
    """For each group: right answers by wording and system, the same over all, and the gain over plain."""
    labels, tables = results["labels"], []
    for group, elements in results["settings"]["groups"].items():
        everything = of(results, IMAGE_TEXT, group)
        wordings, rows = unique(everything, "names"), []
        plain = of(results, IMAGE_TEXT, group, "plain")
        for system in unique(everything, "system"):
            mine = of(results, IMAGE_TEXT, group, system)
            by_wording = [of(results, IMAGE_TEXT, group, system, wording) for wording in wordings]
            cells = [_spread([float(right(row, labels).sum()) for row in some]) for some in by_wording]
            share = f"{float(by_image(mine, labels).mean()):.3f}"
            same = [statistics.mean(map(consistent, some)) for some in by_wording]
            gain = "" if system == "plain" else _gain(mine, plain, labels)
            rows.append([system, *cells, share, " ".join(f"{value:.0f}" for value in same), gain])
        count = len(elements) * len(labels)
        title = f"Image-text proxy, {group}: right answers of {count}, {len(labels)} images × {len(elements)} elements"
        columns = [
            "system",
            *wordings,
            "share of all",
            f"same answer, of {len(labels)}, by wording",
            "share − plain (95 %)",
        ]
        tables.append(Table(title, columns, rows))
    return tables


def order(results: dict[str, Any]) -> Table:
    """Whether the order that the paper finds in such a task holds, and by how much."""
    labels, rows = results["labels"], []
    for task, systems in COMPARED.items():
        for group in results["settings"]["groups"]:
            means = [float(by_image(of(results, task, group, system), labels).mean()) for system in systems]
            plain, equitune, equizero = means
            share = dict(zip(("plain", "equitune", "equizero"), means, strict=True))
            low, middle, high = (share[system] for system in PAPER[task])
            least = min(middle - low, high - middle)
            verdict = "holds" if least > 1e-9 else "holds with ≤" if least > -1e-9 else "does not hold"
            differences = [_signed(equitune - plain), _signed(equizero - equitune)]
            shares = [f"{value:.3f}" for value in means]
            rows.append([f"{task}, {group}", *shares, *differences, " < ".join(PAPER[task]), verdict])
    columns = ["", "plain", "equitune", "equizero", "equitune − plain", "equizero − equitune", "the paper's order", ""]
    return Table("The order that the paper finds for such models, by shares of right answers", columns, rows)


def tables(results: dict[str, Any]) -> list[Table]:
    """All tables."""
    return [*classification_tables(results), *image_text_tables(results), order(results)]


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    machine = results["machine"]
    made = (
        f"{len(results['labels'])} images; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"commit {machine['commit'] or 'unknown'}."
    )
    return page(made, tables(results), "The same as a picture", picture)
