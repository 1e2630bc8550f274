"""Detectors: boxes of all views turned back and fused; equivariance, the fusion itself, empty answers, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equikern import Coordinates, EquiDetector, boxes, grid, keypoints
from torch import Tensor, nn

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


@pytest.mark.parametrize("confidence", ["avg", "max"])
def test_is_the_fusion_of_what_is_turned_back(confidence: Any) -> None:
    """With the flips' boxes turned back here, in plain torch, of each view without those that overlap a surer one."""
    pytest.importorskip("ensemble_boxes")
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


# -- what is fused beside boxes


class Segmenter(Detector):
    """With a mask over the image and two keypoints for each box."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        answers = super().forward(x)
        for image, found in zip(self.conv(x).tanh(), answers, strict=True):
            left, top, right, bottom = found["boxes"][:, :, None, None].unbind(1)
            rows, columns = (torch.arange(n) + 0.5 for n in image.shape[-2:])
            inside = (columns > left) & (columns < right) & (rows[:, None] > top) & (rows[:, None] < bottom)
            found["masks"] = (inside * image[3].sigmoid())[:, None]
            points = torch.stack((found["boxes"][:, :2], found["boxes"][:, 2:]), 1)
            points = torch.stack((points[..., 0].mean(1, keepdim=True) + torch.tensor([-1.0, 1.0]), points[..., 1]), 2)
            found["keypoints"] = torch.cat((points, torch.ones(len(points), 2, 1)), 2)
            found["keypoints_scores"] = found["scores"][:, None] * torch.tensor([0.5, 1.0])
        return answers


FURTHER = {"masks": "d4", "keypoints": keypoints("d4", extra=1), "keypoints_scores": "trivial"}


def test_masks_and_keypoints_go_with_their_boxes() -> None:
    spec = boxes("d4")
    model, x = EquiDetector(Segmenter(spec), "d4", {"boxes": spec, **FURTHER}), torch.randn(2, 2, 10, 15)
    y, plain = model(x), EquiDetector(Detector(spec), "d4", spec)(x)
    for found, alone in zip(y, plain, strict=True):
        n = len(found["boxes"])
        assert found["masks"].shape == (n, 1, 10, 15)
        assert found["keypoints"].shape == (n, 2, 3)
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(found[name], alone[name])
    for g in range(8):
        for found, moved in zip(y, model(grid("d4").act(g, x)), strict=True):
            close(moved["masks"], grid("d4").act(g, found["masks"]))
            close(moved["keypoints"], FURTHER["keypoints"].act(g, found["keypoints"], (10, 15)))  # type: ignore[union-attr, arg-type]
            close(moved["keypoints_scores"], found["keypoints_scores"])


def test_entries_are_averaged_by_score() -> None:
    """Two views of one box: by hand."""

    def detector(images: Tensor) -> list[dict[str, Tensor]]:
        kinds = [(0.9, 1.0), (0.3, 0.0)] * (len(images) // 2)
        return [
            {
                "boxes": torch.tensor([[2.0, 1.0, 4.0, 3.0]]),
                "scores": torch.tensor([score]),
                "labels": torch.tensor([1]),
                "masks": torch.full((1, 1, 4, 6), value),
            }
            for score, value in kinds
        ]

    x = torch.zeros(1, 1, 4, 6)
    (found,) = EquiDetector(detector, "hflip", {"boxes": boxes("hflip"), "masks": "hflip"})(x)
    close(found["scores"], torch.tensor([0.6]))
    close(found["masks"], torch.full((1, 1, 4, 6), 0.75))


def test_two_boxes_of_one_view_count_once() -> None:
    """They overlap each other too little to be one, but both overlap what another view has in between."""
    first = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([1]),
    }
    sides = torch.tensor([[0.0, 0.0, 7.0, 10.0], [3.0, 0.0, 10.0, 10.0]])
    second = {"boxes": sides, "scores": torch.tensor([0.8, 0.7]), "labels": torch.tensor([1, 1])}
    (found,) = EquiDetector(lambda x: [first, second], "hflip", boxes("hflip"))(torch.zeros(1, 1, 10, 10))
    close(found["scores"], torch.tensor([0.85, 0.35]))  # means over both views, none above one box for each
    assert len(found["boxes"]) == 2
    (surest,) = EquiDetector(lambda x: [first, second], "hflip", boxes("hflip"), confidence="max")(
        torch.zeros(1, 1, 10, 10)
    )
    close(surest["scores"], torch.tensor([0.9, 0.7]))


@pytest.mark.parametrize("views_per_forward", [None, 3])
def test_lists_of_images(views_per_forward: int | None) -> None:
    """Images of several sizes, as torchvision's detectors take them: each as if it were alone."""
    spec = boxes("d4")
    net = Segmenter(spec)

    def listed(images: list[Tensor], scale: Tensor | None = None, mode: str = "") -> list[dict[str, Tensor]]:
        assert isinstance(images, list)
        assert mode in ("", "fast")
        assert scale is None or len(scale) == len(images)
        return [net(image[None])[0] for image in images]

    out = {"boxes": spec, **FURTHER}
    model = EquiDetector(listed, "d4", out, views_per_forward=views_per_forward)
    images = [torch.randn(2, 10, 15), torch.randn(2, 12, 12), torch.randn(2, 15, 10)]
    found = model(images, torch.ones(3), mode="fast")
    views = model.views(tuple(images))
    assert [len(some) for some in views] == [8, 8, 8]
    for image, ours in zip(images, found, strict=True):
        (alone,) = EquiDetector(net, "d4", out)(image[None])
        for name in alone:
            close(ours[name], alone[name])
    assert model([]) == []
    with pytest.raises(ValueError, match=r"x\[1\]: expected an image \(C, H, W\), got shape \(1, 2, 10, 15\)"):
        model([images[0], images[0][None]])
    with pytest.raises(ValueError, match=r"args\[0\]: expected a first dim that is the batch 3"):
        model(images, torch.ones(2))


