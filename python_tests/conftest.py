"""What every test runs under: poisoned memory, each backend in turn, and the budget of the property tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

# Threads that wait without spinning, read when torch loads OpenMP: many small calls on shared cores are 3× faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import equikern
import pytest
import torch
from equikern.backends import unavailable
from helpers.cuda_blocks import Blocks, compile_blocks
from helpers.gpu import THERE
from helpers.interpreter import hasten
from helpers.repository import ROOT
from helpers.thorough import THOROUGH
from hypothesis import HealthCheck, is_hypothesis_test, settings
from torch import Tensor

sys.path.append(str(ROOT))  # its bench/ can be imported, after all that is installed

_native = importlib.util.find_spec("equikern._C")
if _native is not None and _native.origin is not None:  # a half-built tree may find another one's
    assert Path(_native.origin).parent == Path(equikern.__file__).parent, f"{equikern.__file__} beside {_native.origin}"

settings.register_profile(
    "equikern",
    deadline=None,  # two shared cores: a slow example is no error
    max_examples=15 if os.environ.get("EQUIKERN_SANITIZE") else 40,  # the sanitizers are slow
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("equikern")

# Triton's own way of combining values, which a test compares with ours; None where it is the one that runs.
OWN_REDUCE = hasten() if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") else None

collect_ignore = [] if THERE else [f"backends/cuda/test_cuda_{name}.py" for name in ("gpu", "models", "capture")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="50,000 examples for the fuzzer, instead of 60 or 500")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--nightly"):
        os.environ["EQUIKERN_FUZZ"] = "50000"  # read by python_tests/fuzz, and by the processes that it starts


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, one process runs all tests of a file, which share what is made for them, and all of CUDA's blocks,
    in the order of the folders: those with the longest tests come first.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(Path(nodeid.partition("::")[0]).parent) if "/cuda/" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log) if config.option.dist == "load" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    superfluous = other_dtypes_of_the_reference(items)
    config.hook.pytest_deselected(items=superfluous)
    items[:] = [item for item in items if item not in superfluous]


def on_the_reference(item: pytest.Function) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("backend") == "reference"


def other_dtypes_of_the_reference(items: list[pytest.Item]) -> set[pytest.Item]:
    """All but one of the dtypes with which a test runs on the reference, which is plain torch in all of them.

    Which one stays differs from case to case, so that every dtype has its turn.
    """
    cases: dict[tuple[object, ...], list[pytest.Item]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and on_the_reference(item) and "dtype" in item.callspec.indices:
            others = sorted((name, index) for name, index in item.callspec.indices.items() if name != "dtype")
            cases.setdefault((item.path.name, item.originalname, *others), []).append(item)
    return {
        item for case, found in cases.items() for item in set(found) - {found[crc32(repr(case).encode()) % len(found)]}
    }


def poisoned(t: Tensor) -> Tensor:
    """Fresh memory filled with what no kernel may leave there: NaN, or the largest integer."""
    with torch.no_grad():
        if t.is_floating_point() or t.is_complex():
            return t.fill_(float("nan"))
        return t.fill_(True if t.dtype == torch.bool else torch.iinfo(t.dtype).max)


def _poisoning(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate(*args: Any, **kwargs: Any) -> Tensor:
        t = empty(*args, **kwargs)
        return t if torch.compiler.is_compiling() else poisoned(t)

    return allocate


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every allocation without initial values holds NaN, so that an element a kernel forgot is seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", _poisoning(torch.empty))
        patch.setattr(torch, "empty_like", _poisoning(torch.empty_like))
        patch.setattr(Tensor, "new_empty", _poisoning(Tensor.new_empty))
        yield


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """For tests of many tiny calls, where waking a second thread costs more than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every CPU backend in turn. EQUIKERN_REQUIRE_NATIVE=1 makes missing C++ kernels a failure."""
    name: str = request.param
    reason = unavailable(name, torch.device("cpu"))
    if reason is not None:
        message = f"backend {name!r} cannot run: {reason}"
        if os.environ.get("EQUIKERN_REQUIRE_NATIVE") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with equikern.use_backend(name):
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Property tests take a third of the examples outside of ``.ci/run``; on the reference, which is plain torch in
    every dtype, a quarter of these.
    """
    if not (isinstance(item, pytest.Function) and is_hypothesis_test(item.obj)) or item.path.parent.name == "fuzz":
        return (yield)  # the fuzzer counts its own
    share = (1 if THOROUGH else 3) * (4 if on_the_reference(item) else 1)
    whole = item.obj._hypothesis_internal_use_settings
    item.obj._hypothesis_internal_use_settings = settings(whole, max_examples=-(-whole.max_examples // share))
    try:
        return (yield)
    finally:
        item.obj._hypothesis_internal_use_settings = whole


@pytest.fixture
def own_reduce(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes Triton's interpreter combine values in its own way from here on, in this test."""
    if OWN_REDUCE is None:
        pytest.skip("Triton's interpreter combines values in its own way")
    from triton.runtime import interpreter

    return lambda: monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", OWN_REDUCE)


@pytest.fixture(scope="session")
def cuda_blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """The CUDA kernels on the CPU, thread after thread."""
    library = compile_blocks(tmp_path_factory.mktemp("blocks"))
    return Blocks(library) if library else pytest.skip("no C++ compiler")
