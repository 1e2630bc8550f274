"""The instructions of sm_90 that move bits between registers, lanes, predicates and constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .operands import (
    Lanes,
    Step,
    UnknownInstructionError,
    constant,
    low_word,
    predicate,
    put,
    put_pair,
    real,
    whole,
)

if TYPE_CHECKING:
    from helpers.warps import Block


def permuted(name: str, ops: list[str]) -> Step:
    to, low, chosen, high = put(ops[0]), whole(ops[1]), whole(ops[2]), whole(ops[3])

    def step(b: Block, mask: Lanes) -> None:
        x, s, y = (low_word(np.broadcast_to(t(b), (b.lanes,))) for t in (low, chosen, high))
        both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
        found = np.zeros(b.lanes, np.uint64)
        for k in range(4):
            nibble = (s >> np.uint32(4 * k)).astype(np.uint64)
            byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            byte = np.where(nibble & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
            found |= byte << np.uint64(8 * k)
        to(b, mask, low_word(found))

    return step


def copied(name: str, ops: list[str]) -> Step:
    to, read = put(ops[0]), whole(ops[1])
    return lambda b, mask: to(b, mask, low_word(read(b)))


def absolute(name: str, ops: list[str]) -> Step:
    to, read = put(ops[0]), whole(ops[1])
    return lambda b, mask: to(b, mask, np.abs(low_word(read(b)).view(np.int32)).view(np.uint32))


def selected(name: str, ops: list[str]) -> Step:
    to, first = put(ops[0]), predicate(ops[3])
    if name.startswith("F"):
        reals = [real(p) for p in ops[1:3]]
        return lambda b, mask: to(b, mask, np.where(first(b), *(np.asarray(r(b)).view(np.uint32) for r in reals)))
    wholes = [whole(p) for p in ops[1:3]]
    return lambda b, mask: to(b, mask, np.where(first(b), *(low_word(r(b)) for r in wholes)))


def constants_loaded(name: str, ops: list[str]) -> Step:
    kind = name.partition(".")[2] or "32"
    if kind == "64":
        low, high, both = constant(ops[1], 4), constant(ops[1], 4, 4), put_pair(ops[0])
        return lambda b, mask: both(b, mask, low(b).astype(np.uint64) | high(b).astype(np.uint64) << np.uint64(32))
    to, read = put(ops[0]), constant(ops[1], int(kind.lstrip("US")) // 8, 0, kind[0] == "S")
    return lambda b, mask: to(b, mask, read(b))


def special(name: str, ops: list[str]) -> Step:
    to, register_name = put(ops[0]), ops[1]
    return lambda b, mask: to(b, mask, b.special(register_name))


def zeros(name: str, ops: list[str]) -> Step:
    """CS2R, which the compilers use for two zeros."""
    if ops[1] != "SRZ":
        raise UnknownInstructionError(f"{name} {ops}")
    both = put_pair(ops[0])
    return lambda b, mask: both(b, mask, np.zeros(b.lanes, np.uint64))


def extended(name: str, ops: list[str]) -> Step:
    to, read, rest = put(ops[0]), whole(ops[1]), 32 - int(ops[2], 0)

    def step(b: Block, mask: Lanes) -> None:
        value = low_word(np.broadcast_to(read(b), (b.lanes,))) << np.uint32(rest)
        signed = (value.view(np.int32) >> rest).view(np.uint32)
        to(b, mask, value >> np.uint32(rest) if ".U32" in name else signed)

    return step


def predicates_gathered(name: str, ops: list[str]) -> Step:
    to, read, chosen = put(ops[0]), whole(ops[2]), int(ops[3], 0)

    def step(b: Block, mask: Lanes) -> None:
        file = b.UP if name.startswith("U") else b.P
        found = sum((file[k].astype(np.uint32) << np.uint32(k) for k in range(7)), np.zeros(b.lanes, np.uint32))
        to(b, mask, found & np.uint32(chosen) | low_word(read(b)) & np.uint32(~chosen & 0xFFFFFFFF))

    return step


def predicates_scattered(name: str, ops: list[str]) -> Step:
    read, chosen = whole(ops[1]), int(ops[2], 0)

    def step(b: Block, mask: Lanes) -> None:
        value = low_word(np.broadcast_to(read(b), (b.lanes,)))
        for k in range(7):
            if chosen >> k & 1:
                np.copyto(b.P[k], (value >> np.uint32(k) & np.uint32(1)).astype(bool), where=mask)

    return step


def voted(name: str, ops: list[str]) -> Step:
    """Whether any lane of the warp says yes."""
    to, asked = put(ops[0]), predicate(ops[1])

    def step(b: Block, mask: Lanes) -> None:
        to(b, mask, np.repeat((asked(b) & mask).reshape(-1, 32).any(1), 32))

    return step


def shuffled(name: str, ops: list[str]) -> Step:
    kind = name.split(".")[1]
    inside, to, read, by, clamp = put(ops[0]), put(ops[1]), whole(ops[2]), whole(ops[3]), whole(ops[4])

    def step(b: Block, mask: Lanes) -> None:
        value, n, c = (low_word(np.broadcast_to(t(b), (b.lanes,))).astype(np.int64) for t in (read, by, clamp))
        lane = np.arange(b.lanes) % 32
        segment, most = c >> 8 & 31, c & 31
        low = lane & segment
        high = low | most & ~segment
        at = {"BFLY": lane ^ n, "IDX": low | n & ~segment, "UP": lane - n, "DOWN": lane + n}[kind]
        good = at >= most if kind == "UP" else at <= high
        at = np.where(good, at, lane)
        from_ = np.arange(b.lanes) // 32 * 32 + at
        b.require(bool(mask[from_][mask].all()), "a shuffle reads a lane that does not take part")
        inside(b, mask, good)
        to(b, mask, value[from_].astype(np.uint32))

    return step
