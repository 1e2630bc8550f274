"""What the installed equikern was built with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BuildInfo", "build_info"]


@dataclass(frozen=True)
class BuildInfo:
    """The record that ``setup.py`` leaves; ``print`` shows it one field a line.

    Attributes:
        native: whether the C++ kernels were built. Without them CPU tensors take the slower plain-torch path.
        reason: why they were not, or None.
        compiler: the C++ compiler's version.
        flags: the flags given to it for every file.
        cpu_isa: the instruction sets the CPU kernels were compiled for, the best of which is chosen at run time.
        cuda: whether the CUDA kernels were built.
        cuda_reason: why they were not, or None.
        nvcc: nvcc's version, or None.
        cuda_archs: the GPU architectures they were compiled for, as in ``TORCH_CUDA_ARCH_LIST``.
        environment: the variables that steer the build (``EQUIKERN_CUDA``, ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``, …)
            as far as they were set.
    """

    native: bool = False
    reason: str | None = None
    compiler: str | None = None
    flags: str | None = None
    cpu_isa: tuple[str, ...] = ()
    cuda: bool = False
    cuda_reason: str | None = None
    nvcc: str | None = None
    cuda_archs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether the CUDA kernels run on a GPU of this compute capability.

        Machine code runs on GPUs of its own generation from its own number on, "9.0a" on 9.0 alone and "10.0f" from
        10.0 on; "+PTX" is compiled by the driver for every later GPU, unless it is of the "a" or "f" kind.

        Example:
            >>> built = BuildInfo(cuda=True, cuda_archs=("8.0", "9.0a", "10.0+PTX"))
            >>> [built.runs_on(found) for found in ((7, 5), (8, 6), (9, 0), (12, 0))]
            [False, True, True, True]
        """
        for arch in self.cuda_archs:
            number, _, ptx = arch.partition("+")
            major, minor = (int(part) for part in number.rstrip("af").split("."))
            if number.endswith("a"):
                fits = capability == (major, minor)
            else:
                fits = capability[0] == major and capability[1] >= minor
            if fits or (ptx and number[-1].isdigit() and capability >= (major, minor)):
                return True
        return False

    def __str__(self) -> str:
        if self.native:
            rows = {"C++ kernels": "built", "compiler": self.compiler, "flags": self.flags}
            rows["CPU kernels for"] = ", ".join(self.cpu_isa)
        else:
            rows = {"C++ kernels": f"not built, CPU tensors take slower plain-torch operators: {self.reason}"}
        if self.cuda:
            rows |= {"CUDA kernels": f"built for {', '.join(self.cuda_archs)}", "nvcc": self.nvcc}
        else:
            rows["CUDA kernels"] = f"not built: {self.cuda_reason or 'they are part of the C++ kernels'}"
        names = ("EQUIKERN_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")
        rows |= dict.fromkeys(names, "not set") | self.environment
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def build_info() -> BuildInfo:
    """What the installed equikern was built with: compiler, flags, CPU instruction sets, CUDA architectures.

    Returns:
        The record of the build, or ``native=False`` and the reason where there is none.

    Example:
        >>> info = build_info()
        >>> info.native or info.reason is not None
        True
    """
    try:
        record = json.loads((Path(__file__).parent / "_build.json").read_text())
    except FileNotFoundError:
        return BuildInfo(reason="equikern was not installed, only imported from its source folder: pip install .")
    for name in ("cpu_isa", "cuda_archs"):
        record[name] = tuple(record.get(name, ()))
    return BuildInfo(**record)
