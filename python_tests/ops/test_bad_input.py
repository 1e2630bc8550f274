"""Bad input to the operators: a ValueError or TypeError that names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from equikern import (
    cyclic_group,
    grid,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_weighted_mean,
    symmetrize,
    trivial,
)
from helpers.bad_input import assert_error
from helpers.looped import each

pytestmark = pytest.mark.usefixtures("single_thread", "backend")

C4, D4, FLIPS, HFLIP = grid("c4"), grid("d4"), grid("flips"), grid("hflip")
NOTHING = trivial(cyclic_group(3))

# what is called, the error, the argument it must name, what it expected, what it got
Case = tuple[Callable[[], object], type[Exception], str, str, str]


def x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An image, (2, 3, 6, 6) unless told otherwise."""
    return torch.ones(shape or (2, 3, 6, 6), dtype=dtype)


def y(order: int = 4, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The views of a batch, (4, 2, 3, 6, 6) unless told otherwise."""
    return torch.ones((order, *(shape or (2, 3, 6, 6))), dtype=dtype)


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(x(), 0.1, 0, torch.qint8)


W = torch.ones(4)
META = torch.device("meta")

TENSORS: dict[str, Case] = {
    "orbit of a list": (lambda: orbit([[1, 2]], C4), TypeError, "x", "torch.Tensor", "list"),  # type: ignore[arg-type]
    "orbit of numpy": (lambda: orbit(np.ones((4, 4)), C4), TypeError, "x", "torch.Tensor", "ndarray"),  # type: ignore[arg-type]
    "orbit of None": (lambda: orbit(None, C4), TypeError, "x", "torch.Tensor", "NoneType"),  # type: ignore[arg-type]
    "symmetrize a number": (lambda: symmetrize(3.0, C4), TypeError, "x", "torch.Tensor", "float"),  # type: ignore[arg-type]
    "mean of a list of views": (lambda: orbit_mean([x()] * 4, C4), TypeError, "y", "torch.Tensor", "list"),  # type: ignore[arg-type]
    "select from a dict": (lambda: orbit_select({}, W, C4), TypeError, "y", "torch.Tensor", "dict"),  # type: ignore[arg-type]
    "reduce a tuple": (lambda: orbit_reduce((y(),), C4, "max"), TypeError, "y", "torch.Tensor", "tuple"),  # type: ignore[arg-type]
    "weights as a list": (
        lambda: orbit_weighted_mean(y(), [1.0] * 4, C4),  # type: ignore[arg-type]
        *(TypeError, "weights", "torch.Tensor", "list"),
    ),
    "scores as a list": (
        lambda: orbit_select(y(), [1.0] * 4, C4),  # type: ignore[arg-type]
        *(TypeError, "scores", "torch.Tensor", "list"),
    ),
    "weights as None": (
        lambda: orbit_weighted_mean(y(), None, C4),  # type: ignore[arg-type]
        *(TypeError, "weights", "torch.Tensor", "NoneType"),
    ),
    "sparse x": (lambda: orbit(x().to_sparse(), C4), TypeError, "x", "dense", "sparse_coo"),
    "sparse y": (lambda: orbit_mean(y().to_sparse(), C4), TypeError, "y", "dense", "sparse_coo"),
    "compressed x": (lambda: symmetrize(torch.eye(6).to_sparse_csr(), C4), TypeError, "x", "dense", "sparse_csr"),
    "sparse weights": (lambda: orbit_weighted_mean(y(), W.to_sparse(), C4), TypeError, "weights", "dense", "sparse"),
    "sparse scores": (lambda: orbit_select(y(), W.to_sparse(), C4), TypeError, "scores", "dense", "sparse"),
    "quantized x": (lambda: orbit(quantized(), C4), TypeError, "x", "dense", "qint8"),
    "quantized y": (
        lambda: orbit_mean(torch.quantize_per_tensor(y(), 0.1, 0, torch.quint8), C4),
        *(TypeError, "y", "dense", "quint8"),
    ),
}

DTYPES: dict[str, Case] = {
    "complex orbit": (lambda: orbit(x(dtype=torch.complex64), C4), TypeError, "x", "float16.*bool", "complex64"),
    "complex mean": (lambda: orbit_mean(y(dtype=torch.complex128), C4), TypeError, "y", "float16", "complex128"),
    "integer mean": (lambda: orbit_mean(y(dtype=torch.int64), C4), TypeError, "y", "float16.*float64", "int64"),
    "bool mean": (lambda: orbit_mean(y(dtype=torch.bool), C4), TypeError, "y", "float16.*float64", "bool"),
    "integer symmetrize": (lambda: symmetrize(x(dtype=torch.uint8), C4), TypeError, "x", "float16", "uint8"),
    "integer reduce": (lambda: orbit_reduce(y(dtype=torch.int32), C4, "max"), TypeError, "y", "float16", "int32"),
    "integer weighted mean": (
        lambda: orbit_weighted_mean(y(dtype=torch.int16), W, C4),
        *(TypeError, "y", "float16", "int16"),
    ),
    "complex select": (
        lambda: orbit_select(y(dtype=torch.complex64), W, C4),
        *(TypeError, "y", "float16.*bool", "complex64"),
    ),
    "unsigned 16-bit orbit": (lambda: orbit(x().to(torch.uint16), C4), TypeError, "x", "float16", "uint16"),
    "float8 orbit": (lambda: orbit(x().to(torch.float8_e4m3fn), C4), TypeError, "x", "float16", "float8_e4m3fn"),
    "float8 mean": (lambda: orbit_mean(y().to(torch.float8_e5m2), C4), TypeError, "y", "float16", "float8_e5m2"),
    "integer weights": (lambda: orbit_weighted_mean(y(), W.long(), C4), TypeError, "weights", "float16", "int64"),
    "bool weights": (lambda: orbit_weighted_mean(y(), W.bool(), C4), TypeError, "weights", "float16", "bool"),
    "complex weights": (lambda: orbit_weighted_mean(y(), W + 0j, C4), TypeError, "weights", "float16", "complex64"),
    "integer scores": (lambda: orbit_select(y(), W.int(), C4), TypeError, "scores", "float16", "int32"),
}

SHAPES: dict[str, Case] = {
    "orbit of a vector": (lambda: orbit(x(6), C4), ValueError, "x", r"at least 2 dims \(…, H, W\)", r"\(6,\)"),
    "orbit of a scalar": (lambda: orbit(torch.tensor(1.0), HFLIP), ValueError, "x", "at least 2 dims", r"\(\)"),
    "symmetrize a vector": (lambda: symmetrize(x(6), C4), ValueError, "x", "at least 2 dims", r"\(6,\)"),
    "mean of one image": (
        lambda: orbit_mean(x(6, 6), C4),
        *(ValueError, "y", r"at least 3 dims \(\|G\|, …, H, W\)", r"\(6, 6\)"),
    ),
    "mean of a scalar": (lambda: orbit_mean(torch.tensor(1.0), NOTHING), ValueError, "y", "at least 1 dim", r"\(\)"),
    "select from a matrix": (lambda: orbit_select(x(4, 6), W, C4), ValueError, "y", "at least 3 dims", r"\(4, 6\)"),
    "reduce a matrix": (lambda: orbit_reduce(x(4, 6), C4, "max"), ValueError, "y", "at least 3 dims", r"\(4, 6\)"),
    "rectangle under c4": (lambda: orbit(x(2, 6, 5), C4), ValueError, "x", "a square image", "6×5"),
    "rectangle under d4": (lambda: symmetrize(x(2, 6, 5), D4), ValueError, "x", "a square image", "6×5"),
    "rectangular views": (lambda: orbit_mean(y(4, 2, 5, 6), C4), ValueError, "y", "a square image", "5×6"),
    "rectangular weighted views": (
        lambda: orbit_weighted_mean(y(4, 2, 5, 6), W, C4),
        *(ValueError, "y", "a square image", "5×6"),
    ),
    "rectangular views to select": (
        lambda: orbit_select(y(4, 2, 5, 6), W, C4),
        *(ValueError, "y", "a square image", "5×6"),
    ),
    "rectangular views to reduce": (
        lambda: orbit_reduce(y(8, 2, 5, 6), D4, "std"),
        *(ValueError, "y", "a square image", "5×6"),
    ),
    "rectangle with an empty side": (lambda: orbit(x(2, 0, 5), C4), ValueError, "x", "a square image", "0×5"),
    "another shape to add": (lambda: orbit_mean(y(), C4, plus=x(3, 6, 6)), ValueError, "plus", "one view", r"\(3, 6"),
    "another dtype to add": (lambda: orbit_mean(y(), C4, plus=x().double()), TypeError, "plus", "float32", "float64"),
    "another device to add": (lambda: orbit_mean(y(), C4, plus=x().to("meta")), ValueError, "plus", "on cpu", "meta"),
    "a number to add": (lambda: orbit_mean(y(), C4, plus=1.0), TypeError, "plus", "torch.Tensor", "float"),  # type: ignore[arg-type]
    "adding to probabilities": (
        lambda: orbit_mean(x(3, 10), NOTHING, "probs", plus=x(10)),
        ValueError,
        "plus",
        "None beside a space",
        "'probs'",
    ),
    "three views for c4": (lambda: orbit_mean(y(3), C4), ValueError, "y", "4 views on dim 0.*'c4'", "3"),
    "four views for d4": (lambda: orbit_mean(y(4), D4), ValueError, "y", "8 views on dim 0", "4"),
    "no views": (lambda: orbit_mean(y(0), C4), ValueError, "y", "4 views on dim 0", "0"),
    "views on dim 1": (lambda: orbit_mean(y(2, 4, 3, 6, 6), C4), ValueError, "y", "4 views on dim 0", "2"),
    "flattened views": (lambda: orbit_mean(x(8, 3, 6, 6), C4), ValueError, "y", "4 views on dim 0", "8"),
    "wrong views to weigh": (lambda: orbit_weighted_mean(y(8), W, C4), ValueError, "y", "4 views on dim 0", "8"),
    "wrong views to select": (lambda: orbit_select(y(2), W, C4), ValueError, "y", "4 views on dim 0", "2"),
    "wrong views to reduce": (lambda: orbit_reduce(y(5), C4, "max"), ValueError, "y", "4 views on dim 0", "5"),
    "wrong views, no dims": (lambda: orbit_mean(x(4, 10), NOTHING), ValueError, "y", "3 views on dim 0", "4"),
    "huge orbit": (
        lambda: orbit(torch.ones(1, 1).expand(2**30, 2**30), D4),
        *(ValueError, "x", r"8 views of fewer than 2\*\*63 bytes", r"\(1073741824, 1073741824\)"),
    ),
    "huge symmetrize": (
        lambda: symmetrize(torch.ones(1, 1).expand(2**30, 2**30), D4),
        *(ValueError, "x", r"fewer than 2\*\*63 bytes", r"\(1073741824, 1073741824\)"),
    ),
}

WEIGHTS: dict[str, Case] = {
    "three weights": (
        lambda: orbit_weighted_mean(y(), torch.ones(3), C4),
        *(ValueError, "weights", r"y.shape\[:k\].*\(4,\), \(4, 2\), \(4, 2, 3\)", r"\(3,\)"),
    ),
    "one weight": (lambda: orbit_weighted_mean(y(), torch.tensor(1.0), C4), ValueError, "weights", "1 ≤ k", r"\(\)"),
    "weights with a 1": (
        lambda: orbit_weighted_mean(y(), torch.ones(4, 1), C4),
        *(ValueError, "weights", r"\(4, 2\)", r"\(4, 1\)"),
    ),
    "weights batch first": (
        lambda: orbit_weighted_mean(y(), torch.ones(2, 4), C4),
        *(ValueError, "weights", r"\(4, 2\)", r"\(2, 4\)"),
    ),
    "weights for every pixel": (
        lambda: orbit_weighted_mean(y(), torch.ones(y().shape), C4),
        *(ValueError, "weights", "k ≤ 3", r"\(4, 2, 3, 6, 6\)"),
    ),
    "no weights": (lambda: orbit_weighted_mean(y(), torch.ones(0), C4), ValueError, "weights", "shape", r"\(0,\)"),
    "three scores": (lambda: orbit_select(y(), torch.ones(3), C4), ValueError, "scores", "y.shape", r"\(3,\)"),
    "one score": (lambda: orbit_select(y(), torch.tensor(1.0), C4), ValueError, "scores", "1 ≤ k", r"\(\)"),
    "scores of another batch": (
        lambda: orbit_select(y(), torch.ones(4, 5), C4),
        *(ValueError, "scores", r"\(4, 2\)", r"\(4, 5\)"),
    ),
    "scores for every row": (
        lambda: orbit_select(y(), torch.ones(4, 2, 3, 6), C4),
        *(ValueError, "scores", "k ≤ 3", r"\(4, 2, 3, 6\)"),
    ),
    "weights on another device": (
        lambda: orbit_weighted_mean(y(), W.to(META), C4),
        *(ValueError, "weights", "on cpu like y", "on meta"),
    ),
    "scores on another device": (
        lambda: orbit_select(y(), W.to(META), C4),
        *(ValueError, "scores", "on cpu like y", "on meta"),
    ),
    "y on another device": (
        lambda: orbit_weighted_mean(y().to(META), W, C4),
        *(ValueError, "weights", "on meta like y", "on cpu"),
    ),
}

LOGITS: dict[str, Case] = {
    "unknown kind": (
        lambda: orbit_select(y(3), "best", NOTHING),  # type: ignore[arg-type]
        *(ValueError, "scores", "'max_prob', 'entropy', 'margin', 'max'", "'best'"),
    ),
    "a kind for a grid": (
        lambda: orbit_select(y(), "max", C4),
        *(ValueError, "action", "a permutation of the last dim without signs, or the trivial action", "'c4'"),
    ),
    "a kind for integers": (
        lambda: orbit_select(y(3, dtype=torch.int64), "entropy", NOTHING),
        *(TypeError, "y", "float16.*float64", "int64"),
    ),
    "a kind without logits": (
        lambda: orbit_select(x(3), "max", NOTHING),
        *(ValueError, "y", r"views \(\|G\|, …, n\) of one or more logits", r"\(3,\)"),
    ),
    "a kind for no classes": (
        lambda: orbit_select(x(3, 2, 0), "max", NOTHING),
        *(ValueError, "y", "one or more logits", r"\(3, 2, 0\)"),
    ),
    "a kind for other views": (
        lambda: orbit_select(x(4, 2, 5), "max", NOTHING),
        *(ValueError, "y", "3 views on dim 0", "4"),
    ),
    "a kind for a list": (lambda: orbit_select([[1.0]], "max", NOTHING), TypeError, "y", "torch.Tensor", "list"),  # type: ignore[arg-type]
    "a kind and a bad mode": (
        lambda: orbit_select(y(3), "max", NOTHING, "best"),  # type: ignore[arg-type]
        *(ValueError, "mode", "'min', 'max'", "'best'"),
    ),
    "a kind and a bad gradient": (
        lambda: orbit_select(y(3), "max", NOTHING, gradient="straight"),  # type: ignore[arg-type]
        *(ValueError, "gradient", "'mean'", "'straight'"),
    ),
}

CHOICES: dict[str, Case] = {
    "action as a string": (lambda: orbit(x(), "c4"), TypeError, "action", "an action", 'str; write grid\\("c4"\\)'),  # type: ignore[arg-type]
    "action as a group": (lambda: orbit(x(), C4.group), TypeError, "action", "an action", "Group"),  # type: ignore[arg-type]
    "no action": (lambda: orbit_mean(y(), None), TypeError, "action", "an action", "NoneType"),  # type: ignore[arg-type]
    "action class": (lambda: symmetrize(x(), type(C4)), TypeError, "action", "an action", "type"),  # type: ignore[arg-type]
    "action for select": (lambda: orbit_select(y(), W, 4), TypeError, "action", "an action", "int"),  # type: ignore[arg-type]
    "action for reduce": (lambda: orbit_reduce(y(), "d4", "max"), TypeError, "action", "an action", "str"),  # type: ignore[arg-type]
    "arguments swapped": (lambda: orbit_weighted_mean(y(), C4, W), TypeError, "action", "an action", "Tensor"),  # type: ignore[arg-type]
    "unknown op": (lambda: orbit_reduce(y(), C4, "mode"), ValueError, "op", "'sum', 'max'.*'logodd'", "'mode'"),  # type: ignore[arg-type]
    "mean as an op": (lambda: orbit_reduce(y(), C4, "mean"), ValueError, "op", "'sum'", "'mean'"),  # type: ignore[arg-type]
    "op in capitals": (lambda: orbit_reduce(y(), C4, "MAX"), ValueError, "op", "'max'", "'MAX'"),  # type: ignore[arg-type]
    "op as a function": (lambda: orbit_reduce(y(), C4, max), TypeError, "op", "'max'", "builtin_function_or_method"),  # type: ignore[arg-type]
    "op None": (lambda: orbit_reduce(y(), C4, None), ValueError, "op", "'sum'", "None"),  # type: ignore[arg-type]
    "unknown normalize": (
        lambda: orbit_weighted_mean(y(), W, C4, "mean"),  # type: ignore[arg-type]
        *(ValueError, "normalize", "'sum', 'softmax', None", "'mean'"),
    ),
    "normalize as a bool": (
        lambda: orbit_weighted_mean(y(), W, C4, True),  # type: ignore[arg-type]
        *(TypeError, "normalize", "'sum', 'softmax', None", "True"),
    ),
    "unknown mode": (lambda: orbit_select(y(), W, C4, "argmin"), ValueError, "mode", "'min', 'max'", "'argmin'"),  # type: ignore[arg-type]
    "mode None": (lambda: orbit_select(y(), W, C4, None), ValueError, "mode", "'min', 'max'", "None"),  # type: ignore[arg-type]
    "mode as a number": (lambda: orbit_select(y(), W, C4, 1), TypeError, "mode", "'min', 'max'", "1"),  # type: ignore[arg-type]
    "unknown gradient": (
        lambda: orbit_select(y(), W, C4, gradient="straight"),  # type: ignore[arg-type]
        *(ValueError, "gradient", "'mean', 'identity', 'selected', None", "'straight'"),
    ),
    "gradient as a bool": (
        lambda: orbit_select(y(), W, C4, gradient=False),  # type: ignore[arg-type]
        *(TypeError, "gradient", "'mean'", "False"),
    ),
}

ALL: dict[str, Case] = {**TENSORS, **DTYPES, **SHAPES, **WEIGHTS, **LOGITS, **CHOICES}


@each("name", ALL)
def test_error(name: str) -> None:
    assert_error(*ALL[name])
