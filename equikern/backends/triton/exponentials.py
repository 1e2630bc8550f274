"""Exponentials of differences of logits, in as few instructions as their accuracy allows.

In float32 exp(d) is the hardware's power of two of one rounded product. The product is off by |d| · 2⁻²⁴ of itself, and
d is never positive, so beside the largest exponential that is no more than 2⁻²⁵. For the power NVIDIA states two units
of the last place (those of exp2f), which no GPU here has confirmed.
Results below 2⁻¹²⁶ are 0, beside a largest of 1; what a score must tell apart below it takes ``tl.exp`` (``scores``).
Logarithms are those of the device's library, but for those of ``arithmetic``; quotients of rows and mixtures are within
two units of the last place.
Float64 has no short forms.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

import triton
import triton.language as tl

__all__ = ["exponent", "log_chance", "lowest", "natural", "power", "raised", "relative", "scale_of"]


@triton.jit
def lowest(ACC: tl.constexpr):
    """The least finite number: a largest logit to start from, of which none has to ask whether it is −∞."""
    if ACC == tl.float64:  # noqa: SIM300
        return tl.full([], -1.7976931348623157e308, ACC)
    else:
        return tl.full([], -3.4028234663852886e38, ACC)


@triton.jit
def exponent(d):
    """A difference of logits in the unit of ``raised``."""
    if d.dtype == tl.float64:
        return d
    else:
        return d * 1.4426950408889634


@triton.jit
def natural(t):
    """The difference itself."""
    if t.dtype == tl.float64:
        return t
    else:
        return t * 0.6931471805599453


@triton.jit
def raised(t):
    """exp(d) of t = ``exponent(d)``: one instruction in float32, where results below 2⁻¹²⁶ are 0."""
    if t.dtype == tl.float64:
        return tl.exp(t)
    else:
        return tl.exp2(t)


@triton.jit
def log_chance(v, top, log):
    """A logit's log-probability in the unit of ``raised``, in which log, log Σ, is given."""
    if v.dtype == tl.float64:
        return (v - top) - log
    else:
        return tl.fma(v - top, 1.4426950408889634, -log)


@triton.jit
def power(d):
    """exp(d)."""
    return raised(exponent(d))


@triton.jit
def scale_of(top):
    """What ``relative`` takes of a row: a unit, the top in it, and what the exponentials are to be multiplied by.

    The product top · unit rounds, for all entries of the row alike: the factor takes that back. Numbers so large that
    it would overflow are apart by more than any exponential tells, so a unit that is a power of two serves them.
    """
    if top.dtype == tl.float64:
        return top, top, tl.zeros_like(top) + 1.0
    else:
        unit = tl.where(tl.abs(top) > 1e38, 0.0009765625, 1.4426950408889634)
        shift = top * unit
        return unit, shift, tl.exp2(tl.fma(-top, unit, shift))


@triton.jit
def relative(v, unit, shift):
    """exp(v − top) but for the row's factor, in two instructions."""
    if v.dtype == tl.float64:
        return tl.exp(v - shift)
    else:
        return tl.exp2(tl.fma(v, unit, -shift))
