"""``equikern.audit`` and its command: what they report, that nothing is left behind, what they refuse."""

from __future__ import annotations

import io
import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import equikern
import pytest
import torch
from equikern import EquiTune, audit, boxes, field, grid, keypoints, patches, permutation, regular, tokens, trivial
from equikern.__main__ import main
from equikern.auditing import command, fits
from equikern.auditing.frames import Frame, relative
from torch import Tensor, nn


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_the_function_is_not_hidden_by_a_module() -> None:
    import equikern.auditing.measuring as module

    assert callable(equikern.audit)
    assert equikern.audit is module.audit


def test_outputs_in_containers_have_names() -> None:
    pair = namedtuple("pair", "logits maps")  # by position, as in the specs of wrappers
    model = net()

    def several(x: Tensor, scale: Tensor, words: Any = None) -> Any:
        y = model[0](x) * scale.view(-1, 1, 1, 1)
        return {"heads": pair(model(x), [y, y.argmax(1)]), "loss": y.mean(), "words": words}

    found = audit(several, {"x": images(), "scale": torch.ones(2), "words": ["a", "b"]}, {"x": "hflip"})
    assert [output.name for output in found.outputs] == ["heads.0", "heads.1.0", "heads.1.1"]
    assert found.forwards == 4
    out = {"heads": ("trivial", ("hflip", None))}
    declared = audit(several, {"x": images(), "scale": torch.ones(2)}, {"x": "hflip"}, out)
    assert [output.declared for output in declared.outputs] == [True, True, False]
    assert [f.where for f in declared.findings if f.kind == "output"] == ["heads.0", "heads.1.0", "heads.1.1"]


def test_outputs_of_any_dtype() -> None:
    """Integers, bool and complex numbers, as far as they can be moved."""
    for change in (
        lambda t: t > 0.5,
        lambda t: (t * 9).to(torch.uint8),
        lambda t: torch.complex(t, t * t),
        Tensor.half,
    ):
        found = audit(lambda x, change=change: change(x), images(), "d4")
        assert found.holds is (found.outputs[0].action == "grid d4")
        assert found.holds is (found.outputs[0].dtype != "complex64")


