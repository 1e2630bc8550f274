"""Regular features: outputs that keep the group axis, and layers that share their parameters over it.

One convention throughout. The group axis lies directly before the dims that the group moves: (\\*, C, |G|) for vectors,
(B, C, |G|, H, W) for maps. Where x becomes hx, entry g moves to entry g h⁻¹ and, on maps, h turns the image:

    (h·z)[g h⁻¹] = h · z[g],   the same as   (h·z)[g] = h · z[g h].

Batch norms (``BatchNorm1d`` on vectors, ``BatchNorm3d`` on maps), whatever works on each number alone and dropout of
whole channels leave that as it is.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..actions import Action, GroupAction, MatrixAction, PermutationAction, regular
from ..core import checks
from ..groups import Group
from ..ops import orbit, orbit_mean
from ..ops.checked import undo_each
from ..scalars import index
from ..views import FLOATS
from .inputs import NOT_GIVEN
from .merging import Gathered
from .specs import ActionSpec, action_of
from .tables import ActionTables
from .views import OrbitModule, in_group_order

__all__ = ["EquivariantHead", "GroupLinear", "GroupPool", "InvariantHead", "RegularLift"]


class RegularLift(OrbitModule):
    """A backbone's regular features: ``M^R_G(x)[g] = g⁻¹ M(g x)`` for every g (equi-tuning, arXiv 2210.06475).

    What ``EquiTune`` averages is kept, every view's output turned back, on a group axis that the layers of this module
    and ``GroupConv2d`` share their parameters over. For hx, entry g is h times what entry g h was for x:
    ``M^R_G(h x)[g] = h · M^R_G(x)[g h]``.

    Args:
        backbone, inp, out, views_per_forward, strict, mesh: as in ``EquiTune``; all processes get all views.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch with a group axis directly before the dims that ``out``
        moves: (B, C, |G|, H, W) for maps (B, C, H, W) under a grid, (B, F, |G|) for features (B, F) under
        ``"trivial"``, (B, |G|, n) for what a permutation or matrices of the last dim act on.

    Raises:
        TypeError, ValueError: as ``EquiTune``.

    Example:
        >>> lift = RegularLift(torch.nn.Conv2d(3, 4, 3, padding=1), "c4", "c4")
        >>> x = torch.randn(2, 3, 6, 8)
        >>> z, turned = lift(x), lift(x.rot90(1, (-2, -1)))
        >>> z.shape, bool((turned[:, :, 0] - z[:, :, 1].rot90(1, (-2, -1))).abs().max() < 1e-5)
        (torch.Size([2, 4, 4, 6, 8]), True)
    """

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The regular features for a batch x (B, \\*, H, W) and what else the backbone takes; see the class."""

        def merge_one(y: Tensor, action: Action, _: Tensor | None, elements: list[int]) -> Tensor:
            axis = y.dim() - 1 - action.dims
            return in_group_order(undo_each("output", y, action, axis), elements, axis)

        return self._merged(self._inputs.given(x, args, kwargs), lambda output: Gathered(output, merge_one))


