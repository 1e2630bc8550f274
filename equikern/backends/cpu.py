"""The C++ kernels of ``csrc/cpu``: one pass over memory, SIMD chosen at run time, torch's number of threads."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from ..field_tables import grids, is_field, mixes, sources, targets
from ..matrix_tables import multiplies
from ..tables import entry, moved_dim, permutes, table
from . import cpu_fields, cpu_matrices

try:
    from equikern import _C
except ImportError as error:  # built without a C++ compiler, or not built at all
    _C = None  # type: ignore[assignment]
    _reason = str(error)

_FLOATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_BITS = {1: 4, 2: 5, 4: 6, 8: 7}  # by element size: integers and bool are moved, never added
_DTYPES = dict(_FLOATS)
for _dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
    _DTYPES[_dtype] = _BITS[_dtype.itemsize]
_OPS = {
    op: k for k, op in enumerate("sum max min gmean hmean tsharpen logodd std mean_std weighted_mean".split())
}  # enum Op
_SPACES = {"logits": 0, "probs": 1, "log_probs": 2}  # enum Space
_KINDS = {"max_prob": 0, "entropy": 1, "margin": 2, "max": 3}  # enum ScoreKind
_codes: dict[str, tuple[bytes, int]] = {}
_spread_codes: dict[str, tuple[bytes, int]] = {}
_inverses: dict[str, tuple[bytes, list[Tensor]]] = {}
_token_maps: dict[str, tuple[bytes, bytes, Tensor]] = {}


def unavailable(device: torch.device) -> str | None:
    """Why these kernels cannot run on a device, or None if they can."""
    if device.type != "cpu":
        return "its kernels run on CPU tensors only"
    if _C is None:
        return f"the C++ module is not built ({_reason}); install a C++ compiler and run pip install again"
    return None


def _parsed(maps: str, spreads: bool = False) -> tuple[bytes, int]:
    """What the native module calls codes and spatial: what each view does, and to which dims.

    ``spreads``: for kernels that go through the channels of a field's source rather than of its views.
    """
    known = _spread_codes if spreads else _codes
    found = known.get(maps)
    if found is None:
        words = maps.split(" ")
        if is_field(maps):
            channels = (targets if spreads else sources)(maps)
            codes, spatial = _parsed(grids(maps))
            found = known[maps] = (codes + channels.numpy().tobytes(), spatial + 256 * channels.shape[1])
            return found
        if permutes(maps):
            found = known[maps] = (b"".join(map(_moves, words)), moved_dim(words[0]))
            return found
        spatial = 0 if words[0] == "." else len(words[0])
        found = known[maps] = (bytes(map(cpu_fields.volume_code if spatial == 3 else _image_code, words)), spatial)
    return found


def _image_code(word: str) -> int:
    """See ``csrc/grid_index.h``."""
    return 0 if word == "." else (word[0] in "wW") + 2 * ("H" in word) + 4 * ("W" in word)


def _moves(word: str) -> bytes:
    """A struct Moves of ``csrc/cpu/problem.h``; it points into the register, which keeps its entries."""
    view = entry(word)
    return _packed(view.positions, view.sources, bool((view.sources < 0).any()))


def _packed(positions: Tensor, sources: Tensor, signed: bool) -> bytes:
    return struct.pack("4q", positions.data_ptr(), sources.data_ptr(), len(positions), signed)


def _along_rows(maps: str) -> tuple[bytes, bytes]:
    """The Moves of every view of a row and of its inverse, none for words that leave the row in place."""
    if not permutes(maps):
        nothing = bytes(32 * (maps.count(" ") + 1))
        return nothing, nothing
    found = _inverses.get(maps)
    if found is None:
        packed, kept = b"", []
        for word in maps.split(" "):
            view = entry(word)
            positions, order = view.sources.sort()  # what is moved from somewhere is moved to there, too
            kept += [positions, view.positions[order]]
            packed += _packed(kept[-2], kept[-1], False)
        found = _inverses[maps] = (packed, kept)
    return _parsed(maps)[0], found[0]


def _token_map(maps: str) -> tuple[bytes, bytes, Tensor]:
    """A code for each view, Moves with all its ids, and the (|G|, V) tensor that they point to."""
    found = _token_maps.get(maps)
    if found is None:
        whole = table(maps).whole  # type: ignore[union-attr]  # they are maps of tokens
        moves = b"".join(_packed(row[:0], row, False) for row in whole)
        found = _token_maps[maps] = (bytes(len(whole)), moves, whole)
    return found


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``."""
    if multiplies(maps):
        return cpu_matrices.orbit(x, out, maps, scale, weights, index)
    if mixes(maps):
        return cpu_fields.orbit(x, out, maps, scale, weights, index)
    if maps[0] == "t":
        views, tokens, whole = _token_map(maps)
        _C.tokens(
            x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), views, _DTYPES[x.dtype], tokens,
            whole.shape[1], torch.get_num_threads(),
        )  # fmt: skip
        return
    codes, dims = _parsed(maps, spreads=True)
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_index = 0
    if index is not None:
        at_index, keep = index.data_ptr(), index.dim()
    _C.orbit(
        x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), codes, dims, _DTYPES[x.dtype], scale,
        at_weights, at_index, keep, torch.get_num_threads(),
    )  # fmt: skip


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    if multiplies(maps):
        return cpu_matrices.reduce(y, out, maps, op, scale, weights, other)
    if mixes(maps):
        return cpu_fields.reduce(y, out, maps, op, scale, weights, other)
    codes, dims = _parsed(maps)
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_other, other_strides = (0, ()) if other is None else (other.data_ptr(), other.stride())
    _C.reduce(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), at_other, other_strides, codes, dims,
        _FLOATS[y.dtype], _OPS[op], scale, at_weights, keep, torch.get_num_threads(),
    )  # fmt: skip


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``."""
    if multiplies(maps):
        return cpu_matrices.orbit_dot(x, y, out, dots, maps, weights)
    if mixes(maps):
        return cpu_fields.orbit_dot(x, y, out, dots, maps, weights)
    codes, dims = _parsed(maps, spreads=True)
    at_out, out_strides = (0, ()) if out is None else (out.data_ptr(), out.stride())
    _C.orbit_dot(
        x.data_ptr(), x.shape, x.stride(), y.data_ptr(), y.stride(), at_out, out_strides, dots.data_ptr(), codes, dims,
        _FLOATS[y.dtype], 0 if weights is None else weights.data_ptr(), dots.dim() - 1, torch.get_num_threads(),
    )  # fmt: skip


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``."""
    if multiplies(maps):
        return cpu_matrices.select(y, out, index, maps, scores, minimum)
    if mixes(maps):
        return cpu_fields.select(y, out, index, maps, scores, minimum)
    codes, dims = _parsed(maps)
    at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
    _C.select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), codes, dims,
        _DTYPES[y.dtype], at_scores, double, minimum, index.dim(), torch.get_num_threads(),
    )  # fmt: skip