def test_errors_are_those_of_every_element() -> None:
    model, x = net(), images()
    found = audit(model, x, "c4", "trivial", tolerance=1e-6)
    assert not found.holds
    y = model(x).detach()
    for g, error in enumerate(found.outputs[0].errors):
        off = model(grid("c4").act(g, x)).detach() - y
        assert error.element == grid("c4").group.names[g]
        assert error.rms == pytest.approx(float(off.norm() / y.norm()), rel=1e-3, abs=1e-7)
        assert error.largest == pytest.approx(float(off.abs().max() / y.abs().max()), rel=1e-3, abs=1e-7)
    agree = [(model(grid("c4").act(g, x)).argmax(1) == y.argmax(1)).float().mean().item() for g in (1, 2, 3)]
    assert found.outputs[0].top1 == pytest.approx(sum(agree) / 3)
    assert audit(model, x, "c4", "trivial", tolerance=10.0).holds


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    audit(model, images(), "d4")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())

    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("no")

    model[2].forward = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="no"):
        audit(model, images(), "d4")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Counting(nn.Module):
    """Puts another tensor in a buffer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_buffers_that_are_replaced_and_many_submodules() -> None:
    model = nn.Sequential(*(Counting() for _ in range(60)), nn.Conv2d(3, 2, 3))
    before = model[7].count
    found = audit(model, images(), "hflip")
    assert model[7].count is before
    assert before == 0
    lines = str(found).splitlines()
    assert len(found.submodules) == 62
    assert "… 22 others are in .submodules" in lines
    assert any(line.startswith("60 ") and "Conv2d" in line for line in lines)
    assert audit(torch.jit.trace(model[-1], images()), images(), "hflip").submodules == []


def test_models_in_inference_mode() -> None:
    class Inferring(nn.Sequential):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)  # type: ignore[no-any-return]

    found = audit(Inferring(nn.Identity(), nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True)), images(), "d4")
    assert [f.where for f in found.findings if f.kind == "submodule"] == ["1"]


def test_submodules_within_the_tolerance_are_not_blamed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 3))
    with torch.no_grad():
        nn.init.dirac_(model[0].weight).add_(1e-3 * torch.rand(3, 3, 3, 3))
    assert [f.where for f in audit(model, images(), "d4").findings if f.kind == "submodule"] == ["0"]
    found = audit(model, images(), "d4", tolerance=0.1)
    assert [f.where for f in found.findings if f.kind == "submodule"] == ["1"]


def test_one_sample_and_batch_norms_in_training() -> None:
    found = audit(nn.Sequential(nn.BatchNorm2d(3)), images(1), "d4", "d4")
    assert [(f.kind, f.where) for f in found.findings] == [("batch", "0")]


@pytest.mark.parametrize(
    "name", ["vector", "regular", "tokens", "boxes", "points", "swapped", "words", "rows", "volumes"]
)
def test_what_fits_is_found_and_can_be_given(name: str) -> None:
    """The orbit of a random output moves by its action, which comes first among those that fit."""
    d4, x, draw = grid("d4"), torch.rand(3, 2, 6, 6), torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.rand(3, *shape, generator=draw)

    swap = permutation([[0, 1, 2, 3], [1, 0, 2, 3]])
    points, hands = keypoints("d4", units="center"), keypoints("d4", [1, 0, 2], "normalized")
    size = (6, 6)
    cases: dict[str, tuple[Any, Tensor, Any]] = {
        "vector": (d4, random(2, 6, 6), field(d4, "vector")),
        "regular": (d4, random(16, 3, 3), field(d4, "regular")),
        "tokens": (d4, random(10, 4), patches(d4, 3, 1)),
        "boxes": (d4, random(7, 4) * 6, boxes(d4, "cxcywh")),
        "points": (d4, random(7, 2) * 6, points),
        "swapped": (d4, random(3, 2), hands),
        "words": (tokens([[0, 1, 2, 3], [1, 0, 2, 3]]), random(4), swap),
        "rows": (swap.along(-2), random(5, 4, 2), swap.along(-2)),
        "volumes": (grid("rot3d"), random(2, 3, 3, 3), grid("rot3d")),
    }
    inp, t, wanted = cases[name]
    if name in ("words", "rows", "volumes"):
        x = t
    acts = (
        (lambda g: wanted.act(g, t, size)) if name in ("points", "boxes", "swapped") else (lambda g: wanted.act(g, t))
    )
    views = [acts(g) for g in range(inp.order)]
    frame = Frame(inp, inp.group, tuple(x.shape[-inp.sides :]) if inp.sides else (), 3)
    candidates = fits.actions_for(t, frame, views)
    found = sorted((fits.residual(candidate, views), k) for k, candidate in enumerate(candidates))
    best = candidates[found[0][1]]
    assert found[0][0] < 1e-5
    assert found[1][0] > 1e-2 or name in ("swapped", "regular", "vector"), [
        (candidates[k].name, e) for e, k in found[:3]
    ]
    if isinstance(wanted, equikern.Coordinates):
        assert (best.action.units, best.action.format, best.action.swap) == (wanted.units, wanted.format, wanted.swap)
    else:
        assert torch.equal(best.action.act(1, t), wanted.act(1, t))


def test_regular_features_without_a_grid() -> None:
    c4 = grid("c4")
    found = audit(lambda x: torch.stack([c4.act(g, x)[:, 0, 0].mean(-1) for g in range(4)], 1), images(), c4)
    assert found.outputs[0].fits[0].action == regular(c4.group, -1)


def test_ties_of_views() -> None:
    """Two classes, of which each view says one with equal certainty."""

    def model(x: Tensor) -> Tensor:
        left = (x[..., 0].mean((1, 2)) > 0.5).float()
        return torch.stack((left * 8, 8 - left * 8), 1)

    x = torch.zeros(2, 1, 4, 4)
    x[0, ..., 0] = 1.0
    found = audit(model, x, "hflip", "trivial")
    (output,) = found.outputs
    assert output.views_tied == 2
    assert output.top1 == 0.5
    assert [f.kind for f in found.findings] == ["output", "ties"]
    assert "1 of 2 samples" in found.findings[1].text


def test_results_in_every_form(tmp_path: Path) -> None:
    found = audit(net(), images(), "d4", "trivial")
    shown = str(found)
    for part in (
        "Symmetry under d4, 2 samples, 10 forwards",
        "rot180·hflip",
        "Conv2d",
        "first submodule that breaks: 0",
    ):
        assert part in shown
    data = json.loads(found.to_json())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert data["holds"] is False
    assert [len(data[key]) for key in ("elements", "outputs", "submodules")] == [8, 1, 6]
    found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit(net(), images(), "hflip", submodules=False)
    assert found.submodules == []
    for name in [*(name for name in sys.modules if name.startswith("matplotlib")), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib.*pip install"):
        found.plot(tmp_path / "a.png")


def test_sizes_without_entries_and_groups_of_one() -> None:
    assert audit(lambda x: x, images(), "trivial", "trivial").holds
    assert audit(lambda x: x[:, :0], images(), "d4", "d4").holds
    assert audit(net()[:2], images(0), "d4").holds
    found = audit(lambda x: torch.zeros(len(x), 4), images(), "d4")
    assert found.holds
    assert found.outputs[0].action == "trivial (invariant)"
    assert relative(torch.ones(2), torch.zeros(2)) == (torch.inf, torch.inf)
    assert relative(torch.ones(2), torch.ones(3)) == (torch.inf, torch.inf)


def test_refusals() -> None:
    x = images()
    with pytest.raises(TypeError, match="model: expected a module"):
        audit(7, x, "d4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inp: expected one of"):
        audit(net(), x, "d5")
    with pytest.raises(ValueError, match="tolerance: expected a finite number above 0"):
        audit(net(), x, "d4", tolerance=0.0)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor"):
        audit(net(), ["a"], "d4")
    with pytest.raises(ValueError, match="out: d4 does not fit the output 'output'"):
        audit(lambda x: x.mean((1, 2, 3)), x, "d4", "d4")
    with pytest.raises(ValueError, match=r"out: expected some of the outputs \['a'\], got one for \['b'\]"):
        audit(lambda x: {"a": x}, x, "d4", {"b": "d4"})
    with pytest.raises(ValueError, match="expected a spec for each"):
        audit(lambda x: {"a": x}, x, "d4", "d4")
    with pytest.raises(TypeError, match="whose first dim is the batch 2"):
        audit(lambda x: x.mean(), x, "d4")
    with pytest.raises(ValueError, match="out: expected an action of the input's group"):
        audit(net(), x, "d4", trivial(grid("c4").group))


MODELS = """
import torch
from equikern import EquiTune
torch.manual_seed(0)
conv = torch.nn.Conv2d(3, 2, 3)
def whole():
    return EquiTune(conv, "d4", "d4")
