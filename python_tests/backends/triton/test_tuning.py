"""Tuned mode without a GPU: which launches are tried, which one wins, where winners are kept, when nothing is timed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import equikern
import pytest
import torch
from equikern import EquiTune, grid, orbit, orbit_mean, orbit_weighted_mean, tuned, warmup
from equikern.backends.tuning import RULE, Choice, Winners, cache_folder, fastest, is_tuned
from helpers import fresh
from torch import Tensor, nn

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def test_tuned_is_a_switch_and_a_block() -> None:
    assert not is_tuned()
    with tuned():
        assert is_tuned()
        with tuned(False):
            assert not is_tuned()
        assert is_tuned()
    assert not is_tuned()
    with pytest.raises(TypeError, match="on: expected True or False, got str"):
        tuned("yes")  # type: ignore[arg-type]


def test_the_environment_switches_it_on() -> None:
    code = "import equikern.backends.tuning as t; print(t.is_tuned())"
    done = fresh.run("-c", code, EQUIKERN_TUNE="1")
    assert done.stdout == "True\n", done.stderr


def test_the_rule_stays_unless_clearly_beaten() -> None:
    launches = {RULE: 1.0, Choice(0, 1): 0.99, Choice(1, 0): 1.5}
    assert fastest(launches, lambda seconds: seconds) == RULE
    assert fastest({**launches, Choice(-1, 0): 0.9}, lambda seconds: seconds) == Choice(-1, 0)
    assert fastest(launches, lambda seconds: None) == RULE
    assert fastest(launches, lambda seconds: None if seconds == 1.0 else seconds) == Choice(0, 1)


def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "equikern"
    for name in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", name)
        assert cache_folder() == Path.home() / ".cache" / "equikern"


def test_winners_outlive_the_process_and_their_environment_does_not_mix(tmp_path: Path) -> None:
    Winners(["GPU/1", "triton3"], tmp_path / "new").keep("a", Choice(1, -1))
    assert Winners(["GPU/1", "triton3"], tmp_path / "new").get("a") == Choice(1, -1)
    assert Winners(["GPU/1", "triton4"], tmp_path / "new").get("a") is None


DRIVER = """
#include <stdio.h>
int nvmlInit_v2(void) { return %d; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *answer, unsigned length) { return snprintf(answer, length, "999.12.34") < 0; }
"""


@needs_triton
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux" or torch.version.hip is not None, reason="asks NVIDIA's Linux library")
@pytest.mark.parametrize(("status", "expected"), [(0, "driver999.12.34"), (9, "driverunknown")])
def test_winners_are_of_one_driver(status: int, expected: str, tmp_path: Path) -> None:
    """Another driver has a file of its own. The library asked is one that answers as NVIDIA's does."""
    (tmp_path / "driver.c").write_text(DRIVER % status)
    library = tmp_path / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(tmp_path / "driver.c")]
    subprocess.run(command, check=True)
    code = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])  # which is then what its name stands for
from equikern.backends.triton.tune import environment
print(*environment("GPU"))
"""
    done = fresh.run("-c", code, str(library))
    assert done.stdout.split()[:2] == ["GPU", expected], done.stderr


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '{"a": [1]}', '{"a": [9, 0]}', '{"a": ["x", 0]}', "\x00"])
def test_a_corrupt_file_is_ignored_with_a_warning(text: str, tmp_path: Path) -> None:
    path = Winners(["GPU"], tmp_path).path
    path.write_text(text)
    with pytest.warns(UserWarning, match="is ignored"):
        winners = Winners(["GPU"], tmp_path)
    assert winners.get("a") is None
    winners.keep("b", Choice(0, 1))
    assert json.loads(path.read_text()) == {"b": [0, 1]}


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="is ignored"):
        winners = Winners(["GPU"], tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="not kept"):
        winners.keep("a", Choice(0, 1))
    assert winners.get("a") == Choice(0, 1)


WRITER = """
import sys, json, warnings
from pathlib import Path
warnings.simplefilter("error")
from equikern.backends.tuning import Choice, Winners
winners = Winners(["GPU"], Path(sys.argv[1]))
for k in range(100):
    winners.keep(f"{sys.argv[2]}{k}", Choice(1, 0))
    json.loads(winners.path.read_text())
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    """The file is whole at every moment; entries may be lost to another writer, and are then tuned anew."""
    writers = fresh.runs([("-c", WRITER, str(tmp_path), name) for name in ("a", "b", "c")])
    assert [writer.returncode for writer in writers] == [0, 0, 0], writers
    found = json.loads(Winners(["GPU"], tmp_path).path.read_text())
    assert len([key for key in found if found[key] == [1, 0]]) >= 100
    assert [path.name for path in tmp_path.iterdir()] == ["tuning-GPU.json"]


def a_plan(size: int = 64, batch: int = 4) -> Any:
    from equikern.backends.triton import reductions
    from equikern.backends.triton.layout import operand
    from equikern.views import of

    y = torch.empty(4, batch, size, size, device="meta")
    # meta tensors have no address: aligned as allocated memory is
    described = [operand(t)._replace(aligned=True) for t in (y, y[0])]
    return reductions.plan(of("hw Wh HW wH"), "sum", 0.25, *described, None, None, None)


