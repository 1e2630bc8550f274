"""Detectors: boxes of all views turned back and fused; equivariance, the fusion itself, empty answers, bad input."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from equikern import Coordinates, EquiDetector, boxes, grid, keypoints
from torch import Tensor, nn

if importlib.util.find_spec("ensemble_boxes") is None:
    pytest.skip('the extra "boxes" is not installed', allow_module_level=True)

pytestmark = pytest.mark.usefixtures("single_thread")
UNITS = ("edge", "center", "normalized")
FORMATS = ("xyxy", "xywh", "cxcywh")


def converted(edges: Tensor, spec: Coordinates, size: tuple[int, int]) -> Tensor:
    """Left, top, right and bottom in pixels from the corner, as the spec's boxes."""
    height, width = size
    if spec.units == "center":
        edges = edges - 0.5
    if spec.units == "normalized":
        edges = edges / torch.tensor([width, height] * 2)
    if spec.format != "xyxy":
        at = edges[:, :2] if spec.format == "xywh" else (edges[:, :2] + edges[:, 2:]) / 2
        edges = torch.cat((at, edges[:, 2:] - edges[:, :2]), 1)
    return edges


class Detector(nn.Module):
    """Random filters; the places of the strongest answers, with sizes, scores and labels from other filters."""

    def __init__(self, spec: Coordinates, found: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.spec, self.found = nn.Conv2d(2, 7, 3, padding=1), spec, found

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        answers = []
        for image in self.conv(x).tanh():
            size = (image.shape[-2], image.shape[-1])
            best = image[0].flatten().topk(self.found)
            at = best.indices
            middle = torch.stack((at % size[1], at // size[1]), 1) + 0.5
            half = image[1:5].flatten(1)[:, at].T + 2.5
            edges = torch.cat((middle - half[:, :2], middle + half[:, 2:]), 1)
            labels = image[5:].flatten(1)[:, at].argmax(0)
            boxes = converted(edges, self.spec, size)
            answers.append({"boxes": boxes, "scores": best.values.sigmoid(), "labels": labels, "masks": image})
        return answers


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["c4", "d4", "flips"])
@pytest.mark.parametrize("size", [(12, 12), (10, 15)])
@pytest.mark.parametrize(("format", "units"), [("xyxy", "edge"), ("cxcywh", "normalized"), ("xywh", "center")])
def test_equivariant(name: str, size: tuple[int, int], format: Any, units: Any) -> None:
    spec = boxes(name, format, units)
    model = EquiDetector(Detector(spec), name, spec, views_per_forward=3)
    x = torch.randn(2, 2, *size)
    y = model(x)
    assert all(len(found["boxes"]) > 6 for found in y)  # views differ
    for g in range(grid(name).order):
        for found, moved in zip(y, model(grid(name).act(g, x)), strict=True):
            close(moved["scores"], found["scores"])
            close(moved["boxes"], spec.act(g, found["boxes"], size))
            assert torch.equal(moved["labels"], found["labels"])


@pytest.mark.parametrize("confidence", ["avg", "max", "box_and_model_avg", "absent_model_aware_avg"])
def test_is_the_fusion_of_what_is_turned_back(confidence: Any) -> None:
    """With the flips' boxes turned back here, in plain torch, of each view without those that overlap a surer one."""
    from ensemble_boxes import nms, weighted_boxes_fusion

    spec = boxes("hflip")
    detector = Detector(spec)
    model = EquiDetector(detector, "hflip", spec, iou=0.4, min_score=0.3, confidence=confidence)
    x = torch.randn(1, 2, 10, 15)
    (plain,), (mirrored,) = detector(x), detector(x.flip(-1))
    back = mirrored["boxes"].clone()
    back[:, 0], back[:, 2] = 15 - mirrored["boxes"][:, 2], 15 - mirrored["boxes"][:, 0]
    views = model.views(x)[0]
    torch.testing.assert_close([view["boxes"] for view in views], [plain["boxes"], back])
    shares = [(b / torch.tensor([15, 10, 15, 10])).clamp(0, 1).detach().numpy() for b in (plain["boxes"], back)]
    scores, labels = ([d[key].detach().numpy() for d in (plain, mirrored)] for key in ("scores", "labels"))
    once = [nms([b], [s], [n], iou_thr=0.4) for b, s, n in zip(shares, scores, labels, strict=True)]
    expected = weighted_boxes_fusion(*zip(*once, strict=True), iou_thr=0.4, skip_box_thr=0.3, conf_type=confidence)
    (found,) = model(x)
    close(found["boxes"], torch.from_numpy(expected[0]).float() * torch.tensor([15, 10, 15, 10]))
    close(found["scores"], torch.from_numpy(expected[1]).float())
    assert found["labels"].tolist() == expected[2].tolist()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_an_equivariant_detector_stays_as_it_is(format: Any, units: Any, size: tuple[int, int]) -> None:
    """Squares around the two brightest pixels, whose scores are the pixels' values."""
    spec = boxes("d4", format, units)

    def detector(images: Tensor) -> list[dict[str, Tensor]]:
        answers = []
        for image in images[:, 0]:
            value, at = image.flatten().topk(2)
            middle = torch.stack((at % image.shape[1], at // image.shape[1]), 1) + 0.5
            edges = torch.cat((middle - 1.5, middle + 1.5), 1)
            found = converted(edges, spec, (image.shape[0], image.shape[1]))
            answers.append({"boxes": found, "scores": value, "labels": torch.tensor([3, 3])})
        return answers

    x = torch.zeros(1, 1, *size)
    x[0, 0, 1, 2], x[0, 0, 4, 4] = 0.8, 0.6
    (plain,), (found,) = detector(x), EquiDetector(detector, "d4", spec)(x)
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[key], plain[key])


def test_what_sticks_out_is_clipped_and_what_is_nothing_left_out() -> None:
    found = [[-3.0, -1.0, 4.0, 9.0], [1.0, 1.0, 1.0, 5.0], [20.0, 0.0, 22.0, 3.0], [0.0, 0.0, 3.0, 3.0]]
    scores, labels = torch.tensor([0.5, 0.9, 0.9, 0.0]), torch.tensor([1, 1, 1, 2])
    answer = {"boxes": torch.tensor(found), "scores": scores, "labels": labels}
    (kept,) = EquiDetector(lambda x: [answer], "trivial", boxes("trivial"))(torch.zeros(1, 1, 6, 8))
    close(kept["boxes"], torch.tensor([[0.0, 0.0, 4.0, 6.0]]))
    assert kept["labels"].tolist() == [1]


def test_nothing_found_in_some_views_and_in_all() -> None:
    def detector(images: Tensor) -> list[dict[str, Tensor]]:
        upright = images[:, 0, 0, 0] > 0
        return [
            {
                "boxes": torch.tensor([[1.0, 1.0, 3.0, 4.0]] if found else []).view(-1, 4),
                "scores": torch.tensor([0.8] if found else []),
                "labels": torch.tensor([2] if found else [], dtype=torch.int64),
            }
            for found in upright
        ]

    model = EquiDetector(detector, "c4", boxes("c4"))
    x = torch.zeros(2, 1, 6, 8)
    x[0, 0, 0, 0] = 1
    some, nothing = model(x)
    close(some["boxes"], torch.tensor([[1.0, 1.0, 3.0, 4.0]]))
    close(some["scores"], torch.tensor([0.2]))  # one view of four
    assert nothing["boxes"].shape == (0, 4)
    assert nothing["scores"].shape == nothing["labels"].shape == (0,)
    assert nothing["labels"].dtype == torch.int64
    assert some["boxes"].dtype == nothing["boxes"].dtype == torch.float32


def answers(**changed: Any) -> Any:
    one = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2), "labels": torch.zeros(2)}
    return lambda x: [{**one, **changed}] * len(x)


ONE = torch.zeros(1, 1, 4, 4)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "keypoints": (lambda: EquiDetector(answers(), "c4", keypoints("c4")), TypeError, r"out: expected what boxes\(…\)"),
    "grid": (lambda: EquiDetector(answers(), "c4", "c4"), TypeError, r"out: expected what boxes\(…\) makes, got Grid"),
    "another group": (lambda: EquiDetector(answers(), "c4", boxes("d4")), ValueError, "out: expected one made for"),
    "iou": (lambda: EquiDetector(answers(), "c4", boxes("c4"), 55), ValueError, "iou: expected a number from 0 to 1"),
    "confidence": (
        lambda: EquiDetector(answers(), "c4", boxes("c4"), confidence="mean"),
        ValueError,
        "confidence: expected one of 'avg'",
    ),
    "a tensor": (
        lambda: EquiDetector(nn.Identity(), "c4", boxes("c4"))(ONE),
        ValueError,
        "backbone: expected a list of 4 dicts, one for each view and image, got Tensor",
    ),
    "too few": (
        lambda: EquiDetector(lambda x: answers()(x)[1:], "c4", boxes("c4"))(ONE),
        ValueError,
        "expected a list of 4 dicts.* got 3 of them",
    ),
    "no scores": (
        lambda: EquiDetector(lambda x: [{"boxes": ONE}] * 4, "c4", boxes("c4"))(ONE),
        ValueError,
        r"expected dicts with .*got \['boxes'\]",
    ),
    "shapes": (
        lambda: EquiDetector(answers(scores=torch.zeros(3)), "c4", boxes("c4"))(ONE),
        ValueError,
        r"expected .boxes. \(n, 4\).*'scores': \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    with pytest.raises(ImportError, match=r"pip install .equikern\[boxes\]"):
        EquiDetector(answers(), "c4", boxes("c4"))
