"""``orbit`` and ``symmetrize``: every view of one tensor, and their mean."""

from __future__ import annotations

from torch import Tensor

from ..actions import Action
from ..core import autograd, checks, library
from ..core.act import act
from ..views import EXACT, FLOATS

__all__ = ["orbit", "orbit_act", "symmetrize"]


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
    x, action = checks.image("x", x, action, EXACT)
    if out is not None:
        out = checks.output("out", out, (action.order, *x.shape), x)
        library.orbit_out(x, *action.maps.placed(x), out)
        return out
    return autograd.orbit(x, action.maps, 1.0)


def orbit_act(
    x: Tensor, elements: Tensor, action: Action, *, inverse: bool = False, out: Tensor | None = None
) -> Tensor:
    """One group element for each sample, in one pass: ``out[b] = g_b·x[b]``.

    What augmentation, canonical poses and labels that turn with their images need: no loop over the batch. Reads n and
    writes n elements; the backward is the same with the adjoint maps: ``∂L/∂x[b] = g_b⁻¹ · ∂L/∂out[b]`` (the transpose
    for matrices).

    Args:
        x: (B, \\*rest), what ``orbit`` takes, any strides; or token ids under ``tokens(perm)``.
        elements: (B,) int64 on x's device or the CPU, each 0 … |G|−1; or of shape x.shape[:k], k ≥ 1: one for every
            entry of those dims. Of rectangles under quarter turns they decide the result's shape: elements on a GPU are
            read back, which waits for all that is queued there, and is an error while a CUDA graph is captured;
            elements on the CPU are not.
        action: how the group acts on one sample.
        inverse: apply g_b⁻¹ instead: the way back.
        out: optional memory for the result, of x's dtype; without grad.

    Returns:
        Like x in shape, dtype and layout, moved bit for bit (matrices round once). Of rectangles under quarter turns
        H and W change places where all samples are turned.

    Raises:
        TypeError: x is not a dense tensor of a supported dtype, elements is not an int64 tensor, or action is not an
            action.
        ValueError: elements of another shape or device, elements that are none (on a GPU torch's own indexing says so,
            without waiting for the device), rectangles of which some are turned and some are not, wrong rank or size,
            or an out that does not fit.

    Example:
        >>> import torch
        >>> from equikern import grid
        >>> x = torch.tensor([[[1, 2], [3, 4]], [[1, 2], [3, 4]]])
        >>> turned = orbit_act(x, torch.tensor([0, 1]), grid("c4"))
        >>> turned.tolist()
        [[[1, 2], [3, 4]], [[2, 4], [1, 3]]]
        >>> torch.equal(orbit_act(turned, torch.tensor([0, 1]), grid("c4"), inverse=True), x)
        True
    """
    return act(x, elements, action, inverse, out)


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
    x, action = checks.image("x", x, action, FLOATS)
    if out is not None:
        out = checks.output("out", out, tuple(x.shape), x)
        same = x.expand(action.order, *x.shape)
        maps = action.maps
        library.reduce_out(same, *maps.placed(x), "sum", 1.0 / action.order, None, out)
        return out
    return autograd.symmetrize(x, action.maps)
