"""use_backend: what it switches, for how long, and that gradients follow it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from equikern import active_backend, backends, grid, orbit, orbit_mean, use_backend
from equikern.backends.cpu import Cpu
from equikern.backends.reference import Reference
from equikern.backends.triton import Triton
from equikern.views import still
from equikern.views.grid import Still


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reference kernels called, in order."""
    calls: list[str] = []
    for name in ("orbit", "reduce"):
        kernel = getattr(Reference, name)

        def counting(*args: object, name: str = name, kernel: object = kernel) -> None:
            calls.append(name)
            kernel(*args)  # type: ignore[operator]

        monkeypatch.setattr(Reference, name, counting)
    return calls


def test_a_block_restores_what_was() -> None:
    before = active_backend()
    with use_backend("reference"):
        assert active_backend() == "reference"
        with use_backend(None):
            assert active_backend() == before
        assert active_backend() == "reference"
    assert active_backend() == before


def test_a_block_left_by_an_error_restores_what_was() -> None:
    before = active_backend()
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert active_backend() == before


def test_a_call_lasts() -> None:
    before = use_backend("reference")
    try:
        assert active_backend() == "reference"
    finally:
        before.__exit__(None, None, None)


def test_forward_and_backward_run_on_the_chosen_kernels(counted: list[str]) -> None:
    x = torch.randn(2, 4, 4, requires_grad=True)
    with use_backend("reference"):
        orbit_mean(orbit(x, grid("c4")), grid("c4")).sum().backward()
    assert counted == ["orbit", "reduce", "orbit", "reduce"]


def test_the_choice_by_device(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ kernels where they can run, otherwise the reference, and other devices the reference."""
    expected = "cpu" if backends.unavailable("cpu", torch.device("cpu")) is None else "reference"
    with use_backend(None):
        assert active_backend("cpu") == expected
        assert active_backend("meta") == "reference"
        orbit(torch.randn(2, 4, 4), grid("c4"))
    assert counted == ([] if expected == "cpu" else ["orbit"])


def test_meta_tensors_have_shapes() -> None:
    y = orbit_mean(orbit(torch.empty(2, 3, 8, 8, device="meta"), grid("d4")), grid("d4"))
    assert (y.shape, y.device.type) == ((2, 3, 8, 8), "meta")


def test_a_choice_can_be_entered_again() -> None:
    before = active_backend()
    with use_backend("reference") as choice:
        pass
    for _ in range(2):
        with choice:
            assert active_backend() == "reference"
        assert active_backend() == before


@pytest.mark.skipif(backends.unavailable("cpu", torch.device("cpu")) is not None, reason="no C++ kernels here")
def test_a_kind_of_views_that_cpp_does_not_know() -> None:
    """Until a new kind has its C++ kernels, plain torch serves it; the error says so."""

    class Foreign(Still):
        name = "foreign"
        triton = ""

    views, x, out = replace(still(2), kind=Foreign()), torch.randn(3), torch.empty(2, 3)
    with pytest.raises(ValueError, match=r"got foreign; use_backend\('reference'\)"):
        Cpu().orbit(x, out, views, None, 1.0, None, None)
    for other in (Reference(), Triton()):  # the second has no module for it, and needs no GPU to say so
        other.orbit(x, out.zero_(), views, None, 1.0, None, None)
        assert torch.equal(out, torch.stack([x, x]))
