"""``symmetrize`` over fundamental domains, and means beside it, in Triton's interpreter: what it computes, and that it
is invariant.

The interpreter is chosen when Triton is imported, so the tests run in a process of their own.
"""

from __future__ import annotations

import os

import pytest
import torch
from equikern import grid, symmetrize, use_backend
from equikern.actions import GridAction
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

GROUPS = {
    "vflip": "hw Hw",
    "hflip": "hw hW",
    "c2": "hw HW",
    "transposition": "hw wh",
    "flips": "hw hW Hw HW",
    "c4": "hw Wh HW wH",
    "d4": "hw Wh HW wH hW wh Hw WH",
    "d4 in another order": "WH hw wh Hw Wh hW HW wH",
}
# What is no group, or has another kernel: the launch is that of a mean.
OTHERS = {
    "a half of c4": "hw Wh",
    "twice the same": "hw hW hw hW",
    "the other diagonal": "hw WH",
    "turned ones": "Wh wH wh WH",
}
SQUARES = [(2, 1, 1), (3, 2, 2), (2, 3, 7, 7), (9, 8, 8), (23, 23), (2, 24, 24), (1, 40, 40)]
RECTANGLES = [(2, 3, 5), (1, 20, 36), (1, 9), (9, 1), (2, 9, 16)]


