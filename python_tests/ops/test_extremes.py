"""Values at the ends of the range: confident models, masked words, spreads far from zero, memory that is not there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from equikern import (
    cyclic_group,
    field,
    grid,
    linear_orbit_cross_entropy,
    matrix,
    orbit,
    orbit_cross_entropy,
    orbit_mean,
    orbit_reduce,
    orbit_score,
    orbit_select,
    permutation,
    principal_frame,
    symmetrize,
    trivial,
    vector_frame,
)
from helpers import definitions, fresh
from helpers.looped import each
from torch import Tensor

pytestmark = pytest.mark.usefixtures("backend")

SWAP = permutation([[*range(6)], [1, 0, *range(2, 6)]])


# -- spreads of numbers near the end of the range


@each("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_spreads_hold_up_to_the_sum_that_is_stated(dtype: torch.dtype) -> None:
    """Views that are alike, and views around zero with the largest deviations."""
    action, largest = trivial(cyclic_group(8)), 1.7e308 if dtype == torch.float64 else 3.3e38
    y = torch.full((8, 33), largest / 8, dtype=dtype)
    mean, std = orbit_reduce(y, action, "mean_std")
    torch.testing.assert_close(mean, y[0])
    assert bool((std == 0).all())
    assert bool((orbit_reduce(y, action, "std") == 0).all())
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(4)[:, None]
    torch.testing.assert_close(orbit_reduce(1e18 * signs.expand(8, 33), action, "std"), (1e18 * signs[0]).expand(33))


# -- scores that do not saturate


@pytest.mark.parametrize("kind", ["max_prob", "margin", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_confident_rows_have_different_scores(kind: Any, dtype: torch.dtype) -> None:
    """Gaps of 18 to 60, whose probabilities all round to 1 in float32."""
    gaps = torch.tensor([18.0, 20.0, 30.0, 40.0, 60.0])
    y = torch.zeros(5, 300, dtype=dtype)
    y[torch.arange(5), torch.tensor([0, 7, 150, 255, 299])] = gaps.to(dtype)
    found = orbit_score(y, kind)
    assert bool((found[1:] < found[:-1]).all()), found
    torch.testing.assert_close(found.double(), definitions.score(y.double(), kind), rtol=1e-4, atol=0)


def test_the_choice_does_not_depend_on_the_frame() -> None:
    """Two sure views: the surer one is chosen, whichever comes first."""
    y = torch.zeros(2, 3, 50)
    y[0, :, 3], y[1, :, 5] = 25.0, 35.0
    action = trivial(cyclic_group(2))
    for kind in ("max_prob", "margin", "entropy"):
        one, other = (orbit_select(t, kind, action) for t in (y, y.flip(0)))  # type: ignore[arg-type]
        assert torch.equal(one, y[1])
        assert torch.equal(other, y[1])


def test_the_gradient_of_equal_largest_logits_goes_to_the_first() -> None:
    y = torch.tensor([[1.0, 3.0, 3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(orbit_score(y, "max_prob").sum(), y)
    p = y.detach().softmax(-1)
    torch.testing.assert_close(grad, p - torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("row", [[math.nan, 1.0], [-math.inf, -math.inf], [math.nan], [-math.inf], [math.inf, 1.0]])
def test_rows_without_a_distribution_have_no_score(row: list[float]) -> None:
    for kind in ("max_prob", "margin", "entropy"):
        assert bool(orbit_score(torch.tensor(row), kind).isnan()), kind  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [8, 1000, 5000, 40_000])
def test_entropy_of_rows_that_are_masked_by_the_lowest_number(n: int) -> None:
    """As language models mask: the distance to the largest, times a probability of zero, is nothing."""
    y = torch.full((n,), torch.finfo(torch.float32).min)
    y[-3:] = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(orbit_score(y, "entropy"), orbit_score(y[-3:], "entropy"))
    torch.testing.assert_close(orbit_score(y.flip(0), "entropy"), orbit_score(y[-3:], "entropy"))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_margin_of_a_logit_that_is_alone_has_no_slope(place: int) -> None:
    y = torch.full((3,), -math.inf)
    y[place] = 5.0
    y.requires_grad_()
    loss = orbit_score(y, "margin")
    assert loss.item() == 0
    assert torch.autograd.grad(loss, y)[0].tolist() == [0, 0, 0]


# -- losses of words that nearly or quite cannot be


def extreme_logits(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind == "masked":
        y[..., 4] = -math.inf
    elif kind == "masked in one view":
        y[1, :, 4] = -math.inf
    else:
        y[..., 2] += 900.0 if dtype == torch.float64 else 150.0
    return y.to(dtype)


TARGET = torch.tensor([0, 3, 5, -100])


@each("dtype", [torch.float64, torch.float32])
@each("kind", ["masked", "masked in one view", "far"])
@pytest.mark.parametrize("space", [None, "probs", "log_probs"])
def test_losses_are_differentiable_however_small_a_probability(kind: str, space: Any, dtype: torch.dtype) -> None:
    y = extreme_logits(kind, dtype).requires_grad_()
    loss = orbit_cross_entropy(y, TARGET, SWAP, space)
    (once,) = torch.autograd.grad(loss, y, create_graph=True)
    (plain,) = torch.autograd.grad(orbit_cross_entropy(y, TARGET, SWAP, space), y)
    assert bool(once.isfinite().all())
    torch.testing.assert_close(once, plain, rtol=1e-4, atol=1e-6)
    (twice,) = torch.autograd.grad((once * torch.linspace(0, 1, once.numel(), dtype=dtype).view(once.shape)).sum(), y)
    assert bool(twice.isfinite().all())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["masked", "far"])
def test_losses_from_hidden_states_too(kind: str, smoothing: float) -> None:
    """The masks are a bias of −∞, or one far below the others."""
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 4, 5, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, 5, generator=g, dtype=torch.float64).requires_grad_()
    bias = torch.zeros(6, dtype=torch.float64)
    bias[4] = -math.inf if kind == "masked" else -900.0

    def loss() -> Tensor:
        return linear_orbit_cross_entropy(hidden, weight, TARGET, SWAP, "probs", bias=bias, label_smoothing=smoothing)

    if kind == "masked" and smoothing:  # which asks for what cannot be
        assert loss().item() == math.inf
        return
    once = torch.autograd.grad(loss(), (hidden, weight), create_graph=True)
    plain = torch.autograd.grad(loss(), (hidden, weight))
    for a, b in zip(once, plain, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b)


# -- spreads and frames


@pytest.mark.parametrize(
    "action", [trivial(cyclic_group(8)), grid("d4"), grid("flips3d"), field(grid("c4"), "regular")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spreads_far_from_zero(action: Any, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    moved = {0: (40,), 2: (9, 9), 3: (9, 9, 9)}[action.sides]
    lead = (4,) if isinstance(action, type(field(grid("c4"), "regular"))) else (2,)
    y = (1000 + 0.05 * torch.randn(action.order, 3, *lead, *moved, generator=g, dtype=torch.float64)).to(dtype)
    v = torch.stack([action.act(int(action.group.inverse[k]), view) for k, view in enumerate(y)]).double()
    exact = v.std(0, correction=0)
    mean, std = orbit_reduce(y, action, "mean_std")
    rounding = 2 * torch.finfo(dtype).eps
    for found in (std, orbit_reduce(y, action, "std")):
        # In float64 torch's own rounding of the mean is 1e-12 of so small a spread.
        room = 1e-11 if dtype == torch.float64 else 5e-7
        assert float(((found.double() - exact).abs() / exact).max()) < room
    assert float(((mean.double() - v.mean(0)).abs() / 1000).max()) < rounding


@pytest.mark.parametrize("views", [[1.0, 1.0, -math.inf], [-math.inf, 1.0, 2.0], [1.0, math.inf, 2.0]])
def test_a_mean_takes_infinities_along(views: list[float]) -> None:
    action = trivial(cyclic_group(3))
    mean, std = orbit_reduce(torch.tensor(views).repeat(40, 1).T.contiguous(), action, "mean_std")
    assert torch.equal(mean, torch.tensor(views).mean().expand(40))
    assert bool(std.isnan().all())


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_frames_of_any_size(scale: float) -> None:
    for d in (2, 3):
        x = torch.randn(5, 4, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        for frame in (vector_frame, principal_frame):
            exact = frame(x)
            found = frame((x * scale).float())
            tolerance = 1e-4 if scale > 1e-38 else 1e-2  # subnormal numbers have few digits
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


# -- g is g, also where the list of maps is no group


def test_samples_are_applied_and_not_undone() -> None:
    mats = torch.eye(2, dtype=torch.float64) + torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(3))
    samples = matrix(mats, closed=False)
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(symmetrize(x, samples), orbit(x, samples).mean(0))
    with pytest.raises(ValueError, match="plus: expected None for maps that are no whole group"):
        orbit_mean(torch.randn(3, 5, 2), samples, plus=torch.randn(5, 2))


def test_what_a_product_does_with_values_that_are_none() -> None:
    """0 · ∞ is NaN, as in any product of matrices, on every backend; what only moves stays where it moves."""
    x = torch.tensor([[1.0, math.inf], [2.0, 3.0]])
    turned = orbit(x, matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]))
    assert bool(turned[:, 0].isnan().any(-1).all())
    assert bool(turned[:, 1].isfinite().all())
    flow = torch.zeros(2, 3, 3)
    flow[0, 1, 1] = math.nan
    moved = orbit(flow, field(grid("c4"), "vector"))
    assert moved.isnan().sum((1, 2, 3)).tolist() == [1, 1, 1, 1]


# -- memory


def test_checkpoints_know_what_a_loss_keeps() -> None:
    """Its gradient is saved where autograd's hooks see it: nothing of it stays between forward and backward."""
    y = torch.randn(2, 50, 6, requires_grad=True)
    target = torch.arange(50) % 6
    kept: list[Tensor] = []

    def pack(t: Tensor) -> int:
        kept.append(t)
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: kept[k]):
        loss = orbit_cross_entropy(y, target, SWAP, "probs")
    assert any(t.shape == y.shape and t is not y for t in kept)
    plain = torch.autograd.grad(orbit_cross_entropy(y, target, SWAP, "probs"), y)[0]
    for factor in (1.0, 2.0, 3.0):  # the first backward takes what is kept, the others make it anew
        (grad,) = torch.autograd.grad(loss, y, torch.tensor(factor), retain_graph=True)
        torch.testing.assert_close(grad, factor * plain)

    def step(t: Tensor) -> Tensor:
        return orbit_cross_entropy(t, target, SWAP, "probs")

    (again,) = torch.autograd.grad(torch.utils.checkpoint.checkpoint(step, y, use_reentrant=False), y)
    torch.testing.assert_close(again, plain)


