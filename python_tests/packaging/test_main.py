"""The command line: info tells what runs, the demo's pieces give the figures they are known to give."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import equikern
import pytest
import torch
from equikern.__main__ import main
from equikern.repository import ADDRESS, install
from helpers import fresh
from helpers.steps import Steps

demo_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("efficientnet_lite_pytorch", "foolbox")),
    reason='the extra "demo" is not installed',
)


def test_info_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in shown
    assert "reference runs" in shown
    if not torch.cuda.is_available():
        assert "triton    does not run: " in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs on this machine's GPU")
def test_info_where_the_backend_asked_for_cannot_run() -> None:
    result = fresh.run("-m", "equikern", "info", EQUIKERN_BACKEND="triton")
    assert result.returncode == 0, result.stderr
    assert "EQUIKERN_BACKEND triton" in result.stdout
    assert "none is used: backend 'triton' (from EQUIKERN_BACKEND) cannot run on cpu tensors" in result.stdout


def test_info_as_a_module() -> None:
    result = fresh.run("-m", "equikern", "info")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("equikern ")


@pytest.mark.parametrize("arguments", [[], ["other"]])
def test_a_wrong_command_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m equikern" in capsys.readouterr().err


def test_an_existing_picture_is_not_overwritten(tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(b"precious")
    with pytest.raises(SystemExit, match=r"mine\.png exists; choose another name with --output"):
        main(["demo", "--output", str(picture)])
    assert picture.read_bytes() == b"precious"


@demo_packages
def test_demo_on_two_images(tmp_path: Path) -> None:
    from equikern.demo import data, measure, picture

    images, labels = data.images(), data.labels()
    assert images.shape == (20, 3, 224, 224)
    assert labels.shape == (20,)
    assert labels.max() < 1000
    model: Any = data.classifier()
    with torch.inference_mode():
        right = (model(images[:10]).argmax(1) == labels[:10]).sum()
    assert right >= 7  # the pretrained weights and the preprocessing belong together
    steps = Steps()
    accuracy = measure.top1(model, images[:2], labels[:2], steps)
    assert steps.done == steps.total
    for name in ("equitune (mean of logits)", "equizero (largest probability)"):
        assert len(set(accuracy[name])) == 1  # the answer does not depend on the rotation
    features = measure.feature_errors(model, images[:2], Steps())
    assert max(features.equitune) < 1e-5
    assert min(features.plain[1:]) > 0.1
    target = tmp_path / "picture.png"
    picture.save(target, images, features, accuracy)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_what_the_demo_says_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of code and the command work as they stand, but for the model's name; what is named is there."""
    from equikern.demo import closing

    assert install("demo-maps") in closing(False)
    text = closing(True)
    assert "demo-maps" not in text
    assert len(re.findall("^- ", text, re.MULTILINE)) == 3
    plot = re.findall(r"a plot: (.*)", text)[0]
    assert plot.startswith(ADDRESS) or Path(plot).exists()
    (code,) = re.findall(r"equikern\.EquiTune\(.*\)", text)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    x = torch.rand(2, 3, 9, 9)
    wrapped = eval(code, {"equikern": equikern, "model": model})
    torch.testing.assert_close(wrapped(x.mT), wrapped(x))
    (arguments,) = re.findall(r"python -m equikern (.*)", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "to_audit.py").write_text("import torch\nmodel = torch.nn.AvgPool2d(8)\n")
    with pytest.raises(SystemExit) as stop:
        main(arguments.replace("package.module", "to_audit").split())
    assert stop.value.code == 0  # an action of the output was found
