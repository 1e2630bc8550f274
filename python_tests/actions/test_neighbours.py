"""The table of docs/migration/conventions.md: each row against the library itself, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equikern
import numpy
import pytest
import torch
from equikern import Coordinates, boxes, grid, heat_maps, keypoints
from helpers import vision
from helpers.repository import ROOT
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread")
PAGE = (ROOT / "docs" / "migration" / "conventions.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Library by library\n")[1].split("\n#")[0]
SIZE, SQUARE = (5, 8), (6, 6)
POINTS = torch.tensor([[1.25, 3.5], [0.0, 0.0], [6.0, 2.0], [5.0, 4.75]])
BOXES = torch.tensor([[1.0, 1.0, 4.0, 3.0], [2.0, 0.0, 5.5, 4.25]])
GIVEN = {  # of "xyxy"
    "xyxy": lambda box: box,
    "xywh": lambda box: torch.cat((box[..., :2], box[..., 2:] - box[..., :2]), -1),
    "cxcywh": lambda box: torch.cat(((box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]), -1),
}
Here = Callable[..., list[Any]]
ROWS: dict[str, Callable[[Here], None]] = {}


def table() -> dict[str, list[str]]:
    """For each row, library and what is there, the calls of its last cell."""
    rows, library = {}, ""
    for line in re.findall(r"^\| (?!library|---).*", SECTION, re.MULTILINE):
        named, there, here = (cell.strip() for cell in line.strip("|").split("|"))
        library = named or library
        rows[f"{library}: {there}"] = re.findall(r"`((?:boxes|keypoints|grid|field)\(.*?\)(?:\.linear)?)`", here)
    return rows


def row(name: str) -> Callable[[Callable[[Here], None]], Callable[[Here], None]]:
    """A test of a row of the table, which is given what the row's calls make."""

    def kept(test: Callable[[Here], None]) -> Callable[[Here], None]:
        assert name not in ROWS
        ROWS[name] = test
        return test

    return kept


SWAP = [int(n) for n in re.findall(r"\d+", re.findall(r"`swap = \[(.*?)\]`", SECTION)[0])]


def made(name: str, otherwise: Callable[[Any], Any]) -> Here:
    return lambda **names: [otherwise(eval(code, {**vars(equikern), "swap": SWAP, **names})) for code in table()[name]]


def test_every_row_has_a_test() -> None:
    assert list(table()) == list(ROWS)
    assert all(table().values())


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    ROWS[name](made(name, lambda spec: spec))


@pytest.mark.parametrize("name", ROWS)
def test_another_convention_fails(name: str) -> None:
    """A pixel's corner for its middle and the other way round, or clockwise turns: none of the tests is blind."""
    with pytest.raises(AssertionError):
        ROWS[name](made(name, wrong))


def wrong(spec: Any) -> Any:
    if not isinstance(spec, Coordinates):
        order = [0, 3, 2, 1, 4, 7, 6, 5]
        return SimpleNamespace(act=lambda g, x: spec.act(order[g], x), group=spec.group, order=spec.order)
    units = "center" if spec.units == "edge" else "edge"
    if spec.format is None:
        return keypoints(spec.action, spec.swap, units, spec.shape[-1] - 2)
    return boxes(spec.action, spec.format, units)  # type: ignore[arg-type]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def image_of(size: tuple[int, int]) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))


# -- torchvision


def torchvision(name: str) -> Any:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return vision.torchvision(name)


def turned_by_torchvision(g: int, x: Any) -> Any:
    functional = torchvision("transforms.v2.functional")
    if g >= 4:
        x = functional.horizontal_flip(x)
    return functional.rotate(x, 90 * (g % 4), expand=True)


@row("torchvision v2: `horizontal_flip`, then `rotate(…, 90 * k, expand=True)`")
def torchvision_images(here: Here) -> None:
    (action,), tv_tensors = here(), torchvision("tv_tensors")
    for g in range(8):
        close(action.act(g, image_of(SIZE)), turned_by_torchvision(g, tv_tensors.Image(image_of(SIZE))))


