"""Options, the session's ledger, and the report after the last benchmark."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # the parts of bench import each other

from bench.ops import machine, report
from bench.ops.providers import Compiler

_LEDGER = pytest.StashKey[report.Ledger]()
_START = pytest.StashKey[float]()
_PENDING = pytest.StashKey[dict[str, None]]()  # what has not been measured yet, in order
_WRITTEN = pytest.StashKey[float]()  # when the results file was last written
_DESELECTED = pytest.StashKey[bool]()
_MACHINE = pytest.StashKey[dict[str, object]]()
RESULTS = machine.ROOT / "bench" / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench/ops")
    group.addoption(
        "--compile",
        dest="compile_mode",
        choices=("dynamic", "static"),
        default="dynamic",
        help="torch.compile each chain once for all shapes, or once for each shape (minutes more)",
    )
    group.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")
    group.addoption(
        "--results",
        type=Path,
        default=None,
        help="where to write the results (default: bench/results/<machine>-<commit>.json after a complete run)",
    )
    group.addoption("--quick", action="store_true", help="few shapes in float32, without torch.compile")
    group.addoption(
        "--only",
        choices=("images", "fields", "logits"),
        default=None,
        help="the operators on images, on fields and volumes, or on logits",
    )
    group.addoption("--device", choices=machine.devices(), default=machine.devices()[0], help="what to measure")
    group.addoption(
        "--time-limit",
        type=float,
        default=None,
        metavar="SECONDS",
        help="start nothing after so long; what --quick measures comes first then, torch.compile last",
    )
    group.addoption(
        "--fresh-pages",
        action="store_true",
        help="let malloc give memory back to the system: every provider pays for the pages of its results (glibc)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.benchmark_verbose:
        config.option.benchmark_quiet = True  # its table has no ratios; ours follows
    if not config.option.fresh_pages and not machine.keep_pages():
        raise pytest.UsageError("this libc's malloc cannot be told to keep its pages: measure with --fresh-pages")
    torch.set_num_threads(config.option.threads)
    config.stash[_LEDGER] = report.Ledger()
    config.stash[_START] = time.perf_counter()
    config.stash[_DESELECTED] = False
    config.stash[_MACHINE] = machine.describe(config.option.threads, config.option.device)
    config.stash[_PENDING] = {}
    config.stash[_WRITTEN] = float("-inf")


def _quick(item: pytest.Item) -> bool:
    """Whether ``--quick`` measures it: small calls and few shapes, without torch.compile."""
    case, provider = _parameter(item, "case"), _parameter(item, "provider")
    if case is None:
        return bool(_parameter(item, "size") != "full")
    return bool(case.quick) and provider != "compile"


def _parameter(item: pytest.Item, name: str) -> Any:
    assert isinstance(item, pytest.Function)
    return item.callspec.params.get(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Calls are of operators on images, the loss from the hidden state is of logits."""
    family = {"test_calls.py": "images", "test_linear_loss.py": "logits"}.get(collection_path.name)
    return True if family and config.option.only not in (None, family) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.quick:
        left_out = [i for i in items if not _quick(i)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [i for i in items if _quick(i)]
    elif config.option.time_limit:
        items.sort(key=lambda i: (_parameter(i, "provider") == "compile", not _quick(i)))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_PENDING] = dict.fromkeys(item.name for item in session.items)
    gc.collect()
    gc.freeze()  # what there is now stays; the collections between measurements need not look at it


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.option.time_limit
    if limit and time.perf_counter() - item.config.stash[_START] > limit:
        pytest.skip(f"left out: {limit:.0f} s are over")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The buffers of one measurement go before the next: autograd graphs are cycles that only a collection frees."""
    gc.collect()
    if not item.config.option.fresh_pages:
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    config = item.config
    if call.when == "call":
        config.stash[_PENDING].pop(item.name, None)
        if config.option.results and time.perf_counter() - config.stash[_WRITTEN] > 10:
            _write(config, config.option.results, complete=False, exit_status=None)  # in case this run is killed
    return report


def _write(config: pytest.Config, path: Path, complete: bool, exit_status: int | None) -> None:
    settings = {
        "complete": complete,
        "only": config.option.only,
        "compile": config.option.compile_mode,
        "fresh_pages": config.option.fresh_pages,
        "seconds": round(time.perf_counter() - config.stash[_START]),
        "exit_status": exit_status,
        "left_out": [*config.stash[_PENDING]],
    }
    config.stash[_LEDGER].write(path, config.stash[_MACHINE], settings)
    config.stash[_WRITTEN] = time.perf_counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[_DESELECTED] = True


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> report.Ledger:
    """Where measurements are noted for the report."""
    return request.config.stash[_LEDGER]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """What is measured."""
    name: str = request.config.option.device
    return name


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest) -> Iterator[Compiler]:
    """``torch.compile`` in the mode asked for."""
    yield Compiler(request.config.option.compile_mode)
    torch._dynamo.reset()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    ledger, info, left_out = config.stash[_LEDGER], config.stash[_MACHINE], [*config.stash[_PENDING]]
    if config.option.collectonly or not (ledger.rows or ledger.calls or ledger.losses or left_out):
        return
    cache = info["last_level_cache"]
    assert isinstance(cache, int)
    write = terminalreporter.write_line
    if ledger.rows:
        terminalreporter.section("operators: time against copying the bytes, and against the other providers")
        for line in report.kernel_table(ledger, cache):
            write(line)
    if ledger.calls:
        terminalreporter.section("call overhead at (1, 3, 8, 8)")
        for line in report.call_table(ledger):
            write(line)
    if ledger.losses:
        terminalreporter.section("loss from the last hidden state")
        for line in report.loss_table(ledger):
            write(line)
    terminalreporter.section("goals")
    for line in report.verdict(ledger, cache):
        write(line)
    seconds = time.perf_counter() - config.stash[_START]
    write(
        f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}, commit {info['commit'] or 'unknown'}, "
        f"load at the start {info['load_at_start']:.1f}, {seconds:.0f} s"
    )
    if left_out:
        write(f"left out: {len(left_out)} measurements, from {left_out[0]} on (all are named in the results)")
    path = config.option.results
    complete = bool(
        exitstatus == pytest.ExitCode.OK
        and not (config.stash[_DESELECTED] or left_out)
        and ledger.rows
        and (ledger.calls or config.option.only in ("fields", "logits"))
    )
    if path is None and complete:
        path = RESULTS / machine.slug(machine.name(config.option.device))
    if path is None:
        write("not a complete run: no results file (--results PATH writes one)")
        return
    _write(config, path, complete, int(exitstatus))
    write(f"results: {path}")
