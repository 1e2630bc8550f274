"""The instructions of sm_90 on floats and halves, and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .comparisons import COMPARE, compared, joined
from .operands import (
    Lanes,
    Step,
    UnknownInstructionError,
    double,
    halves,
    is_predicate,
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
    """A float64 (or a whole number) as a narrower float, rounded up for RP and down for RM."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = value.astype(to)
        back = near.astype(np.float64)
        exact = value.astype(np.float64)
        if how == "RP":
            return np.where(back < exact, np.nextafter(near, to(np.inf)), near).astype(to)
        if how == "RM":
            return np.where(back > exact, np.nextafter(near, to(-np.inf)), near).astype(to)
        return near


def _rounding(name: str) -> str:
    return next((p for p in name.split(".") if p in ("RP", "RM")), "")


def computed(name: str, ops: list[str]) -> Step:
    """FADD, FMUL, FFMA and their doubles; a fused one is rounded twice here, which its users allow for."""
    wide, kind, how = name[0] == "D", name.split(".")[0][1:], _rounding(name)
    to, read = (put_pair if wide else put)(ops[0]), double if wide else real
    terms = [read(p) for p in ops[1:]]

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
        "RCP": lambda x: 1 / x, "RSQ": lambda x: 1 / np.sqrt(x), "SQRT": np.sqrt, "EX2": np.exp2, "LG2": np.log2,
        "SIN": np.sin, "COS": np.cos, "TANH": np.tanh,
    }  # fmt: skip
    if kind in ("RCP64H", "RSQ64H"):  # from the high word of a double to that of the result

        def high(b: Block, mask: Lanes) -> None:
            word = np.asarray(read(b)).view(np.uint32).astype(np.uint64) << np.uint64(32)
            with np.errstate(all="ignore"):
                found = of[kind[:3]](np.atleast_1d(word).view(np.float64))
            to(b, mask, (found.view(np.uint64) >> np.uint64(32)).astype(np.uint32))

        return high

    def step(b: Block, mask: Lanes) -> None:
        with np.errstate(all="ignore"):
            to(b, mask, of[kind](read(b).astype(np.float64)).astype(np.float32).view(np.uint32))

    return step


def converted(name: str, ops: list[str]) -> Step:
    parts = name.split(".")
    base, how = parts[0], _rounding(name)
    if base in ("I2F", "I2FP", "UI2F"):
        signed, wide, double_out = (
            "U32" not in parts and "U64" not in parts,
            any("64" in p and p[0] in "US" for p in parts),
            "F64" in parts,
        )
        source = pair(ops[1], signed) if wide else whole(ops[1])

        def to_float(b: Block, mask: Lanes) -> None:
            value = np.broadcast_to(source(b), (b.lanes,))
            if not wide:
                value = low_word(value).view(np.int32).astype(np.int64) if signed else low_word(value).astype(np.int64)
            exact = value.astype(np.longdouble).astype(np.float64)
            if double_out:
                return put_pair(ops[0])(b, mask, exact)
            put(ops[0])(b, mask, _towards(exact, how, np.float32).view(np.uint32))

        return to_float
    if base == "F2I":
        read = double(ops[1]) if "F64" in parts else real(ops[1])
        wide, signed = any(p in ("U64", "S64") for p in parts), "U32" not in parts and "U64" not in parts
        low, high = (
            (-(2.0 ** (63 if wide else 31)), 2.0 ** (63 if wide else 31))
            if signed
            else (0.0, 2.0 ** (64 if wide else 32))
        )
        to = (put_pair if wide else put)(ops[0])

        def to_whole(b: Block, mask: Lanes) -> None:
            value = np.broadcast_to(np.asarray(read(b), np.float64), (b.lanes,))
            cut = (
                np.trunc
                if "TRUNC" in parts
                else np.floor
                if "FLOOR" in parts
                else np.ceil
                if "CEIL" in parts
                else np.rint
            )
            whole_ = [int(min(max(v, low), high - (1 if high < 2**53 else 2**11))) if v == v else 0 for v in cut(value)]
            found = np.array([v & (2**64 - 1) for v in whole_], np.uint64)
            to(b, mask, found if wide else low_word(found))

        return to_whole
    if base == "F2FP":
        kind, to = ("bf" if "BF16" in parts else "f2"), put(ops[0])
        a, c = real(ops[1]), real(ops[2])

        def pack(b: Block, mask: Lanes) -> None:
            up, down = (narrowed(np.broadcast_to(np.asarray(t(b)), (b.lanes,)), kind) for t in (a, c))
            to(b, mask, up << np.uint32(16) | down)

        return pack
    outward, inward = parts[1], parts[-1]  # F2F.to.from
    read_in = {"F64": double, "F32": real}.get(inward)
    half_in = None if read_in else halves(ops[1], "bf" if inward == "BF16" else "f2")

    def change(b: Block, mask: Lanes) -> None:
        value = read_in(ops[1])(b) if read_in else half_in(b)[0] if half_in else None
        value = np.broadcast_to(np.asarray(value), (b.lanes,))
        with np.errstate(all="ignore"):
            if outward == "F64":
                put_pair(ops[0])(b, mask, value.astype(np.float64))
            elif outward == "F32":
                put(ops[0])(b, mask, value.astype(np.float32).view(np.uint32))
            else:
                put(ops[0])(b, mask, narrowed(value, "bf" if outward == "BF16" else "f2"))

    return change


