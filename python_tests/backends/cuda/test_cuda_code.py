"""The CUDA kernels' machine code, read without a GPU: nothing spilled, 16 bytes an access, names that say what runs."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import Counter
from pathlib import Path

import equikern
import pytest
import torch
from equikern.backends import choice, cuda
from equikern.views import of
from helpers.audits import compare, static_audit
from helpers.cuda_blocks import Blocks
from helpers.looped import each
from helpers.machine_code import cuobjdump, demangled, extension

INFO = equikern.build_info()
FLOATS = ("float", "double", "equikern::Half", "equikern::BFloat16")
BITS = ("unsigned char", "unsigned short", "unsigned int", "unsigned long", "equikern::cuda::Bytes16")
OPERATORS = {"Orbit": BITS, "ScaledOrbit": FLOATS, "Select": BITS, "Sum": FLOATS, "Dot": FLOATS}
ORDERS = (2, 4, 8)  # of groups of views of a plane
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


@functools.cache
def kernels() -> dict[str, Counter[str]]:
    """Instructions, registers and stack of every kernel for sm_90a by the name a profiler shows."""
    if not INFO.cuda:
        pytest.skip(f"no CUDA kernels: {INFO.cuda_reason}")
    if not any(arch.startswith("9.0a") for arch in INFO.cuda_archs):
        pytest.skip("not built for sm_90a")
    if cuobjdump() is None:
        pytest.skip("no cuobjdump")
    module = importlib.util.find_spec("equikern._C")
    assert module is not None
    assert module.origin is not None
    found: dict[str, Counter[str]] = {}
    for dump in extension(Path(module.origin))["sm_90a"]:
        for symbol, code in dump.code.items():
            names = [name.split(".") for name in _INSTRUCTION.findall(code)]
            counts = found[demangled(symbol)] = Counter(name[0] + ("128" if "128" in name else "") for name in names)
            counts.update(dump.usage[symbol])
    return found


def kernel(struct: str) -> Counter[str]:
    matches = [counts for name, counts in kernels().items() if f"<equikern::cuda::{struct} >" in name]
    assert len(matches) == 1, f"{struct}: {len(matches)} kernels"
    return matches[0]


@pytest.mark.audit
def test_as_the_tables_say(cuda_blocks: Blocks) -> None:
    found = static_audit().cuda_tables(cuda_blocks.library)
    if isinstance(found, str):
        pytest.skip(found)
    assert found
    compare(found)


@pytest.mark.audit
def test_nothing_is_spilled() -> None:
    each = sum(3 * len(types) for types in OPERATORS.values())
    others = len(BITS) + len(ORDERS) * len(FLOATS) + 2 + 2 * 2 * len(FLOATS)
    assert len(kernels()) == each + others  # OrbitStrided, SymmetrizeRuns, SumOfDots, SoftmaxMean and its gradient
    for name, counts in kernels().items():
        assert counts["STACK"] == counts["LOCAL"] == counts["LDL"] == counts["STL"] == 0, (name, counts)
        assert 16 <= counts["REG"] <= 128, name
        assert counts["ATOM"] == counts["ATOMG"] == counts["RED"] == 0, name


@pytest.mark.audit
@pytest.mark.parametrize(("operator", "element"), [(op, t) for op, types in OPERATORS.items() for t in types])
def test_16_bytes_an_access(operator: str, element: str) -> None:
    """But for what runs of dots write: an element a thread, neighbours beside one another, whatever the planes."""
    tiles, runs = kernel(f"{operator}Tiles<{element}, true>"), kernel(f"{operator}Runs<{element}>")
    assert tiles["LDG128"] >= 1
    assert tiles["STG128"] >= 1
    assert runs["LDGSTS128"] >= 1  # straight to shared memory
    assert runs["STG128"] >= 1 or operator == "Dot"
    if operator != "Select":  # whose threads read scores and note the index
        assert sum(runs[f"BAR{suffix}"] for suffix in ("", "128")) == {"Dot": 4}.get(operator, 2)


@pytest.mark.audit
@each("order", ORDERS)
@each("element", FLOATS)
def test_symmetrize_reads_and_writes_16_bytes(order: int, element: str) -> None:
    counts = kernel(f"SymmetrizeRuns<{element}, {order}>")
    assert counts["LDGSTS128"] >= 1
    assert counts["LDS128"] == counts["STG128"] >= 1  # on the way back
    assert counts["BAR"] == 3


@pytest.mark.audit
@each("log", ["false", "true"])
@each("element", FLOATS)
def test_softmax_mean_reads_and_writes_16_bytes(log: str, element: str) -> None:
    counts = kernel(f"SoftmaxMean<{element}, {log}>")
    assert counts["LDGSTS128"] >= 4
    assert counts["STG128"] >= 2
    assert counts["BAR"] == 5
    counts = kernel(f"SoftmaxMeanBackward<{element}, {log}>")
    assert counts["LDGSTS128"] >= 2
    assert counts["STG128"] >= 1
    assert counts["BAR"] == 5


@pytest.mark.parametrize(
    ("operator", "shape", "dtype", "expected"),
    [
        ("sum", (2, 64, 224, 224), torch.bfloat16, False),
        ("sum", (2, 64, 7, 7), torch.bfloat16, False),
        ("sum", (2, 64, 23, 23), torch.float32, True),
        ("sum", (2, 64, 32, 32), torch.bfloat16, False),
        ("sum", (2, 64, 37, 37), torch.bfloat16, True),
        ("sum", (2, 3, 225, 225), torch.float32, False),
        ("symmetrize", (2, 3, 96, 96), torch.bfloat16, False),
        ("symmetrize", (2, 64, 37, 37), torch.bfloat16, True),
        ("symmetrize", (2, 3, 224, 224), torch.bfloat16, False),
        ("orbit", (2, 64, 225, 225), torch.uint8, False),
        ("orbit", (2, 64, 16, 16), torch.uint8, True),
        ("select", (2, 64, 56, 56), torch.float32, False),
        ("orbit_dot", (2, 64, 37, 37), torch.float16, True),
    ],
)
def test_the_choice(
    operator: str, shape: tuple[int, ...], dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, views = torch.empty(shape, dtype=dtype, device="meta"), of("hw Wh HW wH hW wh Hw WH")
    assert choice.runs_cuda(operator, t, views) == expected
    monkeypatch.setattr(choice, "everywhere", True)
    assert choice.runs_cuda(operator, t, views)


@pytest.mark.parametrize(
    ("views", "entries", "dtype", "expected"),
    [
        (2, 50257, torch.bfloat16, True),
        (2, 49152, torch.bfloat16, True),
        (2, 32000, torch.bfloat16, True),
        (2, 16384, torch.float32, False),  # Triton holds it in registers
        (2, 8000, torch.bfloat16, False),
        (4, 50257, torch.float32, True),  # asked, and refused by its size
    ],
)
def test_the_choice_for_rows(
    views: int, entries: int, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.empty(views, 3, entries, dtype=dtype, device="meta")
    maps = of(f"permutation -1 {entries}: {' '.join('x' * views)}")
    table = torch.empty(1 + 2 * views, 40, device="meta")
    assert choice.runs_cuda_rows(y, maps, table) == expected
    monkeypatch.setattr(choice, "everywhere", True)
    assert choice.runs_cuda_rows(y, maps, table)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_calls_reach_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU every call is planned and then says that nothing can be launched."""
    if not INFO.cuda:
        pytest.skip(f"no CUDA kernels: {INFO.cuda_reason}")
    monkeypatch.setattr(choice, "everywhere", True)
    monkeypatch.setattr(cuda, "_where", lambda t: (0, 0))
    x, y = torch.zeros(2, 30, 8, 8), torch.zeros(4, 2, 30, 8, 8)
    weights, index, views = torch.ones(4, 2), torch.zeros(2, dtype=torch.int64), of("hw Wh HW wH")
    kernels = cuda.Cuda()
    calls = [
        lambda: kernels.orbit(x, y, views, None, 1.0, None, None),
        lambda: kernels.orbit(x, y, views, None, 0.5, weights, index),
        lambda: kernels.reduce(y, x, views, None, "sum", 0.25, None, None, None),
        lambda: kernels.reduce(y, x, views, None, "weighted_mean", 1.0, weights, None, None),
        lambda: kernels.orbit_dot(x, y, None, weights, views, None, None),
        lambda: kernels.orbit_dot(x, y, y, weights, views, None, weights),
        lambda: kernels.select(y, x, index, views, None, weights, True),
        lambda: kernels.select(y, x, index, views, None, None, False),
        lambda: kernels.softmax_mean(y, x, y[..., 0].clone(), of(". . . ."), None, "probs"),
        lambda: kernels.softmax_mean(y, x, y[..., 0].clone(), of(". . . ."), None, "log_probs"),
        lambda: kernels.softmax_mean_backward(x, y, y[..., 0].clone(), y, of(". . . ."), None, "probs"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="CUDA"):
            call()
    empty = y[:, :0]  # of which there is nothing to launch
    kernels.softmax_mean_backward(x[:0], empty, empty[..., 0].clone(), empty, of(". . . ."), None, "probs")
