"""``audit``: a model run on every view of a batch, and what its outputs and its submodules' make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.containers import parts_of
from ..nn.inputs import NOT_GIVEN, Given, Inputs
from ..nn.specs import InputSpec, OutputSpec, acting, input_actions, output_actions
from ..nn.tables import ActionTables
from ..scalars import amount
from .causes import cause
from .frames import Frame, relative, tolerance_of
from .outputs import judged
from .records import Finding, OutputAudit, SubmoduleAudit
from .report import Audit
from .tracing import Call, Trace, Value, first_loss, first_overflow

__all__ = ["audit"]


def audit(
    model: Callable[..., Any],
    x: Any,
    inp: InputSpec,
    out: OutputSpec = None,
    *,
    tolerance: float | None = None,
    submodules: bool = True,
) -> Audit:
    """How far a model is from a symmetry, where it is lost, and what its outputs do.

    The model sees x as every element of the group does, and every output is compared with what it should be. Where
    ``out`` does not say what that is, the action that fits best is found, among these: invariant; the grid's own
    (channels first or last, of any size), vectors in front of it in every order and sign, regular fields, channels that
    change places; tokens of patches; keypoints and boxes in every unit, vectors and points without a grid; and the
    input's. Of a module, every submodule's output is compared, too, so that the first one is named that gets what moves
    with the input and gives what does not.

    It takes |G| + 2 forwards, without gradients: one for each element, one more to see whether the model says the same
    twice, and one of half the samples, to see whether they depend on one another. Memory: outputs of all elements,
    and of submodules what they take and give in one forward. The model stays as it is, in the mode in which it is:
    buffers that change, such as running means, and the random numbers' state are put back.

    Args:
        model: a module, or any callable, as a wrapper such as ``EquiTune`` takes it.
        x: a batch (B, …); a tuple of positional arguments, or a dict of keywords. Few samples do.
        inp: how the group acts on the input, as wrappers take it.
        out: how it acts on the outputs, as wrappers take it. None, for all of them or one in a container: find out.
        tolerance: the relative error up to which a symmetry holds, of submodules, too; by default 1e-8 in float64, 1e-4
            in float32, 1e-2 in float16 and 5e-2 in bfloat16.
        submodules: whether to look at them.

    Returns:
        An ``Audit``: ``print`` shows its tables and findings, ``.holds`` says whether all is well, ``.outputs[0].fits``
        has the actions to give as ``out``, ``.to_dict()`` and ``.to_json()`` are for programs, ``.plot(path)`` draws.

    Raises:
        TypeError: a model that cannot be called, an output without a tensor of the batch, what the wrappers refuse.
        ValueError: a tolerance that is no positive number, inputs or declared actions that do not fit.

    Example:
        >>> import torch
        >>> from equikern import EquiTune, audit
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)]
        >>> x = torch.randn(2, 3, 16, 16)
        >>> found = audit(torch.nn.Sequential(conv, *head), x, "d4", "trivial")
        >>> found.holds, [finding.where for finding in found.findings]
        (False, ['output', '0'])
        >>> found = audit(torch.nn.Sequential(EquiTune(conv, "d4", "d4"), *head), x, "d4")
        >>> found.holds, found.outputs[0].action
        (True, 'trivial (invariant)')
    """
    if not callable(model):
        raise TypeError(f"model: expected a module or a callable, got {type(model).__name__}")
    if tolerance is not None:
        tolerance = amount("tolerance", tolerance, zero=False)
    actions, lead = input_actions("inp", inp)
    specs = None if out is None else output_actions(out, lead)
    args, kwargs = _arguments(x)
    given = Inputs(actions, model, False).given(args[0] if args else NOT_GIVEN, args[1:], kwargs)
    sides = tuple(given.x.shape[-given.action.sides :]) if given.action.sides else ()
    frame = Frame(lead, lead.group, sides, given.batch)
    call = _Model(model, given, ActionTables(acting(actions)))
    heard = isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)
    trace = Trace(model, frame, tolerance) if submodules and heard else None  # type: ignore[arg-type]
    with torch.no_grad(), _kept(model):
        with trace.recording() if trace is not None else nullcontext():
            first = _named(call(0), specs, frame)
        findings = [*_overflow(trace, first), *_steadiness(call, first, frame, trace)]
        views = {name: [t] for name, (t, _) in first.items()}
        for g in range(1, frame.order):
            with trace.comparing(g) if trace is not None else nullcontext():
                outputs = call(g)
            for name, (t, _) in _named(outputs, specs, frame).items():
                views.setdefault(name, []).append(t)
        found: list[OutputAudit] = []
        for name, (t, spec) in first.items():
            if len(views[name]) != frame.order:
                raise ValueError(f"model: expected the output {name!r} for every view, got {len(views[name])} of them")
            output, more = judged(name, views[name], spec, frame, tolerance or tolerance_of(t.dtype))
            found.append(output)
            findings += more
        if trace is not None and not any(f.kind in ("deterministic", "finite") for f in findings):
            findings += _lost(trace, found, frame)
    listed = [] if trace is None else [_listed(called) for called in trace.calls]
    return Audit(lead.name, list(frame.group.names), frame.batch, call.forwards, found, listed, findings)


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, Mapping):
        return (), dict(x)
    return tuple(x) if isinstance(x, (tuple, list)) else (x,), {}


class _Model:
    """The model on an element's view of a batch."""

    def __init__(self, model: Callable[..., Any], given: Given, tables: ActionTables) -> None:
        self.model, self.given, self.tables, self.forwards = model, given, tables, 0

    def __call__(self, g: int, batch: int | None = None) -> Any:
        """What it gives for an element's view, of the first samples alone if so many are asked for."""
        self.forwards += 1
        given = self.given
        if batch is not None and batch < given.batch:
            given = given.some(torch.arange(batch, device=given.x.device))
        args, kwargs = given.seen([g], self.tables)
        return self.model(*args, **kwargs)