@row("torchvision v2: `BoundingBoxes`: `XYXY`, `XYWH`, `CXCYWH`")
def torchvision_boxes(here: Here) -> None:
    tv_tensors = torchvision("tv_tensors")
    vertical_flip = torchvision("transforms.v2.functional").vertical_flip
    specs = here()
    assert [spec.format for spec in specs] == ["xyxy", "xywh", "cxcywh"]
    for spec in specs:
        t = GIVEN[spec.format](BOXES)
        theirs = tv_tensors.BoundingBoxes(t, format=spec.format.upper(), canvas_size=SIZE)
        for g in range(8):
            close(spec.act(g, t, SIZE), turned_by_torchvision(g, theirs).as_subclass(Tensor))
        close(spec.act(6, t, SIZE), vertical_flip(theirs).as_subclass(Tensor))


@row("torchvision v2: `KeyPoints`, flipped")
def torchvision_flipped_keypoints(here: Here) -> None:
    (spec,), functional = here(), torchvision("transforms.v2.functional")
    theirs = torchvision("tv_tensors").KeyPoints(POINTS, canvas_size=SIZE)
    across, down = functional.horizontal_flip, functional.vertical_flip
    for g, moved in ((4, across(theirs)), (6, down(theirs)), (2, across(down(theirs)))):
        close(spec.act(g, POINTS, SIZE), moved.as_subclass(Tensor))


@row("torchvision v2: `KeyPoints`, rotated")
def torchvision_rotated_keypoints(here: Here) -> None:
    (spec,) = here()
    theirs = torchvision("tv_tensors").KeyPoints(POINTS, canvas_size=SIZE)
    for g in range(4):
        close(spec.act(g, POINTS, SIZE), turned_by_torchvision(g, theirs).as_subclass(Tensor))


def test_torchvision_rotates_by_180_a_pixel_off_its_two_flips() -> None:
    functional, theirs = torchvision("transforms.v2.functional"), torchvision("tv_tensors").KeyPoints
    points = theirs(POINTS, canvas_size=SIZE)
    flipped = functional.vertical_flip(functional.horizontal_flip(points))
    close(functional.rotate(points, 180, expand=True).as_subclass(Tensor), flipped.as_subclass(Tensor) + 1)


@row("torchvision detection: keypoints of Keypoint R-CNN, (n, 17, 3)")
def torchvision_keypoint_rcnn(here: Here) -> None:
    """Its head's heat maps turned, as a model's that is equivariant: where it finds the keypoints in them."""
    (spec,), heads = here(), torchvision("models.detection.roi_heads")
    weights = torchvision("models.detection").KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
    names = weights.meta["keypoint_names"]
    other = {"left": "right", "right": "left"}
    assert [names[n] for n in SWAP] == ["_".join(other.get(word, word) for word in name.split("_")) for name in names]
    maps = torch.rand(1, 17, *SIZE, generator=torch.Generator().manual_seed(0))

    def found(maps: Tensor) -> Tensor:
        keypoints, _ = heads.heatmaps_to_keypoints(maps, torch.tensor([[0.0, 0.0, maps.shape[-1], maps.shape[-2]]]))
        return keypoints

    for g in range(8):
        close(spec.act(g, found(maps), SIZE), found(heat_maps("d4", SWAP).act(g, maps)))


# -- COCO


def masks() -> Any:
    return pytest.importorskip("pycocotools.mask")


def bbox(mask: Tensor) -> Tensor:
    coded = masks().encode(numpy.asfortranarray(mask.to(torch.uint8).numpy()))
    return torch.from_numpy(masks().toBbox(coded)).float()


@row('COCO: `"bbox"`; `toBbox` of a mask')
def coco_boxes(here: Here) -> None:
    (spec,) = here()
    mask = torch.zeros(SIZE)
    mask[1:3, 2:7] = 1
    close(bbox(mask), torch.tensor([2.0, 1.0, 5.0, 2.0]))
    for g in range(8):
        close(spec.act(g, bbox(mask), SIZE), bbox(grid("d4").act(g, mask)))


