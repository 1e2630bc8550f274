"""Options, the session's ledger, and the report after the last benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import machine
import pytest
import report
import torch
from providers import Compiler

_LEDGER = pytest.StashKey[report.Ledger]()
_START = pytest.StashKey[float]()
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
    group.addoption("--quick", action="store_true", help="two shapes in float32, without torch.compile")
    group.addoption(
        "--fresh-pages",
        action="store_true",
        help="let malloc give memory back to the system: every provider pays for the pages of its results (glibc)",
    )


def devices() -> list[str]:
    """What there is to measure."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.benchmark_verbose:
        config.option.benchmark_quiet = True  # its table has no ratios; ours follows
    if not config.option.fresh_pages:
        _keep_pages()
    torch.set_num_threads(config.option.threads)
    config.stash[_LEDGER] = report.Ledger()
    config.stash[_START] = time.perf_counter()
    config.stash[_DESELECTED] = False
    config.stash[_MACHINE] = machine.describe(config.option.threads, devices())


def _keep_pages() -> None:
    """malloc without mmap and without trimming: what is freed is used again, its pages still there."""
    import ctypes

    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)):
        raise pytest.UsageError("this libc's malloc cannot be told to keep its pages: measure with --fresh-pages")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.quick:
        return
    words = ("-16x64x56x56-float32", "-8x1280x7x7-float32")
    kept = [i for i in items if any(w in i.name for w in words) and not i.name.endswith("-compile]")]
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = kept


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[_DESELECTED] = True


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> report.Ledger:
    """Where measurements are noted for the report."""
    return request.config.stash[_LEDGER]


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest) -> Iterator[Compiler]:
    """``torch.compile`` in the mode asked for."""
    yield Compiler(request.config.option.compile_mode)
    torch._dynamo.reset()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    ledger, info = config.stash[_LEDGER], config.stash[_MACHINE]
    if not ledger.rows and not ledger.calls:
        return
    cache = info["last_level_cache"]
    assert isinstance(cache, int)
    write = terminalreporter.write_line
    if ledger.rows:
        terminalreporter.section("operators: time against copying the bytes, eager torch and torch.compile")
        for line in report.kernel_table(ledger, cache):
            write(line)
    if ledger.calls:
        terminalreporter.section("call overhead at (1, 3, 8, 8)")
        for line in report.call_table(ledger):
            write(line)
    terminalreporter.section("goals")
    for line in report.verdict(ledger, cache):
        write(line)
    seconds = time.perf_counter() - config.stash[_START]
    write(
        f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}, commit {info['commit'] or 'unknown'}, "
        f"load at the start {info['load_at_start']:.1f}, {seconds:.0f} s"
    )
    path = config.option.results
    complete = exitstatus == pytest.ExitCode.OK and not config.stash[_DESELECTED] and ledger.rows and ledger.calls
    if path is None and complete:
        path = RESULTS / machine.slug(machine.name())
    if path is None:
        write("not a complete run: no results file (--results PATH writes one)")
        return
    settings = {
        "complete": bool(complete),
        "compile": config.option.compile_mode,
        "fresh_pages": config.option.fresh_pages,
        "seconds": round(seconds),
        "exit_status": int(exitstatus),
    }
    ledger.write(path, info, settings)
    write(f"results: {path}")