SCRATCH = """
import resource, sys, torch
from equikern import orbit_mean, permutation
torch.set_num_threads(int(sys.argv[1]))
n = 1_500_000
y = torch.randn(n, 4, 8).permute(2, 1, 0)  # rows whose numbers lie apart are copied: 46 MiB a thread
action = permutation([[*range(8)], [1, 0, *range(2, 8)]])
from equikern import cyclic_group, trivial
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
out = torch.empty(4, n)
orbit_mean(y[..., :1000], trivial(cyclic_group(8)), "probs", out=out[:, :1000])
out.zero_()
before = resident()
if sys.argv[2] == "flat":
    orbit_mean(y, trivial(cyclic_group(8)), "probs", out=out)
    assert resident() - before < 24, resident() - before
else:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        orbit_mean(y, trivial(cyclic_group(8)), "probs", out=out)
    except MemoryError:
        pass
    else:
        raise AssertionError("there was memory")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    orbit_mean(y, trivial(cyclic_group(8)), "probs", out=out)
    assert bool((out.sum(-1) - 1).abs().max() < 1e-3)
"""


@pytest.mark.parametrize("what", ["flat", "refused"])
@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_memory(backend: str, what: str, threads: int) -> None:
    """What a call worked in goes with it, and where there is none to be had, that is an error of Python's."""
    if backend != "cpu":
        pytest.skip("plain torch has none")
    done = fresh.run("-c", SCRATCH, str(threads), what)
    assert done.returncode == 0, done.stderr
