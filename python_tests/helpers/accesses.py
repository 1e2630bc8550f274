"""What the lanes of a warp ask memory for at once: whether they agree, and how much of a cache serves them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["disagree", "lines_touched", "wavefronts"]


def disagree(at: NDArray[np.int64], value: NDArray[np.uint8]) -> bool:
    """Whether some lanes of one access write different values to one place: which of them stays, nobody knows."""
    places, first, which = np.unique(at, return_index=True, return_inverse=True)
    return places.size < at.size and bool((value[first][which] != value).any())


def wavefronts(lanes: NDArray[np.int64], at: NDArray[np.int64], size: int, together: int = 0) -> int:
    """How often shared memory is read or written for an access: once where no lanes meet in one of its 32 banks.

    A bank is four bytes wide, and one word of it serves all lanes that ask for that word. As many lanes are served
    together (``together``) as 128 bytes are for.

    Example:
        >>> lanes = np.arange(32)
        >>> [wavefronts(lanes, step * lanes, 4) for step in (4, 8, 128, 132)], wavefronts(lanes, 16 * lanes, 16)
        ([1, 2, 32, 1], 4)
    """
    together = together or min(32, 128 // size)
    words = (at[:, None] // 4 + np.arange(max(1, size // 4))).reshape(-1)
    groups = np.repeat(lanes // together, max(1, size // 4))
    asked = np.unique(groups << 32 | words)
    meeting = np.unique((asked >> 32) << 5 | asked & 31, return_counts=True)
    which, most = meeting[0] >> 5, meeting[1]
    return int(np.maximum.reduceat(most, np.flatnonzero(np.diff(which, prepend=-1))).sum())


def lines_touched(lanes: NDArray[np.int64], at: NDArray[np.int64]) -> int:
    """How many lines of the cache the warps' lanes ask for, each warp for its own; accesses lie within one.

    Example:
        >>> lanes = np.arange(64)
        >>> [lines_touched(lanes, step * lanes) for step in (0, 4, 16, 128)]
        [2, 2, 8, 64]
    """
    return int(np.unique((lanes // 32) << 50 | at // 128).size)
