"""Programs that need no equikern: saved, loaded where it is not, run by onnxruntime, compiled ahead of time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench.matrix import elsewhere, features
from bench.matrix.cases import CASES
from bench.matrix.features import exported
from equikern import grid, orbit, portable
from torch import Tensor, nn

BY_NAME = {case.name: case for case in CASES}


LOADED = ("EquiTune, rectangle", "EquiTune, permutation", "EquiTune, mixed field", "EquiTune, keywords", "EquiZero")


def test_programs_in_another_process() -> None:
    """With equikern imported and no action made; without equikern, if the program is portable."""
    for name in LOADED:
        features.saved(BY_NAME[name])
        features.saved_portable(BY_NAME[name])


def test_a_program_that_gives_something_else_is_told(tmp_path: Path) -> None:
    case = BY_NAME["EquiTune, permutation"]
    program = exported(case)
    torch.export.save(program, tmp_path / "program.pt2")
    (x,) = case.inputs(2)
    torch.save([((x,), [program.module()(x) + 1])], tmp_path / "calls.pt")
    with pytest.raises(RuntimeError, match="AssertionError: Tensor-likes are not close"):
        elsewhere.check("equikern", "export", str(tmp_path))
    torch.save([((x,), [program.module()(x)])], tmp_path / "calls.pt")
    elsewhere.check("equikern", "export", str(tmp_path))
    with pytest.raises(RuntimeError, match="Error: "):  # torch says of the operator, or of the file, that it has none
        elsewhere.check("nothing", "export", str(tmp_path))


@pytest.mark.parametrize("name", ["EquiTune, rectangle", "EquiTune, keywords", "EquiTune, dict", "EquiZero"])
def test_in_onnxruntime(name: str) -> None:
    features.onnx(BY_NAME[name])


def test_a_portable_program_leaves_the_other_as_it_is() -> None:
    program = exported(BY_NAME["EquiTune"])
    before = str(program.graph)
    portable(program)
    assert str(program.graph) == before


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    program = portable(exported(BY_NAME["EquiTune, words"])).module()
    for wrong in (-1, 6):
        with pytest.raises((IndexError, RuntimeError)):
            program(torch.full((2, 3), wrong))


@pytest.mark.parametrize("name", ["orbit_cross_entropy", "linear_orbit_cross_entropy"])
def test_targets_outside_of_the_classes_are_refused(name: str) -> None:
    case = BY_NAME[name]
    program = portable(exported(case)).module()
    *others, target = case.inputs(3)
    program(*others, target)
    for wrong in (-1, 1 << 20):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            program(*others, torch.full_like(target, wrong))


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(4, *x.shape)
        orbit(x, grid("c4"), out=out)
        return out + 1


def test_what_cannot_be_portable_is_refused() -> None:
    program = torch.export.export(Writes(), (torch.randn(3, 3),))
    with pytest.raises(ValueError, match=r"program: expected none that writes into out=.*orbit_out"):
        portable(program)
    with pytest.raises(TypeError, match=r"program: expected what torch\.export\.export"):
        portable(nn.Identity())  # type: ignore[arg-type]
