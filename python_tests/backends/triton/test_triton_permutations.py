"""Permutations and the kernels with a softmax in Triton's interpreter, against the reference.

The interpreter is chosen when Triton is imported, so the tests run in a process of their own.
"""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
from equikern import orbit, permutation, tokens, use_backend
from equikern.backends.reference import Reference
from equikern.ops.score import KINDS
from equikern.reductions import REDUCTIONS
from equikern.views import Views, accumulator, still
from equikern.views.maps import Maps
from helpers.oracles import CASES, powers
from helpers.strategies import bits
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    from equikern.backends.triton import Triton, scores
    from equikern.backends.triton.layout import known, operand

    kernels, reference = Triton(), Reference()

    NAMES = ["cycle3", "dense5", "signed", "channels"]
    TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-10}

    # Rows of 1,101 two-byte logits start anywhere within 16 bytes; 8 of them and more are read in whole vectors.
    LONG = permutation([[*range(1101)], [1100, 2, 1, *range(3, 1100), 0]])
    LONGER = permutation([[*range(2101)], [1, 0, *range(2, 2101)]])  # of which a block takes 2,048
    ROWS = {"cycle3": CASES["cycle3"].action, "dense5": CASES["dense5"].action, "long": LONG, "longer": LONGER}

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    def made(shape: tuple[int, ...], dtype: torch.dtype, turned: bool = False) -> Tensor:
        """Random numbers, contiguous or with the last two dims the other way round in memory."""
        if turned and len(shape) > 1:
            return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)
        return torch.randn(shape).to(dtype)

    def blank(like: Tensor) -> Tensor:
        """Memory to be written, all of which must be."""
        return torch.full_like(like, float("nan")) if like.is_floating_point() else torch.full_like(like, 77)

    def told(maps: Maps, t: Tensor) -> tuple[Views, Tensor | None]:
        """What kernels are told of maps."""
        return maps.views, maps.table(t)

    def same(call: str, outputs: list[Tensor], *given: object, tolerance: float = 0.0) -> None:
        """Both write the outputs, which come where the arguments have a number: the position among them."""
        results = []
        arguments = [a for g in given for a in (told(g, outputs[0]) if isinstance(g, Maps) else (g,))]
        for backend in (reference, kernels):
            written = [blank(t) for t in outputs]
            getattr(backend, call)(*(written[a] if type(a) is int and a >= 0 else a for a in arguments))
            results.append(written)
        for expected, found in zip(*results, strict=True):
            if tolerance:
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
            else:
                assert torch.equal(found, expected)

    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
    @pytest.mark.parametrize("name", NAMES)
    def test_operators(name: str, lead: tuple[int, ...], turned: bool) -> None:
        case = CASES[name]
        shape, order = case.shape(*lead, side=3), case.order
        for maps, dtype in ((case.action.maps, torch.bfloat16), (case.action.inverse_maps, torch.float32)):
            x, y = made(shape, dtype, turned), made((order, *shape), dtype, turned)
            tolerance = TOLERANCE[dtype]
            same("orbit", [y], x, 0, maps, 1.0, None, None)
            weights, index = torch.rand(order, *lead[:1]), torch.randint(0, order, lead)
            same("orbit", [y], x, 0, maps, 0.5, weights, index, tolerance=tolerance)
            same("reduce", [x], y, 0, maps, "sum", 0.5, None, None, None, tolerance=tolerance)
            same("reduce", [x], y, 0, maps, "sum", 0.5, None, x, None, tolerance=tolerance)
            same("reduce", [x], y, 0, maps, "weighted_mean", 1.0, weights, None, None, tolerance=tolerance)
            same("orbit_dot", [y, weights], x, y, 0, 1, maps, weights, tolerance=max(tolerance, 1e-4))
            scores = torch.randn(order, *lead)
            same("select", [x, index], y, 0, 1, maps, scores, True)
            same("select", [x], y, 0, index, maps, None, True)

    @pytest.mark.parametrize("op", [op for op in REDUCTIONS if op not in ("sum", "vote")])
    @pytest.mark.parametrize("name", ["cycle3", "dense5"])
    def test_reductions(name: str, op: str) -> None:
        case = CASES[name]
        y = torch.rand(case.order, *case.shape(4, side=1))
        second = op == "mean_std"
        outputs = [y[0], y[0]] if second else [y[0]]
        same(
            "reduce",
            outputs,
            y,
            0,
            case.action.inverse_maps,
            op,
            1.0,
            None,
            None,
            1 if second else None,
            tolerance=1e-5,
        )

    @pytest.mark.parametrize("name", ["cycle3", "dense5", "signed"])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64], ids=str)
    def test_entries_are_moved_exactly(name: str, dtype: torch.dtype) -> None:
        case = CASES[name]
        if dtype not in case.action.views.dtypes:
            pytest.skip("integers without a sign")
        x = torch.randint(-99, 99, case.shape(4, side=1)).to(dtype)
        same("orbit", [case.orbit(x)], x, 0, case.action.maps, 1.0, None, None)
        if name != "signed":
            same("orbit", [case.orbit(x > 9)], x > 9, 0, case.action.maps, 1.0, None, None)

    def test_minus_zero_and_nan_keep_their_bits() -> None:
        case = CASES["signed"]
        x = torch.tensor([[0.0, -0.0, float("nan"), 1.0]])
        out = torch.zeros(2, 1, 4)
        kernels.orbit(x, out, *told(case.action.maps, x), 1.0, None, None)
        assert torch.equal(out.view(torch.int32)[0], x.view(torch.int32))
        assert out[1].signbit().tolist() == case.forward[1](x).signbit().tolist()

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    @pytest.mark.parametrize("few", [True, False])
    def test_token_ids(few: bool, dtype: torch.dtype) -> None:
        action = tokens(powers([1, 2, 0, *range(3, 40)] if few else [*range(1, 40), 0], 3 if few else 40))
        ids = torch.randint(0, 40, (5, 8)).to(dtype)[:, ::2]
        with use_backend("triton"):
            assert torch.equal(orbit(ids, action), action.perm.to(dtype)[:, ids.long()])
            with pytest.raises(ValueError, match=r"expected token ids from 0 to 39, got 40$"):
                orbit(torch.tensor([3, 40]), action)

    def logits(order: int, size: int, lead: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        y = (3 * torch.randn(order, *lead, size)).to(dtype)
        y[0, ..., 3] = -math.inf
        return y

    ROW_CASES = [
        ("cycle3", (), torch.float32),
        ("cycle3", (2, 8), torch.bfloat16),
        ("dense5", (3,), torch.float16),
        ("dense5", (2, 2), torch.float64),
        ("long", (2, 4), torch.bfloat16),
        ("long", (3,), torch.float32),
    ]

    def both(name: str) -> list[Maps]:
        """The maps of an action, and as many that move nothing."""
        action = ROWS[name]
        return [action.inverse_maps, Maps(" ".join(["."] * action.order))]

    @pytest.mark.parametrize("space", ["probs", "log_probs"])
    @pytest.mark.parametrize(("name", "lead", "dtype"), ROW_CASES)
    def test_softmax_mean(name: str, lead: tuple[int, ...], dtype: torch.dtype, space: str) -> None:
        action = ROWS[name]
        y = logits(action.order, action.size, lead, dtype)
        lse = y.double().logsumexp(-1).to(accumulator(y))
        grad = torch.randn(*lead, action.size).to(dtype)
        for maps in both(name):
            same("softmax_mean", [y[0], lse], y, 0, 1, maps, space, tolerance=TOLERANCE[dtype])
            same("softmax_mean_backward", [y], grad, y, lse, 0, maps, space, tolerance=TOLERANCE[dtype])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("name", "lead", "dtype"), ROW_CASES)
    def test_score(name: str, lead: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
        y = logits(ROWS[name].order, ROWS[name].size, lead, dtype)
        y[0, ..., 5] = y[0, ..., 4] = 20.0  # two that are equally large
        out = torch.empty(y.shape[:-1], dtype=accumulator(y))
        same("score", [out], y, 0, kind, tolerance=1e-5)
        same("score", [out], y.transpose(0, -1).contiguous().transpose(0, -1), 0, kind, tolerance=1e-5)
        same("score", [out[..., None]], y[..., None, :1], 0, kind, tolerance=1e-5)

    def test_the_largest_logit_is_nan_or_infinite() -> None:
        y = torch.tensor([[0.0, math.nan, 1.0], [-math.inf] * 3, [0.0, math.inf, 1.0]])
        out = torch.empty(3)
        kernels.score(y, out, "max")
        torch.testing.assert_close(out, torch.tensor([math.nan, math.inf, -math.inf]), equal_nan=True)

    @pytest.mark.parametrize(("name", "lead", "dtype"), [*ROW_CASES, ("longer", (8,), torch.bfloat16)])
    def test_score_select(
        name: str, lead: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the bit what score and select say one after the other, also into every second entry of a tensor."""
        monkeypatch.setattr(scores, "PROGRAMS", 1)
        scores.select_plan.cache_clear()
        action = ROWS[name]
        y = logits(action.order, action.size, lead, dtype)
        turned = y.transpose(0, -1).contiguous().transpose(0, -1)
        for number, (kind, maps) in enumerate(itertools.product(KINDS, both(name))):
            minimum, gaps = number % 3 > 0, number % 4 == 1
            given = turned if number % 4 == 2 and action.size < 1000 else y
            losses = torch.empty(y.shape[:-1], dtype=accumulator(y))
            index, expected_index = torch.full(lead, 99), torch.full(lead, 99)
            out, expected = blank(torch.cat([y[0], y[0]], -1))[..., ::2] if gaps else blank(y[0]), blank(y[0])
            kernels.score(given, losses, kind)
            reference.select(given, expected, expected_index, *told(maps, y), losses, minimum)
            kernels.score_select(given, out, index, *told(maps, y), kind, minimum)
            views, table = told(maps, y)
            described = operand(given), operand(out), operand(index)
            plan = scores.select_plan(views, known(table), kind, minimum, *described)
            assert plan is not None, "not one launch"
            assert torch.equal(index, expected_index)
            assert torch.equal(bits(out), bits(expected))
        scores.select_plan.cache_clear()

    def test_few_long_rows_are_scored_side_by_side() -> None:
        y, index = torch.randn(2, 1, 9000), torch.zeros(1, dtype=torch.int64)
        assert scores.select_plan(still(2), None, "max", True, operand(y), operand(y[0]), operand(index)) is None
        same("score_select", [y[0], index], y, 0, 1, Maps(". ."), "max", True)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("space", ["logits", "probs", "log_probs"])
    @pytest.mark.parametrize(("name", "lead", "dtype"), ROW_CASES[1:5])
    def test_cross_entropy(name: str, lead: tuple[int, ...], dtype: torch.dtype, space: str, smoothing: float) -> None:
        action = ROWS[name]
        y = logits(action.order, action.size, lead, dtype)
        if smoothing:  # every entry counts then
            y = y.nan_to_num(neginf=-9.0)
        target = torch.randint(4, action.size, lead)
        target.view(-1)[0], target.view(-1)[1] = -100, 1
        loss = torch.empty(lead, dtype=accumulator(y))
        scale = torch.tensor(0.25, dtype=loss.dtype)
        for maps in both(name):
            for grad, factor in ((1, scale), (1, None), (None, None)):
                outputs = [loss, y] if grad else [loss]
                options = (maps, space, -100, smoothing, factor)
                same("cross_entropy", outputs, y, target, 0, grad, *options, tolerance=TOLERANCE[dtype])

    @pytest.mark.parametrize("space", ["logits", "probs", "log_probs"])
    def test_a_target_outside_gives_nan(space: str) -> None:
        action = ROWS["cycle3"]
        y = torch.randn(3, 4, 41)
        loss, grad = torch.zeros(4), torch.zeros(3, 4, 41)
        target = torch.tensor([0, 41, -5, -100])
        kernels.cross_entropy(y, target, loss, grad, *told(action.inverse_maps, y), space, -100, 0.1, None)
        assert loss.isnan().tolist() == [False, True, True, False]
        assert torch.equal(grad.isnan().all(-1).any(0), loss.isnan())
        assert loss[3] == 0
        assert not grad[:, 3].any()

    def test_any_strides_of_logits() -> None:
        action = ROWS["cycle3"]
        y = torch.randn(3, 2, 41, 5).transpose(-1, -2)
        lse, out = torch.empty(3, 2, 5), torch.empty(2, 41, 5).transpose(-1, -2)
        same("softmax_mean", [out, lse], y, 0, 1, action.inverse_maps, "probs", tolerance=1e-5)
        cut = torch.randn(3, 4, 6, 8, 10, 41)[:, ::2, ::2, ::2, ::2]
        loss, target = torch.empty(2, 3, 4, 5), torch.randint(0, 41, (2, 3, 4, 5))
        options = (action.inverse_maps, "logits", -100, 0.0, None)
        same("cross_entropy", [loss, cut], cut, target, 0, 1, *options, tolerance=1e-5)

    def test_sums_repeat_bit_by_bit() -> None:
        y, target = torch.randn(3, 4, 41), torch.arange(4)
        runs = []
        for _ in range(2):
            loss, grad = torch.zeros(4), torch.zeros_like(y)
            kernels.cross_entropy(
                y, target, loss, grad, *told(ROWS["cycle3"].inverse_maps, y), "probs", -100, 0.1, None
            )
            runs.append((loss, grad))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
