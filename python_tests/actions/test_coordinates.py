"""Keypoints, boxes and heat maps go where the image's pixels go, in every unit, alone and through the wrappers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from equikern import (
    Coordinates,
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    boxes,
    field,
    grid,
    heat_maps,
    keypoints,
    orbit,
    permutation,
)
from equikern.coordinates import Format, Units
from helpers.looped import each
from helpers.oracles import NAMED
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")
UNITS: tuple[Units, ...] = ("edge", "center", "normalized")
SIZE = (5, 7)
SWAP = [1, 0, 2]  # left, right, middle
FLIPS = {"d4": (4, 5, 6, 7), "hflip": (1,), "vflip": (1,), "flips": (1, 2)}


def view_size(name: str, g: int, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    height, width = grid(name).act(g, torch.empty(size)).shape
    return height, width


def in_units(units: Units, at: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (column, row) as coordinates of their middles."""
    if units == "center":
        return at
    edge = at + 0.5
    return edge if units == "edge" else edge / torch.tensor([size[1], size[0]])


@pytest.mark.parametrize("name", NAMED)
@each("units", UNITS)
def test_keypoints_go_where_their_pixel_goes(name: str, units: Units) -> None:
    action, points = grid(name), keypoints(name, units=units)
    for g in range(action.order):
        after = view_size(name, g)
        for i, j in ((0, 0), (0, 6), (4, 0), (2, 3), (1, 5)):
            image = torch.zeros(SIZE)
            image[i, j] = 1
            row, column = divmod(int(action.act(g, image).argmax()), after[1])
            before = in_units(units, torch.tensor([float(j), float(i)]), SIZE)
            there = in_units(units, torch.tensor([float(column), float(row)]), after)
            torch.testing.assert_close(points.act(g, before, SIZE), there, rtol=0, atol=1e-6)
            torch.testing.assert_close(points.undo(g, there, SIZE), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["d4", "flips"])
def test_whole_numbers_stay_exact(name: str) -> None:
    at = torch.tensor([[0, 0], [6, 4], [2, 3]])
    for g in range(grid(name).order):
        image = torch.zeros(3, *SIZE)
        image[torch.arange(3), at[:, 1], at[:, 0]] = 1
        moved = grid(name).act(g, image)
        there = torch.stack((moved.amax(1).argmax(1), moved.amax(2).argmax(1)), 1)
        assert torch.equal(keypoints(name, units="center").act(g, at, SIZE), there)
        box, shares = torch.tensor([1, 0, 3, 4]), torch.tensor([0.1, 0.7, 1e-9, 0.2])
        assert boxes(name, "xywh").act(g, box, SIZE).dtype == box.dtype
        assert torch.equal(boxes(name, "xywh").undo(g, boxes(name, "xywh").act(g, box, SIZE), SIZE), box)
        lengths = boxes(name, "xywh", "normalized").act(g, shares)[2:]  # not the difference of rounded ends
        assert sorted(lengths.tolist()) == sorted(shares[2:].tolist())