@needs_triton
def test_a_kind_of_problem_is_measured_once(tmp_path: Path) -> None:
    from equikern.backends.triton.tune import choose

    timed: list[Any] = []

    def timer(plan: Any, tensors: tuple[Tensor | None, ...]) -> float:
        timed.append(plan)
        return 1.0 / plan.constants["TI"]  # the largest tile wins

    winners = Winners(["GPU"], tmp_path)
    plan = a_plan()
    chosen, settled = choose(plan, (), winners, timer, lambda: False)
    assert settled
    assert chosen.constants["TI"] == 2 * plan.constants["TI"]
    assert chosen.scalars != plan.scalars
    assert 1 < len(timed) <= 9
    timed.clear()
    again, settled = choose(a_plan(batch=3), (), Winners(["GPU"], tmp_path), timer, lambda: True)
    assert settled, "a winner that is known is used under capture"
    assert again.constants["TI"] == chosen.constants["TI"]
    assert timed == []
    choose(a_plan(size=256), (), winners, timer, lambda: False)
    assert timed, "another size class is another problem"


@needs_triton
def test_nothing_is_measured_under_capture(tmp_path: Path) -> None:
    from equikern.backends.triton.tune import choose

    def timer(plan: Any, tensors: tuple[Tensor | None, ...]) -> float:
        raise AssertionError("timed")

    plan = a_plan()
    assert choose(plan, (), Winners(["GPU"], tmp_path), timer, lambda: True) == (plan, False)
    assert list(tmp_path.iterdir()) == []


@needs_triton
def test_sums_whose_order_follows_the_launch_are_not_tuned() -> None:
    from equikern.backends.triton import dots
    from equikern.backends.triton.layout import operand
    from equikern.views import of

    y, weights = torch.empty(4, 3, 64, 64), torch.empty(4, 3)
    found = dots.plan(of("hw Wh HW wH"), operand(y[0]), operand(y), operand(y), operand(weights), operand(weights))
    assert found is not None
    assert found[0].variant is None


@pytest.mark.audit
@needs_triton
def test_every_candidate_compiles() -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers.triton_audit import build
from equikern.backends.triton.compat import compile_kernel
from equikern.backends.triton.tune import same_launch
from equikern.backends.tuning import candidates
for case in ("mean d4 bf16 32x32", "orbit d4 fp16 7x7", "select c4 fp64 37x37"):
    plan = build(case)
    for p in candidates(plan.variant, same_launch).values():
        binary = compile_kernel(p.kernel, "sm_90", p.pointers, p.aligned, p.constants, p.num_warps)
        assert binary.metadata.shared < 227 * 1024
"""
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parents[2])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# warmup


def test_warmup_runs_operators_and_keeps_its_hands_off_gradients() -> None:
    action = grid("d4")
    warmup(orbit, (2, 3, 8, 8), action, device="cpu")
    warmup(orbit, (2, 3, 8, 8), action, dtype=torch.int64, device="cpu")
    warmup(orbit_mean, (8, 2, 3, 8, 8), action, device="cpu", memory_format=torch.channels_last)
    warmup(orbit_weighted_mean, (8, 2, 3, 8, 8), action, weights=(8, 2), dtype=torch.bfloat16, device="cpu")
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EquiTune(backbone, "c4", "trivial").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    warmup(model, (2, 3, 8, 8), device="cpu")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_warmup_runs_the_kernels_of_both_directions() -> None:
    called: list[str] = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            called.append(f"forward {x.is_contiguous()}")
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            called.append("backward")
            return grad

    warmup(lambda x: {"a": [Noted.apply(x)]}, (2, 3, 4, 4), device="cpu", memory_format=torch.channels_last)  # type: ignore[no-untyped-call]
    assert called == ["forward False", "backward"]
    warmup(lambda x: Noted.apply(x), (2, 3, 4, 4), device="cpu", backward=False)  # type: ignore[no-untyped-call]
    assert called == ["forward False", "backward", "forward True"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_warmup_says_that_there_is_no_gpu() -> None:
    with pytest.raises(ValueError, match="nothing was compiled for 'cuda'"):
        warmup(orbit_mean, (4, 2, 8, 8), grid("c4"))


def test_warmup_names_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="call: expected"):
        warmup("orbit", (2, 8, 8), grid("c4"), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="action: expected"):
        warmup(orbit, (2, 8, 8), "c4", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device: expected"):
        warmup(orbit, (2, 8, 8), grid("c4"), device=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device: expected"):
        warmup(orbit, (2, 8, 8), grid("c4"), device="gpu")
    with pytest.raises(ValueError, match="memory_format: expected"):
        warmup(orbit, (2, 3, 8, 8), grid("c4"), device="cpu", memory_format=torch.preserve_format)
    with pytest.raises(ValueError, match="shape: expected"):
        warmup(orbit, (8, 8), grid("c4"), device="cpu", memory_format=torch.channels_last)


def test_a_failed_warmup_leaves_the_model_in_training() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 4))
    with pytest.raises(RuntimeError):
        warmup(model, (2, 5), device="cpu")
    assert model.training
    assert model[0].training


def test_results_do_not_change_in_tuned_mode() -> None:
    x = torch.randn(2, 3, 8, 8)
    with tuned():
        found = equikern.orbit(x, grid("d4"))
    assert torch.equal(found, equikern.orbit(x, grid("d4")))
