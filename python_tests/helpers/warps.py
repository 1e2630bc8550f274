"""Execute the machine code of a kernel for Hopper (sm_90) on the CPU, and count what a multiprocessor would issue.

    launched = Launch(code, given, blocks, threads, shared)
    counts = launched.run(memory, range(blocks))

A block's threads are lanes of numpy arrays; those at the lowest address go first, and a barrier waits for all, as does
the end of a branch for those that entered it. So every access has an address, which must be inside of a tensor, and
every warp's instruction is counted once, however many of its lanes take part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from helpers.accesses import disagree, lines_touched, wavefronts
from helpers.sass import Step, UnknownInstructionError, semantics
from helpers.sass.operands import Lanes, is_predicate, pointer, predicate, register, split
from numpy.typing import NDArray

__all__ = ["Counts", "FaultError", "Launch", "Memory", "parameters"]

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
PARAMETERS = 0x210  # where a kernel's parameters start in the constants of Hopper
STACK = 1 << 14  # bytes of local memory a thread, whose end is in the constants
SECTOR = 32  # bytes that a cache asks the next one for
SHARED = 0x400  # where its shared memory starts, behind what the driver takes


class FaultError(Exception):
    """An access outside of all tensors, a read of memory that nobody wrote, threads that wait for each other."""


@dataclass
class Counts:
    """What the blocks that ran have issued."""

    warp_instructions: int = 0
    by_name: dict[str, int] = field(default_factory=dict)
    loaded: int = 0  # bytes that lanes asked global memory for
    stored: int = 0
    sectors: int = 0  # that blocks load, each once a block: its cache has what lanes ask for again
    # What the L1 cache, of which shared memory is a part, serves one after the other: words of a bank of shared memory
    # that lanes ask for, and lines of 128 bytes of global memory that a warp's access touches.
    wavefronts: int = 0
    blocks: int = 0


class Memory:
    """What blocks may read and write, by its addresses.

    A byte that one block writes may be neither read by another nor written, but with the same: blocks run in no order.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.regions: list[tuple[int, int, NDArray[np.uint8] | None]] = []
        self.fillings: dict[int, NDArray[np.uint8]] = {}
        self.writers: dict[int, NDArray[np.int32]] = {}
        self.readers: dict[int, NDArray[np.int32]] = {}

    def add(self, start: int, size: int, data: NDArray[np.uint8] | None, filling: bytes = b"\0") -> None:
        """Bytes at an address; without data they read as repeats of the filling, and nothing is kept of them."""
        if size and start not in self.starts:
            self.fillings[start] = np.frombuffer(filling, np.uint8)
            self.regions.append((start, size, data))
            self.regions.sort(key=lambda region: region[:2])
            self.starts = [region[0] for region in self.regions]

    def next_launch(self) -> None:
        """Forget which block touched what: kernels of one stream run one after the other."""
        self.writers.clear()
        self.readers.clear()

    def _places(self, at: NDArray[np.int64], size: int, what: str) -> Iterator[tuple[Lanes, int, Any, Lanes]]:
        if (at % size).any():
            raise FaultError(f"{what}: {size} bytes at an address that is no multiple of them")
        found = np.searchsorted(self.starts, at, "right") - 1
        for n in np.unique(found):
            which = found == n
            start, room, raw = self.regions[n] if n >= 0 else (0, 0, None)
            where = at[which] - start
            if (where + size > room).any():
                bad = int(where[where + size > room][0])
                raise FaultError(f"{what}: {size} bytes at {bad} of a tensor of {room} bytes")
            yield which, start, raw, where[:, None] + np.arange(size)

    def load(self, at: NDArray[np.int64], size: int, block: int) -> NDArray[np.uint8]:
        found = np.zeros((at.size, size), np.uint8)
        for which, start, raw, places in self._places(at, size, "load"):
            if raw is None:
                filling = self.fillings[start]
                found[which] = filling[places % filling.size]
                continue
            found[which] = raw[places]
            writer = self.writers.get(start)
            if writer is not None and ((writer[places] != block) & (writer[places] >= 0)).any():
                raise FaultError(f"block {block} reads what another one writes")
            reader = self.readers.setdefault(start, np.full(raw.size, -1, np.int32))
            was = reader[places]
            reader[places] = np.where((was == -1) | (was == block), block, -2)
        return found

    def store(self, at: NDArray[np.int64], value: NDArray[np.uint8], block: int) -> None:
        for which, start, raw, places in self._places(at, value.shape[1], "store"):
            if raw is None:  # memory that nobody holds, whose tables send all lanes to one place
                continue
            if disagree(at[which], value[which]):
                raise FaultError(f"lanes of block {block} write different values to one place")
            writer = self.writers.setdefault(start, np.full(raw.size, -1, np.int32))
            for owner, did in ((writer, "writes"), (self.readers.get(start), "reads")):
                if owner is not None:
                    others = (owner[places] != block) & (owner[places] != -1)
                    if (others & (raw[places] != value[which])).any():
                        raise FaultError(f"block {block} writes what another one {did}")
            raw[places] = value[which]
            writer[places] = block


