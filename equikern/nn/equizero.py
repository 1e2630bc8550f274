"""``EquiZero``: the best view alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..actions import Action, GroupAction
from ..core import checks
from ..core.act import act
from ..core.functions import recorded_for_later
from ..ops import orbit_score, orbit_select
from ..ops.score import Kind
from ..reductions import best_view
from ..scalars import index
from .inputs import NOT_GIVEN
from .joined import Chosen
from .merging import Gathered, Merge, Output, Selected
from .outputs import Fitted
from .specs import InputSpec, OutputSpec
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["EquiZero", "Loss", "check_losses", "view_losses"]

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

    Zero-shot: nothing is learned, and one view's output is kept as it is, unblurred by the others. Views that tie for
    the best are averaged, as those of symmetric images are, so that no answer depends on which frame an input came in;
    ``orbit_select`` says when scores tie. Choosing has no useful gradient, so ``gradient`` names the stand-in whose it
    gets.

    Args:
        backbone, inp, out, views_per_forward, strict, mesh: as in ``EquiTune``.
        loss: how little a view is to be trusted. ``"max_prob"``, ``"entropy"`` and ``"margin"`` of the logits, see
            ``orbit_score``; ``"similarity"``: −the largest of similarities, such as an image's to the classes' texts;
            ``"max_q"``: −log of the largest softmax-normalised Q-value, so that g and the move are chosen together; or
            a callable from the outputs of some views (n, B, …), split off the batch, to their losses (n, B).
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

    Invertible backbones, such as flows, have an ``inverse``, and so has the model: see ``inverse`` and ``preimages``.
    """

    _gives_loss = True
    _tells_of_maps = True

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        out: OutputSpec,
        loss: Loss | Callable[[Any], Tensor] = "max_prob",
        gradient: Literal["mean", "identity", "selected"] | None = "mean",
        classes: int = -1,
        scored: str | int | None = None,
        views_per_forward: int | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward, strict, mesh)
        self.classes = check_losses(loss, classes)
        checks.choice("gradient", gradient, ("mean", "identity", "selected", None))
        self.loss = loss
        self.gradient = gradient
        self.scored = scored

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The chosen views' outputs for a batch x (B, \\*, H, W) and what else the backbone takes; see the class."""
        given = self._inputs.given(x, args, kwargs)
        parts = self._parts(given)
        merged = self._merged(given, lambda output: self._merge(output, len(parts)), parts=parts)
        return self._with_loss(given, merged)

    def _merge(self, output: Output, parts: int) -> Merge:
        if self.ranks is not None:
            gradient = self.gradient if torch.is_grad_enabled() else None
            return Chosen(output, gradient, self.inp.order, self.ranks)
        trains = self.gradient is not None and (torch.is_grad_enabled() or recorded_for_later())
        if parts > 1 and not trains:
            return Selected(output)
        return Gathered(output, self._merge_one)

    def _merge_one(self, y: Tensor, action: Action, scores: Tensor | None, _: list[int]) -> Tensor:
        assert scores is not None
        merged = orbit_select(y, scores, action, "min", self.gradient, ties="mean")
        assert isinstance(merged, Tensor)
        return merged

    def scores(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of every view of each sample: (|G|, B), in the order of ``inp.group.names``."""
        given = self._inputs.given(x, args, kwargs)
        found, parts = [], self._parts(given)
        for _, fitted, _ in self._forwards(given, parts):
            found.append(self._losses(fitted).detach())
            del fitted
        return self._of_all(found, parts)

    def chosen(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """g*, the chosen element of each sample: (B,) int64; the lowest one of equal scores."""
        return best_view(self.scores(x, *args, **kwargs), True)

    def inverse(self, y: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The x with ``model(x) = y``, of a backbone that has a method ``inverse``.

        Every input with this output is one of ``x_g = g⁻¹ M⁻¹(g y)``, and x_g is one if g is what is chosen for it. So
        with the chosen elements there is always exactly one. Let D hold, of every orbit, the input whose best view is
        its own. Without ``chosen``, every y has exactly one input if ``M(D)``, too, holds one of every orbit: where M
        takes D onto itself, by signs or order that the loss reads off outputs, for example. Otherwise some y have
        several, whose likelihood is the sum over them, and others none: ``preimages`` tells. Inputs whose views tie
        are left out of all this: no equivariant model can tell a symmetric input's output from those of other ones.

        Args:
            y: (B, …), as the model gives them.
            chosen: (B,) int64, what ``model.chosen(x)`` said, whose word is taken. None: every candidate is tried,
                which takes |G| inverses and |G|² forwards.

        Returns:
            x (B, …), with the gradients of the chosen branch.

        Raises:
            TypeError: a backbone without ``inverse``, or a model of several inputs or outputs, or of coordinates.
            ValueError: without ``chosen``, a y that no input gives, or that several different ones give; an invariant
                output of rectangles that the group turns, whose inputs have several shapes.

        Example:
            >>> from equikern import matrix
            >>> class Flow(torch.nn.Module):  # keeps the sign of a number
            ...     def forward(self, x): return x.sign() * x.abs() ** torch.where(x > 0, 2.0, 3.0)
            ...     def inverse(self, y): return y.sign() * y.abs() ** torch.where(y > 0, 1 / 2, 1 / 3)
            >>> sign = matrix([[[1.0]], [[-1.0]]])
            >>> model = EquiZero(Flow(), sign, sign, loss=lambda y: (y[..., 0] < 0).float())
            >>> y = model(torch.tensor([[3.0], [-3.0]]))
            >>> y.tolist(), model.inverse(y).tolist()
            ([[9.0], [-9.0]], [[3.0], [-3.0]])
        """
        batch = _batch(y)
        if chosen is None:
            with torch.no_grad():  # which an element is found by takes no part in the gradient
                chosen = self._only_element(y)
        elif isinstance(chosen, Tensor) and chosen.dim() != 1:
            raise ValueError(f"chosen: expected an element for each sample, (B,), got shape {tuple(chosen.shape)}")
        if isinstance(chosen, Tensor) and len(chosen) == batch and self._turns(y):
            return self._of_several_shapes(y, chosen)
        return self._came_from(y, chosen, "chosen")

    def _only_element(self, y: Tensor) -> Tensor:
        """The element that the only input of each sample was seen by, (B,)."""
        x, fits = self.preimages(y)
        counts = fits.sum(0)
        if bool((counts == 0).any()):
            raise ValueError(
                f"y: expected outputs of the model, but sample {int((counts == 0).int().argmax())} has no input that "
                "gives it; chosen=model.chosen(x) says which elements; ties and rounding can hide them"
            )
        element = fits.int().argmax(0)
        if bool((counts > 1).any()):
            first = x[element, torch.arange(len(y), device=x.device)]
            near = 1e2 * torch.finfo(x.dtype).eps * (1 + first.abs().reshape(len(y), -1).amax(1))
            apart = fits & ((x - first).abs().reshape(*fits.shape, -1).amax(2) > near)
            if bool(apart.any()):
                sample = int(apart.any(0).int().argmax())
                elements = [int(element[sample]), *apart[:, sample].nonzero().flatten().tolist()]
                raise ValueError(
                    f"y: expected outputs that one input gives, but sample {sample} has several, by "
                    f"{', '.join(self.inp.group.names[g] for g in elements)}; preimages(y) gives all of them, "
                    "chosen=model.chosen(x) says which is meant"
                )
        return element

    def _turns(self, y: Tensor) -> bool:
        """Whether some elements give outputs another shape: a rectangle's sides change places."""
        return isinstance(self.out, GroupAction) and y.dim() > self.out.dims and not self.out.views.keeps(y.shape)

    def _of_several_shapes(self, y: Tensor, chosen: Tensor) -> Tensor:
        """The inputs of outputs that the chosen elements turn to several shapes: each element's by themselves."""
        found, places = [], []
        for g in sorted(set(chosen.tolist())):
            some = (chosen == g).nonzero().flatten()
            found.append(self._came_from(y[some], chosen[some], "chosen"))
            places.append(some)
        return torch.cat(found)[torch.cat(places).argsort()] if found else self._came_from(y, chosen, "chosen")

    def preimages(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates for x with ``model(x) = y``, and which of them are: see ``inverse``.

        The density of ``model(x)``, x having p, is ``Σ_g p(x_g) |det ∂M⁻¹(g y)|`` over those that are: elements of
        finite groups keep volumes.

        Returns:
            x_g = g⁻¹ M⁻¹(g y) (|G|, B, …), and (|G|, B) bool: whether it is finite and g what the model chooses for it.
        """
        order, batch = self.inp.order, _batch(y)
        each = [self._came_from(y, torch.full((batch,), g, device=y.device), "y") for g in range(order)]
        if len({t.shape for t in each}) > 1:
            raise ValueError(
                f"y: expected outputs whose shape says which way their inputs lie, got {tuple(y.shape)}, which no view "
                f"changes, of inputs that {self.inp.name!r} turns from {tuple(each[0].shape[1:])}"
            )
        x = torch.stack(each)
        chosen = self.chosen(x.detach().flatten(0, 1)).unflatten(0, (order, batch))  # type: ignore[no-untyped-call]
        fits = chosen == torch.arange(order, device=chosen.device)[:, None]
        finite = x.isfinite().reshape(order, batch, prod(x.shape[2:])).all(2)  # M⁻¹ need not be defined at every g y
        return x, fits & finite

    def _came_from(self, y: Tensor, elements: Tensor, name: str) -> Tensor:
        """g⁻¹ M⁻¹(g y) with an element for each sample."""
        inp, out, inverse = self._inputs.actions, self.out, getattr(self.backbone, "inverse", None)
        if not callable(inverse):
            raise TypeError(f"backbone: expected one with a method inverse, got {type(self.backbone).__name__}")
        if not isinstance(inp, GroupAction) or not isinstance(out, GroupAction):
            raise TypeError(f"inverse: expected a model of one input and one output, got {inp!r} and {out!r}")
        batch = _batch(y)
        if y.dim() <= out.dims:
            raise ValueError(f"y: expected a batch (B, …) that {out.name!r} acts on, got shape {tuple(y.shape)}")
        x = inverse(act(y, elements, self._tables(out), name=name))
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) != batch:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"backbone.inverse: expected a batch of {batch} like its input, got {got}")
        return act(x, elements, self._tables(inp), True)

    def _beside(self, fitted: Fitted, beside: Tensor | None) -> Tensor | None:
        return self._losses(fitted).detach()

    def _losses(self, fitted: Fitted) -> Tensor:
        """(n, B) losses of the outputs (n, B, …) of n views."""
        return view_losses(fitted, self.loss, self.classes, self.scored)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"{super().extra_repr()}, loss={self.loss!r}, gradient={self.gradient!r}"


def check_losses(loss: object, classes: int) -> int:
    """That it is a loss of views, and a dim counted from the end, which is given back."""
    if not callable(loss):
        checks.choice("loss", loss, tuple(LOSSES))
    classes = index("classes", classes)
    if classes >= 0:
        raise ValueError(f"classes: expected a negative number, counted from the end, got {classes}")
    return classes


def view_losses(fitted: Fitted, loss: Loss | Callable[[Any], Tensor], classes: int, scored: str | int | None) -> Tensor:
    """(n, B) losses of the outputs (n, B, …) of n views, see ``EquiZero``."""
    if callable(loss):
        losses = loss(fitted.tree)
        if not isinstance(losses, Tensor):
            raise TypeError(f"loss: expected it to return a tensor of losses (n, B), got {type(losses).__name__}")
        n, batch = fitted.shape
        if losses.dim() != 2 or losses.shape[0] != n or losses.shape[1] != batch:
            raise ValueError(
                f"loss: expected one number for every view and sample, {fitted.shape}, got {tuple(losses.shape)}"
            )
        return losses
    y = _scored(fitted.tree, scored)
    if y.dim() + classes < 2:
        raise ValueError(
            f"classes: expected outputs (n, B, …) with a dim {classes} behind the batch, got {tuple(y.shape)}"
        )
    kind = LOSSES[loss]
    losses = orbit_score(y, kind, dim=classes)
    if losses.dim() == 2:
        return losses
    if kind in ("max_prob", "margin"):  # 1 − p: one tie, whose logarithm is infinite, must not decide for a map
        losses = -torch.expm1(-losses)
    return losses.flatten(2).mean(2)


def _scored(part: Any, scored: str | int | None) -> Tensor:
    if scored is not None:
        try:
            part = part[scored]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"scored: the backbone's outputs have no {scored!r}: {error!r}") from None
    if not isinstance(part, Tensor):
        raise ValueError(
            "scored: expected the key or position of the output that carries the loss, since the backbone returns "
            f"a {type(part).__name__}"
        )
    return part


def _batch(y: object) -> int:
    """B of an output (B, …)."""
    if not isinstance(y, Tensor) or y.dim() == 0:
        got = "one without dims" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y: expected a tensor (B, …), got {got}")
    return len(y)