def corners(mask: Tensor, units: Units) -> Tensor:
    """The box (left, top, right, bottom) of the set pixels: their outer edges, or the middles of the outermost."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float()
    if units == "center":
        return box
    box[2:] += 1
    height, width = mask.shape
    return box if units == "edge" else box / torch.tensor([width, height] * 2)


FORMATS: dict[Format, Any] = {
    "xyxy": lambda box: box,
    "xywh": lambda box: torch.cat((box[:2], box[2:] - box[:2])),
    "cxcywh": lambda box: torch.cat(((box[:2] + box[2:]) / 2, box[2:] - box[:2])),
}


@pytest.mark.parametrize("name", NAMED)
@each("units", UNITS)
def test_boxes_stay_around_their_pixels(name: str, units: Units) -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[1:3, 2:6] = True
    box = corners(mask, units)
    for g in range(grid(name).order):
        there = corners(grid(name).act(g, mask), units)
        for format, given in FORMATS.items():
            spec = boxes(name, format, units)
            torch.testing.assert_close(spec.act(g, given(box), SIZE), given(there))
            torch.testing.assert_close(spec.undo(g, given(there), SIZE), given(box))


@pytest.mark.parametrize("name", NAMED)
def test_channels_and_keypoints_change_places_alike(name: str) -> None:
    """One-hot maps of a left, a right and a middle keypoint; mirrored elements are those with a flip."""
    at = torch.tensor([[0, 0], [6, 4], [2, 3]])
    image = torch.zeros(3, *SIZE)
    image[torch.arange(3), at[:, 1], at[:, 0]] = 1
    maps, points = heat_maps(name, SWAP), keypoints(name, SWAP, units="center")
    for g in range(grid(name).order):
        moved = maps.act(g, image)
        there = torch.stack((moved.amax(1).argmax(1), moved.amax(2).argmax(1)), 1)
        assert torch.equal(points.act(g, at, SIZE), there)
        plain = grid(name).act(g, image)
        assert torch.equal(moved, plain[SWAP] if g in FLIPS.get(name, ()) else plain)


def specs(name: str, units: Units) -> list[Coordinates]:
    return [
        keypoints(name, units=units),
        keypoints(name, SWAP, units=units, extra=1),
        *(boxes(name, format, units) for format in FORMATS),
    ]


@pytest.mark.parametrize("name", ["c4", "d4", "flips"])
@pytest.mark.parametrize("units", UNITS)
def test_elements_compose(name: str, units: Units) -> None:
    torch.manual_seed(0)
    group = grid(name).group
    for spec in specs(name, units):
        t = torch.rand(2, 4, *spec.shape, dtype=torch.float64) * 5
        assert torch.equal(spec.act(0, t, SIZE), t)
        for h in range(group.order):
            moved = spec.act(h, t, SIZE)
            torch.testing.assert_close(spec.undo(h, moved, SIZE), t)
            for g in range(group.order):
                both = spec.act(g, moved, view_size(name, h))
                torch.testing.assert_close(both, spec.act(int(group.multiply[g, h]), t, SIZE))


@pytest.mark.parametrize("units", UNITS)
def test_what_is_measured_from_the_middle_moves_linearly(units: Units) -> None:
    torch.manual_seed(0)
    for spec in specs("d4", units):
        t = torch.rand(2, *spec.shape, dtype=torch.float64)
        views = torch.stack([spec.act(g, t, SIZE) for g in range(8)])
        flat = spec.from_middle(views, range(8), SIZE)
        torch.testing.assert_close(flat, orbit(flat[0], spec.linear))
        torch.testing.assert_close(spec.from_corner(flat[0], SIZE), t)


class Regressor(nn.Module):
    """Two channels pooled, and as many numbers as asked for."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(24, torch.Size(shape).numel())

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), (2, 3)).flatten(1)
        return self.linear(pooled).unflatten(-1, self.shape)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("size", [(8, 8), (5, 8)])
@pytest.mark.parametrize("views", [None, 3])
def test_equitune_is_the_mean_of_what_is_undone(units: Units, size: tuple[int, int], views: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    for spec in specs("d4", units):
        backbone = Regressor(*spec.shape)
        model = EquiTune(backbone, "d4", spec, views_per_forward=views)
        undone = torch.stack([spec.undo(g, backbone(grid("d4").act(g, x)), size) for g in range(8)])
        torch.testing.assert_close(model(x), undone.mean(0))
        torch.testing.assert_close(model.views(x), undone)


@pytest.mark.parametrize("size", [(6, 6), (4, 7)])
def test_coordinates_of_what_a_field_shows(size: tuple[int, int]) -> None:
    """Boxes around what moves: the input is a flow, whose vectors turn with it."""
    torch.manual_seed(0)
    flow, spec = field(grid("d4"), "vector"), boxes("d4")
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), Regressor(4))
    model, x = EquiTune(net, flow, spec), torch.randn(2, 2, *size)
    for g in range(8):
        torch.testing.assert_close(model(flow.act(g, x)), spec.act(g, model(x), size), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"^out: expected one made for the input's FieldAction"):
        EquiTune(net, flow, boxes("c4"))


@pytest.mark.parametrize("size", [(8, 8), (5, 8)])
def test_the_chosen_view_of_coordinates_alone(size: tuple[int, int]) -> None:
    """By a loss of one's own, such as how large the box is, or by a named one of the numbers themselves."""
    torch.manual_seed(0)
    spec, x = boxes("d4", "cxcywh"), torch.randn(3, 3, *size)
    for loss in (lambda y: y[..., 2] * y[..., 3], "similarity"):
        model = EquiZero(Regressor(4), "d4", spec, loss)
        chosen = model.views(x)[model.chosen(x), torch.arange(3)]
        torch.testing.assert_close(model(x), chosen)
        for g in range(8):
            torch.testing.assert_close(model(grid("d4").act(g, x)), spec.act(g, model(x), size))


