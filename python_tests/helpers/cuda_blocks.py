"""The CUDA kernels' blocks, compiled for the CPU and called like a backend's four kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from equikern.backends import cuda
from equikern.views import Views, accumulator, of
from helpers.machine_code import demangled
from torch import Tensor

CSRC = Path(__file__).parents[2] / "csrc"
RUNS, TILES, STRIDED, VECTORS = 100, 200, 300, 50
NOWHERE = 4096
SHARED = 227 * 1024  # bytes that a block may have on Hopper and Blackwell

_INTS = "op rank n_views element_size dtype"
_ADDRESSES = "x out y sizes x_strides out_strides y_strides codes"
_ROW_ADDRESSES = "y grad out lse sizes y_strides out_strides grad_strides positions sources"
_OPTIONS = "weight_dims index_dims normalized scores_double minimum plan_only one_block"


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _INTS.split()),
        *((name, ctypes.c_void_p) for name in _ADDRESSES.split()),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in "weights index scores dots".split()),
        *((name, ctypes.c_int64) for name in _OPTIONS.split()),
    ]


class _RowArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in "rank n_views dtype log moved shared_limit".split()),
        *((name, ctypes.c_void_p) for name in _ROW_ADDRESSES.split()),
        *((name, ctypes.c_int64) for name in "plan_only one_block".split()),
    ]


def _numbers(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


Others = dict[str, Tensor]  # what a call has beside x, out and y, by the names of the arguments


class Launched(NamedTuple):
    """A launch of a CUDA kernel: its name as profilers show it, bytes of shared memory, blocks, its parameter."""

    kernel: str
    shared: int
    blocks: int
    plan: bytes


class Blocks:
    """Each call returns 100 · layout + 50 · vectors + element size, 0 if nothing was to do, -1 without a kernel."""

    def __init__(self, library: Path, plan_only: bool = False) -> None:
        self.library = library
        loaded = ctypes.CDLL(str(library))
        self._run, self._run_rows, self._launches = loaded.run_call, loaded.run_softmax_mean, loaded.last_launches
        self._plan, self._partials = loaded.last_plan, loaded.last_partials
        self.plan_only = plan_only
        self.one_block = -1  # all of them, or of each launch this one alone

    def launches(self) -> dict[str, int]:
        """The kernels of the last call, with ``plan_only`` those it would have had: each one's dynamic shared bytes."""
        return {name: shared for name, shared, _ in self._lines()}

    def _lines(self) -> list[tuple[str, int, int]]:
        """A kernel's name, its shared memory and its blocks."""
        text = ctypes.create_string_buffer(1000)
        self._launches(text, ctypes.c_size_t(len(text)))
        lines = (line.split(" ") for line in text.value.decode().splitlines())
        return [
            (f"equikern::cuda::{function}<{demangled(name)} >", int(shared), int(blocks))
            for function, name, shared, blocks in lines
        ]

    def parameters(self) -> list[Launched]:
        """The launches of the last call, with ``plan_only`` those it would have had."""
        found = []
        for number, line in enumerate(self._lines()):
            plan = ctypes.c_void_p()
            size = self._plan(ctypes.c_size_t(number), ctypes.byref(plan))
            found.append(Launched(*line, ctypes.string_at(plan, size)))
        return found

    def partials(self) -> tuple[int, int]:
        """Address and bytes of the memory between launches."""
        data = ctypes.c_void_p()
        size = int(self._partials(ctypes.byref(data)))
        return data.value or 0, size

    def _call(
        self, op: int, x: Tensor, out: Tensor | None, maps: str, y: Tensor | None, others: Others, **options: object
    ) -> int:
        image = x if op in (0, 3) else x[0]
        views = of(maps)
        if not views.sides:
            image, x = image[..., None, None], x[..., None, None]
            out, y = (t if t is None else t[..., None, None] for t in (out, y))
        codes = cuda._codes(views)
        assert codes is not None
        strides = [_numbers(t.stride() if t is not None else ()) for t in (x, out, y)]
        sizes, numbers = _numbers(tuple(image.shape)), (ctypes.c_uint8 * len(codes))(*codes)
        arguments = _Arguments(
            op=op,
            rank=image.dim(),
            n_views=len(codes),
            element_size=x.element_size(),
            dtype=cuda._FLOATS.get(x.dtype, 0),
            x=_address(x),
            out=_address(out),
            y=_address(y),
            sizes=ctypes.addressof(sizes),
            x_strides=ctypes.addressof(strides[0]),
            out_strides=ctypes.addressof(strides[1]),
            y_strides=ctypes.addressof(strides[2]),
            codes=ctypes.addressof(numbers),
            plan_only=self.plan_only,
            one_block=self.one_block,
            **{name: _address(t) for name, t in others.items()},
            **{"scale": 1.0, **options},
        )
        return self._ran(int(self._run(ctypes.byref(arguments))), (x, out, y, *others.values()))

    def _ran(self, found: int, tensors: Iterable[Tensor | None]) -> int:
        """What a call returns; the tensors are all that it reads and writes."""
        return found

    def orbit(
        self, x: Tensor, out: Tensor, maps: str, scale: float = 1.0, weights: Tensor | None = None,
        index: Tensor | None = None,
    ) -> int:  # fmt: skip
        return self._call(
            0, x, out, maps, None, _given(weights=weights, index=index), scale=scale, **_dims(weights, index)
        )

    def select(
        self, y: Tensor, out: Tensor, index: Tensor, maps: str, scores: Tensor | None, minimum: bool = True
    ) -> int:
        double = scores is not None and scores.dtype == torch.float64
        options = {"minimum": minimum, "scores_double": double, **_dims(None, index)}
        return self._call(1, y, out, maps, None, _given(scores=scores, index=index), **options)

    def reduce(
        self, y: Tensor, out: Tensor, maps: str, op: str = "sum", scale: float = 1.0, weights: Tensor | None = None
    ) -> int:
        options = {"scale": scale, "normalized": op == "weighted_mean", **_dims(weights, None)}
        return self._call(2, y, out, maps, None, _given(weights=weights), **options)

    def orbit_dot(
        self, x: Tensor, y: Tensor, out: Tensor | None, dots: Tensor, maps: str, weights: Tensor | None
    ) -> int:
        return self._call(3, x, out, maps, y, _given(weights=weights, dots=dots), weight_dims=dots.dim() - 1)

    def softmax_mean(
        self, y: Tensor, out: Tensor, lse: Tensor, views: Views, table: Tensor | None, space: str, limit: int = SHARED
    ) -> int:
        """1, 0 if nothing was to do, -1 without a kernel: of a GPU that gives a block so much shared memory."""
        return self._rows(y, None, out, lse, views, table, space, limit)

    def softmax_mean_backward(
        self, grad: Tensor, y: Tensor, lse: Tensor, out: Tensor, views: Views, table: Tensor | None, space: str,
        limit: int = SHARED,
    ) -> int:  # fmt: skip
        return self._rows(y, grad, out, lse, views, table, space, limit)

    def _rows(
        self, y: Tensor, grad: Tensor | None, out: Tensor, lse: Tensor, views: Views, table: Tensor | None, space: str,
        limit: int,
    ) -> int:  # fmt: skip
        positions, sources = cuda._listed(views, table)
        strides = {"y_strides": y, "out_strides": out, "grad_strides": grad}
        numbers = {name: _numbers(t.stride() if t is not None else ()) for name, t in strides.items()}
        numbers["sizes"] = _numbers(tuple(y.shape[1:]))
        tensors = {"y": y, "grad": grad, "out": out, "lse": lse, "positions": positions, "sources": sources}
        arguments = _RowArguments(
            rank=y.dim() - 1,
            n_views=views.order,
            dtype=cuda._FLOATS[y.dtype],
            log=space == "log_probs",
            moved=0 if positions is None else len(positions),
            shared_limit=limit,
            plan_only=self.plan_only,
            one_block=self.one_block,
            **{name: ctypes.addressof(values) for name, values in numbers.items()},
            **{name: _address(t) for name, t in tensors.items()},
        )
        return self._ran(int(self._run_rows(ctypes.byref(arguments))), tensors.values())