def test_bad_entries() -> None:
    one, spec = torch.zeros(1, 1, 4, 4), {"boxes": boxes("c4"), "masks": "c4"}
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (answers(), {"masks": "c4"}, TypeError, r"out: expected what boxes\(…\) makes, got None"),
        (answers(), {**spec, "labels": "trivial"}, ValueError, r"out\['labels'\]: expected an action for an entry"),
        (answers(), spec, ValueError, r'expected dicts with .* and "masks", got'),
        (answers(masks=torch.zeros(3, 1, 4, 4)), spec, ValueError, r'expected "masks" \(2, …\) like its boxes'),
        (
            answers(masks=torch.zeros(2, 1, 4, 4) > 0),
            spec,
            TypeError,
            r'numbers to average for "masks", got torch.bool',
        ),
    ]
    for detector, out, error, message in cases:
        with pytest.raises(error, match=message):
            EquiDetector(detector, "c4", out)(one)


def test_what_is_no_detection_is_an_error() -> None:
    """It would be left out, or worse: the less sure of two would stand for both."""
    good = {"boxes": torch.tensor([[1.0, 1.0, 3.0, 3.0]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    for name, value, message in (
        ("boxes", [[5.0, 5.0, 2.0, 2.0]], 'expected finite "boxes" in xyxy, right of left'),
        ("boxes", [[1.0, 1.0, float("nan"), 3.0]], 'expected finite "boxes"'),
        ("scores", [-0.3], 'expected "scores" in 0 … 1'),
        ("scores", [float("nan")], 'expected "scores" in 0 … 1'),
    ):
        bad = {**good, name: torch.tensor(value)}
        model = EquiDetector(lambda x, bad=bad: [bad] * len(x), "hflip", boxes("hflip"))
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(1, 1, 8, 8))
    flat = {**good, "boxes": torch.tensor([[1.0, 1.0, 1.0, 3.0]])}
    (found,) = EquiDetector(lambda x: [flat] * len(x), "hflip", boxes("hflip"))(torch.zeros(1, 1, 8, 8))
    assert found["boxes"].shape == (0, 4)
    masks = {**good, "masks": torch.rand(1, 3, 5)}
    model = EquiDetector(lambda x: [masks] * len(x), "d4", {"boxes": boxes("d4"), "masks": "d4"})
    with pytest.raises(ValueError, match='expected "masks" that are turned as the image is'):
        model(torch.zeros(1, 1, 8, 8))


def test_images_by_their_name() -> None:
    images = [torch.rand(2, 8, 8), torch.rand(2, 6, 10)]

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [answer for image in images for answer in Detector(boxes("d4"))(image[None])]

    expected = EquiDetector(detect, "d4", boxes("d4"))(images)
    for model in (EquiDetector(detect, "d4", boxes("d4")), EquiDetector(detect, {"images": "d4"}, boxes("d4"))):
        for ours, theirs in zip(model(images=images), expected, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