@pytest.mark.parametrize("size", [(4, 4), (3, 4)])
def test_gradients_and_compile(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    spec = keypoints("d4", SWAP)
    model = EquiTune(Regressor(3, 2).double(), "d4", spec)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), fast_mode=True)
    maps = EquiTune(nn.Conv2d(3, 3, 3, padding=1).double(), "d4", heat_maps("d4", SWAP))
    assert torch.autograd.gradcheck(maps, (x,), fast_mode=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_copies_and_pickles() -> None:
    t = torch.rand(3, 2)
    for twin in (copy.deepcopy(keypoints("d4", SWAP)), pickle.loads(pickle.dumps(keypoints("d4", SWAP)))):
        assert torch.equal(twin.act(5, t, SIZE), keypoints("d4", SWAP).act(5, t, SIZE))
    assert repr(boxes("c4")) == "Coordinates('c4', shape (4,), units 'edge')"


ONE = torch.zeros(2, 3, 4, 6)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "action": (lambda: keypoints(4), TypeError, "action: expected one on images, such as grid.'d4'.*got 4"),
    "permutation": (lambda: boxes(permutation([[0, 1], [1, 0]])), TypeError, "action: expected one on images"),
    "name": (lambda: boxes("c5"), ValueError, "action: expected one of .*'c5'"),
    "units": (lambda: keypoints("c4", units="pixels"), ValueError, "units: expected one of 'edge', 'center'"),
    "format": (lambda: boxes("c4", "yxyx"), ValueError, "format: expected one of 'xyxy', .*'cxcywh', got 'yxyx'"),
    "extra": (lambda: keypoints("c4", extra=-1), ValueError, "extra: expected 0 or more, got -1"),
    "swap": (lambda: keypoints("c4", [1, 2, 0]), ValueError, r"swap: expected .*got \[1, 2, 0\]"),
    "swap twice": (lambda: heat_maps("c4", [0, 0]), ValueError, r"swap: expected .*got \[0, 0\]"),
    "swap none": (lambda: heat_maps("c4", []), ValueError, r"swap: expected .*got \[\]"),
    "swap type": (lambda: heat_maps("c4", 3), TypeError, r"swap: expected a list of numbers, got int"),
    "element": (lambda: boxes("c4").act(4, torch.zeros(4), SIZE), ValueError, "g: expected an element 0 … 3 of 'c4'"),
    "element type": (lambda: boxes("c4").undo(1.0, torch.zeros(4), SIZE), TypeError, "g: expected a whole number"),
    "no tensor": (lambda: boxes("c4").act(1, [0, 0, 1, 1], SIZE), TypeError, "t: expected a torch.Tensor, got list"),
    "no size": (lambda: boxes("c4").act(1, torch.zeros(4)), ValueError, r"size: expected \(H, W\) of the image"),
    "shape": (
        lambda: keypoints("c4", SWAP).act(1, torch.zeros(5, 2), SIZE),
        ValueError,
        r"t: expected coordinates \(…, 3, 2\), got shape \(5, 2\)",
    ),
    "output": (
        lambda: EquiTune(Regressor(5, 2), "c4", keypoints("c4", SWAP))(ONE),
        ValueError,
        r"output: expected coordinates \(…, 3, 2\), got shape \(2, 5, 2\)",
    ),
    "channels": (
        lambda: EquiTune(nn.Conv2d(3, 5, 1), "c4", heat_maps("c4", SWAP))(ONE),
        ValueError,
        "channels",
    ),
    "another action": (
        lambda: EquiTune(nn.Identity(), "c4", {"points": keypoints("d4")}),
        ValueError,
        r"out\['points'\]: expected one made for the input's GridAction\('c4', order 4\), got Coordinates\('d4'",
    ),
    "maximum": (
        lambda: EquiTune(Regressor(4), "c4", boxes("c4"), "max")(ONE),
        ValueError,
        "out: Coordinates.* takes a mean or the choice of a view, got .*reduce='max'",
    ),
    "no division": (
        lambda: LambdaEquiTune(Regressor(4), "c4", boxes("c4"), 4, normalize=None)(ONE),
        ValueError,
        "takes a mean or the choice of a view, got .*normalize=None",
    ),
}


@each("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
