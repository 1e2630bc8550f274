"""f(g x) = g f(x) for every g, with a random convolutional backbone between the operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from equikern import (
    Action,
    EquiTune,
    GridAction,
    grid,
    orbit,
    orbit_mean,
    orbit_reduce,
    orbit_select,
    orbit_weighted_mean,
    trivial,
)
from helpers.looped import each
from helpers.oracles import CASES, NAMED, Case
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
GRIDS = pytest.mark.parametrize("case", [CASES[name] for name in (*NAMED, "swap", "d4xc2")], ids=repr)

Merge = Callable[[Tensor, Tensor, Action], Tensor]


def probabilities(y: Tensor) -> Tensor:
    return y.sigmoid()


# λ or ℓ is a function of the view's own output, one number a sample: it moves with the group axis
MERGES: dict[str, Merge] = {
    "mean": lambda y, s, a: orbit_mean(y, a),
    "weighted": lambda y, s, a: orbit_weighted_mean(y, s.exp(), a),
    "weighted, softmax": lambda y, s, a: orbit_weighted_mean(y, s * 3, a, "softmax"),
    "weighted, as they are": lambda y, s, a: orbit_weighted_mean(y, s, a, None),
    "select, min": lambda y, s, a: orbit_select(y, s, a),
    "select, max": lambda y, s, a: orbit_select(y, s, a, "max"),
    **{
        op: (lambda y, s, a, op=op: orbit_reduce(probabilities(y), a, op))
        for op in ("sum", "max", "min", "gmean", "hmean", "std", "tsharpen", "logodd")
    },
    "mean_std": lambda y, s, a: torch.cat(orbit_reduce(probabilities(y), a, "mean_std"), dim=1),
}


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1)]
    return nn.Sequential(*layers).double().requires_grad_(False)


def merged(backbone: nn.Module, x: Tensor, inp: Action, out: Action, merge: Merge, pool: bool) -> Tensor:
    views = orbit(x, inp)
    y: Tensor = backbone(views.flatten(0, 1))
    y = y.unflatten(0, (inp.order, len(x)))
    scores = (y * y.roll(1, -1)).flatten(2).mean(-1)
    return merge(y.mean((-1, -2)) if pool else y, scores, out)


@GRIDS
@each("merge", MERGES)
def test_equivariant(case: Case, merge: str, backbone: nn.Module) -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    action = case.action
    result = merged(backbone, x, action, action, MERGES[merge], pool=False)
    for g in range(case.order):
        turned = merged(backbone, case.forward[g](x), action, action, MERGES[merge], pool=False)
        torch.testing.assert_close(turned, case.forward[g](result))
    if case.order > 1 and case.name != "trivial":  # the backbone itself is not equivariant: the test can fail
        assert not torch.allclose(backbone(case.forward[1](x)), case.forward[1](backbone(x))) or case.name == "d4xc2"


@GRIDS
@each("merge", MERGES)
def test_invariant(case: Case, merge: str, backbone: nn.Module) -> None:
    assert isinstance(case.action, GridAction)
    out = trivial(case.action.group)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = merged(backbone, x, case.action, out, MERGES[merge], pool=True)
    for g in range(case.order):
        turned = merged(backbone, case.forward[g](x), case.action, out, MERGES[merge], pool=True)
        torch.testing.assert_close(turned, result)


@GRIDS
def test_regular_features_are_permuted(case: Case, backbone: nn.Module) -> None:
    """Keeping the group axis: x → h x moves entry g to entry g h⁻¹ and acts by h on space."""
    assert isinstance(case.action, GridAction)
    group = case.action.group
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)

    def regular(x: Tensor) -> Tensor:
        y = backbone(orbit(x, case.action).flatten(0, 1)).unflatten(0, (case.order, len(x)))
        return case.undone(y)

    features = regular(x)
    for h in range(case.order):
        moved = regular(case.forward[h](x))
        for g in range(case.order):
            to = int(group.multiply[g, group.inverse[h]])
            torch.testing.assert_close(moved[to], case.forward[h](features[g]))


@pytest.mark.parametrize("name", NAMED)
def test_equitune_is_the_papers_formula(name: str, backbone: nn.Module) -> None:
    case = CASES[name]
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    expected = torch.stack([case.inverse[g](backbone(case.forward[g](x))) for g in range(case.order)]).mean(0)
    torch.testing.assert_close(EquiTune(backbone, name, name)(x), expected)


def test_equizero_is_the_papers_formula(backbone: nn.Module) -> None:
    """g*⁻¹ M(g* x) with g* the least of ℓ(M(g x)), one sample at a time."""
    case = CASES["d4"]
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    result = merged(backbone, x, case.action, case.action, MERGES["select, min"], pool=False)
    for sample, ours in zip(x, result, strict=True):
        outputs = [backbone(case.forward[g](sample).unsqueeze(0)).squeeze(0) for g in range(8)]
        losses = [float((y * y.roll(1, -1)).mean()) for y in outputs]
        best = losses.index(min(losses))
        torch.testing.assert_close(ours, case.inverse[best](outputs[best]))


def test_gradients_reach_the_backbone_equivariantly() -> None:
    """The loss of an invariant model is the same for every view, and so is the gradient of its parameters."""
    torch.manual_seed(0)
    backbone = nn.Conv2d(2, 3, 3, padding=1).double()
    case = CASES["d4"]
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)

    def gradient(x: Tensor) -> Tensor:
        y = backbone(orbit(x, case.action).flatten(0, 1)).unflatten(0, (8, 2))
        loss = orbit_mean(y, grid("d4")).square().mean()
        return torch.autograd.grad(loss, backbone.weight)[0]

    expected = gradient(x)
    assert float(expected.abs().max()) > 1e-3
    for g in range(8):
        torch.testing.assert_close(gradient(case.forward[g](x)), expected)
