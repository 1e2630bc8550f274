"""An orbit, a mean and a loss with each kind of kernel: where one of these fails, nothing else is worth its time.

``python -m bench.gpu.smoke cuda``; with cpu in its place a rehearsal on the CPU's kernels.
"""

from __future__ import annotations

import sys

import torch
from equikern import grid, orbit, orbit_cross_entropy, orbit_mean, permutation, use_backend
from equikern.backends import unavailable


def main(device: str) -> None:
    """Prints what ran; fails at the first call that does not, or is wrong."""
    action = grid("d4")
    for name in ("triton", "cuda", None) if device == "cuda" else ("cpu", "reference"):
        reason = None if name is None else unavailable(name, torch.device(device))
        if reason is not None:
            sys.exit(f"{name}: {reason}")
        for side in (7, 37, 64):
            x = torch.randn(2, 3, side, side)
            with use_backend(name):
                views = orbit(x.to(device), action)
                mean = orbit_mean(views, action)
            wanted = torch.stack([action.act(g, x) for g in range(action.order)])
            assert torch.equal(views.cpu(), wanted), f"{name}: wrong views at side {side}"
            torch.testing.assert_close(mean.cpu(), x, atol=1e-5, rtol=1e-5)
            print(f"{name or 'by table'}: side {side} is right", flush=True)
    swap = permutation([[*range(2101)], [1, 0, *range(2, 2101)]])
    logits = torch.randn(2, 8, 2101, device=device, requires_grad=True)
    orbit_cross_entropy(logits, torch.randint(2101, (8,), device=device), swap).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    print("a loss and its gradient are finite")


if __name__ == "__main__":
    main(sys.argv[1])