@row('COCO: `"segmentation"`: polygons')
def coco_polygons(here: Here) -> None:
    (spec,) = here()
    corners = torch.tensor([[1.0, 0.0], [7.0, 0.0], [7.0, 3.0], [3.0, 3.0], [3.0, 4.0], [1.0, 4.0]])

    def filled(corners: Tensor, height: int, width: int) -> Tensor:
        coded = masks().frPyObjects([corners.flatten().tolist()], height, width)
        return torch.from_numpy(masks().decode(coded))[..., 0]

    mask = filled(corners, *SIZE)
    assert mask.sum() == 20
    for g in range(8):
        moved = grid("d4").act(g, mask)
        assert torch.equal(filled(spec.act(g, corners, SIZE), *moved.shape), moved)


@row('COCO: `"keypoints"`, (17, 3): pixels and visibility')
def coco_keypoints(here: Here) -> None:
    """The format counts pixels from 0: (x, y) are the column and the row of one, where its mask's box begins."""
    (spec,) = here()
    maps, seen = torch.zeros(17, *SIZE), torch.arange(17) % 3
    maps[torch.arange(17), torch.arange(17) * 2 % 5, torch.arange(17) * 3 % 8] = 1

    def annotated(maps: Tensor, seen: Tensor) -> Tensor:
        pixels = torch.stack([bbox(one)[:2] for one in maps])
        return torch.cat((pixels, seen.unsqueeze(1)), 1)

    for g in range(8):
        moved = annotated(heat_maps("d4", SWAP).act(g, maps), seen[SWAP] if g >= 4 else seen)
        close(spec.act(g, annotated(maps, seen), SIZE), moved)


# -- kornia


def kornia(name: str) -> Any:
    pytest.importorskip("kornia")
    return importlib.import_module(f"kornia.{name}")


def kornias(size: tuple[int, int]) -> list[int]:
    """The elements that it has for images of this size."""
    return list(range(8)) if size == SQUARE else [0, 2, 4, 6]


def turned_by_kornia(g: int, size: tuple[int, int], *keys: str) -> Any:
    """Images and what the keys name moved by element g; and the matrix of that."""
    augmentation = kornia("augmentation")
    steps = [augmentation.RandomHorizontalFlip(p=float(g >= 4)), augmentation.RandomRotation90((g % 4, g % 4), p=1.0)]
    both = augmentation.AugmentationSequential(*steps, data_keys=["input", *keys])

    def moved(*given: Tensor) -> tuple[list[Tensor], Tensor]:
        found = both(image_of(size), *(t[None] for t in given))
        image, *labels = found if keys else [found]
        close(grid("d4").act(g, image_of(size)), image)
        return [t[0] for t in labels], both.transform_matrix

    return moved


@row("kornia: `hflip`, then `rotate` by 90° · k")
def kornia_images(here: Here) -> None:
    (action,), transform = here(), kornia("geometry.transform")
    for size in (SIZE, SQUARE):
        x = image_of(size)
        for g in kornias(size):
            flipped = transform.hflip(x) if g >= 4 else x
            close(action.act(g, x), transform.rotate(flipped, torch.tensor([90.0 * (g % 4)])))
        close(action.act(6, x), transform.vflip(x))
        close(action.act(2, x), transform.rot180(x))


@row("kornia: `Keypoints`; data key `keypoints`")
def kornia_keypoints(here: Here) -> None:
    (spec,), points = here(), kornia("geometry.keypoints").Keypoints(POINTS[None])
    for size in (SIZE, SQUARE):
        for g in kornias(size):
            (moved,), matrix = turned_by_kornia(g, size, "keypoints")(POINTS)
            close(spec.act(g, POINTS, size), moved)
            close(spec.act(g, POINTS, size), points.transform_keypoints(matrix).to_tensor()[0])


def kornia_boxes(mode: str, g: int, size: tuple[int, int], t: Tensor) -> Tensor:
    boxes = kornia("geometry.boxes").Boxes.from_tensor(t[None], mode=mode)
    _, matrix = turned_by_kornia(g, size)()
    return boxes.transform_boxes(matrix).to_tensor(mode)[0]


@row("kornia: `Boxes`: `xyxy`, `xywh`; data key `bbox_xywh`")
def kornia_exclusive_boxes(here: Here) -> None:
    specs = here()
    assert [spec.format for spec in specs] == ["xyxy", "xywh"]
    for spec in specs:
        t = GIVEN[spec.format](BOXES)
        for size in (SIZE, SQUARE):
            for g in kornias(size):
                close(spec.act(g, t, size), kornia_boxes(spec.format, g, size, t))
                if spec.format == "xywh":
                    close(spec.act(g, t, size), turned_by_kornia(g, size, "bbox_xywh")(t)[0][0])


