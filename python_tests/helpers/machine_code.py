"""Read what a GPU binary is made of: registers, spills, shared memory, widths of global accesses, barriers, occupancy.

NVIDIA binaries are read with cuobjdump and nvdisasm, AMD's from the assembly that Triton keeps beside them. No GPU is
needed.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Dump", "amd_kernel", "cuda_kernels", "cuobjdump", "demangled", "dumped", "extension"]


@dataclass(frozen=True)
class Multiprocessor:
    """What the warps of one multiprocessor share: the CUDA programming guide's table of compute capabilities."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536
    reserved: int = 1024  # bytes of shared memory the driver takes for itself in every block


NVIDIA = {
    80: Multiprocessor(warps=64, blocks=32, shared=164 * 1024),
    86: Multiprocessor(warps=48, blocks=16, shared=100 * 1024),
    89: Multiprocessor(warps=48, blocks=24, shared=100 * 1024),
    90: Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
    100: Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
    120: Multiprocessor(warps=48, blocks=24, shared=100 * 1024),
}

# Wider than 16 bytes only on Blackwell. LDGSTS copies from global to shared memory; LD and ST have a pointer whose
# kind of memory the compiler did not know.
_ACCESS = re.compile(r"\b(LDG|LDGSTS|LD|STG|ST)\.(E[\w.]*)")
_COUNTED = re.compile(r"\b(SHFL|BAR|LDL|STL|ATOM|ATOMG|RED|REDG)\b")
_USAGE = re.compile(r"\b(REG|STACK|LOCAL|SHARED):(\d+)")
_WIDTH = re.compile(r"\.[US]?(256|128|64|16|8)\b")
_INSTRUCTION = re.compile(r"^ +/\*[0-9a-f]{4,}\*/ .*", re.MULTILINE)
INSTRUCTION = 16  # bytes
_THREADS = re.compile(r"EIATTR_(?:REQNTID|MAX_THREADS)\s+Format:\s+EIFMT_SVAL\s+Value:\s+((?:0x[0-9a-f]+ ?)+)")


def cuobjdump() -> str | None:
    """CUDA's own cuobjdump, which knows what its nvcc wrote; else the one inside Triton's wheel; or None."""
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found is None:
        try:
            import triton  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            return None
        found = shutil.which(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return found


def _tool() -> str:
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError("cuobjdump not found: install the CUDA toolkit or Triton")
    return tool


def _dump(path: Path, *flags: str) -> str:
    return subprocess.run([_tool(), *flags, path], capture_output=True, text=True, check=True).stdout


@functools.cache
def extension(library: Path) -> dict[str, list[Dump]]:
    """The device binaries that a library carries, by their target, such as sm_90a."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([_tool(), "-xelf", "all", library.resolve()], cwd=folder, capture_output=True, check=True)
        found: dict[str, list[bytes]] = {}
        for path in sorted(Path(folder).glob("*.cubin")):
            target = re.search(r"\.(sm_\d+[a-z]?)\.cubin$", path.name)
            if target is not None:
                found.setdefault(target[1], []).append(path.read_bytes())
    return {target: dumped(cubins) for target, cubins in found.items()}


def demangled(symbol: str) -> str:
    """A C++ kernel's name as in the source, without its parameters; other names as they are."""
    library = ctypes.CDLL("libstdc++.so.6")
    demangle = library.__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    found = demangle(symbol.encode(), None, None, ctypes.byref(status))
    if not found:
        return symbol
    name = ctypes.string_at(found).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(found))
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for k, letter in enumerate(name):  # the parameters start at the first bracket outside the template's
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:k]
    return name


