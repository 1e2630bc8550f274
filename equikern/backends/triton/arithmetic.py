"""The arithmetic of the reductions on values in registers: prepare, combine, finish, and the shares of a gradient."""
# mypy: ignore-errors
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

import triton
import triton.language as tl


@triton.jit
def prepare(v, OP: tl.constexpr):
    """A reduction's function of one value before the sum."""
    if OP == "gmean":
        return tl.log(v)
    elif OP == "hmean":
        return divided(1.0, v)
    elif OP == "tsharpen":
        return root(v)
    elif OP == "logodd":
        low = tl.full([], 1e-6, v.dtype)
        high = tl.full([], 1 - 1e-6, v.dtype)
        v = tl.where(v < low, low, tl.where(v > high, high, v))  # NaN fails both comparisons and stays
        return log_of_odds(v / (1.0 - v))  # two units of the quotient's last place are none of a probability's
    elif OP == "log1p":
        return log1p(v)
    elif OP == "std" or OP == "mean_std":  # a mean far from zero would round the spread away: see ``combine``
        return v.to(tl.float32 if v.dtype.primitive_bitwidth < 32 else tl.float64)
    else:
        return v


@triton.jit
def near(m, k):
    """k · log 2 + log(1 + m) in float32, for m between −1/4 and 1/2, and k where a float keeps its exponent."""
    p = m * -0.04490908980369568 + 0.10448277741670609
    p = tl.fma(p, m, -0.13162223994731903)
    p = tl.fma(p, m, 0.1448206752538681)
    p = tl.fma(p, m, -0.16647768020629883)
    p = tl.fma(p, m, 0.19990606606006622)
    p = tl.fma(p, m, -0.250000536441803)
    p = tl.fma(p, m, 0.3333345353603363)
    p = tl.fma(p, m, -0.5)
    return tl.fma(k.to(tl.float32), 8.262958405176314e-08, tl.fma(p, m * m, m))  # log 2 · 2⁻²³