def _address(t: Tensor | None) -> int | None:
    """Where a tensor is; meta tensors, of which calls can be planned, are at an aligned nowhere."""
    return None if t is None else NOWHERE if t.is_meta else t.data_ptr()


def _given(**tensors: Tensor | None) -> Others:
    return {name: t for name, t in tensors.items() if t is not None}


def _dims(weights: Tensor | None, index: Tensor | None) -> dict[str, int]:
    return {
        "weight_dims": 0 if weights is None else weights.dim() - 1,
        "index_dims": 0 if index is None else index.dim(),
    }


def call(blocks: Blocks, operator: str, maps: str, image: Tensor, views: Tensor) -> int:
    """Call the operator of a row of ``backends/choice.py`` on one image (*lead, H, W) and its views."""
    if operator in ("orbit", "scaled orbit"):
        return blocks.orbit(image, views, maps, 1.0 if operator == "orbit" else 0.5)
    if operator in ("sum", "symmetrize"):
        return blocks.reduce(views, torch.empty_like(image), maps)
    if operator == "orbit_dot":
        dots = torch.zeros(len(views), dtype=accumulator(image), device=image.device)
        return blocks.orbit_dot(image, views, torch.empty_like(views), dots, maps, None)
    index = torch.zeros(image.shape[:1], dtype=torch.int64, device=image.device)
    return blocks.select(views, image, index, maps, None)


def compile_blocks(folder: Path) -> Path | None:
    """The library, whose accesses trap where they are not aligned; None without a C++ compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    library = folder / "cuda_blocks.so"
    source = Path(__file__).parent / "cuda_blocks.cpp"
    sanitizers = os.environ.get("EQUIKERN_SANITIZE", "alignment,bounds,shift,signed-integer-overflow")
    flags = ["-std=c++17", "-Og", "-g1", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, f"-fsanitize={sanitizers}", f"-I{CSRC}", f"-I{CSRC / 'cuda'}", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library
