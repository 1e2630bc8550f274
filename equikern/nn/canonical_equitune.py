"""``CanonicalEquiTune``: exact symmetry from a few forwards, on the poses of an input that have the least energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..actions import Action, GroupAction
from ..core import checks, estimates
from ..core.act import act
from ..core.functions import functional, needs_grad, recorded_for_later
from ..ops import orbit_mean, orbit_select, orbit_weighted_mean
from ..scalars import amount
from ..views import FLOATS, accumulator, still
from ..views.maps import Maps
from .energies import STATISTICS, Ranking, Statistic, energies_of, limit_of, marks, parted, ranked, statistic, widest
from .equizero import LOSSES, Loss, check_losses, view_losses
from .inputs import NOT_GIVEN, Given
from .lambda_equitune import evaluate_still, only
from .merging import Gathered, Merge, Output, Selected, Summed, Weighted
from .outputs import Fitted, MergedOutputs
from .specs import InputSpec, OutputSpec
from .views import OrbitModule

__all__ = ["CanonicalEquiTune", "train_energy"]


class CanonicalEquiTune(OrbitModule):
    """Make a backbone equivariant by a few forwards: ``M_k(x) = merge_{j ≤ k} g_j⁻¹ M(g_j x)``, g_j of least energy.

    An energy ranks the |G| poses of every sample; the backbone sees the k best alone. The energy is one of views, so
    that of h x has the same poses in another order, ``E'[g] = E[g∘h]``: the k best views are the same ones, and what
    is merged of them is equivariant for every k, not only for |G|.

    Where poses have the same energy, a fixed weighted sum of their entries decides. Poses that have that in common,
    too, are taken for the same view, as those of a symmetric image are: then the merged output is averaged over all
    elements that leave the sample as it is. "The same" is within rounding, of the numbers' size: 2⁻³⁶ for statistics
    and that sum, which are added up in float64 whatever the input's dtype is; 2⁻¹⁵ where views are computed rather
    than moved (matrices, fields); and 2⁻¹⁸ for a module, which may round one view in two ways at two places of a batch.

    Args:
        backbone, inp, out, views_per_forward, strict: as in ``EquiTune``. The energy reads the input that leads. No
            rectangles whose views turn them.
        energy: a module or callable from views (N, …) to one number for each, (N, 1) or (N,), such as
            ``energy_network(channels)``; or a fixed statistic, from one read of the input: ``"linear"``, a weighted
            sum of the pixels, or of whatever the input is of; and for grids and fields ``"gradient"``, how far
            brightness rises along a fixed direction, ``"moments"``, the same with second moments, and ``"corner"``,
            the norm of a corner that no other view has in the same place.
        views: k; or ``"auto"``: for logits, poses in rising energy until the answer stands, see ``agree``. By default
            1, or as many as ``poses``.
        reduce: ``"mean"``; ``"softmax"``, weights ``softmax(−E / temperature)`` over the k; or one of ``EquiZero``'s
            losses, or a callable, by which one of the k outputs is chosen.
        poses: in place of the k best: elements, by number or name, that are applied after the best pose g*: the views
            ``s·g*·x``. For example of D4 the rotations and two flips: ``["e", "rot90", "rot180", "rot270", …]``.
        size: to how many cells a side a grid is scaled down before a module sees its views; None: whole views.
        temperature: by what energies are divided in a softmax.
        agree: for ``views="auto"``: after so many views in a row with one class of largest probability no more are
            looked at; None: none is left out that could change the arg max of the mean of all |G| views'
            probabilities. That takes more than half of them; with ``reduce="softmax"``, whose mean is weighted, one
            where the energy is sure.
        classes, scored: for a reduction by a loss, as in ``EquiZero``.

    Gradients. With ``reduce="softmax"`` they reach the energy through the weights. With one view they do by a
    straight-through estimate, as ``orbit_select`` has it: as if the input and the output were those of all poses,
    weighted by the softmax. The other reductions give the energy none: see ``train_energy`` for how it learns by
    itself. A statistic learns nothing.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch, equivariant: ``model(g x) = g model(x)``. With
        ``views="auto"`` the mean of the probabilities of the views that were looked at, (B, classes), weighted if
        ``reduce`` says so.

    Raises:
        TypeError: as ``EquiTune``; an energy that is no callable or name; in the forward, one that returns no numbers.
        ValueError: as ``EquiTune``; an unknown statistic, reduction or pose, more views than |G|, ``poses`` beside
            ``views``; in the forward, energies of another shape, views in several shapes, a statistic of grids of what
            is none; with ``"auto"``, an output that is not one of logits (B, classes).

    Example:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
        >>> model = CanonicalEquiTune(backbone, "d4", "trivial", "gradient")  # one forward
        >>> x = torch.randn(2, 3, 8, 8)
        >>> bool((model(x.rot90(1, (-2, -1))) - model(x)).abs().max() < 1e-5)
        True
        >>> model.elements(x).shape, model.energies(x).shape
        (torch.Size([1, 2]), torch.Size([8, 2]))
    """

    _gives_loss = True
    _tells_of_maps = True

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        out: OutputSpec,
        energy: Statistic | Callable[[Tensor], Tensor] = "linear",
        views: int | Literal["auto"] | None = None,
        reduce: Literal["mean", "softmax"] | Loss | Callable[[Any], Tensor] = "mean",
        poses: Sequence[int | str] | None = None,
        size: int | None = 16,
        temperature: float = 1.0,
        agree: int | None = 2,
        classes: int = -1,
        scored: str | int | None = None,
        views_per_forward: int | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward, strict)
        if isinstance(energy, str):
            checks.choice("energy", energy, STATISTICS)
            if energy != "linear" and not self.inp.sides:
                raise ValueError(f"energy: expected 'linear' or a module for {self.inp!r}, no grid's, got {energy!r}")
        elif not callable(energy):
            raise TypeError(f"energy: expected a module, a callable or a name, got {type(energy).__name__}")
        if not callable(reduce):
            checks.choice("reduce", reduce, ("mean", "softmax", *LOSSES))
        order = self.inp.order
        self.poses = None if poses is None else _elements(poses, self.inp)
        if not isinstance(views, str) or views != "auto":
            if views is not None and poses is not None:
                raise ValueError(f"views: expected None beside poses, which say how many, got {views!r}")
            views = (
                len(self.poses) if self.poses is not None else checks.whole("views", 1 if views is None else views, 1)
            )
            if views > order:
                raise ValueError(f"views: expected at most {order}, the order of {self.inp.group!r}, got {views}")
        elif poses is not None or reduce not in ("mean", "softmax"):
            raise ValueError('views: expected a number beside poses or a reduction that chooses, got "auto"')
        for name, value in (("size", size), ("agree", agree)):
            if value is not None:
                checks.whole(name, value, 1)
        self.energy = energy
        self.count: int | Literal["auto"] = views
        self.reduce = reduce
        self.size, self.agree = size, agree
        self.temperature = amount("temperature", temperature, False)
        self.classes = check_losses("max_prob", classes)
        self.scored = scored
        self._kept = Action("kept", Maps(still(order if views == "auto" else views).code))
        if self.poses is not None:
            after = self.inp.group.multiply[list(self.poses)].to(next(iter(self.parameters()), torch.empty(0)).device)
            self.register_buffer("_after", after, persistent=False)

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The merged output for a batch x (B, \\*, H, W) and what else the backbone takes; see the class."""
        return self.counted(x, *args, **kwargs)[0]

    def counted(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The output, and of how many views of each sample it was made: (B,) int64."""
        given = self._inputs.given(x, args, kwargs)
        ranking = self._ranking(given)
        if self.count == "auto":
            return self._until_sure(given, ranking)
        elements = self._chosen(ranking)
        merged = self._with_loss(given, self._of_poses(given, ranking, elements).whole())
        return merged, torch.full_like(elements[0], len(elements))

    def energies(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """The energy of every pose of each sample: (|G|, B), in the order of ``inp.group.names``; differentiable."""
        found = self._energies(self._inputs.given(x, args, kwargs), torch.float32)[0]
        return found.to(torch.float32) if isinstance(self.energy, str) else found

    def elements(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """The poses that the backbone sees of each sample, best first: (k, B) int64; of ``"auto"`` all, (|G|, B)."""
        return self._chosen(self._ranking(self._inputs.given(x, args, kwargs)))

    def prior_loss(self, x: Any = NOT_GIVEN, /, *args: Any, prior: Tensor | None = None, **kwargs: Any) -> Tensor:
        """How unlikely the energy finds the poses that a batch came in: what trains it without labels.

        The cross-entropy of ``softmax(−E / temperature)`` to the prior, ``−1/B Σ_b Σ_g prior[g] log p[g, b]``.

        Args:
            x, args, kwargs: what the model is called with.
            prior: how likely each pose of these inputs is the right one, (|G|,) or (|G|, B), shares that add up to 1;
                by default the identity is: inputs as one finds them, upright.

        Returns:
            A number, float32 (float64 for float64), differentiable.

        Raises:
            TypeError, ValueError: a prior that is no floating-point tensor of that shape.
        """
        energies = self.energies(x, *args, **kwargs)
        wide = energies.to(torch.promote_types(energies.dtype, torch.float32)) / -self.temperature
        order, batch = wide.shape
        if prior is None:
            return -wide.log_softmax(0)[0].mean()
        if not isinstance(prior, Tensor) or not prior.is_floating_point():
            got = prior.dtype if isinstance(prior, Tensor) else type(prior).__name__
            raise TypeError(f"prior: expected a floating-point tensor, got {got}")
        if prior.shape not in ((order,), (order, batch)):
            raise ValueError(f"prior: expected the shape ({order},) or ({order}, {batch}), got {tuple(prior.shape)}")
        return -(wide.log_softmax(0) * prior.reshape(order, -1).to(wide.dtype)).sum(0).mean()

    def train(self, mode: bool = True) -> CanonicalEquiTune:
        """As ever, but a part with nothing to train stays in evaluation mode, so that its statistics do not move."""
        super().train(mode)
        evaluate_still(self.backbone, self.energy)
        return self

    def _energies(self, given: Given, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        """The energies of all poses, and what those of equal views may differ by."""
        if given.turned:
            raise ValueError(
                f"x: expected equal sides under {given.action.name!r}, whose views turn rectangles, got "
                f"{tuple(given.x.shape)}; pad x to equal sides, or take a group whose views keep them, such as "
                f"{'flips3d' if self.inp.sides == 3 else 'flips'!r}"
            )
        action = self._tables(given.action)
        if isinstance(self.energy, str):
            checks.image("x", given.x, action, given.action.views.dtypes)
            return statistic(self.energy, given.x, action, wide)
        found = energies_of(self.energy, given.x, action, self.size)
        return found, limit_of(found)

    def _ranking(self, given: Given) -> Ranking:
        x = given.x
        if not x.is_cpu or functional(x):  # where it would have to be waited for which samples are close
            return self._in_full(given, *self._energies(given, widest(x)))
        energies, limit = self._energies(given, torch.float32)
        found, close = parted(energies, 2 * limit.detach())
        samples = close.nonzero().flatten()
        if len(samples) == given.batch:
            return self._in_full(given, energies, limit)
        if len(samples):
            some = self._in_full(given.some(samples), energies[:, samples], limit[samples])
            order = found.order.index_copy(1, samples, some.order)
            return Ranking(order, energies, found.still.index_copy(1, samples, some.still))
        return found

    def _in_full(self, given: Given, energies: Tensor, limit: Tensor) -> Ranking:
        """The ranking in the widest dtype, with what tells poses of one energy apart."""
        with torch.no_grad():
            precise, limit = energies, limit.detach()
            if isinstance(self.energy, str) and energies.dtype != widest(energies):
                precise, limit = self._energies(given, widest(energies))
            told = [marks(t.detach(), self._tables(action)) for t, action in given.acted().values()]
            found = ranked(precise, limit, told)
            return Ranking(found.order, energies, found.still)

    def _chosen(self, ranking: Ranking) -> Tensor:
        if self.poses is not None:
            return self.get_buffer("_after")[:, ranking.order[0]]
        return ranking.order if self.count == "auto" else ranking.order[: self.count]

    def _of_poses(self, given: Given, ranking: Ranking, elements: Tensor) -> MergedOutputs:
        """The merged outputs of some poses (k, B) of every sample."""
        count = len(elements)
        most = count if self.views_per_forward is None else self.views_per_forward
        shares = self._shares(ranking, count)
        weights = ranking.energies.gather(0, elements) / -self.temperature if self.reduce == "softmax" else None
        merges: list[Merge] = []
        for start in range(0, count, most):
            places = range(start, min(start + most, count))
            chosen = elements[start : start + most]
            fitted, outputs = self._seen_from(given, chosen, shares)
            if not merges:
                first = [spec for _, spec in fitted.pairs], fitted.names, fitted.made
                self._warn_of_maps(fitted, given)
                merges = [self._merging(most < count) for _ in outputs]
            beside = None if weights is None else weights[start : start + most]
            if self.reduce not in ("mean", "softmax"):
                beside = view_losses(fitted, self.reduce, self.classes, self.scored).detach()  # type: ignore[arg-type]
            for merge, output in zip(merges, outputs, strict=True):
                merge.add(self._undone(fitted.pairs.pop(0)[0], output, chosen, shares), places, beside)
            del fitted  # nothing here may hold an output while the next one is made
        merged = [
            output.finished(self._projected(merge.result(), ranking.still, output.action))
            for merge, output in zip(merges, outputs, strict=True)
        ]
        return MergedOutputs(merged, *first)

    def _merging(self, parts: bool) -> Merge:
        """What takes the views (n, B, …) of an output, which lie as the input does, in parts or all at once."""
        kept = Output(self._kept, None, (1, 1), False, FLOATS)
        if parts and self.reduce == "mean":
            return Summed(kept, 1.0 / self._kept.order)
        if parts and self.reduce == "softmax":
            return Weighted(kept, "softmax")
        if parts and self.reduce != "mean" and not (torch.is_grad_enabled() or recorded_for_later()):
            return Selected(kept)
        return Gathered(kept, lambda y, _, beside, __: self._merge(y, beside))

    def _merge(self, y: Tensor, beside: Tensor | None) -> Tensor:
        """All views (k, B, …) as one, by their weights or scores."""
        if len(y) == 1:
            return y[0]
        if beside is None:
            return orbit_mean(y, self._kept)
        if self.reduce == "softmax":
            return orbit_weighted_mean(y, beside, self._kept, "softmax")
        return orbit_select(y, beside, self._kept, gradient="selected", ties="mean")  # type: ignore[return-value]

    def _shares(self, ranking: Ranking, count: int) -> Tensor | None:
        """What all poses count in a straight-through estimate of the choice of one, (|G|, B); None without one."""
        if count > 1 or self.poses is not None or not needs_grad(ranking.energies):
            return None
        return (ranking.energies / -self.temperature).softmax(0)

    def _seen_from(self, given: Given, elements: Tensor, shares: Tensor | None) -> tuple[Fitted, list[Output]]:
        """The outputs (n, B, …) of some poses (n, B) of every sample."""
        n = len(elements)

        def see(at: str, t: Tensor, action: Action) -> Tensor:
            action = self._tables(action)
            views = act(t.expand(n, *t.shape), elements, action, name=at)
            return self._estimated(views, t, shares, action.maps).flatten(0, 1)

        args, kwargs = given.shown(see, n)
        fitted, _ = self._split(*self._tried(self._call, args, kwargs, n * given.batch, given), [0] * n, given)
        outputs = [self._output(spec, given.x, False, FLOATS) for _, spec in fitted.pairs]
        for output, name in zip(outputs, fitted.names, strict=True):
            output.name = name
        return fitted, outputs

    def _undone(self, y: Tensor, output: Output, elements: Tensor, shares: Tensor | None) -> Tensor:
        """Views of an output (n, B, …) as they lie under the input."""
        y, _ = output.upright(y, [0] * len(y))
        back = act(y, elements, output.action, inverse=True)
        return self._estimated(back, y[0], shares, output.action.inverse_maps)

    def _estimated(self, one: Tensor, t: Tensor, shares: Tensor | None, maps: Maps) -> Tensor:
        """The view (1, B, …) of a tensor by the best pose, as if it were those of all poses, each by its share."""
        if shares is None or maps.views.kind.still or not t.is_floating_point():
            return one
        every = t.expand(self.inp.order, *t.shape)
        return estimates.estimated(one[0], every, shares.to(accumulator(t)), maps).unsqueeze(0)

    def _projected(self, y: Tensor, unmoved: Tensor, action: Action) -> Tensor:
        """An output (B, …) averaged over the elements (|G|, B) that leave its input as it is."""
        if action.views.kind.still:
            return y
        more = unmoved[1:].any(0)
        if y.is_cpu and not functional(y) and not bool(more.any()):
            return y
        every = y.expand(len(unmoved), *y.shape)
        mean = orbit_weighted_mean(every, unmoved.to(accumulator(y)), action, "sum")
        return torch.where(more.reshape(-1, *(1,) * (y.dim() - 1)), mean, y)

    def _until_sure(self, given: Given, ranking: Ranking) -> tuple[Any, Tensor]:
        """The mean of the probabilities of views in rising energy, until the class of each sample stands."""
        order = self.inp.order
        # What is recorded or transformed cannot leave samples out: then all views are looked at, and those behind a
        # sample's answer count nothing.
        every = functional(given.x)
        # What each view counts, (|G|, B) in rising energy.
        rising = ranking.energies.gather(0, ranking.order)
        rising = rising.to(torch.promote_types(rising.dtype, torch.float32))
        counts = rising.new_ones(rising.shape) if self.reduce == "mean" else (rising / -self.temperature).softmax(0)
        left = torch.arange(given.batch, device=given.x.device)
        used = torch.zeros_like(left)
        asked = torch.ones_like(left, dtype=torch.bool)
        total: Tensor | None = None
        made: MergedOutputs | None = None
        last, streak = torch.full_like(left, -1), torch.zeros_like(left)
        for k in range(order):
            whole = every or len(left) == given.batch
            rest, ranks = (given, ranking) if whole else (given.some(left), ranking.rows(left))
            fitted, outputs = self._seen_from(rest, ranks.order[k : k + 1], None)
            if len(outputs) != 1 or fitted.pairs[0][0].dim() != 3 or not checks.keeps_rows(outputs[0].action):
                raise ValueError(
                    "views: expected a number where the backbone gives other outputs than one of logits (B, classes), "
                    f'got "auto" for {[tuple(y.shape[1:]) for y, _ in fitted.pairs]}'
                )
            logits = self._undone(fitted.pairs[0][0], outputs[0], ranks.order[k : k + 1], None)[0]
            p = self._projected(logits.to(accumulator(logits)).softmax(-1), ranks.still, outputs[0].action)
            counted = p * counts[k, left].unsqueeze(-1).to(p.dtype)
            counted = counted.masked_fill(~asked.unsqueeze(-1), 0.0) if every else counted
            total = counted if total is None else total.index_add(0, left, counted)
            used = used.index_add(0, left, asked.to(used.dtype))
            made = made or MergedOutputs([logits], [fitted.pairs[0][1]], fitted.names, fitted.made)
            if self.agree is None:
                best = total.detach().index_select(0, left).topk(min(2, total.shape[-1]), -1).values
                sure = best[:, 0] - best[:, 1:].sum(-1) > counts[k + 1 :, left].detach().sum(0)
            else:
                answer = p.argmax(-1)
                streak = torch.where(answer == last, streak + 1, 1)
                last, sure = answer, streak >= self.agree
            if every:
                asked = asked & ~sure
                continue
            unsure = (~sure).nonzero().flatten()
            if not len(unsure):
                break
            left, asked, last, streak = left[unsure], asked[unsure], last[unsure], streak[unsure]
        assert total is not None
        assert made is not None
        seen = torch.arange(order, device=used.device).unsqueeze(-1) < used
        mean = (total / (counts * seen).sum(0).unsqueeze(-1)).to(made.tensors[0].dtype)
        return MergedOutputs([mean], made.specs, made.names, made.made).whole(), used

    @property
    def _keeps_logits(self) -> bool:
        return self.count != "auto"

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        energy = self.energy if isinstance(self.energy, str) else type(self.energy).__name__
        views = f"poses={list(self.poses)}" if self.poses is not None else f"views={self.count!r}"
        return f"{super().extra_repr()}, energy={energy!r}, {views}, reduce={self.reduce!r}"


def train_energy(model: CanonicalEquiTune) -> list[nn.Parameter]:
    """The first stage: the backbone stands still, the energy learns. Returns the parameters for the optimizer.

    What it learns from is ``model.prior_loss(x)``, which needs no forward of the backbone and no labels; or the task's
    own loss, where gradients reach the energy. The second stage is ``train_backbone``.

    Example:
        >>> from equikern import energy_network
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        >>> model = CanonicalEquiTune(backbone, "c4", "trivial", energy_network(1))
        >>> optimizer = torch.optim.SGD(train_energy(model), lr=0.1)
        >>> model.prior_loss(torch.randn(2, 1, 8, 8)).backward()
        >>> optimizer.step()
        >>> backbone[1].weight.requires_grad
        False
    """
    return only(model, "energy", "backbone")


def _elements(poses: object, action: GroupAction) -> tuple[int, ...]:
    """Different elements of the group, by number or name."""
    if isinstance(poses, (str, bytes)) or not isinstance(poses, Sequence) or not len(poses):
        raise TypeError(f"poses: expected a list of elements or their names, got {poses!r}")
    found = []
    for pose in poses:
        if isinstance(pose, str):
            checks.choice("poses", pose, action.group.names)
            found.append(action.group.names.index(pose))
        else:
            found.append(checks.whole("poses", pose, 0))
    wrong = [g for g in found if g >= action.order]
    if wrong:
        raise ValueError(f"poses: expected elements 0 … {action.order - 1} of {action.group!r}, got {wrong[0]}")
    if len(set(found)) < len(found):
        raise ValueError(f"poses: expected every element once, got {list(poses)!r}")
    return tuple(found)