class GroupLinear(nn.Module):
    """The equivariant linear map of regular features of any finite group: a group convolution on the group axis.

    ``out[o, g] = Σ_{c,u} weight[o, c, u] · z[c, u g] + bias[o]``: |G| times fewer parameters than a plain linear map of
    the same sizes, and every equivariant one is of this form.

    Args:
        group: the group, an action of it, or a grid's name such as ``"d4"``.
        in_features, out_features: the channels, each with |G| entries.
        bias: add one number to each output channel.
        to: the parameters' ``device`` and ``dtype``.

    Attributes:
        weight: (out_features, in_features, |G|).
        bias: (out_features,) or None.

    Shapes:
        z (\\*, in_features, |G|) → (\\*, out_features, |G|).

    Raises:
        TypeError, ValueError: not a group, sizes that are no positive whole numbers; in the forward, a z of another
            shape.

    Example:
        >>> from equikern import cyclic_group
        >>> layer = GroupLinear(cyclic_group(3), 5, 7)
        >>> z = torch.randn(2, 5, 3)
        >>> torch.allclose(layer(z.roll(1, -1)), layer(z).roll(1, -1), atol=1e-6)
        True
    """

    def __init__(
        self,
        group: Group | ActionSpec,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.group = _group(group)
        self.in_features = checks.whole("in_features", in_features, 1)
        self.out_features = checks.whole("out_features", out_features, 1)
        # The inverse of the regular representation, as an action.
        self._moves = Action("regular", regular(self.group, -1).inverse_maps)
        self._tables = ActionTables([self._moves])
        checks.flag("bias", bias)
        checks.placed(device, dtype)
        shape = (out_features, in_features, self.group.order)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``nn.Linear`` of in_features·|G| inputs does."""
        init(self.weight, self.bias)

    def matrix(self) -> Tensor:
        """The plain linear map's weight (out_features·|G|, in_features·|G|), of the |G| views of ``weight``."""
        # [g, o, c, k] = weight[o, c, k g⁻¹]
        bank = orbit(self.weight, self._tables(self._moves))
        return bank.transpose(0, 1).flatten(2).flatten(0, 1)

    def forward(self, z: Tensor) -> Tensor:
        """The map of z (\\*, in_features, |G|); see the class."""
        _check(z, self.in_features, self.group.order, 0)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.group.order)
        out = functional.linear(z.flatten(-2), self.matrix(), bias)
        split: Tensor = out.unflatten(-1, (self.out_features, self.group.order))  # type: ignore[no-untyped-call]
        return split

    def extra_repr(self) -> str:
        """The layer's sizes."""
        return f"{self.group!r}, {self.in_features}, {self.out_features}, bias={self.bias is not None}"


class GroupPool(nn.Module):
    """The largest entry, or the mean, over the group axis: regular features become plain, equivariant ones.

    ``out = max_g z[g]``, which h turns and otherwise leaves alone: a map of scalars, or an invariant vector.

    Args:
        mode: ``"max"`` or ``"mean"``.
        dims: the dims behind the group axis: 2 for maps, 0 for vectors.

    Shapes:
        z (\\*, C, |G|, H, W) → (\\*, C, H, W), or with ``dims=0`` (\\*, C, |G|) → (\\*, C).

    Raises:
        ValueError: an unknown mode, dims that are neither 0 nor 2; in the forward, a z without a group axis.

    Example:
        >>> GroupPool("max")(torch.randn(2, 4, 8, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    def __init__(self, mode: Literal["max", "mean"] = "max", dims: int = 2) -> None:
        super().__init__()
        checks.choice("mode", mode, ("max", "mean"))
        self.mode, self.dims = mode, _dims(dims)

    def forward(self, z: Tensor) -> Tensor:
        """The pooled z; see the class."""
        _check(z, None, None, self.dims)
        return z.amax(-1 - self.dims) if self.mode == "max" else z.mean(-1 - self.dims)

    def extra_repr(self) -> str:
        """The layer's settings."""
        return f"{self.mode!r}, dims={self.dims}"


class InvariantHead(nn.Module):
    """Outputs that the group leaves alone, from regular features: ``A · mean_{H,W} pool_g z[g] + b``.

    Args:
        in_features: the channels of z.
        out_features: the outputs, such as classes.
        pool: ``"max"`` or ``"mean"`` over the group axis. (The mean of what ``RegularLift`` gives is equitune's.)
        dims: the dims behind the group axis: 0 for vectors, 2 for maps.
        to: the parameters' ``device`` and ``dtype``.

    Shapes:
        z (\\*, in_features, |G|) or (\\*, in_features, |G|, H, W) → (\\*, out_features).

    Raises:
        TypeError, ValueError: sizes that are no positive whole numbers, an unknown pool or dims; in the forward, a z of
            another shape.

    Example:
        >>> head = InvariantHead(6, 10, dims=0)
        >>> z = torch.randn(2, 6, 4)
        >>> torch.allclose(head(z.roll(1, -1)), head(z))
        True
    """

    def __init__(
        self, in_features: int, out_features: int, pool: Literal["max", "mean"] = "max", dims: int = 2, **to: Any
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1)
        checks.choice("pool", pool, ("max", "mean"))
        self.pool = GroupPool(pool, dims)
        self.linear = nn.Linear(in_features, checks.whole("out_features", out_features, 1), **to)

    def forward(self, z: Tensor) -> Tensor:
        """The outputs for z; see the class."""
        _check(z, self.in_features, None, self.pool.dims)
        return self.linear(_space_mean(self.pool(z), self.pool.dims))  # type: ignore[no-any-return]


