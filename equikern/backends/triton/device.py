"""Device functions the kernels share: where the entries of tiles and points lie under signed axis permutations, and
where those that a table of sources names do."""
# mypy: ignore-errors

import triton
import triton.language as tl

# A view of a plane is a number: bit 0 the view is transposed, bit 1 the input's rows (h) are read reversed, bit 2 its
# columns (w) are. A view of up to three axes has three bits for each output axis: the input axis it reads (two bits)
# and whether that is reversed.


@triton.jit
def quotient(n, d, reciprocal):
    """n // d of n < 2³⁰ by ``launch.reciprocal``: two instructions, not twenty; numbers of 64 bits divide."""
    if n.dtype == tl.int32:
        high = tl.umulhi((n * 2).to(tl.uint32), reciprocal.to(tl.uint32))
        return (high >> ((reciprocal >> 32).to(tl.uint32) & 31)).to(tl.int32)
    else:
        return n // d


@triton.jit
def tile_at(
    tiles, across, nb, H, W, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, VEC_H: tl.constexpr,
    rt=None, ra=None, rb=None, WIDE: tl.constexpr = True,
):  # fmt: skip
    """This program's number, its tile's first row and column, its item (a, b), and the sides of a plane.

    Unless WIDE, numbers within a plane have 32 bits, and the first three sizes come with their reciprocals.
    """
    pid = tl.program_id(0)
    if WIDE:
        i0 = (pid % tiles // across).to(tl.int64) * TI
        j0 = (pid % tiles % across).to(tl.int64) * TJ
        return pid, i0, j0, (pid // tiles // nb).to(tl.int64), (pid // tiles % nb).to(tl.int64), H * VEC_H, W * VEC
    else:
        item = quotient(pid, tiles, rt)
        place = pid - item * tiles
        row = quotient(place, across, ra)
        a = quotient(item, nb, rb)
        b = item - a * nb
        h, w = H.to(tl.int32) * VEC_H, W.to(tl.int32) * VEC
        return pid, row * TI, (place - row * across) * TJ, a.to(tl.int64), b.to(tl.int64), h, w


@triton.jit
def backwards(col, C: tl.constexpr, UNIT: tl.constexpr):
    """Columns 0 … C − 1 with their vectors in reverse."""
    if UNIT > 1:
        return (C // UNIT - 1 - col // UNIT) * UNIT + col % UNIT
    else:
        return C - 1 - col


@triton.jit
def mirrored(x, UNIT: tl.constexpr):
    """A block, whose vectors are addressed in reverse, with the entries of each in reverse: no thread needs another."""
    if UNIT > 1:
        return tl.reshape(tl.flip(tl.reshape(x, [x.shape[0], x.shape[1] // UNIT, UNIT]), 2), x.shape)
    else:
        return x


@triton.jit
def tile(
    ptr, r0, c0, rows, cols, sr, sc, R: tl.constexpr, C: tl.constexpr, FLIP_R: tl.constexpr, FLIP_C: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Pointers and mask of the R×C block at (r0, c0) of a rows×cols plane after reversing its rows or columns.

    Reversed rows cost nothing, they are walked backwards. So are the vectors of reversed columns, each of which is
    still addressed forwards: the caller reverses what a thread holds, see ``mirrored``.

    UNIT: the entries of a vector, 0 of columns that lie apart.
    """
    sr = sr.to(r0.dtype)
    sc = sc.to(r0.dtype)
    row = tl.arange(0, R)[:, None]
    col = tl.arange(0, C)[None, :]
    if FLIP_C:
        col = backwards(col, C, UNIT)
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
def arrangements(x, FORMS: tl.constexpr, UNIT: tl.constexpr):
    """A block as it is, mirrored, transposed, and both: what ``FORMS`` (bits 0, 1, 2) asks of the last three.

    The last reverses rows before the transposition: whole rows pass through shared memory in wide accesses, where
    bytes that are mirrored behind it pass one by one.
    """
    flipped = x
    turned = x
    both = x
    if FORMS & 1:
        flipped = mirrored(x, UNIT)
    if FORMS & 6:
        turned = tl.trans(x)
    if FORMS & 4:
        both = turned
        if UNIT > 1:
            row = tl.arange(0, x.shape[0])[:, None]
            row = row // UNIT * UNIT + (UNIT - 1 - row % UNIT)
            both = tl.trans(tl.gather(x, tl.broadcast_to(row, x.shape), 0))
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
def unravel(r, m0, m1, m2, DIMS: tl.constexpr, r0=None, r1=None, r2=None):
    """Split a row number into (item, p0, p1, p2), points of an m0×m1×m2 grid; with DIMS = 2 m0 is 1, with 0 all are.

    With the sizes' reciprocals it divides by them.
    """
    zero = r * 0
    if DIMS == 0:
        return r, zero, zero, zero
    elif r2 is not None:
        q = quotient(r, m2, r2)
        b = quotient(q, m1, r1)
        p2 = r - q * m2
        p1 = q - b * m1
        if DIMS == 2:
            return b, zero, p1, p2
        else:
            q = quotient(b, m0, r0)
            return q, b - q * m0, p1, p2
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
def unravel_cubes(r, m0, m1, m2, r0, r1, r2):
    """``unravel`` of volumes that are counted cube after cube of 8×8×8 points, and which points lie inside.

    The reciprocals are of how many cubes lie along a side.
    """
    cube = r >> 9
    k0, k1, k2 = (m0 + 7) >> 3, (m1 + 7) >> 3, (m2 + 7) >> 3
    q = quotient(cube, k2, r2)
    p2 = (cube - q * k2) * 8 + (r & 7)
    cube = quotient(q, k1, r1)
    p1 = (q - cube * k1) * 8 + (r >> 3 & 7)
    b = quotient(cube, k0, r0)
    p0 = (cube - b * k0) * 8 + (r >> 6 & 7)
    return b, p0, p1, p2, (p0 < m0) & (p1 < m1) & (p2 < m2)


@triton.jit
def unravel_points(r, within, mask, m0, m1, m2, r0, r1, r2, DIMS: tl.constexpr, CUBES: tl.constexpr):
    """The item and the point of each row number, counted cube after cube or not, and which rows and entries there are:
    of cubes some lie outside."""
    if CUBES:
        b, p0, p1, p2, inside = unravel_cubes(r, m0, m1, m2, r0, r1, r2)
        return b, p0, p1, p2, within & inside, mask & inside
    else:
        b, p0, p1, p2 = unravel(r, m0, m1, m2, DIMS, r0, r1, r2)
        return b, p0, p1, p2, within, mask


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
def points_at(
    row_blocks, column_blocks, rr, R, C, P: tl.constexpr, CB: tl.constexpr, VEC: tl.constexpr, VEC_R: tl.constexpr,
    BIG: tl.constexpr,
):  # fmt: skip
    """This program's number, its step of A, its P row numbers as a column, in 64 bits only where they or offsets need
    them, its CB entries of every vector as a row, the rows that there are, and the mask; vectors of one entry have one
    block."""
    pid = tl.program_id(0)
    rest, column = pid, 0
    if CB > 1:
        rest = pid // column_blocks
        column = pid - rest * column_blocks
    if BIG:
        a = rest // row_blocks
        block = (rest - a * row_blocks).to(tl.int64)
    else:
        a = quotient(rest, row_blocks, rr)
        block = rest - a * row_blocks
    r = (block * P + tl.arange(0, P))[:, None]
    within = r < R.to(r.dtype) * VEC_R
    if CB > 1:
        c = column.to(r.dtype) * CB + tl.arange(0, CB)[None, :]
        return pid, a.to(tl.int64), r, c, within, within & (c < C.to(c.dtype) * VEC)
    else:
        return pid, a.to(tl.int64), r, tl.arange(0, 1)[None, :], within, within


@triton.jit
def of_items(ptr, b, step, within, SHARED: tl.constexpr):
    """What the rows' items have of weights and the like, or the single one that all items of a step of A share."""
    if SHARED:
        return tl.load(ptr)
    else:
        return tl.load(ptr + b * step, mask=within, other=0)


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
    """``map_offset`` within item b; rows at a constant distance need no division, single entries no product either.

    The offset is as wide as the row numbers.
    """
    sb, step = sb.to(r.dtype), step.to(r.dtype)
    s0, s1, s2 = s0.to(r.dtype), s1.to(r.dtype), s2.to(r.dtype)
    if DENSE and WORD == 136:  # the identity: each of three axes reads itself
        if CB == 1:
            return r
        else:
            return r * step
    else:
        return b * sb + map_offset(p0, p1, p2, n0, n1, n2, s0, s1, s2, WORD, DIMS, INVERSE)


@triton.jit
def tile_position(
    positions, nblocks, xblocks, nb, M, X, INNER: tl.constexpr, PN: tl.constexpr, PX: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """This program's (a, b), its entries of the list and the positions they stand for, its rows, both masks,
    and how many entries the list has.

    The permuted dim is the tile's columns if INNER, otherwise its rows; the sizes of columns count vectors.
    """
    pid = tl.program_id(0)
    item = pid // nblocks // xblocks
    k = pid % nblocks * PN + tl.arange(0, PN)
    x = (pid // nblocks % xblocks).to(tl.int64) * PX + tl.arange(0, PX)
    if INNER:
        k = k[None, :]
        x = x[:, None]
        listed = k < (M * VEC).to(tl.int32)
        within = x < X
    else:
        k = k[:, None]
        x = x[None, :]
        listed = k < M.to(tl.int32)
        within = x < X * VEC
    place = k
    if positions is not None:
        place = tl.load(positions + k, mask=listed, other=0)
    row = M * VEC if INNER else M
    return (item // nb).to(tl.int64), (item % nb).to(tl.int64), k, place, x, listed, within, row


@triton.jit
def entry(place, x, sn, sx, INNER: tl.constexpr, UNIT: tl.constexpr, VEC: tl.constexpr):
    """Offset of a position and a row; the strides of columns are 1 if UNIT, those of rows count vectors."""
    if INNER:
        if UNIT:
            return x * (sx * VEC) + place
        else:
            return x * (sx * VEC) + place * sn
    else:
        if UNIT:
            return place * (sn * VEC) + x
        else:
            return place * (sn * VEC) + x * sx


@triton.jit
def source(sources, row, k, listed, SIGNED: tl.constexpr):
    """Where a view reads, and whether with a minus."""
    src = tl.load(sources + row + k, mask=listed, other=0)
    minus = src < 0
    if SIGNED:
        src = tl.where(minus, ~src, src)
    return src, minus
