"""``symmetrize``: the mean of all views of one tensor under a group of grid maps, each entry read and written once.

The result is the same at every image of a pixel. So programs go over tiles of a fundamental domain: a half of the
plane, a quarter, or the eighth beside a diagonal. A program reads the images of its tile, adds them, and writes the sum
to all. The mean of views beside such a tensor (``plus``) adds the views of every image to that sum.

Profilers see the kernel under names such as ``equikern_symmetrize_tiles_bf16``.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc"

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...views import Views
from ..base import Maybe
from ..tuning import RULE, Choice
from .compat import jit_kernel
from .launch import (
    ELEMENTS,
    LANES,
    LARGE,
    MOST_WARPS,
    SIDE,
    Plan,
    accumulator,
    ceil_div,
    column_block,
    make_plan,
    next_power_of_two,
    run,
    strides,
    times_two,
    use_tiles,
    vector_length,
    warps,
)
from .layout import Known, Layout, Operand, known, loops, normalize, operand

__all__ = ["plan", "symmetrize"]

VALUES = {2: 2048, 4: 2048, 8: 1024}  # of a program's tile, by bytes per value: what registers leave room for
# Entries of a tile's row at least, by bytes per value: half of the 32 bytes that a cache reads at once, or of vectors
# all, where that does not cost more instructions than it saves accesses.
LEAST, LEAST_VECTORS = {2: 8, 4: 4, 8: 2}, {2: 8, 4: 8, 8: 4}
SIDE_BESIDE = 16  # of square tiles beside views: turned in larger ones, these meet in the banks of shared memory
SPARE = 1.25  # a larger tile may cover so much more than a smaller one would
ENOUGH = 512  # programs, about four for each multiprocessor of a large GPU


class Domain(NamedTuple):
    """A part of the plane that has one pixel of every orbit.

    Attributes:
        half_h, half_w: of the rows, and of the columns, the first half, with the middle.
        triangle: of the square that is left, the part on one side of the diagonal.
    """

    half_h: bool
    half_w: bool
    triangle: bool


# By the codes of all views, see ``grid_code``: the groups of a plane, but those with the other diagonal and no quarter
# turn, and the trivial one.
DOMAINS = {
    frozenset({0, 2}): Domain(True, False, False),
    frozenset({0, 4}): Domain(False, True, False),
    frozenset({0, 6}): Domain(True, False, False),
    frozenset({0, 1}): Domain(False, False, True),
    frozenset({0, 2, 4, 6}): Domain(True, True, False),
    frozenset({0, 3, 5, 6}): Domain(True, True, False),
    frozenset(range(8)): Domain(True, True, True),
}


@triton.jit
def _image(
    planes, there, i0, j0, h, w, most_i, most_j, sh, sw, CODE: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    VEC: tl.constexpr, UNIT: tl.constexpr, BACK: tl.constexpr = False,
):  # fmt: skip
    """Offsets and mask of a tile's image, of its rows up to most_i and columns up to most_j: still transposed and, in
    vectors, column-reversed. Single entries are walked backwards, which costs nothing. BACK: the last row first."""
    R: tl.constexpr = TJ if CODE & 1 else TI
    C: tl.constexpr = TI if CODE & 1 else TJ
    r0, c0 = (j0, i0) if CODE & 1 else (i0, j0)
    most_r, most_c = (most_j, most_i) if CODE & 1 else (most_i, most_j)
    row = tl.arange(0, R)[None, :, None]
    if BACK:
        row = R - 1 - row
    col = tl.arange(0, C)[None, None, :]
    mask = there & (row < most_r - r0)
    down = row * sh * VEC
    first = ((h - 1 - r0) * sh if CODE & 2 else r0 * sh) * VEC
    offset = planes - down if CODE & 2 else planes + down
    if VEC > 1 and (CODE & 4) != 0:
        return offset + col + (first + (w - c0 - C)), mask & (col >= C - (most_c - c0))
    across = col if UNIT else col * sw
    start = w - 1 - c0 if CODE & 4 else c0
    first += start if UNIT else start * sw
    return (offset - across if CODE & 4 else offset + across) + first, mask & (col < most_c - c0)


@triton.jit
def _mirrored(v, VEC: tl.constexpr):
    """Vectors are mirrored in registers; single entries have been where they were read."""
    return tl.flip(v, 2) if VEC > 1 else v


@triton.jit
def _sum_of_class(
    x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, CODES: tl.constexpr, VIEWS: tl.constexpr,
    HERE: tl.constexpr, BACK: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The sum of the images that must later be arranged in the same way, each of the view that shows it HERE."""
    for k in tl.static_range(len(CODES)):
        offset, mask = _image(planes, there, i0, j0, h, w, most_h, most_w, sh, sw, CODES[k], TI, TJ, VEC, UNIT, BACK)
        v = tl.load(x + VIEWS[8 * HERE + CODES[k]] * xg + offset, mask=mask, other=0).to(ACC)
        if k == 0:
            s = v
        else:
            s += v
    return s


