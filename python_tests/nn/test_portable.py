"""Programs that need no equikern: saved, loaded where it is not, run by onnxruntime, compiled ahead of time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import equikern
import pytest
import torch
from bench.matrix.cases import CASES
from bench.matrix.features import exported
from equikern import grid, orbit, portable
from torch import Tensor, nn

BY_NAME = {case.name: case for case in CASES}


LOADED = ("EquiTune, rectangle", "EquiTune, permutation", "EquiTune, mixed field", "EquiTune, words", "EquiZero")
LOAD = """
import sys, torch
if sys.argv[2] == "equikern":
    import equikern
for name in sys.argv[3:]:
    program = torch.export.load(f"{sys.argv[1]}/{name}.pt2").module()
    inputs, expected = torch.load(f"{sys.argv[1]}/{name}.pt")
    assert torch.allclose(program(*inputs), expected, atol=1e-6), name
assert ("equikern" in sys.modules) == (sys.argv[2] == "equikern")
"""


@pytest.mark.parametrize("needs", ["equikern", "nothing"])
def test_programs_in_another_process(needs: str, tmp_path: Path) -> None:
    """With equikern imported and no action made; without equikern, if the program is portable."""
    for name in LOADED:
        case = BY_NAME[name]
        program = exported(case) if needs == "equikern" else portable(exported(case))
        torch.export.save(program, tmp_path / f"{name}.pt2")
        inputs = case.inputs(5)
        with torch.no_grad():
            torch.save((inputs, case.module()(*inputs)), tmp_path / f"{name}.pt")
    paths = [] if needs == "nothing" else [str(Path(equikern.__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {paths!r}\n{LOAD}"
    command = [sys.executable, "-c", code, str(tmp_path), needs, *LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


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
