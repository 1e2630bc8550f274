"""``python -m equikern audit module:attribute --input … --inp d4``: an audit from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..actions import field, grid
from ..coordinates import boxes, keypoints
from .measuring import audit
from .report import Audit

__all__ = ["add_arguments", "drawn", "run"]

_OUT = (
    "how the group acts on the output, or NAME=ACTION for one of several: trivial, a grid's name, vector, regular, "
    "keypoints[:UNITS], boxes[:FORMAT[:UNITS]]; without it the action that fits best is found"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", help="package.module:attribute; with () behind it, it is called to make the model")
    parser.add_argument("--input", required=True, help="a shape such as 2x3x32x32 (random), a .pt file, or an image")
    parser.add_argument("--inp", required=True, help="how the group acts on the input: a grid's name such as d4")
    parser.add_argument("--out", action="append", default=[], metavar="ACTION", help=_OUT)
    parser.add_argument("--tolerance", type=float, help="the relative error up to which it holds; by default by dtype")
    parser.add_argument("--eval", action="store_true", help="put the model in evaluation mode first")
    parser.add_argument("--no-submodules", action="store_true", help="look at the outputs alone")
    parser.add_argument("--device", default="cpu", help="where to run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs (%(default)s)")
    parser.add_argument("--picture", type=Path, help="save a picture there")
    parser.add_argument("--json", type=Path, help="save all that was found there")


def run(options: argparse.Namespace) -> int:
    """Audit and print; 0 where every output moves as declared (or as some action says), 1 where one does not."""
    torch.manual_seed(options.seed)
    try:
        model = _model(options.model)
        if isinstance(model, nn.Module):
            model = model.to(options.device)
            if options.eval:
                model.eval()
        x = _input(options.input).to(options.device)
        out = _out(options.out, options.inp)
        found = audit(model, x, options.inp, out, tolerance=options.tolerance, submodules=not options.no_submodules)
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"python -m equikern audit: {error}", file=sys.stderr)
        return 2
    _show(found)
    if options.json is not None:
        options.json.write_text(found.to_json() + "\n", encoding="utf-8")
    if options.picture is not None:
        try:
            found.plot(options.picture)
        except ModuleNotFoundError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"Picture saved as {options.picture.resolve()}")
    return 0 if found.holds else 1


def _model(name: str) -> Any:
    made = name.endswith("()")
    module, _, attribute = name.removesuffix("()").partition(":")
    if not module or not attribute:
        raise ValueError(f"model: expected package.module:attribute, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"model: expected an attribute of {module!r}, which has no {attribute!r}")
        found = getattr(found, part)
    if not made and isinstance(found, type):
        raise ValueError(f"model: expected one that is made, got the class {attribute!r}; {name}() makes one")
    return found() if made else found


def _input(given: str) -> Tensor:
    parts = given.replace(",", "x").split("x")
    if all(part.isdecimal() for part in parts):
        return torch.randn([int(part) for part in parts])
    path = Path(given)
    if not path.exists():
        raise FileNotFoundError(f"input: expected a shape such as 2x3x32x32 or a file, got {given!r}")
    if path.suffix in (".pt", ".pth"):
        loaded = torch.load(path, weights_only=True)
        if not isinstance(loaded, Tensor):
            raise TypeError(f"input: expected a tensor in {given}, got {type(loaded).__name__}")
        return loaded
    try:
        import numpy as np
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"an image needs {error.name}: pip install pillow", name=error.name) from None
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).float().div(255).unsqueeze(0)


def _out(given: Sequence[str], inp: str) -> Any:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return _action(given[0], inp)
    pairs = [one.partition("=") for one in given]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"out: expected NAME=ACTION for each of several, got {list(given)}")
    named = {name: _action(action, inp) for name, _, action in pairs}
    if all(name.isdecimal() for name in named):
        last = max(map(int, named))
        return tuple(named.get(str(k)) for k in range(last + 1))
    return named


def _action(given: str, inp: str) -> Any:
    kind, *more = given.split(":")
    if kind == "keypoints":
        return keypoints(inp, None, *more)  # type: ignore[arg-type]
    if kind == "boxes":
        return boxes(inp, *more)  # type: ignore[arg-type]
    return field(grid(inp), kind) if kind in ("vector", "regular") else kind


def _show(found: Audit) -> None:
    """Print, in colours and lines where somebody looks on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            pass
        else:
            drawn(found, Console())
            return
    print(found)


def drawn(found: Audit, console: Any) -> None:
    """The tables on a console of rich's."""
    from rich.table import Table
    from rich.text import Text

    for title, columns, rows in found.tables():
        if title == "Findings":
            for *_, what in rows:
                console.print(Text(f"- {what}", style="bold"))
        elif rows:
            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column)
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
