"""Permutations and the kernels with a softmax in Triton's interpreter, against the reference.

The interpreter is chosen when Triton is imported, so the tests run in a process of their own.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from equikern import orbit, permutation, tokens, use_backend
from equikern.backends.reference import Reference
from equikern.ops.score import KINDS
from equikern.reductions import REDUCTIONS
from equikern.views import Views, accumulator, still
from equikern.views.maps import Maps
from helpers.logits import swaps
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
    import numpy
    from equikern.backends.triton import Triton, scores
    from equikern.backends.triton.layout import known, operand
    from triton.runtime import interpreter

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
        scale, weight = torch.tensor(0.25, dtype=loss.dtype), torch.rand(action.size, dtype=loss.dtype)
        for maps in both(name):
            plain, terms, weights = (0.0, 0.0, None), (0.02, 3.0, None), (0.02, 0.0, weight)
            calls = (1, scale, plain), (1, None, plain), (None, None, plain), (1, scale, weights), (None, None, terms)
            for grad, factor, more in (*calls, (1, None, weights), (1, scale, terms)):
                outputs = [loss, y] if grad else [loss]
                options = (maps, space, -100, smoothing, factor, *more)
                same("cross_entropy", outputs, y, target, 0, grad, *options, tolerance=TOLERANCE[dtype])

    def test_class_weights_of_targets_of_any_strides() -> None:
        y, target = torch.randn(2, 5, 3, 40), torch.randint(0, 40, (3, 5)).T
        call = (target, 0, 1, Maps(". ."), "logits", -100, 0.0, None, 0.0, 0.0, torch.rand(40))
        same("cross_entropy", [torch.empty(5, 3), y], y, *call, tolerance=1e-5)

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

    # -- memory: every tensor lies before a guard, which no access of a kernel may meet

    GUARD = 64  # entries
    FORBIDDEN: list[tuple[int, int]] = []
    WATCHED = pytest.mark.usefixtures("watched")

    def guarded(shape: tuple[int, ...], dtype: torch.dtype, filled: bool = True) -> Tensor:
        """Random numbers, or what must be written, directly before a guard."""
        count = math.prod(shape)
        memory = torch.full((count + GUARD,), math.nan if dtype.is_floating_point else 7).to(dtype)
        FORBIDDEN.append((memory[count:].data_ptr(), memory.data_ptr() + memory.nbytes))
        t = memory[:count].view(shape)
        return t.copy_(torch.randn(shape)) if filled else t

    @pytest.fixture
    def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
        """No access of a kernel may meet a guard; how many accesses there were."""
        seen = {"accesses": 0, "outside": 0}

        def watching(name: str) -> Callable[..., Any]:
            own = getattr(interpreter.InterpreterBuilder, name)

            def access(self: Any, *arguments: Any) -> Any:
                mask = arguments[2 if "store" in name else 1].data.astype(bool)
                at = arguments[0].data[mask] if mask.shape == arguments[0].data.shape else arguments[0].data.ravel()
                seen["accesses"] += at.size
                for low, high in FORBIDDEN:
                    seen["outside"] += int(numpy.count_nonzero((at >= low) & (at < high)))
                return own(self, *arguments)

            return access

        for name in ("create_masked_load", "create_masked_store"):
            monkeypatch.setattr(interpreter.InterpreterBuilder, name, watching(name))
        yield seen
        FORBIDDEN.clear()
        assert seen["accesses"] > 1000
        assert seen["outside"] == 0, f"{seen['outside']} accesses beyond a tensor"

    SIZES = [1025, 1029, 1031, 2101]
    FLOATS = [torch.float32, torch.bfloat16]

    @WATCHED
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("rows", [1, 3])
    def test_softmax_mean_stays_within_its_tensors(rows: int, size: int, dtype: torch.dtype) -> None:
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, grad = guarded((2, rows, size), dtype), guarded((rows, size), dtype)
        out, lse = guarded((rows, size), dtype, False), guarded((2, rows), torch.float32, False)
        kernels.softmax_mean(y, out, lse, views, table, "probs")
        back = guarded(y.shape, dtype, False)
        kernels.softmax_mean_backward(grad, y, lse, back, views, table, "probs")
        wanted, wanted_lse, wanted_back = torch.empty_like(out), torch.empty_like(lse), torch.empty_like(back)
        reference.softmax_mean(y, wanted, wanted_lse, views, table, "probs")
        reference.softmax_mean_backward(grad, y, wanted_lse, wanted_back, views, table, "probs")
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out, wanted, rtol=8 * eps, atol=1e-6)
        torch.testing.assert_close(back, wanted_back, rtol=32 * eps, atol=32 * eps / size)

    @WATCHED
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", ["max_prob", "entropy", "margin", "max"])
    def test_score_stays_within_its_tensors(kind: str, size: int, dtype: torch.dtype) -> None:
        logits, out = guarded((3, size), dtype), guarded((3,), torch.float32, False)
        kernels.score(logits, out, kind)
        wanted = torch.empty_like(out)
        reference.score(logits, wanted, kind)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)

    @WATCHED
    @pytest.mark.parametrize("size", SIZES)
    def test_rows_that_share_memory_end_with_it(size: int) -> None:
        """They end where the tensor does, all of them."""
        logits, out = guarded((size,), torch.float32).expand(4, size), guarded((4,), torch.float32, False)
        kernels.score(logits, out, "max_prob")
        wanted = torch.empty_like(out)
        reference.score(logits, wanted, "max_prob")
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)

    @WATCHED
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_score_select_stays_within_its_tensors(dtype: torch.dtype) -> None:
        size = 1029
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, out = guarded((2, 129, size), dtype), guarded((129, size), dtype, False)
        index = guarded((129,), torch.int64, False)
        kernels.score_select(y, out, index, views, table, "max", True)
        wanted, best = torch.empty_like(out), torch.empty_like(index)
        reference.score_select(y, wanted, best, views, table, "max", True)
        assert torch.equal(index, best)
        assert torch.equal(out, wanted)

    @WATCHED
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("space", ["logits", "probs"])
    def test_cross_entropy_stays_within_its_tensors(space: str, size: int, dtype: torch.dtype) -> None:
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, target = guarded((2, 3, size), dtype), torch.tensor([5, 0, size - 1])
        loss, grad = guarded((3,), torch.float32, False), guarded(y.shape, dtype, False)
        kernels.cross_entropy(y, target, loss, grad, views, table, space, -100, 0.1, None)
        wanted, wanted_grad = torch.empty_like(loss), torch.empty_like(grad)
        reference.cross_entropy(y, target, wanted, wanted_grad, views, table, space, -100, 0.1, None)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad, wanted_grad, rtol=32 * eps, atol=1e-5)
