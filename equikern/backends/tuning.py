"""``tuned``: measured launch shapes instead of the rule's.

What a launch looks like follows a rule of its shapes, dtype and group. In tuned mode a few launches around the rule's
are timed the first time a kind of problem is met, and the fastest is kept, on disk too. Nothing here imports Triton.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import torch

__all__ = ["RULE", "Choice", "Winners", "candidates", "driver_version", "fastest", "is_tuned", "tuned"]


class Choice(NamedTuple):
    """A launch relative to the rule's: the block and the warps doubled so many times, negative for halved."""

    block: int = 0
    warps: int = 0


RULE = Choice()

_on = os.environ.get("EQUIKERN_TUNE", "0") == "1"
_when_switched: list[Callable[[], None]] = []  # forget launches that were chosen in the other mode


def is_tuned() -> bool:
    """Whether new kinds of problems are measured.

    Example:
        >>> with tuned(True):
        ...     is_tuned()
        True
    """
    return _on


def _switch(on: bool) -> None:
    global _on
    if on != _on:
        _on = on
        for forget in _when_switched:
            forget()


def when_switched(forget: Callable[[], None]) -> None:
    """Call a function whenever tuned mode goes on or off."""
    _when_switched.append(forget)


class tuned:  # noqa: N801  (reads as a verb)
    """Measure the Triton kernels' launch shapes on first use, from now on or inside a ``with`` block.

    The first call with a new kind of problem (operator, dtype, group, layout, device; sizes to powers of two) times up
    to nine launches and takes some tenths of a second, most of it to compile; later ones, in later processes too, find
    the winner in the cache: ``$XDG_CACHE_HOME/equikern`` (``~/.cache/equikern``), one file per GPU, driver, CUDA,
    Triton and equikern version. Results keep their bits. The sums of the weighted mean's backward are not tuned, since
    their order would follow the launch. While a CUDA graph is being captured nothing is measured: a winner that is
    known is used, else the rule's launch. The environment variable ``EQUIKERN_TUNE=1`` does the same from the start.

    Process-wide. It changes nothing on the CPU and for kernels in CUDA C++.

    Args:
        on: whether to measure.

    Raises:
        TypeError: on is no bool.

    Example:
        >>> from equikern import grid, orbit
        >>> with tuned(True):
        ...     orbit(torch.tensor([[1, 2]]), grid("hflip")).tolist()
        [[[1, 2]], [[2, 1]]]
    """

    def __init__(self, on: bool = True) -> None:
        if not isinstance(on, bool):
            raise TypeError(f"on: expected True or False, got {type(on).__name__}")
        self._on, self._previous = on, _on
        _switch(on)

    def __enter__(self) -> tuned:
        _switch(self._on)  # once more, for an object that is entered again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _switch(self._previous)


# The choice among candidates


_Launch = TypeVar("_Launch")


def candidates(variant: Callable[[Choice], _Launch], same: Callable[[_Launch, _Launch], bool]) -> dict[Choice, _Launch]:
    """The launches around the rule's, the rule's first, without those that come out the same.

    Example:
        >>> found = candidates(lambda c: max(c.block, 0), lambda a, b: a == b)
        >>> list(found.values())
        [0, 1]
    """
    found: dict[Choice, _Launch] = {}
    for block in (0, -1, 1):
        for warps in (0, -1, 1):
            launch = variant(Choice(block, warps))
            if not any(same(launch, other) for other in found.values()):
                found[Choice(block, warps)] = launch
    return found


def fastest(launches: Mapping[Choice, _Launch], timer: Callable[[_Launch], float | None]) -> Choice:
    """The choice of least time; the rule's unless another is 2 % faster, since times are noisy.

    Args:
        launches: as ``candidates`` gives them.
        timer: seconds of a launch, or None if the GPU cannot run it.

    Example:
        >>> fastest({RULE: "a", Choice(1, 0): "b", Choice(0, 1): "c"}, {"a": 1.0, "b": None, "c": 0.5}.get)
        Choice(block=0, warps=1)
    """
    times = {choice: seconds for choice, launch in launches.items() if (seconds := timer(launch)) is not None}
    if not times:
        return RULE
    best = min(times, key=times.__getitem__)
    return RULE if RULE in times and times[RULE] <= 1.02 * times[best] else best


def bucket(n: int) -> int:
    """The power of two at or above n: sizes of one bucket share a winner.

    Example:
        >>> [bucket(n) for n in (0, 1, 5, 64)]
        [0, 1, 8, 64]
    """
    return 1 << (n - 1).bit_length() if n > 0 else 0


# Where winners are kept


class Winners:
    """The winners of one GPU and one set of versions: in memory, and in a JSON file that processes share.

    The file is replaced as a whole, never written in place; what another process added meanwhile is kept. A file
    that cannot be read or written costs a warning and tuning anew, nothing else.

    Args:
        environment: what the winners depend on besides the problem, such as the GPU's name and versions.
        folder: where the file lies; by default the user's cache.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Winners(["GPU", "1.0"], Path(folder)).keep("mean", Choice(1, 0))
        ...     Winners(["GPU", "1.0"], Path(folder)).get("mean")
        Choice(block=1, warps=0)
    """

    def __init__(self, environment: Iterable[str], folder: Path | None = None) -> None:
        name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in environment)
        self.path = (cache_folder() if folder is None else folder) / f"tuning-{name}.json"
        self._known: dict[str, Choice] = self._read()

    def _read(self) -> dict[str, Choice]:
        try:
            found = json.loads(self.path.read_text())
            winners = {key: Choice._make(value) for key, value in found.items()}
            if not all(type(shift) is int and abs(shift) <= 1 for choice in winners.values() for shift in choice):
                raise ValueError("expected pairs of -1, 0 and 1")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            warnings.warn(f"{self.path} is ignored, it is no table of tuned launches: {error}", stacklevel=2)
            return {}
        return winners

    def get(self, key: str) -> Choice | None:
        """The winner of a kind of problem, or None."""
        return self._known.get(key)

    def keep(self, key: str, choice: Choice) -> None:
        """Remember a winner, here and on disk."""
        self._known[key] = choice
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when it was read first
                self._known = {**self._read(), **self._known}
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(self._known, file, indent=1, sort_keys=True)
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            warnings.warn(f"tuned launches are not kept for later processes: {error}", stacklevel=2)


def cache_folder() -> Path:
    """The user's cache by the XDG rules, where a relative ``XDG_CACHE_HOME`` counts as none."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "equikern"


def driver_version() -> str:
    """The version of the GPU's driver, "unknown" where none tells; no GPU is touched.

    Example:
        >>> isinstance(driver_version(), str)
        True
    """
    if torch.version.hip is not None:
        try:
            return Path("/sys/module/amdgpu/version").read_text().strip()
        except OSError:  # the driver is the one of the Linux kernel
            return platform.release()
    # torch has no public name for it: NVIDIA's management library, which every driver brings, has.
    answer = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return "unknown"
        failed = library.nvmlSystemGetDriverVersion(answer, ctypes.c_uint(len(answer)))
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return "unknown"
    return "unknown" if failed else answer.value.decode()
