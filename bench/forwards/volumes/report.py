"""What the volumes say: agreement and exactness, time and memory, and agreement against forwards as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.papers.figures import Table, middle, page

from .names import ALL, CLASSES, FIXED, PAIR, PLAIN, POSED, POSES, REDUCTIONS, STATISTICS, TIMED, VIEWS, canonical

PANELS = {  # by what is said of every volume
    "same": ("3D U-Net, volumes: agreement", "voxels of the class that 8 views give, %"),
    "truth": ("3D U-Net, volumes: truth", "Dice of platelets with the truth, %"),
}
COLORS = dict(
    zip(
        (PLAIN, ALL, FIXED, PAIR, *STATISTICS),
        ("#222222", "#222222", "#999999", "#999999", "#4477aa", "#cc6677", "#228833", "#ddaa33"),
        strict=True,
    )
)


def _crops(results: dict[str, Any]) -> list[dict[str, Any]]:
    return list(results["crops"].values())


def of(results: dict[str, Any], key: str, name: str) -> list[float]:
    """What is said of a system for every volume."""
    return [float(crop["systems"][key][name]) for crop in _crops(results)]


def time(results: dict[str, Any], key: str, name: str = "seconds") -> list[float]:
    """Seconds of a system for every volume."""
    return [float(crop["times"][key][name]) for crop in _crops(results)]


def energy(results: dict[str, Any]) -> float:
    """What the ranking of the views takes, as a share of a forward."""
    ranking = statistics.median(time(results, f"{canonical(TIMED, 'mean')}/1", "ranking"))
    return ranking / statistics.median(time(results, f"{PLAIN}/1"))


def curves(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Values against forwards: of the statistics their means, since a softmax says the same, and one with poses."""
    share, made = energy(results), []
    for name, (panel, ylabel) in PANELS.items():
        for key in _crops(results)[0]["systems"]:
            method, k = key.rsplit("/", 1)
            if method.endswith("softmax") or (method.endswith(POSED) and method != canonical(TIMED, POSED)):
                continue
            forwards = float(k)
            made.append(
                {
                    "panel": panel,
                    "ylabel": ylabel,
                    "method": method,
                    "k": int(k),
                    "forwards": forwards,
                    "forwards_with_energy": forwards + (share if method.startswith("canonical") else 0.0),
                    "values": [100 * value for value in of(results, key, name)],
                }
            )
    return made


def keys(chosen_by: tuple[str, ...], whole: bool = False) -> list[str]:
    """The systems; for a table without the softmax of one view, which is the view, and with the mean of all at the end.

    Example:
        >>> keys(())
        ['plain/1', 'the first k views/2', 'the first k views/3', 'the views e and Dhw/2', 'mean of 8 views/8']
    """
    fixed = [*(f"{FIXED}/{k}" for k in VIEWS if k > 1), f"{PAIR}/{len(POSES)}"]
    chosen = []
    for statistic in chosen_by:
        order = [(r, k) for r in REDUCTIONS for k in VIEWS] if whole else [(r, k) for k in VIEWS for r in REDUCTIONS]
        chosen += [f"{canonical(statistic, r)}/{k}" for r, k in order if whole or k > 1 or r == "mean"]
        chosen.append(f"{canonical(statistic, POSED)}/{len(POSES)}")
    return [f"{PLAIN}/1", f"{ALL}/8", *fixed, *chosen] if whole else [f"{PLAIN}/1", *fixed, *chosen, f"{ALL}/8"]


def called(key: str) -> str:
    """A system in a table.

    Example:
        >>> called("canonical, linear, mean/1"), called("canonical, linear, softmax/2"), called("plain/1")
        ('canonical, linear, k = 1', 'canonical, linear, softmax, k = 2', 'plain')
    """
    method, k = key.rsplit("/", 1)
    if method in (PLAIN, ALL, PAIR) or method.endswith(POSED):
        return method
    return f"{method.removesuffix(', mean') if k == '1' else method}, k = {k}"