_NANS = {"QNAN": 0x7FF0, "-QNAN": 0xFFF0}  # as in ``real``


def of_halves(name: str, ops: list[str]) -> Step:
    """HADD2, HMUL2, HFMA2 (which also loads constants, the high half first), HMNMX2 and VHMNMX, HSETP2."""
    base, kind = name.split(".")[0], "bf" if "BF16" in name else "f2"

    constant = base == "HFMA2" and len(ops) == 5
    if constant:
        words = [_NANS.get(p.lstrip("+"), int(narrowed(np.array([float(p)]), kind)[0])) for p in ops[3:5]]
        value = np.uint32(words[0] << 16 | words[1])
        if ops[1].lstrip("-") == "RZ" and ops[2] == "RZ":
            to_one = put(ops[0])
            return lambda b, mask: to_one(b, mask, value)
        raise UnknownInstructionError(f"{name} {ops}")
    if base == "HSETP2":
        how = next(p for p in name.split(".")[1:] if p in COMPARE or p in ("NAN", "NUM") or p[:-1] in COMPARE)
        outs, a, c, other = [put(ops[0]), put(ops[1])], halves(ops[2], kind), halves(ops[3], kind), predicate(ops[4])

        def compare(b: Block, mask: Lanes) -> None:
            x, y, rest = a(b), c(b), other(b)
            found = [joined(name, compared(how, x[k], y[k]), rest) for k in (0, 1)]
            for out, f in zip(outs, found, strict=True):
                out(b, mask, f)

        return compare
    to, terms = put(ops[0]), [halves(p, kind) for p in ops[1:] if not is_predicate(p)]
    least = predicate(ops[-1]) if "MNMX" in base else None

    def step(b: Block, mask: Lanes) -> None:
        values = [t(b) for t in terms]
        found = []
        with np.errstate(all="ignore"):
            for k in (0, 1):
                x, y, *z = (v[k].astype(np.float64) for v in values)
                if least is not None:
                    for other in (y, *z):
                        x = greater_or_less(x, other, least(b), ".NAN" in name)
                    found.append(x)
                else:
                    found.append(x + y if base == "HADD2" else x * y if base == "HMUL2" else x * y + z[0])
        if ".F32" in name:
            return to(b, mask, found[0].astype(np.float32).view(np.uint32))
        to(b, mask, narrowed(found[1], kind) << np.uint32(16) | narrowed(found[0], kind))

    return step


def greater_or_less(x: Lanes, y: Lanes, least: Lanes, keeps_nan: bool) -> Lanes:
    """The less or the greater, of 0 and −0 the one with the sign; without NaN unless both are, or it is kept."""
    found: Lanes = np.where(least, np.fmin(x, y), np.fmax(x, y))
    negative = np.where(least, np.signbit(x) | np.signbit(y), np.signbit(x) & np.signbit(y))
    found = np.where((x == 0) & (y == 0), np.where(negative, -0.0, 0.0), found)
    return np.where(np.isnan(x) | np.isnan(y), np.nan, found) if keeps_nan else found


def extreme(name: str, ops: list[str]) -> Step:
    base, to = name.split(".")[0], put(ops[0])
    least = predicate(ops[-1])
    if base == "FMNMX":
        a, c = real(ops[1]), real(ops[2])

        def step(b: Block, mask: Lanes) -> None:
            x, y = np.broadcast_arrays(np.asarray(a(b)), np.asarray(c(b)))
            to(b, mask, greater_or_less(x, y, least(b), ".NAN" in name).astype(np.float32).view(np.uint32))

        return step
    terms = [whole(p) for p in ops[1:-1]]
    unsigned = ".U32" in name

    def of_wholes(b: Block, mask: Lanes) -> None:
        values = [low_word(np.broadcast_to(t(b), (b.lanes,))) for t in terms]
        if len(values) == 3:
            values = [values[0] + values[1], values[2]]
        if "16x2" in name:
            x, y = (
                np.ascontiguousarray(v).view(np.uint16 if ".U16" in name else np.int16).reshape(-1, 2) for v in values
            )
            found = np.where(least(b)[:, None], np.minimum(x, y), np.maximum(x, y))
            return to(b, mask, np.ascontiguousarray(found).view(np.uint32)[:, 0])
        x, y = values if unsigned else [v.view(np.int32) for v in values]
        to(b, mask, np.where(least(b), np.minimum(x, y), np.maximum(x, y)).view(np.uint32))

    return of_wholes
