"""Every instruction set this machine has, not only the widest, which all other tests run."""

from __future__ import annotations

import subprocess

import pytest
from helpers import fresh
from helpers.thorough import THOROUGH

SCRIPT = """
import random, sys
import torch
from equikern import _C
from equikern.backends.cpu import Cpu
from equikern.backends.reference import Reference
from equikern.views import of
from equikern.views.permutation import permutation_table

assert _C.cpu_isa() == sys.argv[1], _C.cpu_isa()
cpu, reference = Cpu(), Reference()
torch.manual_seed(0)
random.seed(0)
WORDS = "hw Wh HW wH hW Hw wh WH".split()
SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 14, 16, 17, 31, 32, 33, 40, 67)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

def values(shape, dtype, kind):
    if kind == "sliced":
        return values([n + 3 for n in shape], dtype, "dense")[tuple(slice(1, 1 + n) for n in shape)]
    if kind == "channels last":
        return values((*shape[:-3], *shape[-2:], shape[-3]), dtype, "dense").movedim(-1, -3)
    return (torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1).to(dtype)

def compare(name, ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}")

for _ in range(int(sys.argv[2])):
    dtype = random.choice(list(TOLERANCE))
    tolerance = TOLERANCE[dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    side, code = random.choice(SIDES), " ".join(random.choices(WORDS, k=random.choice((1, 2, 4, 8))))
    maps, views = (of(code), None), of(code).order
    batch = random.choice((1, 2, 5, 40) if side < 40 or random.random() < 0.2 else (1, 2))
    shape = (batch, random.choice((1, 3, 8)), side, side)
    kinds = "dense", "sliced", "channels last"
    x, y = values(shape, dtype, random.choice(kinds)), values((views, *shape), dtype, random.choice(kinds))
    weights, scores = torch.rand(views, shape[0], dtype=wide) + 0.1, torch.rand(views, shape[0])
    for scale, w in ((1.0, None), (0.4, None), (0.4, weights)):
        ours, theirs = (torch.full((views, *shape), float("nan"), dtype=dtype) for _ in range(2))
        cpu.orbit(x, ours, *maps, scale, w, None)
        reference.orbit(x, theirs, *maps, scale, w, None)
        compare("orbit", ours, theirs, 0.0 if scale == 1.0 else tolerance)
    for op in ("sum", "max", "min", "gmean", "hmean", "tsharpen", "logodd", "log1p", "median", "std", "weighted_mean"):
        w = weights if op == "weighted_mean" or (op == "sum" and random.random() < 0.5) else None
        ours, theirs = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
        cpu.reduce(y, ours, *maps, op, 1.0, w, None, None)
        reference.reduce(y, theirs, *maps, op, 1.0, w, None, None)
        compare(op, ours, theirs, tolerance)
    tied = (y * 4).round() / 4 if random.random() < 0.5 else y
    grad, spread = values(shape, dtype, random.choice(kinds)), values(shape, dtype, random.choice(kinds))
    for op in ("max", "min", "std", "mean_std"):
        ours, theirs = (torch.full((views, *shape), float("nan"), dtype=dtype) for _ in range(2))
        for backend, into in ((cpu, ours), (reference, theirs)):
            backend.reduce_backward(grad, spread if op == "mean_std" else None, tied, into, *maps, op)
        compare(f"gradient of {op}", ours, theirs, tolerance if op in ("max", "min") else 50 * tolerance)
    for dims in (0, 1, 2):
        ours, theirs = (torch.full(shape[:dims], float("nan"), dtype=wide) for _ in range(2))
        cpu.variance(y, ours, *maps)
        reference.variance(y.double(), theirs, *maps)
        compare(f"variance, {dims} dims", ours, theirs, 1e-5)
        factors = torch.rand(shape[:dims], dtype=wide)
        ours, theirs = (torch.full((views, *shape), float("nan"), dtype=dtype) for _ in range(2))
        for backend, into in ((cpu, ours), (reference, theirs)):
            backend.variance_backward(factors, y, into, *maps)
        compare(f"gradient of the variance, {dims} dims", ours, theirs, tolerance)
    planes, down = values((batch, 3, side, side + 3), dtype, "dense"), torch.rand(side, 3, dtype=torch.float64)
    down, across = down * (down > 0.3), torch.rand(side + 3, 4, dtype=torch.float64)
    ours, theirs = (torch.full((batch, 3, 3, 4), float("nan"), dtype=torch.float64) for _ in range(2))
    cpu.coarse(planes, down, across, ours)
    reference.coarse(planes, down, across, theirs)
    compare("coarse", ours, theirs, 1e-13)
    ours, theirs = (torch.full((views, *shape), float("nan"), dtype=dtype) for _ in range(2))
    dots, exact = torch.empty(views, shape[0], dtype=wide), torch.empty(views, shape[0], dtype=torch.float64)
    cpu.orbit_dot(x, y, ours, dots, *maps, weights)
    reference.orbit_dot(x.double(), y.double(), None, exact, *maps, None)
    reference.orbit(x, theirs, *maps, 1.0, weights, None)
    compare("orbit_dot", ours, theirs, tolerance)
    compare("dots", dots.double(), exact, 1e-5)
    ours, theirs = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
    index, chosen = torch.empty(shape[0], dtype=torch.int64), torch.empty(shape[0], dtype=torch.int64)
    cpu.select(y, ours, index, *maps, scores, True)
    reference.select(y, theirs, chosen, *maps, scores, True)
    compare("select", ours, theirs, 0.0)
    assert torch.equal(index, chosen)
    labels = torch.randint(0, 4, y.shape).to(random.choice((torch.bool, torch.uint8, torch.int16, torch.int64)))
    ours, theirs = (torch.full(shape, 1, dtype=labels.dtype) for _ in range(2))
    cpu.reduce(labels, ours, *maps, "vote", 1.0, None, None, None)
    reference.reduce(labels, theirs, *maps, "vote", 1.0, None, None, None)
    compare("vote", ours, theirs, 0.0)

def permutations(order, size):
    views = [torch.arange(size)] + [torch.randperm(size) for _ in range(order - 1)]
    if random.random() < 0.5:  # a few entries
        few = torch.randperm(size)[: size // 8]
        views[1:] = [views[0].scatter(0, few, few.roll(k + 1)) for k in range(order - 1)]
    sources = torch.stack(views)
    words = " ".join("." if torch.equal(view, views[0]) else "x" for view in views)
    return of(f"permutation -1 {size}: {words}"), permutation_table(sources, sources.argsort(1))

for _ in range(60):
    dtype = random.choice(list(TOLERANCE))
    tolerance = TOLERANCE[dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    order, size, rows = random.choice((1, 2, 3)), random.choice((1, 5, 8, 40, 67, 1000, 5000)), random.choice((1, 3, 7))
    maps = random.choice((permutations(order, size), (of(" ".join("." * order)), None)))
    y, grad = torch.randn(order, rows, size).to(dtype), torch.randn(rows, size).to(dtype)
    target, classes = torch.randint(0, size, (rows,)), torch.rand(size)
    def run(backend, y, grad):
        results = []
        def made(like, dtype):
            results.append(torch.full(like.shape, float("nan"), dtype=dtype))
            return results[-1]
        number = torch.float64 if y.dtype == torch.float64 else wide
        backend.reduce(y, made(y[0], y.dtype), *maps, "sum", 1 / order, None, None, None)
        backend.orbit(grad, made(y, y.dtype), *maps, 1.0, None, None)
        for space in ("probs", "log_probs"):
            lse = torch.empty(order, rows, dtype=number)
            backend.softmax_mean(y, made(y[0], y.dtype), lse, *maps, space)
            backend.softmax_mean_backward(grad, y, lse, made(y, y.dtype), *maps, space)
        for kind in ("max_prob", "entropy", "margin", "max"):
            scores = made(y[..., 0], number)
            backend.score(y, scores, kind)
            if backend is cpu:
                chosen, theirs = torch.full((2, rows), 99)
                ours, view = torch.zeros(2, rows, size, dtype=y.dtype)
                cpu.score_select(y, ours, chosen, *maps, kind, True)
                reference.select(y, view, theirs, *maps, scores, True)
                compare("chosen", chosen, theirs, 0.0)
                compare("score_select", ours, view, 0.0)
        for space in ("logits", "probs", "log_probs"):
            for smoothing, z_loss in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.1, 0.01)):
                loss, slope = made(y[0, :, 0], number), made(y, y.dtype)
                terms = z_loss, 0.0, classes.to(number) if z_loss else None
                backend.cross_entropy(y, target, loss, slope, *maps, space, -100, smoothing, None, *terms)
            if dtype.itemsize > 2:  # else what is capped is rounded once more
                loss, slope = made(y[0, :, 0], number), made(y, y.dtype)
                backend.cross_entropy(y, target, loss, slope, *maps, space, -100, 0.0, None, 0.0, 2.0, None)
        return results
    for k, (ours, theirs) in enumerate(zip(run(cpu, y, grad), run(reference, y.double(), grad.double()))):
        scale = max(1.0, float(theirs.nan_to_num(0, 0, 0).abs().max()))  # the margin of a tie is infinite
        compare(f"rows {k}", ours.double() / scale, theirs / scale, tolerance)
"""


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return fresh.run("-c", *arguments, EQUIKERN_CPU=name)


def _features() -> list[str]:
    try:
        from equikern import _C
    except ImportError:  # installed without a C++ compiler: there is nothing to choose among
        return []
    return list(_C.cpu_features())


@pytest.mark.parametrize("name", _features())
def test_every_kernel(name: str) -> None:
    done = _run(name, SCRIPT, name, "150" if THOROUGH else "50")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not _features(), reason="equikern is installed without its C++ kernels")
def test_an_instruction_set_that_is_not_there() -> None:
    done = _run("mmx", "import torch, equikern; equikern.orbit(torch.rand(2, 2), equikern.grid('c4'))")
    assert "ValueError: EQUIKERN_CPU: expected an instruction set of this machine, got 'mmx'" in done.stderr
