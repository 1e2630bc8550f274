"""Which linear maps are equivariant: the null space of the constraints, and what symmetrised random maps span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from equikern import (
    EquiTune,
    GroupAction,
    InvariantSymmetric,
    MultiInputEquiTune,
    PermutationAction,
    ProductEquiTune,
    cyclic_group,
    matrix,
    permutation,
    product_action,
)
from torch import Tensor, nn

TOLERANCE = 1e-9  # of singular values, as a share of the largest


class Random(nn.Module):
    """A random linear map of vectors."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, inp, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inp) → (B, out)."""
        return x @ self.weight.mT


def cyclic(n: int, size: int = 0) -> GroupAction:
    """C_n shifting the first n of ``size`` entries; the others stay."""
    rows = torch.arange(max(n, size)).repeat(n, 1)
    for g in range(n):
        rows[g, :n] = (torch.arange(n) + g) % n
    return permutation(rows, group=cyclic_group(n))


def grid_shifts(m: int, n: int) -> list[GroupAction]:
    """C_m shifting the rows and C_n the columns of flattened m×n arrays."""
    places = torch.arange(m * n).reshape(m, n)
    return [
        permutation(torch.stack([places.roll(-g, axis).flatten() for g in range(count)]), group=cyclic_group(count))
        for axis, count in ((0, m), (1, n))
    ]


def sign(n: int) -> GroupAction:
    """C2 turning the signs of n numbers, which leaves none but zero alone."""
    eye = torch.eye(n, dtype=torch.float64)
    return matrix(torch.stack((eye, -eye)))


def mirror(n: int) -> GroupAction:
    """C2 that reverses n entries."""
    return permutation([list(range(n)), list(range(n))[::-1]])


def quarter(n: int) -> GroupAction:
    """C4 turning the first two of n coordinates."""
    mats = torch.eye(n, dtype=torch.float64).repeat(4, 1, 1)
    for g, (c, s) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        mats[g, :2, :2] = torch.tensor([[c, -s], [s, c]])
    return matrix(mats)


def matrices(action: GroupAction, size: int) -> Tensor:
    """What every element does to vectors: (|G|, size, size)."""
    eye = torch.eye(size, dtype=torch.float64)
    return torch.stack([action.act(g, eye).mT for g in range(action.order)])


def together(factors: Sequence[GroupAction], size: int) -> GroupAction:
    """The product of factors that commute."""
    if all(isinstance(action, PermutationAction) for action in factors):
        return product_action(*factors)
    first, *rest = [matrices(action, size) for action in factors]
    for more in rest:
        first = (first[:, None] @ more).flatten(0, 1)
    return matrix(first)


