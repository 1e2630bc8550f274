"""Weighted boxes fusion (Solovyev, Wang and Gabruseva, arXiv 1910.13302), with one box of a view in each fused one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

__all__ = ["Found", "Fused", "fused"]

Numbers = NDArray[Any]


class Found(NamedTuple):
    """What one view found: boxes (n, 4) with left, top, right and bottom, scores (n,) and labels (n,)."""

    boxes: Numbers
    scores: Numbers
    labels: Numbers


class Fused(NamedTuple):
    """Fused boxes by falling score, as in ``Found``, and what each is made of: (view, box, share of the mean)."""

    boxes: Numbers
    scores: Numbers
    labels: Numbers
    members: list[list[tuple[int, int, float]]]


def fused(views: Sequence[Found], iou: float, min_score: float, surest: bool) -> Fused:
    """Boxes of one label that overlap by more than ``iou``, one of each view, become their mean, weighted by score.

    Goes through the boxes by falling score. A box joins the fused one that it overlaps most, of those that its view has
    no part in; or it begins one. Before that each view loses what overlaps a surer box of its own.

    Args:
        views: what they found, in shares of the image, with scores above zero.
        iou, min_score: thresholds; boxes of smaller scores are left out.
        surest: give a fused box its largest score, in place of the mean over all views, those without it included.

    Example:
        >>> one = Found(numpy.array([[0.0, 0.0, 0.5, 0.5]]), numpy.array([0.8]), numpy.array([1]))
        >>> other = Found(numpy.array([[0.0, 0.0, 0.5, 0.6]]), numpy.array([0.4]), numpy.array([1]))
        >>> found = fused([one, other], 0.5, 0.0, False)
        >>> found.boxes.round(3).tolist(), found.scores.round(3).tolist(), len(found.members[0])
        ([[0.0, 0.0, 0.5, 0.533]], [0.6], 2)
    """
    candidates = [(v, int(i)) for v, view in enumerate(views) for i in _once(view, iou) if view.scores[i] >= min_score]
    candidates.sort(key=lambda at: -views[at[0]].scores[at[1]])  # stable: ties go to the view that comes first
    most = len(candidates)
    sums, weights = numpy.zeros((most, 4)), numpy.zeros(most)
    boxes, labels = numpy.zeros((most, 4)), numpy.zeros(most, dtype=numpy.int64)
    taken = numpy.zeros((most, len(views)), dtype=bool)
    members: list[list[tuple[int, int, float]]] = []
    for v, i in candidates:
        box, score, label = views[v].boxes[i], float(views[v].scores[i]), views[v].labels[i]
        count = len(members)
        overlaps = _overlaps(boxes[:count], box)
        overlaps[(labels[:count] != label) | taken[:count, v]] = -1.0
        at = int(overlaps.argmax()) if count else 0
        if not count or not overlaps[at] > iou:
            at, labels[count] = count, label
            members.append([])
        members[at].append((v, i, score))
        taken[at, v] = True
        weights[at] += score
        sums[at] += score * box
        boxes[at] = sums[at] / weights[at]
    count = len(members)
    tops = numpy.array([parts[0][2] for parts in members])  # the first is the surest
    scores = tops if surest else weights[:count] / len(views)
    order = (-scores).argsort(kind="stable")
    shares = [[(v, i, score / weights[at]) for v, i, score in members[at]] for at in order]
    return Fused(boxes[order], scores[order], labels[order], shares)


def _once(view: Found, iou: float) -> Numbers:
    """Which boxes of one view overlap no surer one of their label."""
    order = (-view.scores).argsort(kind="stable")
    kept: list[int] = []
    for i in order.tolist():
        overlaps = _overlaps(view.boxes[kept], view.boxes[i])
        if not (overlaps[view.labels[kept] == view.labels[i]] > iou).any():
            kept.append(i)
    return numpy.array(kept, dtype=numpy.int64)


def _overlaps(boxes: Numbers, box: Numbers) -> Numbers:
    """Intersections over unions of some boxes with one."""
    sides = numpy.minimum(boxes[:, 2:], box[2:]) - numpy.maximum(boxes[:, :2], box[:2])
    common = sides.clip(0.0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / (areas - common)  # type: ignore[no-any-return]
