"""What the instructions of NVIDIA's machine code (sm_90) compute, lane by lane, in numpy.

NVIDIA documents the names only. What is here is known by its results: the kernels that are executed give, bit for bit
or within their rounding, what the operators' references give. An instruction that is not here is an error.
"""

from __future__ import annotations

from collections.abc import Callable

from .comparisons import set_real, set_whole
from .integers import added, lut, multiplied, predicate_lut, shifted, shifted_and_added
from .moves import moved, permuted, shuffled
from .operands import Step, UnknownInstructionError
from .reals import approximated, computed, converted, extreme, of_halves

__all__ = ["Step", "UnknownInstructionError", "semantics"]

_FAMILIES: dict[str, Callable[[str, list[str]], Step]] = {
    "IADD3 UIADD3 VIADD": added,
    "IMAD UIMAD": multiplied,
    "LOP3 ULOP3": lut,
    "PLOP3 UPLOP3": predicate_lut,
    "SHF USHF": shifted,
    "LEA ULEA": shifted_and_added,
    "ISETP UISETP": set_whole,
    "FSETP FSET DSETP": set_real,
    "FADD FMUL FFMA DADD DMUL DFMA": computed,
    "MUFU": approximated,
    "I2F I2FP F2I F2FP F2F": converted,
    "HADD2 HMUL2 HFMA2 HMNMX2 VHMNMX HSETP2": of_halves,
    "IMNMX VIMNMX VIADDMNMX UIMNMX FMNMX": extreme,
    "PRMT UPRMT": permuted,
    "SHFL": shuffled,
    "MOV UMOV R2UR IABS SEL USEL FSEL LDC ULDC S2R S2UR CS2R SGXT P2R R2P VOTE VOTEU": moved,
    "POPC BREV FLO UPOPC UBREV UFLO": moved,
}
_BY_NAME = {name: family for names, family in _FAMILIES.items() for name in names.split()}


def semantics(name: str, ops: list[str]) -> Step:
    """What an instruction that moves no memory and no control does."""
    family = _BY_NAME.get(name.split(".")[0])
    if family is None:
        raise UnknownInstructionError(f"{name} {', '.join(ops)}")
    return family(name, ops)
