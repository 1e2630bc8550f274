"""What is measured: operator × direction × group × shape × dtype, its inputs, its byte counts and its goals."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import equikern
import torch
from equikern import Action
from operators import OPERATORS, Operator, Tensors
from torch import Tensor

LARGE = ((32, 3, 224, 224), (16, 64, 56, 56), (8, 256, 64, 64))
SMALL = ((64, 3, 32, 32), (8, 1280, 7, 7))
MERGE_SHAPE = (16, 64, 56, 56)  # of the other ways of merging views
ORDERS = {"c4": 4, "d4": 8}
DTYPES = (torch.float32, torch.bfloat16)
CORE = ("orbit", "mean", "weighted", "select", "selected")  # the operators that goals are set for
PROVIDERS = ("equikern", "eager", "compile")
# Largest ‖result − float64‖ / ‖float64‖ that still counts as the right result, and so may be timed. Loose enough for
# eager chains, which round to bfloat16 at every step; the accuracy itself is the tests' business.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    name: str
    direction: str
    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def operator(self) -> Operator:
        return OPERATORS[self.name]

    @property
    def order(self) -> int:
        return ORDERS[self.group]

    @property
    def action(self) -> Action:
        return equikern.grid(self.group)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.name}-{self.direction}-{self.group}-{shape}-{self.dtype_name}-{self.device}"

    @property
    def elements(self) -> tuple[int, int]:
        """How many elements it must read, and write."""
        counts = self.operator.forward if self.direction == "forward" else self.operator.backward
        reads, writes = counts(self.order)
        n = math.prod(self.shape)
        return reads * n, writes * n

    @property
    def bytes(self) -> int:
        return sum(self.elements) * self.dtype.itemsize

    @property
    def goal(self) -> float | None:
        """The largest time, in times of the copy, that the foundation issue allows."""
        if self.name not in CORE or self.device != "cpu":
            return None
        return 1.3 if self.shape in LARGE else 2.0

    def tensors(self, requires_grad: bool = False) -> Tensors:
        """The operator's tensors, seeing the shared memory of ``_memory``."""
        memory = _memory(self.shape, self.dtype, self.device)
        found = []
        for name in self.operator.takes:
            t = memory[name] if name == "x" else memory[name][: self.order]
            t = t.detach()
            found.append(t.requires_grad_() if requires_grad and name != "scores" else t)
        return tuple(found)

    def upstream(self) -> Tensors:
        """Gradients of the results: the tensors of that shape that the operator does not read itself."""
        memory = _memory(self.shape, self.dtype, self.device)
        if self.name == "orbit":
            return (memory["y"][: self.order],)
        if self.name == "symmetrize":
            return (memory["y"][0],)
        return (memory["x"], memory["x2"])[: self.operator.results]

    def expected(self) -> Tensors:
        """The right results."""
        with one_thread():
            return self._expected()

    def _expected(self) -> Tensors:
        if self.direction == "backward":
            return self.operator.wide_grad(self.order, self.tensors(), self.upstream())
        result = self.operator.wide(self.order, *self.tensors())
        return (result,) if isinstance(result, Tensor) else result


@functools.cache
def _memory(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random inputs of one shape, drawn once: D4's views, of which C4 uses the first four."""
    generator = torch.Generator(device).manual_seed(sum(shape))

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device).to(dtype)

    lead = (8, shape[0])
    return {
        "x": draw(*shape),
        "x2": draw(*shape) if shape == MERGE_SHAPE or math.prod(shape) < 1000 else torch.empty(0),
        "y": draw(8, *shape),
        "weights": torch.rand(lead, generator=generator, device=device) + 0.5,
        "scores": torch.rand(lead, generator=generator, device=device),
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For many small steps, which would wait for a second thread each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def error(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖ in float64; NaN if anything is NaN.

    In pieces that stay in the cache.
    """
    if result.shape != expected.shape:
        raise AssertionError(f"expected shape {tuple(expected.shape)}, got {tuple(result.shape)}")
    off = size = 0.0
    piece = 1 << 16 if result.is_cpu else 1 << 26
    pieces = zip(torch.split(result.detach().reshape(-1), piece), torch.split(expected.reshape(-1), piece), strict=True)
    with one_thread():
        for got, want in pieces:
            wide = want.double()
            size += float(wide.dot(wide))
            wide = wide - got
            off += float(wide.dot(wide))
    return math.sqrt(off / size) if size else math.sqrt(off)


def all_cases(device: str) -> list[Case]:
    """Every case, in an order that keeps those of one compiled chain together."""
    cases = []
    for name in OPERATORS:
        merge = name in ("max", "mean_std")
        shapes = (MERGE_SHAPE,) if merge else LARGE + SMALL
        directions = ("backward",) if name == "selected" else ("forward", "backward")
        cases += [
            Case(name, direction, group, shape, dtype, device)
            for group in ORDERS
            for dtype in (DTYPES[:1] if merge else DTYPES)
            for shape in shapes
            for direction in directions
        ]
    return cases