@contextmanager
def _kept(model: object) -> Iterator[None]:
    """Puts a module's buffers back, and the random numbers' state."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [(m._buffers, name, t, t.clone()) for m in modules for name, t in m._buffers.items() if t is not None]
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else ()):
        try:
            yield
        finally:
            for held, name, t, values in before:
                t.copy_(values)
                held[name] = t  # some modules put another tensor there


def _named(outputs: Any, specs: Any, frame: Frame) -> dict[str, tuple[Tensor, Any]]:
    """Every tensor of the batch in the outputs, by where it is, and what is declared of it."""
    found: dict[str, tuple[Tensor, Any]] = {}

    def walk(tree: Any, spec: Any, name: str) -> None:
        parts = parts_of(tree)
        if parts is None:
            if isinstance(tree, Tensor) and spec != "shared" and tree.dim() and len(tree) == frame.batch:
                if isinstance(spec, (dict, tuple)):
                    raise ValueError(f"out: expected one action for the output {name or 'output'!r}, got {spec!r}")
                found[name or "output"] = tree.detach().clone(), spec
            elif spec is not None and spec != "shared":
                what = f"shape {tuple(tree.shape)}" if isinstance(tree, Tensor) else type(tree).__name__
                raise ValueError(
                    f"out: expected a tensor whose first dim is the batch {frame.batch} at {name or 'output'!r}, "
                    f"got {what}"
                )
            return
        if spec is not None and not isinstance(spec, (dict, tuple)):
            raise ValueError(f"out{name}: expected a spec for each of {list(parts)}, got {spec!r}")
        each = dict(spec) if isinstance(spec, dict) else dict(enumerate(spec or ()))
        if missing := [key for key in each if key not in parts]:
            raise ValueError(f"out: expected some of the outputs {list(parts)}, got one for {missing}")
        for key, part in parts.items():
            walk(part, each.get(key), f"{name}.{key}" if name else str(key))

    walk(outputs, specs, "")
    if not found:
        raise TypeError(
            f"model: expected it to return a tensor whose first dim is the batch {frame.batch}, alone or in a tuple or "
            f"dict, got {type(outputs).__name__}"
        )
    return found


def _overflow(trace: Trace | None, first: dict[str, tuple[Tensor, Any]]) -> Iterator[Finding]:
    for name, (t, _) in first.items():
        if t.is_floating_point() and not bool(t.isfinite().all()):
            made = None if trace is None else first_overflow(trace.calls)
            at = f"; the first submodule that makes some is {_called(made.name, made.module)}" if made else ""
            largest = f", whose largest number is {torch.finfo(t.dtype).max:.0f}" if t.dtype == torch.float16 else ""
            where = made.name if made else name
            yield Finding("finite", where, f"output {name!r} in {_short(t)}{largest}, is not finite{at}")
            return


def _steadiness(
    call: _Model, first: dict[str, tuple[Tensor, Any]], frame: Frame, trace: Trace | None
) -> Iterator[Finding]:
    """Whether the model says the same twice, and of a sample the same beside others."""
    # Of one sample alone nobody can tell the latter, but by its BatchNorms.
    text = {"deterministic": "not deterministic", "batch": "samples depend on the rest of the batch"}
    for kind, batch in (("deterministic", frame.batch), ("batch", frame.batch // 2 or frame.batch)):
        different: list[tuple[str, nn.Module]] = []
        with trace.differing(different) if trace is not None else nullcontext():
            outputs = call(0, batch)
        again = _named(outputs, None, replace(frame, batch=batch))
        same = all(
            not _finite(t) or (name in again and relative(again[name][0], t[:batch])[0] <= tolerance_of(t.dtype))
            for name, (t, _) in first.items()
        )
        if not same:
            reason = f": {_unsteady(*different[0])}" if different else ""
            yield Finding(kind, different[0][0] if different else "", text[kind] + reason)
            if kind == "deterministic":
                return  # of which the other is no sign
    alone = [] if frame.batch > 1 or trace is None else list(trace.model.named_modules())
    for name, module in alone:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            yield Finding("batch", name, f"{text['batch']}: {_unsteady(name, module)}")
            return


def _finite(t: Tensor) -> bool:
    return bool(t.isfinite().all())


def _unsteady(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    known = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
    if known and module.training:
        family = "BatchNorm" if "Norm" in kind else "Dropout"
        return f"a {family} in training mode: {name}"
    return f"the first submodule is {_called(name, module)}"


def _lost(trace: Trace, found: list[OutputAudit], frame: Frame) -> Iterator[Finding]:
    """Where the symmetry goes, if no action fits an output."""
    if all(output.fits[0].residual <= output.tolerance for output in found):
        return
    lost = first_loss(trace.calls)
    if lost is None:
        return
    why = cause(lost, trace.calls, frame)
    before, behind = (max((value.best[1] for value in values), default=0.0) for values in (lost.takes, lost.gives))
    yield Finding(
        "submodule",
        lost.name,
        f"first submodule that breaks: {_called(lost.name, lost.module)}: {before:.0e} before, {behind:.0e} behind"
        + (f"; {why}" if why else ""),
    )


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(module).__name__})"


def _short(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _listed(call: Call) -> SubmoduleAudit:
    def worst(values: list[Value]) -> tuple[str, float]:
        return max((value.best for value in values), key=lambda best: best[1], default=("", 0.0))

    fit, behind = worst(call.gives)
    shape = tuple(call.gives[0].first.shape) if call.gives else ()
    return SubmoduleAudit(call.name, type(call.module).__name__, shape, fit, behind, worst(call.takes)[1])
