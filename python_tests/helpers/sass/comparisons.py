"""The comparisons of sm_90: what writes predicates, and FSET, which writes 1 or 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .operands import Lanes, Step, halves, low_word, predicate, put, real, whole

if TYPE_CHECKING:
    from helpers.warps import Block


COMPARE: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


def compared(how: str, x: Lanes, y: Lanes) -> Lanes:
    """Floats: with a U at the end, true of NaN, too."""
    nan = np.isnan(x) | np.isnan(y)
    if how in ("NAN", "NUM"):
        return nan if how == "NAN" else ~nan
    if how in ("MAX", "MIN"):
        return (x >= y if how == "MAX" else x <= y) | np.isnan(y)
    loose = how not in COMPARE
    found = COMPARE[how[:-1] if loose else how](x, y)
    return found | nan if loose else found & ~nan


def joined(name: str, found: Lanes, other: Lanes) -> Lanes:
    return found | other if ".OR" in name else found ^ other if ".XOR" in name else found & other


def set_whole(name: str, ops: list[str]) -> Step:
    parts = name.split(".")
    how, extended, unsigned = parts[1], ".EX" in name, ".U32" in name
    outs, a, c, other = [put(ops[0]), put(ops[1])], whole(ops[2]), whole(ops[3]), predicate(ops[4])
    below = predicate(ops[5]) if extended else None

    def step(b: Block, mask: Lanes) -> None:
        x, y = (low_word(np.broadcast_to(t(b), (b.lanes,))) for t in (a, c))
        x, y = (x, y) if unsigned else (x.view(np.int32), y.view(np.int32))
        if below is None:
            found = COMPARE[how](x, y)
        elif how == "NE":
            found = (x != y) | below(b)
        elif how == "EQ":
            found = (x == y) & below(b)
        else:
            found = COMPARE[how[0] + "T"](x, y) | ((x == y) & below(b))
        rest = other(b)
        outs[1](b, mask, joined(name, ~found, rest))
        outs[0](b, mask, joined(name, found, rest))

    return step


def set_real(name: str, ops: list[str]) -> Step:
    how = next(p for p in name.split(".")[1:] if p not in ("BF", "FTZ"))
    wide = name.startswith("D")
    if name.startswith("FSET."):
        to, a, c, other = put(ops[0]), real(ops[1]), real(ops[2]), predicate(ops[3])

        def step(b: Block, mask: Lanes) -> None:
            found = joined(name, compared(how, *np.broadcast_arrays(a(b), c(b))), other(b))
            to(b, mask, np.where(found, np.float32(1), np.float32(0)).view(np.uint32))

        return step
    outs, a_, c_, other_ = [put(ops[0]), put(ops[1])], real(ops[2], wide), real(ops[3], wide), predicate(ops[4])

    def step_of_predicates(b: Block, mask: Lanes) -> None:
        x, y = np.broadcast_arrays(a_(b), c_(b))
        found, rest = compared(how, x, y), other_(b)
        # Of an extreme, whether the first is it, and whether there is none.
        outs[1](b, mask, joined(name, np.isnan(x) & np.isnan(y) if how in ("MAX", "MIN") else ~found, rest))
        outs[0](b, mask, joined(name, found, rest))

    return step_of_predicates


def constants(high: str, low: str) -> Callable[[Block], tuple[Lanes, Lanes]]:
    return lambda b: (np.full(b.lanes, float(low), np.float32), np.full(b.lanes, float(high), np.float32))


def set_halves(name: str, ops: list[str]) -> Step:
    """A predicate for each half; of two constants the high half's comes first."""
    kind = "bf" if "BF16" in name else "f2"
    how = next(p for p in name.split(".")[1:] if p in COMPARE or p == "NAN")
    outs, a, other = [put(ops[0]), put(ops[1])], halves(ops[2], kind), predicate(ops[-1])
    c = halves(ops[3], kind) if len(ops) == 5 else constants(*ops[3:5])

    def step(b: Block, mask: Lanes) -> None:
        rest = other(b)
        found = [joined(name, compared(how, x, y), rest) for x, y in zip(a(b), c(b), strict=True)]
        for out, f in zip(outs, found, strict=True):
            out(b, mask, f)

    return step


def set_where_division_needs_care(name: str, ops: list[str]) -> Step:
    """FCHK: where the steps that follow, Newton's, would leave float32 for an operand or on the way to the quotient.

    Where exactly it draws the line is not documented; both ways of dividing round to nearest.
    """
    out, a, c = put(ops[0]), real(ops[1]), real(ops[2])

    def step(b: Block, mask: Lanes) -> None:
        x, y = (np.broadcast_to(np.abs(np.asarray(t(b), np.float64)), (b.lanes,)) for t in (a, c))
        with np.errstate(all="ignore"):
            good = (x > 2.0**-100) & (x < 2.0**126) & (y > 2.0**-125) & (y < 2.0**125)
            good &= (x / y > 2.0**-100) & (x / y < 2.0**125)
        out(b, mask, ~good)

    return step
