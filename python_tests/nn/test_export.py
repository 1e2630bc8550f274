"""Wrappers as programs: exported with dynamic sizes, compiled for all batches, traced; tables inside.

The cases and what is asked of each are those of ``bench/matrix``.
"""

from __future__ import annotations

import pytest
import torch
from bench.matrix import features
from bench.matrix.__main__ import KNOWN
from bench.matrix.cases import CASES, SWAP, TURN, WRAPPERS, Case
from equikern import Action, EquiTune, field, grid, orbit, orbit_mean
from helpers.thorough import THOROUGH
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("case", "strict"),
    [(c, strict) for k, c in enumerate(WRAPPERS) for strict in (False, True) if THOROUGH or strict == k % 2],
)
def test_exported_with_a_dynamic_batch(case: Case, strict: bool) -> None:
    (features.export_strict if strict else features.export)(case)


@pytest.mark.parametrize("case", [c for k, c in enumerate(WRAPPERS) if c.sides and (THOROUGH or k % 3 == 1)])
def test_exported_with_dynamic_sides(case: Case) -> None:
    features.export_sides(case)


@pytest.mark.parametrize(
    "name", ["EquiTune, rectangle", "EquiTune, keywords", "LambdaEquiTune, dict", "EquiZero", "GroupLinear"]
)
def test_compiled_with_dynamic_sizes_and_gradients(name: str) -> None:
    features.compiled_dynamic(BY_NAME[name])


def test_traced() -> None:
    """All but what torch.jit.trace takes of no model, see ``KNOWN``."""
    for case in WRAPPERS:
        if (case.name, "jit.trace") not in KNOWN:
            features.traced(case)


def test_a_choice_in_parts_trains_in_programs_made_without_gradients() -> None:
    features.export_trains(BY_NAME["EquiZero, dict in parts"])


def test_the_frozen_features_stay_frozen_in_programs() -> None:
    """Also where gradients are off while the program is made, and in forward mode, which does not ask."""
    case = BY_NAME["LambdaEquiTune, frozen"]
    features.export_trains(case)
    features.jvp(case)


def test_compiled_ahead_of_time() -> None:
    """AOTInductor, with a dynamic batch, in a process that has imported equikern and made nothing."""
    for name in ("EquiTune, permutation", "EquiTune, keywords"):
        features.compiled_ahead(BY_NAME[name])


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
