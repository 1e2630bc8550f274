"""Which CUDA calls run on the CUDA C++ kernels and which on Triton's: one table, read at every call.

Filled from machine-code counts, not from measurements. What was counted for sm_90: Triton's kernels move 16 bytes an
access where rows are whole 16-byte vectors and planes large enough for its tiles, and single elements elsewhere. The
CUDA C++ kernels move 16 bytes wherever whole planes are staged in shared memory, and where rows are whole vectors. So
CUDA C++ is chosen where its accesses are wider. Where they are equally wide Triton is, which needs fewer registers. The
mean of one tensor's views (symmetrize) goes to CUDA C++ wherever the plane is staged: it is read once for all views.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

__all__ = ["TABLE", "alignment_class", "plane_class", "runs_cuda"]

everywhere = False  # set by use_backend("cuda"): CUDA C++ wherever there is a kernel, whatever the table says

_SIZES = {
    "orbit": (1, 2, 4, 8, 16),
    "scaled orbit": (2, 4, 8),
    "sum": (2, 4, 8),
    "symmetrize": (2, 4, 8),
    "orbit_dot": (2, 4, 8),
    "select": (1, 2, 4, 8, 16),
}
_SMALL_PLANE = 256  # elements: up to here Triton gathers single ones
_SHARED = 48 * 1024 - 5 * 1024  # for planes, beside weights and partial dots

# By alignment of the rows and size of the plane, for operators alike and element sizes alike as far as counted.
_BY_CLASS = {
    ("aligned", "small"): "cuda",
    ("aligned", "staged"): "triton",
    ("aligned", "large"): "triton",
    ("odd", "small"): "cuda",
    ("odd", "staged"): "cuda",
    ("odd", "large"): "triton",
}

# (operator, element size, alignment class, plane class) -> kernels.
TABLE = {
    (operator, size, *classes): kernels
    for operator, sizes in _SIZES.items()
    for size in sizes
    for classes, kernels in _BY_CLASS.items()
}
TABLE |= {("symmetrize", size, "aligned", "staged"): "cuda" for size in _SIZES["symmetrize"]}


def alignment_class(width: int, size: int) -> str:
    """Whether rows of so many elements are whole 16-byte vectors: "aligned", else "odd"."""
    return "odd" if width * size % 16 else "aligned"


def plane_class(operator: str, elements: int, size: int, views: int) -> str:
    """ "small", "staged" if a block's shared memory holds what the operator needs of a plane whole, or "large"."""
    staged = {"sum": views + 1, "symmetrize": 2}.get(operator, 1)
    beside = 2304 * views if operator == "orbit_dot" else 0
    if staged * (elements * size + 32) + beside > _SHARED:
        return "large"
    return "small" if elements <= _SMALL_PLANE else "staged"


@lru_cache(maxsize=1024)
def _from_table(operator: str, size: int, height: int, width: int, views: int) -> bool:
    key = operator, size, alignment_class(width, size), plane_class(operator, height * width, size, views)
    return TABLE.get(key) == "cuda"


def runs_cuda(operator: str, t: Tensor, maps: str) -> bool:
    """Whether the CUDA C++ kernels are asked first for a call, t (…, H, W) being its input."""
    if maps[0] == ".":  # nothing moves: Triton's accesses are as wide as they can be
        return everywhere and operator == "orbit"
    if everywhere:
        return True
    height, width = t.shape[-2:]
    return _from_table(operator, t.element_size(), height, width, maps.count(" ") + 1)
