"""What every autograd Function of the package is made of: derivatives of all kinds, called as fast as torch can.

Torch asks a Function that transforms of ``torch.func`` see for a ``setup_context`` of its own, and then reads its
signature at every call, which takes longer than a small kernel. So derivatives are said once, and there are three forms
of them: a Function of the older form for all eager calls, another one for those under a transform or in forward mode,
and a registered operator ``torch.ops.equikern.traced_…`` that has its derivatives with it. That is what
``torch.compile``, ``torch.export`` and ``torch.jit.trace`` record, so that their graphs train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import library

__all__ = [
    "Differentiable",
    "functional",
    "in_forward_mode",
    "needs_grad",
    "recorded",
    "recorded_for_later",
    "transformed",
    "transposed",
]

# Small calls are counted: what is asked at each of them is bound here.
_compiling: Callable[[], bool] = torch.compiler.is_compiling
# Torch has no quick or no public way to ask the others. Without its own, calls take the form that is right anywhere.
_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]
_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_forward: Any = forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=-1)


def recorded() -> bool:
    """Whether calls are being recorded: by torch.compile, torch.export or torch.jit.trace."""
    return _compiling() or _tracing()


def recorded_for_later() -> bool:
    """Whether gradients that are off now may be on when what is recorded runs: unlike torch.compile's, it is kept."""
    return torch.compiler.is_exporting() if _compiling() else _tracing()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` may be under way."""
    return not _compiling() and _transforms_active()


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative may be under way."""
    return cast(bool, _forward._current_level >= 0)


def _special() -> bool:
    """Whether a call is another than an eager one whose derivative is autograd's in reverse mode."""
    return _compiling() or _tracing() or _transforms_active() or _forward._current_level >= 0


def needs_grad(t: Tensor, other: Tensor | None = None) -> bool:
    """Whether derivatives of a call with these inputs may be asked for.

    Under transforms nobody sees what requires grad behind a batch, and what is recorded may be trained later.
    """
    if (t.requires_grad or (other is not None and other.requires_grad)) and torch.is_grad_enabled():
        return True
    # As _special asks, which to call would take a tenth of a microsecond more.
    return _compiling() or _tracing() or _transforms_active() or _forward._current_level >= 0


def functional(t: Tensor) -> bool:
    """Whether nothing may be written in place: a tensor of a transform, of a trace, or of another library's."""
    return type(t) is not Tensor or recorded() or _transforms_active()


def transposed(vjp: Callable[[Tensor], Tensor], result: Tensor, tangent: Tensor) -> Tensor:
    """``J · tangent`` from ``v ↦ Jᵀ v``, which is linear in v: the derivative of one mode from that of the other."""
    back: Any = torch.func.vjp(vjp, torch.zeros_like(result))[1]
    return cast(Tensor, back(tangent)[0])


class Differentiable:
    """The derivatives of a function in all forms; ``call`` takes the right one.

    Subclasses say, all static: ``forward(*arguments)``, ``setup_context(ctx, inputs, output)``,
    ``backward(ctx, *grads)`` and ``jvp(ctx, *tangents)``, as torch describes them. ``forward`` may return more than its
    results, for ``setup_context`` to keep: ``hidden`` tells how many. Those are to be marked as not differentiable, and
    ``jvp`` returns nothing for them.

    Args:
        schema: that of the operator to register. Arguments of ``forward`` that are tuples are several of its.
        tuples: which arguments of ``forward`` are tuples, and how many entries they have.
    """

    hidden: ClassVar[int] = 0
    operator: ClassVar[Any]
    _eager: ClassVar[type[Function]]
    _transformed: ClassVar[type[Function]]

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """The results of ``forward``, with their derivatives."""
        if not _special():
            return cls._eager.apply(*arguments)  # type: ignore[no-untyped-call]
        if recorded():
            return cls._results(cls.operator(*_flat(arguments)))
        return cls._results(cls._under_transforms(*arguments))

    @classmethod
    def _under_transforms(cls, *arguments: Any) -> Any:
        # Transforms look into tuples, and lose count where they find None there.
        held = (_Constant(a) if isinstance(a, tuple) else a for a in arguments)
        return cls._transformed.apply(*held)  # type: ignore[no-untyped-call]

    @classmethod
    def _results(cls, found: Any) -> Any:
        """What a caller gets of what ``forward`` returns."""
        if not cls.hidden:
            return found
        return found[0] if len(found) == cls.hidden + 1 else tuple(found[: -cls.hidden])

    def __init_subclass__(cls, schema: str, tuples: Mapping[int, int]) -> None:
        super().__init_subclass__()
        rules: Any = cls
        call, keep, hidden = rules.forward, rules.setup_context, cls.hidden

        def eager(ctx: Any, *arguments: Any) -> Any:
            found = call(*arguments)
            keep(ctx, arguments, found)
            return cls._results(found) if hidden else found

        def forward(*arguments: Any) -> Any:
            return rules.forward(*map(_given, arguments))

        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            rules.setup_context(_BothModes(ctx), tuple(map(_given, inputs)), output)

        def jvp(ctx: Any, *tangents: Any) -> Any:
            found = rules.jvp(ctx, *tangents)
            return (*(found if isinstance(found, tuple) else (found,)), *(None,) * cls.hidden) if cls.hidden else found

        cls._eager = _function(cls.__name__, {"forward": eager, "backward": rules.backward})
        methods = {"forward": forward, "setup_context": setup_context, "backward": rules.backward, "jvp": jvp}
        cls._transformed = _function(cls.__name__, methods)
        cls._transformed.generate_vmap_rule = True
        cls.operator = _registered(rules, schema, tuples)


class _Constant:
    """An argument that is no tensor's, whatever it holds."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _BothModes:
    """A context that saves tensors for the derivatives of both modes."""

    def __init__(self, ctx: Any) -> None:
        self.__dict__["ctx"] = ctx

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.ctx.save_for_backward(*tensors)
        self.ctx.save_for_forward(*tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.ctx, name, value)


def _given(argument: Any) -> Any:
    return argument.value if isinstance(argument, _Constant) else argument


def _function(name: str, methods: dict[str, Callable[..., Any]]) -> type[Function]:
    return type(name, (Function,), {name: staticmethod(method) for name, method in methods.items()})


def _flat(arguments: Iterable[Any]) -> list[Any]:
    """Arguments as an operator takes them."""
    return [part for a in arguments for part in (a if isinstance(a, tuple) else (a,))]


def _registered(rules: Any, schema: str, tuples: Mapping[int, int]) -> Any:
    """The operator that has its derivatives with it."""

    def grouped(flat: Iterable[Any]) -> tuple[Any, ...]:
        rest, found = iter(flat), list[Any]()
        for i in range(rules.forward.__code__.co_argcount):
            found.append(tuple(next(rest) for _ in range(tuples[i])) if i in tuples else next(rest))
        return tuple(found)

    def forward(*flat: Any) -> Any:
        found = rules.forward(*grouped(flat))
        return tuple(found) if isinstance(found, (tuple, list)) else found

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        rules.setup_context(ctx, grouped(inputs), output)

    def backward(ctx: Any, *grads: Any) -> Any:
        found = rules.backward(ctx, *grads)  # which asks for the gradients of tensors, and they come first
        return tuple(_flat((None,) * tuples[i] if i in tuples else t for i, t in enumerate(found)))

    operator = library.register(f"traced_{schema}", forward, forward)
    library.decompositions[operator] = forward
    name = operator.name().partition("::")[2]
    torch.library.register_autograd(operator, backward, setup_context=setup_context, lib=library.library)

    def under_transforms(*flat: Any) -> Any:
        return rules._under_transforms(*grouped(flat))

    # Registered derivatives know of no transform: where one is under way, torch asks here first.
    library.library.impl(name, under_transforms, "FuncTorchDynamicLayerFrontMode")  # type: ignore[no-untyped-call]
    return operator
