"""``ProductEquiTune``: a product of groups at the cost of their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ..actions import Action, GroupAction, TokenAction, trivial
from ..core import checks
from ..ops import symmetrize
from ..views import FLOATS
from .commuting import check_commuting, looked_up, representatives
from .factors import Factor, each_output, means_of, one_each
from .inputs import NOT_GIVEN, Given, Inputs
from .joined import ranks_of
from .models import own_loss, with_loss
from .outputs import MergedOutputs
from .specs import InputSpec, OutputSpec, input_actions, output_actions, places, together

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
        backbone: a module, or any callable, as in ``EquiTune``.
        inps: how each factor acts on the input, or on several: a list of specs as ``EquiTune``'s ``inp``. An input that
            a factor's spec does not name is left alone by that factor.
        outs: how each acts on the output, or on several: a list of specs as ``EquiTune``'s ``out``, all of the same
            containers, or one such as ``"trivial"`` for all.
        canonical: c_j, a list with a callable for each factor, from a batch (B, …) to a batch; of several inputs it
            takes each that its factor acts on. None in its place, or for the whole list: for token ids what
            ``equikern.nn.commuting.representatives`` gives, for numbers the mean over the orbit, ``symmetrize``, which
            obeys the laws for any commuting actions, but blurs.
        views_per_forward, strict: as in ``EquiTune``.
        verified: when the canonical maps are tried: ``"first"`` batch that is not the same number everywhere,
            ``"always"``, or ``"never"`` (under ``torch.compile`` never).
        mesh: as in ``EquiTune``; the views of each factor are split by themselves.

    Attributes:
        forwards: Σ|G_i|, the backbone's forwards for each sample.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch. What else the backbone takes is repeated for every view,
        as inputs that are not named are in ``EquiTune``; ``labels`` are for the loss of the merged logits as there.

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
        inps: Sequence[InputSpec],
        outs: OutputSpec | Sequence[OutputSpec],
        canonical: Sequence[Callable[[Tensor], Tensor] | None] | None = None,
        views_per_forward: int | None = None,
        verified: Literal["first", "always", "never"] = "first",
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        checks.model("backbone", backbone)
        if isinstance(inps, str) or not isinstance(inps, Sequence):
            raise TypeError(f"inps: expected a list of actions or names, got {type(inps).__name__}")
        if not inps:
            raise ValueError("inps: expected at least one action, got none")
        taken = [input_actions(f"inps[{i}]", spec) for i, spec in enumerate(inps)]
        self.inps = tuple(actions for actions, _ in taken)
        leads = [lead for _, lead in taken]
        specs = one_each("outs", outs, len(taken))
        self.outs = tuple(map(output_actions, specs, leads, (f"outs[{i}]" for i in range(len(taken)))))
        joint = together("outs", self.outs)
        each_output(joint, lambda spec: check_commuting("outs", spec.actions))
        checks.choice("verified", verified, ("first", "always", "never"))
        if callable(canonical):
            raise TypeError("canonical: expected a list with a map for each factor, got one map")
        maps = one_each("canonical", canonical, len(taken))
        for j, c in enumerate(maps):
            if c is not None and not callable(c):
                raise TypeError(f"canonical[{j}]: expected a callable or None, got {type(c).__name__}")
        self.backbone = backbone
        self._inputs = [Inputs(actions, backbone, own_loss(backbone)) for actions in self.inps]
        self._standing: dict[tuple[int, TokenAction], str] = {}
        self._meet(leads, maps)
        self.ranks = ranks_of(mesh, type(self).__name__)
        self._factors = [
            Factor(_elsewhere, actions, joint, i, views_per_forward, strict, self.ranks)
            for i, actions in enumerate(self.inps)
        ]
        self._registered = nn.ModuleList(self._factors)
        self.canonical = tuple(maps)
        self._maps = nn.ModuleList(c for c in maps if isinstance(c, nn.Module))
        self.verified = verified
        self._seen = False
        if self.ranks is not None:
            self.ranks.listen(self)

    def _meet(self, leads: Sequence[GroupAction], maps: Sequence[object]) -> None:
        """Check that factors commute on every input, and keep what stands for the orbits of its token ids."""
        kinds = [isinstance(actions, dict) for actions in self.inps]
        if not self._inputs[0].names and any(kinds) and not all(kinds):  # the same input, or not: nobody could say
            raise ValueError(
                f"inps[{kinds.index(False)}]: expected a dict that names its input, as inps[{kinds.index(True)}] does, "
                f"since the backbone names none, got {self.inps[kinds.index(False)]!r}"
            )
        found = [places(actions, inputs.names) for actions, inputs in zip(self.inps, self._inputs, strict=True)]
        for at in dict.fromkeys(at for each in found for at in each):
            here = [each.get(at, trivial(lead.group)) for each, lead in zip(found, leads, strict=True)]
            check_commuting("inps", here)
            words = [(j, action) for j, action in enumerate(here) if isinstance(action, TokenAction)]
            if all(maps[j] is not None for j, _ in words):
                continue
            for pair, table in zip(words, representatives([action for _, action in words]), strict=True):
                name = self._standing.setdefault(pair, f"_standing{len(self._standing)}")
                if not hasattr(self, name):
                    self.register_buffer(name, table, persistent=False)
                elif not torch.equal(self.get_buffer(name), table) and maps[pair[0]] is None:
                    raise ValueError(
                        f"canonical[{pair[0]}]: expected a map, since {pair[1].name!r} acts on several inputs, on "
                        "which different words would stand for its orbits"
                    )

    @property
    def forwards(self) -> int:
        """Σ|G_i|."""
        return sum(factor.inp.order for factor in self._factors)

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The merged output for a batch x and what else the backbone takes; see the class."""
        given = self._inputs[0].given(x, args, kwargs)
        if not torch.compiler.is_compiling() and (
            self.verified == "always" or (self.verified == "first" and not self._seen)
        ):
            self._verify(given)
        if self.ranks is not None:
            self.ranks.listen(self)
        total: MergedOutputs | None = None
        for i in range(len(self.inps)):
            term = self._term(i, given)
            if total is None:
                total = term
                continue
            if total.names != term.names:
                raise ValueError(f"backbone: expected one structure of outputs, got {total.names} and {term.names}")
            for k, t in enumerate(term.tensors):
                total.tensors[k] = total.tensors[k] + t
            del term
        assert total is not None
        merged = total.made(t / len(self.inps) for t in total.tensors)
        if given.labels is None:
            return merged
        return with_loss(self.backbone, merged, given.labels, given.beside, self.outs)

    def _term(self, i: int, given: Given) -> MergedOutputs:
        """Factor i's mean of what the backbone says of inputs canonical under all others, symmetrised under those."""
        for j, inputs in enumerate(self._inputs):
            if j != i:
                given = given.under(inputs)
                given = given.changed(lambda _, t, action, j=j: self._canonical(j, t, action))  # type: ignore[misc]
        given = given.under(self._inputs[i])
        means = means_of(self._factors[i], given, lambda args, kwargs, _: (self.backbone(*args, **kwargs), None))
        for k, (mean, spec) in enumerate(zip(means.tensors, means.specs, strict=True)):
            for j, factor in enumerate(self._factors):
                if j != i:
                    mean = symmetrize(mean, factor._tables(spec.actions[j]))
            means.tensors[k] = mean
        return means

    @torch.no_grad()
    def verify(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> None:
        """Try every canonical map on a batch, with every element of every factor; called as the model is.

        Raises:
            ValueError: ``c_j(g x)`` is not ``c_j(x)`` for a g of its own factor, or not ``g c_j(x)`` for another's.
        """
        self._verify(self._inputs[0].given(x, args, kwargs))

    @torch.no_grad()
    def _verify(self, given: Given) -> None:
        acted = [given.under(inputs).acted() for inputs in self._inputs]
        for j, own in enumerate(acted if len(acted) > 1 else ()):  # one factor alone takes no map
            for at, (x, action) in own.items():
                kept = self._canonical(j, x, action)
                for i, others in enumerate(acted):
                    if at in others:
                        self._try(j, i, x, action, kept, cast(GroupAction, others[at][1]))
        # Of a batch of one number, or of none, every map keeps its laws: the next one is tried too.
        tensors = {id(x): x for each in acted for x, _ in each.values()}.values()
        self._seen = self._seen or all(x.numel() > 0 and bool((x != x.flatten()[0]).any()) for x in tensors)

    def _try(self, j: int, i: int, x: Tensor, own: Action, kept: Tensor, inp: GroupAction) -> None:
        """Factor j's map on an input with every element of factor i, which acts on it by ``inp``."""
        most = max(_TOLERANCE.get(dtype, 0.0) for dtype in (x.dtype, kept.dtype))  # autocast, or numbers from bytes
        for g in range(1, inp.order):
            found = self._canonical(j, inp.act(g, x), own)
            expected = kept if i == j else inp.act(g, kept)
            off = _distance(found, expected)
            if off is None or not off <= most:
                what = "invariant" if i == j else "equivariant"
                by = f"off by {off:.2g} of its largest value" if off is not None else "of another shape"
                raise ValueError(
                    f"canonical[{j}]: expected a map that is {what} to inps[{i}] ({inp.name!r}), but for "
                    f"{inp.group.names[g]} it is {by}"
                )

    def _canonical(self, j: int, x: Tensor, action: Action) -> Tensor:
        c = self.canonical[j]
        if c is None:
            if isinstance(action, TokenAction):
                return looked_up("x", self.get_buffer(self._standing[j, action]), x)
            if x.dtype not in FLOATS:
                raise TypeError(f"canonical[{j}]: expected a map for x of dtype {x.dtype}, which has no mean, got None")
            return symmetrize(x, self._factors[j]._tables(action))
        z = c(x)
        if not isinstance(z, Tensor) or z.dim() == 0 or z.shape[0] != x.shape[0]:
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"canonical[{j}]: expected a batch of {x.shape[0]} like its input, got {got}")
        return z

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inps={list(self.inps)!r}, outs={list(self.outs)!r}, forwards={self.forwards}"


def _elsewhere(*_: Any, **__: Any) -> Any:
    """In the place of the backbone in every factor: the model has it once, and calls it for them."""
    raise AssertionError("factors run the model's own backbone")


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
