"""Options that the experiments share, and their types."""

from __future__ import annotations

import argparse


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