def softmax_mean(y: Tensor, out: Tensor, lse: Tensor, maps: str, space: str) -> None:
    """See ``reference.softmax_mean``."""
    moves, _ = _along_rows(maps)
    _C.softmax_mean(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), lse.data_ptr(), moves, _FLOATS[y.dtype],
        _SPACES[space], torch.get_num_threads(),
    )  # fmt: skip


def softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, maps: str, space: str) -> None:
    """See ``reference.softmax_mean_backward``."""
    moves, inverse = _along_rows(maps)
    _C.softmax_mean_backward(
        grad.data_ptr(), grad.stride(), y.data_ptr(), y.shape, y.stride(), lse.data_ptr(), out.data_ptr(), out.stride(),
        moves, inverse, _FLOATS[y.dtype], _SPACES[space], torch.get_num_threads(),
    )  # fmt: skip


def score(logits: Tensor, out: Tensor, kind: str) -> None:
    """See ``reference.score``."""
    _C.score(
        logits.data_ptr(), logits.shape, logits.stride(), out.data_ptr(), _FLOATS[logits.dtype], _KINDS[kind],
        torch.get_num_threads(),
    )  # fmt: skip


def score_select(y: Tensor, out: Tensor, index: Tensor, maps: str, kind: str, minimum: bool) -> None:
    """See ``reference.score_select``."""
    moves, _ = _along_rows(maps)
    _C.score_select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), moves, _FLOATS[y.dtype],
        _KINDS[kind], minimum, torch.get_num_threads(),
    )  # fmt: skip


def cross_entropy(
    y: Tensor,
    target: Tensor,
    loss: Tensor,
    grad: Tensor | None,
    maps: str,
    space: str,
    ignore_index: int,
    smoothing: float,
    scale: Tensor | None,
) -> None:
    """See ``reference.cross_entropy``."""
    moves, inverse = _along_rows(maps)
    at_grad, grad_strides = (0, ()) if grad is None else (grad.data_ptr(), grad.stride())
    _C.cross_entropy(
        y.data_ptr(), y.shape, y.stride(), target.data_ptr(), loss.data_ptr(), at_grad, grad_strides, moves, inverse,
        _FLOATS[y.dtype], _SPACES[space], ignore_index, smoothing, 1.0 if scale is None else scale.item(),
        torch.get_num_threads(),
    )  # fmt: skip