def tables(results: dict[str, Any]) -> list[Table]:
    """Agreement, exactness and truth of every system, each view's truth, time and memory of those that are timed."""
    crops = _crops(results)
    sides = " × ".join(map(str, results["settings"]["shape"]))
    spread = f"{len(crops)} volumes of {sides} voxels" if len(crops) > 1 else f"one volume of {sides} voxels"
    spread = f"median (range) of {spread}"
    agreement, exact = [], []
    for key in keys(STATISTICS):
        found = [crop["systems"][key] for crop in crops]
        row = [called(key), middle([one["same"] for one in found], 2, 100)]
        agreement.append([*row, *(middle([one["dice"][name] for one in found], 3) for name in CLASSES)])
        row = [called(key), f"{max(one['deviation'] for one in found):.1e}"]
        row += [f"{100 * max(one['changed'] for one in found):.2f}"]
        exact.append([*row, middle([one["truth"] for one in found], 3)])
    heads = ["", "voxels of the same class, %", *(f"Dice, {name}" for name in CLASSES)]
    made = [Table(f"Agreement with the mean of 8 views, {spread}", heads, agreement)]
    heads = ["", "largest deviation", "voxels that change class, %", "Dice of platelets with the truth"]
    made.append(Table(f"Turned by every element, the worst of all volumes; and the truth, {spread}", heads, exact))
    names = list(crops[0]["views"])
    row = ["Dice", *(middle([crop["views"][name] for crop in crops], 3) for name in names)]
    made.append(Table("Platelets with the truth, each view of the network alone", ["", *names], [row]))
    plain = statistics.median(time(results, f"{PLAIN}/1"))
    rows = []
    for key in keys((TIMED,)):
        seconds = time(results, key)
        memory = [crops[0][kind][key] / 1e6 for kind in ("memory", "memory together")]
        row = [called(key), key.rsplit("/", 1)[1], middle(seconds, 2), f"{statistics.median(seconds) / plain:.2f}"]
        # What takes one view has one forward in either way; fixed views are a loop.
        together = "" if key.startswith((PLAIN, FIXED, PAIR)) else f"{memory[1]:.0f}"
        rows.append([*row, f"{memory[0]:.0f}", together])
    heads = ["", "forwards", "CPU seconds", "of a forward", "MB, view by view", "MB, views together"]
    share = f"ranking the views takes {energy(results):.4f} of a forward"
    return [*made, Table(f"Time, {spread}, and peak memory beside the weights; {share}", heads, rows)]


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    machine = results["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    made = (
        f"{machine['cpu']}, {threads}, load {machine['load_at_start']:.1f} at the start and "
        f"{machine['load_at_end']:.1f} at the end, {results['took']} s; torch {machine['torch']}, "
        f"{results['parameters']:,} parameters, commit {machine['commit'] or 'unknown'}."
    )
    return page(made, tables(results), "Agreement and Dice against forwards", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """Both panels against forwards, the mean and the range over the volumes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = results["curves"]
    figure = Figure(figsize=(5.0 * len(PANELS), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, ylabel) in zip(figure.subplots(1, len(PANELS)), PANELS.values(), strict=True):
        of_panel = [one for one in made if one["panel"] == title]
        for shift, method in enumerate(dict.fromkeys(one["method"] for one in of_panel)):
            points = [one for one in of_panel if one["method"] == method]
            means = [statistics.mean(one["values"]) for one in points]
            low = [mean - min(one["values"]) for mean, one in zip(means, points, strict=True)]
            high = [max(one["values"]) - mean for mean, one in zip(means, points, strict=True)]
            name = method.split(", ")[1] if method.startswith("canonical") else method
            panel.errorbar(
                [one["forwards_with_energy"] + 0.015 * shift for one in points],
                means,
                (low, high),
                color=COLORS[name],
                marker="s" if method in (PLAIN, ALL) else "D" if method == PAIR or method.endswith(POSED) else "o",
                markersize=4,
                linewidth=1,
                label=method,
            )
        panel.set(title=title, xlabel="forwards", ylabel=ylabel)
        panel.set_xticks([*VIEWS, 8])
        panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
