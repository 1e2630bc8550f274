"""bench/forwards/volumes on a tiny U-Net with random weights: its parts, a run, one that goes on, the figures."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.forwards.volumes import command, data, measure, names, network, report
from bench.papers import figures
from helpers.repository import ROOT
from torch import Tensor, nn

for module in ("matplotlib", "rich"):
    pytest.importorskip(module)

FOLDER = ROOT / "bench" / "forwards" / "volumes"
SETTINGS: dict[str, Any] = {"shape": (4, 12, 8), "platelets": 6, "seed": 7}
ELEMENTS = range(1, measure.ACTION.order)


class Tiny(nn.Module):
    """A U-Net of one step down, with as many channels as the trained one; its forwards are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.below = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose3d(4, 4, 2, stride=2), nn.Conv3d(8, 5, 3, padding=1)
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        above = self.first(x).relu()
        below = self.below(nn.functional.max_pool3d(above, 2)).relu()
        y: Tensor = self.last(torch.cat((above, self.up(below)), 1))
        return (10 * y).sigmoid()


@pytest.fixture
def net() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.mark.parametrize("module", [data, measure, names, report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_volumes_are_the_same_at_every_call_and_others_for_other_seeds() -> None:
    (image, labels), again, other = (data.volume(seed, (6, 32, 32), 12) for seed in (3, 3, 4))
    assert torch.equal(image, again.image)
    assert torch.equal(labels, again.labels)
    assert not torch.equal(image, other.image)
    assert 0.02 < float((labels > 0).float().mean()) < 0.9
    assert float(image[0, 0][labels > 0].mean()) > 2 * float(image[0, 0][labels == 0].mean())
    point = torch.zeros(1, 9, 11)
    point[0, 4, 5] = 1
    spread = data.blurred(data.blurred(point, 1, 1.0), 2, 1.0)
    torch.testing.assert_close(spread, spread.flip(1))
    assert float(spread.sum()) == pytest.approx(1)


def edges(x: Tensor) -> Tensor:
    """Five channels as the trained network has them: along every side the step from the voxel before, and two of x."""
    steps = [(x - x.roll(1, dim)).abs() for dim in (-3, -2, -1)]
    return torch.cat([*steps, x, x.square()], 1)


def test_edges_between_voxels_are_grids_of_their_own() -> None:
    """Taken for voxels they come back one off; as what they are they are where they were."""
    x = torch.randn(1, 1, 4, 6, 5)
    exact = network.Grids(edges)
    shapes = [tuple(y.shape[1:]) for y in exact(x)]
    assert shapes == [(1, 3, 6, 5), (1, 4, 5, 5), (1, 4, 6, 4), (2, 4, 6, 5)]
    for g in ELEMENTS:
        assert measure.apart(exact(measure.ACTION.act(g, x)), measure.moved(g, exact(x))) == 0
        assert measure.apart((edges(measure.ACTION.act(g, x)),), measure.moved(g, (edges(x),))) > 0.1
    every = {system.key: system.call(x) for system in measure.systems(exact, names.STATISTICS)}
    for key, answer in every.items():
        assert measure.apart(answer, exact(x)) < 1e-6, key


def test_a_volume_is_computed_once(net: Tiny) -> None:
    x, once = torch.randn(2, 1, 4, 8, 8), network.Remembered(net)
    with torch.no_grad():
        first, again, turned = once(x), once(x.flip(0)), once(x.flip(-1))
        assert net.forwards == 4
        assert torch.equal(first, again.flip(0))
        torch.testing.assert_close(turned, net(x.flip(-1)))


@torch.no_grad()
def test_every_system(net: Tiny) -> None:
    """Which are exact, how many forwards they take, and what they are judged by."""
    x, labels = data.volume(0, (4, 16, 16), 4)
    found = measure.systems(network.Grids(net), names.STATISTICS)
    together = measure.systems(network.Grids(net), names.STATISTICS, together=True)
    assert [system.key for system in found] == list(report.keys(names.STATISTICS, whole=True))
    mean = next(system.call(x) for system in found if system.method == names.ALL)
    for system, other in zip(found, together, strict=True):
        net.forwards = 0
        answer = system.call(x)
        assert net.forwards == system.forwards, system.key
        assert measure.apart(other.call(x), answer) < 1e-5, system.key
        if system.ranks is not None:
            assert system.ranks(x).shape == (system.k, 1), system.key
        said = measure.judged(system, x, mean, labels > 0)
        exact = system.ranks is not None or system.method == names.ALL
        assert (said["deviation"] < 1e-5) == exact, system.key
        assert said["changed"] == 0 or not exact, system.key
        assert said["same"] == 1 or system.method != names.ALL, system.key
        assert system.method != names.PLAIN or (said["changed"] > 0 and said["same"] < 1)
        assert said["dice"]["platelet"] == measure.dice(*(measure.parts(y)["platelet"] for y in (answer, mean)))
    plain, middle = found[0].call(x), measure.fixed_views(network.Grids(net), range(8), x)
    assert measure.apart(middle, mean) < 1e-5
    assert measure.apart(measure.fixed_views(network.Grids(net), [0], x), plain) == 0


def test_another_answer_is_refused(net: Tiny) -> None:
    x = data.volume(0, (4, 8, 8), 2).image
    known = {system.key: system for system in measure.systems(network.Grids(net), ("linear",))}
    with torch.no_grad():
        for key in ("plain/1", "canonical, linear, mean/2"):
            assert measure.timed(known[key], known[key], x, 3)["error"] < 1e-6
            wrong = known[key]._replace(call=lambda x, key=key: tuple(0.9 * y for y in known[key].call(x)))
            with pytest.raises(AssertionError, match="from what it was"):
                measure.timed(wrong, known[key], x, 3)


def test_a_run_and_one_that_goes_on(
    net: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", SETTINGS)
    monkeypatch.setattr(network, "trained", lambda: net)
    call = ["--quick", "--crops=1", f"--threads={torch.get_num_threads()}", f"--output={tmp_path}"]
    assert command.run(call) == 0
    found = json.loads((tmp_path / "quick.json").read_text())
    check(found)
    assert list(found["crops"]) == ["7"]
    assert (tmp_path / "quick.png").read_bytes().startswith(b"\x89PNG")
    assert "mean of 8 views" in capsys.readouterr().out

    net.forwards = 0
    assert command.run([*call, "--crops=2"]) == 0
    assert 0 < net.forwards <= measure.cost(False)
    again = json.loads((tmp_path / "quick.json").read_text())
    assert list(again["crops"]) == ["7", "8"]
    assert again["crops"]["7"] == found["crops"]["7"]
    monkeypatch.setattr(command, "QUICK", {**SETTINGS, "platelets": 5})
    assert command.run(call) == 2
    assert "platelets" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "MODULE", "no_such_package")
    assert command.run(["--quick", f"--threads={torch.get_num_threads()}", f"--output={tmp_path}"]) == 2
    assert "requirements.txt" in capsys.readouterr().err
    pinned = (FOLDER / "requirements.txt").read_text().splitlines()[-1]
    assert pinned.partition("==")[0] == network.PACKAGE


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    timed = list(report.keys((names.TIMED,), whole=True))
    for seed, crop in results["crops"].items():
        assert list(crop["systems"]) == list(report.keys(names.STATISTICS, whole=True)), seed
        assert list(crop["times"]) == timed, seed
        for key, said in crop["systems"].items():
            exact = key.startswith("canonical") or key == f"{names.ALL}/8"
            assert (said["deviation"] < 1e-5) == exact, (seed, key)
            assert 0 <= said["changed"] <= 1 - exact, (seed, key)
            assert min(said["same"], said["truth"], *said["dice"].values()) >= 0, (seed, key)
            assert max(said["same"], said["truth"], *said["dice"].values()) <= 1, (seed, key)
        assert crop["systems"][f"{names.ALL}/8"]["same"] == 1, seed
        assert crop["views"]["e"] == crop["systems"][f"{names.PLAIN}/1"]["truth"], seed
        assert max(said["error"] for said in crop["times"].values()) < measure.TOLERANCE, seed
    first = next(iter(results["crops"].values()))
    assert list(first["memory"]) == list(first["memory together"]) == timed
    assert min(first["memory"].values()) > 0
    for curve in results["curves"]:
        assert set(curve) == {"panel", "ylabel", "method", "k", "forwards", "forwards_with_energy", "values"}
        assert len(curve["values"]) == len(results["crops"]), curve
        assert curve["k"] == curve["forwards"] <= curve["forwards_with_energy"] < curve["forwards"] + 1.5, curve


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, figures.of(FOLDER, "volumes", report)) == text
    if (path := FOLDER / "results" / "volumes.json").exists():
        results = json.loads(path.read_text())
        check(results)
        assert len(results["crops"]) == command.CROPS
        assert path.with_suffix(".png").exists()
