"""The language of views: the one place that knows what a code such as ``hw Wh HW wH`` or ``tokens 9: . x`` says.

Everybody else asks the object that ``of`` gives, which is made once and kept. One file a kind; a new kind is a file of
its own beside its kernels, and a line of ``KINDS``.
"""

from __future__ import annotations

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


# A dict, in which the compiler looks things up, where it would trace what a cached function does. (It does not follow
# how a code is parsed, so wrappers see to it that theirs are known.)
_known: dict[str, Views] = {}
_MOST = 4096  # codes: those of long-running programs are few


def of(code: str) -> Views:
    """The views that a code says.

    Raises:
        ValueError: a code that says none.

    Example:
        >>> of("hw Wh").turns, of("permutation -1 9: . x").size
        (True, 9)
    """
    found = _known.get(code)
    return _learnt(code) if found is None else found


def _learnt(code: str) -> Views:
    """Parse a code, and with it those of the adjoint and the inverse maps."""
    kind = KINDS.get(code.partition(" ")[0]) if ":" in code else KINDS["still" if code[:1] == "." else "grid"]
    if kind is None:
        raise ValueError(f"views: expected words or a kind of {', '.join(KINDS)}, got {code[:80]!r}")
    views = kind.parse(code)
    views.link(kind.transposed(views), kind.inverted(views))
    while len(_known) >= _MOST:  # the oldest ones are not in use, of so many
        _known.pop(next(iter(_known)), None)
    _known[code] = views
    for other in (views.back, views.undo):
        of(other)
    return views


def transposed(code: str) -> str:
    """The code of the adjoint maps.

    Example:
        >>> transposed("hw Wh")
        'hw wH'
    """
    return of(code).back


def still(order: int) -> Views:
    """So many views that leave everything in place."""
    return of(" ".join(["."] * order))
