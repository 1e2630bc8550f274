"""``LambdaEquiTune``: views weighted by how much a small network trusts them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..actions import Action
from ..core import checks
from ..ops import orbit_weighted_mean
from ..scalars import index, kind_of
from .features import POOLS, Pool, Tap, shares, size_read, weighed
from .inputs import NOT_GIVEN
from .merging import Gathered, Merge, Output, Weighted
from .specs import InputSpec, OutputSpec
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["LambdaEquiTune", "evaluate_still", "only", "train_backbone", "train_weights", "weight_network"]


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
        backbone, inp, out, views_per_forward, strict, mesh: as in ``EquiTune``.
        weight_net: a module from features (N, F) to one number for each view, (N, 1) or (N,); or F, for the papers'
            ``weight_network(F)``.
        features: what it reads. The name of a submodule of the backbone, whose output is taken; a callable from what
            the backbone is given, views (N, …), to features; or None, for the backbone's output (the first, if it has
            several).
        pool: where these features are: ``"first"`` in maps (N, F, H, W); ``"last"`` in sequences (N, T, F) and in
            channels-last maps (N, H, W, F), as Swin's; ``"auto"``: where they are as many as weight_net's first linear
            map reads in one of these places alone, there, otherwise first in maps and last in sequences. The mean over
            the image or the positions is taken. With None weight_net reads everything as it is, (N, …).
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

    _gives_loss = True
    _tells_of_maps = True

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        out: OutputSpec,
        weight_net: nn.Module | int,
        features: str | Callable[..., Tensor] | None = None,
        frozen: bool = False,
        normalize: Literal["sum", "softmax"] | None = "softmax",
        views_per_forward: int | None = None,
        strict: bool = True,
        pool: Literal["auto", "first", "last"] | None = "auto",
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward, strict, mesh)
        if not isinstance(weight_net, nn.Module):
            try:
                count = index("weight_net", weight_net)
            except TypeError:
                raise TypeError(
                    f"weight_net: expected a module or the number of features, got {kind_of(weight_net)}"
                ) from None
            weight_net = weight_network(checks.whole("weight_net", count, 1))
        checks.choice("normalize", normalize, ("sum", "softmax", None))
        checks.choice("pool", pool, POOLS)
        checks.flag("frozen", frozen)
        if features is not None and not isinstance(features, str) and not callable(features):
            raise TypeError(f"features: expected a submodule's name, a callable or None, got {type(features).__name__}")
        if frozen and callable(features):
            raise ValueError("frozen: expected False beside a callable, which takes its features from what it likes")
        self.weight_net = weight_net
        self.features = features
        self.normalize = normalize
        self.frozen = _frozen_copy(backbone) if frozen else None
        self._pool = Pool(pool, size_read(weight_net))
        self._tap = Tap(None if callable(features) else features, self._pool)
        self._tap.listen(backbone if self.frozen is None else self.frozen)
        if self.ranks is not None:
            self.ranks.listen(self)

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The weighted output for a batch x (B, \\*, H, W) and what else the backbone takes; see the class."""
        given = self._inputs.given(x, args, kwargs)
        parts = self._parts(given)
        merged = self._merged(given, lambda output: self._merge(output, len(parts)), parts=parts)
        return self._with_loss(given, merged)

    def _merge(self, output: Output, parts: int) -> Merge:
        return Weighted(output, self.normalize) if parts > 1 else Gathered(output, self._merge_one)

    def _merge_one(self, y: Tensor, action: Action, weights: Tensor | None, _: list[int]) -> Tensor:
        assert weights is not None
        return orbit_weighted_mean(y, weights, action, self.normalize)

    def weights(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Tensor:
        """How much each view of each sample counts: (|G|, B), in the order of ``inp.group.names``.

        Shares that add up to 1 over the group, but for ``normalize=None``: to look at or to plot.
        """
        given = self._inputs.given(x, args, kwargs)
        found, parts = [], self._parts(given)
        for _, fitted, beside in self._forwards(given, parts):
            assert beside is not None
            found.append(beside)
            del fitted
        return shares(self._of_all(found, parts), self.normalize)

    @property
    def _averages(self) -> bool:
        return self.normalize is not None

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any], count: int) -> tuple[Any, Tensor | None]:
        output, features = self._with_features(args, kwargs)
        return output, weighed(self.weight_net, features, count, "views")

    def _with_features(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        if callable(self.features):
            return self.backbone(*args, **kwargs), self._pool(self.features(*args, **kwargs))
        if self.frozen is None:
            return self._tap.run(self.backbone, args, kwargs)
        output = self.backbone(*args, **kwargs)
        with torch.no_grad():
            features = self._tap.run(self.frozen, args, kwargs)[1]
        return output, features.detach()  # forward mode and exported programs know nothing of no_grad

    def train(self, mode: bool = True) -> LambdaEquiTune:
        """As ever, but a part with nothing to train stays in evaluation mode, so that its statistics do not move."""
        super().train(mode)
        evaluate_still(self.backbone, self.weight_net, self.frozen)
        return self

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone and the weight network."""
        return f"{super().extra_repr()}, features={self.features!r}, normalize={self.normalize!r}"


def train_weights(model: LambdaEquiTune) -> list[nn.Parameter]:
    """The first stage: the backbone stands still, λ learns. Returns the parameters for the optimizer.

    Example:
        >>> model = LambdaEquiTune(nn.Linear(4, 3), "hflip", "trivial", 3)
        >>> optimizer = torch.optim.SGD(train_weights(model), lr=0.1, momentum=0.9)
        >>> model.backbone.weight.requires_grad
        False
    """
    return only(model, "weight_net", "backbone")


def train_backbone(model: OrbitModule) -> list[nn.Parameter]:
    """The second stage: λ, or the energy, stands still, the backbone is tuned. Returns the parameters for the
    optimizer.

    Where λ reads the backbone's own features it goes on following them; ``frozen=True`` keeps it still altogether.

    Example:
        >>> model = LambdaEquiTune(nn.Linear(4, 3), "hflip", "trivial", 3)
        >>> [tuple(p.shape) for p in train_backbone(model)], model.weight_net.training
        ([(3, 4), (3,)], False)
    """
    return only(model, "backbone", "energy" if hasattr(model, "energy") else "weight_net")


def only(model: nn.Module, learning: str, standing: str) -> list[nn.Parameter]:
    """One part of a model learns, another one stands still."""
    wanted = standing if learning == "backbone" else learning
    if not isinstance(model, nn.Module) or not hasattr(model, learning) or not hasattr(model, standing):
        example = (
            "an energy, such as a CanonicalEquiTune" if wanted == "energy" else f"a {wanted}, such as a LambdaEquiTune"
        )
        raise TypeError(f"model: expected one with {example}, got {type(model).__name__}")
    learns, stands = getattr(model, learning), getattr(model, standing)
    if not isinstance(learns, nn.Module):
        wanted = "an energy" if learning == "energy" else f"a {learning}"
        raise TypeError(f"model: expected {wanted} with parameters to train, got {type(learns).__name__}")
    learns.requires_grad_(True)
    if isinstance(stands, nn.Module):
        stands.requires_grad_(False)
    model.train()
    return list(learns.parameters())


def evaluate_still(*parts: object) -> None:
    """Parts with nothing to train go into evaluation mode."""
    for part in parts:
        if isinstance(part, nn.Module):
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()


def _frozen_copy(backbone: object) -> nn.Module:
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"frozen: expected a module as the backbone, got {type(backbone).__name__}")
    try:
        copied = copy.deepcopy(backbone)
    except AssertionError as error:
        raise ValueError(
            "frozen: expected a backbone that is not sharded yet, since FSDP's modules cannot be copied; make the "
            f"wrapper first, then shard it, as in fully_shard(model): {error}"
        ) from None
    return copied.requires_grad_(False).eval()