def _by_function(text: str, pattern: str) -> dict[str, str]:
    """A dump's sections by the kernel they belong to."""
    parts = re.split(pattern, text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@dataclass
class Dump:
    """Of one NVIDIA binary: its kernels' instructions, usage of resources and attributes, each by symbol."""

    code: dict[str, str]
    usage: dict[str, dict[str, int]]
    infos: dict[str, str]
    capability: int


def dumped(cubins: Iterable[bytes]) -> list[Dump]:
    """What NVIDIA's tools print of some binaries."""
    found, texts = [], []
    for cubin in cubins:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            usage, elf = _dump(path, "-res-usage"), _dump(path, "-elf")
        named = re.search(r"\bsm_(\d+)|\bsm=(\d+)", elf)
        assert named is not None, "not an NVIDIA binary"
        used = _by_function(usage, r"Function ([^\s:]+):")
        counts = {symbol: {key: int(n) for key, n in _USAGE.findall(text)} for symbol, text in used.items()}
        infos = _by_function(elf, r"(?m)^\.nv\.info\.(\S+)")
        found.append(Dump({}, counts, infos, int(named[1] or named[2])))
        texts.append(_texts(cubin))
    for capability in {dump.capability for dump in found}:
        of_one = [(dump, text) for dump, text in zip(found, texts, strict=True) if dump.capability == capability]
        lines = iter(_disassembled(capability, b"".join(code for _, text in of_one for code in text.values())))
        for dump, text in of_one:
            for symbol, code in text.items():
                dump.code[symbol] = "\n".join(itertools.islice(lines, len(code) // INSTRUCTION))
    return found


def cuda_kernels(dump: Dump, dynamic_shared: int | Mapping[str, int] = 0) -> dict[str, dict[str, Any]]:
    """Every kernel of an NVIDIA binary by its demangled name.

    Args:
        dynamic_shared: bytes of shared memory that the launch adds, to all kernels or by their names. The occupancy is
            an upper bound for those without a name there.
    """
    result = {}
    for symbol, used in dump.usage.items():
        if symbol not in dump.code:
            continue
        threads = _THREADS.search(dump.infos.get(symbol, ""))
        block = None if threads is None else math.prod(int(size, 16) for size in threads[1].split())
        # From Hopper on the driver's own part is counted as the kernel's.
        reserved = 1024 if dump.capability >= 90 and used["SHARED"] >= 1024 else 0
        name = demangled(symbol)
        added = dynamic_shared if isinstance(dynamic_shared, int) else dynamic_shared.get(name, 0)
        shared = used["SHARED"] - reserved + added
        result[name] = {
            "registers": used["REG"],
            "stack": used["STACK"],
            "local": used["LOCAL"],
            "shared": shared,
            "threads": block,
            "occupancy": _nvidia_occupancy(dump.capability, used["REG"], shared, block),
            **_count(dump.code[symbol]),
        }
    return result


def _texts(cubin: bytes) -> dict[str, bytes]:
    """The code of a binary's kernels by symbol: the sections of an ELF file of 64 bits whose names start with .text."""
    start, (size, count, names) = struct.unpack_from("<Q", cubin, 0x28)[0], struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + k * size) for k in range(count)]
    found = {}
    for name, _, _, _, offset, length in headers:
        at = headers[names][4] + name
        text = cubin[at : cubin.index(b"\0", at)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = cubin[offset : offset + length]
    return found


def _disassembled(capability: int, code: bytes) -> list[str]:
    """A line for each instruction; of many kernels at once, since nvdisasm takes half a second to start."""
    if not code:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code"
        path.write_bytes(code)
        name = f"SM{capability}{'a' if capability >= 90 else ''}"
        command = [str(Path(_tool()).with_name("nvdisasm")), "-ndf", "-b", name, str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = _INSTRUCTION.findall(text)
    assert len(lines) * INSTRUCTION == len(code), "nvdisasm printed something else than a line for each instruction"
    return lines


def _count(sass: str) -> dict[str, Any]:
    widths: dict[str, Counter[int]] = {"loads": Counter(), "stores": Counter()}
    for kind, modifiers in _ACCESS.findall(sass):
        width = _WIDTH.search("." + modifiers)
        # An asynchronous copy reads global memory; it writes shared memory.
        widths["loads" if kind.startswith("LD") else "stores"][int(width[1]) if width else 32] += 1
    counts = Counter(_COUNTED.findall(sass))
    return {
        **{name: _ordered(found) for name, found in widths.items()},
        "barriers": counts["BAR"],
        "shuffles": counts["SHFL"],
        "spills": counts["LDL"] + counts["STL"],
        "atomics": sum(counts[name] for name in ("ATOM", "ATOMG", "RED", "REDG")),
    }


def _ordered(widths: Counter[int]) -> dict[str, int]:
    """Accesses by their width in bits, widest first; text, as JSON's keys are."""
    return {str(width): widths[width] for width in sorted(widths, reverse=True)}


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _nvidia_occupancy(capability: int, registers: int, shared: int, threads: int | None) -> float | None:
    """Share of a multiprocessor's warps that can be resident at once; None where the binary does not tell."""
    limits = NVIDIA.get(capability)
    if limits is None or threads is None:
        return None
    warps = -(-threads // 32)
    # Registers are given out per warp in units of 256, to each of the four schedulers' quarters.
    by_registers = limits.registers // 4 // _round_up(max(registers, 1) * 32, 256) * 4 // warps
    by_shared = limits.shared // _round_up(shared + limits.reserved, 128)
    return round(min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps / limits.warps, 3)


_AMD_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")
_AMD_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}
_AMD_NUMBER = re.compile(
    r"^\s*\.(vgpr_count|agpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size|"
    r"max_flat_workgroup_size|group_segment_fixed_size):\s*(\d+)",
    re.MULTILINE,
)


def amd_kernel(assembly: str, shared: int) -> dict[str, Any]:
    """The same of a CDNA 3 kernel from its assembly; ``shared`` is what the launch asks for."""
    numbers = {name: int(value) for name, value in _AMD_NUMBER.findall(assembly)}
    widths: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, suffix in _AMD_ACCESS.findall(assembly):
        width = next((w for name, w in _AMD_WIDTHS.items() if re.search(rf"(^|_){name}$", suffix)), None)
        widths[kind][width or (16 if "short" in suffix else 8 if "byte" in suffix else 32)] += 1
    threads = numbers["max_flat_workgroup_size"]
    return {
        "registers": numbers["vgpr_count"],  # together with the accumulation registers, as CDNA 3 counts them
        "stack": numbers["private_segment_fixed_size"],
        "local": 0,
        "shared": shared,
        "threads": threads,
        "occupancy": _amd_occupancy(numbers["vgpr_count"], shared, threads),
        "loads": _ordered(widths["load"]),
        "stores": _ordered(widths["store"]),
        "barriers": len(re.findall(r"\bs_barrier\b", assembly)),
        "shuffles": len(re.findall(r"\b(?:ds_bpermute_b32|ds_permute_b32|ds_swizzle_b32)\b|_dpp\b", assembly)),
        "spills": numbers["vgpr_spill_count"],
        # Uniform values, such as arguments, parked in the lanes of a vector register: no memory is touched.
        "parked": numbers["sgpr_spill_count"],
        "atomics": len(re.findall(r"\b(?:global|buffer|flat)_atomic_\w+", assembly)),
    }


def _amd_occupancy(registers: int, shared: int, threads: int) -> float:
    """Share of a compute unit's 4 × 8 wavefronts that fit: 512 registers a lane of a SIMD, 64 KiB of shared memory."""
    waves = -(-threads // 64)
    by_registers = min(8, 512 // _round_up(max(registers, 1), 8)) * 4 // waves
    by_shared = 64 * 1024 // _round_up(shared, 512) if shared else by_registers
    return round(min(by_registers, by_shared, 32 // waves) * waves / 32, 3)
