"""``python -m equikern demo``: pretrained models made equivariant, on real images, with figures and pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ..repository import install, place

__all__ = ["run"]


def run(output: Path, force: bool = False) -> None:
    """Print the demo's tables, save its pictures, and say what to do next.

    Args:
        output: where the PNG of the classifier goes; that of the text detector, which needs the extra ``demo-maps``,
            goes beside it, with ``_maps`` behind its name.
        force: overwrite existing files.

    Raises:
        FileExistsError: a picture exists and force is not given.
        NotADirectoryError: the pictures' folder does not exist.
        SystemExit: the extra ``demo`` is not installed; the message has the command.
    """
    with_maps = find_spec("easyocr_en_models") is not None
    beside = output.with_name(f"{output.stem}_maps{output.suffix}")
    for path in (output, beside) if with_maps else (output,):
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; choose another name with --output or overwrite it with --force")
    if not output.parent.is_dir():
        raise NotADirectoryError(f"{output.parent} is no folder; choose another with --output")
    try:
        from . import data, maps, measure, picture, tables
    except ImportError as error:
        raise SystemExit(f"{error}\nThe demo needs more packages: {install('demo')}") from None
    print("Measuring: some minutes on two cores.", flush=True)
    with tables.progress() as steps:
        images, labels = data.images(), data.labels()
        model = data.classifier()
        accuracy = measure.top1(model, images, labels, steps)
        features = measure.feature_errors(model, images, steps)
        photos = maps.photos() if with_maps else {}
        found = maps.measure(maps.detector(), photos, steps) if with_maps else None
        timings = measure.timings(steps)
    tables.accuracy(accuracy, len(labels))
    tables.errors(features)
    if found is not None:
        tables.maps(found)
    tables.timings(timings, torch.get_num_threads())
    picture.save(output, images, features, accuracy)
    print(f"Picture saved as {output.resolve()}")
    if found is not None:
        picture.save_maps(beside, photos, found)
        print(f"Picture of the text maps saved as {beside.resolve()}")
    print(closing(with_maps))


def closing(with_maps: bool) -> str:
    """What the demo ends with: how the text detector is had if it was not shown, and what to do next."""
    more = "" if with_maps else f"For the heat map of a text detector, too (91 MB): {install('demo-maps')}\n"
    return f"""{more}
Accuracy with fewer forward passes than views, a plot: {place("bench/forwards/results/curves.png")}

What to do next
- Make your own image classifier invariant: equikern.EquiTune(model, "d4", "trivial")
- Read the guides: {place("docs/guides")}
- Measure how far your model is from a symmetry:
  python -m equikern audit package.module:model --input 2x3x224x224 --inp d4"""
