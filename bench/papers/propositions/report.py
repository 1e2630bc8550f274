"""What came out, in tables for the terminal and the README, and the densities as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..figures import Table, page

ERRORS = {  # and what they are called
    "equivariance error": "|F(g x) − g F(x)|, at most",
    "inverse error": "|F⁻¹(F(x), chosen) − x|, at most",
    "log|det| error": "log|det| of F⁻¹ against central differences, median",
    "density's change": "|log p(g y) − log p(y)|, at most",
}
SHARES = {
    "integral": "∫ p over [−5, 5]²",
    "samples apart": "samples F(x) and p in 20² cells, total variation",
    "samples apart by chance": "draws from p and p, the same",
    "data without input": "moved data that no x gives",
}


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and standard deviation where there are several.

    Example:
        >>> spread([1.0, 2.0]), spread([1.0])
        ('1.500 ± 0.707', '1.000')
    """
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def flow_table(results: dict[str, Any]) -> Table:
    """Both flows, over the seeds."""
    runs = list(results["flow"].values())
    names = list(runs[0])
    rows = [[said, *(f"{max(run[n][key] for run in runs):.1e}" for n in names)] for key, said in ERRORS.items()]
    rows += [[said, *(spread([run[n][key] for run in runs]) for n in names)] for key, said in SHARES.items()]
    for k in range(4):
        said = f"outputs that {k + 1} {'inputs have' if k else 'input has'}"
        rows.append([said, *(spread([run[n]["inputs of an output"][k] for run in runs]) for n in names)])
    for key in runs[0][names[0]]["log p"]:
        rows.append([f"log p of moved data: {key}", *(spread([run[n]["log p"][key] for run in runs]) for n in names)])
    count = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    return Table(f"F, equizero of a flow from noise to data; {count}", ["", *names], rows)


def sequence_tables(results: dict[str, Any]) -> list[Table]:
    """Probabilities of all texts, and what is generated."""
    runs = list(results["sequences"].values())
    said = ("sums", "asymmetry", "asymmetry, left alone")
    rows = [
        [system, *(f"{max(run[key][system] for run in runs):.1e}" for key in said)] for system in runs[0]["asymmetry"]
    ]
    first = runs[0]
    about = f"{first['contexts']} contexts, {first['texts']} texts behind each, C3, {len(runs)} models"
    drawn = [
        ["greedy texts of g x are those of x, moved", _all(runs, "greedy moves along")],
        ["samples too, with the same seed", _all(runs, "samples move along")],
        [f"{first['samples']} samples and P, total variation, at most", f"{max(r['samples apart'] for r in runs):.3f}"],
        ["draws from P and P, the same", f"{max(r['samples apart by chance'] for r in runs):.3f}"],
    ]
    head = ["", "|Σ P − 1|", "|P(g Y | g X) − P(Y | X)|", "the same, X that g leaves alone"]
    return [
        Table(f"Every text enumerated, largest deviations: {about}", head, rows),
        Table("EquiZeroLM.generate beside the enumerated probabilities", ["", ""], drawn),
    ]


def _all(runs: list[dict[str, Any]], key: str) -> str:
    return f"{sum(run[key] for run in runs)} of {len(runs)} models"


def rank_tables(results: dict[str, Any]) -> list[Table]:
    """Dimensions of linear maps: solved for, characterised, spanned."""
    inputs, products = results["ranks"]["several inputs"], results["ranks"]["product"]
    keys = ("free", "null space", "characterised", "layers")
    return [
        Table(
            "Linear maps of several inputs, each under its own group: dimensions",
            ["", "all maps", "null space", "formula", "EquiTune + InvariantSymmetric", "MultiInputEquiTune"],
            [[r["case"], *(str(r[k]) for k in keys), str(r["wrapper"] or "–")] for r in inputs],
        ),
        Table(
            "Linear maps of one input under a product: dimensions",
            ["", "all maps", "null space", "formula", "EquiTune", "through invariants", "ProductEquiTune", "forwards"],
            [
                [
                    *(r["case"], *(str(r[k]) for k in (*keys, "through invariants", "wrapper"))),
                    ", ".join(map(str, r["forwards"])),
                ]
                for r in products
            ],
        ),
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    """All of them."""
    return [flow_table(results), *sequence_tables(results), *rank_tables(results)]


def figures(results: dict[str, Any], picture: str) -> str:
    """What README.md shows of the results."""
    flow, machine = results["settings"]["flow"], results["machine"]
    made = (
        f"{flow['steps']} steps of training a flow; integrals over {flow['side']}² cells; torch {machine['torch']}, "
        f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}, commit {machine['commit'] or 'unknown'}."
    )
    return page(made, tables(results), "Densities", picture)


def plot(results: dict[str, Any], path: Path) -> None:
    """The densities of the first seed, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = results["pictures"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, densities) in zip(figure.subplots(len(found), 3), found.items(), strict=True):
        for ax, (which, p) in zip(axes, densities.items(), strict=True):
            ax.imshow(list(zip(*p, strict=True)), origin="lower", cmap="magma")  # x to the right
            ax.set_title(f"{name}:\n{which}", fontsize=8)
            ax.set_axis_off()
    figure.savefig(path, dpi=110)
