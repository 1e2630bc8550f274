"""The ways a model is used: each is tried on a case and compared with a plain call, or with another way to the same."""

from __future__ import annotations

import copy
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from bench.matrix import elsewhere
from bench.matrix.cases import Case
from equikern import portable, use_backend
from equikern.nn.containers import leaves
from torch import Tensor, nn

__all__ = ["FEATURES", "NothingToTryError", "of", "tried"]

# From 16 on: below, torch's convolutions may take another kernel, which is a guard of its own on |G|·B.
BATCHES = (17, 20, 18, 22, 19, 24, 21, 23, 26, 25, 28, 27)
Dims = dict[int, Any]


class NothingToTryError(Exception):
    """What a case does not have, so that there is nothing to try: the reason."""


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    return [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """That two results agree, in shape and dtype too."""
    for a, b in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def floats(tensors: Any) -> list[Tensor]:
    """Those that may have gradients."""
    return [t for t in tensors if t.is_floating_point()]


def incoming(result: Any) -> list[Tensor]:
    """A gradient for each tensor of a result."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(t.shape, generator=generator).to(t.dtype) for t in floats(flat(result))]


def gradients(case: Case, module: nn.Module, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Those of the inputs and of the module's parameters."""
    given = [t.clone().requires_grad_(case.smooth and t.is_floating_point()) for t in inputs]
    wanted = [t for t in (*given, *module.parameters()) if t.requires_grad]
    if case.integers or not wanted:
        raise NothingToTryError("integers have no gradient")
    result = call(*given)
    found = torch.autograd.grad(floats(flat(result)), wanted, incoming(result), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]


def _smooth(case: Case) -> None:
    if not case.smooth:
        raise NothingToTryError("integers have no gradient")


def eager(case: Case) -> None:
    """The same as the plain-torch reference."""
    call, inputs = case.call(case.module()), case.inputs(3)
    found = call(*inputs)
    with use_backend("reference"):
        close(found, call(*inputs))


def grad(case: Case) -> None:
    """Gradients are those of the reference."""
    module, inputs = case.module(), case.inputs(3)
    call = case.call(module)
    found = gradients(case, module, call, inputs)
    with use_backend("reference"):
        close(found, gradients(case, module, call, inputs))


def double_grad(case: Case) -> None:
    """Second derivatives are symmetric: ⟨a, H b⟩ = ⟨b, H a⟩."""
    _smooth(case)
    module, x = case.module().double(), case.inputs(2)
    x = tuple(t.double() if t.is_floating_point() else t for t in x)

    def slope(first: Tensor) -> Tensor:
        return sum((t.square().sum() for t in floats(flat(case.call(module)(first, *x[1:])))), first.new_zeros(()))

    first = x[0].requires_grad_()
    (g,) = torch.autograd.grad(slope(first), first, create_graph=True)
    a, b = incoming([g, g])
    if not g.requires_grad:
        raise AssertionError("the gradient has no graph")
    products = [torch.autograd.grad(g, first, v, retain_graph=True)[0] for v in (a, b)]
    close((a * products[1]).sum(), (b * products[0]).sum(), 1e-6)


def vmap(case: Case) -> None:
    """A batch of batches gives the same as one batch after the other."""
    call, many = case.call(case.module()), [case.inputs(2), tuple(t.flip(0) for t in case.inputs(2))]
    found = torch.vmap(lambda *inputs: flat(call(*inputs)))(*map(torch.stack, zip(*many, strict=True)))
    for k, inputs in enumerate(many):
        close([t[k] for t in found], call(*inputs))


def jvp(case: Case) -> None:
    """Forward mode agrees with reverse mode: ⟨v, J t⟩ = ⟨Jᵀ v, t⟩."""
    _smooth(case)
    module, inputs = case.module(), case.inputs(2)
    moving = [i for i, t in enumerate(inputs) if t.is_floating_point()]

    def call(*some: Tensor) -> tuple[Tensor, ...]:
        given = [some[moving.index(i)] if i in moving else t for i, t in enumerate(inputs)]
        return tuple(floats(flat(case.call(module)(*given))))

    points = tuple(inputs[i] for i in moving)
    tangents = tuple(torch.cos(7 * t) for t in points)
    pair: Any = torch.func.jvp(call, points, tangents)
    results, pushed = pair
    pulled: Any = torch.func.vjp(call, *points)[1]
    v = tuple(incoming(list(results)))
    found = sum(((a * b).sum() for a, b in zip(v, pushed, strict=True)), torch.zeros(()))
    expected = sum(((a * b).sum() for a, b in zip(pulled(v), tangents, strict=True)), torch.zeros(()))
    close(found, expected, 1e-4)


def sample_grads(case: Case) -> None:
    """Per-sample gradients by vmap(grad(…)) are those of a loop."""
    _smooth(case)
    module, first = case.module(), case.inputs(1)
    samples = [first, tuple(t + 1 if t.is_floating_point() else t for t in first)]

    def loss(*inputs: Tensor) -> Tensor:
        return sum((t.square().sum() for t in floats(flat(case.call(module)(*inputs)))), inputs[0].new_zeros(()))

    call = torch.func.grad(loss)
    found = torch.vmap(call)(*map(torch.stack, zip(*samples, strict=True)))
    close(found, torch.stack([call(*inputs) for inputs in samples]), 1e-4)


@contextmanager
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


def _compiled(case: Case, dynamic: bool | None, backward: bool) -> None:
    graphs = []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return aot(graph, examples)

    with _compiler():
        aot = torch._dynamo.lookup_backend("aot_eager")
        module = case.module()
        quick = case.call(torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic))
        call = case.call(module)
        for batch in BATCHES:
            inputs = case.inputs(batch)
            if backward:
                close(gradients(case, module, quick, inputs), gradients(case, module, call, inputs), 1e-4)
            else:
                with torch.no_grad():
                    close(quick(*inputs), call(*inputs))
    if len(graphs) > 2:
        raise AssertionError(f"{len(graphs)} graphs for {len(BATCHES)} batch sizes")


