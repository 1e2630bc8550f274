"""What is measured: operator × direction × group × shape × dtype, its inputs, its byte counts and its goals."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import equikern
import torch
from bench.ops import machine
from bench.ops.operators import OPERATORS, Operator, Tensors
from equikern import Action
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
GOALS: dict[str, dict[str, tuple[float | None, float, float]]] = {
    "cpu": {"large": (1.3, 4.0, 4.0), "small": (2.0, 4.0, 4.0)},
    "cuda": {"large": (1 / 0.9, 5.0, 8.0), "odd": (1 / 0.7, 5.0, 8.0), "small": (None, 1.0, 1.0)},
}
# A large and a small shape: of the other ways of merging views, and of the dtypes beside float32 and bfloat16.
MERGE_SHAPE = (16, 64, 56, 56)
FEW_SHAPES = (MERGE_SHAPE, (8, 1280, 7, 7))
BOTH_SHAPES = (*FEW_SHAPES, (64, 3, 32, 32))  # of "both": a large one, an odd one, a small one
QUICK = {"cpu": FEW_SHAPES, "cuda": ((256, 3, 224, 224), (512, 1280, 7, 7), (64, 3, 32, 32))}  # of --quick, in float32
ORDERS = {"c4": 4, "d4": 8}
DTYPES = (torch.float32, torch.bfloat16)
MORE_DTYPES = (torch.float16, torch.float64, torch.int8)
CORE = ("orbit", "act", "mean", "weighted", "select", "selected")  # the operators that goals are set for
REDUCTIONS = ("max", "mean_std", "variance", "median", "log1p")  # measured beside the mean, at few shapes
FUSED = ("equikern", "triton", "cuda")  # its own choice of kernels, and the backends that can be asked for
PROVIDERS = {
    "cpu": ("equikern", "eager", "compile", "ttach", "toolbelt"),
    "cuda": (*FUSED, "eager", "compile", "ttach", "toolbelt"),
}
TTACH = ("orbit", "mean", "max")  # the operators that ttach has
TOOLBELT = ("orbit", "mean", "log1p")  # and pytorch-toolbelt, which has D4 and not C4
COLD = 2  # cold: a buffer is met again when so many times the last-level cache have been through it
ROTATION = 1 << 30  # the most bytes that buffers in rotation may take; where that is too few there is no "cold"
# Largest ‖result − float64‖ / ‖float64‖ that still counts as the right result, and so may be timed. Loose enough for
# eager chains, which round to bfloat16 at every step; the accuracy itself is the tests' business.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
    torch.float64: 1e-12,
    torch.int8: 0.0,
}


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    name: str
    direction: str
    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    # What the caches hold before a round: its own data ("hot") or none of it ("cold"); "graph": hot, and replayed
    # from a CUDA graph, without the launches.
    state: str = "hot"

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
        does = {
            "compile": self.name != "act",  # its loop reads the elements, which no graph holds
            "ttach": self.name in TTACH,
            "toolbelt": self.name in TOOLBELT and self.group == "d4",
        }
        few = (*FUSED, "eager") if self.dtype in MORE_DTYPES else PROVIDERS[self.device]
        if self.name == "median" and self.direction != "forward":
            few = FUSED  # of views that tie torch's sort gives one the gradient, ours all of them
        return tuple(p for p in PROVIDERS[self.device] if p in few and does.get(p, True))

    @property
    def tolerance(self) -> float:
        """The largest relative error of a right result."""
        return TOLERANCE[self.dtype]

    @property
    def quick(self) -> bool:
        return self.shape in QUICK[self.device] and self.dtype == torch.float32

    @property
    def buffers(self) -> int:
        """How many buffers of its own take turns: in the cold, so many that the caches forget them in between."""
        if self.state != "cold":
            return 1
        return math.ceil(COLD * machine.last_level_cache(self.device) / self.bytes)

    @property
    def goals(self) -> tuple[float | None, float]:
        """The largest time in times of the copy, and how many times eager torch must take; see ``GOALS``."""
        kind = next((kind for kind, shapes in SHAPES[self.device].items() if self.shape in shapes), "")
        if self.name not in CORE or not kind:
            return None, 1.0
        copy, c4, d4 = GOALS[self.device][kind]
        if self.name == "act":  # the loop beside it turns every sample once as well
            return copy, 1.0
        return copy, c4 if self.group == "c4" else d4

    def tensors(self, requires_grad: bool = False, fresh: bool = False) -> Tensors:
        """The operator's tensors, in the shared memory of ``_memory`` or in fresh memory."""
        memory = _memory(self.shape, self.dtype, self.device)
        found = []
        for name in self.operator.takes:
            if name == "positive":
                t = _positive(self.shape, self.dtype, self.device)[: self.order]
            elif name == "elements":
                t = memory[name] % self.order
            else:
                t = memory[name] if name == "x" else memory[name][: self.order]
            t = t.clone() if fresh else t.detach()
            found.append(t.requires_grad_() if requires_grad and name not in ("scores", "elements") else t)
        return tuple(found)

    def upstream(self, fresh: bool = False) -> Tensors:
        """Gradients of the results: the tensors of that shape that the operator does not read itself."""
        memory = _memory(self.shape, self.dtype, self.device)
        if self.name == "orbit":
            found: Tensors = (memory["y"][: self.order],)
        elif self.name in ("symmetrize", "act"):
            found = (memory["y"][0],)
        elif self.name == "variance":
            # As a loss scaler does: else a mean over so many values has a gradient below float16's normal numbers.
            found = (memory["weights"][0] * (math.prod(self.shape[1:]) / 64),)
        elif self.name == "mean plus":
            found = (memory["x2"],)
        else:
            found = (memory["x"], memory["x2"])[: self.operator.results]
        return tuple(t.clone() for t in found) if fresh else found

    def expected(self) -> Tensors:
        """The right results, computed in float64 a few samples at a time.

        What is float64 only because it was computed so is kept in float32, 100 times finer than any tolerance there.
        """
        samples = max(1, (1 << (20 if self.device == "cpu" else 25)) // math.prod(self.shape[1:]))
        kept: list[Tensor] = []
        for first in range(0, self.shape[0], samples):
            with one_thread():
                parts = self._expected(first, min(samples, self.shape[0] - first))
            for k, part in enumerate(parts):
                if first == 0:
                    sizes = list(part.shape)
                    sizes[_batch(part)] = self.shape[0]
                    narrow = part.dtype == torch.float64 != self.dtype
                    kept.append(part.new_empty(sizes, dtype=torch.float32 if narrow else part.dtype))
                kept[k].narrow(_batch(part), first, part.shape[_batch(part)]).copy_(part)
        return tuple(kept)

    def _expected(self, first: int, samples: int) -> Tensors:
        tensors, upstream = (
            tuple(t.narrow(_batch(t), first, samples) for t in group) for group in (self.tensors(), self.upstream())
        )
        gradients: Tensors = ()
        if self.direction != "forward":
            gradients = self.operator.wide_grad(self.order, tensors, upstream)
        if self.direction == "backward":
            return gradients
        result = self.operator.wide(self.order, *tensors)
        return ((result,) if isinstance(result, Tensor) else result) + gradients


def _batch(t: Tensor) -> int:
    """Which dim the samples are: the first of images and of their elements, the second behind the group."""
    return 0 if t.dim() in (1, 4) else 1


@functools.lru_cache(maxsize=1)  # the cases of one shape and dtype follow each other
def _memory(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random inputs of one shape: D4's views, of which C4 uses the first four.

    A million values, a prime number of them, again and again: drawing each would take longer than the benchmarks.
    """
    generator = torch.Generator(device).manual_seed(sum(shape))
    count = 1_000_003
    if dtype.is_floating_point:
        values = torch.randn(count, generator=generator, device=device).to(dtype)
    else:
        values = torch.randint(-128, 128, (count,), generator=generator, device=device, dtype=dtype)
    n = math.prod(shape)
    memory = values.repeat(math.ceil(10 * n / count))[: 10 * n].unflatten(0, (10, *shape))
    lead = (8, shape[0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": memory[8],
        "x2": memory[9],
        "y": memory[:8],
        "weights": torch.rand(lead, generator=generator, device=device, dtype=wide) + 0.5,
        "scores": torch.rand(lead, generator=generator, device=device),
        "elements": torch.randint(8, lead[1:], generator=generator, device=device),
    }


@functools.lru_cache(maxsize=1)
def _positive(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Views of which logarithms exist."""
    return _memory(shape, dtype, device)["y"].abs()


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

    Else both; on a CPU, where each takes longer, the second for float32.
    """
    cache = machine.last_level_cache(case.device)
    if case.bytes > cache:
        return ("cold",)
    both = COLD * cache <= ROTATION and (case.device == "cuda" or case.dtype == torch.float32)
    graph = ("graph",) if case.device == "cuda" and case.shape in SHAPES["cuda"]["small"] else ()
    return ("hot", *(("cold",) if both else ()), *graph)


def all_cases(device: str) -> list[Case]:
    """Every case, in an order that keeps those of one compiled chain together."""
    cases = []
    for name in OPERATORS:
        directions = ("backward",) if name == "selected" else ("forward", "backward", "both")
        for group in ORDERS:
            for dtype in DTYPES + MORE_DTYPES:
                if dtype == torch.int8 and name not in ("orbit", "act", "select"):  # those that only move values
                    continue
                few = dtype in MORE_DTYPES or name in ("mean plus", *REDUCTIONS)
                cases += [
                    Case(name, direction, group, shape, dtype, device, state)
                    for shape in (FEW_SHAPES if few else sum(SHAPES[device].values(), ()))
                    for direction in directions
                    if direction == "forward" or dtype != torch.int8
                    if direction != "both" or (dtype in DTYPES and (shape in BOTH_SHAPES or device == "cuda"))
                    for state in states(Case(name, direction, group, shape, dtype, device))
                ]
    return cases