def null_space(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """A basis of all W with B W = W A for every pair (A on the input, B on the output): (dimension, out, in)."""
    out, inp = len(pairs[0][1]), len(pairs[0][0])
    rows = []
    for a, b in pairs:  # row-major vec: vec(B W) = (B ⊗ I) vec(W), vec(W A) = (I ⊗ Aᵀ) vec(W)
        rows.append(
            torch.kron(b, torch.eye(inp, dtype=b.dtype)) - torch.kron(torch.eye(out, dtype=a.dtype), a.mT.contiguous())
        )
    whole = torch.cat(rows)
    _, s, vh = torch.linalg.svd(whole.mT @ whole)
    basis: Tensor = vh[s < TOLERANCE * max(1.0, float(s[0]))].reshape(-1, out, inp)
    return basis


def rank(maps: Tensor) -> int:
    """The dimension of what maps (n, …) span."""
    if not len(maps):
        return 0
    s = torch.linalg.svdvals(maps.flatten(1))
    return int((s > TOLERANCE * s[0]).sum()) if float(s[0]) > 0 else 0


def written(model: Callable[..., Any], sizes: Sequence[int]) -> Tensor:
    """The matrix of a linear model of vectors of these sizes, and of its outputs in a row: (Σ out, Σ in)."""
    eye = torch.eye(sum(sizes), dtype=torch.float64)
    found = model(*eye.split(list(sizes), 1))
    whole: Tensor = torch.cat(found, 1) if isinstance(found, tuple) else found
    return whole.detach().mT


def spanned(make: Callable[[], Callable[..., Any]], sizes: Sequence[int], most: int) -> int:
    """The rank of what ``make`` makes of ever new random maps, of which ``most`` could be independent."""
    return rank(torch.stack([written(make(), sizes) for _ in range(most + 3)]))


class Inputs:
    """Several inputs, input i of size n_i under G_i; output i is like input i, or of ``out`` numbers each."""

    def __init__(self, actions: Sequence[GroupAction], sizes: Sequence[int]) -> None:
        self.actions, self.sizes = list(actions), list(sizes)

    def constraints(self) -> list[tuple[Tensor, Tensor]]:
        """Every element of every group on all inputs in a row, and on all outputs."""
        pairs = []
        for i, action in enumerate(self.actions):
            for g in matrices(action, self.sizes[i]):
                blocks = [torch.eye(n, dtype=torch.float64) for n in self.sizes]
                blocks[i] = g
                whole = torch.block_diag(*blocks)
                pairs.append((whole, whole))
        return pairs

    def characterised(self) -> int:
        """Equivariant maps on the diagonal, and beside it what is invariant on the way in and fixed on the way out."""
        fixed = []
        diagonal = 0
        for action, n in zip(self.actions, self.sizes, strict=True):
            mats = matrices(action, n)
            fixed.append(round(float(mats.diagonal(dim1=1, dim2=2).sum(1).mean())))
            diagonal += round(float(mats.diagonal(dim1=1, dim2=2).sum(1).square().mean()))
        return diagonal + sum(a * b for i, a in enumerate(fixed) for j, b in enumerate(fixed) if i != j)

    def wrapped(self) -> Callable[..., Any]:
        """``MultiInputEquiTune`` of random maps, where the inputs are of one size or two."""
        n = self.sizes
        into = [Random(n[j], n[1 - j] if len(n) == 2 else n[j]) for j in range(len(n))]
        return MultiInputEquiTune([Random(k, k) for k in n], self.actions, self.actions, into)

    def layered(self) -> Callable[..., Any]:
        """A layer of its own for every pair of input and output: ``EquiTune``, ``InvariantSymmetric`` beside it."""
        count = range(len(self.sizes))
        layers = [
            [
                EquiTune(Random(self.sizes[j], self.sizes[i]), self.actions[i], self.actions[i])
                if i == j
                else InvariantSymmetric(Random(self.sizes[j], self.sizes[i]), self.actions[j], self.actions[i])
                for j in count
            ]
            for i in count
        ]
        return lambda *xs: tuple(sum((layers[i][j](xs[j]) for j in count[1:]), layers[i][0](xs[0])) for i in count)


def multi_input(name: str, inputs: Inputs) -> dict[str, Any]:
    """One row: all linear maps of several inputs."""
    whole = len(null_space(inputs.constraints()))
    alike = len(inputs.sizes) == 2 or len(set(inputs.sizes)) == 1
    return {
        "case": name,
        "free": sum(inputs.sizes) ** 2,
        "null space": whole,
        "characterised": inputs.characterised(),
        "layers": spanned(inputs.layered, inputs.sizes, whole),
        "wrapper": spanned(inputs.wrapped, inputs.sizes, whole) if alike else None,
    }


def product(name: str, factors: Sequence[GroupAction], size: int) -> dict[str, Any]:
    """One row: all linear maps of one input under a product of groups."""
    mats = [matrices(action, size) for action in factors]
    pairs = [(g, g) for each in mats for g in each]
    space = null_space(pairs)
    means = [each.mean(0) for each in mats]
    traces = matrices(together(factors, size), size).diagonal(dim1=1, dim2=2).sum(1)
    factored = []  # the maps that see nothing but what is left of the input, and of the output, under all factors but i
    for i in range(len(factors)):
        others = torch.eye(size, dtype=torch.float64)
        for j, mean in enumerate(means):
            if j != i:
                others = others @ mean
        factored.append(others @ space @ others)
    whole = together(factors, size)
    return {
        "case": name,
        "free": size**2,
        "null space": len(space),
        "characterised": round(float(traces.square().mean())),
        "layers": spanned(lambda: EquiTune(Random(size, size), whole, whole), [size], len(space)),
        "through invariants": rank(torch.cat(factored)),
        "wrapper": spanned(lambda: ProductEquiTune(Random(size, size), factors, factors), [size], len(space)),
        "forwards": [whole.order, sum(action.order for action in factors)],
    }


def multi_input_cases() -> dict[str, Inputs]:
    """Two and three inputs, of one size and of several."""
    return {
        "C2 on 2, C3 on 3": Inputs([cyclic(2), cyclic(3)], [2, 3]),
        "C3 on 4, C4 on 4": Inputs([cyclic(3, 4), cyclic(4)], [4, 4]),
        "C4 turning a plane of 3, mirror of 5": Inputs([quarter(3), mirror(5)], [3, 5]),
        "signs of 2, C5 on 5": Inputs([sign(2), cyclic(5)], [2, 5]),
        "C2, C3 and C4 on 4 each": Inputs([cyclic(2, 4), cyclic(3, 4), cyclic(4)], [4, 4, 4]),
        "mirror of 3, C2 on 4, C5 on 5": Inputs([mirror(3), cyclic(2, 4), cyclic(5)], [3, 4, 5]),
    }


def product_cases() -> dict[str, tuple[list[GroupAction], int]]:
    """Shifts of rows and columns of small arrays, and words that two groups exchange apart."""
    apart: list[GroupAction] = [permutation([[0, 1, 2, 3], [1, 0, 2, 3]]), permutation([[0, 1, 2, 3], [0, 1, 3, 2]])]
    return {
        "C2 × C2, rows and columns of 2×2": (grid_shifts(2, 2), 4),
        "C2 × C3, rows and columns of 2×3": (grid_shifts(2, 3), 6),
        "C3 × C4, rows and columns of 3×4": (grid_shifts(3, 4), 12),
        "C2 × C2, two pairs of words": (apart, 4),
        "C4 × signs on a plane of 3": ([quarter(3), sign(3)], 3),
    }


def measure(seed: int, advance: Callable[[], None] = lambda: None) -> dict[str, list[dict[str, Any]]]:
    """Both tables."""
    torch.manual_seed(seed)
    rows: dict[str, list[dict[str, Any]]] = {"several inputs": [], "product": []}
    for name, inputs in multi_input_cases().items():
        rows["several inputs"].append(multi_input(name, inputs))
        advance()
    for name, (factors, size) in product_cases().items():
        rows["product"].append(product(name, factors, size))
        advance()
    return rows
