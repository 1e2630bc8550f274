"""The options that every experiment of bench/papers has."""

from __future__ import annotations

import argparse
import importlib
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ROOT / "bench/papers"

pytestmark = pytest.mark.skipif(not PAPERS.exists(), reason="bench/ is not here")

# Whole numbers from 1 on; seeds by their numbers begin with 0.
COUNTS = "--threads --epochs --samples --batch --theta --rounds --views-per-forward --tokens".split()


def parsers() -> dict[str, Callable[[list[str]], argparse.Namespace]]:
    """By experiment what reads its command line."""
    found: dict[str, Callable[[list[str]], argparse.Namespace]] = {}
    for folder in sorted(path.parent.name for path in PAPERS.glob("*/README.md")):
        if folder == "canonical":
            found[folder] = runpy.run_path(str(PAPERS / folder / "__main__.py"), run_name=folder)["parsed"]
        else:
            name = "run" if (PAPERS / folder / "run.py").exists() else "command"
            module = importlib.import_module(f"bench.papers.{folder}.{name}")
            found[folder] = module.parser().parse_args
    return found


def test_every_experiment_has_a_quick_run_and_a_full_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The full one is what runs without either; counts are refused below 1."""
    found = parsers()
    assert len(found) >= 8
    for name, parse in found.items():
        assert parse(["--quick"]).quick, name
        assert not parse(["--full"]).quick, name
        assert {**vars(parse(["--full"])), "full": False} == vars(parse([])), name
        with pytest.raises(SystemExit):
            parse(["--quick", "--full"])
        assert "not allowed with" in capsys.readouterr().err, name
        with pytest.raises(SystemExit):
            parse(["--help"])
        options = capsys.readouterr().out
        for option in COUNTS:
            if f" {option} " in options:
                with pytest.raises(SystemExit):
                    parse([option, "0"])
                assert "1 or more" in capsys.readouterr().err, (name, option)
