"""Which CUDA calls run on the CUDA C++ kernels and which on Triton's: one table, read at every call.

Filled from counts of machine code (bench/results/static/issue.md), not from measurements: no GPU has been at hand. A
kernel is predicted to take as long as the bytes that it must move, as the issue of its instructions or as its accesses
to the L1 cache and shared memory, whatever is the longest. CUDA C++ is chosen where that is less than Triton's by a
twentieth or more.
``python_tests/backends/cuda/test_choice.py`` derives every entry anew from the counts.

The CUDA C++ kernels for tiles are never chosen for large planes; there they run when ``use_backend("cuda")`` asks. They
stay until a GPU has timed them against Triton's: they serve planes with gaps between the rows in the classes below.
Those that lose everywhere then go.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from ..views import Views

__all__ = ["TABLE", "alignment_class", "plane_class", "runs_cuda"]

everywhere = False  # set by use_backend("cuda"): CUDA C++ wherever there is a kernel, whatever the table says

_SMALL_PLANE = 256  # elements: up to here Triton gathers single ones
_SHARED = 48 * 1024 - 5 * 1024  # for planes, beside weights and partial dots

# Per operator and element sizes: the kernels for rows of whole vectors, then for odd rows, each with small, staged and
# large planes. Elements of 16 bytes are whole vectors themselves.
_ROWS: list[tuple[str, tuple[int, ...], str, str]] = [
    # operator       bytes         aligned: small staged large   odd: small staged large
    ("orbit", (1,), "triton triton triton", "triton cuda cuda"),
    ("orbit", (2, 4, 8), "triton triton triton", "triton cuda triton"),
    ("orbit", (16,), "triton triton triton", ""),
    ("scaled orbit", (2, 4, 8), "triton triton triton", "triton cuda triton"),
    ("sum", (2, 4), "triton triton triton", "triton cuda triton"),
    ("sum", (8,), "triton triton triton", "triton triton triton"),
    ("symmetrize", (2, 4, 8), "triton triton triton", "triton triton triton"),
    ("orbit_dot", (2, 4), "triton triton triton", "triton cuda triton"),
    ("orbit_dot", (8,), "triton triton triton", "triton triton triton"),
    ("select", (1, 2), "cuda triton triton", "triton cuda triton"),
    ("select", (4, 8), "triton triton triton", "triton triton triton"),
    ("select", (16,), "triton triton triton", ""),
]

# (operator, element size, alignment class, plane class) -> kernels.
TABLE = {
    (operator, size, alignment, plane): kernels
    for operator, sizes, aligned, odd in _ROWS
    for size in sizes
    for alignment, row in (("aligned", aligned), ("odd", odd))
    for plane, kernels in zip(("small", "staged", "large"), row.split(), strict=bool(row))
}


def alignment_class(width: int, size: int) -> str:
    """Whether rows of so many elements are whole 16-byte vectors: "aligned", else "odd"."""
    return "odd" if width * size % 16 else "aligned"


def plane_class(operator: str, elements: int, size: int, views: int) -> str:
    """ "small", "staged" if a block's shared memory holds what the operator needs of a plane whole, or "large"."""
    staged = views if operator == "sum" else 1
    beside = 2304 * views if operator == "orbit_dot" else 0
    if staged * (elements * size + 32) + beside > _SHARED:
        return "large"
    return "small" if elements <= _SMALL_PLANE else "staged"


@lru_cache(maxsize=1024)
def _from_table(operator: str, size: int, height: int, width: int, order: int) -> bool:
    plane = plane_class(operator, height * width, size, order)
    return TABLE.get((operator, size, alignment_class(width, size), plane)) == "cuda"


def runs_cuda(operator: str, t: Tensor, views: Views) -> bool:
    """Whether the CUDA C++ kernels are asked first for a call, t (…, H, W) being its input."""
    if not views.sides:  # nothing moves: Triton's accesses are as wide as they can be
        return everywhere and operator == "orbit"
    return everywhere or _from_table(operator, t.element_size(), t.size(-2), t.size(-1), views.order)
