"""``LambdaEquiTune``: views weighted by how much a small network trusts them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..actions import Action
from ..core import checks
from ..ops import orbit_weighted_mean
from ..scalars import index, kind_of
from .features import Tap, pooled, shares, weighed
from .merging import Gathered, Merge, Output, Weighted
from .views import ActionSpec, OrbitModule, OutputSpec, in_group_order

__all__ = ["LambdaEquiTune", "train_backbone", "train_weights", "weight_network"]


def weight_network(features: int, hidden: int = 100) -> nn.Sequential:
    """The papers' λ: Linear(features → 100), ReLU, Linear(100 → 1).

    Args:
        features: the size of the features it reads.
        hidden: the size of its hidden layer.

    Raises:
        TypeError, ValueError: a size that is no positive whole number.

    Example:
        >>> weight_network(512)(torch.zeros(8, 512)).shape
        torch.Size([8, 1])
    """
    checks.whole("features", features, 1)
    checks.whole("hidden", hidden, 1)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class LambdaEquiTune(OrbitModule):
    """λ-equitune: ``M(x) = Σ_g λ(g x) g⁻¹ M(g x) / Σ_g λ(g x)`` (arXiv 2305.09900).

    A network reads features of every view and says how much it counts; a constant λ gives equitune, one that picks a
    view equizero. Reading the backbone's own features costs no further forward. Train it in the papers' two stages,
    λ first (``train_weights``), then the backbone (``train_backbone``).

    Args:
        backbone, inp, out, views_per_forward: as in ``EquiTune``.
        weight_net: a module from features (N, F) to one number for each view, (N, 1) or (N,); or F, for the papers'
            ``weight_network(F)``.
        features: what it reads. The name of a submodule of the backbone, whose output is taken; a callable from the
            views (N, …) to features; or None, for the backbone's output (the first, if it has several). Of a feature
            map (N, F, H, W) the mean over the image is taken, of a sequence (N, T, F) that over the positions.
        frozen: take them from a copy of the backbone as it is now, which stays as it is: one more forward for each
            view, and λ does not change when the backbone is tuned. With False they are the backbone's own, and
            gradients reach it through λ too.
        normalize: ``"softmax"``: λ is the exponential of what weight_net says, so positive; ``"sum"``: what it says,
            which must then be positive; None: the same without division by the sum.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch, equivariant: ``model(g x) = g model(x)``.

    Raises:
        TypeError, ValueError: as ``EquiTune``; a weight_net that is no module or size, no submodule of that name,
            frozen with a callable; in the forward, features or weights of the wrong shape.

    Example:
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Linear(8, 5))
        >>> model = LambdaEquiTune(backbone, "d4", "trivial", 8, features="1")
        >>> x = torch.randn(2, 3, 9, 9)
        >>> bool((model(x.flip(-1)) - model(x)).abs().max() < 1e-5)
        True
        >>> model.weights(x).shape, bool((model.weights(x).sum(0) - 1).abs().max() < 1e-6)
        (torch.Size([8, 2]), True)
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Any],
        inp: ActionSpec,
        out: OutputSpec,
        weight_net: nn.Module | int,
        features: str | Callable[[Tensor], Tensor] | None = None,
        frozen: bool = False,
        normalize: Literal["sum", "softmax"] | None = "softmax",
        views_per_forward: int | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward)
        if not isinstance(weight_net, nn.Module):
            try:
                count = index("weight_net", weight_net)
            except TypeError:
                raise TypeError(
                    f"weight_net: expected a module or the number of features, got {kind_of(weight_net)}"
                ) from None
            weight_net = weight_network(checks.whole("weight_net", count, 1))
        checks.choice("normalize", normalize, ("sum", "softmax", None))
        checks.flag("frozen", frozen)
        if features is not None and not isinstance(features, str) and not callable(features):
            raise TypeError(f"features: expected a submodule's name, a callable or None, got {type(features).__name__}")
        if frozen and callable(features):
            raise ValueError("frozen: expected False beside a callable, which takes its features from what it likes")
        self.weight_net = weight_net
        self.features = features
        self.normalize = normalize
        self.frozen = _frozen_copy(backbone) if frozen else None
        self._tap = Tap(None if callable(features) else features)
        self._tap.listen(backbone if self.frozen is None else self.frozen)

    def forward(self, x: Tensor) -> Any:
        """The weighted output for a batch x (B, \\*, H, W); see the class."""
        parts = len(self._parts(x))
        return self._merged(x, lambda output: self._merge(output, parts))

    def _merge(self, output: Output, parts: int) -> Merge:
        return Weighted(output, self.normalize) if parts > 1 else Gathered(output, self._merge_one)

    def _merge_one(self, y: Tensor, action: Action, weights: Tensor | None, _: list[int]) -> Tensor:
        assert weights is not None
        return orbit_weighted_mean(y, weights, action, self.normalize)

    def weights(self, x: Tensor) -> Tensor:
        """How much each view of each sample counts: (|G|, B), in the order of ``inp.group.names``.

        Shares that add up to 1 over the group, but for ``normalize=None``: to look at or to plot.
        """
        found, order = [], []
        for elements, outputs, beside in self._forwards(x, self._parts(x)):
            assert beside is not None
            found.append(beside)
            order += elements
            del outputs
        return in_group_order(shares(torch.cat(found), self.normalize), order)

    @property
    def _averages(self) -> bool:
        return self.normalize is not None

    def _call(self, views: Tensor) -> tuple[Any, Tensor | None]:
        output, features = self._with_features(views)
        return output, weighed(self.weight_net, pooled(features), views.shape[0], "views")

    def _with_features(self, views: Tensor) -> tuple[Any, Any]:
        if callable(self.features):
            return self.backbone(views), self.features(views)
        if self.frozen is None:
            return self._tap.run(self.backbone, views)
        output = self.backbone(views)
        with torch.no_grad():
            # Neither forward mode nor what torch.export makes of a program asks whether gradients are off.
            return output, self._tap.run(self.frozen, views.detach())[1]

    def train(self, mode: bool = True) -> LambdaEquiTune:
        """As ever, but a part with nothing to train stays in evaluation mode, so that its statistics do not move."""
        super().train(mode)
        for part in (self.backbone, self.weight_net, self.frozen):
            if isinstance(part, nn.Module):
                parameters = list(part.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    part.eval()
        return self

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone and the weight network."""
        return f"inp={self.inp!r}, out={self.out!r}, features={self.features!r}, normalize={self.normalize!r}"


def train_weights(model: LambdaEquiTune) -> list[nn.Parameter]:
    """The first stage: the backbone stands still, λ learns. Returns the parameters for the optimizer.

    Example:
        >>> model = LambdaEquiTune(nn.Linear(4, 3), "hflip", "trivial", 3)
        >>> optimizer = torch.optim.SGD(train_weights(model), lr=0.1, momentum=0.9)
        >>> model.backbone.weight.requires_grad
        False
    """
    return _only(model, "weight_net", "backbone")


def train_backbone(model: LambdaEquiTune) -> list[nn.Parameter]:
    """The second stage: λ stands still, the backbone is tuned. Returns the parameters for the optimizer.

    Where λ reads the backbone's own features it goes on following them; ``frozen=True`` keeps it still altogether.

    Example:
        >>> model = LambdaEquiTune(nn.Linear(4, 3), "hflip", "trivial", 3)
        >>> [tuple(p.shape) for p in train_backbone(model)], model.weight_net.training
        ([(3, 4), (3,)], False)
    """
    return _only(model, "backbone", "weight_net")


def _only(model: LambdaEquiTune, learning: str, standing: str) -> list[nn.Parameter]:
    if not isinstance(model, nn.Module) or not hasattr(model, "weight_net"):
        raise TypeError(f"model: expected one with a weight_net, such as a LambdaEquiTune, got {type(model).__name__}")
    learns, stands = getattr(model, learning), getattr(model, standing)
    if not isinstance(learns, nn.Module):
        raise TypeError(f"model: expected a {learning} with parameters to train, got {type(learns).__name__}")
    learns.requires_grad_(True)
    if isinstance(stands, nn.Module):
        stands.requires_grad_(False)
    model.train()
    return list(learns.parameters())


def _frozen_copy(backbone: object) -> nn.Module:
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"frozen: expected a module as the backbone, got {type(backbone).__name__}")
    return copy.deepcopy(backbone).requires_grad_(False).eval()
