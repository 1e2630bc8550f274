"""What the instructions of NVIDIA's machine code (sm_90) compute, lane by lane, in numpy.

NVIDIA documents the names only. What is here is known by its results: the kernels that are executed give, bit for bit
or within their rounding, what the operators' references give. An instruction that is not here is an error.
"""

from __future__ import annotations

from collections.abc import Callable

from . import comparisons, integers, moves, reals
from .operands import Step, UnknownInstructionError

__all__ = ["Step", "UnknownInstructionError", "semantics"]

_COMPARISONS = "EQ NE LT LE GT GE AND OR"

# Names, what computes them, and the modifiers that this knows.
_FAMILIES: list[tuple[str, Callable[[str, list[str]], Step], str]] = [
    ("IADD3 UIADD3 VIADD", integers.added, "X"),
    ("IMAD UIMAD", integers.multiplied, "MOV U32 IADD SHL X WIDE HI"),
    ("LOP3 ULOP3", integers.lut, "LUT"),
    ("PLOP3 UPLOP3", integers.predicate_lut, "LUT"),
    ("SHF USHF", integers.shifted, "L R U32 S32 U64 S64 HI W"),
    ("LEA ULEA", integers.shifted_and_added, "HI X SX32"),
    ("ISETP UISETP", comparisons.set_whole, f"{_COMPARISONS} XOR U32 EX"),
    ("FSETP FSET DSETP", comparisons.set_real, f"{_COMPARISONS} LTU LEU GTU GEU EQU NEU NAN NUM MAX MIN FTZ BF"),
    ("FCHK", comparisons.set_where_division_needs_care, ""),
    ("FADD FMUL FFMA DADD DMUL DFMA", reals.computed, "FTZ RP RM RZ"),
    ("MUFU", reals.approximated, "RCP RSQ EX2 LG2 RCP64H RSQ64H"),
    ("I2F I2FP", reals.from_whole, "F32 F64 U32 S32 U64 S64 RP"),
    ("F2I", reals.to_whole, "F64 U32 S32 U64 S64 TRUNC NTZ FTZ"),
    ("F2FP", reals.packed, "F16 BF16 F32 PACK_AB"),
    ("F2F", reals.between, "F16 BF16 F32 F64"),
    ("HADD2 HFMA2", reals.of_halves, "F32 MMA BF16_V2"),
    ("HMNMX2 VHMNMX", reals.extreme_half, "NAN BF16_V2"),
    ("HSETP2", comparisons.set_halves, f"{_COMPARISONS} NAN BF16_V2"),
    ("FMNMX", reals.extreme, "NAN"),
    ("VIMNMX VIADDMNMX", integers.extreme, "U32 U16x2 S16x2"),
    ("PRMT UPRMT", moves.permuted, ""),
    ("SHFL", moves.shuffled, "BFLY IDX"),
    ("MOV UMOV R2UR", moves.copied, ""),
    ("IABS", moves.absolute, ""),
    ("SEL USEL FSEL", moves.selected, ""),
    ("LDC ULDC", moves.constants_loaded, "64 U8 S8 U16 S16"),
    ("S2R S2UR", moves.special, ""),
    ("CS2R", moves.zeros, ""),
    ("SGXT USGXT", moves.extended, "U32"),
    ("P2R UP2UR", moves.predicates_gathered, ""),
    ("R2P", moves.predicates_scattered, ""),
    ("VOTEU", moves.voted, "ANY"),
]
_BY_NAME = {name: (step, {*known.split()}) for names, step, known in _FAMILIES for name in names.split()}


def semantics(name: str, ops: list[str]) -> Step:
    """What an instruction that moves no memory and no control does."""
    base, *modifiers = name.split(".")
    step, known = _BY_NAME.get(base, (None, set[str]()))
    if step is None or not known.issuperset(modifiers):
        raise UnknownInstructionError(f"{name} {', '.join(ops)}")
    return step(name, ops)
