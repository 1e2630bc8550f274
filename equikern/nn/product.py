"""``ProductEquiTune``: a product of groups at the cost of their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..actions import TokenAction
from ..core import checks
from ..ops import symmetrize
from ..views import FLOATS
from .commuting import check_commuting, looked_up, mean_of_terms, representatives
from .inputs import NOT_GIVEN, Given, Inputs
from .joined import ranks_of
from .multi import mean_of, named_actions, one_each, one_output
from .specs import ActionSpec, action_of
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["ProductEquiTune"]

# How far c_j may be from its laws, as a share of its largest value.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ProductEquiTune(nn.Module):
    """Make a backbone equivariant to G₁ × … × G_N in Σ|G_i| forwards, not Π|G_i| (arXiv 2310.09675).

        ``M(X) = 1/N Σ_i Sym_{G_j, j≠i}[ 1/|G_i| Σ_g g⁻¹ M(g · Π_{j≠i} c_j(X)) ]``

    with ``Sym_G(z) = 1/|G| Σ g z``. The canonical map c_j takes the input to the same place wherever G_j takes it, and
    goes along with every other factor: ``c_j(g X) = c_j(X)`` for g in G_j, ``c_j(g X) = g c_j(X)`` for g in G_i, i ≠ j.
    What it forgets, the backbone does not see in the other terms: the better it keeps the input, the better the model.

    The actions must commute, on the input and on the output: D4 is not the direct product of rotations and flips, since
    a rotation by 90° and a flip do not commute, and is refused. Canonical maps are tried on the first batch (every map
    with every factor's elements, no forward of the backbone): one that breaks its laws is refused, with the factor that
    it breaks them for. ``verify`` does the same whenever it is called.

    Args:
        backbone: a module, or any callable that returns one tensor (B, …).
        inps: how each factor acts on the input: a list of actions or names.
        outs: how each acts on the output: a list, or one name such as ``"trivial"`` for all.
        canonical: c_j, a list with a callable for each factor, from a batch (B, …) to a batch. None in its place, or
            for the whole list: for token ids what ``equikern.nn.commuting.representatives`` gives, for numbers the mean
            over the orbit, ``symmetrize``, which obeys the laws for any commuting actions, but blurs.
        views_per_forward: as in ``EquiTune``.
        verified: when the canonical maps are tried: ``"first"`` batch that is not the same number everywhere,
            ``"always"``, or ``"never"`` (under ``torch.compile`` never).
        mesh: as in ``EquiTune``; the views of each factor are split by themselves.

    Attributes:
        forwards: Σ|G_i|, the backbone's forwards for each sample.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch. What else the backbone takes is repeated for every view,
        as inputs that are not named are in ``EquiTune``.

    Raises:
        TypeError: a backbone or map that cannot be called, a spec that is no action, numbers that have no mean.
        ValueError: lists of other lengths, actions of different groups, actions that do not commute; in the forward,
            a canonical map that breaks its laws, or outputs that do not fit.

    Example:
        >>> model = ProductEquiTune(nn.Conv2d(1, 2, 3, padding=1), ["hflip", "vflip"], ["hflip", "vflip"])
        >>> x = torch.randn(2, 1, 6, 5)
        >>> bool((model(x.flip(-1).flip(-2)) - model(x).flip(-1).flip(-2)).abs().max() < 1e-5), model.forwards
        (True, 4)
        >>> ProductEquiTune(nn.Identity(), ["c4", "hflip"], "trivial")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: inps: expected actions that commute, but rot90 of inps[0] ('c4') and hflip of inps[1] ...
    """

    def __init__(
        self,
        backbone: Callable[..., Tensor],
        inps: Sequence[ActionSpec],
        outs: ActionSpec | Sequence[ActionSpec],
        canonical: Sequence[Callable[[Tensor], Tensor] | None] | None = None,
        views_per_forward: int | None = None,
        verified: Literal["first", "always", "never"] = "first",
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        self.inps = tuple(named_actions("inps", inps))
        specs = one_each("outs", outs, len(self.inps))
        self.outs = tuple(
            action_of(f"outs[{i}]", spec, inp) for i, (spec, inp) in enumerate(zip(specs, self.inps, strict=True))
        )
        check_commuting("inps", self.inps)
        check_commuting("outs", self.outs)
        checks.choice("verified", verified, ("first", "always", "never"))
        if callable(canonical):
            raise TypeError("canonical: expected a list with a map for each factor, got one map")
        maps = one_each("canonical", canonical, len(self.inps))
        for j, c in enumerate(maps):
            if c is not None and not callable(c):
                raise TypeError(f"canonical[{j}]: expected a callable or None, got {type(c).__name__}")
        words = [inp for inp in self.inps if isinstance(inp, TokenAction)]
        standing = representatives(words) if words and None in maps else []
        for j, table in enumerate(standing):
            self.register_buffer(f"_standing{j}", table, persistent=False)
        if not callable(backbone):
            raise TypeError(f"backbone: expected a module or a callable, got {type(backbone).__name__}")
        self.backbone = backbone
        pairs = zip(self.inps, self.outs, strict=True)
        self._inputs = [Inputs(inp, backbone, False) for inp in self.inps]
        self.ranks = ranks_of(mesh, type(self).__name__)
        self._factors = [OrbitModule(nn.Identity(), inp, out, views_per_forward, mesh=self.ranks) for inp, out in pairs]
        self._registered = nn.ModuleList(self._factors)
        self.canonical = tuple(maps)
        self._maps = nn.ModuleList(c for c in maps if isinstance(c, nn.Module))
        self.verified = verified
        self._seen = False
        if self.ranks is not None:
            self.ranks.listen(self)

    @property
    def forwards(self) -> int:
        """Σ|G_i|."""
        return sum(inp.order for inp in self.inps)

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """The merged output for a batch x and what else the backbone takes; see the class."""
        given = [inputs.given(x, args, kwargs) for inputs in self._inputs]
        if not torch.compiler.is_compiling() and (
            self.verified == "always" or (self.verified == "first" and not self._seen)
        ):
            self.verify(given[0].x)
        if self.ranks is not None:
            self.ranks.listen(self)
        terms = (self._term(i, given[i]) for i in range(len(self.inps)))
        return mean_of_terms(terms, [factor._tables(factor.out) for factor in self._factors])

    def _term(self, i: int, given: Given) -> Tensor:
        """The mean over factor i of what the backbone says of an input in canonical form under all others."""
        for j in range(len(self.inps)):
            if j != i:
                given = given.changed(lambda _, x, j=j: self._canonical(j, x))  # type: ignore[misc]
        mean = mean_of(self._factors[i], given, lambda args, kwargs, _: (self.backbone(*args, **kwargs), None))
        return one_output("backbone", mean)

    @torch.no_grad()
    def verify(self, x: Tensor) -> None:
        """Try every canonical map on a batch, with every element of every factor.

        Raises:
            ValueError: ``c_j(g x)`` is not ``c_j(x)`` for a g of its own factor, or not ``g c_j(x)`` for another's.
        """
        for j in range(len(self.inps) if len(self.inps) > 1 else 0):  # one factor alone takes no map
            kept = self._canonical(j, x)
            most = max(_TOLERANCE.get(dtype, 0.0) for dtype in (x.dtype, kept.dtype))  # autocast, or numbers from bytes
            for i, inp in enumerate(self.inps):
                for g in range(1, inp.order):
                    found = self._canonical(j, inp.act(g, x))
                    expected = kept if i == j else inp.act(g, kept)
                    off = _distance(found, expected)
                    if off is None or not off <= most:
                        what = "invariant" if i == j else "equivariant"
                        by = f"off by {off:.2g} of its largest value" if off is not None else "of another shape"
                        raise ValueError(
                            f"canonical[{j}]: expected a map that is {what} to inps[{i}] ({inp.name!r}), but for "
                            f"{inp.group.names[g]} it is {by}"
                        )
        # Of a batch of one number, or of none, every map keeps its laws: the next one is tried too.
        self._seen = self._seen or (x.numel() > 0 and bool((x != x.flatten()[0]).any()))

    def _canonical(self, j: int, x: Tensor) -> Tensor:
        c = self.canonical[j]
        if c is None:
            if isinstance(self.inps[j], TokenAction):
                return looked_up("x", self.get_buffer(f"_standing{j}"), x)
            if x.dtype not in FLOATS:
                raise TypeError(f"canonical[{j}]: expected a map for x of dtype {x.dtype}, which has no mean, got None")
            return symmetrize(x, self._factors[j]._tables(self.inps[j]))
        z = c(x)
        if not isinstance(z, Tensor) or z.dim() == 0 or z.shape[0] != x.shape[0]:
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"canonical[{j}]: expected a batch of {x.shape[0]} like its input, got {got}")
        return z

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inps={list(self.inps)!r}, outs={list(self.outs)!r}, forwards={self.forwards}"


def _distance(a: Tensor, b: Tensor) -> float | None:
    """The largest difference as a share of the largest value, None for tensors of different shapes.

    NaN where one has NaN, or infinities, that the other has not.
    """
    if a.shape != b.shape:
        return None
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else 1.0
    alike = (a == b) | (a.isnan() & b.isnan())
    off = float((a - b).abs().masked_fill(alike, 0.0).amax())
    most = float(b.abs().masked_fill(~b.isfinite(), 0.0).amax())
    return off / most if most > 0 else off
