"""Every operator on a CUDA device, with both kinds of GPU kernels, against the reference. Collected only with a GPU."""

from __future__ import annotations

import equikern
import pytest
import torch
from equikern import grid, orbit, orbit_mean, orbit_select, orbit_weighted_mean, symmetrize
from helpers.calls import CALLS, DIFFERENTIABLE, Call, gradients, results
from helpers.gpu import GPU, close, needs_gpu, plainly
from helpers.strategies import FLOATS, LAYOUTS, bits, laid_out, random_bits, random_values
from torch import Tensor

SIDES = [1, 7, 8, 14, 16, 37, 56, 65, 224]


def both(call: Call, action: equikern.Action, arguments: list[Tensor], backward: bool = False) -> None:
    def run(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return gradients(call, action, tensors) if backward else results(call.run(action, *tensors))

    found = run([t.to(GPU) for t in arguments])
    for ours, expected in zip(found, plainly(lambda: run(arguments)), strict=True):
        close(ours, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("group", ["c4", "d4", "flips"])
@pytest.mark.parametrize("name", CALLS)
def test_forward(gpu: None, name: str, group: str, side: int, dtype: torch.dtype) -> None:
    call, action = CALLS[name], grid(group)
    both(call, action, call.tensors(action, (2, 5), side, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("side", [7, 16, 37, 65])
@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=repr)
def test_backward(gpu: None, call: Call, side: int, dtype: torch.dtype) -> None:
    both(call, grid("d4"), call.tensors(grid("d4"), (2, 5), side, dtype), backward=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 0), (3, 5, 13, 21), (2, 16, 32, 32), (1, 2, 70, 100)])
def test_layouts(gpu: None, shape: tuple[int, ...], layout: str) -> None:
    """Empty tensors, rectangles and strides of every kind; bits and sums."""
    action = grid("flips")
    x = laid_out(random_bits(shape, torch.int16), layout)
    found = orbit(laid_out(x.to(GPU), layout), action)
    assert torch.equal(bits(found.cpu()), bits(plainly(lambda: orbit(x, action))))
    y = laid_out(random_values((4, *shape), torch.float32), layout)
    on_gpu = laid_out(y.to(GPU), layout)
    close(orbit_mean(on_gpu, action), plainly(lambda: orbit_mean(y, action)))
    weights = random_values((4, *shape[:2]), torch.float32, 1, "positive")
    there = weights.to(GPU)
    close(orbit_weighted_mean(on_gpu, there, action), plainly(lambda: orbit_weighted_mean(y, weights, action)))
    close(orbit_select(on_gpu, there, action), plainly(lambda: orbit_select(y, weights, action)))
    close(symmetrize(on_gpu[0], action), plainly(lambda: symmetrize(y[0], action)))


@pytest.mark.parametrize("side", [7, 37, 64, 224])
def test_repeatable(gpu: None, side: int) -> None:
    call = CALLS["weighted"]
    arguments = [t.to(GPU) for t in call.tensors(grid("d4"), (4, 6), side)]
    first = gradients(call, grid("d4"), arguments)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(call, grid("d4"), arguments), strict=True))


@needs_gpu
def test_under_graph_capture(gpu: None) -> None:
    """A captured call is replayed with other data."""
    action = grid("d4")
    y = torch.randn(8, 2, 3, 37, 37, device=GPU)
    out = orbit_mean(y, action)  # compiles, outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        orbit_mean(y, action, out=out)
    y.normal_()
    graph.replay()
    close(out, plainly(lambda: orbit_mean(y.cpu(), action)))


@needs_gpu
@pytest.mark.parametrize("side", [37, 64])
def test_more_than_2_to_the_31_elements(gpu: None, side: int) -> None:
    """An int8 orbit over 2³¹ elements, checked plane by plane at both ends and around the limit."""
    planes = 2**31 // (4 * side * side) + 1000
    need = 5 * planes * side * side + 2**28
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.1f} GiB of free GPU memory")
    x = torch.randint(-128, 127, (planes, side, side), dtype=torch.int8, device=GPU)
    views = orbit(x, grid("c4"))
    assert views.numel() > 2**31
    for k in range(4):
        for at in range(0, planes, 4096):
            assert torch.equal(views[k, at : at + 4096], x[at : at + 4096].rot90(k, (-2, -1)))


@needs_gpu
def test_more_than_2_to_the_31_elements_summed(gpu: None) -> None:
    planes, side = 2**31 // (4 * 37 * 37) + 1000, 37
    need = 13 * planes * side * side
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.1f} GiB of free GPU memory")
    y = torch.zeros(4, planes, side, side, dtype=torch.float16, device=GPU)
    y[3, -1].normal_()
    mean = orbit_mean(y, grid("c4"))
    assert not mean[:-1].any()
    close(mean[-1], plainly(lambda: orbit_mean(y[:, -1].cpu(), grid("c4"))))
