"""Device functions the kernels share: signed axis permutations of tiles, and the arithmetic of the reductions."""
# mypy: ignore-errors
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

import triton
import triton.language as tl

# A view of a plane is a number: bit 0 the view is transposed, bit 1 the input's rows (h) are read reversed, bit 2 its
# columns (w) are. A view of up to three axes has three bits for each output axis: the input axis it reads (two bits)
# and whether that is reversed.


@triton.jit
def tile_at(
    tiles, across, nb, H, W, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, VEC_H: tl.constexpr,
):  # fmt: skip
    """This program's number, its tile's first row and column, its item (a, b), and the sides of a plane."""
    pid = tl.program_id(0)
    i0 = (pid % tiles // across).to(tl.int64) * TI
    j0 = (pid % tiles % across).to(tl.int64) * TJ
    return pid, i0, j0, (pid // tiles // nb).to(tl.int64), (pid // tiles % nb).to(tl.int64), H * VEC_H, W * VEC


@triton.jit
def tile(
    ptr, r0, c0, rows, cols, sr, sc, R: tl.constexpr, C: tl.constexpr, FLIP_R: tl.constexpr, FLIP_C: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Pointers and mask of the R×C block at (r0, c0) of a rows×cols plane after reversing its rows or columns.

    Reversed rows cost nothing, they are walked backwards. Reversed columns are still addressed forwards, so that
    vector accesses survive: the caller flips the values in registers.
    """
    row = tl.arange(0, R)[:, None]
    col = tl.arange(0, C)[None, :]
    mask = row < tl.minimum(rows - r0, R).to(tl.int32)
    if FLIP_R:
        ptr += (rows - 1 - r0) * sr
        offset = -(row * sr)
    else:
        ptr += r0 * sr
        offset = row * sr
    # The first column may lie before the plane when the last tile is mirrored.
    if FLIP_C:
        first = cols - c0 - C
        mask = mask & (col >= tl.maximum(-first, 0).to(tl.int32))
    else:
        first = c0
        mask = mask & (col < tl.minimum(cols - c0, C).to(tl.int32))
    if UNIT:
        return ptr + first + (offset + col), mask
    else:
        return ptr + first * sc + (offset + col * sc), mask


@triton.jit
def view_tile(
    ptr, i0, j0, h, w, sh, sw, CODE: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where an h×w input keeps the TI×TJ block at (i0, j0) of its view: still transposed and column-reversed."""
    if CODE & 1:
        return tile(ptr, j0, i0, h, w, sh, sw, TJ, TI, (CODE & 2) != 0, (CODE & 4) != 0, UNIT)
    else:
        return tile(ptr, i0, j0, h, w, sh, sw, TI, TJ, (CODE & 2) != 0, (CODE & 4) != 0, UNIT)


@triton.jit
def placed_tile(
    ptr, a0, b0, h, w, sr, sc, CODE: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where the view of an h×w input keeps the input's TA×TB block at (a0, b0): the inverse of ``view_tile``."""
    if CODE & 1:
        return tile(ptr, b0, a0, w, h, sr, sc, TB, TA, (CODE & 4) != 0, (CODE & 2) != 0, UNIT)
    else:
        return tile(ptr, a0, b0, h, w, sr, sc, TA, TB, (CODE & 2) != 0, (CODE & 4) != 0, UNIT)


@triton.jit
def arrangements(x, FORMS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """An R×C block as it is, mirrored, transposed, and both: what ``FORMS`` (bits 0, 1, 2) asks of the last three.

    The last reverses rows before the transposition: whole rows pass through shared memory in wide accesses, where
    mirroring columns again would take a shuffle a value.
    """
    flipped = x
    turned = x
    both = x
    if FORMS & 1:
        flipped = tl.flip(x, 1)
    if FORMS & 6:
        turned = tl.trans(x)
    if FORMS & 4:
        reverse = tl.broadcast_to((R - 1 - tl.arange(0, R))[:, None], [R, C])
        both = tl.trans(tl.gather(x, reverse, 0))
    return x, flipped, turned, both


@triton.jit
def form(x, flipped, turned, turned_flipped, CODE: tl.constexpr):
    """The arrangement of an input block that ``placed_tile`` expects for a view."""
    if (CODE & 1) == 0:
        if CODE & 4:
            return flipped
        else:
            return x
    else:
        if CODE & 2:
            return turned_flipped
        else:
            return turned


@triton.jit
def pick(AXIS: tl.constexpr, v0, v1, v2):
    """The value of one of three axes."""
    if AXIS == 0:
        return v0
    elif AXIS == 1:
        return v1
    else:
        return v2


@triton.jit
def unravel(r, m0, m1, m2, DIMS: tl.constexpr):
    """Split a row number into (item, p0, p1, p2), points of an m0×m1×m2 grid; with DIMS = 2 m0 is 1, with 0 all are."""
    zero = r * 0
    if DIMS == 0:
        return r, zero, zero, zero
    elif DIMS == 2:
        p2 = r % m2
        q = r // m2
        return q // m1, zero, q % m1, p2
    else:
        p2 = r % m2
        q = r // m2
        p1 = q % m1
        q = q // m1
        return q // m0, q % m0, p1, p2


@triton.jit
def axis_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD: tl.constexpr, K: tl.constexpr, INVERSE: tl.constexpr):
    """Output axis K's part of ``map_offset``."""
    size = pick((WORD >> (3 * K)) & 3, n0, n1, n2)
    if INVERSE:
        p = pick((WORD >> (3 * K)) & 3, p0, p1, p2)
        stride = pick(K, s0, s1, s2)
    else:
        p = pick(K, p0, p1, p2)
        stride = pick((WORD >> (3 * K)) & 3, s0, s1, s2)
    if (WORD >> (3 * K)) & 4:
        p = size - 1 - p
    return p * stride


@triton.jit
def map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD: tl.constexpr, DIMS: tl.constexpr, INVERSE: tl.constexpr):
    """Offset at which a view of an n0×n1×n2 input finds its point p (in the input, with the input's strides s).

    INVERSE: where the view puts the input's point p (in the view, with the view's strides s).
    """
    if DIMS == 0:
        return p2 * s2
    else:
        offset = axis_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, 1, INVERSE)
        offset += axis_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, 2, INVERSE)
        if DIMS == 3:
            offset += axis_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, 0, INVERSE)
        return offset


