"""The instructions of sm_90 that move bits between registers, lanes, predicates and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .operands import (
    Lanes,
    Step,
    UnknownInstructionError,
    constant,
    is_predicate,
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


def moved(name: str, ops: list[str]) -> Step:
    """What copies, chooses, collects or counts bits."""
    base = name.split(".")[0]
    if base in ("MOV", "UMOV", "R2UR", "IABS", "UIABS"):
        to, read = put(ops[0]), whole(ops[-1] if base != "R2UR" else ops[1])
        if base.endswith("IABS"):
            return lambda b, mask: to(b, mask, np.abs(low_word(read(b)).view(np.int32)).view(np.uint32))
        return lambda b, mask: to(b, mask, low_word(read(b)))
    if base in ("SEL", "USEL", "FSEL"):
        to, other = put(ops[0]), predicate(ops[3])
        if base == "FSEL":
            reals = [real(p) for p in ops[1:3]]
            return lambda b, mask: to(b, mask, np.where(other(b), *(np.asarray(r(b)).view(np.uint32) for r in reals)))
        wholes = [whole(p) for p in ops[1:3]]
        return lambda b, mask: to(b, mask, np.where(other(b), *(low_word(r(b)) for r in wholes)))
    if base in ("LDC", "ULDC"):
        kind = next((p for p in name.split(".")[1:] if p in ("64", "U8", "S8", "U16", "S16")), "32")
        if kind == "64":
            low, high, both = constant(ops[1], 4), constant(ops[1], 4, 4), put_pair(ops[0])
            return lambda b, mask: both(b, mask, low(b).astype(np.uint64) | high(b).astype(np.uint64) << np.uint64(32))
        to, read_c = put(ops[0]), constant(ops[1], int(kind.lstrip("US")) // 8, 0, kind[0] == "S")
        return lambda b, mask: to(b, mask, read_c(b))
    if base in ("S2R", "S2UR"):
        to, special = put(ops[0]), ops[1]
        return lambda b, mask: to(b, mask, b.special(special))
    if base == "CS2R":
        both = put_pair(ops[0]) if ".32" not in name else put(ops[0])
        if ops[1] != "SRZ":
            raise UnknownInstructionError(f"{name} {ops}")
        return lambda b, mask: both(b, mask, np.zeros(b.lanes, np.uint32 if ".32" in name else np.uint64))
    if base == "SGXT":
        to, read, by, unsigned = put(ops[0]), whole(ops[1]), int(ops[2], 0), ".U32" in name

        def extend(b: Block, mask: Lanes) -> None:
            value = low_word(np.broadcast_to(read(b), (b.lanes,))) << np.uint32(32 - by)
            to(
                b,
                mask,
                value >> np.uint32(32 - by) if unsigned else (value.view(np.int32) >> (32 - by)).view(np.uint32),
            )

        return extend
    if base in ("POPC", "BREV", "FLO", "UPOPC", "UBREV", "UFLO"):
        to, read = put(ops[0]), whole(ops[1])
        of: Callable[[int], int] = {
            "POPC": lambda v: v.bit_count(), "BREV": lambda v: int(f"{v:032b}"[::-1], 2),
            "FLO": lambda v: v.bit_length() - 1 if ".SH" not in name else 32 - v.bit_length(),
        }[base.lstrip("U")]  # fmt: skip

        def count(b: Block, mask: Lanes) -> None:
            values = np.broadcast_to(low_word(read(b)), (b.lanes,))
            to(b, mask, np.array([of(int(v)) & 0xFFFFFFFF for v in values], np.uint32))

        return count
    if base == "P2R":
        to, read, keep = put(ops[0]), whole(ops[2]), int(ops[3], 0)

        def gather(b: Block, mask: Lanes) -> None:
            found = sum((b.P[k].astype(np.uint32) << np.uint32(k) for k in range(7)), np.zeros(b.lanes, np.uint32))
            to(b, mask, found & np.uint32(keep) | low_word(read(b)) & np.uint32(~keep & 0xFFFFFFFF))

        return gather
    if base == "R2P":
        read, chosen = whole(ops[1]), int(ops[2], 0)

        def scatter(b: Block, mask: Lanes) -> None:
            value = low_word(np.broadcast_to(read(b), (b.lanes,)))
            for k in range(7):
                if chosen >> k & 1:
                    np.copyto(b.P[k], (value >> np.uint32(k) & np.uint32(1)).astype(bool), where=mask)

        return scatter
    if base in ("VOTEU", "VOTE"):
        to = put(ops[0])
        asked, every = predicate(ops[-1]), ".ALL" in name
        if not is_predicate(ops[0]):
            raise UnknownInstructionError(f"{name} {ops}")

        def vote(b: Block, mask: Lanes) -> None:
            value = (asked(b) | ~mask) if every else (asked(b) & mask)
            by_warp = value.reshape(-1, 32)
            found = by_warp.all(1) if every else by_warp.any(1)
            to(b, mask, np.repeat(found, 32))

        return vote
    if base == "SHFL":
        return shuffled(name, ops)
    raise UnknownInstructionError(f"{name} {', '.join(ops)}")


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