@triton.jit
def _sum(
    x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, PLAIN: tl.constexpr, FLIPPED: tl.constexpr,
    VIEWS: tl.constexpr, HERE: tl.constexpr, BACK: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sum of two classes, the second of which has its columns reversed."""
    if len(PLAIN) > 0:
        s = _sum_of_class(
            x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, PLAIN, VIEWS, HERE, BACK, TI, TJ, VEC, UNIT, ACC
        )  # fmt: skip
    if len(FLIPPED) > 0:
        t = _sum_of_class(
            x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, FLIPPED, VIEWS, HERE, BACK, TI, TJ, VEC, UNIT,
            ACC,
        )  # fmt: skip
        t = _mirrored(t, VEC)
        s = s + t if len(PLAIN) > 0 else t
    return s


@triton.jit
def _sum_of_all(
    x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, PLAIN: tl.constexpr, FLIPPED: tl.constexpr,
    TURNED: tl.constexpr, BOTH: tl.constexpr, VIEWS: tl.constexpr, HERE: tl.constexpr, BACK: tl.constexpr,
    TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """s = S + flip(M) + transpose(T + flip(B)), as in ``reduce_tiles``; BACK: T and B with their rows reversed."""
    s = _sum(
        x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, PLAIN, FLIPPED, VIEWS, HERE, False, TI, TJ,
        VEC, UNIT, ACC,
    )  # fmt: skip
    if len(TURNED) + len(BOTH) > 0:
        t = _sum(
            x, xg, planes, there, i0, j0, h, w, most_h, most_w, sh, sw, TURNED, BOTH, VIEWS, HERE, BACK, TI, TJ, VEC,
            UNIT, ACC,
        )  # fmt: skip
        s = s + tl.permute(t, (0, 2, 1))
    return s


@triton.jit
def _write(
    out, s, y, yg, scale, planes, beside, there, i0, j0, h, w, near_h, near_w, far_h, far_w, sh, sw, yh, yw,
    CODES: tl.constexpr, PLAIN: tl.constexpr, FLIPPED: tl.constexpr, TURNED: tl.constexpr, BOTH: tl.constexpr,
    VIEWS: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write a tile at the images of one class: the middle only where it is not reversed, so once.

    With y each image has its views added, in its own arrangement: what reverses its columns reverses the rows of what
    is transposed.
    """
    for k in tl.static_range(len(CODES)):
        if y is None:
            v = s
        else:
            v = s + _sum_of_all(
                y, yg, beside, there, i0, j0, h, w, near_h, near_w, yh, yw, PLAIN, FLIPPED, TURNED, BOTH,
                VIEWS, CODES[k], VEC > 1 and (CODES[k] & 4) != 0, TI, TJ, VEC, UNIT, ACC,
            )  # fmt: skip
            v = (v * tl.full([], scale, ACC)).to(out.dtype.element_ty)
        # What reverses a transposed image's rows reverses the tile's columns.
        most_i = far_h if CODES[k] & (4 if CODES[k] & 1 else 2) else near_h
        most_j = far_w if CODES[k] & (2 if CODES[k] & 1 else 4) else near_w
        offset, mask = _image(planes, there, i0, j0, h, w, most_i, most_j, sh, sw, CODES[k], TI, TJ, VEC, UNIT)
        tl.store(out + offset, v, mask=mask)


@jit_kernel
def symmetrize_tiles(
    x, out, y, scale: tl.float64, tiles: tl.int32, side: tl.int32, blocks: tl.int32, nb: tl.int64, H: tl.int64,
    W: tl.int64, xg: tl.int64, xa: tl.int64, xb: tl.int64, xh: tl.int64, xw: tl.int64,
    og: tl.int64, oa: tl.int64, ob: tl.int64, oh: tl.int64, ow: tl.int64,
    yg: tl.int64, ya: tl.int64, yb: tl.int64, yh: tl.int64, yw: tl.int64,
    STRAIGHT: tl.constexpr, MIRRORED: tl.constexpr, TURNED: tl.constexpr, BOTH: tl.constexpr, VIEWS: tl.constexpr,
    HALF_H: tl.constexpr, HALF_W: tl.constexpr, TRIANGLE: tl.constexpr, PLANES: tl.constexpr, TI: tl.constexpr,
    TJ: tl.constexpr, VEC: tl.constexpr, VEC_H: tl.constexpr, UNIT: tl.constexpr, BIG: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """s, the sum of all images of x, then the same way back to all images; with y beside their views.

    The order of the additions is that of a chain of subgroups, each sum one of two that the next element exchanges: so
    wherever in its orbit a pixel is taken from, the sum has the same bits. In the middle of a plane, where tiles are
    their own images, that is what makes the result invariant.
    """
    pid = tl.program_id(0)
    number = pid % tiles
    if TRIANGLE:  # rows of the triangle, a long one and a short one after another: as many tiles in each pair
        even = 1 - side % 2
        r = number // (side + even)
        c = number % (side + even) - even
        p = tl.where(c >= r, r, side - even - r)
        q = tl.where(c >= r, c, side - 1 - even - c)
    else:
        p = number // side
        q = number % side
    a = (pid // tiles // blocks).to(tl.int64)
    b0 = (pid // tiles % blocks).to(tl.int64) * PLANES
    x += a * (xa * VEC) + b0 * (xb * VEC)
    out += a * (oa * VEC) + b0 * (ob * VEC)
    if y is not None:
        y += a * (ya * VEC) + b0 * (yb * VEC)
    plane = tl.arange(0, PLANES)[:, None, None]
    there = plane < nb - b0
    if BIG:
        p = p.to(tl.int64)
        q = q.to(tl.int64)
    else:  # what lies between the planes of a program, and within them
        H, W, xb, xh, xw = H.to(tl.int32), W.to(tl.int32), xb.to(tl.int32), xh.to(tl.int32), xw.to(tl.int32)
        ob, oh, ow = ob.to(tl.int32), oh.to(tl.int32), ow.to(tl.int32)
        yb, yh, yw = yb.to(tl.int32), yh.to(tl.int32), yw.to(tl.int32)
    i0 = p * TI
    j0 = q * TJ
    xp = plane * xb * VEC
    op = plane * ob * VEC
    yp = plane * yb * VEC
    h = H * VEC_H
    w = W * VEC
    near_h = (H + 1) // 2 * VEC_H if HALF_H else h  # the first half with the middle one, which may be a vector
    near_w = (W + 1) // 2 * VEC if HALF_W else w
    far_h = H // 2 * VEC_H if HALF_H else h
    far_w = W // 2 * VEC if HALF_W else w
    v = _sum_of_all(
        x, 0, xp, there, i0, j0, h, w, near_h, near_w, xh, xw, STRAIGHT, MIRRORED, TURNED, BOTH,
        VIEWS, 0, False, TI, TJ, VEC, UNIT, ACC,
    )  # fmt: skip
    if y is None:
        v = (v * tl.full([], scale, ACC)).to(out.dtype.element_ty)
    _write(
        out, v, y, yg * VEC, scale, op, yp, there, i0, j0, h, w, near_h, near_w, far_h, far_w, oh, ow, yh, yw, STRAIGHT,
        STRAIGHT, MIRRORED, TURNED, BOTH, VIEWS, TI, TJ, VEC, UNIT, ACC,
    )  # fmt: skip
    if len(MIRRORED) > 0:
        _write(
            out, _mirrored(v, VEC), y, yg * VEC, scale, op, yp, there, i0, j0, h, w, near_h, near_w, far_h, far_w, oh,
            ow, yh, yw, MIRRORED, MIRRORED, STRAIGHT, TURNED, BOTH, VIEWS, TI, TJ, VEC, UNIT, ACC,
        )  # fmt: skip
    if len(TURNED) + len(BOTH) > 0:
        if TRIANGLE:  # a tile on the diagonal is its own transpose
            there = there & (p != q)
        v = tl.permute(v, (0, 2, 1))
        if len(TURNED) > 0:
            _write(
                out, v, y, yg * VEC, scale, op, yp, there, i0, j0, h, w, near_h, near_w, far_h, far_w, oh, ow, yh, yw,
                TURNED, TURNED, BOTH, STRAIGHT, MIRRORED, VIEWS, TI, TJ, VEC, UNIT, ACC,
            )  # fmt: skip
        if len(BOTH) > 0:
            _write(
                out, _mirrored(v, VEC), y, yg * VEC, scale, op, yp, there, i0, j0, h, w, near_h, near_w, far_h, far_w,
                oh, ow, yh, yw, BOTH, BOTH, TURNED, STRAIGHT, MIRRORED, VIEWS, TI, TJ, VEC, UNIT, ACC,
            )  # fmt: skip


def _side(n: int, triangle: bool, least: int, most: int) -> int:
    """Of the square tiles that cover n rows and columns: the largest with little beside them."""

    def covered(side: int) -> int:
        count = ceil_div(n, side)
        return (count * (count + 1) // 2 if triangle else count * count) * side * side

    fewest = min(next_power_of_two(n), least)
    sides = [side for side in (1, 2, 4, 8, 16, 32, 64) if fewest <= side <= max(fewest, most)]
    return max(side for side in sides if covered(side) <= SPARE * min(map(covered, sides)))


def _view_of_images(codes: Sequence[int]) -> tuple[int, ...]:
    """For the image h of a pixel, and a place k of its orbit: the view that shows at h what its tensor has at k."""

    def moved(code: int, point: tuple[int, int]) -> tuple[int, int]:  # about the middle of the plane
        row, column = reversed(point) if code & 1 else point
        return -row if code & 2 else row, -column if code & 4 else column

    pixel = (1, 2)

    def view(h: int, k: int) -> int:
        found = [g for g, code in enumerate(codes) if moved(code, moved(h, pixel)) == moved(k, pixel)]
        return found[0] if found else 0  # no image of a pixel, or not in its orbit

    return tuple(view(h, k) for h in range(8) for k in range(8))


@lru_cache(maxsize=1024)
def plan(views: Views, scale: float, x: Operand, out: Operand, y: Known = None) -> Plan | None:
    """The launch for operands such as these; None if the views are no group of ``DOMAINS``, the channels of a pixel lie
    next to one another, or the tensors must be copied first."""
    axes = loops(views)
    domain = DOMAINS.get(frozenset(axes.codes))
    if domain is None or len(axes.codes) != len(set(axes.codes)) or not axes.planar or views.size:
        return None
    layout = normalize(views, [(x, False), (out, False), (y, True) if y else (x, False)], [])
    if layout is None or layout.c != 1 or (y and not use_tiles(layout, views)):
        return None
    return _plan(domain, layout, views, x, out, y, scale)


def _plan(
    domain: Domain,
    layout: Layout,
    views: Views,
    x: Operand,
    out: Operand,
    y: Known,
    scale: float,
    choice: Choice = RULE,
) -> Plan:
    itemsize = x.dtype.itemsize
    turns = views.turns
    h, w = layout.h, layout.w
    unit = all(s[5] == 1 for s in layout.moving)
    divisors = [w, h if turns else 0, *(v for s in layout.moving for v in (*s[:3], s[4]))]
    vec = vector_length(itemsize, divisors) if unit else 1
    near_h, near_w = (ceil_div(h, 2) if domain.half_h else h), (ceil_div(w, 2) if domain.half_w else w)
    if turns:
        least = (LEAST_VECTORS if vec > 1 else LEAST)[itemsize]
        ti = tj = _side(near_w, domain.triangle, least, SIDE_BESIDE if y else SIDE[itemsize])
    else:
        tj = column_block(near_w, 256 // itemsize)
        ti = min(next_power_of_two(near_h), max(1, ELEMENTS[itemsize] // tj))
    vec = min(vec, tj)
    if domain.half_w:
        near_w = ceil_div(w // vec, 2) * vec
    if domain.half_h and turns:
        near_h = near_w
    down, across = ceil_div(near_h, ti), ceil_div(near_w, tj)
    tiles = down * (down + 1) // 2 if domain.triangle else down * across
    fewest = 2 * LANES * max(vec, 2)  # two warps: of smaller blocks not enough fit
    values = fewest if y else VALUES[itemsize]  # addresses of all images and a view's vectors fill the registers, too
    planes = min(next_power_of_two(layout.b), max(1, values // (ti * tj)))
    while planes > 1 and layout.a * ceil_div(layout.b, planes) * tiles < ENOUGH and planes * ti * tj > fewest:
        planes //= 2
    planes = times_two(planes, choice.block, next_power_of_two(layout.b))
    blocks = ceil_div(layout.b, planes)
    spans = (planes * abs(s[2]) + h * abs(s[4]) + w * abs(s[5]) for s in layout.moving)
    kinds = {"STRAIGHT": 0, "MIRRORED": 4, "TURNED": 1, "BOTH": 5}
    return make_plan(
        symmetrize_tiles,
        layout.a * blocks * tiles,
        (x, out, y),
        {
            "scale": scale,
            "tiles": tiles,
            "side": across,
            "blocks": blocks,
            "nb": layout.b,
            "H": h // vec if turns else h,
            "W": w // vec,
            **strides("xoy", "gabhw", [(*(v // vec for v in (*s[:3], s[4])), s[5]) for s in layout.moving]),
        },
        {
            **{name: tuple(sorted(c for c in loops(views).codes if c & 5 == kind)) for name, kind in kinds.items()},
            "VIEWS": _view_of_images(loops(views).codes),
            "HALF_H": domain.half_h,
            "HALF_W": domain.half_w,
            "TRIANGLE": domain.triangle,
            "PLANES": planes,
            "TI": ti,
            "TJ": tj,
            "VEC": vec,
            "VEC_H": vec if turns else 1,
            "UNIT": unit,
            "BIG": max(spans) >= LARGE,
            "ACC": accumulator(x.dtype),
        },
        times_two(warps(planes * ti * tj, vec, views.order), choice.warps, 2 * MOST_WARPS),
        partial(_plan, domain, layout, views, x, out, y, scale),
    )


def symmetrize(x: Tensor, out: Tensor, views: Views, scale: float, y: Maybe = None) -> bool:
    """``out = scale · Σ_g map_g(y_g + x)``, and whether it is: other views and layouts are another kernel's."""
    found = plan(views, scale, operand(x), operand(out), known(y))
    if found is not None:
        run(found, x, out, y)
    return found is not None
