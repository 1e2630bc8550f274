"""``CanonicalLambdaEquiTune``: λ-equitune for continuous groups of rotations, through a canonical pose and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..actions import Action, MatrixAction, MatrixSamples, matrix
from ..core import checks
from ..core.act import act
from ..core.functions import transformed
from ..ops import orbit_mean, orbit_weighted_mean
from ..ops.checked import orbit_some
from ..scalars import index
from ..views import FLOATS, still
from ..views.maps import Maps
from .features import shares, weighed
from .inputs import NOT_GIVEN, Given, Inputs
from .joined import join, ranks_of
from .merging import Output, Summed, Weighted
from .outputs import Fitted
from .specs import acting, mapped
from .tables import ActionTables

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["CanonicalLambdaEquiTune", "principal_frame", "vector_frame"]

_ORTHOGONAL = 1e-3  # how far hᵀh may be from the identity


class CanonicalLambdaEquiTune(nn.Module):
    """Make a backbone on coordinates equivariant to all rotations (canonical-λ-equitune, arXiv 2305.09900).

    With h an equivariant map from inputs to rotations, ``h(g x) = g h(x)``, and ``z = h(x)⁻¹ x`` the input in its
    canonical pose, which no rotation changes,

    ============= =======================================
    invariant     ``Σ_θ λ(θz) M(θz) / Σ_θ λ(θz)``
    equivariant   ``h(x) · Σ_θ λ(θz) M(θz) / Σ_θ λ(θz)``
    ============= =======================================

    over a finite set Θ of rotations. The backbone sees the |Θ| poses of a batch as one batch of |Θ|·B samples. Θ =
    {identity} is plain canonicalisation, a constant λ the mean over Θ.

    Args:
        backbone: a module, or any callable, from (B, \\*, d), and whatever else it takes, to tensors (B, …).
        canonical: h, from x (B, \\*, d) to orthogonal matrices (B, d, d): ``vector_frame``, ``principal_frame`` or a
            callable of one's own, a network included. The output is as equivariant as h is.
        theta: Θ, matrices (|Θ|, d, d) or an action made by ``matrix``. They need not form a group.
        weight_net: λ, a module from poses (N, \\*, d) to one number for each, (N, 1) or (N,); None for a constant.
        out: ``"invariant"``, or ``"equivariant"`` for outputs (B, …, d) whose last dim turns with x. A tuple or dict of
            these for a backbone with several outputs; None drops one, and ``"shared"`` keeps what has no batch.
        normalize: ``"softmax"``: λ is the exponential of what weight_net says, so positive; ``"sum"``: what it says,
            which must then be positive; None: the same without division by the sum.
        undo: for ``"equivariant"``, turn every pose's output back before the mean, ``θ⁻¹ M(θz)`` in place of
            ``M(θz)``: both are equivariant, and a backbone that is so already then stays as it is.
        inp: ``"turned"``, a tuple or a dict, as in ``EquiTune``, for a backbone with several inputs: those that are
            ``"turned"`` are (B, \\*, d) and turn with x, which is the first of them and decides the pose; by default
            that is the backbone's first input alone. None, or not named: repeated for every pose; ``"shared"``: passed
            on as it is.
        strict: as in ``EquiTune``.
        mesh: as in ``EquiTune``, for the poses.
        views: k: the backbone sees the k poses of most λ alone, each sample its own, and they are what is averaged. λ
            is evaluated on all of them first, and no rotation changes what it says, so the output is as equivariant for
            every k. Where two poses have the same λ within rounding, which of them is taken may change with x.

    Shapes:
        x (B, \\*, d), such as (B, points, d) or (B, d) → what the backbone gives for one batch.

    Raises:
        TypeError: a backbone, canonical or weight_net that cannot be called, matrices that are none.
        ValueError: an unknown inp, out or normalize, undo where no output is equivariant, more views than |Θ|, views
            without weight_net or beside mesh; in the forward, an x of
            another size or without a batch dim, an h, weights or an output of the wrong shape, an h that is not
            orthogonal (looked at on the CPU alone: elsewhere it would cost a wait for the device).

    Example:
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(10, 3))
        >>> quarters = [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]
        >>> model = CanonicalLambdaEquiTune(backbone, vector_frame, quarters)
        >>> x = torch.randn(4, 5, 2)
        >>> turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        >>> bool((model(x @ turn.T) - model(x)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        backbone: Callable[..., Any],
        canonical: Callable[[Tensor], Tensor],
        theta: Action | Tensor | Sequence[Sequence[Sequence[float]]],
        weight_net: Callable[[Tensor], Tensor] | None = None,
        out: Any = "invariant",
        normalize: Literal["sum", "softmax"] | None = "softmax",
        undo: bool = False,
        inp: Any = "turned",
        strict: bool = True,
        mesh: Mesh | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("backbone", backbone), ("canonical", canonical), ("weight_net", weight_net)):
            if name != "weight_net" or given is not None:
                checks.model(name, given)
        checks.choice("normalize", normalize, ("sum", "softmax", None))
        checks.flag("undo", undo)
        checks.flag("strict", strict)
        self.backbone = backbone
        self.canonical = canonical
        self.theta = _samples(theta)
        self._tables = ActionTables([self.theta])
        self._still = Action("still", Maps(still(self.theta.order).code))
        self.weight_net = weight_net
        self.out, self._out = out, mapped("out", out, {"invariant": self._still, "equivariant": self.theta})
        acted = mapped("inp", inp, {"turned": self.theta})
        if not acting(acted):
            raise ValueError(f"inp: expected one input at least that is 'turned', got {inp!r}")
        if undo and not any(spec is self.theta for spec in acting(self._out)):
            raise ValueError("undo: expected False for an invariant output, which nothing turns")
        self._inputs = Inputs(acted, backbone, False)
        self.normalize: Literal["sum", "softmax"] | None = normalize
        self.undo, self.strict = undo, strict
        self.views = None if views is None else self._most(views, mesh)
        self._kept = self._still if self.views is None else Action("kept", Maps(still(self.views).code))
        self.ranks = ranks_of(mesh, type(self).__name__)
        if self.ranks is not None:
            self.ranks.listen(self)

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The output for a batch x (B, \\*, d) and what else the backbone takes; see the class."""
        given, h = self._posed(x, args, kwargs)
        if self.views is not None:
            return self._of_best(given, h, self.views)
        elements = self._own()
        seen, named = given.seen(elements, self._tables)
        fitted = Fitted(self.backbone(*seen, **named), self._out, len(elements), given.batch, self.strict)
        raw = self._raw(given, elements)
        return fitted.made(iter([self._merged(y, spec, raw, h, elements) for y, spec in fitted.pairs]))

    def _of_best(self, given: Given, h: Tensor, views: int) -> Any:
        """The output of the poses of most λ."""
        raw, elements = self._best(given, views)

        def see(at: str, t: Tensor, action: Action) -> Tensor:
            return act(t.expand(views, *t.shape), elements, self._tables(action), name=at).flatten(0, 1)

        seen, named = given.shown(see, views)
        fitted = Fitted(self.backbone(*seen, **named), self._out, views, given.batch, self.strict)

        def merged(y: Tensor, spec: Action) -> Tensor:
            turns = self._turns(y, spec)
            if turns and self.undo:
                y = act(y, elements, self._tables(self.theta), inverse=True)
            mean = orbit_weighted_mean(y, raw, self._kept, self.normalize)
            return _turned(h, mean) if turns else mean

        return fitted.made(iter([merged(y, spec) for y, spec in fitted.pairs]))

    def _best(self, given: Given, views: int) -> tuple[Tensor, Tensor]:
        """What weight_net says of the poses of most λ, and which these are: (k, B) each, most first."""
        raw = self._raw(given, list(range(self.theta.order)))
        assert raw is not None  # as checked
        found = raw.sort(dim=0, descending=True, stable=True)
        return found.values[:views], found.indices[:views]

    def _turns(self, y: Tensor, spec: Action) -> bool:
        """Whether an output (n, B, …) turns with x."""
        turns = spec is self.theta
        if turns and (y.dim() < 3 or y.shape[-1] != self.theta.size):
            raise ValueError(
                f"backbone: expected outputs (B, …, {self.theta.size}) to turn with x, got {tuple(y.shape[1:])}"
            )
        return turns

    def _merged(self, y: Tensor, spec: Action, raw: Tensor | None, h: Tensor, elements: list[int]) -> Tensor:
        turns = self._turns(y, spec)
        action = self._tables(self.theta) if turns and self.undo else self._still
        if self.ranks is not None:
            merged = self._joined(y, raw, action, elements)
        else:
            merged = orbit_mean(y, action) if raw is None else orbit_weighted_mean(y, raw, action, self.normalize)
        return _turned(h, merged) if turns else merged

    def weights(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """How much each pose of each sample counts: (|Θ|, B), in the order of theta's matrices.

        Shares that add up to 1 over the poses, but for ``normalize=None``: to look at or to plot. With ``views``, 0
        for the poses that the backbone does not see.
        """
        given, _ = self._posed(x, args, kwargs)
        if self.views is not None:
            best, elements = self._best(given, self.views)
            none = best.new_zeros(self.theta.order, given.batch)
            return none.scatter(0, elements, shares(best, self.normalize))
        raw = self._raw(given, self._own())
        if raw is not None and self.ranks is not None:
            raw = self.ranks.gathered(raw, self.theta.order, "the poses' weights")
        if raw is None:
            return torch.full((self.theta.order, given.batch), 1 / self.theta.order, device=given.x.device)
        return shares(raw, self.normalize)

    def canonicalized(self, x: Tensor) -> Tensor:
        """z = h(x)⁻¹ x, like x in shape: what every rotation of x gives alike."""
        return _turned(self._frame(x).mT, x)

    def _frame(self, x: Tensor) -> Tensor:
        d = self.theta.size
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        if x.dim() < 2 or x.shape[-1] != d:
            raise ValueError(f"x: expected a batch (B, …, {d}) of coordinates, got shape {tuple(x.shape)}")
        h = self.canonical(x)
        if not isinstance(h, Tensor) or h.shape != (x.shape[0], d, d):
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"canonical: expected a matrix for each sample, {(x.shape[0], d, d)}, got {got}")
        if h.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed():
            _check_orthogonal(h.detach())
        return h

    def _most(self, views: int, mesh: Mesh | None) -> int:
        """The number of poses that the backbone sees, checked."""
        checks.whole("views", views, 1)
        if views > self.theta.order:
            raise ValueError(f"views: expected at most {self.theta.order}, the poses of theta, got {views}")
        if self.weight_net is None:
            raise ValueError(f"views: expected None without weight_net, which chooses the poses, got {views}")
        if mesh is not None:
            raise ValueError(f"views: expected None beside mesh, got {views}")
        return views

    def _own(self) -> list[int]:
        """The poses that this process takes; the first one if there is none for it."""
        order = self.theta.order
        return list(range(order)) if self.ranks is None else self.ranks.views(order)

    def _posed(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Given, Tensor]:
        """The inputs in the canonical pose of the one that leads, z, and h(x)."""
        given = self._inputs.given(x, args, kwargs)
        if self.ranks is not None:
            self.ranks.listen(self)
            given = given.each(self.ranks.entered)
        h = self._frame(given.x)

        def posed(at: str, t: Tensor, _: Action) -> Tensor:
            if t.shape[-1] != self.theta.size:
                raise ValueError(
                    f"{at}: expected a batch (B, …, {self.theta.size}) of coordinates, got {tuple(t.shape)}"
                )
            return _turned(h.mT, t)

        return given.changed(posed), h

    def _joined(self, y: Tensor, raw: Tensor | None, action: Action, elements: list[int]) -> Tensor:
        """The merge of the outputs of all processes."""
        assert self.ranks is not None
        output = Output(action, None, (1, 1), False, FLOATS)
        merge = Summed(output, 1.0 / self.theta.order) if raw is None else Weighted(output, self.normalize)
        merge.add(y, elements, raw)
        join(merge, self.ranks, self.ranks.cut([list(range(self.theta.order))]))
        return merge.result()

    def _raw(self, given: Given, elements: list[int]) -> Tensor | None:
        """What weight_net says of the poses θz that this process takes, (n, B)."""
        if self.weight_net is None:
            return None
        poses = orbit_some(given.x, self._tables(self.theta), elements).flatten(0, 1)
        return weighed(self.weight_net, poses, poses.shape[0], "poses").reshape(len(elements), given.batch)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        name = getattr(self.canonical, "__name__", type(self.canonical).__name__)
        views = "" if self.views is None else f", views={self.views}"
        return f"canonical={name}, theta={self.theta!r}, out={self.out!r}, normalize={self.normalize!r}{views}"


def vector_frame(x: Tensor, points: int | Sequence[int] | None = None, centred: bool = False) -> Tensor:
    """The rotation that the directions of chosen points give: an equivariant map from coordinates to SO(2) or SO(3).

    In the plane its first column is the direction of one point, so it is the rotation by that point's angle. In space
    its columns are those of two points, made orthonormal (Gram–Schmidt), and their cross product.

    Undefined, and the identity instead, which does not turn with x: where the point lies in the origin, or the two
    points on one line with it. Near there small changes of x turn the frame far.

    Args:
        x: (B, points, d) with d 2 or 3, or (B, 2), whose one point is taken.
        points: which ones: a number in the plane, two in space; by default the first.
        centred: directions from the points' centroid, in place of the origin.

    Returns:
        (B, d, d) rotations, float32 (float64 for float64), differentiable: ``vector_frame(x @ g.T) = g @
        vector_frame(x)`` for rotations g.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: another shape, or points that x does not have.

    Example:
        >>> vector_frame(torch.tensor([[0.0, 2.0]])).tolist() == [[[0.0, -1.0], [1.0, 0.0]]]
        True
    """
    x = _coordinates(x)
    checks.flag("centred", centred)
    d = x.shape[-1]
    if x.dim() == 2 and d == 2:
        x = x.unsqueeze(1)
    if x.dim() != 3:
        raise ValueError(f"x: expected (B, points, {d}), got shape {tuple(x.shape)}")
    chosen = tuple(range(d - 1)) if points is None else points if isinstance(points, Sequence) else (points,)
    chosen = tuple(index("points", k) for k in chosen)
    if len(chosen) != d - 1 or not all(-x.shape[1] <= k < x.shape[1] for k in chosen):
        raise ValueError(f"points: expected {d - 1} of the {x.shape[1]} points of x, got {points!r}")
    x = _of_unit_size(x)
    if centred:
        x = x - x.mean(1, keepdim=True)
    vectors = [_of_unit_size(x[:, k]) for k in chosen]
    with torch.no_grad():
        undefined = _undefined(vectors).unsqueeze(-1)
    axes = torch.eye(d, dtype=x.dtype, device=x.device)
    # Put in before the divisions, so that their gradients stay finite.
    vectors = [torch.where(undefined, axes[k], v) for k, v in enumerate(vectors)]
    first = vectors[0] / vectors[0].norm(dim=-1, keepdim=True)
    if d == 2:
        return _with_last((first,))
    rest = vectors[1] - (vectors[1] * first).sum(-1, keepdim=True) * first
    return _with_last((first, rest / rest.norm(dim=-1, keepdim=True)))


def principal_frame(x: Tensor) -> Tensor:
    """The rotation to the principal axes of a point set: an equivariant map from coordinates to SO(2) or SO(3).

    Its columns are the directions from the centroid in which the points spread most, and next most in space, each
    pointing where the sum of the cubed coordinates along it is positive; the last column makes it a rotation. The order
    of the points does not matter.

    Undefined, and then some rotation that need not turn with x: where two spreads are equal, or the cubes along one of
    these directions add up to zero, as for symmetric point sets. Gradients are infinite where spreads are equal.

    Args:
        x: (B, points, d), d 2 or 3.

    Returns:
        (B, d, d) rotations, float32 (float64 for float64): ``principal_frame(x @ g.T) = g @ principal_frame(x)`` for
        rotations g.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: another shape.

    Example:
        >>> principal_frame(torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 5.0]]]))[0, :, 0].tolist()
        [0.0, 1.0]
    """
    x = _coordinates(x)
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x: expected (B, points, {x.shape[-1]}) with one point or more, got shape {tuple(x.shape)}")
    x = _of_unit_size(x)
    centred = _of_unit_size(x - x.mean(1, keepdim=True))
    _, directions = torch.linalg.eigh((centred.unsqueeze(-1) * centred.unsqueeze(-2)).sum(1))
    found = []
    for k in range(x.shape[-1] - 1):
        axis = directions[..., -1 - k]  # eigh's order rises
        cubes = (centred * axis.unsqueeze(1)).sum(-1).pow(3).sum(-1, keepdim=True)
        found.append(torch.where(cubes < 0, -axis, axis))
    return _with_last(tuple(found))


def _with_last(columns: tuple[Tensor, ...]) -> Tensor:
    """The rotation whose first columns are given."""
    if len(columns) == 1:
        a, b = columns[0].unbind(-1)
        last = torch.stack((-b, a), -1)
    else:
        last = torch.linalg.cross(*columns)
    return torch.stack((*columns, last), -1)


def _of_unit_size(x: Tensor) -> Tensor:
    """Every sample divided by its largest coordinate: squares and products of others would overflow or underflow."""
    largest = x.detach().abs().flatten(1).amax(1).reshape(-1, *(1,) * (x.dim() - 1))
    return x / largest.masked_fill(largest == 0, 1.0)


def _undefined(vectors: list[Tensor]) -> Tensor:
    """Samples whose directions span no frame."""
    lengths = [v.norm(dim=-1) for v in vectors]
    short: Tensor = lengths[0] == 0
    if len(vectors) == 2:
        cross = torch.linalg.cross(*vectors).norm(dim=-1)
        short |= cross <= 8 * torch.finfo(cross.dtype).eps * lengths[0] * lengths[1]
    return short


def _coordinates(x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() < 2 or x.shape[-1] not in (2, 3):
        raise ValueError(f"x: expected (B, points, 2) or (B, points, 3), got shape {tuple(x.shape)}")
    return x if x.dtype == torch.float64 else x.float()


def _samples(theta: Any) -> MatrixAction | MatrixSamples:
    if isinstance(theta, (MatrixAction, MatrixSamples)):
        return theta
    if isinstance(theta, Action):
        raise TypeError(f"theta: expected matrices or an action made by matrix(…), got {theta!r}")
    try:
        return matrix(theta, closed=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"theta{str(error).removeprefix('mats')}") from None


def _check_orthogonal(h: Tensor) -> None:
    wide = h.double()
    off = (wide.mT @ wide - torch.eye(h.shape[-1], dtype=wide.dtype, device=wide.device)).abs().amax((1, 2))
    wrong = ~(off <= _ORTHOGONAL)  # NaN too
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        raise ValueError(f"canonical: expected orthogonal matrices, got {h[b].tolist()} for sample {b}")


def _turned(h: Tensor, x: Tensor) -> Tensor:
    """``h[b] @ x[b, …]`` along the last dim of x (B, \\*, d), in x's dtype.

    Not matmul, which autocast and TF32 would round.
    """
    rows = h.reshape(h.shape[0], *(1,) * (x.dim() - 2), *h.shape[1:])
    return (x.unsqueeze(-2).to(torch.promote_types(x.dtype, h.dtype)) * rows).sum(-1).to(x.dtype)