@triton.jit
def channel_of(channels, g, b, step, COUNT: tl.constexpr):
    """How far view g's part of channel b % COUNT is from b's own, in elements, and whether it comes with a minus."""
    here = b % COUNT
    there = tl.load(channels + (g * COUNT + here))
    minus = there < 0
    there = tl.where(minus, -1 - there, there)
    return (there - here).to(tl.int64) * step, minus


@triton.jit
def signed(v, minus):
    """v or its negative."""
    if v.dtype.is_floating():
        return tl.where(minus, (-1.0 * v).to(v.dtype), v)
    else:
        return tl.where(minus, (0 - v).to(v.dtype), v)


@triton.jit
def prepare(v, OP: tl.constexpr):
    """A reduction's function of one value before the sum."""
    if OP == "gmean":
        return tl.log(v)
    elif OP == "hmean":
        return 1.0 / v
    elif OP == "tsharpen":
        return root(v)
    elif OP == "logodd":
        low = tl.full([], 1e-6, v.dtype)
        high = tl.full([], 1 - 1e-6, v.dtype)
        v = tl.where(v < low, low, tl.where(v > high, high, v))  # NaN fails both comparisons and stays
        return tl.log(v / (1.0 - v))
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
    return tl.where(d == 0.0, v, tl.where(u == float("inf"), u, tl.log(u) * (v / d)))


@triton.jit
def expm1(v):
    """exp(v) − 1: the same the other way round."""
    u = tl.exp(v)
    d = u - 1.0
    return tl.where(d == 0.0, v, tl.where((d == -1.0) | (u == float("inf")), d, d * (v / tl.log(u))))


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
        return v, tl.zeros_like(v)


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
        return 1.0 / mean
    elif OP == "logodd":
        return 1.0 / (1.0 + tl.exp(-mean))
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
        share = grad / ties  # of NaN, which no value equals, 0 times what is not finite: NaN
        for k in tl.static_range(len(values)):
            found = found + ((values[k] == best).to(best.dtype) * share,)
    else:
        part = tl.full([], 1.0 / len(values), grad.dtype)
        # Around one of them first: where views nearly agree, no digit of their differences is lost to their mean.
        around = (tl.zeros_like(grad),)
        for k in tl.static_range(1, len(values)):
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
        factor = tl.where(square <= 0, 0.0, of_std / root(square))
        for k in tl.static_range(len(values)):
            v = values[k] * factor
            if OP == "mean_std":
                v = v + grad * part
            found = found + (v,)
    return found


@triton.jit
def points_at(
    row_blocks, column_blocks, R, C, P: tl.constexpr, CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr,
    BIG: tl.constexpr,
):  # fmt: skip
    """This program's P row numbers as a column, in 64 bits only where they need them, its CB entries of every vector
    as a row, the rows that there are, and the mask; vectors of one entry have one block."""
    pid = tl.program_id(0)
    block = pid // column_blocks % row_blocks
    rows = R * VEC_R
    if BIG:
        block = block.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    r = (block * P + tl.arange(0, P))[:, None]
    c = tl.arange(0, 1)[None, :]
    if CB > 1:
        c = (pid % column_blocks).to(tl.int64) * CB + tl.arange(0, CB)[None, :]
    within = r < rows
    return pid, r, c, within, within & (c < C * VEC)


@triton.jit
def narrow(n0, n1, n2, BIG: tl.constexpr):
    """Sizes in the type of the row numbers."""
    if BIG:
        return n0, n1, n2
    else:
        return n0.to(tl.int32), n1.to(tl.int32), n2.to(tl.int32)


@triton.jit
def point_offset(
    r, b, p0, p1, p2, n0, n1, n2, sb, s0, s1, s2, step, WORD: tl.constexpr, DIMS: tl.constexpr,
    DENSE: tl.constexpr, INVERSE: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """``map_offset`` within item b; rows at a constant distance need no division, single entries no product either."""
    if DENSE and WORD == 136:  # the identity: each of three axes reads itself
        if CB == 1:
            return r
        else:
            return r * step
    else:
        return b * sb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, DIMS, INVERSE)
