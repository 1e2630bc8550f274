"""Operands of machine code: what reads them for all lanes, and what writes results for some."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from helpers.warps import Block

Lanes: TypeAlias = Any  # arrays with one entry a lane, or one for all
Read = Callable[["Block"], Lanes]
Step = Callable[["Block", Lanes], None]  # what an instruction does to the lanes of a mask

_LOW = np.uint64(0xFFFFFFFF)
BITS_32 = np.uint64(32)


class UnknownInstructionError(Exception):
    """An instruction that the executor does not know."""


def split(text: str) -> list[str]:
    """Operands, between commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


# Operands


def whole_number(text: str) -> int:
    return int(text, 0) & 0xFFFFFFFF


def register(text: str) -> tuple[str, int] | None:
    """Kind and number of a register, such as ("R", 12); the zero registers and PT have the last number."""
    m = re.fullmatch(r"(UR|UP|R|P|B)(\d+|Z|T)", text)
    if m is None:
        return None
    last = {"R": 255, "UR": 63, "P": 7, "UP": 7, "B": 16}
    return m[1], last[m[1]] if m[2] in "ZT" else int(m[2])


def bits(text: str, high: bool = False) -> Read:
    """An operand as it is, without modifiers: the 32 bits of a register, of a constant, of a whole number."""
    text = re.sub(r"\.(reuse|64|U32)\b", "", text)
    found = register(text)
    if found is not None:
        kind, n = found
        zero = n == (255 if kind == "R" else 63)
        n += 0 if zero else high
        return (lambda b: b.R[n]) if kind == "R" else (lambda b: b.UR[n])
    if text.startswith("c["):
        return constant(text, 4, 4 * high)
    value = np.uint32(whole_number(text) if not high else (0xFFFFFFFF if text.startswith("-") else 0))
    return lambda b: value


def address(text: str) -> tuple[list[tuple[str, int, int]], int]:
    """Registers with their factors, and the number, that add up to the text between brackets."""
    terms, offset = [], 0
    for part in text.strip("[]").replace("+-", "+ -").split("+"):
        part = part.strip()
        scaled = re.fullmatch(r"(U?R(?:\d+|Z))((?:\.\w+)*)", part)
        if scaled is None:
            offset += int(part, 0)
            continue
        factor = re.search(r"\.X(\d+)", scaled[2])
        found = register(scaled[1])
        assert found is not None
        terms.append((found[0] + (".64" if ".64" in scaled[2] else ""), found[1], int(factor[1]) if factor else 1))
    return terms, offset


def pointer(text: str) -> Callable[[Block], NDArray[np.int64]]:
    """The address of an access, for every lane."""
    terms, offset = address(text[text.rindex("[") :])

    def read(b: Block) -> NDArray[np.int64]:
        total = np.full(b.lanes, offset, np.int64)
        for kind, n, factor in terms:
            file = b.UR if kind.startswith("UR") else b.R
            zero = n == (63 if kind.startswith("UR") else 255)
            value = file[n].astype(np.int64)
            if kind.endswith(".64"):
                value = value + (file[n + (0 if zero else 1)].astype(np.int64) << 32)
            elif len(terms) == 1 or offset < 0:
                value = file[n].view(np.int32).astype(np.int64)
            total = total + value * factor
        return total

    return read


def constant(text: str, size: int, shift: int = 0, signed: bool = False) -> Read:
    terms, offset = address(text[text.rindex("[") :])
    kind = np.dtype(f"<{'i' if signed else 'u'}{size}")

    def read(b: Block) -> Lanes:
        at = np.full(b.lanes, offset + shift, np.int64)
        for name, n, factor in terms:
            at = at + (b.UR if name.startswith("UR") else b.R)[n].view(np.int32).astype(np.int64) * factor
        found = b.constants[at[:, None] % 8192 + np.arange(size)]  # lanes that take no part may hold anything
        return np.ascontiguousarray(found).view(kind)[:, 0].astype(np.int64).astype(np.uint32)

    return read


def whole(text: str) -> Callable[[Block], NDArray[np.uint64]]:
    """An operand of whole numbers as 64 bits that hold 32, or 33 for a zero with a minus, as carries want it."""
    invert, minus, core = text.startswith("~"), bool(re.match(r"-(?!0x|\d)", text)), text
    absolute = "|" in text
    core = text.lstrip("~").replace("|", "") if not minus else text[1:].replace("|", "")
    read = bits(core)
    if invert:
        return lambda b: (~read(b)).astype(np.uint64)
    if absolute:
        return lambda b: np.abs(read(b).astype(np.uint32).view(np.int32).astype(np.int64)).astype(np.uint64)
    if minus:
        return lambda b: np.uint64(1 << 32) - read(b).astype(np.uint64)
    return lambda b: np.asarray(read(b), np.uint64)


def pair(text: str, signed: bool = False) -> Callable[[Block], Lanes]:
    """Two registers as 64 bits."""
    minus = bool(re.match(r"-(?!0x|\d)", text))
    core = text.lstrip("-~") if minus else text
    low, high = bits(core), bits(core, True)

    def read(b: Block) -> Lanes:
        value = np.asarray(low(b), np.uint64) | (np.asarray(high(b), np.uint64) << BITS_32)
        if minus:
            value = (~value) + np.uint64(1)
        return value.view(np.int64) if signed else value

    return read


