"""Kernels on rows of logits stay within their tensors, wherever these end: in Triton's interpreter on the CPU.

Every tensor lies before a guard, and every access of the interpreter is compared with all guards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.logits import swaps
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GUARD = 64  # entries

if not INTERPRETED:
    from helpers.audits import interpreted

    @pytest.mark.audit
    def test_in_the_interpreter() -> None:
        interpreted(__file__)

else:
    import numpy
    from equikern.backends.reference import Reference
    from equikern.backends.triton import Triton
    from triton.runtime import interpreter

    kernels, reference = Triton(), Reference()
    FORBIDDEN: list[tuple[int, int]] = []

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, filled: bool = True) -> Tensor:
        """Directly before a guard."""
        count = math.prod(shape)
        memory = torch.full((count + GUARD,), math.nan if dtype.is_floating_point else 7).to(dtype)
        FORBIDDEN.append((memory[count:].data_ptr(), memory.data_ptr() + memory.nbytes))
        t = memory[:count].view(shape)
        return t.copy_(torch.randn(shape)) if filled else t

    @pytest.fixture(autouse=True)
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
        torch.manual_seed(0)
        yield seen
        FORBIDDEN.clear()
        assert seen["accesses"] > 1000
        assert seen["outside"] == 0, f"{seen['outside']} accesses beyond a tensor"

    SIZES = [1025, 1029, 1031, 2101]
    FLOATS = [torch.float32, torch.bfloat16]

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("rows", [1, 3])
    def test_softmax_mean_and_its_gradient(rows: int, size: int, dtype: torch.dtype) -> None:
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, grad = tensor((2, rows, size), dtype), tensor((rows, size), dtype)
        out, lse = tensor((rows, size), dtype, False), tensor((2, rows), torch.float32, False)
        kernels.softmax_mean(y, out, lse, views, table, "probs")
        back = tensor(y.shape, dtype, False)
        kernels.softmax_mean_backward(grad, y, lse, back, views, table, "probs")
        wanted, wanted_lse, wanted_back = torch.empty_like(out), torch.empty_like(lse), torch.empty_like(back)
        reference.softmax_mean(y, wanted, wanted_lse, views, table, "probs")
        reference.softmax_mean_backward(grad, y, wanted_lse, wanted_back, views, table, "probs")
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out, wanted, rtol=8 * eps, atol=1e-6)
        torch.testing.assert_close(back, wanted_back, rtol=32 * eps, atol=32 * eps / size)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("kind", ["max_prob", "entropy", "margin", "max"])
    def test_scores(kind: str, size: int, dtype: torch.dtype) -> None:
        logits, out = tensor((3, size), dtype), tensor((3,), torch.float32, False)
        kernels.score(logits, out, kind)
        wanted = torch.empty_like(out)
        reference.score(logits, wanted, kind)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", SIZES)
    def test_rows_that_share_memory(size: int) -> None:
        """They end where the tensor does, all of them."""
        logits, out = tensor((size,), torch.float32).expand(4, size), tensor((4,), torch.float32, False)
        kernels.score(logits, out, "max_prob")
        wanted = torch.empty_like(out)
        reference.score(logits, wanted, "max_prob")
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_select_by_score(dtype: torch.dtype) -> None:
        size = 1029
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, out = tensor((2, 129, size), dtype), tensor((129, size), dtype, False)
        index = tensor((129,), torch.int64, False)
        kernels.score_select(y, out, index, views, table, "max", True)
        wanted, best = torch.empty_like(out), torch.empty_like(index)
        reference.score_select(y, wanted, best, views, table, "max", True)
        assert torch.equal(index, best)
        assert torch.equal(out, wanted)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("space", ["logits", "probs"])
    def test_cross_entropy(space: str, size: int, dtype: torch.dtype) -> None:
        action = swaps(2, size, 5)
        views, table = action.inverse_maps.views, action.inverse_maps.table(torch.zeros((), dtype=dtype))
        y, target = tensor((2, 3, size), dtype), torch.tensor([5, 0, size - 1])
        loss, grad = tensor((3,), torch.float32, False), tensor(y.shape, dtype, False)
        kernels.cross_entropy(y, target, loss, grad, views, table, space, -100, 0.1, None)
        wanted, wanted_grad = torch.empty_like(loss), torch.empty_like(grad)
        reference.cross_entropy(y, target, wanted, wanted_grad, views, table, space, -100, 0.1, None)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad, wanted_grad, rtol=32 * eps, atol=1e-5)