def compiled(case: Case) -> None:
    """Compiles to one graph; twelve batch sizes compile at most twice."""
    _compiled(case, None, False)


def compiled_dynamic(case: Case) -> None:
    """The same with dynamic=True, and gradients, too."""
    _compiled(case, True, not case.integers)


def _moving(case: Case, inputs: Sequence[Tensor]) -> list[bool]:
    """Which inputs have sides."""
    return [case.sides > 0 and t.dim() - case.sides > at >= 0 for t, at in zip(inputs, case.batch, strict=True)]


def exported(case: Case, strict: bool = False, group: str | None = None) -> Any:
    """A case's program, with a dynamic batch; of another group with dynamic sides, too."""
    inputs = case.inputs(3, group)
    batch = torch.export.Dim("batch", min=2, max=1024)
    sides: Dims = {}
    if group is not None:
        sides = {-k: torch.export.Dim("whd"[k - 1], min=4, max=512) for k in range(1, case.sides + 1)}
    dims: list[Dims] = []
    for at, t, moving in zip(case.batch, inputs, _moving(case, inputs), strict=True):
        own = {t.dim() + k: side for k, side in sides.items()} if moving else {}
        dims.append({} if at < 0 else {at: batch, **own})
    module = case.call(case.module(group))
    shapes = inspect.signature(module.forward).bind(*dims).arguments
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)


def _same(case: Case, program: Callable[..., Any], module: nn.Module, tolerance: float = 1e-5) -> None:
    """That a program gives what the module gives, for other batches than that it was made with."""
    with torch.no_grad():
        for batch in (2, 7):
            inputs = case.inputs(batch)
            close(program(*inputs), case.call(module)(*inputs), tolerance)


def export(case: Case) -> None:
    """Torch.export with a dynamic batch size."""
    _same(case, exported(case).module(), case.module())


def export_strict(case: Case) -> None:
    """The same with strict=True (by Dynamo)."""
    _same(case, exported(case, strict=True).module(), case.module())


def export_sides(case: Case) -> None:
    """Export with dynamic batch, height and width, under a group without rotations by 90°."""
    if not case.sides:
        raise NothingToTryError("it has no height and width, or its action is for one size")
    group = {2: "flips", 3: "flips3d"}[case.sides]
    program, module = exported(case, group=group).module(), case.module(group)
    with torch.no_grad():
        for lengths in ((4, 6, 8), (7, 9, 5)):
            inputs = list(case.inputs(4, group))
            for i, moving in enumerate(_moving(case, inputs)):
                for k in range(-case.sides, 0) if moving else ():
                    inputs[i] = inputs[i].index_select(k, torch.arange(lengths[k]) % inputs[i].shape[k])
            close(program(*inputs), case.call(module)(*inputs))


def export_trains(case: Case) -> None:
    """An exported program has the module's gradients."""
    module, inputs = case.module(), case.inputs(3)
    program = exported(case).module()
    close(gradients(case, program, program, inputs), gradients(case, module, case.call(module), inputs), 1e-4)


