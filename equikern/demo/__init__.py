"""``python -m equikern demo``: a pretrained classifier made equivariant, on real images, with figures and a picture."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["run"]


def run(output: Path, force: bool = False) -> None:
    """Print the demo's three tables and save its picture.

    Args:
        output: where the PNG goes.
        force: overwrite an existing file.

    Raises:
        FileExistsError: output exists and force is not given.
        SystemExit: the extra ``demo`` is not installed; the message has the command.
    """
    if output.exists() and not force:
        raise FileExistsError(f"{output} exists; choose another name with --output or overwrite it with --force")
    try:
        from . import data, measure, picture, tables
    except ImportError as error:
        raise SystemExit(
            f'{error}\nThe demo needs more packages: pip install -c constraints.txt -e ".[demo]"'
        ) from None
    with tables.progress() as steps:
        images, labels = data.images(), data.labels()
        model = data.classifier()
        accuracy = measure.top1(model, images, labels, steps)
        features = measure.feature_errors(model, images, steps)
        timings = measure.timings(steps)
    tables.accuracy(accuracy, len(labels))
    tables.errors(features)
    tables.timings(timings, torch.get_num_threads())
    picture.save(output, images, features, accuracy)
    print(f"Picture saved as {output.resolve()}")
