"""The arithmetic of sm_90 on whole numbers and its logic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .operands import (
    BITS_32,
    Lanes,
    Step,
    is_predicate,
    low_word,
    pair,
    predicate,
    put,
    put_pair,
    whole,
    written_predicates,
)

if TYPE_CHECKING:
    from helpers.warps import Block


def added(name: str, ops: list[str]) -> Step:
    to, (written, read) = put(ops[0]), written_predicates(ops[1:])
    carries = [put(p) for p in written]
    given = [predicate(p) for p in read if is_predicate(p)]
    terms = [whole(p) for p in read if not is_predicate(p)]

    def step(b: Block, mask: Lanes) -> None:
        total = sum((t(b) for t in terms), np.zeros(b.lanes, np.uint64))
        for p in given:
            total = total + p(b).astype(np.uint64)
        carry = total >> BITS_32
        for k, p_out in enumerate(carries):
            p_out(b, mask, carry > k)
        to(b, mask, low_word(total))

    return step


def multiplied(name: str, ops: list[str]) -> Step:
    wide, high, unsigned = "WIDE" in name, ".HI" in name, ".U32" in name
    written, read = written_predicates(ops[1:])
    carries = [put(p) for p in written]
    given = [predicate(p) for p in read if is_predicate(p)]
    terms = [p for p in read if not is_predicate(p)]
    a, factor = whole(terms[0]), whole(terms[1])
    to = (put_pair if wide else put)(ops[0])
    c = pair(terms[2]) if wide or high else whole(terms[2])

    def sign(value: Lanes) -> Lanes:
        return low_word(value) if unsigned else low_word(value).view(np.int32).astype(np.int64)

    def step(b: Block, mask: Lanes) -> None:
        if not wide and not high:
            total = a(b) * factor(b) + c(b)
            for p in given:
                total = total + p(b).astype(np.uint64)
            return to(b, mask, low_word(total))
        x, y = (np.asarray(sign(t(b))).astype(np.uint64 if unsigned else np.int64) for t in (a, factor))
        with np.errstate(over="ignore"):
            times = (x * y).view(np.uint64)
            total = times + c(b)
            for p in given:
                total = total + p(b).astype(np.uint64)
        for p_out in carries:
            p_out(b, mask, total < times)
        to(b, mask, total if wide else (total >> BITS_32).astype(np.uint32))

    return step


def lut(name: str, ops: list[str]) -> Step:
    first = put(ops[0]) if is_predicate(ops[0]) else None
    rest = ops[1:] if first else ops
    to, a, b_, c, table = put(rest[0]), whole(rest[1]), whole(rest[2]), whole(rest[3]), int(rest[4], 0)
    over = predicate(rest[5]) if len(rest) > 5 else None

    def step(b: Block, mask: Lanes) -> None:
        x, y, z = (low_word(np.broadcast_to(t(b), (b.lanes,))) for t in (a, b_, c))
        found = np.zeros(b.lanes, np.uint32)
        for k in range(8):
            if table >> k & 1:
                found |= (x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z)
        if first:
            first(b, mask, (found != 0) | (over(b) if over else False))
        to(b, mask, found)

    return step


def predicate_lut(name: str, ops: list[str]) -> Step:
    outs = [put(ops[0]), put(ops[1])]
    reads, tables = [predicate(p) for p in ops[2:5]], [int(t, 0) for t in ops[5:7]]

    def step(b: Block, mask: Lanes) -> None:
        x, y, z = (r(b).astype(np.int64) for r in reads)
        at = x * 4 + y * 2 + z
        for out, table in zip(outs, tables, strict=True):
            out(b, mask, (table >> at & 1).astype(bool))

    return step


def shifted(name: str, ops: list[str]) -> Step:
    to, low, by, high = put(ops[0]), whole(ops[1]), whole(ops[2]), whole(ops[3])
    left, upper, signed, wraps = ".L" in name, ".HI" in name, ".S32" in name or ".S64" in name, ".W" in name
    most = 63 if "64" in name else 32

    def step(b: Block, mask: Lanes) -> None:
        n = low_word(by(b)).astype(np.uint64)
        n = n & np.uint64(31) if wraps else np.minimum(n, np.uint64(most))
        both = low_word(low(b)).astype(np.uint64) | (low_word(high(b)).astype(np.uint64) << BITS_32)
        both = np.broadcast_to(both, (b.lanes,))
        if left and not upper:
            found = low_word(np.where(n >= BITS_32, np.uint64(0), both << n))
        elif left:
            found = ((both << n) >> BITS_32).astype(np.uint32)
        else:
            moved = (both.view(np.int64) >> n.astype(np.int64)).view(np.uint64) if signed else both >> n
            found = (moved >> BITS_32).astype(np.uint32) if upper else low_word(moved)
        to(b, mask, found)

    return step


def shifted_and_added(name: str, ops: list[str]) -> Step:
    to, (written, read) = put(ops[0]), written_predicates(ops[1:])
    carries = [put(p) for p in written]
    given = [predicate(p) for p in read if is_predicate(p)]
    terms = [p for p in read if not is_predicate(p)]
    a, plus, by = whole(terms[0]), whole(terms[1]), np.uint64(int(terms[-1], 0))
    upper = whole(terms[2]) if len(terms) == 4 else None
    high, extends = ".HI" in name, ".SX32" in name

    def step(b: Block, mask: Lanes) -> None:
        low = low_word(np.broadcast_to(a(b), (b.lanes,)))
        if not high:
            value = low_word(low.astype(np.uint64) << by).astype(np.uint64)
        else:
            above = (low.view(np.int32) >> 31).view(np.uint32) if extends else low_word(upper(b)) if upper else 0
            both = low.astype(np.uint64) | (np.asarray(above).astype(np.uint64) << BITS_32)
            value = (both << by) >> BITS_32
        total = value + plus(b)
        for p in given:
            total = total + p(b).astype(np.uint64)
        for out in carries:
            out(b, mask, (total >> BITS_32) > 0)
        to(b, mask, low_word(total))

    return step


def extreme(name: str, ops: list[str]) -> Step:
    """The less or the greater of two; of a sum and a third with VIADDMNMX; of each half with 16x2."""
    to, terms, least = put(ops[0]), [whole(p) for p in ops[1:-1]], predicate(ops[-1])
    kind = {"U32": np.uint32, "U16x2": np.uint16, "S16x2": np.int16}.get(name.partition(".")[2], np.int32)

    def step(b: Block, mask: Lanes) -> None:
        *summed, y = (low_word(np.broadcast_to(t(b), (b.lanes,))) for t in terms)
        x = summed[0] + summed[1] if len(summed) == 2 else summed[0]
        x, y = (np.ascontiguousarray(v).view(kind).reshape(b.lanes, -1) for v in (x, y))
        found = np.where(least(b)[:, None], np.minimum(x, y), np.maximum(x, y))
        to(b, mask, np.ascontiguousarray(found).view(np.uint32)[:, 0])

    return step
