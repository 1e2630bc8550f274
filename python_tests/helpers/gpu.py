"""The GPU that tests run on, and what they are compared with: the same calls on CPU tensors in plain torch.

``EQUIKERN_GPU=cpu`` rehearses these tests where there is no GPU: the CPU's kernels stand in for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import equikern
import pytest
import torch
from torch import Tensor

GPU = torch.device(os.environ.get("EQUIKERN_GPU", "cuda"))
THERE = GPU.type != "cuda" or torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(GPU.type != "cuda" or not torch.cuda.is_available(), reason="no GPU")


def plainly(call: Callable[[], Any]) -> Any:
    """What a call on CPU tensors gives in plain torch: the GPU's kernels, which are forced here, take none."""
    with equikern.use_backend("reference"):
        return call()


def close(found: Tensor, expected: Tensor) -> None:
    """Within the rounding of the dtype; sums of many terms, whose order differs, relative to the largest."""
    found, expected = found.detach(), expected.detach()
    if not expected.dtype.is_floating_point:
        assert torch.equal(found.cpu(), expected)
        return
    eps = torch.finfo(expected.dtype).eps
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    # The halves are rounded once; sums of the wider dtypes take their terms in another order.
    terms = 32 if expected.dtype in (torch.float32, torch.float64) else 8
    torch.testing.assert_close(found.cpu(), expected, rtol=4 * eps, atol=terms * eps * scale)
