"""``python -m equikern bench``: runs bench/ops with a progress bar, keeps and draws the results; docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
NEEDED = ("pytest", "pytest_benchmark", "rich", "matplotlib")


class Progress:
    """A pytest plugin: a bar in place of pytest's dots."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description:62.62}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
        )

    def pytest_collection_finish(self, session: Any) -> None:
        self._task = self._bar.add_task("", total=len(session.items))
        self._bar.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._bar.update(self._task, description=nodeid.rpartition("[")[2].rstrip("]"))

    def pytest_runtest_logfinish(self) -> None:
        self._bar.advance(self._task)

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        return ("passed", "", "") if report.when == "call" and report.passed else None

    def pytest_sessionfinish(self) -> None:
        self._bar.stop()


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python -m equikern bench", description="measure every operator on this machine"
    )
    arguments.add_argument("--quick", action="store_true", help="few shapes in float32, without torch.compile")
    arguments.add_argument("--device", choices=("cpu", "cuda"), help="what to measure: the GPU where there is one")
    arguments.add_argument(
        "--only",
        choices=("images", "fields", "logits"),
        help="the operators on images, on fields and volumes, or on logits (default: all)",
    )
    arguments.add_argument(
        "--time-limit",
        type=float,
        default=1200.0,
        metavar="SECONDS",
        help="start nothing after so long, and say what was left out (%(default).0f); 0 measures everything, for hours",
    )
    arguments.add_argument(
        "--output",
        type=Path,
        default=BENCH / "results",
        metavar="DIR",
        help="folder of results and plots (%(default)s)",
    )
    arguments.add_argument("--force", action="store_true", help="overwrite this machine's results of this commit")
    arguments.add_argument(
        "--page", action="store_true", help="measure nothing: docs/benchmarks.md's figures from the results"
    )
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.page:
        from bench import page

        return page.update(BENCH.parent / "docs" / "benchmarks.md", options.output)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'{", ".join(missing)} not installed: pip install -c constraints.txt -e ".[bench]"', file=sys.stderr)
        return 2
    import pytest
    from bench.ops import machine

    device = options.device or machine.devices()[0]
    if device not in machine.devices():
        print(f"--device {device}: there is none that torch can use", file=sys.stderr)
        return 2
    suffix = "-".join(part for part in (options.only, "quick" if options.quick else "") if part)
    path = options.output / machine.slug(machine.name(device), suffix)
    if path.exists() and not options.force:
        print(f"{path} exists; choose another folder with --output or overwrite it with --force", file=sys.stderr)
        return 2
    call = [
        str(BENCH / "ops"),
        "--benchmark-only",
        "-q",
        "--no-header",
        f"--results={path}",
        f"--rootdir={BENCH.parent}",
        f"--device={device}",
        *(["--quick"] if options.quick else []),
        *([f"--only={options.only}"] if options.only else []),
        *([f"--time-limit={options.time_limit}"] if options.time_limit else []),
    ]
    status = int(pytest.main(call, plugins=[Progress()]))
    if not path.exists():
        return status or 1
    from bench import plots

    for picture in plots.draw(path):
        print(f"picture: {picture}")
    return status
