"""``EquiDetector``: a detector made equivariant by merging what it finds in every view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..actions import Action
from ..coordinates import Coordinates
from ..core import checks
from ..ops.checked import orbit_some
from ..scalars import share
from ..views import FLOATS
from .fusion import Found, fused
from .inputs import NOT_GIVEN, Given, repeated, split
from .joined import ranks_of
from .specs import InputSpec, OutputSpec
from .views import OrbitModule

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["EquiDetector"]

Detections = dict[str, Tensor]
Size = tuple[int, int]
Forwards = Callable[[list[list[int]]], Iterable[tuple[list[int], list[Detections], Any]]]
_ALWAYS = ("boxes", "scores", "labels")


class EquiDetector(OrbitModule):
    """Make a detector of boxes equivariant: ``D_G(x) = fuse_g g⁻¹ D(g x)``, with weighted boxes fusion.

    A detector answers with as many boxes as it finds, so views have no mean. Here each view's boxes are turned back and
    those of one label that overlap are fused into their mean, weighted by score (Solovyev, Wang and Gabruseva, arXiv
    1910.13302). What few views have found gets a small score. One box of each view goes into a fused one: of two that
    overlap in a view the surer counts, and a second one that only overlaps what others have made of the first stays for
    itself. No gradient goes through; train the backbone as it is.

    Args:
        backbone: from images (B, C, H, W), or a list of images, to one dict for each, with "boxes" (n, 4), "scores"
            (n,) and "labels" (n,), as torchvision's detectors in eval mode.
        inp: how the group acts on the image; of several inputs as in ``EquiTune``.
        out: how it acts on the boxes: ``boxes(inp, …)`` in the backbone's format and units. Or a dict, with that for
            "boxes" and an action for each further entry (n, …) of floats, such as ``{"boxes": boxes("d4"), "masks":
            "d4", "keypoints": keypoints("d4", swap, extra=1), "keypoints_scores": "trivial"}``: these are turned back
            and averaged as their boxes are. What else is in the backbone's dicts is left out.
        iou: boxes that overlap by more than this intersection over union are one.
        min_score: boxes that a view is less sure of are left out, and in any case those with a score of 0, without area
            or outside of the image.
        confidence: the score of fused boxes: ``"avg"``, the mean over all views, with 0 for those that have not found
            it, or ``"max"``.
        views_per_forward, mesh: as in ``EquiTune``. Processes tell one another what they have found, and each fuses it.

    Shapes:
        x (B, C, H, W) → a list of B dicts: "boxes" (n, 4) on x in the backbone's format and units, clipped to the
        image; "scores" (n,), falling; "labels" (n,) int64; and what else out names, (n, …).

        A list or tuple of B images (C, H, W) of any sizes is given to the backbone as lists of views.

    Equivariant, ``model(g x) = g model(x)``, wherever scores differ and no overlap is on the threshold: the fusion goes
    through boxes by falling score, and ties would go to the view that comes first. Boxes are fused on the CPU.

    Raises:
        TypeError, ValueError: as ``EquiTune``; an out whose boxes are not made by ``boxes``, numbers out of range; in
            the forward, detections that are none.

    Example:
        >>> from equikern import boxes
        >>> def detector(images):  # finds the brightest pixel
        ...     at = [divmod(int(image.argmax()), image.shape[-1]) for image in images]
        ...     found = [torch.tensor([[column - 1.0, row - 1.0, column + 2.0, row + 2.0]]) for row, column in at]
        ...     return [{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])} for box in found]
        >>> x = torch.zeros(1, 1, 6, 8)
        >>> x[0, 0, 2, 5] = 1
        >>> (found,) = EquiDetector(detector, "d4", boxes("d4"))(x)
        >>> found["boxes"].round().tolist(), found["labels"].tolist()
        ([[4.0, 1.0, 7.0, 4.0]], [1])
    """

    def __init__(
        self,
        backbone: Callable[..., Sequence[Mapping[str, Tensor]]],
        inp: InputSpec,
        out: OutputSpec,
        iou: float = 0.55,
        min_score: float = 0.0,
        confidence: Literal["avg", "max"] = "avg",
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        ranks = ranks_of(mesh, type(self).__name__, learns=False)
        super().__init__(backbone, inp, out, views_per_forward, mesh=ranks)
        specs = self.out if isinstance(self.out, dict) else {"boxes": self.out}
        found = specs.get("boxes")
        if not isinstance(found, Coordinates) or found.format is None:
            raise TypeError(f"out: expected what boxes(…) makes, got {found!r}")
        self._boxes = found
        self._further = {name: spec for name, spec in specs.items() if name != "boxes" and spec is not None}
        for name, spec in self._further.items():
            if name in _ALWAYS or not isinstance(spec, (Action, Coordinates)):
                raise ValueError(f"out[{name!r}]: expected an action for an entry beside {_ALWAYS}, got {spec!r}")
        checks.choice("confidence", confidence, ("avg", "max"))
        self.iou, self.min_score = share("iou", iou), share("min_score", min_score)
        self.confidence = confidence

    def forward(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> list[Detections]:
        """The fused detections of every image; see the class."""
        return [self._fused(views, size) for views, size in self._undone(x, args, kwargs)]

    def views(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> list[list[Detections]]:
        """What every view found, turned back on x: |G| dicts for each image, in the group's order."""
        return [views for views, _ in self._undone(x, args, kwargs)]

    def _undone(self, x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[list[Detections], Size]]:
        """For every image the detections of its views, turned back, and its size."""
        first = next(iter(self._inputs.names), None)
        if x is NOT_GIVEN and isinstance(kwargs.get(first or "x"), (list, tuple)):
            x = kwargs[first or "x"]
            kwargs = {name: value for name, value in kwargs.items() if name != (first or "x")}
        if isinstance(x, (list, tuple)):
            return self._found(*self._of_list(list(x), args, kwargs))
        given = self._inputs.given(x, args, kwargs)
        sizes = [(given.x.shape[-2], given.x.shape[-1])] * given.batch
        forwards = lambda parts: self._run_each(given, parts, None)  # noqa: E731
        return self._found(sizes, given.x.device, self._parts(given), forwards)

    def _found(
        self, sizes: list[Size], device: torch.device, parts: list[list[int]], forwards: Forwards
    ) -> list[tuple[list[Detections], Size]]:
        """What the views in ``parts`` are found to show of images of these sizes, by this process or another one."""
        own, spare = (parts, 0) if self.ranks is None else self.ranks.own(parts)
        found: dict[tuple[int, int], Detections] = {}
        for elements, outputs, _ in islice(forwards(own), spare, None):
            for i, detections in enumerate(outputs):
                g, b = elements[i // len(sizes)], i % len(sizes)
                found[g, b] = {name: self._back(name, t, g, sizes[b]) for name, t in detections.items()}
        if self.ranks is not None:
            said = {at: {name: t.detach().cpu().clone() for name, t in one.items()} for at, one in found.items()}
            every = self.ranks.told(said, "what is found in the views")
            found = {at: {name: t.to(device) for name, t in one.items()} for each in every for at, one in each.items()}
        return [([found[g, b] for g in range(self.inp.order)], size) for b, size in enumerate(sizes)]

    def _of_list(
        self, images: list[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[Size], torch.device, list[list[int]], Forwards]:
        """Images of any sizes: their sizes and device, the parts of the group, and what is found in some parts."""
        inp = self._inputs.actions
        if isinstance(inp, (tuple, dict)) and len(inp) == 1:
            inp = inp[0] if isinstance(inp, tuple) else inp.get(next(iter(self._inputs.names), "x"), inp)
        if not isinstance(inp, Action):
            raise ValueError(f"inp: expected one action for a list of images, got {inp!r}")
        for i, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dim() != inp.dims + 1:
                got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(f"x[{i}]: expected an image (C, H, W), got {got}")

        def forwards(parts: list[list[int]]) -> Iterable[tuple[list[int], list[Detections], None]]:
            acting = self._tables(inp)
            for elements in parts:
                seen = [orbit_some(image, acting, [g])[0] for g in elements for image in images]
                beside, named = repeated(args, kwargs, len(elements), len(images))
                yield elements, self._listed(self.backbone(seen, *beside, **named), len(seen)), None

        parts = split([list(range(inp.order))], self.views_per_forward, self.ranks)
        device = images[0].device if images else torch.device("cpu")
        return [(image.shape[-2], image.shape[-1]) for image in images], device, parts, forwards

    def _split(
        self, outputs: Any, beside: Tensor | None, elements: list[int], given: Given
    ) -> tuple[list[Detections], Tensor | None]:
        return self._listed(outputs, len(elements) * given.batch), None

    def _listed(self, outputs: Any, count: int) -> list[Detections]:
        if not isinstance(outputs, Sequence) or len(outputs) != count:
            got = f"{len(outputs)} of them" if isinstance(outputs, Sequence) else type(outputs).__name__
            raise ValueError(f"backbone: expected a list of {count} dicts, one for each view and image, got {got}")
        return [_checked(detections, (*_ALWAYS, *self._further)) for detections in outputs]

    def _back(self, name: str, t: Tensor, g: int, size: tuple[int, int]) -> Tensor:
        """An entry of a view's detections as it is on x."""
        spec = self._boxes if name == "boxes" else self._further.get(name)
        if isinstance(spec, Coordinates):
            return spec.undo(g, t, size)
        return t if spec is None else spec.act(int(self.inp.group.inverse[g]), t)

    def _fused(self, views: list[Detections], size: tuple[int, int]) -> Detections:
        found, kept = [], []
        for view in views:
            shares = _to_shares(self._boxes, view["boxes"].detach().double().cpu(), size)
            scores, labels = view["scores"].detach().double().cpu(), view["labels"].detach().cpu()
            _check_found(shares, scores, self._boxes)
            shares = shares.clamp(0, 1)
            keep = ((shares[:, 2:] > shares[:, :2]).all(1) & (scores > 0)).nonzero().flatten()
            kept.append(keep.tolist())
            found.append(Found(*(t[keep].numpy() for t in (shares, scores, labels))))
        result = fused(found, self.iou, self.min_score, self.confidence == "max")
        boxes = _from_shares(self._boxes, torch.from_numpy(result.boxes), size)
        like = views[0]["boxes"]
        made = {
            "boxes": boxes.to(like),
            "scores": torch.from_numpy(result.scores).to(views[0]["scores"]),
            "labels": torch.from_numpy(result.labels).to(like.device, torch.int64),
        }
        for name in self._further:
            entries = [view[name].detach() for view in views]
            shapes = {tuple(entry.shape[1:]) for entry in entries}
            if len(shapes) > 1:
                raise ValueError(
                    f'backbone: expected "{name}" that are turned as the image is, so that all views have them in one '
                    f"shape once turned back, got {sorted(shapes)}"
                )
            means = [_mean([(entries[v][kept[v][i]], share) for v, i, share in members]) for members in result.members]
            made[name] = torch.stack(means) if means else entries[0][:0]
        return made

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        settings = f"iou={self.iou}, min_score={self.min_score}, confidence={self.confidence!r}"
        return f"{super().extra_repr()}, {settings}"


def _check_found(shares: Tensor, scores: Tensor, out: Coordinates) -> None:
    """That boxes and scores are such: what is no number, or another format's, would be left out without a word."""
    wrong = ~shares.isfinite().all(1) | (shares[:, 2:] < shares[:, :2]).any(1)
    if wrong.any():
        kind = "right of left and bottom below top" if out.format == "xyxy" else "width and height from 0"
        raise ValueError(
            f'backbone: expected finite "boxes" in {out.format}, {kind}, got one that as shares of the image is '
            f"{[round(float(v), 4) for v in shares[wrong][0]]}"
        )
    if scores.numel() and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(f'backbone: expected "scores" in 0 … 1, got {scores.min():.4g} … {scores.max():.4g}')


def _mean(parts: list[tuple[Tensor, float]]) -> Tensor:
    """The mean of some tensors by their shares, which add up to one, one after the other: masks are large."""
    first, share = parts[0]
    wide = torch.promote_types(first.dtype, torch.float32)
    total = first.to(wide) * share
    for t, share in parts[1:]:
        total.add_(t, alpha=share)
    return total.to(first.dtype)


def _to_shares(out: Coordinates, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Left, top, right and bottom as shares of the image's width and height."""
    if out.format == "cxcywh":
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        boxes = torch.cat((middle - half, middle + half), 1)
    elif out.format == "xywh":
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    if out.units == "normalized":
        return boxes
    return (boxes + 0.5 * (out.units == "center")) / boxes.new_tensor([size[1], size[0]] * 2)


def _from_shares(out: Coordinates, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Those shares in a backbone's format and units."""
    if out.units != "normalized":
        boxes = boxes * boxes.new_tensor([size[1], size[0]] * 2) - 0.5 * (out.units == "center")
    if out.format != "xyxy":
        near, far = boxes[:, :2], boxes[:, 2:]
        boxes = torch.cat((near if out.format == "xywh" else (near + far) / 2, far - near), 1)
    return boxes


def _checked(detections: Any, names: tuple[str, ...]) -> Detections:
    if not isinstance(detections, Mapping) or not set(names) <= set(detections):
        got = sorted(detections) if isinstance(detections, Mapping) else type(detections).__name__
        wanted = ", ".join(f'"{name}"' for name in names[:-1])
        raise ValueError(f'backbone: expected dicts with {wanted} and "{names[-1]}", got {got}')
    found: Detections = {name: detections[name] for name in names}
    for name, t in found.items():
        if not isinstance(t, Tensor):
            raise TypeError(f'backbone: expected tensors in its dicts, got {type(t).__name__} for "{name}"')
        if name not in _ALWAYS and t.dtype not in FLOATS:
            raise TypeError(f'backbone: expected floating-point numbers to average for "{name}", got {t.dtype}')
    shapes = {name: tuple(found[name].shape) for name in _ALWAYS}
    n = len(found["boxes"])
    if shapes != {"boxes": (n, 4), "scores": (n,), "labels": (n,)}:
        raise ValueError(f'backbone: expected "boxes" (n, 4), "scores" (n,) and "labels" (n,), got {shapes}')
    for name in names[3:]:
        if found[name].dim() == 0 or len(found[name]) != n:
            raise ValueError(f'backbone: expected "{name}" ({n}, …) like its boxes, got {tuple(found[name].shape)}')
    return found
