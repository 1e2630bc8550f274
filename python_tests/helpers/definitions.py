"""What actions and operators are, from their definitions alone and computed in float64: the fuzzer's oracle.

Nothing of equikern computes here, and nothing is shared with its reference backend or with ``oracles.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Definition:
    """An action as two lists of linear maps on tensors of any dtype, and the shape of what they move.

    Attributes:
        maps, inverses: g and g⁻¹.
        moved: the trailing dims of an input, as far as they are fixed; a grid's sides are −1.
        turns: whether the sides must be equal.
        signed: whether signs change.
        computes: whether values are added and multiplied.
        ids: whether it acts on token ids.
    """

    maps: tuple[Linear, ...]
    inverses: tuple[Linear, ...]
    moved: tuple[int, ...]
    turns: bool = False
    signed: bool = False
    computes: bool = False
    ids: bool = False

    @property
    def order(self) -> int:
        return len(self.maps)

    def orbit(self, x: Tensor) -> Tensor:
        return torch.stack([g(x) for g in self.maps])

    def undone(self, y: Tensor) -> Tensor:
        return torch.stack([g(v) for g, v in zip(self.inverses, y, strict=True)])


def _flat(at: tuple[Tensor, ...], sizes: torch.Size) -> Tensor:
    """Places on a grid as places in its flattened dims."""
    place = torch.zeros_like(at[0])
    for index, size in zip(at, sizes, strict=True):
        place = place * size + index
    return place


def _on_grid(word: str) -> tuple[Linear, Linear]:
    """Output axis k reads the input axis that letter k names, backwards where it is upper case."""
    sides = len(word)
    axes = "dhw"[-sides:]

    def forward(x: Tensor) -> Tensor:
        size = dict(zip(axes, x.shape[-sides:], strict=True))
        out = [size[letter.lower()] for letter in word]
        place = torch.meshgrid(*(torch.arange(n) for n in out), indexing="ij") if all(out) else None
        if place is None:
            return x.reshape(*x.shape[:-sides], *out)
        read = {}
        for k, letter in enumerate(word):
            axis = letter.lower()
            read[axis] = size[axis] - 1 - place[k] if letter.isupper() else place[k]
        at = tuple(read[axis] for axis in axes)
        return x.flatten(x.dim() - sides)[..., _flat(at, x.shape[-sides:])]

    def inverse(y: Tensor) -> Tensor:
        size = dict(zip((letter.lower() for letter in word), y.shape[-sides:], strict=True))
        source = [size[axis] for axis in axes]
        if not all(source):
            return y.reshape(*y.shape[:-sides], *source)
        place = dict(zip(axes, torch.meshgrid(*(torch.arange(n) for n in source), indexing="ij"), strict=True))
        read = []
        for letter in word:
            axis = letter.lower()
            read.append(size[axis] - 1 - place[axis] if letter.isupper() else place[axis])
        return y.flatten(y.dim() - sides)[..., _flat(tuple(read), y.shape[-sides:])]

    return forward, inverse


def on_grid(words: tuple[str, ...]) -> Definition:
    if words[0] == ".":
        return Definition((lambda x: x,) * len(words), (lambda x: x,) * len(words), ())
    forward, inverse = zip(*map(_on_grid, words), strict=True)
    turns = any(word.lower() != words[0].lower() for word in words)
    return Definition(forward, inverse, (-1,) * len(words[0]), turns)


def _moving(perm: Tensor, signs: Tensor, dim: int) -> tuple[Linear, Linear]:
    """``(g·y)[perm[i]] = signs[i] · y[i]``."""
    source = torch.empty_like(perm)
    source[perm] = torch.arange(len(perm))

    def times(x: Tensor, factors: Tensor) -> Tensor:
        if bool((factors == 1).all()):
            return x
        return x * factors.reshape(-1, *(1,) * (-dim - 1)).to(x.dtype)

    def forward(x: Tensor) -> Tensor:
        return times(x.index_select(dim, source), signs[source])

    def inverse(y: Tensor) -> Tensor:
        return times(y.index_select(dim, perm), signs)

    return forward, inverse


def on_dim(perm: Tensor, signs: Tensor | None, dim: int, behind: tuple[int, ...]) -> Definition:
    factors = torch.ones_like(perm) if signs is None else signs
    forward, inverse = zip(*(_moving(p, s, dim) for p, s in zip(perm, factors, strict=True)), strict=True)
    return Definition(forward, inverse, (perm.shape[1], *behind), signed=bool((factors < 0).any()))


def on_ids(perm: Tensor) -> Definition:
    back = torch.empty_like(perm)
    for g, row in enumerate(perm):
        back[g, row] = torch.arange(len(row))
    forward = tuple(lambda x, row=row: row[x.long()].to(x.dtype) for row in perm)
    inverse = tuple(lambda x, row=row: row[x.long()].to(x.dtype) for row in back)
    return Definition(forward, inverse, (), ids=True)


def _multiplying(m: Tensor) -> Linear:
    return lambda x: torch.einsum("ij,...j->...i", m, x)


def on_vectors(mats: Tensor) -> Definition:
    back = torch.linalg.inv(mats)
    n = mats.shape[1]
    return Definition(tuple(map(_multiplying, mats)), tuple(map(_multiplying, back)), (n,), signed=True, computes=True)


def on_fields(words: tuple[str, ...], mats: Tensor) -> Definition:
    """``(g·x)[c] = Σ_c' M[g, c, c'] · grid_g(x[c'])`` for fields of n channels, one behind the other."""
    grid = on_grid(words)
    sides, n = len(words[0]), mats.shape[1]
    back = torch.linalg.inv(mats)
    moves = bool(((mats == 0) | (mats.abs() == 1)).all() & (mats.abs().sum(1) == 1).all())

    def mixed(m: Tensor, x: Tensor) -> Tensor:
        fields: Tensor = x.unflatten(-sides - 1, (x.shape[-sides - 1] // n, n)).movedim(-sides - 1, -1)
        if moves:
            source = m.abs().argmax(1)
            out = fields.index_select(-1, source)
            factors = m.sum(1)
            out = out if bool((factors == 1).all()) else out * factors.to(x.dtype)
        else:
            out = torch.einsum("ij,...j->...i", m, fields)
        return out.movedim(-1, -sides - 1).flatten(-sides - 2, -sides - 1)

    def forward(g: int) -> Linear:
        return lambda x: mixed(mats[g], grid.maps[g](x))

    def inverse(g: int) -> Linear:
        return lambda y: mixed(back[g].round() if moves else back[g], grid.inverses[g](y))

    every = range(len(words))
    signed = not moves or bool((mats < 0).any())
    return Definition(
        tuple(map(forward, every)), tuple(map(inverse, every)), (n, *(-1,) * sides), grid.turns, signed, not moves
    )


# -- operators, of views v (|G|, …) that have been transformed back

EPS = 1e-6


def _median(v: Tensor) -> Tensor:
    ordered = v.sort(0).values
    n = len(v)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return middle.masked_fill(v.isnan().any(0), math.nan)


def _std(v: Tensor) -> Tensor:
    v = v - v[:1]  # float64 rounds a mean of equal numbers, too
    return ((v - v.mean(0)) ** 2).mean(0).sqrt()


def variance(v: Tensor, dims: int) -> Tensor:
    """The mean of the variances over all but the first dims."""
    v = v - v[:1]
    square = ((v - v.mean(0)) ** 2).mean(0)
    return square.unsqueeze(-1).flatten(dims).mean(-1)


def _logodd(v: Tensor) -> Tensor:
    v = v.clamp(EPS, 1 - EPS)
    return torch.sigmoid((v / (1 - v)).log().mean(0))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda v: v.sum(0),
    "max": lambda v: v.amax(0),
    "min": lambda v: v.amin(0),
    "gmean": lambda v: v.log().mean(0).exp(),
    "hmean": lambda v: 1 / (1 / v).mean(0),
    "tsharpen": lambda v: v.sqrt().mean(0),
    "logodd": _logodd,
    "log1p": lambda v: torch.expm1(torch.log1p(v).mean(0)),
    "std": _std,
    "median": _median,
}


def score(y: Tensor, kind: str) -> Tensor:
    """The losses of rows of logits."""
    if kind == "max":
        return -y.amax(-1)
    ordered = y.sort(-1, descending=True).values
    below = ordered[..., 1:] - ordered[..., :1]
    rest = below.exp().sum(-1)  # beside the largest
    if kind == "max_prob":
        return torch.log1p(rest)
    if kind == "entropy":
        terms = (below * below.exp()).masked_fill(below == -math.inf, 0.0)
        return torch.log1p(rest) - terms.sum(-1) / (1 + rest)
    gap = ordered[..., 1] - ordered[..., 0] if y.shape[-1] > 1 else torch.full_like(rest, -math.inf)
    return torch.log1p(rest) - torch.where(gap < -1, torch.log1p(-gap.exp()), torch.log(-torch.expm1(gap)))


def mean_of(v: Tensor, space: str | None) -> Tensor:
    """The mean of logits, of their softmax, or of its logarithm."""
    if space is None:
        return v.mean(0)
    return v.softmax(-1).mean(0) if space == "probs" else v.log_softmax(-1).mean(0)


def cross_entropy(
    v: Tensor,
    target: Tensor,
    space: str | None,
    ignore: int,
    smoothing: float,
    weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """The losses (*lead) of the mean prediction."""
    v = v if softcap is None else softcap * (v / softcap).tanh()
    if space is None:
        log_q = v.mean(0).log_softmax(-1)
    elif space == "probs":
        log_q = v.log_softmax(-1).logsumexp(0) - math.log(len(v))
    else:
        log_q = v.log_softmax(-1).mean(0)
    kept = target != ignore
    right = target.where(kept, 0)
    classes = torch.ones(v.shape[-1], dtype=v.dtype) if weight is None else weight.to(v.dtype)
    loss = -log_q.gather(-1, right.unsqueeze(-1)).squeeze(-1) * classes[right]
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * (log_q * classes).mean(-1)
    if z_loss:
        squares = v.mean(0).logsumexp(-1) ** 2 if space is None else (v.logsumexp(-1) ** 2).mean(0)
        loss = loss + z_loss * classes[right] * squares
    return loss.where(kept, 0.0)
