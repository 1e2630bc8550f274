"""Everything that depends on the installed Triton's version: checked with 3.4.0 to 3.9.0."""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call, no-any-return"

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.errors import OutOfResources

from ..nvtx import moved

__all__ = [
    "OLDEST",
    "LaunchError",
    "compile_kernel",
    "full_version",
    "interpreting",
    "jit_kernel",
    "launch",
    "signature",
    "version",
]

LaunchError = OutOfResources  # more shared memory, registers or threads than the GPU has

OLDEST = (3, 4)  # the first whose kernels take tuples as constants; torch 2.8 brings it


def jit_kernel(fn: Any) -> Any:
    """``triton.jit`` for kernels whose scalars all carry annotations and are never specialised on.

    Triton would otherwise compile anew when a stride happens to be 1 or a multiple of 16; what a kernel may assume of
    its strides is said by its constants instead.
    """
    scalars = [name for name, kind in fn.__annotations__.items() if kind is not triton.language.constexpr]

    def name(specialization: Any) -> str:
        pointer = next(str(kind) for kind in specialization.signature.values() if str(kind).startswith("*"))
        op = specialization.constants.get("OP")
        return "_".join(["equikern", fn.__name__, *([op] if isinstance(op, str) else []), pointer.lstrip("*")])

    # Triton gathers what a profiler might ask for at every launch, attached or not: that is paid only where wanted.
    metadata = _launch_metadata if os.environ.get("EQUIKERN_NVTX", "0") == "1" else None
    return triton.jit(do_not_specialize=scalars, repr=name, launch_metadata=metadata)(fn)


def _launch_metadata(grid: Any, metadata: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """What Triton's profiler (proton) shows of a launch; with ``EQUIKERN_NVTX=1``."""
    tensors = {name: value for name, value in args.items() if isinstance(value, torch.Tensor)}
    shape = "x".join(map(str, next(iter(tensors.values())).shape))
    # A selection by given scores reads one of the views, as many entries as it writes; tables of sources stay in the
    # cache.
    one = "MINIMUM" in args and "OP" not in args
    read = [tensors["out"] if name == "y" and one else t for name, t in tensors.items() if name not in _TABLES]
    count = moved(*read)
    if "N" in args and args.get("positions") is not None:  # some entries of the permuted dim alone
        count = count * args["M"] // args["N"]
    return {"name": f"{metadata.name} {shape}", "bytes": count}


_TABLES = ("positions", "sources", "whole", "skip", "channels")


_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

_TARGETS = {"sm": ("cuda", 32), "gfx": ("hip", 64)}


def version() -> tuple[int, int]:
    """Major and minor number of the installed Triton."""
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def full_version() -> str:
    """The installed Triton's version in full."""
    return str(triton.__version__)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def signature(kernel: Any, pointers: Sequence[torch.dtype | None]) -> dict[str, str]:
    """Types of a kernel's parameters: pointers come first, scalars carry annotations, the rest are constants."""
    types: dict[str, str] = {}
    for position, parameter in enumerate(kernel.params):
        dtype = pointers[position] if position < len(pointers) else None
        if dtype is not None:
            types[parameter.name] = _POINTERS[dtype]
        elif parameter.is_constexpr or position < len(pointers):
            types[parameter.name] = "constexpr"
        else:
            types[parameter.name] = parameter.annotation_type
    return types


def _options(num_warps: int) -> dict[str, Any]:
    # A product fused into a sum here and not there would make results depend on the layout and on Triton's release,
    # whose default changes with 3.10; kernels that wait for memory lose nothing.
    return {"num_warps": num_warps, "enable_fp_fusion": False}


def launch(
    kernel: Any, grid: tuple[int], args: tuple[Any, ...], constants: Mapping[str, Any], num_warps: int
) -> Callable[..., None] | None:
    """Launch through Triton's own checks, and return what repeats the launch without them.

    Triton examines every argument at every call to find the binary that fits, which costs more than a small kernel.
    Here the same plan means the same binary. The result takes the arguments and the constants, in the kernel's order;
    it is None where there is no binary, as in the interpreter.
    """
    compiled = kernel[grid](*args, **constants, **_options(num_warps))
    return compiled[(grid[0], 1, 1)] if isinstance(compiled, CompiledKernel) else None


def compile_kernel(
    kernel: Any,
    target: str,
    pointers: Sequence[torch.dtype | None],
    aligned: Sequence[bool],
    constants: Mapping[str, Any],
    num_warps: int,
) -> Any:
    """Compile a kernel without a GPU, as the launch would.

    Args:
        target: ``"sm_90"`` or ``"gfx942"``, say.
        pointers: the dtype of each leading pointer parameter, None where no tensor is given.
        aligned: whether each pointer is a multiple of 16 bytes.
        constants: the remaining compile-time parameters by name.
    """
    backend, lanes = _TARGETS["gfx" if target.startswith("gfx") else "sm"]
    arch: Any = target if backend == "hip" else int(target.removeprefix("sm_"))
    absent = {kernel.params[i].name: None for i, dtype in enumerate(pointers) if dtype is None}
    attributes = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes}
    source = ASTSource(
        fn=kernel,
        signature=signature(kernel, pointers),
        constexprs={**absent, **constants},
        attrs=attributes,
    )
    return triton.compile(source, target=GPUTarget(backend, arch, lanes), options=_options(num_warps))
