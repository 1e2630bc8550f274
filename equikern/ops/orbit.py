"""``orbit`` and ``symmetrize``: every view of one tensor, and their mean."""

from __future__ import annotations

from torch import Tensor

from ..actions import Action
from . import autograd, checks, library

__all__ = ["orbit", "symmetrize"]


def orbit(x: Tensor, action: Action, *, out: Tensor | None = None) -> Tensor:
    """The orbit of x: every group element's view of it, in one pass.

    ``out[g] = g·x``. Reads n and writes |G|n elements; the backward reads |G|n and writes n:
    ``∂L/∂x = Σ_g g⁻¹ · ∂L/∂out[g]``.

    Args:
        x: (\\*lead, H, W), any strides; float16, bfloat16, float32, float64, an integer dtype or bool. Square where
            the action turns by 90°; a permutation's n entries on the dim that it permutes, whatever is behind it.
            Under ``tokens(perm)`` token ids of any shape, int32 or int64, each inside the vocabulary.
        action: what the group does to x, e.g. ``grid("d4")``.
        out: optional memory for the result, (|G|, \\*lead, H, W), any strides, of x's dtype; without grad.

    Returns:
        (|G|, \\*lead, H, W) in x's dtype, bit for bit what torch's rot90 and flip give; each view channels-last if x
        is. ``orbit(x, action).flatten(0, 1)`` is a batch for a backbone.

    Raises:
        TypeError: x is not a dense tensor of a supported dtype, or action is not an action.
        ValueError: wrong rank or size, not square under a 90° rotation, ids outside the vocabulary, or an out that does
            not fit. On a GPU, ids are not looked at while a CUDA graph is captured: those outside become −1.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> orbit(torch.tensor([[1, 2], [3, 4]]), grid("c4"))[1].tolist()
        [[2, 4], [1, 3]]
    """
    x, action = checks.image("x", x, action, checks.EXACT)
    if out is not None:
        out = checks.output("out", out, (action.order, *x.shape), x)
        library.orbit_out(x, action.maps, out)
        return out
    return autograd.orbit(x, action.maps, action.adjoint_maps)


def symmetrize(x: Tensor, action: Action, *, out: Tensor | None = None) -> Tensor:
    """The projection of x onto the tensors that the group leaves fixed: ``1/|G| Σ_g g·x`` in one pass.

    Reads n and writes n elements, and so does the backward, which is the same projection of the upstream gradient.

    Args:
        x: (\\*lead, H, W), any strides; float16, bfloat16, float32 or float64. Square where the action turns by 90°; a
            permutation's n entries on the dim that it permutes, whatever is behind it.
        action: what the group does to x.
        out: optional memory for the result, like x in shape and dtype; without grad.

    Returns:
        Like x in shape, dtype and layout; summed in float32 (float64 for float64), rounded once.

    Raises:
        TypeError: x is not a dense float tensor, or action is not an action.
        ValueError: wrong rank, not square under a 90° rotation, or an out that does not fit.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> symmetrize(torch.tensor([[1.0, 2.0]]), grid("hflip")).tolist()
        [[1.5, 1.5]]
    """
    x, action = checks.image("x", x, action, checks.FLOATS)
    if out is not None:
        out = checks.output("out", out, tuple(x.shape), x)
        same = x.expand(action.order, *x.shape)
        library.reduce_out(same, action.inverse_maps, "sum", 1.0 / action.order, None, out)
        return out
    return autograd.symmetrize(x, action.inverse_adjoint_maps, action.inverse_maps)