def traced(case: Case) -> None:
    """torch.jit.trace."""
    module, inputs = case.module(), case.inputs(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(case.call(module), inputs, strict=False)
    other = tuple(t.flip(dim) if dim >= 0 else t for t, dim in zip(inputs, case.batch, strict=True))
    close(program(*other), case.call(module)(*other))


def made_portable(case: Case) -> None:
    """The exported program, made of torch's own operators by equikern.portable."""
    program = portable(exported(case))
    names = {str(node.target) for node in program.graph.nodes if "equikern" in str(node.target)}
    assert not names, names
    _same(case, program.module(), case.module())


def saved(case: Case) -> None:
    """An exported program loaded in another process, which has imported only equikern."""
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(exported(case), f"{folder}/program.pt2")
        _elsewhere(case, "equikern", "export", folder)


def saved_portable(case: Case) -> None:
    """The portable program loaded in another process, without equikern."""
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(portable(exported(case)), f"{folder}/program.pt2")
        _elsewhere(case, "nothing", "export", folder)


def compiled_ahead(case: Case) -> None:
    """Compiled by AOTInductor with a dynamic batch and run in another process, which has imported only equikern."""
    from torch._inductor import config

    # Scalar code, not optimised, which compiles in a fraction of the time.
    quick = {"cpp.vec_isa_ok": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    with tempfile.TemporaryDirectory() as folder, config.patch(quick), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(exported(case), package_path=f"{folder}/program.pt2")
        _elsewhere(case, "equikern", "aoti", folder)


def _elsewhere(case: Case, imports: str, how: str, folder: str) -> None:
    """That the program saved in a folder gives in another process what the module gives here."""
    calls: list[Any] = []

    def note(*inputs: Tensor) -> Any:
        result = call(*inputs)
        calls.append((inputs, flat(result)))
        return result

    module = case.module()
    call = case.call(module)
    _same(case, note, module)
    torch.save(calls, f"{folder}/calls.pt")
    elsewhere.check(imports, how, folder)


def onnx(case: Case) -> None:
    """In onnxruntime, with a dynamic batch."""
    import onnxruntime

    program = portable(exported(case))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    model = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(t) for t in session.run(None, given)]

    _same(case, run, case.module())


def autocast(case: Case) -> None:
    """Under autocast to bfloat16 the same as the reference."""
    call, inputs = case.call(case.module()), case.inputs(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = call(*inputs)
        with use_backend("reference"):
            close(found, call(*inputs), 2e-2)


def bfloat16(case: Case) -> None:
    """Model and inputs in bfloat16: the same as the reference."""
    call = case.call(case.module().bfloat16())
    inputs = tuple(t.bfloat16() if t.is_floating_point() else t for t in case.inputs(3))
    found = call(*inputs)
    with use_backend("reference"):
        close(found, call(*inputs), 2e-2)


def copied(case: Case) -> None:
    """Deep copies work, and a state dict loads into another instance."""
    module, inputs = case.module(), case.inputs(3)
    fresh = copy.deepcopy(module)
    fresh.load_state_dict(module.state_dict())
    close(case.call(fresh)(*inputs), case.call(module)(*inputs))


FEATURES: dict[str, Callable[[Case], None]] = {
    "eager": eager,
    "grad": grad,
    "grad of grad": double_grad,
    "vmap": vmap,
    "jvp": jvp,
    "vmap(grad)": sample_grads,
    "compile": compiled,
    "compile dynamic": compiled_dynamic,
    "export": export,
    "export strict": export_strict,
    "dynamic sides": export_sides,
    "export trains": export_trains,
    "jit.trace": traced,
    "pt2": saved,
    "portable": made_portable,
    "portable pt2": saved_portable,
    "onnx": onnx,
    "autocast": autocast,
    "bfloat16": bfloat16,
    "deepcopy": copied,
    "AOTInductor": compiled_ahead,
}


def of(case: Case) -> list[str]:
    """The features that are tried on a case: of an operator all but those whose compiler takes half a minute for it."""
    return [feature for feature in FEATURES if not (case.operator and feature == "AOTInductor")]


def tried(case: Case, feature: str) -> str | None:
    """None where a case has a feature, or what went wrong.

    Raises:
        NothingToTryError: there is nothing to try.
    """
    try:
        FEATURES[feature](case)
    except NothingToTryError:
        raise
    except Exception as error:  # whatever it is goes into the table
        return f"{type(error).__name__}: {error}".strip()
    return None
