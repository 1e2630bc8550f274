"""The C++ kernels of ``csrc/cpu``: one pass over memory, SIMD chosen at run time, torch's number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..field_tables import grids, is_field, matrices, mixes, sources, targets
from ..matrix_tables import multiplies
from ..matrix_tables import table as matrix_table
from ..tables import moved_dim, permutes, table
from .reference import accumulator

try:
    from equikern import _C
except ImportError as error:  # built without a C++ compiler, or not built at all
    _C = None  # type: ignore[assignment]
    _reason = str(error)
else:
    _KINDS, _OPS, _SPACES, _SCORES = _C.KINDS, _C.OPS, _C.SPACES, _C.SCORES
    _DTYPES = {getattr(torch, name): code for name, code in _C.DTYPES.items() if hasattr(torch, name)}
    for _dtype in (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64):
        _DTYPES[_dtype] = _C.DTYPES[f"bits{8 * _dtype.itemsize}"]

Views = tuple[int, int, bytes, int, int, int]
_views: dict[tuple[str, bool, torch.dtype | None], tuple[Views, list[Tensor]]] = {}
_inverses: dict[str, Tensor] = {}


def unavailable(device: torch.device) -> str | None:
    """Why these kernels cannot run on a device, or None if they can."""
    if device.type != "cpu":
        return "its kernels run on CPU tensors only"
    if _C is None:
        return f"the C++ module is not built ({_reason}); install a C++ compiler and run pip install again"
    return None


def _image_code(word: str) -> int:
    """See ``csrc/grid_index.h``."""
    return 0 if word == "." else (word[0] in "wW") + 2 * ("H" in word) + 4 * ("W" in word)


def _volume_code(word: str) -> int:
    """See ``csrc/cpu/boxes.h``; of an image as a volume of one plane."""
    word = word.rjust(3, "d")
    axes = ["dhw".index(letter.lower()) for letter in word]
    return axes[0] + 4 * axes[1] + 16 * ("D" in word) + 32 * ("H" in word) + 64 * ("W" in word)


def _parsed(maps: str, dtype: torch.dtype, spreads: bool = False) -> Views:
    """The views as ``_C.pyi`` describes them.

    ``spreads``: for kernels that go through the channels of a field's source rather than of its views.
    """
    computed = multiplies(maps) or mixes(maps)
    key = maps, spreads, accumulator(dtype) if computed else None
    found = _views.get(key)
    if found is None:
        found = _views[key] = _described(maps, dtype, spreads)
    return found[0]


def _described(maps: str, dtype: torch.dtype, spreads: bool) -> tuple[Views, list[Tensor]]:
    words = maps.split(" ")
    still = bytes(len(words))
    if multiplies(maps):
        mats = matrix_table(maps).on(torch.device("cpu"), accumulator(dtype))
        return (_KINDS["matrix"], 0, still, mats.shape[-1], mats.data_ptr(), 0), [mats]
    if mixes(maps):
        mats = matrix_table(matrices(maps)).on(torch.device("cpu"), accumulator(dtype))
        grid = grids(maps).split(" ")
        codes = bytes(map(_volume_code, grid))
        return (_KINDS["mixed"], len(grid[0]), codes, mats.shape[-1], mats.data_ptr(), 0), [mats]
    if is_field(maps):
        channels = (targets if spreads else sources)(maps).contiguous()
        (_, sides, codes, *_rest), _ = _described(grids(maps), dtype, spreads)
        return (_KINDS["field"], sides, codes, channels.shape[1], channels.data_ptr(), 0), [channels]
    if permutes(maps):
        found = table(maps)
        assert found is not None
        if maps[0] == "t":
            whole = found.whole
            return (_KINDS["tokens"], 0, still, whole.shape[1], whole.data_ptr(), 0), [whole]
        moves, minus = (found.sources != found.positions).any(1), (found.sources < 0).any(1)
        codes = bytes((moves.int() + minus.int()).tolist())
        kept = [found.sources.contiguous(), found.positions]
        addresses = [t.data_ptr() for t in kept]
        views = (_KINDS["permutation"], -moved_dim(words[0]), codes, len(found.positions), addresses[0], addresses[1])
        return views, kept
    if words[0] == ".":
        return (_KINDS["still"], 0, still, 0, 0, 0), []
    sides = len(words[0])
    return (_KINDS["grid"], sides, bytes(map(_volume_code if sides == 3 else _image_code, words)), 0, 0, 0), []


def _inverse(maps: str) -> int:
    """The address of the sources of the inverse permutations, at the same positions."""
    if not permutes(maps):
        return 0
    found = _inverses.get(maps)
    if found is None:
        own = table(maps)
        assert own is not None
        places = torch.searchsorted(own.positions, own.sources)
        found = _inverses[maps] = torch.empty_like(own.sources).scatter_(
            1, places, own.positions.expand_as(own.sources)
        )
    return found.data_ptr()


def orbit(x: Tensor, out: Tensor, maps: str, scale: float, weights: Tensor | None, index: Tensor | None) -> None:
    """See ``reference.orbit``."""
    if maps[0] == "t":
        _C.tokens(
            x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), _parsed(maps, x.dtype), _DTYPES[x.dtype],
            0, 0, torch.get_num_threads(),
        )  # fmt: skip
        return
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    at_index = 0
    if index is not None:
        at_index, keep = index.data_ptr(), index.dim()
    _C.orbit(
        x.data_ptr(), x.shape, x.stride(), out.data_ptr(), out.stride(), _parsed(maps, x.dtype, True),
        _DTYPES[x.dtype], scale, at_weights, at_index, keep, torch.get_num_threads(),
    )  # fmt: skip


def reduce(
    y: Tensor, out: Tensor, maps: str, op: str, scale: float, weights: Tensor | None, other: Tensor | None
) -> None:
    """See ``reference.reduce``."""
    if op == "weighted_mean" and weights is not None and (multiplies(maps) or mixes(maps)):
        weights, op = weights / weights.sum(0), "sum"
    at_weights, keep = (0, 0) if weights is None else (weights.data_ptr(), weights.dim() - 1)
    nothing: tuple[int, tuple[int, ...]] = 0, ()
    given = nothing if other is None else (other.data_ptr(), other.stride())
    plus, spread = (nothing, given) if op == "mean_std" else (given, nothing)
    _C.reduce(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), *plus, *spread, _parsed(maps, y.dtype),
        _DTYPES[y.dtype], _OPS[op], scale, at_weights, keep, torch.get_num_threads(),
    )  # fmt: skip


def orbit_dot(x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None) -> None:
    """See ``reference.orbit_dot``."""
    at_out, out_strides = (0, ()) if out is None else (out.data_ptr(), out.stride())
    _C.orbit_dot(
        x.data_ptr(), x.shape, x.stride(), y.data_ptr(), y.stride(), at_out, out_strides, dots.data_ptr(),
        _parsed(maps, y.dtype, True), _DTYPES[y.dtype], 0 if weights is None else weights.data_ptr(), dots.dim() - 1,
        torch.get_num_threads(),
    )  # fmt: skip


def select(y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool) -> None:
    """See ``reference.select``."""
    at_scores, double = (0, False) if scores is None else (scores.data_ptr(), scores.dtype == torch.float64)
    _C.select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), _parsed(maps, y.dtype),
        _DTYPES[y.dtype], at_scores, double, minimum, index.dim(), torch.get_num_threads(),
    )  # fmt: skip


def softmax_mean(y: Tensor, out: Tensor, lse: Tensor, maps: str, space: str) -> None:
    """See ``reference.softmax_mean``."""
    _C.softmax_mean(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), lse.data_ptr(), _parsed(maps, y.dtype),
        _DTYPES[y.dtype], _SPACES[space], torch.get_num_threads(),
    )  # fmt: skip


def softmax_mean_backward(grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, maps: str, space: str) -> None:
    """See ``reference.softmax_mean_backward``."""
    _C.softmax_mean_backward(
        grad.data_ptr(), grad.stride(), y.data_ptr(), y.shape, y.stride(), lse.data_ptr(), out.data_ptr(), out.stride(),
        _parsed(maps, y.dtype), _inverse(maps), _DTYPES[y.dtype], _SPACES[space], torch.get_num_threads(),
    )  # fmt: skip


def score(logits: Tensor, out: Tensor, kind: str) -> None:
    """See ``reference.score``."""
    _C.score(
        logits.data_ptr(), logits.shape, logits.stride(), out.data_ptr(), _DTYPES[logits.dtype], _SCORES[kind],
        torch.get_num_threads(),
    )  # fmt: skip


def score_select(y: Tensor, out: Tensor, index: Tensor, maps: str, kind: str, minimum: bool) -> None:
    """See ``reference.score_select``."""
    _C.score_select(
        y.data_ptr(), y.shape, y.stride(), out.data_ptr(), out.stride(), index.data_ptr(), _parsed(maps, y.dtype),
        _DTYPES[y.dtype], _SCORES[kind], minimum, torch.get_num_threads(),
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
    at_grad, grad_strides = (0, ()) if grad is None else (grad.data_ptr(), grad.stride())
    _C.cross_entropy(
        y.data_ptr(), y.shape, y.stride(), target.data_ptr(), loss.data_ptr(), at_grad, grad_strides,
        _parsed(maps, y.dtype), _inverse(maps), _DTYPES[y.dtype], _SPACES[space], ignore_index, smoothing,
        1.0 if scale is None else scale.item(), torch.get_num_threads(),
    )  # fmt: skip
