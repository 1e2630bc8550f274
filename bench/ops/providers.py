"""Who does the work: equikern, the eager chain, the chain through ``torch.compile``, and ttach."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, cast

import equikern
import torch
import torch._dynamo
import torch._functorch.config
import torch.fx.experimental._config
from cases import Case
from operators import Result, Tensors
from torch import Tensor


class Compiler:
    """``torch.compile`` of the chains, each compiled once.

    Args:
        mode: "dynamic": one compilation for all shapes of an operator, group and dtype; "static": one for each shape,
            which takes minutes more.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._key: object = None
        self._function: Callable[..., Result] = lambda: ()
        # A retained graph is run backward many times, so a backward must not reuse the memory of what was saved.
        torch._functorch.config.donated_buffer = False
        # Equal sizes are a coincidence (|G| and B, say), not a property to compile in.
        torch.fx.experimental._config.use_duck_shape = False

    def chain(self, case: Case) -> Callable[..., Result]:
        """The compiled chain of a case; what was compiled for others is dropped."""
        key: tuple[object, ...] = (case.name, case.order, case.dtype, case.device)
        if self.mode == "static":
            key += (case.shape, case.direction)
        if key != self._key:
            torch._dynamo.reset()
            # A function of its own: dynamo keeps what it compiled by code object and looks through all of it.
            chain = functools.partial(case.operator.eager, case.order)
            tuned = (
                "max-autotune-no-cudagraphs" if case.device == "cuda" else None
            )  # a retained graph forbids cudagraphs
            self._function = torch.compile(chain, dynamic=self.mode == "dynamic", fullgraph=True, mode=tuned)
            self._key = key
        return self._function

    def mark(self, tensors: Tensors) -> None:
        """The group axis is known: the chain loops over it."""
        if self.mode == "dynamic":
            for t in tensors:
                if t.dim() != 4:
                    torch._dynamo.mark_static(t, 0)


FUSED = ("equikern", "triton", "cuda")


def serve(provider: str) -> contextlib.AbstractContextManager[object]:
    """equikern's own choice of kernels, or the backend that is measured."""
    return equikern.use_backend(provider) if provider in FUSED[1:] else contextlib.nullcontext()


def ttach_merge(case: Case) -> Callable[[Tensor], Tensor]:
    """What ttach's segmentation wrapper does with the outputs of its views, which come in D4's order."""
    import ttach
    from ttach.base import Merger

    turns = ttach.Rotate90(angles=[0, 90, 180, 270])
    transforms = ttach.Compose([ttach.HorizontalFlip(), turns] if case.order == 8 else [turns])

    def merge(y: Tensor) -> Tensor:
        merger = Merger(type=case.name, n=len(transforms))
        for g, transformer in enumerate(transforms):
            merger.append(transformer.deaugment_mask(y[g]))
        return cast(Tensor, merger.result)

    return merge


def bind(case: Case, provider: str, compiler: Compiler) -> tuple[Callable[[], Any], Tensors | None]:
    """The call to time, and the tensors that it writes where it writes to memory given to it."""
    tensors = case.tensors(requires_grad=case.direction != "forward")
    chain: Callable[..., Any]
    if provider in FUSED:
        chain = functools.partial(case.operator.fused, case.action)
    elif provider == "ttach":
        chain = ttach_merge(case)
    elif provider == "eager":
        chain = functools.partial(case.operator.eager, case.order)
    else:
        chain = compiler.chain(case)
        compiler.mark(tensors)
    if case.direction == "backward":
        return _backward(case, chain, tensors), None
    if case.direction == "both":
        return _both(case, chain, tensors), None
    if provider not in FUSED:
        return lambda: chain(*tensors), None
    shape = (case.order, *case.shape) if case.name == "orbit" else case.shape
    # NaN: an element that the kernel forgets fails the check.
    outs = tuple(
        torch.full(shape, torch.nan, dtype=case.dtype, device=case.device) for _ in range(case.operator.results)
    )
    out = outs[0] if len(outs) == 1 else outs
    return lambda: chain(*tensors, out=out), outs


def _backward(case: Case, chain: Callable[..., Any], tensors: Tensors) -> Callable[[], Any]:
    """The backward alone: ``torch.autograd.grad`` of a graph that is kept."""
    result = chain(*tensors)
    outputs = (result,) if isinstance(result, Tensor) else result
    wanted = [t for t in tensors if t.requires_grad]
    upstream = case.upstream()
    return lambda: torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)


def _both(case: Case, chain: Callable[..., Any], tensors: Tensors) -> Callable[[], Any]:
    """Forward and backward: the results and their gradients."""
    wanted = [t for t in tensors if t.requires_grad]
    upstream = case.upstream()

    def forward_and_backward() -> Tensors:
        result = chain(*tensors)
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        return outputs + torch.autograd.grad(outputs, wanted, upstream)

    return forward_and_backward
