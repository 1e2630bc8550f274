"""The native module. Tensors are addresses, sizes and strides (in elements); 0 stands for no tensor.

``views`` is what the views do, ``(kind, sides, codes, size, table, positions)``:

- kind: one of ``KINDS``.
- sides: of grids, fields and mixed fields the number of spatial dims, 2 or 3; of permutations the permuted dim, counted
  from the end (1 is the last); else 0.
- codes: one byte a view. Of grids and fields that of an image (``csrc/grid_index.h``) or of a volume
  (``csrc/cpu/boxes.h``); of mixed fields always that of a volume, images being volumes of one plane; of permutations 0
  where nothing moves, 1 where entries do, 2 where one of them changes its sign; else 0.
- size: of permutations m, the entries that some view moves; of fields and mixed fields n, the channels of one field; of
  matrices d; of tokens V, the vocabulary; else 0.
- table: of permutations (|G|, m) int32, the source of each of these entries, below 0 minus that of ``~source``; of
  fields (|G|, n) int32, the channel that each channel shows (is shown by, in ``orbit`` and ``orbit_dot``), below 0
  likewise; of mixed fields (|G|, n, n), of matrices (|G|, d, d), in the accumulator's dtype; of tokens (|G|, V) int32;
  else 0.
- positions: of permutations (m,) int32, these entries, rising, the same for all views: 0 … m − 1 where m is the dim's
  size; else 0.

``inverse`` is a table like that of a permutation, at the same positions, of the inverse permutations; 0 where nothing
moves. Weights, dots and scores (|G|, ...), in the accumulator's dtype, and index (...), int64, are contiguous, with the
first ``keep`` lead dims of one sample.
"""

from collections.abc import Callable

Sizes = tuple[int, ...]
Views = tuple[int, int, bytes, int, int, int]

KINDS: dict[str, int]  # still, grid, permutation, field, mixed, matrix, tokens
DTYPES: dict[
    str, int
]  # float32, …, the bits of other types by their number, and uint8, which is compared without a sign
OPS: dict[str, int]  # reductions; of integers only vote, of floats all others
SPACES: dict[str, int]  # logits, probs, log_probs
SCORES: dict[str, int]  # max_prob, entropy, margin, max

def orbit(
    x: int,
    shape: Sizes,
    x_strides: Sizes,
    out: int,
    out_strides: Sizes,
    views: Views,
    dtype: int,
    scale: float,
    weights: int,
    index: int,
    keep: int,
    threads: int,
    /,
) -> None: ...
def reduce(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    plus: int,
    plus_strides: Sizes,
    spread: int,
    spread_strides: Sizes,
    views: Views,
    dtype: int,
    op: int,
    scale: float,
    weights: int,
    keep: int,
    threads: int,
    /,
) -> None: ...
def orbit_dot(
    x: int,
    shape: Sizes,
    x_strides: Sizes,
    y: int,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    dots: int,
    views: Views,
    dtype: int,
    weights: int,
    keep: int,
    threads: int,
    /,
) -> None: ...
def reduce_backward(
    grad: int,
    grad_strides: Sizes,
    spread: int,
    spread_strides: Sizes,
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    views: Views,
    dtype: int,
    op: int,
    threads: int,
    /,
) -> None: ...
def variance(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    views: Views,
    dtype: int,
    scale: float,
    keep: int,
    threads: int,
    /,
) -> None: ...
def variance_backward(
    factors: int,
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    views: Views,
    dtype: int,
    keep: int,
    threads: int,
    /,
) -> None: ...
def select(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    index: int,
    views: Views,
    dtype: int,
    scores: int,
    scores_double: bool,
    minimum: bool,
    keep: int,
    threads: int,
    /,
) -> None: ...
def tokens(
    x: int,
    shape: Sizes,
    x_strides: Sizes,
    out: int,
    out_strides: Sizes,
    views: Views,
    dtype: int,
    index: int,
    keep: int,
    threads: int,
    /,
) -> None: ...
def softmax_mean(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    lse: int,
    views: Views,
    dtype: int,
    space: int,
    threads: int,
    /,
) -> None: ...
def softmax_mean_backward(
    grad: int,
    grad_strides: Sizes,
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    lse: int,
    out: int,
    out_strides: Sizes,
    views: Views,
    dtype: int,
    space: int,
    threads: int,
    /,
) -> None: ...
def score(logits: int, shape: Sizes, strides: Sizes, out: int, dtype: int, kind: int, threads: int, /) -> None: ...
def score_select(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    out: int,
    out_strides: Sizes,
    index: int,
    views: Views,
    dtype: int,
    kind: int,
    minimum: bool,
    threads: int,
    /,
) -> None: ...
def cross_entropy(
    y: int,
    shape: Sizes,
    y_strides: Sizes,
    target: int,
    loss: int,
    grad: int,
    grad_strides: Sizes,
    views: Views,
    dtype: int,
    space: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    softcap: float,
    class_weights: int,
    factor: float,
    threads: int,
    /,
) -> None: ...
def coarse(
    x: int,
    planes: int,
    height: int,
    width: int,
    rows: int,
    down: int,
    columns: int,
    across: int,
    out: int,
    dtype: int,
    threads: int,
    /,
) -> None: ...
def cpu_isa() -> str: ...
def cpu_features() -> list[str]: ...
def cuda_orbit(
    x: int,
    out: int,
    sizes: tuple[int, ...],
    x_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    codes: list[int],
    element_size: int,
    dtype: int,
    scale: float,
    weights: int,
    weight_dims: int,
    index: int,
    index_dims: int,
    device: int,
    stream: int,
    /,
) -> bool: ...
def cuda_select(
    y: int,
    out: int,
    sizes: tuple[int, ...],
    y_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    codes: list[int],
    element_size: int,
    index: int,
    index_dims: int,
    scores: int,
    scores_double: bool,
    minimum: bool,
    device: int,
    stream: int,
    /,
) -> bool: ...
def cuda_sum(
    y: int,
    out: int,
    sizes: tuple[int, ...],
    y_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    codes: list[int],
    dtype: int,
    scale: float,
    weights: int,
    weight_dims: int,
    normalized: bool,
    device: int,
    stream: int,
    /,
) -> bool: ...
def cuda_orbit_dot(
    x: int,
    y: int,
    out: int,
    dots: int,
    sizes: tuple[int, ...],
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    codes: list[int],
    dtype: int,
    weights: int,
    weight_dims: int,
    allocate: Callable[[int], int],
    device: int,
    stream: int,
    /,
) -> bool: ...
def cuda_softmax_mean_backward(
    grad: int,
    y: int,
    lse: int,
    out: int,
    sizes: tuple[int, ...],
    grad_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    n_views: int,
    positions: int,
    sources: int,
    moved: int,
    dtype: int,
    log: bool,
    device: int,
    stream: int,
    /,
) -> bool: ...
def cuda_softmax_mean(
    y: int,
    out: int,
    lse: int,
    sizes: tuple[int, ...],
    y_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    n_views: int,
    positions: int,
    sources: int,
    moved: int,
    dtype: int,
    log: bool,
    device: int,
    stream: int,
    /,
) -> bool: ...
