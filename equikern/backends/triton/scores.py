"""``score``: how unsure a model is of each row of logits, in one pass over it.

Profilers see the kernels under names such as ``equikern_score_rows_entropy_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from functools import lru_cache

import triton.language as tl
from torch import Tensor

from .compat import jit_kernel
from .launch import Plan, run
from .layout import Operand, operand
from .rows import load_block, lowest, plan_rows, program_rows, row_start, softened

__all__ = ["plan", "score"]


@jit_kernel
def score_rows(
    y, out, rows: tl.int64, nb: tl.int64, nx: tl.int64, V: tl.int32,
    ya: tl.int64, yb: tl.int64, yx: tl.int64, yn: tl.int64, oa: tl.int64, ob: tl.int64, ox: tl.int64,
    OP: tl.constexpr, R: tl.constexpr, J: tl.constexpr, E: tl.constexpr, VEC: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Per lane the largest logit m, Σ exp(v − m), and what the kind asks for: Σ (v − m) exp(v − m) or the second."""
    a, b, x, within = program_rows(rows, nb, nx, R)
    base, off = row_start(a, b, x, ya, yb, yx, VEC, SHIFT)
    least = lowest(ACC)
    top = tl.zeros([R, J], ACC) + least
    total = tl.zeros([R, J], ACC)
    third = tl.zeros([R, J], ACC)
    if OP == "margin":
        third += least
    for k in range(0, V + (VEC - 1 if SHIFT else 0), J * E):
        v = load_block(y, base, off, k, V, yn, within, float("-inf"), J, E, VEC, SHIFT, UNIT, ACC)
        higher, sums = softened(v, top, total)
        if OP == "entropy":
            d = v - higher[:, :, None]
            # −∞ adds nothing: 0 · −∞ would be NaN.
            terms = tl.where(v == float("-inf"), 0.0, d * tl.exp(d))
            drop = top - higher
            third = tl.exp(drop) * (third + tl.where(total == 0.0, 0.0, drop * total)) + tl.sum(terms, 2)
        elif OP == "margin":
            # The second of the lane's first two and of the vector's: equal largest ones count twice.
            best = tl.max(v, 2)[:, :, None]
            twice = tl.sum((v == best).to(tl.int32), 2) > 1
            after = tl.max(tl.where(v == best, least, v), 2)
            best = tl.max(v, 2)
            third = tl.maximum(tl.maximum(third, tl.minimum(top, best)), tl.where(twice, best, after))
        top = higher
        total = sums
    highest = tl.max(top, 1)
    drop = top - highest[:, None]
    total_ = tl.sum(total * tl.exp(drop), 1)
    inverse = tl.where(total_ == 0.0, float("nan"), 1.0 / total_)  # no logit above −∞: no distribution
    if OP == "max_prob":
        result = -inverse
    elif OP == "entropy":
        moment = tl.sum(tl.exp(drop) * (third + tl.where(total == 0.0, 0.0, drop * total)), 1)
        result = tl.log(total_) - moment * inverse
    else:
        first = top == highest[:, None]
        shared = tl.sum(first.to(tl.int32), 1) > 1
        second = tl.where(shared, highest, tl.max(tl.where(first, third, top), 1))
        result = (tl.exp(second - highest) - 1.0) * inverse
    tl.store(out + a * oa + b * ob + x * ox, result, mask=within)


@lru_cache(maxsize=1024)
def plan(kind: str, logits: Operand, out: Operand) -> Plan | None:
    """The launch for operands such as these, or None if the logits must be copied first."""
    return plan_rows(score_rows, ".", "y", [(logits, False)], "o", [(out, False)], (), {}, {"OP": kind})


def score(logits: Tensor, out: Tensor, kind: str) -> None:
    """Write each row's −largest probability ("max_prob"), "entropy", or second largest − largest ("margin").

    Args:
        logits: (*lead, V), any strides.
        out: (*lead), contiguous, float32 or float64.
        kind: one of the names above.
    """
    if logits.numel() == 0:
        return
    found = plan(kind, operand(logits), operand(out))
    if found is not None:
        run(found, logits, out)
    else:  # more leading dims than loops: only then is anything copied
        score(logits.contiguous(), out, kind)
