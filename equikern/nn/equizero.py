"""``EquiZero``: the best view alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..actions import Action
from ..backends.reference import best_view
from ..ops import checks, orbit_score, orbit_select
from ..ops.score import Kind
from .views import ActionSpec, OrbitModule, OutputSpec, in_group_order, per_view

__all__ = ["EquiZero"]

Loss = Literal["max_prob", "entropy", "margin", "similarity", "max_q"]
LOSSES: dict[Loss, Kind] = {  # and what orbit_score calls them
    "max_prob": "max_prob",
    "entropy": "entropy",
    "margin": "margin",
    "similarity": "max",
    "max_q": "max_prob",
}


class EquiZero(OrbitModule):
    """Equizero: ``M(x) = g*⁻¹ M(g* x)`` with ``g* = argmin_g ℓ(M(g x))`` (arXiv 2305.09900).

    Zero-shot: nothing is learned, and one view's output is kept as it is, unblurred by the others. Ties go to the
    lowest group element. Choosing has no useful gradient, so ``gradient`` names the stand-in whose it gets.

    Args:
        backbone, inp, out, views_per_forward: as in ``EquiTune``.
        loss: how little a view is to be trusted. ``"max_prob"``, ``"entropy"`` and ``"margin"`` of the logits, see
            ``orbit_score``; ``"similarity"``: −the largest of similarities, such as an image's to the classes' texts;
            ``"max_q"``: −the largest softmax-normalised Q-value, so that g and the move are chosen together; or a
            callable from the outputs of some views (n, B, …), split off the batch, to their losses (n, B).
        gradient: ``"mean"`` (equitune, the authors' choice), ``"identity"``, ``"selected"`` or None, see
            ``orbit_select``.
        classes: the dim of the classes, moves or similarities in the outputs, counted from the end. What other dims
            there are but the batch (pixels, positions) are averaged over, for one choice for every sample.
        scored: where the backbone has several outputs, the key or position of the one that carries the loss. A
            callable gets all of them and needs none.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch, equivariant: ``model(g x) = g model(x)``.

    Raises:
        TypeError, ValueError: as ``EquiTune``; an unknown loss or gradient; in the forward, an output that has no such
            dim or key, or a callable's losses of another shape.

    Example:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> model = EquiZero(backbone, "c4", "trivial", loss="entropy")
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.allclose(model(x.rot90(1, (-2, -1))), model(x), atol=1e-6)
        True
        >>> model.scores(x).shape, model.chosen(x).shape
        (torch.Size([4, 2]), torch.Size([2]))
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Any],
        inp: ActionSpec,
        out: OutputSpec,
        loss: Loss | Callable[[Any], Tensor] = "max_prob",
        gradient: Literal["mean", "identity", "selected"] | None = "mean",
        classes: int = -1,
        scored: str | int | None = None,
        views_per_forward: int | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward)
        if not callable(loss):
            checks.choice("loss", loss, tuple(LOSSES))
        checks.choice("gradient", gradient, ("mean", "identity", "selected", None))
        if isinstance(classes, bool) or not isinstance(classes, int):
            raise TypeError(f"classes: expected a whole number, got {type(classes).__name__}")
        if classes >= 0:
            raise ValueError(f"classes: expected a negative number, counted from the end, got {classes}")
        self.loss = loss
        self.gradient = gradient
        self.classes = classes
        self.scored = scored

    def forward(self, x: Tensor) -> Any:
        """The chosen views' outputs for a batch x (B, \\*, H, W); see the class."""
        outputs, buckets = self._outputs(x)
        scores: Tensor | Kind | None = self._kind_of_rows(outputs)
        if scores is None:
            scores = self._scores(outputs)
        if len(buckets) > 1 and isinstance(
            scores, Tensor
        ):  # views lie in another order than the group's: let ties still go to the lowest element
            best = best_view(in_group_order(scores, buckets), True)
            elements = torch.tensor([g for bucket in buckets for g in bucket], device=best.device)
            scores = (elements[:, None] != best).to(scores.dtype)

        def merge_one(y: Tensor, action: Action) -> Tensor:
            merged = orbit_select(y, scores, action, "min", self.gradient)
            assert isinstance(merged, Tensor)
            return merged

        return self._merged(x, outputs, buckets, merge_one)

    def scores(self, x: Tensor) -> Tensor:
        """The loss of every view of each sample: (|G|, B), in the order of ``inp.group.names``."""
        outputs, buckets = self._outputs(x)
        return in_group_order(self._scores(outputs), buckets)

    def chosen(self, x: Tensor) -> Tensor:
        """g*, the chosen element of each sample: (B,) int64."""
        return best_view(self.scores(x), True)

    def _kind_of_rows(self, outputs: list[list[Any]]) -> Kind | None:
        """What ``orbit_select`` scores rows by, in the pass that chooses, if it can: where the backbone's only output
        carries a named loss, has a row of classes for each sample, and holds all views.
        """
        if callable(self.loss) or [len(bucket) for bucket in outputs] != [1]:
            return None
        y, actions = self._scored(outputs[0][0]), _leaves(self.out)
        alone = len(_leaves(outputs[0][0])) == len(actions) == 1
        if not alone or y.dim() != 3 or self.classes != -1:
            return None
        if not isinstance(actions[0], Action) or not checks.keeps_rows(actions[0]):
            return None
        return LOSSES[self.loss]

    def _scores(self, outputs: list[list[Any]]) -> Tensor:
        return per_view([[self._losses(part) for part in bucket] for bucket in outputs]).detach()

    def _losses(self, part: Any) -> Tensor:
        """(n, B) losses of the outputs (n, B, …) of n views."""
        if callable(self.loss):
            losses = self.loss(part)
            if not isinstance(losses, Tensor):
                raise TypeError(f"loss: expected it to return a tensor of losses (n, B), got {type(losses).__name__}")
            if losses.shape != _first(part).shape[:2]:
                raise ValueError(
                    f"loss: expected one number for every view and sample, {tuple(_first(part).shape[:2])}, got "
                    f"{tuple(losses.shape)}"
                )
            return losses
        y = self._scored(part)
        if y.dim() + self.classes < 2:
            raise ValueError(
                f"classes: expected outputs (n, B, …) with a dim {self.classes} behind the batch, got {tuple(y.shape)}"
            )
        losses = orbit_score(y, LOSSES[self.loss], dim=self.classes)
        return losses.flatten(2).mean(2) if losses.dim() > 2 else losses

    def _scored(self, part: Any) -> Tensor:
        if self.scored is not None:
            try:
                part = part[self.scored]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"scored: the backbone's outputs have no {self.scored!r}: {error!r}") from None
        if not isinstance(part, Tensor):
            raise ValueError(
                "scored: expected the key or position of the output that carries the loss, since the backbone returns "
                f"a {type(part).__name__}"
            )
        return part

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inp={self.inp!r}, out={self.out!r}, loss={self.loss!r}, gradient={self.gradient!r}"


def _first(part: Any) -> Tensor:
    """The first tensor of an output, however deep."""
    first = _leaves(part)[0]
    assert isinstance(first, Tensor)
    return first


def _leaves(part: Any) -> list[Any]:
    """What the containers of an output hold, or those of its actions."""
    if not isinstance(part, (Mapping, tuple, list)):
        return [part]
    values = part.values() if isinstance(part, Mapping) else part
    return [leaf for value in values for leaf in _leaves(value)]
