"""Which CUDA calls run on the CUDA C++ kernels and which on Triton's: one table, read at every call.

Filled from counts of machine code (bench/results/static/issue.md), not from measurements: no GPU has been at hand. A
kernel is predicted to take as long as the bytes that it must move, as the issue of its instructions or as its accesses
to the L1 cache and shared memory, whatever is the longest. CUDA C++ is chosen where that is less than Triton's by a
twentieth or more.
What Triton reads a second time is read from memory as far as the rows in flight are more than the L2 cache holds.
``python_tests/backends/cuda/test_choice.py`` derives every entry anew from the counts.

The CUDA C++ kernels for tiles are never chosen for large planes; there they run when ``use_backend("cuda")`` asks. They
stay until a GPU has timed them against Triton's: they serve planes with gaps between the rows in the classes below.
Those that lose everywhere then go.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from ..views import Views

__all__ = ["ROWS", "TABLE", "alignment_class", "plane_class", "row_class", "runs_cuda", "runs_cuda_rows"]

everywhere = False  # set by use_backend("cuda"): CUDA C++ wherever there is a kernel, whatever the table says

_SMALL_PLANE = 256  # elements: up to here Triton gathers single ones
_SHARED = 48 * 1024 - 5 * 1024  # for planes, beside weights and partial dots

# Per operator and element sizes: the kernels for rows of whole vectors, then for odd rows, each with small, staged and
# large planes. Elements of 16 bytes are whole vectors themselves.
_ROWS: list[tuple[str, tuple[int, ...], str, str]] = [
    # operator       bytes         aligned: small staged large   odd: small staged large
    ("orbit", (1,), "cuda triton triton", "triton cuda triton"),
    ("orbit", (2, 4, 8), "triton triton triton", "triton cuda triton"),
    ("orbit", (16,), "triton triton triton", ""),
    ("scaled orbit", (2, 4, 8), "triton triton triton", "triton cuda triton"),
    ("sum", (2, 4), "triton triton triton", "triton cuda triton"),
    ("sum", (8,), "triton triton triton", "triton triton triton"),
    ("symmetrize", (2,), "triton triton triton", "cuda cuda triton"),
    ("symmetrize", (4,), "triton triton triton", "triton cuda triton"),
    ("symmetrize", (8,), "triton triton triton", "cuda triton triton"),
    ("orbit_dot", (2, 4), "triton triton triton", "triton cuda triton"),
    ("orbit_dot", (8,), "triton triton triton", "triton triton triton"),
    ("select", (1, 2), "cuda triton triton", "cuda cuda triton"),
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

# Means of softmaxes and their gradients: element sizes, then the kernels for views that move few entries and for those
# that list all of them, each with small, short and long rows.
_OF_ROWS: list[tuple[str, tuple[int, ...], str, str]] = [
    # operator           bytes   few: small short long      all: small short long
    ("softmax", (2, 4), "triton triton cuda", "triton triton cuda"),
    ("softmax", (8,), "triton triton triton", "triton triton triton"),
    ("softmax gradient", (2, 4), "triton triton cuda", "triton cuda cuda"),
    ("softmax gradient", (8,), "triton triton triton", "triton triton triton"),
]

# (operator, element size, whether all entries are listed, row class) -> kernels.
ROWS = {
    (operator, size, dense, length): kernels
    for operator, sizes, few, all_listed in _OF_ROWS
    for size in sizes
    for dense, row in ((False, few), (True, all_listed))
    for length, kernels in zip(("small", "short", "long"), row.split(), strict=True)
}

_SMALL_ROW = 8000  # bytes, of which a CUDA block, which has one row, does too little between its barriers
_LONG = 108 * 1024  # bytes of a row of every view: with four on every multiprocessor, more than a GPU's L2 cache
_KEPT = 64  # registers of a thread of Triton's kernel that hold the logits of its rows


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


def row_class(entries: int, size: int, views: int) -> str:
    """ "long" where Triton's kernel reads a row twice, the second time from memory, else "small" or "short"."""
    held = 1 << (entries - 1).bit_length()
    threads = 512 if entries * size > 32 * 1024 else 256  # 1,024 only for rows that not even these hold
    full = held * size <= 16 * threads or 5 * entries >= 4 * held
    kept = full and views * held * max(size, 4) // 4 <= _KEPT * threads
    if not (kept and alignment_class(entries, size) == "aligned") and views * entries * size > _LONG:
        return "long"
    return "small" if entries * size < _SMALL_ROW else "short"


@lru_cache(maxsize=1024)
def _from_table(operator: str, size: int, height: int, width: int, order: int) -> bool:
    plane = plane_class(operator, height * width, size, order)
    return TABLE.get((operator, size, alignment_class(width, size), plane)) == "cuda"


def runs_cuda(operator: str, t: Tensor, views: Views) -> bool:
    """Whether the CUDA C++ kernels are asked first for a call, t (…, H, W) being its input."""
    if not views.sides:  # nothing moves: Triton's accesses are as wide as they can be
        return everywhere and operator == "orbit"
    return everywhere or _from_table(operator, t.element_size(), t.size(-2), t.size(-1), views.order)


@lru_cache(maxsize=1024)
def _from_rows(operator: str, entries: int, size: int, views: int, dense: bool) -> bool:
    return entries > 0 and ROWS.get((operator, size, dense, row_class(entries, size, views))) == "cuda"


def runs_cuda_rows(y: Tensor, views: Views, table: Tensor | None, operator: str = "softmax") -> bool:
    """The same for a mean of the softmaxes of rows y (|G|, …, V), or its gradient."""
    entries = y.size(-1)
    dense = table is not None and 0 < table.size(1) == entries
    return everywhere or _from_rows(operator, entries, y.element_size(), views.order, dense)
