"""Device functions of small vectors in registers: a tuple has each entry of all vectors as a tensor of its own.

So threads have whole vectors, whatever layout a release of Triton chooses for a tensor, and need no neighbours.
"""
# mypy: ignore-errors
# ruff: noqa: RUF005  (kernels join tuples, they do not unpack them)

import triton
import triton.language as tl

from .arithmetic import alone, combine, prepare


@triton.jit
def entries(ptr, at, step, inside, D: tl.constexpr, ACC: tl.constexpr):
    """Vectors at offsets ``at``, their entries ``step`` apart."""
    v = ()
    for j in tl.static_range(D):
        v = v + (tl.load(ptr + at + j * step, mask=inside, other=0).to(ACC),)
    return v


@triton.jit
def write(ptr, at, step, v, inside):
    """Vectors to offsets ``at``, their entries ``step`` apart."""
    for j in tl.static_range(len(v)):
        tl.store(ptr + at + j * step, v[j].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def times(mats, g, v):
    """Matrix g times vectors. g is a number, or one for each vector."""
    at = mats + g * (len(v) * len(v))
    found = ()
    for i in tl.static_range(len(v)):
        s = tl.load(at + i * len(v)) * v[0]
        for j in tl.static_range(1, len(v)):
            s += tl.load(at + (i * len(v) + j)) * v[j]
        found = found + (s,)
    return found


@triton.jit
def dotted(v, w):
    """The products of vectors with others."""
    s = v[0] * w[0]
    for j in tl.static_range(1, len(v)):
        s += v[j] * w[j]
    return s


@triton.jit
def scaled(v, factor):
    """Vectors times numbers, one for each or one for all."""
    found = ()
    for j in tl.static_range(len(v)):
        found = found + (v[j] * factor,)
    return found


@triton.jit
def added(v, w):
    """The sums of vectors with others."""
    found = ()
    for j in tl.static_range(len(v)):
        found = found + (v[j] + w[j],)
    return found


@triton.jit
def only(v, where):
    """Vectors where a condition holds, zeros elsewhere."""
    found = ()
    for j in tl.static_range(len(v)):
        found = found + (tl.where(where, v[j], tl.zeros_like(v[j])),)
    return found


@triton.jit
def prepared(v, OP: tl.constexpr):
    """A reduction's function of each entry."""
    found = ()
    for j in tl.static_range(len(v)):
        found = found + (prepare(v[j], OP),)
    return found


@triton.jit
def joined(states, g: tl.constexpr, v, OP: tl.constexpr):
    """What each entry's first g views joined to, with the next one's."""
    found = ()
    for i in tl.static_range(len(v)):
        t, n = alone(v[i], OP)
        if g > 0:
            t, n = combine(states[i][0], states[i][1], g, t, n, 1, OP)
        found = found + ((t, n),)
    return found