def layouts(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Strides of a tensor of that shape, by what they are called."""
    *lead, h, w = shape
    across = [1]
    for n in (w, h, *reversed(lead)):
        across.append(across[-1] * n)
    dense = tuple(reversed(across[:-1]))
    gaps = tuple(3 * step if k < len(lead) else 2 * step for k, step in enumerate(dense))
    rows = tuple(
        (h * (w + 3) * step // (h * w)) if k < len(lead) else (w + 3, 1)[k - len(lead)] for k, step in enumerate(dense)
    )
    turned = (*dense[:-2], 1, h)
    found = {"dense": dense, "gaps": gaps, "longer rows": rows, "columns": turned}
    if lead:
        sizes = (*lead[:-1], h, w, lead[-1])
        steps = [1]
        for n in reversed(sizes[1:]):
            steps.append(steps[-1] * n)
        *before, sh, sw, sc = reversed(steps)
        found["channels last"] = (*before, sc, sh, sw)
    return found


def made(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.empty_strided(shape, stride, dtype=dtype)
    return x.copy_(torch.randn(shape, dtype=torch.float64))


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


if not INTERPRETED:
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    from equikern.backends.triton import Triton, reductions
    from equikern.backends.triton import symmetrize as kernel
    from equikern.backends.triton.layout import operand
    from equikern.views import Views, of

    kernels = Triton()
    SUBTRACTED = "ignore:invalid value:RuntimeWarning"  # of an infinity less an infinity

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    def turned(x: Tensor, views: Views, g: int) -> Tensor:
        return views.kind.apply(x, views, None, g)

    def mean(x: Tensor, views: Views) -> Tensor:
        return torch.stack([turned(x.double(), views, g) for g in range(views.order)]).mean(0)

    def run(x: Tensor, views: Views, out: Tensor | None = None) -> Tensor:
        out = torch.full_like(x, float("nan")) if out is None else out
        kernels.reduce(x.expand(views.order, *x.shape), out, views, None, "sum", 1 / views.order, None, None, None)
        return out

    def check(x: Tensor, views: Views, out: Tensor | None = None) -> None:
        found = run(x, views, out)
        tolerance = {2: 1e-2, 4: 1e-6, 8: 1e-14}[x.element_size()]
        torch.testing.assert_close(found.double(), mean(x, views), rtol=tolerance, atol=tolerance)
        for g in range(views.order):
            assert torch.equal(bits(turned(found, views, g)), bits(found)), "not invariant"

    @pytest.mark.parametrize("name", GROUPS)
    @pytest.mark.parametrize("shape", [*SQUARES, *RECTANGLES])
    def test_every_group(name: str, shape: tuple[int, ...]) -> None:
        views = of(GROUPS[name])
        if views.turns and shape[-1] != shape[-2]:
            return
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape).to(dtype)
            # Planes of one column are vectors, as channels are.
            assert (kernel.plan(views, 1.0, operand(x), operand(x)) is None) == (shape[-1] == 1 and len(shape) > 2)
            check(x, views)

    def test_every_named_group_has_a_domain() -> None:
        x = operand(torch.empty(2, 8, 8))
        for name in ("c2", "hflip", "vflip", "flips", "c4", "d4"):
            assert kernel.plan(grid(name).views, 1.0, x, x) is not None, name
        assert kernel.plan(grid("d4").maps.subset([0, 1, 4]).views, 1.0, x, x) is None

    @pytest.mark.parametrize("name", ["c2", "c4", "d4"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
        for n in (7, 16):
            check(torch.randn(2, n, n).to(dtype), of(GROUPS[name]))

    @pytest.mark.parametrize("name", ["hflip", "c4", "d4"])
    @pytest.mark.parametrize("shape", [(1, 2, 18, 18), (2, 2, 9, 9)])
    def test_layouts(name: str, shape: tuple[int, ...]) -> None:
        strides = layouts(shape)
        for a in strides.values():
            check(made(shape, a), of(GROUPS[name]), made(shape, strides["dense"]).fill_(float("nan")))
            check(made(shape, strides["dense"]), of(GROUPS[name]), made(shape, a).fill_(float("nan")))

    @pytest.mark.parametrize("name", ["flips", "d4"])
    def test_leading_dims_that_do_not_merge(name: str) -> None:
        x = torch.randn(5, 2, 4, 3, 2, 12, 12)[:, :, ::2, :, ::2].transpose(0, 3)
        check(x, of(GROUPS[name]))
        check(x[:, 0, :, :, 0], of(GROUPS[name]))

    @pytest.mark.parametrize("name", GROUPS)
    def test_the_same_bits_as_the_mean_of_copies(name: str) -> None:
        """The order of the additions is that of the kernels that take a tensor for every view."""
        views = of(GROUPS[name])
        x = torch.randn(2, 24, 24)
        copies, out = torch.stack([x] * views.order), torch.empty_like(x)
        reductions.reduce(copies, out, views, None, "sum", 1 / views.order, None, None, None)
        if name != "d4 in another order":  # which adds the views of a class in theirs
            assert torch.equal(bits(run(x, views)), bits(out))

    def beside(y: Tensor, x: Tensor, views: Views, out: Tensor, kernel_runs: bool = True) -> None:
        assert (kernel.plan(views, 1.0, operand(x), operand(out), operand(y)) is not None) == kernel_runs
        kernels.reduce(y, out.fill_(float("nan")), views, None, "sum", 0.5, None, x, None)
        both = y.double() + x.double()
        expected = torch.stack([turned(both[g], views, g) for g in range(views.order)]).sum(0) / 2
        tolerance = {2: 2e-2, 4: 2e-6, 8: 1e-14}[x.element_size()]
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)

    @pytest.mark.parametrize("name", GROUPS)
    def test_the_mean_of_views_beside_a_tensor(name: str) -> None:
        views = of(GROUPS[name])
        for shape, dtype in [((3, 20, 20), torch.float32), ((1, 24, 24), torch.bfloat16), ((20, 36), torch.float32)]:
            if not views.turns or shape[-1] == shape[-2]:
                y, x = torch.randn(views.order, *shape).to(dtype), torch.randn(shape).to(dtype)
                beside(y, x, views, torch.empty_like(x))

    def test_means_beside_a_tensor_of_any_layout() -> None:
        views, shape = of(GROUPS["c4"]), (2, 2, 20, 20)
        strides = [*layouts(shape).values()]
        for k, own in enumerate(strides):
            y = made((4, *shape), (9000, *own))
            beside(y, made(shape, strides[k - 1]), views, made(shape, strides[k - 2]))

    def test_means_beside_a_tensor_of_odd_planes() -> None:
        for name, dtype in (("d4", torch.float16), ("transposition", torch.float64)):
            views = of(GROUPS[name])
            y, x = torch.randn(views.order, 1, 47, 47).to(dtype), torch.randn(1, 47, 47).to(dtype)
            beside(y, x, views, torch.empty_like(x))
        x = torch.randn(3, 7, 7)  # of which a program has whole ones: what it reads again comes from its cache
        beside(torch.randn(8, 3, 7, 7), x, of(GROUPS["d4"]), torch.empty_like(x), False)

    @pytest.mark.filterwarnings(SUBTRACTED)
    def test_infinities_beside_a_tensor() -> None:
        views = of(GROUPS["d4"])
        y, x = torch.randn(8, 1, 20, 20), torch.randn(1, 20, 20)
        y[2, 0, 3, 4], y[5, 0, 10, 10], x[0, 3, 4], x[0, 0, 1] = torch.inf, torch.nan, -torch.inf, torch.inf
        beside(y, x, views, torch.empty_like(x))

    @pytest.mark.parametrize("name", OTHERS)
    def test_what_is_no_such_group(name: str) -> None:
        views = of(OTHERS[name])
        x = torch.randn(2, 20, 20)
        assert kernel.plan(views, 1.0, operand(x), operand(x)) is None
        torch.testing.assert_close(run(x, views).double(), mean(x, views), rtol=1e-6, atol=1e-6)

    @pytest.mark.filterwarnings(SUBTRACTED)
    def test_infinities_and_nan() -> None:
        views = of(GROUPS["d4"])
        x = torch.randn(3, 20, 20)
        x[0, 3, 4], x[1, 5, 5], x[2, 0, 1], x[2, 1, 0] = torch.inf, torch.nan, torch.inf, -torch.inf
        torch.testing.assert_close(run(x, views).double(), mean(x, views), rtol=1e-6, atol=1e-6, equal_nan=True)

    @pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 0), (3, 0, 5, 5)])
    def test_empty(shape: tuple[int, ...]) -> None:
        x = torch.randn(shape)
        assert run(x, of(GROUPS["c4"])).shape == x.shape

    def test_few_planes_are_spread_over_many_programs() -> None:
        """And however many planes a program has, the bits are the same."""
        views = of(GROUPS["d4"])
        x = torch.randn(40, 8, 8)
        many, one = (kernel.plan(views, 1.0, operand(t), operand(t)) for t in (x, x[:1]))
        assert many is not None
        assert one is not None
        assert many.constants["PLANES"] > one.constants["PLANES"]
        assert torch.equal(bits(run(x, views)[:1]), bits(run(x[:1], views)))

    @pytest.mark.parametrize("name", ["c4", "d4", "flips"])
    def test_gradients(name: str) -> None:
        """The operator is its own gradient and has every further one."""
        action = grid(name)
        assert isinstance(action, GridAction)
        with use_backend("triton"):
            x = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
            upstream = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
            (found,) = torch.autograd.grad(symmetrize(x, action), x, upstream, create_graph=True)
            torch.testing.assert_close(found, mean(upstream.detach(), action.views))
            (second,) = torch.autograd.grad(found, upstream, x.detach())
            torch.testing.assert_close(second, mean(x.detach(), action.views))
