"""``EquiDetector``: a detector made equivariant by merging what it finds in every view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..core import checks
from ..scalars import share
from .inputs import NOT_GIVEN, Given
from .specs import InputSpec
from .views import OrbitModule

__all__ = ["EquiDetector"]

KINDS = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
Detections = dict[str, Tensor]


class EquiDetector(OrbitModule):
    """Make a detector of boxes equivariant: ``D_G(x) = fuse_g g⁻¹ D(g x)``, with weighted boxes fusion.

    A detector answers with as many boxes as it finds, so views have no mean. Here each view's boxes are turned back and
    those of one label that overlap are fused into their mean, weighted by score (Solovyev, Wang and Gabruseva, arXiv
    1910.13302; the package ``ensemble-boxes``, which the extra ``boxes`` brings). What few views have found gets a
    small score; of boxes that one view finds twice, the surer counts. No gradient goes through; train the backbone as
    it is.

    Args:
        backbone: from images (B, C, H, W) to one dict for each, with "boxes" (n, 4), "scores" (n,) and "labels" (n,),
            as torchvision's detectors in eval mode; what else is in it is left out.
        inp: how the group acts on the image; of several inputs as in ``EquiTune``.
        out: how it acts on the boxes: ``boxes(inp, …)`` in the backbone's format and units.
        iou: boxes that overlap by more than this intersection over union are one.
        min_score: boxes that a view is less sure of are left out, and those with a score of 0 in any case.
        confidence: the score of fused boxes: ``"avg"``, the mean over all views, ``"max"``, or another ``conf_type`` of
            ``ensemble_boxes.weighted_boxes_fusion``.
        views_per_forward: as in ``EquiTune``.

    Shapes:
        x (B, C, H, W) → a list of B dicts: "boxes" (n, 4) on x in the backbone's format and units, clipped to the
        image; "scores" (n,), falling; "labels" (n,) int64.

    Equivariant, ``model(g x) = g model(x)``, wherever scores differ and no overlap is on the threshold: the fusion goes
    through boxes by falling score, and ties would go to the view that comes first. Computed on the CPU, in float32.

    Raises:
        ImportError: ``ensemble-boxes`` is not installed.
        TypeError, ValueError: as ``EquiTune``; an out that is not made by ``boxes``, numbers out of range; in the
            forward, detections that are none.

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
        out: Coordinates,
        iou: float = 0.55,
        min_score: float = 0.0,
        confidence: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = "avg",
        views_per_forward: int | None = None,
    ) -> None:
        super().__init__(backbone, inp, out, views_per_forward)
        if not isinstance(self.out, Coordinates) or self.out.format is None:
            raise TypeError(f"out: expected what boxes(…) makes, got {self.out!r}")
        checks.choice("confidence", confidence, KINDS)
        self.iou, self.min_score = share("iou", iou), share("min_score", min_score)
        self.confidence = confidence
        _fusion()

    def forward(self, x: Any = NOT_GIVEN, *args: Any, **kwargs: Any) -> list[Detections]:
        """The fused detections of every image; see the class."""
        given = self._inputs.given(x, args, kwargs)
        return [self._fused(views, given.x) for views in self._undone(given)]

    def views(self, x: Any = NOT_GIVEN, *args: Any, **kwargs: Any) -> list[list[Detections]]:
        """What every view found, with its boxes turned back on x: |G| dicts for each image, in the group's order."""
        return self._undone(self._inputs.given(x, args, kwargs))

    def _undone(self, given: Given) -> list[list[Detections]]:
        x = given.x
        found: list[list[Detections]] = [[{}] * self.inp.order for _ in range(len(x))]
        for elements, outputs, _ in self._forwards(given, self._parts(given)):
            for i, detections in enumerate(outputs):
                g, b = elements[i // len(x)], i % len(x)
                undone = self.out.undo(g, detections["boxes"], (x.shape[-2], x.shape[-1]))
                found[b][g] = {**detections, "boxes": undone}
        return found

    def _split(
        self, outputs: Any, beside: Tensor | None, elements: list[int], given: Given
    ) -> tuple[list[Detections], Tensor | None]:
        count = len(elements) * given.batch
        if not isinstance(outputs, Sequence) or len(outputs) != count:
            got = f"{len(outputs)} of them" if isinstance(outputs, Sequence) else type(outputs).__name__
            raise ValueError(f"backbone: expected a list of {count} dicts, one for each view and image, got {got}")
        return [_checked(detections) for detections in outputs], None

    def _fused(self, views: list[Detections], x: Tensor) -> Detections:
        size = (x.shape[-2], x.shape[-1])
        found: list[list[Any]] = []
        for view in views:
            shares = _to_shares(self.out, view["boxes"].detach().float().cpu(), size).clamp(0, 1)
            scores, labels = view["scores"].detach().float().cpu(), view["labels"].detach().cpu()
            keep = (shares[:, 2:] > shares[:, :2]).all(1) & (scores > 0)
            found.append(_once([t[keep].numpy() for t in (shares, scores, labels)], self.iou))
        fused, scores, labels = map(
            torch.from_numpy,
            _fusion().weighted_boxes_fusion(
                *zip(*found, strict=True), iou_thr=self.iou, skip_box_thr=self.min_score, conf_type=self.confidence
            ),
        )
        boxes = _from_shares(self.out, fused.float(), size)
        like = views[0]["boxes"]
        return {
            "boxes": boxes.to(like),
            "scores": scores.to(views[0]["scores"]),
            "labels": labels.to(like.device, torch.int64),
        }

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        settings = f"iou={self.iou}, min_score={self.min_score}, confidence={self.confidence!r}"
        return f"{super().extra_repr()}, {settings}"


def _fusion() -> Any:
    try:
        import ensemble_boxes
    except ImportError as error:
        raise ImportError(
            f'EquiDetector fuses boxes with ensemble-boxes: pip install "equikern[boxes]" ({error})'
        ) from None
    return ensemble_boxes


def _once(view: list[Any], iou: float) -> list[Any]:
    """Boxes, scores and labels of one view without those that overlap a surer one of their label."""
    return view if len(view[0]) < 2 else [*_fusion().nms(*([part] for part in view), iou_thr=iou)]


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


def _checked(detections: Any) -> Detections:
    if not isinstance(detections, Mapping) or not {"boxes", "scores", "labels"} <= set(detections):
        got = sorted(detections) if isinstance(detections, Mapping) else type(detections).__name__
        raise ValueError(f'backbone: expected dicts with "boxes", "scores" and "labels", got {got}')
    found: Detections = {name: detections[name] for name in ("boxes", "scores", "labels")}
    for name, t in found.items():
        if not isinstance(t, Tensor):
            raise TypeError(f'backbone: expected tensors in its dicts, got {type(t).__name__} for "{name}"')
    shapes = {name: tuple(t.shape) for name, t in found.items()}
    n = len(found["boxes"])
    if shapes != {"boxes": (n, 4), "scores": (n,), "labels": (n,)}:
        raise ValueError(f'backbone: expected "boxes" (n, 4), "scores" (n,) and "labels" (n,), got {shapes}')
    return found
