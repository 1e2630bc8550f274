"""What the experiments' commands share: options, and the packages that they ask for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path


def count(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is smaller.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def add_lengths(arguments: argparse.ArgumentParser, quick: str) -> None:
    """``--quick``, of which the text says what it runs, or ``--full``, which is what runs without either."""
    lengths = arguments.add_mutually_exclusive_group()
    lengths.add_argument("--quick", action="store_true", help=quick)
    lengths.add_argument("--full", action="store_true", help="the whole experiment; the same as without --quick")


def add_output(arguments: argparse.ArgumentParser, folder: Path, threads: int, holds: str = "results and plot") -> None:
    """``--output``, ``--threads`` and ``--readme`` of an experiment in a folder."""
    arguments.add_argument(
        "--output", type=Path, default=folder / "results", metavar="DIR", help=f"folder of {holds} (%(default)s)"
    )
    arguments.add_argument("--threads", type=count, default=threads, metavar="N", help="CPU threads (%(default)s)")
    arguments.add_argument("--readme", action="store_true", help="only write README.md's figures, from results/")


def add_work(arguments: argparse.ArgumentParser, folder: Path) -> None:
    """``--work`` and ``--report`` of an experiment that goes on where it was stopped."""
    arguments.add_argument(
        "--work", type=Path, default=folder / "work", metavar="DIR", help="folder of what is done so far (%(default)s)"
    )
    arguments.add_argument("--report", action="store_true", help="train nothing: results of what is done so far")


def add_device(arguments: argparse.ArgumentParser) -> None:
    """``--device`` and ``--force`` of an experiment that measures time."""
    arguments.add_argument("--device", choices=("cpu", "cuda"), help="what to measure: the GPU where there is one")
    arguments.add_argument("--force", action="store_true", help="overwrite results of the same commit")


def missing(packages: Iterable[str] | Mapping[str, str]) -> list[str]:
    """Those that are not installed, named as they are imported, or by import name what they are called.

    Example:
        >>> missing(["argparse", "no_such_package"]), missing({"no_such_package": "no-such-package"})
        (['no_such_package'], ['no-such-package'])
    """
    named = packages.items() if isinstance(packages, Mapping) else ((name, name) for name in packages)
    return [name for module, name in named if find_spec(module) is None]


def complain(lacking: list[str], install: str) -> int:
    """Say what is not installed and what installs it; the exit status."""
    print(f"{', '.join(lacking)} not installed: pip install -c constraints.txt -e {install}", file=sys.stderr)
    return 2
