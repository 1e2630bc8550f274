"""The build: what setup.py records and refuses, what the binary holds."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import equikern
import pytest
import torch
from equikern import BuildInfo, build_info
from equikern.backends.cuda import Cuda

ROOT = Path(__file__).parents[2]
INFO = build_info()


def _can_run_setup() -> bool:
    try:
        major = int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return False
    return major >= 77 and importlib.util.find_spec("pybind11") is not None


needs_setup = pytest.mark.skipif(
    not _can_run_setup(), reason="setup.py is run here without isolation: needs setuptools 77 and pybind11"
)

Build = Callable[..., subprocess.CompletedProcess[str]]


def native() -> ModuleType:
    if not INFO.native:
        pytest.skip(f"no native module: {INFO.reason}")
    return importlib.import_module("equikern._C")


def cuda_binary() -> Path:
    module = native()
    if not INFO.cuda:
        pytest.skip(f"no CUDA kernels: {INFO.cuda_reason}")
    assert module.__file__ is not None
    return Path(module.__file__)


# -- what is installed


def test_native_module_imports_wherever_it_was_built() -> None:
    """Also with CUDA inside and no GPU or driver on the machine."""
    module = native()
    assert hasattr(module, "cuda_orbit") == INFO.cuda
    assert INFO.cpu_isa[0] == "baseline"


def test_the_record_is_complete() -> None:
    assert isinstance(INFO, BuildInfo)
    assert INFO.native == (INFO.reason is None)
    assert INFO.native == (importlib.util.find_spec("equikern._C") is not None)
    assert INFO.cuda == (INFO.nvcc is not None) == bool(INFO.cuda_archs)
    for name in ("EQUIKERN_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        assert name in str(INFO)


def test_the_record_says_why_something_is_missing() -> None:
    text = str(BuildInfo(reason="no C++ compiler: g++ not found"))
    assert "no C++ compiler: g++ not found" in text
    assert "slower" in text
    assert "nvcc not found" in str(replace(BuildInfo(native=True), cuda_reason="nvcc not found"))
    assert "8.0, 9.0a" in str(BuildInfo(native=True, cuda=True, cuda_archs=("8.0", "9.0a"), nvcc="13.0"))


def test_without_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("equikern.buildinfo.__file__", str(tmp_path / "buildinfo.py"))
    assert not build_info().native
    assert "pip install" in str(build_info().reason)


def test_one_openmp_runtime() -> None:
    """The kernels' threads and torch's come from one library."""
    native()
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps")
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"\S*lib(?:gomp|omp|iomp5)[^/\s]*\.so\S*", maps))) <= 1


def test_machine_code_of_every_architecture_is_in_the_binary() -> None:
    binary = cuda_binary()
    bundled = importlib.util.find_spec("triton")
    folders = [Path(p) / "backends/nvidia/bin" for p in bundled.submodule_search_locations or []] if bundled else []
    tool = shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))
    if tool is None:
        pytest.skip("no cuobjdump")
    listed = subprocess.run([tool, "--list-elf", "--list-ptx", str(binary)], capture_output=True, text=True, check=True)
    for arch in INFO.cuda_archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        assert f"sm_{number}.cubin" in listed.stdout
        if arch.endswith("+PTX"):
            assert f"sm_{number}.ptx" in listed.stdout


def test_cuda_is_linked_statically() -> None:
    tool = shutil.which("ldd")
    if tool is None:
        pytest.skip("no ldd")
    needed = subprocess.run([tool, str(cuda_binary())], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_launch_without_a_gpu_says_so() -> None:
    cuda_binary()
    with pytest.raises(RuntimeError, match="CUDA"):
        native().cuda_orbit(0, 0, (1, 1), (1, 1), (1, 1, 1), [0], 4, 0, 1.0, 0, 0, 0, 0, 0, 0)
    reason = Cuda().unavailable(torch.device("cuda"))
    assert reason is not None
    assert "driver" in reason


def test_why_the_cuda_backend_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA tensors" in str(Cuda().unavailable(torch.device("cpu")))
    module = importlib.import_module("equikern.backends.cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(module, "build_info", lambda: BuildInfo(native=True, cuda_reason="nvcc not found"))
    assert "nvcc not found" in str(Cuda().unavailable(torch.device("cuda")))
    monkeypatch.setattr(module, "build_info", lambda: BuildInfo(reason="no C++ compiler"))
    assert "no C++ compiler" in str(Cuda().unavailable(torch.device("cuda")))


# -- setup.py, on a small csrc


# Without pybind11, which takes seconds to compile.
BINDINGS = """
#include <Python.h>
namespace baseline { int value(); }
static PyObject* get(PyObject*, PyObject*) { return PyLong_FromLong(baseline::value()); }
static PyMethodDef methods[] = {{"value", get, METH_NOARGS, ""}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""
# Compiled once for each instruction set, with its flags.
KERNELS = """
#include "value.h"
namespace baseline { constexpr bool wide = false; }
namespace avx2 { constexpr bool wide = true; }
namespace avx512 { constexpr bool wide = true; }
#ifdef __AVX2__
static_assert(EQK_ISA::wide, "flags of another instruction set");
#else
static_assert(!EQK_ISA::wide, "compiled without its flags");
#endif
namespace EQK_ISA { int value() { return VALUE; } }
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Runs ``setup.py build_ext`` on a module of three files, with the given variables and no others of ours."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "README.md").touch()
    (tmp_path / "equikern").mkdir()
    (tmp_path / "equikern/__init__.py").touch()
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/value.h").write_text("#define VALUE 1\n")
    (tmp_path / "csrc/cpu/kernels.cpp").write_text(KERNELS)
    (tmp_path / "csrc/bindings.cpp").write_text(BINDINGS)
    ours = ("CXX", "CXXFLAGS", "EQUIKERN_", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "MAX_JOBS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tmp_path,
            env={**clean, "EQUIKERN_CUDA": "0", **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "equikern/_build.json").read_text())
    return found


def value(folder: Path) -> int:
    code = "from equikern import _C; print(_C.value())"
    return int(subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True).stdout)


def compiled(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The objects that were made."""
    return set(re.findall(r"-o (\S+)\.o", done.stdout))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@needs_setup
@needs_compiler
def test_build_is_incremental(build: Build, tmp_path: Path) -> None:
    first = build(MAX_JOBS="1")
    assert first.returncode == 0, first.stderr
    x86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
    sets = ["baseline", "avx2", "avx512"] if x86 else ["baseline"]
    kernels = {f"{name}/kernels.cpp" for name in sets}
    everything = {"bindings.cpp", *kernels}
    assert compiled(first) == everything
    assert value(tmp_path) == 1
    info = record(tmp_path)
    assert info["native"]
    assert info["cpu_isa"] == sets
    assert info["cuda_reason"] == "switched off by EQUIKERN_CUDA=0"
    assert info["environment"] == {"EQUIKERN_CUDA": "0", "MAX_JOBS": "1"}
    assert compiled(build()) == set()
    (tmp_path / "csrc/value.h").write_text("#define VALUE 2\n")
    assert compiled(build()) == kernels
    assert value(tmp_path) == 2
    assert compiled(build(CXXFLAGS="-DOTHER")) == everything


@needs_setup
def test_without_a_compiler(build: Build, tmp_path: Path) -> None:
    stale = tmp_path / "equikern" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.touch()
    done = build(CXX="/nonexistent/g++")
    assert done.returncode == 0, done.stderr
    assert "WITHOUT C++ kernels" in done.stderr
    assert "/nonexistent/g++ not found" in record(tmp_path)["reason"]
    assert not stale.exists()
    refused = build(CXX="/nonexistent/g++", EQUIKERN_REQUIRE_NATIVE="1")
    assert refused.returncode != 0
    assert "no C++ compiler" in refused.stderr


@needs_setup
@needs_compiler
def test_a_compiler_that_fails(build: Build, tmp_path: Path) -> None:
    (tmp_path / "csrc/cpu/kernels.cpp").write_text("#error too old\n")
    done = build()
    assert done.returncode == 0, done.stderr
    assert "too old" in record(tmp_path)["reason"]
    assert not list((tmp_path / "equikern").glob("*.so"))
    assert build(EQUIKERN_REQUIRE_NATIVE="1").returncode != 0


@needs_setup
@needs_compiler
def test_cuda_without_nvcc(build: Build, tmp_path: Path) -> None:
    refused = build(EQUIKERN_CUDA="1", CUDA_HOME=str(tmp_path))
    assert refused.returncode != 0
    assert "put nvcc on PATH or set CUDA_HOME" in refused.stderr
    done = build(EQUIKERN_CUDA="", CUDA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nvcc not found" in record(tmp_path)["cuda_reason"]


FAKE_NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  *-shared*) echo "nvcc fatal: error: no" ; exit 1 ;;
esac
echo "$@" >> {log}
while [ "$1" != "-o" ] && [ $# -gt 0 ]; do shift; done
[ $# -gt 1 ] && : > "$2" && : > "$2.d"
exit 0
"""


@needs_setup
@needs_compiler
@pytest.mark.parametrize(
    ("release", "asked", "expected"),
    [
        ("13.0", "", ["80,code=sm_80", "90a,code=sm_90a", "100,code=sm_100", "100,code=compute_100"]),
        ("12.4", "", ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]),
        ("13.0", "8.6 9.0a;12.0+PTX", ["86,code=sm_86", "90a,code=sm_90a", "120,code=sm_120", "120,code=compute_120"]),
    ],
)
def test_architectures(build: Build, tmp_path: Path, release: str, asked: str, expected: list[str]) -> None:
    """A stand-in for nvcc writes down what it was asked; since it then fails to link, the build falls back."""
    log, nvcc = tmp_path / "log", tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC.format(release=release, log=log))
    nvcc.chmod(0o755)
    (tmp_path / "csrc/cuda").mkdir()
    (tmp_path / "csrc/cuda/kernel.cu").touch()
    variables = {"EQUIKERN_CUDA": "", "CUDA_HOME": str(tmp_path / "cuda"), "TORCH_CUDA_ARCH_LIST": asked}
    done = build(**variables)
    assert done.returncode == 0, done.stderr
    line = next(line for line in log.read_text().splitlines() if "kernel.cu" in line)
    assert re.findall(r"-gencode=arch=compute_(\S+)", line) == expected
    assert "nvcc fatal" in record(tmp_path)["cuda_reason"]
    assert value(tmp_path) == 1
    assert build(**{**variables, "EQUIKERN_CUDA": "1"}).returncode != 0
    wrong = build(**{**variables, "TORCH_CUDA_ARCH_LIST": "Hopper9"})
    assert wrong.returncode != 0
    assert "'Hopper9'" in wrong.stderr


def test_one_version() -> None:
    from importlib.metadata import version

    assert version("equikern") == equikern.__version__


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        (("8.0", "9.0a"), [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        (("9.0a+PTX",), [(9, 0)], [(10, 0)]),
        (("8.6",), [(8, 6), (8, 9)], [(8, 0)]),
        (("8.0+PTX",), [(8, 0), (9, 0), (12, 0)], [(7, 0)]),
        (("10.0f",), [(10, 0), (10, 3)], [(11, 0)]),
        ((), [], [(9, 0)]),
    ],
    ids=str,
)
def test_which_gpus_the_cuda_kernels_run_on(
    archs: tuple[str, ...], runs: list[tuple[int, int]], does_not: list[tuple[int, int]]
) -> None:
    info = BuildInfo(cuda=True, cuda_archs=archs)
    assert all(info.runs_on(found) for found in runs)
    assert not any(info.runs_on(found) for found in does_not)


def test_a_gpu_that_the_kernels_were_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is served by Triton, and the reason says how to build for it."""
    cuda = importlib.import_module("equikern.backends.cuda")
    monkeypatch.setattr(cuda, "build_info", lambda: BuildInfo(native=True, cuda=True, cuda_archs=("9.0a",)))
    monkeypatch.setattr(cuda, "import_module", lambda name: type("Built", (), {"cuda_orbit": None}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    reason = Cuda().unavailable(torch.device("cuda"))
    assert reason is not None
    assert "this one has 12.0" in reason
    assert "TORCH_CUDA_ARCH_LIST=12.0" in reason
