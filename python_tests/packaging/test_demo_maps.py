"""The demo's text detector, with the weights of the extra ``demo-maps``, which .ci/run installs: recipes.txt."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from helpers.steps import Steps

pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.skipif(
        importlib.util.find_spec("easyocr_en_models") is None and not os.environ.get("EQUIKERN_REQUIRE_RECIPES"),
        reason='the extra "demo-maps" is not installed',
    ),
]


def test_text_maps(tmp_path: Path) -> None:
    from equikern.demo import maps, picture, tables

    model = maps.detector()
    with torch.inference_mode():
        scores = model(maps.photos(192)["bottle cap"])[0, 0]
    assert scores.shape == (96, 96)
    rows, columns = (scores > maps.TEXT).nonzero().unbind(1)
    assert 200 < len(rows) < 800  # the name on the cap, so weights and preprocessing belong together
    assert rows.min() > 20
    assert rows.max() < 60
    assert columns.max() - columns.min() > 30

    steps, photos = Steps(), {"bottle cap": maps.photos(112)["bottle cap"], "drum": maps.photos(64)["drum"]}
    found = maps.measure(model, photos, steps)
    assert steps.done == steps.total == 16
    for photo, models in found.items():
        assert min(models["plain"].errors[1:]) > 0.1, photo
        assert max(models["EquiTune"].errors) < 1e-4, photo
        assert min(models["EquiTune"].overlaps) > 0.99, photo
    assert max(found["bottle cap"]["plain"].overlaps[1:]) < 0.95
    target = tmp_path / "maps.png"
    picture.save_maps(target, photos, found)
    assert target.read_bytes().startswith(b"\x89PNG")
    tables.maps(found)
