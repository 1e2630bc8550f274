"""Several inputs, each under a group of its own: ``InvariantSymmetric`` and ``MultiInputEquiTune``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ..actions import Action, GroupAction
from ..core import checks
from ..ops import orbit_mean, symmetrize
from .inputs import NOT_GIVEN, Given
from .joined import ranks_of
from .merging import Gathered, Merge, Output, Summed
from .specs import ActionSpec, InputSpec, action_of
from .tables import ActionTables
from .views import Call, OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["InvariantSymmetric", "MultiInputEquiTune"]

T = TypeVar("T")
Backbone = Callable[..., Any]


class InvariantSymmetric(OrbitModule):
    """What one input says to the output of another (IS layer, arXiv 2310.09675).

    ``M(X₁) = 1/(|G₁||G₂|) Σ_{g₂} Σ_{g₁} g₂ M(g₁ X₁)``: no element of G₁ on the input changes it, and every element of
    G₂ leaves it fixed. By linearity it takes |G₁| forwards and one symmetrisation of their mean.

    Args:
        backbone, views_per_forward, mesh: as in ``EquiTune``; the backbone returns one tensor (B, …).
        inp: how G₁ acts on the input, or on several.
        out: how G₂, any group, acts on the output.

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
        out: ActionSpec,
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(backbone, inp, "trivial", views_per_forward, mesh=mesh)
        self.fixing = action_of("out", out, None)
        self._fixing_tables = ActionTables([self.fixing])

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for a batch x and what else the backbone takes; see the class."""
        mean = one_output("backbone", mean_of(self, self._inputs.given(x, args, kwargs)))
        if self.fixing.order > 1 and mean.dim() < 1 + self.fixing.dims:  # the batch is no dim to act on
            raise ValueError(
                f"out: expected outputs (B, …, {checks.moved(self.fixing)}) for {self.fixing.name!r} to act on, but "
                f"got {tuple(mean.shape)} from the backbone; "
                'an output without spatial dims takes "trivial"'
            )
        return symmetrize(mean, self._fixing_tables(self.fixing))

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
        backbones: M_i, a list with one for each input, or one for all. Each returns one tensor (B, …).
        inps: how G_i acts on input i: a list of actions or names.
        outs: how it acts on output i: a list, or one name such as ``"trivial"`` for all.
        fusions: F_j, whose output is like that of every other input's backbone: a list with one or None (says nothing
            to the others) for each input, one for all, or None for inputs that do not meet.
        views_per_forward, mesh: as in ``EquiTune``; each backbone's and each fusion's views are split by themselves.

    Shapes:
        x_1, …, x_N (B, …) → a tuple of N outputs. Keywords go to every backbone and fusion, repeated for every view as
        inputs that are not named are in ``EquiTune``.

    Raises:
        TypeError: a backbone or fusion that cannot be called, a spec that is no action.
        ValueError: lists of other lengths, actions of different groups; in the forward, another number of inputs,
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
        outs: ActionSpec | Sequence[ActionSpec],
        fusions: Backbone | Sequence[Backbone | None] | None = None,
        views_per_forward: int | None = None,
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
        triples = zip(models, actions, specs, strict=True)
        self.equivariant = nn.ModuleList(
            _Plus(model, inp, action_of("outs", spec, inp), views_per_forward, mesh=ranks)
            for model, inp, spec in triples
        )
        self.invariant = nn.ModuleList(
            nn.Identity() if model is None else _Plus(model, inp, "trivial", views_per_forward, mesh=ranks)
            for model, inp in zip(fusing, actions, strict=True)
        )
        self.fuses = tuple(model is not None for model in fusing)

    def forward(self, *xs: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
        """An output for every input; see the class."""
        if len(xs) != len(self.fuses):
            raise ValueError(f"xs: expected {len(self.fuses)} inputs, got {len(xs)}")
        layers = zip(self.invariant, self.fuses, xs, strict=True)
        said = [layer(x, None, kwargs) if fuses else None for layer, fuses, x in layers]
        found = []
        for i, (layer, x) in enumerate(zip(self.equivariant, xs, strict=True)):
            others = [z for j, z in enumerate(said) if j != i and z is not None]
            found.append(layer(x, _sum(others), kwargs))
        return tuple(found)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the parts."""
        return f"inputs={len(self.fuses)}, fusing={sum(self.fuses)}"


