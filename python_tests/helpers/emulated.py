"""Launch Triton's kernels on tensors of the CPU: compiled for Hopper, executed by ``warps``.

What runs is the machine code that a GPU would run, so its results, the places of its accesses, its barriers and the
number of its instructions are what is tested. It takes milliseconds a block: for small shapes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equikern import build_info
from helpers.cuda_blocks import Blocks, Launched
from helpers.machine_code import cuobjdump, demangled, dumped, extension
from helpers.warps import Counts, Launch, Memory, parameters
from torch import Tensor

__all__ = [
    "TOLERANCE",
    "Kernel",
    "MachineCode",
    "blank",
    "compiled",
    "cuda_codes",
    "cuda_launch",
    "made",
    "memory_of",
    "on_machine_code",
    "triton_parameters",
]

# Of results in a dtype, to the reference's.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5, torch.float64: 1e-11}
TARGET = "sm_90"
CUDA_THREADS = 256  # of a block of the CUDA kernels
_NUMPY = {"i1": "int8", "i32": "int32", "i64": "int64", "fp32": "float32", "fp64": "float64"}

Kernel = tuple[str, int, list[str]]  # its code, its shared memory, the types of its scalars
_KERNELS: dict[Any, Kernel] = {}


def made(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Random values."""
    t = torch.randn(shape, dtype=torch.float64).to(dtype)
    return t.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else t


def blank(like: Tensor) -> Tensor:
    """As the other in shape and strides, all to be written."""
    new = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    return new.fill_(float("nan")) if like.is_floating_point() else new.fill_(77)


def compiled(kernel: Any, pointers: Any, aligned: Any, constants: Mapping[str, Any], num_warps: int) -> Kernel:
    """A kernel's machine code, compiled once."""
    from equikern.backends.triton.compat import compile_kernel, signature

    key = (kernel.__name__, tuple(pointers), tuple(aligned), repr(sorted(constants.items())), num_warps)
    if key not in _KERNELS:
        binary = compile_kernel(kernel, TARGET, pointers, aligned, constants, num_warps)
        ((code,),) = (dump.code.values() for dump in dumped([binary.asm["cubin"]]))
        types = [t for t in signature(kernel, pointers).values() if t != "constexpr" and not t.startswith("*")]
        _KERNELS[key] = code, binary.metadata.shared, types
    return _KERNELS[key]


def triton_parameters(addresses: Iterable[int | None], types: Iterable[str], scalars: Iterable[float]) -> bytes:
    """A kernel's parameters as Triton packs them: the pointers that are there, then the scalars."""
    given = [("int64", address) for address in addresses if address is not None]
    return parameters([*given, *((_NUMPY[t], value) for t, value in zip(types, scalars, strict=True))])


def memory_of(tensors: Iterable[Tensor | None]) -> Memory:
    """Some tensors' bytes, from each one's first element to its last; tensors that share memory are one."""
    bounds: dict[int, tuple[int, int, Tensor]] = {}
    for t in tensors:
        if t is not None and t.numel():
            count = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
            start, key = int(t.storage_offset()) * t.itemsize, t.untyped_storage().data_ptr()
            first, last, _ = bounds.get(key, (start, 0, t))
            bounds[key] = min(first, start), max(last, start + count * t.itemsize), t
    memory = Memory()
    for first, last, t in bounds.values():
        raw = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())[first:last]
        memory.add(raw.data_ptr(), raw.numel(), raw.numpy())
    return memory


@contextmanager
def on_machine_code(run: bool = True) -> Iterator[list[tuple[str, Counts]]]:
    """Within it the Triton backend takes tensors of the CPU; what its launches counted is in the list.

    Without ``run`` nothing is compiled and executed: the list says what would have been launched.
    """
    from equikern.backends.triton import launch

    done: list[tuple[str, Counts]] = []

    def execute(
        kernel: Any, grid: tuple[int], args: tuple[Any, ...], constants: Mapping[str, Any], num_warps: int
    ) -> Callable[..., None] | None:
        if not run:
            done.append((kernel.__name__, Counts()))
            return None
        count = sum(1 for a in args if a is None or isinstance(a, Tensor))
        tensors: tuple[Tensor | None, ...] = args[:count]
        pointers = [t if t is None else t.dtype for t in tensors]
        aligned = [t is not None and t.data_ptr() % 16 == 0 for t in tensors]
        code, shared, types = compiled(kernel, pointers, aligned, constants, num_warps)
        given = triton_parameters((t if t is None else t.data_ptr() for t in tensors), types, args[count:])
        # Backwards, as no order of the blocks may matter.
        blocks = reversed(range(grid[0]))
        done.append(
            (kernel.__name__, Launch(code, given, grid[0], 32 * num_warps, shared).run(memory_of(tensors), blocks))
        )
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", execute)
        yield done


@functools.cache
def cuda_codes() -> dict[str, str] | str:
    """The machine code of every CUDA kernel for Hopper by its name, or why there is none."""
    spec = find_spec("equikern._C")
    info = build_info()
    if not info.cuda or spec is None or spec.origin is None:
        return f"equikern was built without CUDA ({info.cuda_reason or info.reason})"
    if cuobjdump() is None:
        return "cuobjdump not found"
    dumps = extension(Path(spec.origin)).get("sm_90a")
    if not dumps:
        return "equikern was built for other GPUs than sm_90a"
    return {demangled(symbol): code for dump in dumps for symbol, code in dump.code.items()}


def cuda_launch(launched: Launched, codes: Mapping[str, str]) -> Launch:
    """A planned launch of a CUDA kernel."""
    given = launched.plan + parameters([("int64", launched.blocks)])
    return Launch(codes[launched.kernel], given, launched.blocks, CUDA_THREADS, launched.shared)


class MachineCode(Blocks):
    """``Blocks`` whose calls execute the machine code of the built kernels in the place of their C++."""

    def __init__(self, library: Path, codes: Mapping[str, str]) -> None:
        super().__init__(library, plan_only=True)
        self.codes = codes
        self.only_planned: set[str] | None = None  # where the names of kernels go instead of running them

    def _ran(self, found: int, tensors: Iterable[Tensor | None]) -> int:
        if self.only_planned is not None:
            self.only_planned.update(self.launches())
        elif found > 0:
            memory = memory_of(tensors)
            address, size = self.partials()
            if size:
                raw = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))
                memory.add(address, size, raw)
            for launched in self.parameters():
                memory.next_launch()
                cuda_launch(launched, self.codes).run(memory, reversed(range(launched.blocks)))
        return found
