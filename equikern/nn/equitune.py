"""``EquiTune``: a pretrained model made equivariant by averaging over the group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor

from ..actions import Action
from ..coordinates import Coordinates
from ..core import checks
from ..ops import orbit_mean, orbit_reduce
from ..reductions import REDUCTIONS
from ..views import FLOATS
from ..views.grid import sides_named
from .inputs import NOT_GIVEN
from .merging import Gathered, Merge, Output, Summed, reduced
from .specs import InputSpec, OutputSpec, acting
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["EquiTune"]


class EquiTune(OrbitModule):
    """Make a backbone equivariant: ``M_G(x) = 1/|G| Σ_g g⁻¹ M(g x)`` (equi-tuning, arXiv 2210.06475).

    The backbone sees the |G| views of a batch as one batch of |G|·B samples; its outputs are transformed back and
    merged in one pass. A rectangle under a group with 90° rotations is run as two batches, upright and turned. Nothing
    is added to learn, so the wrapper works zero-shot, and it can be fine-tuned: gradients reach the backbone.

    Args:
        backbone: a module, or any callable from a (B, …, H, W) tensor and whatever else it takes to tensors whose
            first dim is the batch. It is reachable as ``.backbone``; state_dict keys have the prefix ``backbone.``.
        inp: how the group acts on the input: an action, or its name such as ``"d4"``; a tuple or dict of these for a
            backbone with several inputs, see below.
        out: how it acts on the output: an action of the same group, its name, or ``"trivial"`` for an output that the
            group leaves alone, such as class logits. A tuple or dict of these, nested as its outputs are, for a
            backbone with several: tuples, lists, dicts, dataclasses or transformers' ``ModelOutput``, which come out
            as what they are. None in it drops an output (from dicts; elsewhere None is in its place), and ``"shared"``
            gives that of the first forward as it is. Numbers, strings and None need not be listed: those of the first
            forward are given.
        reduce: ``"mean"``, or one of ``orbit_reduce``'s ops; ``"mean_std"`` returns a pair for every output.
        views_per_forward: run the backbone on at most so many views at a time, to cap the memory of one forward; all
            of them by default. (While gradients are recorded every forward's activations are kept all the same.
            Batch statistics of a backbone in training mode are then those of each part.)
        space: merge the outputs as they are (None), their softmax (``"probs"``) or its logarithm (``"log_probs"``),
            over the permuted dim, a map's channels, or the last dim under the trivial action; for rows with
            ``reduce="mean"`` in the same pass.
        strict: whether a tensor that ``out`` does not list is an error, which lists what there is; with False it is
            dropped.
        mesh: one axis of a ``DeviceMesh``, or a process group, whose processes each run their share of the views and
            all get the whole output; see ``equikern.distributed.Ranks``.

    Inputs. The model is called as its backbone is, ``model(x, *args, **kwargs)``. A tuple ``inp`` goes by position, a
    dict by the names of the parameters of the backbone's forward or of keywords, nested as the inputs are; one action
    is for the first input, or the only keyword.

    ================== =======================================================================================
    an action          every view is of the input as that element sees it: images, masks and points that turn
    None, or not named repeated for every view: tensors whose first dim is the batch and lists of B strings, wherever
                       they are nested. A first dim of 1 beside a larger batch is for all samples, it stays, as do
                       tensors without dims, numbers, strings and whatever else. Any other first dim is an error
    ``"shared"``       what it is, for all views
    ================== =======================================================================================

    Say ``"shared"`` of whatever has no batch by nature: a table, a kernel, the names of the classes. It would be taken
    for a batch where it happens to be as long as one. A list of tensors is so many inputs, not one.

    The first input on a grid says the batch, and the image's size for coordinates.

    Labels. Where transformers' model is given ``labels`` and computes its loss by its ``loss_function`` of labels and
    logits alone (most classifiers of images and videos do, few of text), it is called without them, and ``loss`` is
    what that function says of the merged logits, in front of the outputs. Otherwise the backbone gets its labels,
    repeated, and the ``loss`` of a dict, which is one of views, is dropped, as where merged outputs are no logits
    (``space``, ``"std"``). Labels that ``inp`` names are inputs as any other.

    Shapes:
        x (B, \\*, H, W) → the backbone's output for one batch, equivariant: ``model(g x) = g model(x)``.

    Raises:
        TypeError: a backbone that cannot be called, or a spec that is not an action.
        ValueError: actions of different groups, an unknown name or reduce, views_per_forward below 1; in the forward,
            an x without a batch dim, other inputs that have not its batch or an output that does not fit ``out``.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> model = EquiTune(conv, "c4", "c4")
        >>> x = torch.randn(2, 3, 8, 8)
        >>> bool((model(x.rot90(1, (-2, -1))) - model(x).rot90(1, (-2, -1))).abs().max() < 1e-5)
        True
        >>> def denoiser(sample, timestep, control=None):
        ...     return {"sample": conv(sample + control) * timestep.view(-1, 1, 1, 1), "step": 7}
        >>> model = EquiTune(denoiser, {"sample": "c4", "control": "c4"}, {"sample": "c4"})
        >>> y = model(x, timestep=torch.tensor([1.0, 2.0]), control=x)
        >>> y["sample"].shape, y["step"]
        (torch.Size([2, 4, 8, 8]), 7)
    """

    _gives_loss = True
    _tells_of_maps = True

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        out: OutputSpec,
        reduce: str = "mean",
        views_per_forward: int | None = None,
        space: Literal["probs", "log_probs"] | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward, strict, mesh)
        checks.choice("reduce", reduce, ("mean", *REDUCTIONS))
        checks.choice("space", space, ("probs", "log_probs", None))
        for spec in acting(self.out) if space is not None else ():
            _check_classes(spec)
        self.reduce = reduce
        self.space = space

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """The merged output for a batch x (B, \\*, H, W) and what else the backbone takes; see the class."""
        checks.choice("reduce", self.reduce, ("mean", *REDUCTIONS))
        integers = self.reduce in REDUCTIONS and REDUCTIONS[self.reduce].integers
        given = self._inputs.given(x, args, kwargs)
        parts = self._parts(given)
        make = lambda output: self._merge(output, len(parts))  # noqa: E731
        dtypes = checks.INTEGERS if integers else FLOATS
        return self._with_loss(given, self._merged(given, make, dtypes, parts=parts))

    def _merge(self, output: Output, parts: int) -> Merge:
        if self.reduce == "mean":
            if parts == 1:
                return Gathered(output, self._mean)
            return Summed(output, 1.0 / self.inp.order, None if self.space is None else self._probabilities)
        if self.space is None:
            return reduced(output, self.reduce, parts, self.inp.order, self.ranks is not None)
        op = cast(Any, self.reduce)
        return Gathered(output, lambda y, action, *_: orbit_reduce(self._probabilities(y, action), action, op))

    def _mean(self, y: Tensor, action: Action, *_: object) -> Tensor:
        if self.space is not None and action.sides:
            return orbit_mean(self._probabilities(y, action), action)
        return orbit_mean(y, action, self.space)

    def _probabilities(self, y: Tensor, action: Action) -> Tensor:
        if action.sides:  # a map of logits, whose classes are its channels
            dim = -action.sides - 1
            if y.dim() < 2 - dim:
                raise ValueError(
                    f"output: expected maps (B, classes, {sides_named(action.sides)}) for space {self.space!r}, got "
                    f"shape {tuple(y.shape[1:])}"
                )
            return y.softmax(dim) if self.space == "probs" else y.log_softmax(dim)
        rows, _ = checks.logits("output", y, action)
        p = rows.softmax(-1) if self.space == "probs" else rows.log_softmax(-1)
        return p.movedim(-1, -action.dims or -1)

    @property
    def _averages(self) -> bool:
        return self.reduce == "mean" and self.space is None

    @property
    def _keeps_logits(self) -> bool:
        return self.space is None and self.reduce in ("mean", "sum", "max", "min", "median")

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        space = "" if self.space is None else f", space={self.space!r}"
        return f"{super().extra_repr()}, reduce={self.reduce!r}{space}"


def _check_classes(spec: Any) -> None:
    """That an output can be logits: rows or maps whose classes stay apart."""
    if isinstance(spec, Coordinates) or spec.views.kind.computes or spec.views.signed:
        raise ValueError(f"space: expected None where an output is no logits, got one beside out {spec!r}")
