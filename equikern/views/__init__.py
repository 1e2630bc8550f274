"""The language of views: the one place that knows what a code such as ``hw Wh HW wH`` or ``tokens 9: . x`` says.

Everybody else asks the object that ``of`` gives, which is made once and kept. One file a kind; a new kind is a file of
its own beside its kernels, and a line of ``KINDS``.
"""

from __future__ import annotations

from functools import lru_cache

from .base import EXACT, FLOATS, UNSIGNED, Kind, Views, accumulator
from .field import Field, Mixed
from .grid import Grid, Still
from .matrix import Matrix
from .permutation import Permutation
from .tokens import Tokens

__all__ = ["EXACT", "FLOATS", "KINDS", "UNSIGNED", "Kind", "Views", "accumulator", "of", "still", "transposed"]

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Still(), Grid(), Permutation(), Tokens(), Matrix(), Field(), Mixed())
}


@lru_cache(maxsize=4096)
def of(code: str) -> Views:
    """The views that a code says.

    Raises:
        ValueError: a code that says none.

    Example:
        >>> of("hw Wh").turns, of("permutation -1 9: . x").size
        (True, 9)
    """
    kind = KINDS.get(code.partition(" ")[0]) if ":" in code else KINDS["still" if code[:1] == "." else "grid"]
    if kind is None:
        raise ValueError(f"views: expected words or a kind of {', '.join(KINDS)}, got {code[:80]!r}")
    return kind.parse(code)


@lru_cache(maxsize=4096)
def transposed(code: str) -> str:
    """The code of the adjoint maps.

    Example:
        >>> transposed("hw Wh")
        'hw wH'
    """
    views = of(code)
    return views.kind.transposed(views)


def still(order: int) -> Views:
    """So many views that leave everything in place."""
    return of(" ".join(["."] * order))