class EquivariantHead(nn.Module):
    """Outputs that the group acts on, from regular features: ``1/|G| Σ_g g⁻¹ (A · mean_{H,W} z[g] + b)``.

    One linear map for all entries of the group axis: moves of a game, words of a vocabulary, coordinates.

    Args:
        in_features: the channels of z.
        out: the action on the last dim of the outputs, by ``permutation`` or ``matrix``.
        dims: the dims behind the group axis: 0 for vectors, 2 for maps.
        to: the parameters' ``device`` and ``dtype``.

    Shapes:
        z (\\*, in_features, |G|) or (\\*, in_features, |G|, H, W) → (\\*, out.size), with ``head(h·z) = h·head(z)``.

    Raises:
        TypeError, ValueError: a size that is no positive whole number, an action of another kind or dim, other dims;
            in the forward, a z of another shape.

    Example:
        >>> from equikern.rl import gridworld
        >>> head = EquivariantHead(6, gridworld().out, dims=0)
        >>> z = torch.randn(2, 6, 4)
        >>> turned = z.roll(-1, -1)  # entry g of the turned one is entry g + 1
        >>> torch.allclose(head(turned), head(z).roll(1, -1), atol=1e-6)  # right becomes up
        True
    """

    def __init__(self, in_features: int, out: PermutationAction | MatrixAction, dims: int = 2, **to: Any) -> None:
        super().__init__()
        self.in_features, self.dims = checks.whole("in_features", in_features, 1), _dims(dims)
        if not isinstance(out, (PermutationAction, MatrixAction)):
            raise TypeError(f"out: expected an action by permutation(…) or matrix(…), got {type(out).__name__}")
        if out.dims != 1:
            raise ValueError(f"out: expected an action on the last dim, got one on dim {-out.dims}")
        self.out = out
        self._tables = ActionTables([out])
        self.linear = nn.Linear(in_features, out.size, **to)

    def forward(self, z: Tensor) -> Tensor:
        """The outputs for z; see the class."""
        _check(z, self.in_features, self.out.order, self.dims)
        entries = _space_mean(z, self.dims).movedim(-1, 0)
        return orbit_mean(self.linear(entries), self._tables(self.out))

    def extra_repr(self) -> str:
        """The output's action."""
        return f"out={self.out!r}, dims={self.dims}"


def init(weight: Tensor, bias: Tensor | None) -> None:
    """Torch's own for linear maps and convolutions, for a weight (out, in, …), which must be one of floats."""
    if weight.dtype not in FLOATS:
        raise TypeError(f"dtype: expected float16, bfloat16, float32 or float64, got {weight.dtype}")
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)


def _group(spec: object) -> Group:
    if isinstance(spec, str):
        spec = action_of("group", spec, None)
    if isinstance(spec, GroupAction):
        spec = spec.group
    if not isinstance(spec, Group):
        raise TypeError(f"group: expected a group, an action or a name such as 'd4', got {type(spec).__name__}")
    return spec


def _dims(dims: object) -> int:
    number = index("dims", dims)
    if number not in (0, 2):
        raise ValueError(f"dims: expected 2 for maps (…, |G|, H, W) or 0 for vectors (…, |G|), got {number}")
    return number


def _check(z: object, channels: int | None, order: int | None, dims: int) -> None:
    """That z is (…, C, |G|) with these sizes, None standing for any, and ``dims`` more dims behind."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z: expected a torch.Tensor, got {type(z).__name__}")
    fits = z.dim() >= 2 + dims  # sizes are compared one by one: they may be symbols
    fits = fits and (channels is None or z.shape[-2 - dims] == channels)
    if not fits or (order is not None and z.shape[-1 - dims] != order):
        shape = f"…, {channels or 'C'}, {order or '|G|'}" + ", H, W" * (dims == 2)
        raise ValueError(f"z: expected regular features ({shape}), got shape {tuple(z.shape)}")


def _space_mean(z: Tensor, dims: int) -> Tensor:
    return z.flatten(-2).mean(-1) if dims else z