def mean_of(module: OrbitModule, given: Given, call: Call | None = None) -> Any:
    """The mean of the views of every output."""
    parts = module._parts(given)

    def make(output: Output) -> Merge:
        if len(parts) > 1:
            return Summed(output, 1.0 / module.inp.order)
        return Gathered(output, lambda y, action, *_: orbit_mean(y, action))

    return module._merged(given, make, call=call, parts=parts)


class _Plus(OrbitModule):
    """Equitune with a tensor whose mean over the group is added in the same pass."""

    def forward(self, x: Tensor, plus: Tensor | None, kwargs: Mapping[str, Any]) -> Tensor:
        given = self._inputs.given(x, (), kwargs)
        if plus is None:
            return one_output("backbones", mean_of(self, given))
        parts = self._parts(given)
        if self.out.square and not self.inp.views.keeps(x.shape):
            raise ValueError(
                f"x: expected a square image for {self.inp.name!r}, got {x.shape[-2]}×{x.shape[-1]}: what other "
                f"inputs add to an output must be fixed under {self.out.name!r}, and 90° rotations fix no "
                "rectangle"
            )

        def check(like: tuple[int, ...]) -> None:
            if plus.shape != like:
                raise ValueError(
                    f"fusions: expected outputs like those of the backbones they are added to, {like}, "
                    f"got {tuple(plus.shape)}"
                )

        def merge_one(y: Tensor, action: Action, *_: object) -> Tensor:
            check(tuple(y.shape[1:]))
            whole = GroupAction(self.out.group, action.name, action.maps)  # all views are here
            return orbit_mean(y, whole, plus=plus.to(y.dtype))

        if len(parts) == 1:
            return one_output("backbones", self._merged(given, lambda output: Gathered(output, merge_one), parts=parts))
        mean = one_output("backbones", mean_of(self, given))
        check(tuple(mean.shape))
        return mean + symmetrize(plus.to(mean.dtype), self._tables(self.out))


def named_actions(name: str, specs: object) -> list[GroupAction]:
    """A list of actions, one or more, from a list of specs."""
    if isinstance(specs, str) or not isinstance(specs, Sequence):
        raise TypeError(f"{name}: expected a list of actions or names, got {type(specs).__name__}")
    if not specs:
        raise ValueError(f"{name}: expected at least one action, got none")
    return [action_of(f"{name}[{i}]", spec, None) for i, spec in enumerate(specs)]


def one_each(name: str, given: Any, count: int) -> list[Any]:
    """A list with one for each of ``count``, from such a list or from one for all."""
    if isinstance(given, (list, tuple, nn.ModuleList)):
        if len(given) != count:
            raise ValueError(f"{name}: expected {count}, one for each of inps, got {len(given)}")
        return list(given)
    return [given] * count


def one_output(name: str, merged: Any) -> Tensor:
    """The merged output of a backbone that may have one alone.

    Raises:
        TypeError: it has several; the message begins with ``name``.
    """
    if not isinstance(merged, Tensor):
        raise TypeError(f"{name}: expected one output tensor, got {type(merged).__name__}")
    return merged


def _sum(tensors: list[Tensor]) -> Tensor | None:
    if not tensors:
        return None
    total = tensors[0]
    for t in tensors[1:]:
        if t.shape != total.shape:
            raise ValueError(f"fusions: expected outputs of one shape, got {tuple(total.shape)} and {tuple(t.shape)}")
        total = total + t
    return total