@row("kornia: `Boxes`: `xyxy_plus`; data key `bbox_xyxy`")
def kornia_inclusive_boxes(here: Here) -> None:
    (spec,) = here()
    for size in (SIZE, SQUARE):
        for g in kornias(size):
            close(spec.act(g, BOXES, size), kornia_boxes("xyxy_plus", g, size, BOXES))
            close(spec.act(g, BOXES, size), turned_by_kornia(g, size, "bbox_xyxy")(BOXES)[0][0])


@row("kornia: `normalize_pixel_coordinates(…)`, −1 … 1")
def kornia_normalized(here: Here) -> None:
    (action,), normalized = here(), kornia("geometry").normalize_pixel_coordinates
    for size in (SIZE, SQUARE):
        for g in kornias(size):
            (moved,), _ = turned_by_kornia(g, size, "keypoints")(POINTS)
            close(action.act(g, normalized(POINTS, *size)), normalized(moved, *size))


# -- albumentations


ALBUMENTATIONS = ("e", "r90", "r180", "r270", "h", "t", "v", "hvt")  # its names of the elements, in our order


def albumentations() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network otherwise
        return pytest.importorskip("albumentations")


def turned_by_albumentations(g: int, settings: dict[str, Any], **given: Any) -> Any:
    """An image and what is given with it moved by element g."""
    transform = albumentations().D4(p=1.0)
    transform.get_params = lambda: {"group_element": ALBUMENTATIONS[g]}  # draws one
    image = numpy.ascontiguousarray(image_of(SIZE)[0].permute(1, 2, 0).numpy())
    return albumentations().Compose([transform], **settings)(image=image, **given)


@row(f"albumentations: `D4`: {', '.join(ALBUMENTATIONS)}")
def albumentations_images(here: Here) -> None:
    (action,) = here()
    for g in range(8):
        moved = numpy.ascontiguousarray(turned_by_albumentations(g, {})["image"])
        close(action.act(g, image_of(SIZE)[0]), torch.from_numpy(moved).permute(2, 0, 1))


@row("albumentations: keypoints `xy`")
def albumentations_keypoints(here: Here) -> None:
    (spec,) = here()
    settings = {"keypoint_params": albumentations().KeypointParams("xy", remove_invisible=False)}
    for g in range(8):
        moved = turned_by_albumentations(g, settings, keypoints=POINTS.numpy())["keypoints"]
        close(spec.act(g, POINTS, SIZE), torch.as_tensor(moved, dtype=torch.float32))


def albumentations_boxes(here: Here, scale: Tensor, *formats: str) -> None:
    for spec, name in zip(here(), formats, strict=True):
        settings = {"bbox_params": albumentations().BboxParams(name, label_fields=[])}
        t = GIVEN[spec.format](BOXES) / scale
        for g in range(8):
            moved = turned_by_albumentations(g, settings, bboxes=t.numpy())["bboxes"]
            close(spec.act(g, t, SIZE), torch.as_tensor(moved, dtype=torch.float32))


@row("albumentations: boxes `pascal_voc`, `coco`")
def albumentations_boxes_in_pixels(here: Here) -> None:
    albumentations_boxes(here, torch.ones(4), "pascal_voc", "coco")


@row("albumentations: boxes `albumentations`, `yolo`: fractions of the sides")
def albumentations_boxes_in_shares(here: Here) -> None:
    albumentations_boxes(here, torch.tensor([8.0, 5.0, 8.0, 5.0]), "albumentations", "yolo")


# -- ttach


@row("ttach: `deaugment_keypoints`: fractions of the sides")
def ttach_keypoints(here: Here) -> None:
    (spec,), aliases = here(), pytest.importorskip("ttach").aliases
    shares = POINTS / torch.tensor([8.0, 5.0])
    for g, transform in enumerate(aliases.d4_transform()):
        close(spec.undo(g, shares, SIZE), transform.deaugment_keypoints(shares))


# -- escnn


