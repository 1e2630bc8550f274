"""Several inputs, each under a group of its own: ``InvariantSymmetric`` and ``MultiInputEquiTune``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..actions import Action, GroupAction, trivial
from ..core import checks
from ..ops import orbit_mean, symmetrize
from .factors import Factor, each_output, means_of, one_each
from .inputs import NOT_GIVEN
from .joined import ranks_of
from .merging import Gathered
from .specs import (
    ActionSpec,
    InputSpec,
    OutputSpec,
    Together,
    acting,
    action_of,
    input_actions,
    output_actions,
    together,
)
from .tables import ActionTables
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["InvariantSymmetric", "MultiInputEquiTune"]

Backbone = Callable[..., Any]


class InvariantSymmetric(Factor):
    """What one input says to the output of another (IS layer, arXiv 2310.09675).

    ``M(X₁) = 1/(|G₁||G₂|) Σ_{g₂} Σ_{g₁} g₂ M(g₁ X₁)``: no element of G₁ on the input changes it, and every element of
    G₂ leaves it fixed. By linearity it takes |G₁| forwards and one symmetrisation of their mean.

    Args:
        backbone, views_per_forward, strict, mesh: as in ``EquiTune``.
        inp: how G₁ acts on the input, or on several.
        out: how G₂, any group, acts on the output, or on several.

    Shapes:
        x (B, \\*, H, W) → what the backbone gives for one batch. A rectangle under a G₁ with 90° rotations asks for
        outputs of one shape for upright and turned images.

    Raises:
        TypeError, ValueError: as ``EquiTune``.

    Example:
        >>> import torch
        >>> layer = InvariantSymmetric(torch.nn.Conv2d(3, 4, 3, padding=1), "c4", "flips")
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y = layer(x)
        >>> bool((layer(x.rot90(1, (-2, -1))) - y).abs().max() < 1e-5), bool((y.flip(-1) - y).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(
        self,
        backbone: Backbone,
        inp: InputSpec,
        out: InputSpec,
        views_per_forward: int | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        leading = input_actions("inp", inp)[1]
        fixing = input_actions("out", out)[0]
        outs = each_output(fixing, lambda action: Together([trivial(leading.group), action]))
        super().__init__(backbone, inp, outs, 0, views_per_forward, strict, mesh)
        self.fixing = fixing
        self._fixing_tables = ActionTables(acting(fixing))

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The layer's output for a batch x and what else the backbone takes; see the class."""
        means = means_of(self, self._inputs.given(x, args, kwargs))
        pairs = zip(means.tensors, means.specs, strict=True)
        return means.made(self._fixed(mean, spec.actions[1]) for mean, spec in pairs)

    def _fixed(self, mean: Tensor, action: GroupAction) -> Tensor:
        if action.order > 1 and mean.dim() < 1 + action.dims:  # the batch is no dim to act on
            raise ValueError(
                f"out: expected outputs (B, …, {checks.moved(action)}) for {action.name!r} to act on, but "
                f"got {tuple(mean.shape)} from the backbone; "
                'an output without spatial dims takes "trivial"'
            )
        return symmetrize(mean, self._fixing_tables(action))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inp={self._inputs.actions!r}, out={self.fixing!r}"


class MultiInputEquiTune(nn.Module):
    """Several inputs, one output for each, equivariant to a group on every input (arXiv 2310.09675).

    With input X_i under G_i, which acts on output i too,

        ``y_i = 1/|G_i| Σ_g [g⁻¹ M_i(g X_i) + g Σ_{j≠i} Inv_j(X_j)]``,  ``Inv_j(X_j) = 1/|G_j| Σ_g F_j(g X_j)``:

    transforming X_i transforms y_i and leaves every other output as it is. Each M_i and each F_j makes |G_i| forwards,
    so Σ|G_i| in place of the Π|G_i| of the whole product; one kernel adds the symmetrised sum to the equivariant part.

    Args:
        backbones: M_i, a list with one for each input, or one for all.
        inps: how G_i acts on input i, a tensor: a list of actions or names.
        outs: how it acts on what M_i returns: a list, or one spec such as ``"trivial"`` for all. Backbones with several
            outputs have a dict or tuple for each, as in ``EquiTune``.
        fusions: F_j, whose outputs are like those of every other input's backbone: a list with one or None (says
            nothing to the others) for each input, one for all, or None for inputs that do not meet.
        views_per_forward, strict, mesh: as in ``EquiTune``; each backbone's and each fusion's views are split by
            themselves.

    Shapes:
        x_1, …, x_N (B, …) → a tuple with what each backbone returns. Keywords go to every backbone and fusion, repeated
        for every view as inputs that are not named are in ``EquiTune``.

    Raises:
        TypeError: a backbone or fusion that cannot be called, a spec that is no action.
        ValueError: lists of other lengths, actions of different groups, outputs in other containers than those that
            fusions add to; in the forward, another number of inputs,
            fusions' outputs that do not fit, or something to add to rectangular outputs that 90° rotations turn: no
            rectangle is fixed by those.

    Example:
        >>> import torch
        >>> conv, fuse = (torch.nn.Conv2d(1, 4, 3, padding=1) for _ in range(2))
        >>> model = MultiInputEquiTune(conv, ["c4", "flips"], ["c4", "flips"], fuse)
        >>> x, z = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
        >>> (y1, y2), (t1, t2) = model(x, z), model(x.rot90(1, (-2, -1)), z)
        >>> bool((t1 - y1.rot90(1, (-2, -1))).abs().max() < 1e-5), bool((t2 - y2).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(
        self,
        backbones: Backbone | Sequence[Backbone],
        inps: Sequence[ActionSpec],
        outs: OutputSpec | Sequence[OutputSpec],
        fusions: Backbone | Sequence[Backbone | None] | None = None,
        views_per_forward: int | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        ranks = ranks_of(mesh, type(self).__name__)
        actions = named_actions("inps", inps)
        count = len(actions)
        models, specs = one_each("backbones", backbones, count), one_each("outs", outs, count)
        fusing = one_each("fusions", fusions, count)
        for i, model in enumerate(fusing):
            if model is not None and not callable(model):
                raise TypeError(f"fusions[{i}]: expected a module, a callable or None, got {type(model).__name__}")
        each = [
            output_actions(spec, inp, f"outs[{i}]") for i, (spec, inp) in enumerate(zip(specs, actions, strict=True))
        ]
        options: dict[str, Any] = {"views_per_forward": views_per_forward, "strict": strict, "mesh": ranks}
        self.equivariant = nn.ModuleList(
            _Plus(model, inp, spec, **options) for model, inp, spec in zip(models, actions, each, strict=True)
        )
        told = together("outs", each) if any(model is not None for model in fusing) else None
        self.invariant = nn.ModuleList(
            nn.Identity() if model is None else _Plus(model, inp, each_output(told, _leaving_alone(inp)), **options)
            for model, inp in zip(fusing, actions, strict=True)
        )
        self.fuses = tuple(model is not None for model in fusing)

    def forward(self, *xs: Tensor, **kwargs: Any) -> tuple[Any, ...]:
        """An output for every input; see the class."""
        if len(xs) != len(self.fuses):
            raise ValueError(f"xs: expected {len(self.fuses)} inputs, got {len(xs)}")
        layers = zip(self.invariant, self.fuses, xs, strict=True)
        said = [cast(_Plus, layer).said(x, kwargs) if fuses else None for layer, fuses, x in layers]
        found = []
        for i, (layer, x) in enumerate(zip(self.equivariant, xs, strict=True)):
            others = [z for j, z in enumerate(said) if j != i and z is not None]
            found.append(layer(x, _sums(others), kwargs))
        return tuple(found)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the parts."""
        return f"inputs={len(self.fuses)}, fusing={sum(self.fuses)}"


class _Plus(OrbitModule):
    """Equitune with tensors whose means over the group are added in the same pass."""

    def said(self, x: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean of every output, by name."""
        means = means_of(self, self._inputs.given(x, (), kwargs))
        return dict(zip(means.names, means.tensors, strict=True))

    def forward(self, x: Tensor, others: dict[str, Tensor] | None, kwargs: Mapping[str, Any]) -> Any:
        given = self._inputs.given(x, (), kwargs)
        if others is None:
            return means_of(self, given).whole()
        turning = [spec.name for spec in acting(self.out) if spec.square]
        if turning and not self.inp.views.keeps(x.shape):
            raise ValueError(
                f"x: expected a square image for {self.inp.name!r}, got {x.shape[-2]}×{x.shape[-1]}: what other "
                f"inputs add to an output must be fixed under {turning[0]!r}, and 90° rotations fix no "
                "rectangle"
            )
        if len(self._parts(given)) == 1:
            added = self._each_merged(
                given, lambda out: Gathered(out, lambda y, action, *_: self._mean(y, action, others, out.name))
            )
            _check_names(others, added.names)
            return added.whole()
        means = means_of(self, given)
        _check_names(others, means.names)
        each = zip(means.names, means.tensors, means.specs, strict=True)
        return means.made(mean + symmetrize(_like(mean, others, at), self._tables(spec)) for at, mean, spec in each)

    def _mean(self, y: Tensor, action: Action, others: dict[str, Tensor], name: str) -> Tensor:
        whole = GroupAction(self.inp.group, action.name, action.maps)  # all views are here
        return orbit_mean(y, whole, plus=_like(y[0], others, name))


def named_actions(name: str, specs: object) -> list[GroupAction]:
    """A list of actions, one or more, from a list of specs."""
    if isinstance(specs, str) or not isinstance(specs, Sequence):
        raise TypeError(f"{name}: expected a list of actions or names, got {type(specs).__name__}")
    if not specs:
        raise ValueError(f"{name}: expected at least one action, got none")
    return [action_of(f"{name}[{i}]", spec, None) for i, spec in enumerate(specs)]


def _leaving_alone(inp: GroupAction) -> Callable[[Any], GroupAction]:
    return lambda _: trivial(inp.group)


def _like(mean: Tensor, others: dict[str, Tensor], name: str) -> Tensor:
    """What other inputs say to an output, in its dtype."""
    if name not in others:
        _check_names(others, [name])
    plus = others[name]
    if plus.shape != mean.shape:
        at = f" at {name}" if name else ""
        raise ValueError(
            f"fusions: expected outputs{at} like those of the backbones they are added to, {tuple(mean.shape)}, "
            f"got {tuple(plus.shape)}"
        )
    return plus.to(mean.dtype)


def _check_names(others: dict[str, Tensor], names: Sequence[str]) -> None:
    if set(names) != set(others):
        raise ValueError(f"fusions: expected the outputs of the backbones, {sorted(names)}, got {sorted(others)}")


def _sums(said: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """What all others say to every output."""
    if not said:
        return None
    total = dict(said[0])
    for other in said[1:]:
        _check_names(other, [*total])
        for name, t in other.items():
            if t.shape != total[name].shape:
                raise ValueError(
                    f"fusions: expected outputs of one shape, got {tuple(total[name].shape)} and {tuple(t.shape)}"
                )
            total[name] = total[name] + t
    return total
