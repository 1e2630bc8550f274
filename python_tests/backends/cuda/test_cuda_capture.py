"""CUDA graphs: forward and backward captured, the first call of all included. Collected only with a GPU."""

from __future__ import annotations

import contextlib
import pickle

import pytest
import torch
from equikern import grid, orbit_mean
from helpers.calls import DIFFERENTIABLE, Call, gradients
from helpers.gpu import GPU, close, needs_gpu, plainly
from helpers.oracles import CASES, Case
from helpers.repository import ROOT, python
from helpers.strategies import random_values

pytestmark = needs_gpu

FIRST = """
import sys, torch, equikern
sys.path.insert(0, sys.argv[3])
from helpers.oracles import CASES
case = CASES[sys.argv[1]]
x = torch.randn(case.shape(2, 3, side=6), generator=torch.Generator().manual_seed(1))
on_gpu, graph = x.cuda(), torch.cuda.CUDAGraph()
equikern.warmup(equikern.orbit, tuple(x.shape), case.action) if sys.argv[2] == "warm" else None
with torch.cuda.graph(graph):
    views = equikern.orbit(on_gpu, case.action)
for _ in range(2):
    views.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(views.cpu(), case.orbit(x), atol=1e-5), "other values than without a graph"
"""


@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=repr)
def test_forward_and_backward(gpu: None, call: Call) -> None:
    """Replayed with other data."""
    action = grid("d4")
    arguments = [t.to(GPU) for t in call.tensors(action, (2, 3), 13)]
    gradients(call, action, arguments)  # compiles, outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients(call, action, arguments)
    other = call.tensors(action, (2, 3), 13, seed=7)
    for t, values in zip(arguments, other, strict=True):
        t.copy_(values)
    graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(found, plainly(lambda: gradients(call, action, other)), strict=True):
        close(ours, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=repr)
def test_tables_that_first_go_there_in_a_capture(gpu: None, case: Case) -> None:
    """A table cannot be copied there while one is captured, and what is said tells what to do; after it all is well."""
    x = random_values(case.shape(2, 3, side=6), torch.float32, 1)
    views = plainly(lambda: case.orbit(x))
    on_gpu, graph = views.to(GPU), torch.cuda.CUDAGraph()
    orbit_mean(on_gpu, case.action)  # compiles, outside of the capture
    action = pickle.loads(pickle.dumps(case.action))  # whose tables are on the CPU alone
    says = pytest.raises(ValueError, match="warmup") if action.maps.tables.own else contextlib.nullcontext()
    with says, torch.cuda.graph(graph):
        orbit_mean(on_gpu, action)
    close(orbit_mean(on_gpu, action), plainly(lambda: orbit_mean(views, case.action)))


@pytest.mark.parametrize("warm", ["warm", "cold"])
@pytest.mark.parametrize("name", ["d4", "cycle3", "matrix2", "flow"])
def test_the_first_call_of_a_process(name: str, warm: str) -> None:
    """In a process that has run no kernel; after ``warmup``, which compiles, and without: right, or an error that says
    so.
    """
    done = python("-c", FIRST, name, warm, str(ROOT / "python_tests"))
    assert done.returncode == 0 or (warm == "cold" and "captur" in done.stderr), done.stderr
    assert "other values" not in done.stderr
