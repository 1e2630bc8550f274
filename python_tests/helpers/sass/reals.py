"""The instructions of sm_90 on floats and halves, and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .operands import (
    Lanes,
    Step,
    UnknownInstructionError,
    halves,
    low_word,
    narrowed,
    pair,
    predicate,
    put,
    put_pair,
    real,
    whole,
)

if TYPE_CHECKING:
    from helpers.warps import Block


def _towards(value: Lanes, how: str, to: type) -> Lanes:
    """A float64 (or a whole number) as a narrower float, rounded up for RP, down for RM and towards 0 for RZ."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = value.astype(to)
        back = near.astype(np.float64)
        exact = value.astype(np.float64)
        if how == "RP":
            return np.where(back < exact, np.nextafter(near, to(np.inf)), near).astype(to)
        if how == "RM":
            return np.where(back > exact, np.nextafter(near, to(-np.inf)), near).astype(to)
        if how == "RZ":
            return np.where(np.abs(back) > np.abs(exact), np.nextafter(near, to(0)), near).astype(to)
        return near


def _rounding(name: str) -> str:
    return next((p for p in name.split(".") if p in ("RP", "RM", "RZ")), "")


def computed(name: str, ops: list[str]) -> Step:
    """FADD, FMUL, FFMA and their doubles; here a fused float is rounded twice, and doubles always to the nearest: both
    are steps of divisions and roots whose results the next steps correct."""
    wide, kind, how = name[0] == "D", name.split(".")[0][1:], _rounding(name)
    to = (put_pair if wide else put)(ops[0])
    terms = [real(p, wide) for p in ops[1:]]

    def step(b: Block, mask: Lanes) -> None:
        values = [np.broadcast_to(np.asarray(t(b)), (b.lanes,)) for t in terms]
        exact = np.longdouble if wide and kind == "FMA" else np.float64
        with np.errstate(all="ignore"):
            x, y, *z = (v.astype(exact) for v in values)
            found = (x + y if kind == "ADD" else x * y if kind == "MUL" else x * y + z[0]).astype(np.float64)
        to(b, mask, found if wide else _towards(found, how, np.float32).view(np.uint32))

    return step


def approximated(name: str, ops: list[str]) -> Step:
    kind = name.split(".")[1]
    to, read = put(ops[0]), real(ops[1])
    of: dict[str, Callable[[Lanes], Lanes]] = {
        "RCP": lambda x: 1 / x, "RSQ": lambda x: 1 / np.sqrt(x), "EX2": np.exp2, "LG2": np.log2,
    }  # fmt: skip

    def of_high_words(b: Block, mask: Lanes) -> None:
        """From the high word of a double to that of the result."""
        word = np.asarray(read(b)).view(np.uint32).astype(np.uint64) << np.uint64(32)
        with np.errstate(all="ignore"):
            found = of[kind[:3]](np.atleast_1d(word).view(np.float64))
        to(b, mask, (found.view(np.uint64) >> np.uint64(32)).astype(np.uint32))

    def step(b: Block, mask: Lanes) -> None:
        with np.errstate(all="ignore"):
            to(b, mask, of[kind](read(b).astype(np.float64)).astype(np.float32).view(np.uint32))

    return of_high_words if kind.endswith("64H") else step


def from_whole(name: str, ops: list[str]) -> Step:
    parts, how = name.split("."), _rounding(name)
    signed, wide = not {"U32", "U64"} & {*parts}, bool({"U64", "S64"} & {*parts})
    source = pair(ops[1], signed) if wide else whole(ops[1])
    to = put_pair(ops[0]) if "F64" in parts else put(ops[0])

    def step(b: Block, mask: Lanes) -> None:
        value = np.broadcast_to(source(b), (b.lanes,))
        if not wide:
            value = low_word(value).view(np.int32 if signed else np.uint32)
        exact = value.astype(np.longdouble).astype(np.float64)
        to(b, mask, exact if "F64" in parts else _towards(exact, how, np.float32).view(np.uint32))

    return step


def to_whole(name: str, ops: list[str]) -> Step:
    """Numbers beyond those of the type become its last ones, NaN 0."""
    parts = name.split(".")
    read, bits = real(ops[1], "F64" in parts), 64 if {"U64", "S64"} & {*parts} else 32
    signed = not {"U32", "U64"} & {*parts}
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    to, cut = (put_pair if bits == 64 else put)(ops[0]), np.trunc if "TRUNC" in parts else np.rint

    def step(b: Block, mask: Lanes) -> None:
        values = cut(np.broadcast_to(np.asarray(read(b), np.float64), (b.lanes,)))
        infinite = {np.inf: most, -np.inf: least}
        wholes = [0 if v != v else infinite[v] if np.isinf(v) else min(max(int(v), least), most) for v in values]
        found = np.array([v & (2**64 - 1) for v in wholes], np.uint64)
        to(b, mask, found if bits == 64 else low_word(found))

    return step


