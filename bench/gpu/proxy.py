"""A pytest plugin that runs the tests of the backend "cpu" on a GPU's kernels: ``pytest -p bench.gpu.proxy``.

Every kernel call copies the memory behind its CPU tensors to the device, with the same strides, offsets and alignment,
runs there, and copies it back. So each test of an operator is one of the GPU's kernels, and none is written twice.

PROXY_BACKEND: "triton", "cuda" (wherever it has a kernel) or, by default, the choice of ``equikern.backends.choice``.
PROXY_DEVICE=cpu with PROXY_BACKEND=reference rehearses all this without a GPU. PROXY_EXACT=1 gives memory on the
device not a byte more than the tensors have, so that a sanitizer sees what reads beyond them. PROXY_EXAMPLES: of a
property test, default 4. FAILURES: a file that gets every failure at once, so that a run that is killed leaves them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import equikern.backends
import pytest
import torch
from equikern.backends import choice
from equikern.backends.base import Backend
from equikern.backends.cpu import Cpu
from helpers.thorough import THOROUGH
from hypothesis import HealthCheck, is_hypothesis_test, settings
from torch import Tensor

DEVICE = torch.device(os.environ.get("PROXY_DEVICE", "cuda:0"))
NAME = os.environ.get("PROXY_BACKEND") or "cuda"
EXACT = os.environ.get("PROXY_EXACT") == "1"
EXAMPLES = int(os.environ.get("PROXY_EXAMPLES", "4"))
LINE = 64  # bytes: memory on the device starts where that on the CPU starts within such a piece

KERNELS = sorted(Backend.__abstractmethods__ - {"unavailable"})


class There:
    """The memory of one call's tensors on the device, one copy of each storage."""

    def __init__(self) -> None:
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, argument: Any) -> Any:
        """A tensor's twin on the device; what is no tensor stays what it is."""
        if not isinstance(argument, Tensor):
            return argument
        storage, size = argument.untyped_storage(), argument.element_size()
        start = storage.data_ptr()
        if start not in self._moved:
            raw = torch.empty(0, dtype=torch.uint8).set_(storage)
            exact = EXACT and start % LINE == 0
            room = torch.empty(raw.numel() + (0 if exact else LINE), dtype=torch.uint8, device=DEVICE)
            shift = 0 if exact else (start - room.data_ptr()) % LINE
            shift -= shift % size  # a storage that starts between two elements is shifted
            self._moved[start] = raw, room[shift : shift + raw.numel()].copy_(raw)
        here = self._moved[start][1]
        first, rest = divmod(int(here.storage_offset()), size)
        assert rest == 0, f"memory seen as {argument.dtype} too does not start at one of its elements"
        twin = torch.empty(0, dtype=argument.dtype, device=DEVICE)
        at = first + argument.storage_offset()
        return twin.set_(here.untyped_storage(), at, argument.shape, argument.stride())

    def back(self) -> None:
        """All of it to where it came from."""
        for raw, here in self._moved.values():
            raw.copy_(here)


class Proxy(Cpu):
    """The backend "cpu", computed somewhere else."""

    calls = 0

    def __init__(self, real: Backend) -> None:
        self.real = real

    def unavailable(self, device: torch.device) -> str | None:
        """None on CPU tensors where the real backend can run."""
        return super().unavailable(device) if device.type != "cpu" else self.real.unavailable(DEVICE)


def _there(name: str) -> Callable[..., None]:
    def kernel(self: Proxy, *arguments: Any) -> None:
        there = There()
        choice.everywhere = os.environ.get("PROXY_BACKEND") == "cuda"  # reset whenever a test switches backends
        getattr(self.real, name)(*(there(argument) for argument in arguments))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        there.back()
        Proxy.calls += 1

    return kernel


for _name in KERNELS:
    setattr(Proxy, _name, _there(_name))


def install() -> Proxy:
    """Put the proxy in the place of the backend "cpu"."""
    load = equikern.backends._load
    proxy = Proxy(load(NAME))
    equikern.backends._load = lambda name: proxy if name == "cpu" else load(name)  # type: ignore[assignment]
    equikern.backends._active.clear()
    return proxy


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, which may ask for the active backend."""
    install()
    if not hasattr(config, "workerinput") and os.environ.get("FAILURES"):
        config.pluginmanager.register(Failures(os.environ["FAILURES"]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests that go through every backend, and of these the ones on "cpu"."""
    on_cpu = [item for item in items if isinstance(item, pytest.Function) and _backend(item) == "cpu"]
    chosen = set(on_cpu)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = on_cpu
    for item in on_cpu:
        if is_hypothesis_test(item.obj):  # which has had its settings since its module was imported
            item.obj._hypothesis_internal_use_settings = settings(
                item.obj._hypothesis_internal_use_settings,
                deadline=None,
                derandomize=True,
                max_examples=EXAMPLES * (1 if THOROUGH else 3),  # of which conftest.py takes a third
                suppress_health_check=list(HealthCheck),
            )


def _backend(item: pytest.Function) -> object:
    return item.callspec.params.get("backend") if hasattr(item, "callspec") else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The kernel calls of one of pytest-xdist's processes."""
    Proxy.calls += getattr(node, "workeroutput", {}).get("kernel calls", 0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """How many kernel calls went to the device; a run without any has tested nothing."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kernel calls"] = Proxy.calls
        return
    print(f"\nkernel calls through the proxy: {Proxy.calls}")
    if not Proxy.calls and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Failures:
    """Writes every failure at once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line: the test and what it said."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = " ".join(str(crash.message if crash else report.longrepr).split())
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{report.nodeid} {said[:240]}\n")
