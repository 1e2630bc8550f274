"""The language of views: the one place that knows what a code such as ``hw Wh HW wH`` or ``tokens 9: . x`` says.

Everybody else asks the object that ``of`` gives, which is made once and kept. One file a kind; a new kind is a file of
its own beside its kernels, and a line of ``KINDS``.
"""

from __future__ import annotations

import torch

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


class _Known:
    """Attributes named by codes: the compiler looks them up, where it would trace what a cached function does.

    No name may have a dot.
    """


_known = _Known()
_by_code: dict[str, Views] = {}
_MOST = 4096  # codes: those of long-running programs are few


def of(code: str) -> Views:
    """The views that a code says.

    Raises:
        ValueError: a code that says none.

    Example:
        >>> of("hw Wh").turns, of("permutation -1 9: . x").size
        (True, 9)
    """
    if not torch.compiler.is_compiling():  # small calls are counted: one look at a dict
        found = _by_code.get(code)
        if found is not None:
            return found
    _learn(code)
    return getattr(_known, code.replace(".", "_"))  # type: ignore[no-any-return]


def _learn(code: str) -> bool:
    """Parse a code, and with it those of the adjoint and the inverse maps, unless that has been done."""
    kept, name = _known.__dict__, code.replace(".", "_")
    if name in kept:
        return True
    kind = KINDS.get(code.partition(" ")[0]) if ":" in code else KINDS["still" if code[:1] == "." else "grid"]
    if kind is None:
        raise ValueError(f"views: expected words or a kind of {', '.join(KINDS)}, got {code[:80]!r}")
    views = kind.parse(code)
    views.link(kind.transposed(views), kind.inverted(views))
    while len(kept) >= _MOST:  # the oldest ones are not in use, of so many
        oldest = kept.pop(next(iter(kept)), None)
        _by_code.pop(oldest.code if oldest else "", None)
    kept[name] = _by_code[code] = views
    return _learn(views.back) and _learn(views.undo)


# What torch.compiler.assume_constant_result says, which would import the compiler: it need not follow how codes are
# parsed. Where this has no effect, a code that is new inside a compiled function breaks the graph.
_learn._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