def heads(x):
    return {"map": conv(x), "sum": x.sum((2, 3))}
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audited_models.py").write_text(MODELS)
    torch.save(images(), tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["audit", *arguments])
        shown = capsys.readouterr()
        return stop.value.code, shown.out, shown.err

    options = ("--input", "2x3x8x8", "--inp", "d4")
    code, shown, _ = run("audited_models:whole()", *options, "--picture", "p.png", "--json", "a.json")
    assert code == 0
    assert "Symmetry under d4" in shown
    assert (tmp_path / "p.png").exists()
    assert json.loads((tmp_path / "a.json").read_text())["holds"] is True
    code, shown, _ = run("audited_models:conv", "--input", "x.pt", "--inp", "d4", "--out", "d4", "--eval")
    assert code == 1
    assert "first submodule" in shown
    assert run("audited_models:conv", *options, "--out", "d4", "--tolerance", "10", "--no-submodules")[0] == 0
    assert run("audited_models:heads", *options, "--out", "sum=trivial", "--out", "map=vector")[0] == 1
    for arguments, words in (
        (("audited_models", *options), "package.module:attribute"),
        (("audited_models:none", *options), "has no 'none'"),
        (("no_such_module:m", *options), "no_such_module"),
        (("torch.nn:ReLU", *options), "got the class 'ReLU'"),
        (("audited_models:conv", "--input", "none.png", "--inp", "d4"), "or a file"),
        (("audited_models:conv", "--input", "2x3x8x8", "--inp", "d5"), "expected one of"),
        (("audited_models:conv", *options, "--out", "keypoints:none"), "units: expected"),
    ):
        code, _, error = run(*arguments)
        assert code == 2
        assert words in error, error


def test_tables_on_a_terminal() -> None:
    console = pytest.importorskip("rich.console")
    text = io.StringIO()
    command.drawn(audit(net(), images(), "d4", "trivial"), console.Console(file=text, width=160))
    assert "rot180·hflip" in text.getvalue()
    assert "- first submodule that breaks: 0 (Conv2d)" in text.getvalue()


def test_an_image_as_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "audited_models_too.py").write_text(MODELS)
    image.new("RGB", (10, 8), (200, 100, 50)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["audit", "audited_models_too:whole()", "--input", "x.png", "--inp", "d4", "--out", "d4"])
    assert stop.value.code == 0
    assert "1×2×6×8" in capsys.readouterr().out


def test_a_wrapper_of_rectangles() -> None:
    found = audit(EquiTune(net(), "d4", "trivial"), torch.rand(2, 3, 8, 10), "d4")
    assert found.holds
    assert not found.findings
