"""Small matrices that act on the last dim, as the kernels take them: the register beside ``tables.py``'s.

The word of a view that multiplies by a matrix is ``m:<digest>``, made from the matrix's float64 contents, so that the
same matrix has the same word in every process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

LARGEST = 64  # entries of a vector: beyond that a matrix product is not a matter of memory


@dataclass(eq=False)
class MatrixTable:
    """All the views of one action on vectors of ``size`` entries: ``view_g = values[g] @ x`` along the last dim.

    Attributes:
        order: the number of views.
        size: d, the entries of a vector.
        values: (order, d, d) float64 on the CPU.
    """

    order: int
    size: int
    values: Tensor
    _copies: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The values, contiguous, on a device and in the dtype that kernels compute in; copied there once."""
        key = device, dtype
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = self.values.to(device, dtype)
        return found


_entries: dict[str, Tensor] = {}
_adjoints: dict[str, str] = {}
_tables: dict[str, MatrixTable] = {}


def register(matrix: Tensor) -> str:
    """The word of one view ``x ↦ matrix @ x``; that of its adjoint, the transpose, is registered with it."""
    own = matrix.detach().to(device="cpu", dtype=torch.float64, copy=True).contiguous() + 0.0  # −0.0 becomes 0.0
    words = []
    for values in (own, own.T.contiguous()):
        word = f"m:{hashlib.blake2b(values.numpy().tobytes(), digest_size=12).hexdigest()}"
        _entries.setdefault(word, values)
        words.append(word)
    _adjoints[words[0]], _adjoints[words[1]] = words[1], words[0]
    return words[0]


def is_registered(word: str) -> bool:
    """Whether this process has made the matrix that a word names."""
    return word in _entries


def multiplies(maps: str) -> bool:
    """Whether the words are matrices on the last dim."""
    return maps[0] == "m"


def adjoint(word: str) -> str:
    """The word of the transposed matrix."""
    entry(word)
    return _adjoints[word]


def table(maps: str) -> MatrixTable:
    """What the kernels need to know of a string of words that name matrices."""
    found = _tables.get(maps)
    if found is None:
        values = torch.stack([entry(word) for word in maps.split(" ")])
        found = _tables[maps] = MatrixTable(len(values), values.shape[1], values)
    return found


def entry(word: str) -> Tensor:
    """One view's matrix, (d, d) float64 on the CPU.

    Raises:
        LookupError: no action of this process has it, as after loading a program that was exported elsewhere.
    """
    try:
        return _entries[word]
    except KeyError:
        raise LookupError(
            f"no matrix {word!r} in this process: make the action (equikern.matrix) before loading a program that was "
            "exported with it"
        ) from None
