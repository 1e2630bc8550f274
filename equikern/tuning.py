"""``tuned`` and ``warmup``: measured launch shapes instead of the rule's, and kernels compiled ahead of the first call.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .actions import Action

__all__ = ["RULE", "Choice", "Winners", "candidates", "driver_version", "fastest", "is_tuned", "tuned", "warmup"]


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


# Ahead of time


def warmup(
    call: Callable[..., object],
    shape: Sequence[int],
    action: Action | None = None,
    *,
    weights: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    memory_format: torch.memory_format = torch.contiguous_format,
    backward: bool = True,
) -> None:
    """Compile (and in tuned mode tune) what a call needs, so that the first real one of its kind does not.

    Runs the call once on tensors of zeros, which takes the memory of one call; gradients and a module's buffers stay
    as they are. A kernel serves every size of its layout, so one shape usually warms many.

    Args:
        call: an operator, called as ``call(x, action)`` or ``call(y, weights, action)``, or a module such as
            ``EquiTune``, called as ``call(x)`` in evaluation mode.
        shape: of x, or of y with the group axis first.
        action: the operator's action; None for a module.
        weights: the shape of the operator's weights or scores, such as (|G|, B); None where it has none.
        dtype: of x or y.
        device: where to run.
        memory_format: ``torch.channels_last`` keeps the channels of a pixel together.
        backward: also what the gradients need, where there are any.

    Raises:
        TypeError: call is not callable, or action is not an action.
        ValueError: the device is not there, so nothing could be compiled; an unknown memory format or a shape
            too short for it.

    Example:
        >>> from equikern import grid, orbit_mean
        >>> warmup(orbit_mean, (4, 2, 3, 8, 8), grid("c4"), device="cpu")
    """
    if not callable(call):
        raise TypeError(f"call: expected an operator or a module, got {type(call).__name__}")
    if action is not None and not isinstance(action, Action):
        raise TypeError(f"action: expected an action such as grid('c4') or None, got {type(action).__name__}")
    device = _present(device)
    tensors = [_zeros(shape, dtype, device, memory_format)]
    if weights is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors.append(torch.ones(tuple(weights), dtype=wide, device=device))
    backward = backward and dtype.is_floating_point
    extra = () if action is None else (action,)
    modules = [m for m in call.modules() if m.training] if isinstance(call, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        with torch.set_grad_enabled(backward):
            results = _tensors(call(*(t.requires_grad_(backward) for t in tensors), *extra))
        results = [t for t in results if t.requires_grad]
        if results:
            parameters = [p for p in call.parameters() if p.requires_grad] if isinstance(call, nn.Module) else []
            grads = [torch.zeros_like(t) for t in results]
            torch.autograd.grad(results, [*tensors, *parameters], grads, allow_unused=True)
    finally:
        for module in modules:
            module.training = True


def _present(device: torch.device | str) -> torch.device:
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {type(device).__name__}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected a device such as 'cpu' or 'cuda', got {device!r}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: nothing was compiled for {str(device)!r}, torch sees no GPU here; kernels are compiled on the "
            "machine that runs them, so call warmup there"
        )
    return device


def _zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Tensor:
    sizes = tuple(shape)
    if memory_format == torch.contiguous_format:
        return torch.zeros(sizes, dtype=dtype, device=device)
    if memory_format != torch.channels_last:
        raise ValueError(f"memory_format: expected contiguous_format or channels_last, got {memory_format}")
    if len(sizes) < 3:
        raise ValueError(f"shape: expected (…, C, H, W) for channels_last, got {sizes}")
    *lead, c, h, w = sizes
    return torch.zeros((*lead, h, w, c), dtype=dtype, device=device).movedim(-1, -3)


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, (tuple, list)) else ()
    return [t for value in values for t in _tensors(value)]
