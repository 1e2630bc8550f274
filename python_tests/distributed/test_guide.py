"""The example of ``docs/guides/distributed.md``, as it stands there, and what it lists."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.repository import ROOT, environment

GUIDE = ROOT / "docs" / "guides" / "distributed.md"


def test_the_example_runs(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"```bash\n(.*?)\n```", text)
    launcher, *arguments = command.split()
    assert launcher == "torchrun"
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=tmp_path,
        env=environment() | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    said = {}
    # The processes write where they like, so that one's line may end behind another's.
    line = r"rank (\d) .(\d, \d). loss (\d+\.\d{6}) weights (\d+\.\d{6})"
    for rank, at, loss, weights in re.findall(line, ran.stdout):
        said[int(rank)] = at, loss, weights
    assert sorted(said) == [0, 1, 2, 3], ran.stdout
    assert len({weights for _, _, weights in said.values()}) == 1, said  # all learned alike
    (one, two), (three, four) = ([said[rank][1] for rank in pair] for pair in ((0, 1), (2, 3)))
    assert one == two != three == four, said  # half of the batch each


def test_it_lists_what_takes_a_mesh() -> None:
    pytest.importorskip("transformers")
    from equikern import lm, nn

    (listed,) = re.findall(r"## What takes a mesh\n\n(.*?) one axis of", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    classes = [vars(module)[name] for module in (nn, lm) for name in module.__all__]
    takes = {c.__name__ for c in classes if inspect.isclass(c) and "mesh" in inspect.signature(c).parameters}
    assert set(re.findall(r"`(\w+)`", listed)) == takes