def space(name: str) -> Any:
    pytest.importorskip("escnn.nn", exc_type=ImportError)
    gspaces = importlib.import_module("escnn.gspaces")
    return gspaces.rot2dOnR2(4) if name == "c4" else gspaces.flipRot2dOnR2(4)


def turned_by_escnn(space: Any, representation: Any, g: int, x: Tensor) -> Tensor:
    kind = importlib.import_module("escnn.nn").FieldType(space, [representation])
    moved: Tensor = kind.transform(x, space.fibergroup.elements[g])
    return moved


def fields_of(channels: int) -> Tensor:
    return torch.randn(2, channels, *SIZE, generator=torch.Generator().manual_seed(0))


@row("escnn: `rot2dOnR2(4)`, `flipRot2dOnR2(4)`: `fibergroup.elements[g]`")
def escnn_elements(here: Here) -> None:
    for name, action in zip(("c4", "d4"), here(), strict=True):
        theirs = space(name)
        for g in range(action.order):
            close(action.act(g, fields_of(1)), turned_by_escnn(theirs, theirs.trivial_repr, g, fields_of(1)))


@row("escnn: `basespace_action`: vectors (right, up)")
def escnn_vectors(here: Here) -> None:
    (action,), theirs, v = here(), space("d4"), fields_of(2)
    down = torch.tensor([1.0, -1.0]).view(2, 1, 1)
    for g in range(8):
        close(action.act(g, v * down), turned_by_escnn(theirs, theirs.basespace_action, g, v) * down)


@row("escnn: `irrep(1, 1)` of `flipRot2dOnR2(4)`")
def escnn_irrep(here: Here) -> None:
    (action,), theirs, v = here(), space("d4"), fields_of(2)
    for g in range(8):
        close(action.act(g, v.flip(1)), turned_by_escnn(theirs, theirs.irrep(1, 1), g, v).flip(1))


@row("escnn: `regular_repr`")
def escnn_regular(here: Here) -> None:
    (action,), theirs, x = here(), space("d4"), fields_of(8)
    inverse = action.group.inverse
    for g in range(8):
        close(action.act(g, x[:, inverse]), turned_by_escnn(theirs, theirs.regular_repr, g, x)[:, inverse])


@row("escnn: any other, `mats = numpy.stack([rep(g) for g in elements]).round(9)`")
def escnn_representations(here: Here) -> None:
    theirs = space("d4")
    for rep in (*theirs.fibergroup.representations.values(), theirs.quotient_repr((None, 2))):
        (action,) = here(mats=numpy.stack([rep(g) for g in theirs.fibergroup.elements]).round(9))
        for g in range(8):
            close(action.act(g, fields_of(rep.size)), turned_by_escnn(theirs, rep, g, fields_of(rep.size)))
        assert not getattr(action, "mixes", False)  # rounded, they only move planes


def test_escnn_layers_beside_the_convolutions() -> None:
    """What its page says of norms and pools of regular fields, and of strides on even sizes."""
    theirs, inverse = space("d4"), grid("d4").group.inverse
    layers = importlib.import_module("escnn.nn")
    regular, scalar = (layers.FieldType(theirs, 3 * [kind]) for kind in (theirs.regular_repr, theirs.trivial_repr))
    z = torch.randn(2, 3, 8, *SIZE, generator=torch.Generator().manual_seed(0))
    given = layers.GeometricTensor(z[:, :, inverse].flatten(1, 2), regular)
    normed = layers.InnerBatchNorm(regular)(given).tensor.unflatten(1, (3, 8))
    close(torch.nn.BatchNorm3d(3)(z), normed[:, :, inverse])
    close(equikern.GroupPool("max")(z), layers.GroupPooling(regular)(given).tensor)
    torch.manual_seed(0)
    halved = layers.R2Conv(scalar, scalar, 3, padding=1, stride=2)
    assert halved.weights.numel() < 9 * 9
    for side, exact in ((9, True), (8, False)):
        x = torch.randn(1, 3, side, side)
        y, flipped = (halved(layers.GeometricTensor(t, scalar)).tensor for t in (x, x.flip(3)))
        assert torch.allclose(flipped, y.flip(3), atol=1e-4) == exact
