"""The Triton kernels' arithmetic, in Triton's interpreter on the CPU, against plain torch written here.

The interpreter is chosen when Triton is imported, so the tests run in a process of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from equikern import reductions
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

C4 = "hw Wh HW wH"
D4 = "hw Wh HW wH hW wh Hw WH"
FLIPS = "hw hW Hw HW"
TURNS = "Wh wH wh WH"
FLIPS_3D = "dhw dhW dHw dHW Dhw DhW DHw DHW"
SOME_3D = "dhw whd HDW Wdh"
STILL = ". . ."


def view(x: Tensor, word: str) -> Tensor:
    if word == ".":
        return x
    n = len(word)
    axes = ["dhw"[3 - n :].index(letter.lower()) - n for letter in word]
    turned = x.permute(*range(x.dim() - n), *(x.dim() + axis for axis in axes))
    return turned.flip([k - n for k, letter in enumerate(word) if letter.isupper()])


def spread(t: Tensor, dim: int) -> Tensor:
    return t.reshape(t.shape + (1,) * (dim - t.dim()))


def view_shape(shape: tuple[int, ...], maps: str) -> tuple[int, ...]:
    return tuple(view(torch.empty(shape), maps.split(" ")[0]).shape)


def channels_last(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    *lead, c, h, w = shape
    return torch.randn(*lead, h, w, c).to(dtype).movedim(-1, -3)


def padded(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Every other entry of a larger tensor along the last dim, and a cut along the one before."""
    return torch.randn(*shape[:-2], shape[-2] + 3, 2 * shape[-1]).to(dtype)[..., 1:-2, ::2]


def transposed(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)


