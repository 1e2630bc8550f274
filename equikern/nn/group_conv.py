"""``GroupConv2d``: convolutions that are equivariant to rotations and flips, with parameters shared over the group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..actions import Action, GridAction, field
from ..core import checks
from ..ops import orbit
from ..views.grid import sides_of
from .regular import init
from .specs import ActionSpec, action_of
from .tables import ActionTables

__all__ = ["GroupConv2d"]


class GroupConv2d(nn.Module):
    """A group convolution: equivariant to translations and to a group of rotations and flips of the image.

    With ⋆ torch's ``conv2d`` and w the weight, one filter for each pair of channels and entry of the group axis,

    ========= =======================================================
    from maps ``out[o, g] = Σ_c (g⁻¹ w[o, c]) ⋆ x[c] + bias[o]``
    regular   ``out[o, g] = Σ_{c,k} (g⁻¹ w[o, c, k g⁻¹]) ⋆ z[c, k] + bias[o]``
    ========= =======================================================

    The bank of all the turned filters is the orbit of the weight, made by equikern's operators in every forward, so
    that gradients reach the weight; torch convolves with it. Layout of regular features as in ``RegularLift``: (B, C,
    |G|, H, W), and ``layer(h·z) = h·layer(z)``, where entry g moves to entry g h⁻¹ and h turns the image.

    Args:
        group: ``"c4"``, ``"d4"`` or another grid action.
        in_channels, out_channels: channels, each with |G| entries on the group axis where features are regular.
        kernel_size: the side of the square filters.
        inp: ``"regular"``, or ``"trivial"`` for a lifting convolution of images or plain maps, which have no group
            axis.
        stride, padding, dilation: as in ``nn.Conv2d``, the same number for both dims; zeros are padded.
        bias: add one number to each output channel.
        to: the parameters' ``device`` and ``dtype``.

    Equivariance is exact, but for rounding, when the last window ends where the padded image ends, since turning
    exchanges the first with the last: ``H + 2·padding − dilation·(kernel_size − 1) − 1`` must be divisible by the
    stride, and the same for W. With stride 1 it always is; odd sides go with an odd kernel and stride 2, even ones with
    an even kernel. Other sizes are an error.

    Attributes:
        weight: (out_channels, in_channels, |G|, k, k), or (out_channels, in_channels, k, k) for a lifting convolution.
        bias: (out_channels,) or None.

    Shapes:
        (B, in_channels, |G|, H, W), or (B, in_channels, H, W) for a lifting convolution → (B, out_channels, |G|, H',
        W'). Rectangles are welcome.

    Raises:
        TypeError, ValueError: not a grid action, sizes that are no whole numbers or out of range; in the forward, a
            wrong shape, or a side whose windows do not fill it.

    Example:
        >>> lifting = GroupConv2d("c4", 3, 8, 3, inp="trivial", padding=1)
        >>> layer = GroupConv2d("c4", 8, 16, 3, padding=1)
        >>> x = torch.randn(2, 3, 6, 9)
        >>> y, turned = (layer(lifting(v).relu()) for v in (x, x.rot90(1, (-2, -1))))
        >>> y.shape, bool((turned[:, :, 0] - y[:, :, 1].rot90(1, (-2, -1))).abs().max() < 1e-5)
        (torch.Size([2, 16, 4, 6, 9]), True)
    """

    def __init__(
        self,
        group: ActionSpec,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        inp: Literal["regular", "trivial"] = "regular",
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        action = action_of("group", group, None)
        if not isinstance(action, GridAction) or action.dims != 2:
            raise TypeError(f"group: expected an action on images such as 'c4' or 'd4', got {action!r}")
        checks.choice("inp", inp, ("regular", "trivial"))
        self.action, self.inp = action, inp
        self.in_channels = checks.whole("in_channels", in_channels, 1)
        self.out_channels = checks.whole("out_channels", out_channels, 1)
        self.kernel_size = checks.whole("kernel_size", kernel_size, 1)
        self.stride = checks.whole("stride", stride, 1)
        self.padding = checks.whole("padding", padding, 0)
        self.dilation = checks.whole("dilation", dilation, 1)
        # The inverses, as an action on the weight.
        moves = field(action, "regular") if inp == "regular" else action
        self._moves = Action(action.name, moves.inverse_maps)
        self._tables = ActionTables([self._moves])
        # The dims whose ends some element exchanges.
        self._reversed = {side for word in action.words for side, back in sides_of(word) if back}
        entries = (action.order,) if inp == "regular" else ()
        shape = (out_channels, in_channels, *entries, kernel_size, kernel_size)
        checks.flag("bias", bias)
        checks.placed(device, dtype)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def shaped(t: Tensor) -> Tensor:
            """The weight is one of maps, though its group axis makes five dims: channels_last wants four."""
            try:
                return fn(t)
            except RuntimeError as error:
                if t.dim() != 5 or "channels_last" not in str(error):
                    raise
                return fn(t.flatten(1, 2)).unflatten(1, t.shape[1:3])  # type: ignore[no-any-return, no-untyped-call]

        return super()._apply(shaped, recurse)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``nn.Conv2d`` of as many inputs does."""
        init(self.weight, self.bias)

    def filters(self) -> Tensor:
        """The bank (out_channels·|G|, in_channels[·|G|], k, k) that torch's ``conv2d`` takes, the group axis inside."""
        bank = orbit(self.weight, self._tables(self._moves))
        if self.inp == "regular":
            bank = bank.flatten(2, 3)
        return bank.transpose(0, 1).flatten(0, 1)

    def forward(self, z: Tensor) -> Tensor:
        """The convolution of z; see the class."""
        self._check(z)
        if self.inp == "regular":
            z = z.flatten(1, 2)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.action.order)
        out = functional.conv2d(z, self.filters(), bias, self.stride, self.padding, self.dilation)
        split: Tensor = out.unflatten(1, (self.out_channels, self.action.order))  # type: ignore[no-untyped-call]
        return split

    def _check(self, z: object) -> None:
        if not isinstance(z, Tensor):
            raise TypeError(f"z: expected a torch.Tensor, got {type(z).__name__}")
        sizes = (self.in_channels, self.action.order) if self.inp == "regular" else (self.in_channels,)
        if z.dim() != 3 + len(sizes) or tuple(z.shape[1 : 1 + len(sizes)]) != sizes:
            shape = ", ".join(map(str, sizes))
            raise ValueError(f"z: expected shape (B, {shape}, H, W), got {tuple(z.shape)}")
        for axis in self._reversed:
            side, size = "HW"[axis], z.shape[axis - 2]
            rest = (size + 2 * self.padding - self.dilation * (self.kernel_size - 1) - 1) % self.stride
            if rest:
                raise ValueError(
                    f"z: expected windows that fill the image, since {self.action.name!r} exchanges its ends, but with "
                    f"kernel_size {self.kernel_size}, stride {self.stride}, padding {self.padding} and dilation "
                    f"{self.dilation} they leave out {rest} of {side} = {size}; crop or pad z to {side} = {size - rest}"
                )

    def extra_repr(self) -> str:
        """The layer's settings."""
        return (
            f"{self.action!r}, {self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"inp={self.inp!r}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}"
        )
