"""What executes machine code on the CPU: that it counts, and that it sees the faults of kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.accesses import lines_touched, wavefronts
from helpers.warps import FaultError, Launch, Memory, parameters
from torch import Tensor

pytestmark = pytest.mark.audit


def copied(code: str) -> tuple[Tensor, Launch, Memory]:
    """A launch of one block that copies through shared memory, as some lines of machine code."""
    out = torch.zeros(64, dtype=torch.int32)
    x = torch.arange(64, dtype=torch.int32)
    memory = Memory()
    for t in (x, out):
        memory.add(t.data_ptr(), 256, t.view(torch.uint8).numpy())
    given = parameters([("int64", x.data_ptr()), ("int64", out.data_ptr())])
    return out, Launch(code, given, 1, 64, 256), memory


COPY = [
    "S2R R0, SR_TID.X ;",
    "LDC.64 R2, c[0x0][0x210] ;",
    "LDC.64 R4, c[0x0][0x218] ;",
    "IMAD.WIDE R2, R0, 0x4, R2 ;",
    "LDG.E R6, desc[UR4][R2.64] ;",
    "LEA R7, R0, 0x400, 0x2 ;",
    "STS [R7], R6 ;",
    "BAR.SYNC.DEFER_BLOCKING 0x0 ;",
    "LOP3.LUT R8, R0, 0x3f, RZ, 0x3c, !PT ;",
    "LEA R9, R8, 0x400, 0x2 ;",
    "LDS R10, [R9] ;",
    "IMAD.WIDE R4, R0, 0x4, R4 ;",
    "STG.E desc[UR4][R4.64], R10 ;",
    "EXIT ;",
]


def lines(code: list[str]) -> str:
    return "\n".join(f"        /*{16 * k:04x}*/                   {line}" for k, line in enumerate(code))


def test_a_copy_through_shared_memory() -> None:
    out, launch, memory = copied(lines(COPY))
    counts = launch.run(memory, [0])
    assert out.tolist() == [*reversed(range(64))]
    assert (counts.warp_instructions, counts.loaded, counts.stored) == (2 * len(COPY), 256, 256)
    # Two warps read and write: four accesses of shared memory, and as many of one line each, or of two where it is cut.
    assert 4 + 4 <= counts.wavefronts <= 4 + 8


def test_lanes_that_meet_in_a_bank_wait() -> None:
    lanes = np.arange(32)
    assert [wavefronts(lanes, step * lanes, 4) for step in (0, 4, 8, 12, 16, 128, 132)] == [1, 1, 2, 1, 4, 32, 1]
    assert [wavefronts(lanes, step * lanes, 2) for step in (2, 4, 130)] == [1, 1, 2]  # two lanes in a word, one each, …
    assert [wavefronts(lanes, size * lanes, size) for size in (8, 16)] == [2, 4]  # half a warp, a quarter at a time
    assert wavefronts(np.arange(64), 8 * np.arange(64), 4) == 4  # of two warps
    assert [wavefronts(lanes[:8], step * lanes[:8], 16, 8) for step in (16, 80, 128)] == [1, 1, 8]  # rows of a matrix
    assert [lines_touched(lanes, step * lanes) for step in (0, 4, 16, 128)] == [1, 1, 4, 32]


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("BAR.SYNC.DEFER_BLOCKING 0x0 ;", "NOP;", "nobody wrote|without a barrier"),
        ("IMAD.WIDE R2, R0, 0x4, R2 ;", "IMAD.WIDE R2, R0, 0x8, R2 ;", "of a tensor of 256 bytes"),
        ("LEA R9, R8, 0x400, 0x2 ;", "LEA R9, R0, 0x3fe, 0x2 ;", "outside of shared memory"),
        ("LEA R7, R0, 0x400, 0x2 ;", "LEA R7, R0, 0x400, 0x1 ;", "not aligned"),
        ("LEA R9, R8, 0x400, 0x2 ;", "LEA R9, R8, 0x500, 0x2 ;", "outside of shared memory"),
        ("STS [R7], R6 ;", "@!PT STS [R7], R6 ;", "nobody wrote"),
        ("IMAD.WIDE R4, R0, 0x4, R4 ;", "BRA 0x50 ;", "a write without a barrier"),
        ("LEA R7, R0, 0x400, 0x2 ;", "MOV R7, 0x400 ;", "lanes that write different values"),
        ("IMAD.WIDE R4, R0, 0x4, R4 ;", "NOP ;", "lanes of block 0 write different values"),
    ],
)
def test_faults_are_seen(line: str, instead: str, said: str) -> None:
    code = [instead if one == line else one for one in COPY]
    _, launch, memory = copied(lines(code))
    with pytest.raises(FaultError, match=said):
        launch.run(memory, [0])


def test_what_is_copied_is_waited_for() -> None:
    """From global to shared memory past the registers: by groups that have ended, but for the last ones."""
    past = ["LDGSTS.E [R7], desc[UR4][R2.64] ;" if "STS" in line else line for line in COPY]
    _, launch, memory = copied(lines(past))
    with pytest.raises(FaultError, match="without a wait"):
        launch.run(memory, [0])
    ended = [*past[:7], "LDGDEPBAR ;"]
    for enough in (["DEPBAR.LE SB0, 0x0 ;"], ["LDGDEPBAR ;", "DEPBAR.LE SB0, 0x1 ;"]):
        out, launch, memory = copied(lines([*ended, *enough, *past[7:]]))
        launch.run(memory, [0])
        assert out.tolist() == [*reversed(range(64))]
    for little in ([*past[:7], "DEPBAR.LE SB0, 0x0 ;"], [*ended, "DEPBAR.LE SB0, 0x1 ;"]):
        _, launch, memory = copied(lines([*little, *past[7:]]))
        with pytest.raises(FaultError, match="without a wait"):
            launch.run(memory, [0])


def test_blocks_may_not_meet() -> None:
    """Two blocks that write to the same places, which is a race unless it is the same that they write."""
    _, launch, memory = copied(lines(COPY))
    launch.run(memory, [0, 1])
    _, launch, memory = copied(lines(["S2R R10, SR_CTAID.X ;" if "LDS" in line else line for line in COPY]))
    with pytest.raises(FaultError, match="block 1 writes what another one writes"):
        launch.run(memory, [0, 1])
