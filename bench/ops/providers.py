"""Who does the work: equikern, the eager chain, the chain through ``torch.compile``, ttach, pytorch-toolbelt."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import equikern
import torch
import torch._dynamo
import torch._functorch.config
import torch.fx.experimental._config
from bench.ops.cases import FUSED, Case
from bench.ops.operators import Result, Tensors
from equikern.backends import unavailable
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
                if t.dim() not in (1, 4):
                    torch._dynamo.mark_static(t, 0)


def serve(provider: str) -> contextlib.AbstractContextManager[object]:
    """equikern's own choice of kernels, or the backend that is measured."""
    return equikern.use_backend(provider) if provider in FUSED[1:] else contextlib.nullcontext()


def ttach_chain(case: Case) -> Callable[[Tensor], Tensor]:
    """The views that ttach makes, in D4's order, or what its segmentation wrapper does with the outputs of them."""
    import ttach
    from ttach.base import Merger

    turns = ttach.Rotate90(angles=[0, 90, 180, 270])
    transforms = ttach.Compose([ttach.HorizontalFlip(), turns] if case.order == 8 else [turns])

    if case.name == "orbit":
        return lambda x: torch.stack([transformer.augment_image(x) for transformer in transforms])

    def merge(y: Tensor) -> Tensor:
        merger = Merger(type=case.name, n=len(transforms))
        for g, transformer in enumerate(transforms):
            merger.append(transformer.deaugment_mask(y[g]))
        return cast(Tensor, merger.result)

    return merge


# The elements of D4 in pytorch-toolbelt's order: rotations backwards, then those of the transpose. Its own inverse.
TOOLBELT_ORDER = (0, 3, 2, 1, 5, 4, 7, 6)


@functools.cache
def toolbelt() -> ModuleType:
    """pytorch-toolbelt's test-time augmentation, which needs torch alone.

    Its packages import OpenCV and torchvision for other things, so they are passed by.

    Raises:
        ImportError: pytorch-toolbelt is not installed, or is too different.
    """
    top = importlib.import_module("pytorch_toolbelt")
    for name in ("inference", "utils"):
        package = ModuleType(f"pytorch_toolbelt.{name}")
        package.__path__ = [f"{top.__path__[0]}/{name}"]
        sys.modules[package.__name__] = package
    return importlib.import_module("pytorch_toolbelt.inference.tta")


def in_toolbelt_order(views: Tensor) -> Tensor:
    """Views (|G|, B, …) as pytorch-toolbelt has them, (|G|·B, …)."""
    return views[list(TOOLBELT_ORDER)].flatten(0, 1)


def in_our_order(result: Tensor, expected: Tensor) -> Tensor:
    """A result or gradient of pytorch-toolbelt, its views as they are expected."""
    if result.dim() == expected.dim():
        return result
    views: Tensor = result.unflatten(0, (len(TOOLBELT_ORDER), -1))
    return views[list(TOOLBELT_ORDER)]


def missing(provider: str, device: str) -> str | None:
    """Why a provider cannot be measured, None if it can."""
    if provider in FUSED[1:]:
        return unavailable(provider, torch.device(device))
    try:
        if provider == "ttach":
            importlib.import_module("ttach")
        elif provider == "toolbelt":
            toolbelt()
    except ImportError as error:
        return str(error)
    return None


def poison(t: Tensor) -> Tensor:
    """Fill with what a kernel must not leave: NaN fails every check."""
    return t.fill_(math.nan if t.is_floating_point() else 101)


def bind(case: Case, provider: str, compiler: Compiler, fresh: bool = False) -> Callable[[], Any]:
    """The call to time, which returns the results; on the tensors that all share or on ones of its own."""
    differentiable = case.direction != "forward"
    tensors, upstream = case.tensors(differentiable, fresh), case.upstream(fresh)
    chain: Callable[..., Any]
    if provider in FUSED:
        chain = functools.partial(case.operator.fused, case.action)
    elif provider == "ttach":
        chain = ttach_chain(case)
    elif provider == "toolbelt" and case.name == "orbit":
        chain, upstream = toolbelt().d4_image_augment, (in_toolbelt_order(upstream[0]),)
    elif provider == "toolbelt":
        chain = functools.partial(toolbelt().d4_image_deaugment, reduction=case.name)
        tensors = (in_toolbelt_order(tensors[0].detach()).requires_grad_(differentiable),)
    elif provider == "eager":
        chain = functools.partial(case.operator.eager, case.order)
    else:
        chain = compiler.chain(case)
        compiler.mark(tensors)
    if case.direction == "backward":
        return _backward(chain, tensors, upstream)
    if case.direction == "both":
        return _both(chain, tensors, upstream)
    if provider not in FUSED or not case.operator.takes_out:
        return lambda: chain(*tensors)
    shape = (case.order, *case.shape) if case.name == "orbit" else case.shape
    outs = tuple(poison(torch.empty(shape, dtype=case.dtype, device=case.device)) for _ in range(case.operator.results))
    out = outs[0] if len(outs) == 1 else outs

    def into_out() -> Result:
        case.operator.fused(case.action, *tensors, out=out)
        return out

    return into_out


def _backward(chain: Callable[..., Any], tensors: Tensors, upstream: Tensors) -> Callable[[], Any]:
    """The backward alone: ``torch.autograd.grad`` of a graph that is kept."""
    result = chain(*tensors)
    outputs = (result,) if isinstance(result, Tensor) else result
    wanted = [t for t in tensors if t.requires_grad]
    return lambda: torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)


def _both(chain: Callable[..., Any], tensors: Tensors, upstream: Tensors) -> Callable[[], Any]:
    """Forward and backward: the results and their gradients."""
    wanted = [t for t in tensors if t.requires_grad]

    def forward_and_backward() -> Tensors:
        result = chain(*tensors)
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        return outputs + torch.autograd.grad(outputs, wanted, upstream)

    return forward_and_backward
