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
        return tl.log(v / (1.0 - v))  # two units of the quotient's last place are none of a probability's
    elif OP == "log1p":
        return log1p(v)
    elif OP == "std" or OP == "mean_std":  # a mean far from zero would round the spread away
        return v.to(tl.float64)
    else:
        return v


@triton.jit
def log1p(v):
    """log(1 + v): what the sum's rounding changes in the logarithm, the quotient takes back."""
    u = 1.0 + v
    d = u - 1.0
    return tl.where(d == 0.0, v, tl.where(u == float("inf"), u, tl.log(u) * divided(v, d)))


@triton.jit
def expm1(v):
    """exp(v) − 1: the same the other way round."""
    u = tl.exp(v)
    d = u - 1.0
    return tl.where(d == 0.0, v, tl.where((d == -1.0) | (u == float("inf")), d, d * divided(v, tl.log(u))))


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
    if OP == "median":
        return (v,), v != v
    elif OP == "vote":
        return (v,), v
    else:
        return v, v - v  # the squared deviation of one: NaN where there is none


@triton.jit
def inserted(ordered, v):
    """Values in rising order with one more among them."""
    found = ()
    for k in tl.static_range(len(ordered)):
        found = found + (tl.minimum(ordered[k], v),)
        v = tl.maximum(ordered[k], v)
    return found + (v,)


@triton.jit
def combine(s, m, ns: tl.constexpr, t, n, nt: tl.constexpr, OP: tl.constexpr):
    """Join two partial results over ns and nt views: sums s, t and, for spreads, sums m, n of squared deviations.

    The squared deviations are joined by Chan, Golub and LeVeque's update, which never subtracts large squares. Medians
    and votes need every value: s and t are tuples in rising order, m and n say where one of them is NaN.
    """
    if OP == "median" or OP == "vote":
        for k in tl.static_range(nt):
            s = inserted(s, t[k])
        if OP == "median":
            m = m | n
    elif OP == "max":
        s = tl.maximum(s, t, propagate_nan=tl.PropagateNan.ALL)
        m = s
    elif OP == "min":
        s = tl.minimum(s, t, propagate_nan=tl.PropagateNan.ALL)
        m = s
    elif OP == "std" or OP == "mean_std":
        d = s * nt - t * ns
        m = m + n + d * d * tl.full([], 1.0 / (ns * nt * (ns + nt)), s.dtype)
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
def outcome(s, m, scale, COUNT: tl.constexpr, OP: tl.constexpr):
    """The (first) result of a reduction from what its COUNT views joined to."""
    if OP == "median":
        return middle(s, m)
    elif OP == "vote":
        return most_frequent(s)
    elif OP == "std":
        return finish(m, scale, COUNT, OP)
    else:
        return finish(s, scale, COUNT, OP)


@triton.jit
def middle(ordered, nan):
    """The median of values in rising order."""
    v = ordered[len(ordered) // 2]
    if len(ordered) % 2 == 0:
        v = v * 0.5 + ordered[len(ordered) // 2 - 1] * 0.5
    return tl.where(nan, float("nan"), v)


@triton.jit
def most_frequent(ordered):
    """The value that comes most often among values in rising order, the smallest of several."""
    best = ordered[0]
    most = tl.zeros_like(best).to(tl.int32) + 1
    run = most
    for k in tl.static_range(1, len(ordered)):
        run = tl.where(ordered[k] == ordered[k - 1], run + 1, 1)
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
def shares(values, grad, spread, OP: tl.constexpr):
    """What each of the values gets of the gradient of what they reduce to, and of their spread's for a pair."""
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
        # Around one of them first: where views nearly agree, no digit of their differences is lost to their mean.
        around = ()
        for k in tl.static_range(len(values)):
            around = around + (values[k] - values[0],)
        mean = total(around) * part
        values = ()
        for k in tl.static_range(len(around)):
            values = values + (around[k] - mean,)
        square = values[0] * values[0]
        for k in tl.static_range(1, len(values)):
            square += values[k] * values[k]
        of_std = grad
        if OP == "mean_std":
            of_std = spread
        square = square * len(values)
        factor = tl.where(square <= 0, 0.0, divided(of_std, root(square)))
        for k in tl.static_range(len(values)):
            v = values[k] * factor
            if OP == "mean_std":
                v = v + grad * part
            found = found + (v,)
    return found