def packed(name: str, ops: list[str]) -> Step:
    kind, to = _kind(name), put(ops[0])
    a, c = real(ops[1]), real(ops[2])

    def step(b: Block, mask: Lanes) -> None:
        up, down = (narrowed(np.broadcast_to(np.asarray(t(b)), (b.lanes,)), kind) for t in (a, c))
        to(b, mask, up << np.uint32(16) | down)

    return step


def between(name: str, ops: list[str]) -> Step:
    """F2F, to one type of floats from another."""
    _, outward, inward = name.split(".")
    half = halves(ops[1], _kind(inward)) if "16" in inward else None
    read = real(ops[1], inward == "F64") if half is None else lambda b: half(b)[0]
    to = put_pair(ops[0]) if outward == "F64" else put(ops[0])

    def step(b: Block, mask: Lanes) -> None:
        value = np.broadcast_to(np.asarray(read(b)), (b.lanes,))
        with np.errstate(all="ignore"):
            if outward == "F64":
                to(b, mask, value.astype(np.float64))
            elif outward == "F32":
                to(b, mask, value.astype(np.float32).view(np.uint32))
            else:
                to(b, mask, narrowed(value, _kind(outward)))

    return step


def _kind(name: str) -> str:
    return "bf" if "BF16" in name else "f2"


_NANS = {"QNAN": 0x7FF0, "-QNAN": 0xFFF0}  # as in ``real``


def of_halves(name: str, ops: list[str]) -> Step:
    """HADD2 and HFMA2, also as the compilers load constants by it, the high half first."""
    kind, to = _kind(name), put(ops[0])
    if name.startswith("HFMA2") and len(ops) == 4:
        terms = [halves(p, kind) for p in ops[1:]]

        def product(b: Block, mask: Lanes) -> None:
            with np.errstate(all="ignore"):
                low, high = (x.astype(np.float64) * y + z for x, y, z in zip(*(t(b) for t in terms), strict=True))
            to(b, mask, narrowed(high, kind) << np.uint32(16) | narrowed(low, kind))

        return product
    if name.startswith("HFMA2"):
        if [op.lstrip("-") for op in ops[1:3]] != ["RZ", "RZ"] or len(ops) != 5:
            raise UnknownInstructionError(f"{name} {ops}")
        high, low = (_NANS.get(p.lstrip("+"), int(narrowed(np.array([float(p)]), kind)[0])) for p in ops[3:])
        return lambda b, mask: to(b, mask, np.uint32(high << 16 | low))
    a, c = halves(ops[1], kind), halves(ops[2], kind)

    def step(b: Block, mask: Lanes) -> None:
        with np.errstate(all="ignore"):
            low, high = (x.astype(np.float64) + y for x, y in zip(a(b), c(b), strict=True))
        if ".F32" in name:
            return to(b, mask, low.astype(np.float32).view(np.uint32))
        to(b, mask, narrowed(high, kind) << np.uint32(16) | narrowed(low, kind))

    return step


def _greater_or_less(x: Lanes, y: Lanes, least: Lanes, keeps_nan: bool) -> Lanes:
    """The less or the greater, of 0 and −0 the one with the sign; without NaN unless both are, or it is kept."""
    found: Lanes = np.where(least, np.fmin(x, y), np.fmax(x, y))
    negative = np.where(least, np.signbit(x) | np.signbit(y), np.signbit(x) & np.signbit(y))
    found = np.where((x == 0) & (y == 0), np.where(negative, -0.0, 0.0), found)
    return np.where(np.isnan(x) | np.isnan(y), np.nan, found) if keeps_nan else found


def extreme(name: str, ops: list[str]) -> Step:
    to, a, c, least = put(ops[0]), real(ops[1]), real(ops[2]), predicate(ops[3])

    def step(b: Block, mask: Lanes) -> None:
        x, y = np.broadcast_arrays(np.asarray(a(b)), np.asarray(c(b)))
        to(b, mask, _greater_or_less(x, y, least(b), ".NAN" in name).astype(np.float32).view(np.uint32))

    return step


def extreme_half(name: str, ops: list[str]) -> Step:
    """Of two, or with VHMNMX of three."""
    kind, to, least = _kind(name), put(ops[0]), predicate(ops[-1])
    terms = [halves(p, kind) for p in ops[1:-1]]

    def step(b: Block, mask: Lanes) -> None:
        found = []
        for x, *others in zip(*(t(b) for t in terms), strict=True):
            for y in others:
                x = _greater_or_less(x, y, least(b), ".NAN" in name)
            found.append(narrowed(x, kind))
        to(b, mask, found[1] << np.uint32(16) | found[0])

    return step