@triton.jit
def log_of_odds(v):
    """log v of what is neither tiny nor large; NaN stays."""
    if v.dtype == tl.float64:
        return tl.log(v)
    else:
        k = (v.to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000
        m = (v.to(tl.int32, bitcast=True) - k).to(tl.float32, bitcast=True) - 1.0
        return tl.where(v == v, near(m, k), v)


@triton.jit
def log1p(v):
    """log(1 + v), in float32 within two units of the last place and without a division.

    With 1 + v next to a power of two 2ᵏ, it is k · log 2 and the logarithm of 1 + m, m = v / 2ᵏ + (1 / 2ᵏ − 1) exact.
    In float64 what the sum's rounding changes in the logarithm, the quotient takes back.
    """
    if v.dtype == tl.float64:
        u = 1.0 + v
        d = u - 1.0
        return tl.where(d == 0.0, v, tl.where(u == float("inf"), u, tl.log(u) * divided(v, d)))
    else:
        k = ((1.0 + v).to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000
        m = (v.to(tl.int32, bitcast=True) - k).to(tl.float32, bitcast=True)
        m += (0x40800000 - k).to(tl.float32, bitcast=True) * 0.25 - 1.0
        ends = tl.where(v < -1.0, float("nan"), v * float("inf"))
        return tl.where((v > -1.0) & (v < float("inf")), near(m, k), ends)


@triton.jit
def expm1(v):
    """exp(v) − 1, in float32 within two units of the last place and without a division: as 2ᵏ · (exp(f) − 1) + 2ᵏ − 1.

    In float64 as in ``log1p``, the other way round.
    """
    if v.dtype == tl.float64:
        u = tl.exp(v)
        d = u - 1.0
        return tl.where(d == 0.0, v, tl.where((d == -1.0) | (u == float("inf")), d, d * divided(v, tl.log(u))))
    else:
        v = tl.where(v > 89.0, 89.0, tl.where(v < -30.0, -30.0, v))  # which are ∞ and −1 already
        k = tl.fma(v, 1.4426950408889634, 12582912.0)  # 3 · 2²²: in the last bits of the sum is the rounded product
        half = ((k.to(tl.int32, bitcast=True) << 23) + 0x3F000000).to(tl.float32, bitcast=True)  # 2ᵏ / 2, finite
        k -= 12582912.0
        f = tl.fma(k, -1.42860677e-6, tl.fma(k, -0.693145752, v))
        p = f * 1.97350979e-4 + 1.39309070e-3
        p = tl.fma(p, f, 8.33343994e-3)
        p = tl.fma(p, f, 4.16668020e-2)
        p = tl.fma(p, f, 1.66666716e-1)
        p = tl.fma(p, f, 4.99999970e-1)
        found = tl.fma(p * f, f, f)
        return tl.where(k == 0.0, found, tl.fma(found, half, half - 0.5) * 2.0)


@triton.jit
def divided(a, b):
    """A quotient that is rounded to nearest in float32 too, where ``/`` may be off by two units of the last place."""
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(v):
    """A square root that is rounded to nearest in float32 too."""
    if v.dtype == tl.float64:
        return tl.sqrt(v)
    else:
        return tl.sqrt_rn(v)


@triton.jit
def alone(v, OP: tl.constexpr):
    """The partial result of a single view, see ``combine``."""
    if OP == "median" or OP == "vote":
        return (v,), v
    elif (OP == "std" or OP == "mean_std") and v.dtype == tl.float32:
        d = v.to(tl.float64)
        return v, d * d
    else:
        return v, v - v  # the squared deviation of one: NaN where there is none


@triton.jit
def in_order(values):
    """Values in rising order, by Batcher's odd-even merges; what nobody asks for of it the compiler leaves out."""
    for p in tl.static_range(len(values) - 1, 0, -1):
        if p & (p - 1) == 0:
            values = compared(values, p, 0, p)
            for q in tl.static_range(len(values) - 1, p, -1):
                if q & (q - 1) == 0:
                    values = compared(values, p, p, q - p)
    return values


@triton.jit
def compared(values, P: tl.constexpr, BIT: tl.constexpr, APART: tl.constexpr):
    """Values so far apart in rising order, each pair whose first has the bit P set, or not."""
    found = ()
    for k in tl.static_range(len(values)):
        if (k & P) == BIT and k + APART < len(values):
            found = found + (smaller(values[k], values[k + APART]),)
        elif k >= APART and ((k - APART) & P) == BIT:
            found = found + (larger(values[k - APART], values[k]),)
        else:
            found = found + (values[k],)
    return found


@triton.jit
def smaller(a, b):
    """Of two values in order; with NaN, either. In float64 a choice takes less than a minimum, which asks for NaN."""
    if a.dtype == tl.float64:
        return tl.where(a < b, a, b)
    else:
        return tl.minimum(a, b)


@triton.jit
def larger(a, b):
    """The other one."""
    if a.dtype == tl.float64:
        return tl.where(a < b, b, a)
    else:
        return tl.maximum(a, b)


@triton.jit
def combine(s, m, ns: tl.constexpr, t, n, nt: tl.constexpr, OP: tl.constexpr):
    """Join two partial results over ns and nt views: sums s, t and, for spreads, sums m, n of squared deviations.

    The squared deviations are joined by Chan, Golub and LeVeque's update, which never subtracts large squares. Values
    of two bytes have sums of their squares instead, see ``deviation``: where they are alike, float64 does not round
    them. Medians and votes need every value: s and t are tuples of them.
    """
    if OP == "median" or OP == "vote":
        s = s + t
    elif OP == "max":
        s = tl.maximum(s, t, propagate_nan=tl.PropagateNan.ALL)
        m = s
    elif OP == "min":
        s = tl.minimum(s, t, propagate_nan=tl.PropagateNan.ALL)
        m = s
    elif (OP == "std" or OP == "mean_std") and s.dtype == tl.float32:
        m = m + n
        s = s + t
    elif OP == "std" or OP == "mean_std":
        d = s * nt - t * ns
        if nt > 1:
            m = m + n
        m = m + d * d * tl.full([], 1.0 / (ns * nt * (ns + nt)), s.dtype)
        s = s + t
    else:
        s = s + t
        m = s
    return s, m


@triton.jit
def finish(s, scale, COUNT: tl.constexpr, OP: tl.constexpr):
    """The result of a reduction from its sum over COUNT views (``std``: from the sum of squared deviations)."""
    if OP == "sum":
        return s * tl.full([], scale, s.dtype)
    elif OP == "max" or OP == "min":
        return s
    mean = s * tl.full([], 1.0 / COUNT, s.dtype)
    if OP == "gmean":
        return tl.exp(mean)
    elif OP == "hmean":
        return divided(1.0, mean)
    elif OP == "logodd":
        return divided(1.0, 1.0 + tl.exp(-mean))
    elif OP == "std":
        return root(mean) + (mean - mean)  # NaN where a view is infinite
    elif OP == "log1p":
        return expm1(mean)
    else:
        return mean


@triton.jit
def deviation(s, m, COUNT: tl.constexpr):
    """The standard deviation of COUNT views from what they joined to."""
    if s.dtype == tl.float32:
        d = s.to(tl.float64)
        m = (m * COUNT - d * d) * tl.full([], 1.0 / COUNT, tl.float64)
        return finish(m, 0.0, COUNT, "std").to(tl.float32)
    else:
        return finish(m, 0.0, COUNT, "std")


@triton.jit
def outcome(s, m, scale, COUNT: tl.constexpr, OP: tl.constexpr):
    """The (first) result of a reduction from what its COUNT views joined to."""
    if OP == "median":
        return middle(s)
    elif OP == "vote":
        return most_frequent(s)
    elif OP == "std":
        return deviation(s, m, COUNT)
    else:
        return finish(s, scale, COUNT, OP)


@triton.jit
def widened(values):
    """The same in the 32 bits of a register, where they have fewer."""
    if values[0].dtype.primitive_bitwidth < 32:
        found = ()
        for k in tl.static_range(len(values)):
            found = found + (values[k].to(tl.float32 if values[k].dtype.is_floating() else tl.int32),)
        return found
    else:
        return values


@triton.jit
def middle(values):
    """The median of values, NaN where one is."""
    values = widened(values)
    ordered = in_order(values)
    v = ordered[len(ordered) // 2]
    if len(ordered) % 2 == 0:
        v = v * 0.5 + ordered[len(ordered) // 2 - 1] * 0.5
    nan = values[0] != values[0]
    for k in tl.static_range(1, len(values) - 1, 2):  # two in one comparison
        nan = nan | ((values[k] != values[k]) | (values[k + 1] != values[k + 1]))
    nan = nan | (values[len(values) - 1] != values[len(values) - 1])
    return tl.where(nan, float("nan"), v)


@triton.jit
def most_frequent(values):
    """The value that comes most often, the smallest of several."""
    ordered = in_order(widened(values))
    best = ordered[0]
    most = tl.zeros_like(best).to(tl.int32)
    run = most
    for k in tl.static_range(1, len(ordered)):
        run = tl.where(ordered[k] == ordered[k - 1], run + 1, 0)
        best = tl.where(run > most, ordered[k], best)
        most = tl.maximum(most, run)
    return best


@triton.jit
def total(values):
    """Their sum."""
    s = values[0]
    for k in tl.static_range(1, len(values)):
        s = s + values[k]
    return s


@triton.jit
def deviations(values):
    """What the values differ by from their mean.

    Around one of them first: where views nearly agree, no digit of their differences is lost to their mean.
    """
    around = ()
    for k in tl.static_range(len(values)):
        around = around + (values[k] - values[0],)
    mean = total(around)
    mean = mean * tl.full([], 1.0 / len(values), mean.dtype)
    found = ()
    for k in tl.static_range(len(values)):
        found = found + (around[k] - mean,)
    return found


@triton.jit
def squared(values):
    """The sum of their squares."""
    s = values[0] * values[0]
    for k in tl.static_range(1, len(values)):
        s += values[k] * values[k]
    return s


@triton.jit
def keep_variance(place, values, scale):
    """A program's variances, added up and scaled; what lies outside is 0 in every view, and so is its variance."""
    s = tl.sum(tl.sum(squared(deviations(values)), 1), 0)
    tl.store(place, s * tl.full([], scale, s.dtype))


@triton.jit
def shares(values, grad, spread, OP: tl.constexpr):
    """What each of the values gets of the gradient of what they reduce to, and of their spread's for a pair.

    Of a variance the gradient is what deviations are multiplied by.
    """
    found = ()
    if OP == "max" or OP == "min":
        best = values[0]
        for k in tl.static_range(1, len(values)):
            if OP == "max":
                best = tl.maximum(best, values[k], propagate_nan=tl.PropagateNan.ALL)
            else:
                best = tl.minimum(best, values[k], propagate_nan=tl.PropagateNan.ALL)
        ties = tl.zeros_like(best)
        for k in tl.static_range(len(values)):
            ties += (values[k] == best).to(best.dtype)
        share = divided(grad, ties)  # of NaN, which no value equals, 0 times what is not finite: NaN
        for k in tl.static_range(len(values)):
            found = found + ((values[k] == best).to(best.dtype) * share,)
    else:
        part = tl.full([], 1.0 / len(values), grad.dtype)
        values = deviations(values)
        if OP == "variance":
            factor = grad
        else:
            of_std = grad
            if OP == "mean_std":
                of_std = spread
            square = squared(values) * len(values)
            factor = tl.where(square <= 0, 0.0, divided(of_std, root(square)))
        for k in tl.static_range(len(values)):
            v = values[k] * factor
            if OP == "mean_std":
                v = v + grad * part
            found = found + (v,)
    return found
