"""Wrappers as programs: exported with a dynamic batch, compiled once for all batches, traced; tables inside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from equikern import (
    Action,
    CanonicalLambdaEquiTune,
    EquiTune,
    EquiZero,
    GroupConv2d,
    GroupLinear,
    InvariantSymmetric,
    LambdaEquiTune,
    ProductEquiTune,
    RegularLift,
    cyclic_group,
    field,
    grid,
    matrix,
    orbit,
    orbit_mean,
    permutation,
    vector_frame,
)
from helpers import audited
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

TURN = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
SWAP = permutation([[0, 1, 2, 3], [1, 0, 3, 2]], signs=[[1, 1, 1, 1], [1, 1, -1, -1]])


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


SQUARE, WIDE = (3, 8, 8), (3, 6, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grid": (lambda: EquiTune(conv(), "d4", "d4"), SQUARE),
    "rectangle": (lambda: EquiTune(conv(), "d4", "d4"), WIDE),
    "rectangle in parts": (lambda: EquiTune(conv(), "d4", "d4", views_per_forward=3), WIDE),
    "rectangle, std": (lambda: EquiTune(conv(), "c4", "c4", reduce="std"), WIDE),
    "field": (lambda: EquiTune(conv(), "c4", field(grid("c4"), "vector")), SQUARE),
    "mixed field": (lambda: EquiTune(conv(), "c4", field(grid("c4"), TURN)), SQUARE),
    "permutation": (lambda: EquiTune(nn.Linear(4, 4), SWAP, SWAP), (4,)),
    "matrices": (lambda: EquiTune(nn.Linear(2, 2), TURN, TURN), (2,)),
    "parts": (lambda: EquiTune(conv(), "c4", "c4", views_per_forward=1), SQUARE),
    "lambda": (lambda: LambdaEquiTune(classifier(), "d4", "trivial", 8, features="1"), SQUARE),
    "frozen": (lambda: LambdaEquiTune(classifier(), "d4", "trivial", 8, features="1", frozen=True), SQUARE),
    "zero": (lambda: EquiZero(classifier(), "d4", "trivial"), SQUARE),
    "lift": (lambda: RegularLift(conv(), "c4", "c4"), SQUARE),
    "product": (lambda: ProductEquiTune(conv(), ["hflip", "vflip"], ["hflip", "vflip"], verified="never"), SQUARE),
    "symmetric": (lambda: InvariantSymmetric(conv(), "c4", "flips"), SQUARE),
    "canonical": (
        lambda: CanonicalLambdaEquiTune(nn.Sequential(nn.Flatten(), nn.Linear(10, 3)), vector_frame, TURN),
        (5, 2),
    ),
    "group conv": (lambda: GroupConv2d("c4", 3, 4, 3, inp="trivial"), SQUARE),
    "group linear": (lambda: GroupLinear(cyclic_group(3), 5, 7), (5, 3)),
}


def made(name: str, batch: int = 4) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    return make().eval(), torch.randn(batch, *shape)


@pytest.mark.parametrize(
    ("name", "strict"),
    [(name, strict) for k, name in enumerate(CASES) for strict in (False, True) if audited.THOROUGH or strict == k % 2],
)
def test_exported_with_a_dynamic_batch(name: str, strict: bool) -> None:
    model, x = made(name)
    batch = torch.export.Dim("batch", min=2, max=1024)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict).module()
        more = torch.cat((x, x.flip(0), x))
        torch.testing.assert_close(program(more), model(more), rtol=1e-5, atol=1e-6)


def test_exported_programs_need_no_action(tmp_path: Path) -> None:
    """They run in a process that has imported equikern and made nothing."""
    names = "permutation", "mixed field", "field"
    for name in names:
        model, x = made(name)
        with torch.no_grad():
            torch.export.save(torch.export.export(model, (x,)), tmp_path / f"{name}.pt2")
            torch.save((x, model(x)), tmp_path / f"{name}.pt")
    code = (
        "import sys, torch, equikern\n"
        "for name in sys.argv[2:]:\n"
        "    program = torch.export.load(f'{sys.argv[1]}/{name}.pt2').module()\n"
        "    x, expected = torch.load(f'{sys.argv[1]}/{name}.pt')\n"
        "    assert torch.allclose(program(x), expected, atol=1e-6), name\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *names], check=True)


@pytest.mark.parametrize("name", ["grid", "rectangle", "field", "permutation", "lambda", "zero"])
def test_compiled_once_for_all_batches(name: str) -> None:
    model, x = made(name, 2)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in range(2, 7):
            more = x.repeat(batch, *(1,) * (x.dim() - 1))
            torch.testing.assert_close(compiled(more), model(more))
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in CASES if name != "zero"])
def test_traced(name: str) -> None:
    model, x = made(name)
    traced = torch.jit.trace(model, (x,))
    torch.testing.assert_close(traced(x.flip(0)), model(x.flip(0)))


def test_tables_move_with_the_model_and_keep_their_dtype() -> None:
    model = EquiTune(nn.Linear(2, 2), TURN, TURN)
    assert not [name for name in model.state_dict() if "table" in name]
    half = model.to(torch.float16).to("meta").to_empty(device="cpu")
    kept = half.get_buffer("_tables.table0_0")
    assert kept.dtype == torch.float64
    assert torch.equal(kept, TURN.maps.tables.own[0])
    assert model.to("meta").get_buffer("_tables.table0_1").device.type == "meta"


@pytest.mark.parametrize("action", [SWAP, TURN, field(grid("c4"), "vector")], ids=lambda action: action.name)
def test_operators_take_fake_tensors_beside_an_action(action: Action) -> None:
    shape = (3, 2, 5, 5) if action.sides else (3, action.size)
    with FakeTensorMode():
        views = orbit(torch.empty(shape), action)
        assert (views.shape, orbit_mean(views, action).shape) == ((action.order, *shape), shape)