def dense(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


MAKERS = {"dense": dense, "channels_last": channels_last, "padded": padded, "transposed": transposed}


def like(shape: tuple[int, ...], kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory to be written, all of which must be."""
    return MAKERS[kind](shape, dtype).fill_(float("nan"))


# Large enough for tiles (20 × 20 on), small planes, rectangles, and no plane at all.
SHAPES = [
    ((2, 3, 20, 20), D4),
    ((1, 37, 37), C4),
    ((40, 40), TURNS),
    ((2, 18, 24), FLIPS),
    ((17, 19), TURNS),
    ((24, 16), "Wh wH"),
    ((2, 4, 7, 7), D4),
    ((3, 5, 6), FLIPS),
    ((2, 5, 3), "wh WH"),
    ((2, 1, 1), C4),
    ((3, 4, 5), STILL),
    ((2, 3, 5), "hw hw"),
    ((1, 9), "hw hW"),
    ((2, 3, 4, 5), FLIPS_3D),
    ((3, 3, 3), SOME_3D),
]

if not INTERPRETED:
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    from equikern.backends.triton import Triton
    from equikern.views import of

    kernels = Triton()

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    def test_available_on_the_cpu_when_interpreting() -> None:
        assert kernels.unavailable(torch.device("cpu")) is None

    @pytest.mark.parametrize(("shape", "maps"), SHAPES)
    def test_orbit_copies_bits(shape: tuple[int, ...], maps: str) -> None:
        x = dense(shape)
        count = maps.count(" ") + 1
        out = like((count, *view_shape(shape, maps)), "dense")
        kernels.orbit(x, out, of(maps), None, 1.0, None, None)
        assert torch.equal(out, torch.stack([view(x, word) for word in maps.split(" ")]))

    @pytest.mark.parametrize(("shape", "maps"), SHAPES)
    def test_mean(shape: tuple[int, ...], maps: str) -> None:
        words = maps.split(" ")
        y = dense((len(words), *shape))
        out = like(view_shape(shape, maps), "dense")
        kernels.reduce(y, out, of(maps), None, "sum", 1 / len(words), None, None, None)
        expected = torch.stack([view(y[g], word) for g, word in enumerate(words)]).double().mean(0)
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(("shape", "maps"), SHAPES)
    @pytest.mark.parametrize("kind", ["dense", "transposed"])
    def test_mean_plus(shape: tuple[int, ...], maps: str, kind: str) -> None:
        words = maps.split(" ")
        y, added = dense((len(words), *shape)), MAKERS[kind if len(shape) > 1 else "dense"](shape, torch.float32)
        out = like(view_shape(shape, maps), "dense")
        kernels.reduce(y, out, of(maps), None, "sum", 1 / len(words), None, added, None)
        expected = torch.stack([view(y[g] + added, word) for g, word in enumerate(words)]).double().mean(0)
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)

    def test_mean_plus_with_more_leading_dims_than_loops() -> None:
        y, added = dense((4, 3, 2, 5, 2, 6, 6))[:, ::2, :, ::2, :], dense((6, 6, 2, 3, 2, 2)).permute(5, 4, 3, 2, 0, 1)
        out = torch.empty(added.shape)
        kernels.reduce(y, out, of(C4), None, "sum", 0.25, None, added, None)
        expected = torch.stack([view(y[g] + added, word) for g, word in enumerate(C4.split(" "))]).mean(0)
        torch.testing.assert_close(out, expected)

    @pytest.mark.parametrize(("shape", "maps"), SHAPES)
    def test_orbit_dot(shape: tuple[int, ...], maps: str) -> None:
        check_dot(dense(shape), dense, maps, 1)

    @pytest.mark.parametrize(("shape", "maps"), SHAPES)
    def test_select(shape: tuple[int, ...], maps: str) -> None:
        check_select(dense, shape, maps, 0, True, "dense")

    LAYOUTS = [
        ((2, 5, 18, 18), D4, "channels_last"),
        ((2, 3, 4, 6), FLIPS, "channels_last"),
        ((2, 4, 3, 5), "Wh wh", "channels_last"),
        ((2, 18, 18), D4, "padded"),
        ((2, 3, 5, 5), C4, "padded"),
        ((2, 18, 18), C4, "transposed"),
        ((2, 3, 4, 4), STILL, "padded"),
    ]

    @pytest.mark.parametrize(("shape", "maps", "kind"), LAYOUTS)
    def test_layouts(shape: tuple[int, ...], maps: str, kind: str) -> None:
        words = maps.split(" ")
        make = MAKERS[kind]
        target = view_shape(shape, maps)
        x, y = make(shape), make((len(words), *shape))
        out = like((len(words), *target), kind)
        kernels.orbit(x, out, of(maps), None, 0.5, None, None)
        assert torch.equal(out, torch.stack([view(x, word) for word in words]) * 0.5)
        mean, std = like(target, kind), like(target, kind)
        kernels.reduce(y, mean, of(maps), None, "mean_std", 1.0, None, None, std)
        views = torch.stack([view(y[g], word) for g, word in enumerate(words)])
        torch.testing.assert_close(mean, views.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(std, views.std(0, correction=0), rtol=1e-5, atol=1e-6)
        check_dot(x, make, maps, 2)
        check_select(make, shape, maps, 1, False, kind)

    def check_dot(x: Tensor, make: Callable[..., Tensor], maps: str, k: int) -> None:
        words = maps.split(" ")
        views = torch.stack([view(x, word) for word in words])
        y = make(tuple(views.shape))
        for weights in (None, torch.rand(views.shape[:k])):
            dots = torch.full(views.shape[:k], float("nan"))
            out = None if weights is None else torch.full_like(y, float("nan"))
            kernels.orbit_dot(x, y, out, dots, of(maps), None, weights)
            product = (views.double() * y).reshape(*views.shape[:k], -1)
            torch.testing.assert_close(dots.double(), product.sum(-1), rtol=1e-5, atol=1e-4)
            if out is not None and weights is not None:
                torch.testing.assert_close(out, views * spread(weights, views.dim()))

    def check_select(
        make: Callable[..., Tensor], shape: tuple[int, ...], maps: str, k: int, minimum: bool, kind: str
    ) -> None:
        words = maps.split(" ")
        y = make((len(words), *shape))
        out = like(view_shape(shape, maps), kind)
        scores = torch.randn(len(words), *shape[:k])
        index = torch.full(shape[:k], -1)
        kernels.select(y, out, index, of(maps), None, scores, minimum)
        expected = scores.argmin(0) if minimum else scores.argmax(0)
        assert torch.equal(index, expected)
        views = torch.stack([view(y[g], word) for g, word in enumerate(words)])
        chosen = spread(expected, views.dim() - 1).expand(views.shape[1:])
        want = views.gather(0, chosen.unsqueeze(0))[0]
        assert torch.equal(out, want)
        again = like(view_shape(shape, maps), kind)
        kernels.select(y, again, index, of(maps), None, None, minimum)
        assert torch.equal(again, want)

    REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda v: v.sum(0) * 0.3,
        "max": lambda v: v.amax(0),
        "min": lambda v: v.amin(0),
        "gmean": lambda v: v.log().mean(0).exp(),
        "hmean": lambda v: 1 / (1 / v).mean(0),
        "tsharpen": lambda v: v.sqrt().mean(0),
        "logodd": lambda v: torch.logit(v, eps=1e-6).mean(0).sigmoid(),
        "log1p": lambda v: v.log1p().mean(0).expm1(),
        "median": lambda v: v.quantile(0.5, 0),
        "std": lambda v: v.std(0, correction=0),
    }

    def test_no_reduction_is_left_out() -> None:
        """What is not here: the pair, and votes, which are of integers."""
        assert REDUCTIONS.keys() | {"mean_std", "vote"} == reductions.REDUCTIONS.keys()

    @pytest.mark.parametrize("op", REDUCTIONS)
    @pytest.mark.parametrize(
        ("shape", "maps"), [((20, 20), D4), ((5, 6), FLIPS), ((17, 18), "hw hW"), ((18, 17), "Wh")]
    )
    def test_reductions(op: str, shape: tuple[int, ...], maps: str) -> None:
        words = maps.split(" ")
        y = torch.rand(len(words), *shape)
        y[0, 0, 0], y[-1, 1, 2] = 0.0, 1.0
        out = like(view_shape(shape, maps), "dense")
        kernels.reduce(y, out, of(maps), None, op, 0.3 if op == "sum" else 1.0, None, None, None)
        views = torch.stack([view(y[g], word) for g, word in enumerate(words)])
        # The clamp of the log odds is a float32 number: only there does the oracle have to round alike.
        expected = REDUCTIONS[op](views if op == "logodd" else views.double())
        torch.testing.assert_close(out.double(), expected.double(), rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("op", ["max", "min", "logodd", "log1p", "median", "std", "sum"])
    @pytest.mark.parametrize("size", [4, 17, 20])
    def test_nan_reaches_the_result(op: str, size: int) -> None:
        y = torch.rand(8, size, size)
        y[5, 2, 1] = float("nan")
        out = torch.zeros(size, size)
        kernels.reduce(y, out, of(D4), None, op, 1.0, None, None, None)
        views = torch.stack([view(y[g], word) for g, word in enumerate(D4.split(" "))])
        assert torch.equal(out.isnan(), views.isnan().any(0))

    def test_spread_of_large_values() -> None:
        y = torch.rand(8, 17, 17) + 4096
        std = torch.zeros(17, 17)
        kernels.reduce(y, std, of(D4), None, "std", 1.0, None, None, None)
        views = torch.stack([view(y[g], word) for g, word in enumerate(D4.split(" "))]).double()
        torch.testing.assert_close(std.double(), views.std(0, correction=0), rtol=1e-3, atol=1e-4)
        large = torch.full((8, 17, 17), 4e37, dtype=torch.bfloat16)  # whose sum float32 just holds
        kernels.reduce(large, std, of(D4), None, "std", 1.0, None, None, None)
        assert bool((std == 0).all())

    @pytest.mark.parametrize("kind", ["dense", "channels_last"])
    @pytest.mark.parametrize("k", [1, 2, 3])
    @pytest.mark.parametrize("size", [5, 18])
    def test_weights(kind: str, k: int, size: int) -> None:
        shape = (2, 3, size, size)
        y, x = MAKERS[kind]((4, *shape)), MAKERS[kind](shape)
        weights = torch.rand(4, *shape[: k - 1])
        factor = spread(weights, 5)
        mean = like(shape, kind)
        kernels.reduce(y, mean, of(C4), None, "sum", 2.0, weights, None, None)
        views = torch.stack([view(y[g], word) for g, word in enumerate(C4.split(" "))])
        torch.testing.assert_close(mean, (views * factor).sum(0) * 2.0, rtol=1e-5, atol=1e-5)
        index = torch.randint(0, 4, shape[: k - 1])
        out = like((4, *shape), kind)
        kernels.orbit(x, out, of(C4), None, 2.0, weights, index)
        chosen = spread(torch.arange(4), k) == index
        expected = torch.stack([view(x, word) for word in C4.split(" ")]) * factor * 2.0
        torch.testing.assert_close(out, expected * spread(chosen, 5))
        check_dot(x, MAKERS[kind], C4, k)

    def test_dot_of_single_points() -> None:
        check_dot(dense((3, 4)), dense, STILL, 3)
        check_dot(dense((3, 4)), dense, STILL, 2)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_weights_without_planes(k: int) -> None:
        y, weights = torch.randn(3, 4, 5), torch.rand((3, 4, 5)[:k])
        out = like((4, 5), "dense")
        kernels.reduce(y, out, of(STILL), None, "sum", 1.0, weights, None, None)
        torch.testing.assert_close(out, (y * spread(weights, 3)).sum(0))

    def test_more_leading_dims_than_loops() -> None:
        shape = (2, 2, 3, 2, 5, 5)
        x = torch.randn(4, 2, 6, 4, 5, 5)[::2, :, ::2, ::2]
        y = torch.randn(4, 4, 2, 6, 4, 5, 5)[:, ::2, :, ::2, ::2]
        out = torch.randn(4, 4, 2, 6, 4, 5, 5)[:, ::2, :, ::2, ::2]
        weights, index = torch.rand(4, 2), torch.randint(0, 4, (2, 2, 3))
        kernels.orbit(x, out, of(C4), None, 1.0, weights, index)
        views = torch.stack([view(x, word) for word in C4.split(" ")])
        chosen = spread(spread(torch.arange(4), 4) == index, 7)
        torch.testing.assert_close(out, views * spread(weights, 7) * chosen)
        mean = torch.randn(shape)
        kernels.reduce(y, mean, of(C4), None, "sum", 1.0, weights, None, None)
        back = torch.stack([view(y[g], word) for g, word in enumerate(C4.split(" "))])
        torch.testing.assert_close(mean, (back * spread(weights, 7)).sum(0), rtol=1e-5, atol=1e-5)
        dots = torch.zeros(4, 2, 2)
        kernels.orbit_dot(x, y, out, dots, of(C4), None, None)
        torch.testing.assert_close(dots, (views * y).flatten(3).sum(-1), rtol=1e-5, atol=1e-4)
        assert torch.equal(out, views)
        kernels.select(y, mean, index, of(C4), None, torch.randn(4, 2, 2, 3), True)
        assert torch.equal(mean, back.gather(0, spread(index, 6).expand(back.shape[1:]).unsqueeze(0))[0])

    def test_one_tensor_as_all_views() -> None:
        x = torch.randn(2, 18, 18)
        out = torch.empty_like(x)
        kernels.reduce(x.expand(8, 2, 18, 18), out, of(D4), None, "sum", 0.125, None, None, None)
        torch.testing.assert_close(out, torch.stack([view(x, word) for word in D4.split(" ")]).mean(0))

    @pytest.mark.parametrize("size", [3, 18])
    def test_scores_with_nan_and_ties(size: int) -> None:
        nan, inf = float("nan"), float("inf")
        scores = torch.tensor(
            [[nan, 1.0, nan, nan, inf], [inf, 1.0, nan, 2.0, inf], [inf, 0.5, nan, 2.0, nan], [nan, 0.5, nan, 3.0, inf]]
        )
        y = torch.randn(4, 5, size, size)
        for minimum, expected in ((True, [1, 2, 0, 1, 0]), (False, [1, 0, 0, 3, 0])):
            index, out = torch.zeros(5, dtype=torch.int64), torch.zeros(5, size, size)
            kernels.select(y, out, index, of(C4), None, scores, minimum)
            assert index.tolist() == expected
            want = [view(y[g, i], C4.split(" ")[g]) for i, g in enumerate(expected)]
            assert torch.equal(out, torch.stack(want))

    def test_index_outside_the_group_reads_the_nearest_view() -> None:
        y = torch.randn(4, 2, 3, 3)
        out = torch.zeros(2, 3, 3)
        kernels.select(y, out, torch.tensor([-5, 99]), of(C4), None, None, True)
        assert torch.equal(out, torch.stack([y[0, 0], view(y[3, 1], "wH")]))

    @pytest.mark.parametrize("size", [3, 18])
    def test_each_view_taken_by_its_own_element(size: int) -> None:
        """One orbit seen once for every view, by a stride of 0: what ``autograd.each`` asks for."""
        y = torch.randn(2, 8, size, size)
        out, index = torch.zeros_like(y), torch.arange(8).expand(2, 8).contiguous()
        kernels.select(y.expand(8, *y.shape), out, index, of(D4), None, None, True)
        assert torch.equal(out, torch.stack([view(y[:, g], word) for g, word in enumerate(D4.split(" "))], 1))

    EXACT = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    EXACT += [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]

    @pytest.mark.parametrize("dtype", EXACT, ids=str)
    @pytest.mark.parametrize("size", [3, 18])
    def test_any_bits_are_moved(dtype: torch.dtype, size: int) -> None:
        x = torch.randint(0, 2 if dtype == torch.bool else 100, (2, size, size)).to(dtype)
        out = torch.zeros(8, 2, size, size, dtype=dtype)
        kernels.orbit(x, out, of(D4), None, 1.0, None, None)
        views = torch.stack([view(x, word) for word in D4.split(" ")])
        assert torch.equal(out, views)
        back, index = torch.zeros_like(x), torch.tensor([1, 7])
        kernels.select(views, back, index, of("hw wH HW Wh hW wh Hw WH"), None, None, True)
        assert torch.equal(back, x)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("size", [4, 18])
    def test_sums_run_wide_and_round_once(dtype: torch.dtype, size: int) -> None:
        y = torch.randn(4, 2, size, size).to(dtype)
        weights = torch.rand(4, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        out = torch.zeros(2, size, size, dtype=dtype)
        kernels.reduce(y, out, of(C4), None, "sum", 1 / 3, weights, None, None)
        views = torch.stack([view(y[g], word) for g, word in enumerate(C4.split(" "))]).double()
        exact = (views * spread(weights, 5 - 1).double()).sum(0) / 3
        step = torch.finfo(dtype).eps
        assert ((out.double() - exact).abs() <= exact.abs() * step + 4 * torch.finfo(weights.dtype).eps).all()

    @pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 0), (2, 0, 18, 18)])
    def test_empty(shape: tuple[int, ...]) -> None:
        x, y = torch.randn(shape), torch.randn(4, *shape)
        kernels.orbit(x, torch.empty(4, *shape), of(C4), None, 1.0, None, None)
        kernels.reduce(y, torch.empty(shape), of(C4), None, "sum", 0.25, None, None, None)
        dots = torch.full((4, *shape[:1]), float("nan"))
        kernels.orbit_dot(x, y, torch.empty_like(y), dots, of(C4), None, None)
        assert torch.equal(dots, torch.zeros_like(dots))
        scores, index = torch.randn(4, *shape[:1]), torch.zeros(shape[:1], dtype=torch.int64)
        kernels.select(y, torch.empty(shape), index, of(C4), None, scores, True)
        assert torch.equal(index, scores.argmin(0))

    def test_results_repeat_bit_by_bit() -> None:
        x, y = torch.randn(2, 40, 40), torch.randn(4, 2, 40, 40)
        runs = []
        for _ in range(2):
            dots = torch.zeros(4)
            kernels.orbit_dot(x, y, None, dots, of(C4), None, None)
            runs.append(dots)
        assert torch.equal(*runs)

    @pytest.mark.parametrize("op", ["sum", "gmean", "std"])
    def test_every_layout_gives_the_same_bits(op: str) -> None:
        y = torch.rand(8, 3, 18, 18)
        weights = torch.rand(8) if op == "sum" else None
        results = []
        for kind in ("dense", "channels_last"):
            out = like((3, 18, 18), kind)
            kernels.reduce(
                channels_last_copy(y) if kind == "channels_last" else y, out, of(D4), None, op, 1.0, weights, None, None
            )
            results.append(out)
        assert torch.equal(*results)

    def channels_last_copy(t: Tensor) -> Tensor:
        return t.movedim(-3, -1).contiguous().movedim(-1, -3)

    def test_offsets_beyond_32_bits() -> None:
        # Memory of which few pages are ever touched; a view lies 2³¹ + 16 entries behind the one before. The sizes are
        # odd since the interpreter, unlike the compiled kernel, types a stride counted in vectors by its value.
        far = 2**31 + 16
        memory = torch.tensor([], dtype=torch.uint8).set_(torch.UntypedStorage(far + 441))  # type: ignore[no-untyped-call]
        for size in (5, 21):
            out = memory.as_strided((2, size, size), (far, size, 1))
            x = torch.randint(0, 255, (size, size), dtype=torch.uint8)
            kernels.orbit(x, out, of("hw Wh"), None, 1.0, None, None)
            assert torch.equal(out[1], x.rot90())
            back = torch.zeros_like(x)
            kernels.select(out, back, torch.tensor(1), of("hw wH"), None, None, True)
            assert torch.equal(back, x)

    def test_row_numbers_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
        from equikern.backends.triton import dots, launch, orbits, reductions, selection

        plans = (dots.plan, orbits.plan, reductions.plan, selection.plan)
        monkeypatch.setattr(launch, "LARGE", 0)
        for plan in plans:
            plan.cache_clear()
        try:
            x, y, out = torch.randn(3, 5, 5), torch.randn(4, 3, 5, 5), torch.zeros(4, 3, 5, 5)
            kernels.orbit(x, out, of(C4), None, 1.0, None, None)
            assert torch.equal(out, torch.stack([view(x, word) for word in C4.split(" ")]))
            kernels.reduce(y, out[0], of(C4), None, "max", 1.0, None, None, None)
            assert torch.equal(out[0], torch.stack([view(y[g], w) for g, w in enumerate(C4.split(" "))]).amax(0))
            check_dot(x, dense, C4, 2)
            check_select(dense, (3, 5, 5), C4, 1, True, "dense")
            check_select(channels_last, (2, 3, 4, 4), C4, 1, True, "channels_last")
        finally:
            for plan in plans:
                plan.cache_clear()

    @pytest.mark.parametrize("size", [7, 17])
    def test_tuned_launches_give_the_same_bits(size: int) -> None:
        from equikern.backends.triton import launch, orbits, reductions, selection
        from equikern.backends.triton.layout import known, operand
        from equikern.backends.tuning import Choice

        x, y, index = torch.rand(1, size, size), torch.rand(4, 1, size, size), torch.tensor([2])
        weights = torch.rand(4, 1)
        found: list[tuple[Tensor, launch.Plan | None, tuple[Tensor | None, ...]]] = []
        for op, factors in (("sum", weights), ("std", None)):
            out = torch.empty_like(x)
            plan = reductions.plan(of(C4), op, 0.5, operand(y), operand(out), None, None, known(factors))
            found.append((out, plan, (y, out, None, None, factors)))
        out = torch.empty_like(y)
        found.append((out, orbits.plan(of(C4), 1.0, operand(x), operand(out), None, None), (x, out, None, None)))
        out = torch.empty_like(x)
        found.append(
            (out, selection.plan(of(C4), True, operand(y), operand(out), None, operand(index)), (y, out, None, index))
        )
        for out, plan, tensors in found:
            assert plan is not None
            assert plan.variant is not None
            results = []
            for block in (0, -1, 1):  # the interpreter knows no warps
                out.fill_(float("nan"))
                launch.run(plan.variant(Choice(block)), *tensors, None)  # no channels are moved
                results.append(out.clone())
            assert not results[0].isnan().any()
            assert all(torch.equal(result, results[0]) for result in results)

    def test_the_interpreter_combines_as_triton_itself_does(own_reduce: Callable[[], None]) -> None:
        """Our tests hasten it: mirrored tiles, statistics of rows and the best of them, to the same bits."""
        y, rows = torch.randn(8, 18, 18), torch.randn(3, 5, 70)

        def results() -> list[Tensor]:
            out, dots, lse = torch.zeros(18, 18), torch.zeros(8), torch.zeros(3, 5)
            kernels.reduce(y, out, of(D4), None, "std", 1.0, None, None, None)
            kernels.orbit_dot(y[0], y, None, dots, of(D4), None, None)
            mean, chosen, index = torch.zeros(5, 70), torch.zeros(5, 70), torch.zeros(5, dtype=torch.int64)
            kernels.softmax_mean(rows, mean, lse, of(". . ."), None, "probs")
            kernels.score_select(rows, chosen, index, of(". . ."), None, "margin", True)
            loss, grad = torch.zeros(5), torch.zeros_like(rows)
            kernels.cross_entropy(rows, torch.arange(5), loss, grad, of(". . ."), None, "probs", -100, 0.1, None)
            return [out, dots, lse, mean, chosen, index, loss, grad]

        hastened = results()
        own_reduce()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(hastened, results(), strict=True))

    def test_unknown_reduction_is_named() -> None:
        with pytest.raises(ValueError, match="mode"):
            kernels.reduce(torch.zeros(1, 2, 2), torch.zeros(2, 2), of("hw"), None, "mode", 1.0, None, None, None)
