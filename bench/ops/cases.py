"""What is measured: operator × direction × group × shape × dtype, its inputs, its byte counts and its goals."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import equikern
import machine
import torch
from equikern import Action
from operators import OPERATORS, Operator, Tensors
from torch import Tensor

# By device and class of shape; "small" stays in the caches of the CPU, or is where a GPU's launches show.
SHAPES = {
    "cpu": {
        "large": ((32, 3, 224, 224), (16, 64, 56, 56), (8, 256, 64, 64)),
        "small": ((64, 3, 32, 32), (8, 1280, 7, 7)),
    },
    "cuda": {
        "large": ((256, 3, 224, 224), (128, 64, 56, 56), (64, 256, 64, 64), (32, 3, 512, 512)),
        "odd": ((512, 1280, 7, 7), (256, 256, 14, 14), (64, 64, 37, 37)),
        "small": ((16, 64, 56, 56), (8, 1280, 7, 7), (64, 3, 32, 32)),
    },
}
# The goals: the largest time, in times of the copy, and how many times eager torch must take under C4 and D4 where the
# bytes outgrow the last-level cache; 1 where they do not. No goal is ever asserted.
GOALS = {
    "cpu": {"large": (1.3, 4.0, 4.0), "small": (2.0, 4.0, 4.0)},
    "cuda": {"large": (1 / 0.9, 5.0, 8.0), "odd": (1 / 0.7, 5.0, 8.0), "small": (None, 1.0, 1.0)},
}
MERGE_SHAPE = (16, 64, 56, 56)  # of the other ways of merging views
ORDERS = {"c4": 4, "d4": 8}
DTYPES = (torch.float32, torch.bfloat16)
CORE = ("orbit", "mean", "weighted", "select", "selected")  # the operators that goals are set for
PROVIDERS = {
    "cpu": ("equikern", "eager", "compile", "ttach"),
    "cuda": ("equikern", "triton", "cuda", "eager", "compile", "ttach"),  # equikern: the choice it makes itself
}
TTACH = ("mean", "max")  # the operators that ttach has, in its Merger
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
    state: str = "hot"  # what the caches hold before a round: its own data ("hot") or none of it ("cold")

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
        return f"{self.name}-{self.direction}-{self.group}-{shape}-{self.dtype_name}-{self.device}-{self.state}"

    @property
    def elements(self) -> tuple[int, int]:
        """How many elements it must read, and write."""
        counts = {
            "forward": (self.operator.forward,),
            "backward": (self.operator.backward,),
            "both": (self.operator.forward, self.operator.backward),
        }[self.direction]
        reads, writes = (sum(part) for part in zip(*(count(self.order) for count in counts), strict=True))
        n = math.prod(self.shape)
        return reads * n, writes * n

    @property
    def bytes(self) -> int:
        return sum(self.elements) * self.dtype.itemsize

    @property
    def providers(self) -> tuple[str, ...]:
        """Who does this job on this device."""
        return tuple(p for p in PROVIDERS[self.device] if p != "ttach" or self.name in TTACH)

    @property
    def goals(self) -> tuple[float | None, float]:
        """The largest time in times of the copy, and how many times eager torch must take; see ``GOALS``."""
        kind = next((kind for kind, shapes in SHAPES[self.device].items() if self.shape in shapes), "")
        if self.name not in CORE or not kind:
            return None, 1.0
        copy, c4, d4 = GOALS[self.device][kind]
        return copy, c4 if self.group == "c4" else d4

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
        gradients: Tensors = ()
        if self.direction != "forward":
            gradients = self.operator.wide_grad(self.order, self.tensors(), self.upstream())
        if self.direction == "backward":
            return gradients
        result = self.operator.wide(self.order, *self.tensors())
        return ((result,) if isinstance(result, Tensor) else result) + gradients


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


def states(case: Case) -> tuple[str, ...]:
    """Cold alone where the bytes outgrow the cache, which then keeps nothing from one call to the next.

    Else both; on a CPU, where eviction takes long, the second for float32.
    """
    if case.bytes > machine.last_level_cache(case.device):
        return ("cold",)
    return ("hot", "cold") if case.device == "cuda" or case.dtype == torch.float32 else ("hot",)


def all_cases(device: str) -> list[Case]:
    """Every case, in an order that keeps those of one compiled chain together."""
    cases = []
    for name in OPERATORS:
        merge = name in ("max", "mean_std")
        shapes = (MERGE_SHAPE,) if merge else sum(SHAPES[device].values(), ())
        directions = ("backward",) if name == "selected" else ("forward", "backward", "both")
        cases += [
            Case(name, direction, group, shape, dtype, device, state)
            for group in ORDERS
            for dtype in (DTYPES[:1] if merge else DTYPES)
            for shape in shapes
            for direction in directions
            # Both together at one shape: the sum of the two, but for the caches and autograd's own time.
            if direction != "both" or shape == MERGE_SHAPE
            for state in states(Case(name, direction, group, shape, dtype, device))
        ]
    return cases
