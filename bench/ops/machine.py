"""What the numbers depend on: the machine, the versions, the commit."""

from __future__ import annotations

import ctypes
import datetime
import functools
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import equikern
import torch

ROOT = Path(__file__).resolve().parents[2]


def _first(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def cpu_name() -> str:
    """The CPU's model name."""
    return _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


@functools.cache
def last_level_cache(device: str = "cpu") -> int:
    """Bytes of the CPU's largest cache, or of the GPU's L2; 32 MiB where the system does not tell."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties().L2_cache_size)
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        size = _first(str(index / "size"), r"^(\d+)K$")
        sizes.append(int(size) * 1024 if size else 0)
    return max(sizes, default=0) or 32 << 20


def commit() -> str:
    """The commit that is checked out, "-dirty" where the code differs from it, "" outside a repository."""
    try:
        run = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def keep_pages() -> bool:
    """malloc without mmap and without trimming: what is freed is used again, its pages still there. Whether it can."""
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1))
    except (OSError, AttributeError):
        return False


def driver() -> str | None:
    """The GPU driver's version."""
    run = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> list[str]:
    """What can be measured; the first is what is measured unless asked otherwise."""
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def describe(threads: int, device: str) -> dict[str, Any]:
    """Machine and versions, for the results file."""
    info: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "last_level_cache": last_level_cache(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "ttach": _version("ttach"),
        "pytorch-toolbelt": _version("pytorch-toolbelt"),
        "equikern": equikern.__version__,
        "backends": {device: equikern.active_backend(device)},
        "compiler": equikern.build_info().compiler,
        "commit": commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        info |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver()}
    return info


def name(device: str) -> str:
    """The GPU's name, or the CPU's."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def slug(name: str, suffix: str = "") -> str:
    """A file name: the machine, the commit (or the date where there is none), and what else is said."""
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    machine = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return "-".join(part for part in (machine, commit() or day, suffix) if part) + ".json"
