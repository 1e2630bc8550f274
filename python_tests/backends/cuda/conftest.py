"""The kernels that tests on a GPU go through."""

from __future__ import annotations

from collections.abc import Iterator

import equikern
import pytest
from equikern.backends import unavailable
from helpers.gpu import GPU


@pytest.fixture(scope="module", params=["triton", "cuda", None], ids=["triton", "cuda", "by table"])
def gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each kind of kernels for GPUs, and the choice among them."""
    name: str | None = request.param
    reason = None if name is None else unavailable(name, GPU)
    if reason is not None:
        pytest.skip(f"backend {name!r} cannot run: {reason}")
    with equikern.use_backend(name):
        yield
