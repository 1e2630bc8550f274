"""``python -m bench.matrix``: tries every feature on every case and writes ``docs/matrix.md``; an hour.

It fails where a cell has no "yes" and no reason. A cell that is known to fail has its reason in ``KNOWN``, and fails,
too, if it does not any more.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.matrix.cases import CASES, OPERATORS, WRAPPERS, Case
from bench.matrix.features import FEATURES, NothingToTryError, of, tried

PAGE = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"
_TRACED = "torch.jit.trace, with any model, takes only outputs that are tensors, in containers of one type"
_NUMBERS = "torch.onnx.export, with any model, takes no numbers among the outputs"
_SAVED = "the process that loads it has to import the dataclass, as with any model"
# (case, feature): why it fails
KNOWN: dict[tuple[str, str], str] = {
    ("EquiTune, nested", "jit.trace"): _TRACED,
    ("EquiTune, dataclass", "jit.trace"): _TRACED,
    ("EquiTune, nested", "onnx"): _NUMBERS,
    ("EquiTune, nested", "AOTInductor"): "AOTInductor, with any model, returns numbers among the outputs as tensors",
    **{("EquiTune, dataclass", feature): _SAVED for feature in ("pt2", "AOTInductor", "portable pt2")},
}
Cells = dict[tuple[str, str], str]


def cell(case: Case, feature: str) -> str:
    """What the table says: "yes", or "–" or "no" and the reason.

    Raises:
        AssertionError: no reason is known, or one is that does not hold.
    """
    known = KNOWN.get((case.name, feature))
    try:
        wrong = tried(case, feature)
    except NothingToTryError as reason:
        return f"– {reason}"
    if wrong is None:
        assert known is None, f"{case.name}, {feature}: works, while KNOWN says that {known}"
        return "yes"
    assert known is not None, f"{case.name}, {feature}: {wrong}"
    return f"no {known}"


def page(cells: Cells) -> str:
    """The tables of some cells, as Markdown."""
    reasons = list(dict.fromkeys(text.partition(" ")[2] for text in cells.values() if text != "yes"))

    def short(text: str) -> str:
        sign, _, reason = text.partition(" ")
        return "yes" if text == "yes" else f"{sign} ({reasons.index(reason) + 1})"

    def table(cases: Sequence[Case]) -> str:
        features = of(cases[0])
        head = f"| | {' | '.join(features)} |\n|---{'|---' * len(features)}|\n"
        rows = ([short(cells[case.name, feature]) for feature in features] for case in cases)
        return head + "".join(f"| {case.name} | {' | '.join(row)} |\n" for case, row in zip(cases, rows, strict=True))

    says = "".join(f"- **{name}**: {_said(call.__doc__)}\n" for name, call in FEATURES.items())
    notes = "".join(f"{k}. {reason}\n" for k, reason in enumerate(reasons, 1))
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("torch", "onnx", "onnxruntime"))
    return (
        "# What works with what\n\n"
        f"Written by `python -m bench.matrix` with {versions}, on CPU\n"
        "tensors. Every cell was run, and its result compared with a plain call. `–` means that the cell does not\n"
        "apply, `no` that it fails; the numbers are those of the reasons below.\n\n"
        f"{says}\n## Operators\n\n{table(OPERATORS)}\n## Wrappers\n\n{table(WRAPPERS)}\n"
        "Not in the table: `EquiDetector`, which fuses lists of boxes outside of torch; language models\n"
        "(`equikern.lm`); the pools and heads of group convolutions; operators by themselves under AOTInductor,\n"
        "which takes half a minute for each program.\n\n"
        f"## Reasons\n\n{notes}"
    )


def _said(text: str | None) -> str:
    assert text is not None
    first = text.partition("\n")[0]
    return first[0].lower() + first[1:]


def main() -> int:
    """Fill the table; the exit status says whether a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (%(default)s)")
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES), help="these alone")
    parser.add_argument("--cells", type=Path, help="a file that keeps what was found, and is not tried again")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the compilers and exporters tell much
    cells = _kept(options.cells)
    failed = False
    for feature in options.features:
        for case in CASES:
            if (case.name, feature) in cells or feature not in of(case):
                continue
            try:
                cells[case.name, feature] = cell(case, feature)
            except AssertionError as error:
                failed = True
                print(error, file=sys.stderr)
            if options.cells is not None:
                options.cells.write_text(json.dumps([[*key, said] for key, said in cells.items()]), encoding="utf-8")
        print(feature, file=sys.stderr)
    if failed:
        return 1
    if all((case.name, feature) in cells for case in CASES for feature in of(case)):
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(page(cells), encoding="utf-8")
    return 0


def _kept(path: Path | None) -> Cells:
    if path is None or not path.exists():
        return {}
    tried_now = {(case.name, feature) for case in CASES for feature in of(case)}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {(case, feature): said for case, feature, said in found if (case, feature) in tried_now}


if __name__ == "__main__":
    sys.exit(main())