@dataclass
class Instruction:
    address: int
    guard: Callable[[Block], Lanes] | None
    name: str
    ops: list[str]
    step: Step | None  # None: control and memory
    place: Callable[[Block], NDArray[np.int64]] | None  # of an access


class Block:
    """The state of one block's threads."""

    def __init__(self, launch: Launch, memory: Memory, number: int) -> None:
        self.lanes = n = launch.threads
        self.launch, self.memory, self.number = launch, memory, number
        self.R = np.zeros((256, n), np.uint32)
        self.UR = np.zeros((64, n), np.uint32)
        self.P = np.zeros((8, n), bool)
        self.UP = np.zeros((8, n), bool)
        self.P[7] = self.UP[7] = True
        self.constants = launch.constants
        self.shared = np.zeros(launch.shared, np.uint8)
        # Which warp touched a byte since the last barrier, −2 several or before it, −1 none.
        self.shared_writer = np.full(launch.shared, -1, np.int64)
        self.shared_reader = np.full(launch.shared, -1, np.int64)
        self.on_the_way = np.full(launch.shared, -1, np.int64)  # which warp copies there and has not waited for it
        self.loads: list[NDArray[np.int64]] = []  # which sectors of global memory each load asked for
        self.copied_in = np.zeros(launch.shared, np.int64)  # in which of its groups
        self.groups = np.zeros(self.lanes // 32, np.int64)  # that each warp has ended
        self.local: NDArray[np.uint8] | None = None  # what registers had no room for
        self.pc = np.full(n, launch.start, np.int64)
        self.done = np.zeros(n, bool)
        self.barrier = np.zeros(n, bool)
        self.waits = np.full(n, -1, np.int64)  # for the end of which branch
        self.members = np.zeros((17, n), bool)  # of each branch: who has to come

    def require(self, good: bool, what: str) -> None:
        if not good:
            raise FaultError(f"{what}, in block {self.number}")

    def special(self, name: str) -> Lanes:
        n = np.arange(self.lanes, dtype=np.uint32)
        if name == "SR_TID.X":
            return n
        if name == "SR_LANEID":
            return n % np.uint32(32)
        if name == "SR_CTAID.X":
            return np.full(self.lanes, self.number, np.uint32)
        if name in ("SR_CTAID.Y", "SR_CTAID.Z", "SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId"):
            return np.zeros(self.lanes, np.uint32)
        raise UnknownInstructionError(name)

    # Memory

    def access(self, i: Instruction, mask: Lanes, counts: Counts) -> bool:
        """Loads and stores; whether it was one."""
        base, *kinds = i.name.split(".")
        if base not in _ACCESS:
            return False
        if not mask.any():
            return True
        size = next((_SIZES[k] for k in kinds if k in _SIZES), 4)
        if base in ("LDSM", "STSM"):
            self._matrices(i, mask, counts)
            return True
        at = i.place(self)[mask] if i.place else np.zeros(0, np.int64)
        if base == "LDS":
            self._into(i.ops[0], mask, self._load_shared(at, size, mask, counts), kinds)
        elif base == "STS":
            self._store_shared(at, self._bytes(i.ops[1], size)[mask], mask, counts)
        elif base in ("LDL", "STL"):
            if self.local is None:
                self.local = np.zeros((self.lanes, STACK), np.uint8)
            where = np.flatnonzero(mask)[:, None], at[:, None] + np.arange(size)
            if base == "LDL":
                self._into(i.ops[0], mask, self.local[where], kinds)
            else:
                self.local[where] = self._bytes(i.ops[1], size)[mask]
        elif base in ("STG", "ST"):
            value = self._bytes(i.ops[1], size)[mask]
            counts.stored += value.size
            counts.wavefronts += lines_touched(np.flatnonzero(mask), at)
            self.memory.store(at, value, self.number)
        else:
            value = self.memory.load(at, size, self.number)
            counts.loaded += value.size
            self.loads.append(np.unique(at // SECTOR))  # an access lies within one
            counts.wavefronts += lines_touched(np.flatnonzero(mask), at)
            if base == "LDGSTS":
                into = pointer(i.ops[0])(self)[mask]
                self._store_shared(into, value, mask, counts)
                warp, places = np.flatnonzero(mask)[:, None] // 32, into[:, None] - SHARED + np.arange(size)
                self.on_the_way[places], self.copied_in[places] = warp, self.groups[warp]
            else:
                self._into(i.ops[0], mask, value, kinds)
        return True

    def _shared_places(
        self, at: NDArray[np.int64], size: int, what: str, mask: Lanes, counts: Counts
    ) -> NDArray[np.int64]:
        at = at - SHARED
        self.require(
            bool((at >= 0).all() and (at + size <= self.shared.size).all()), f"{what} outside of shared memory"
        )
        self.require(not (at % size).any(), f"{what} of {size} bytes of shared memory that is not aligned")
        counts.wavefronts += wavefronts(np.flatnonzero(mask), at, size)
        return at[:, None] + np.arange(size)

    def _load_shared(self, at: NDArray[np.int64], size: int, mask: Lanes, counts: Counts) -> NDArray[np.uint8]:
        places = self._shared_places(at, size, "a read", mask, counts)
        warp, writer = np.flatnonzero(mask)[:, None] // 32, self.shared_writer[places]
        self.require(bool((writer != -1).all()), "a read of shared memory that nobody wrote")
        self.require(bool((self.on_the_way[places] == -1).all()), "a read of what is being copied, without a wait")
        self.require(
            bool(((writer == warp) | (writer == -2)).all()), "a read without a barrier behind another warp's write"
        )
        was = self.shared_reader[places]
        self.shared_reader[places] = np.where((was == -1) | (was == warp), warp, -2)
        return self.shared[places]

    def _store_shared(self, at: NDArray[np.int64], value: NDArray[np.uint8], mask: Lanes, counts: Counts) -> None:
        places = self._shared_places(at, value.shape[1], "a write", mask, counts)
        warp, writer, reader = (
            np.flatnonzero(mask)[:, None] // 32,
            self.shared_writer[places],
            self.shared_reader[places],
        )
        self.require(
            bool(((reader == warp) | (reader == -1)).all()), "a write without a barrier behind another warp's read"
        )
        self.require(bool(((writer == warp) | (writer < 0)).all()), "a write without a barrier behind another warp's")
        self.require(not disagree(at, value), "lanes that write different values to one place of shared memory")
        self.shared[places] = value
        self.shared_writer[places] = warp

    def _bytes(self, text: str, size: int) -> NDArray[np.uint8]:
        kind, n = register(text.replace(".reuse", "")) or ("R", 255)
        file = self.UR if kind == "UR" else self.R
        words = [file[n if n == 255 else n + k] for k in range(-(-size // 4))]
        return np.stack(words, 1).view(np.uint8)[:, :size]

    def _into(self, text: str, mask: Lanes, value: NDArray[np.uint8], kinds: list[str]) -> None:
        _, n = register(text) or ("R", 255)
        if n == 255:
            return
        if value.shape[1] < 4:
            sign = "i" if "S8" in kinds or "S16" in kinds else "u"
            wide = np.ascontiguousarray(value).view(f"<{sign}{value.shape[1]}")[:, 0]
            words = wide.astype(np.int64).astype(np.uint32)[:, None]
        else:
            words = np.ascontiguousarray(value).view(np.uint32)
        for k in range(words.shape[1]):
            self.R[n + k][mask] = words[:, k]

    def _matrices(self, i: Instruction, mask: Lanes, counts: Counts) -> None:
        """8×8 matrices of 16 bits: lane t holds two neighbours of row t / 4, and lane 8m + r points to row r of m."""
        by_warp = mask.reshape(-1, 32)
        self.require(bool(by_warp.all(1)[by_warp.any(1)].all()), "a matrix without its whole warp")
        count = int(next((k for k in i.name.split(".")[1:] if k in ("2", "4")), "1"))
        turned, stores = ".MT88" in i.name, i.name.startswith("STSM")
        at = pointer(i.ops[0 if stores else 1])(self).reshape(-1, 32)
        _, first = register((i.ops[1] if stores else i.ops[0]).replace(".reuse", "")) or ("R", 255)
        t = np.arange(32)
        for m in range(count):
            rows = at[:, 8 * m : 8 * m + 8]
            words = self.R[first + m].copy() if stores else np.zeros(self.lanes, np.uint32)
            found = Counts()  # all rows of a matrix are read at once, where their 16 bytes lie in banks of their own
            for k in (0, 1):
                # Turned, a lane's two elements are those of two neighbouring rows, in column t / 4.
                where = rows[:, t % 4 * 2 + k] + t // 4 * 2 if turned else rows[:, t // 4] + t % 4 * 4 + 2 * k
                where = where.reshape(-1)[mask]
                if stores:
                    part = (words >> np.uint32(16 * k) & np.uint32(0xFFFF)).astype(np.uint16)[mask]
                    self._store_shared(where, part.view(np.uint8).reshape(-1, 2), mask, found)
                else:
                    part = np.ascontiguousarray(self._load_shared(where, 2, mask, found)).view(np.uint16)[:, 0]
                    words[mask] |= part.astype(np.uint32) << np.uint32(16 * k)
            counts.wavefronts += wavefronts(np.arange(rows.size), rows.reshape(-1), 16, 8)
            if not stores:
                self.R[first + m][mask] = words[mask]

    # Control

    def release(self) -> None:
        """Let go on who waited for the end of a branch that all have reached, and all who wait for all."""
        for n in np.unique(self.waits[self.waits >= 0]):
            here = (self.waits == n).reshape(-1, 32)
            missing = (self.members[n] & ~self.done).reshape(-1, 32) & ~here
            ready = np.repeat(~missing.any(1), 32) & (self.waits == n)
            self.waits[ready] = -1
            self.pc[ready] += 16
            self.members[n][ready] = False
        alive = ~self.done
        if alive.any() and (self.barrier | self.done).all():
            self.pc[alive] += 16
            self.barrier[:] = False
            self.shared_writer[self.shared_writer >= 0] = -2
            self.shared_reader[:] = -1

    def control(self, i: Instruction, here: Lanes, mask: Lanes) -> bool:
        """Branches, barriers and ends; whether it was one. ``here`` are the lanes at it, ``mask`` those it is for."""
        base = i.name.split(".")[0]
        if base == "EXIT":
            self.pc[here & ~mask] += 16
            self.done |= mask
        elif base in ("BRA", "JMP"):
            for p in i.ops[:-1]:
                if is_predicate(p):
                    mask = mask & predicate(p)(self)
            if ".DIV" in i.name:  # taken by none, whose warps are whole
                mask = mask & False
            self.pc[here] += 16
            self.pc[mask] = int(i.ops[-1], 16)
        elif base == "CALL":
            self.pc[here] += 16
            self.pc[mask] = int(i.ops[-1], 16)
        elif base == "RET":
            text, origin = i.ops[0].split()
            _, n = register(text) or ("R", 255)
            self.pc[here] += 16
            self.pc[mask] = self.R[n][mask].astype(np.int64) + int(origin, 16)
        elif base == "BSSY":
            n = int(i.ops[0][1:])
            self.members[n][np.repeat(here.reshape(-1, 32).any(1), 32)] = False
            self.members[n] |= mask
            self.pc[here] += 16
        elif base == "BSYNC":
            n = int(i.ops[0][1:])
            self.waits[mask] = n
            self.pc[here & ~mask] += 16
        elif base == "BREAK":
            self.members[int(i.ops[-1][1:])] &= ~mask
            self.pc[here] += 16
        elif base == "BAR":
            self.barrier |= mask
            self.pc[here & ~mask] += 16
        elif base in ("NOP", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "YIELD", "BMOV", "ERRBAR", "MEMBAR"):
            warps = np.unique(np.flatnonzero(mask) // 32)
            if base == "LDGDEPBAR":
                self.groups[warps] += 1
            elif base == "DEPBAR":  # waits for the copies of its own warp, but those of the last groups
                late = self.groups[self.on_the_way] - int(i.ops[1], 16) <= self.copied_in
                self.on_the_way[np.isin(self.on_the_way, warps) & ~late] = -1
            self.pc[here] += 16
        else:
            return False
        return True

    def run(self, counts: Counts) -> None:
        program = self.launch.program
        while not self.done.all():
            ready = ~(self.done | self.barrier) & (self.waits < 0)
            if not ready.any():
                before = self.pc.copy()
                self.release()
                self.require(bool((before != self.pc).any()), "threads that wait for each other")
                continue
            now = int(self.pc[ready].min())
            here = ready & (self.pc == now)
            others = ready & ~here
            stop = int(self.pc[others].min()) if others.any() else 1 << 62
            warps = int(here.reshape(-1, 32).any(1).sum())
            while now < stop:
                i = program[now]
                counts.warp_instructions += warps
                counts.by_name[i.name] = counts.by_name.get(i.name, 0) + warps
                mask = here if i.guard is None else here & i.guard(self)
                if i.step is not None:
                    i.step(self, mask)
                elif self.access(i, mask, counts):
                    pass
                else:
                    self.pc[here] = now
                    if not self.control(i, here, mask):
                        raise UnknownInstructionError(f"{i.name} {', '.join(i.ops)}")
                    if i.name.split(".")[0] in ("BSYNC", "EXIT", "BREAK"):
                        self.release()
                    break
                now += 16
            else:
                self.pc[here] = now


class Launch:
    """A kernel's machine code with its constants, ready to run blocks.

    Args:
        code: a line for each instruction, as ``machine_code.dumped`` gives it.
        given: the kernel's parameters, packed as the compiler packs them: see ``parameters``.
        blocks: of the grid, whether they are all run or not.
        threads: of a block.
        shared: bytes of shared memory that a block has.
    """

    def __init__(self, code: str, given: bytes, blocks: int, threads: int, shared: int) -> None:
        self.threads, self.shared = threads, shared
        self.constants = np.zeros(8192 + 8, np.uint8)
        self.constants[:24] = np.array([threads, 1, 1, blocks, 1, 1], np.uint32).view(np.uint8)
        self.constants[0x28:0x2C] = np.array([STACK], np.uint32).view(np.uint8)
        self.constants[PARAMETERS : PARAMETERS + len(given)] = np.frombuffer(given, np.uint8)
        self.program: dict[int, Instruction] = {}
        for line in code.splitlines():
            m = _LINE.search(line)
            if m is None:
                raise UnknownInstructionError(line)
            at, name, ops = int(m[1], 16), m[3], split(m[4])
            base = name.split(".")[0]
            step = None if base in _CONTROL or base in _ACCESS else semantics(name, ops)
            place = pointer(ops[0 if base in ("STG", "ST", "STS", "STSM", "STL") else 1]) if base in _ACCESS else None
            self.program[at] = Instruction(at, predicate(m[2]) if m[2] else None, name, ops, step, place)
        self.start = min(self.program)

    def run(self, memory: Memory, blocks: Iterable[int]) -> Counts:
        """Run some blocks one after the other."""
        counts = Counts()
        with np.errstate(over="ignore"):
            for number in blocks:
                block = Block(self, memory, number)
                block.run(counts)
                counts.sectors += np.unique(np.concatenate([np.zeros(0, np.int64), *block.loads])).size
                counts.blocks += 1
        return counts


_ACCESS = frozenset("LDG LD LDS STG ST STS LDGSTS LDSM STSM LDL STL".split())
_CONTROL = frozenset(
    "EXIT BRA JMP CALL RET BSSY BSYNC BREAK BAR NOP DEPBAR LDGDEPBAR WARPSYNC YIELD BMOV ERRBAR MEMBAR".split()
)


def parameters(values: Iterable[tuple[str, int | float]]) -> bytes:
    """Parameters by numpy's name of their type, each at a multiple of its size.

    Example:
        >>> parameters([("int32", 1), ("int64", 2)]).hex()
        '01000000000000000200000000000000'
    """
    packed = b""
    for kind, value in values:
        one = np.array([value], kind).tobytes()
        packed += b"\0" * (-len(packed) % len(one)) + one
    return packed