def predicate(text: str) -> Read:
    """A predicate, perhaps with a not."""
    found = register(text.lstrip("!"))
    assert found is not None, text
    kind, n = found
    assert kind in ("P", "UP"), text
    read: Read = (lambda b: b.P[n]) if kind == "P" else (lambda b: b.UP[n])
    return (lambda b: ~read(b)) if text.startswith("!") else read


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", text) is not None


# The disassembler does not print what is in a NaN: these are the high words of ±∞ as doubles, which selects move.
_NAN, _MINUS_NAN = np.array([0x7FF00000, 0xFFF00000], np.uint32).view(np.float32)
_SPECIAL = {"+INF": np.inf, "-INF": -np.inf, "INF": np.inf, "+QNAN": _NAN, "-QNAN": _MINUS_NAN, "QNAN": _NAN}


def real(text: str, wide: bool = False) -> Read:
    """An operand of float32, or of float64 where it is ``wide``, with its minus and its bars."""
    text = text.replace(".reuse", "").strip()
    if text in _SPECIAL or (re.fullmatch(r"[-+]?\d.*", text) and not text.startswith(("0x", "-0x"))):
        number = _SPECIAL[text] if text in _SPECIAL else float(text)
        value = np.float64(number) if wide else np.float32(number)
        return lambda b: value
    core, sign = text.lstrip("-").replace("|", ""), np.uint64(1 << (63 if wide else 31))
    minus, absolute = sign * np.uint64(text.startswith("-")), ~(sign * np.uint64("|" in text))
    low, high = bits(core), bits(core, True)

    def get(b: Block) -> Lanes:
        word = np.atleast_1d(np.asarray(low(b), np.uint64))
        if wide:
            word = word | (np.asarray(high(b), np.uint64) << BITS_32)
        word = word & absolute ^ minus
        return word.view(np.float64) if wide else word.astype(np.uint32).view(np.float32)

    return get


def halves(text: str, kind: str = "f2") -> Callable[[Block], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The low and the high half of a register as numbers; ``.H0_H0`` and ``.H1_H1`` take one of them twice."""
    minus, absolute = text.startswith("-"), "|" in text
    m = re.search(r"\.H(\d)(?:_H\d)?", text)
    read = bits(re.sub(r"\.(H\d(_H\d)?|reuse)", "", text.lstrip("-").replace("|", "")))

    def get(b: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        value = np.broadcast_to(np.asarray(read(b), np.uint32), (b.lanes,))
        parts = [widened((value >> np.uint32(16 * k) & np.uint32(0xFFFF)).astype(np.uint16), kind) for k in (0, 1)]
        if m is not None:
            parts = [parts[int(m[1])]] * 2
        parts = [-p if minus else p for p in (map(np.abs, parts) if absolute else parts)]
        return parts[0], parts[1]

    return get


def widened(half: NDArray[np.uint16], kind: str) -> Lanes:
    """16 bits as float32: of bfloat16 for "bf"."""
    if kind == "bf":
        return (half.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return half.view(np.float16).astype(np.float32)


def narrowed(value: Lanes, kind: str) -> Lanes:
    """Float32 or float64 rounded to 16 bits, to the nearest, to even."""
    if kind != "bf":
        with np.errstate(over="ignore"):
            return value.astype(np.float16).view(np.uint16).astype(np.uint32)
    single = value.astype(np.float32)
    word = single.view(np.uint32)
    rounded = (word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(single), np.uint32(0x7FFF), rounded).astype(np.uint32)


# Results


def put(text: str) -> Callable[[Block, Lanes, Lanes], None]:
    """What writes a register of some lanes."""
    found = register(text.replace(".reuse", "").replace(".64", ""))
    assert found is not None, text
    kind, n = found
    if n == {"R": 255, "UR": 63, "P": 7, "UP": 7}[kind]:
        return lambda b, mask, value: None

    def write(b: Block, mask: Lanes, value: Lanes) -> None:
        file: Lanes = {"R": b.R, "UR": b.UR, "P": b.P, "UP": b.UP}[kind]
        np.copyto(file[n], value, where=mask, casting="unsafe")

    return write


def put_pair(text: str) -> Callable[[Block, Lanes, Lanes], None]:
    """What writes two registers from 64 bits."""
    low = put(text)
    kind, n = register(text) or ("R", 255)
    high = put(f"{kind}{n + 1}") if n != (255 if kind == "R" else 63) else low

    def write(b: Block, mask: Lanes, value: Lanes) -> None:
        value = np.asarray(value).view(np.uint64)
        low(b, mask, (value & _LOW).astype(np.uint32))
        high(b, mask, (value >> BITS_32).astype(np.uint32))

    return write


def low_word(value: Lanes) -> Lanes:
    return (np.asarray(value, np.uint64) & _LOW).astype(np.uint32)


def written_predicates(ops: list[str]) -> tuple[list[str], list[str]]:
    """Predicates that are written, which stand behind the first result, and what is read."""
    k = 0
    while k < len(ops) and is_predicate(ops[k]) and not ops[k].startswith("!"):
        k += 1
    return ops[:k], ops[k:]
