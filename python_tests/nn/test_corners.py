"""Wrappers in corners: layers in place, another default device, maps of probabilities, outputs that do not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import equikern
import numpy
import pytest
import torch
from equikern import (
    CanonicalLambdaEquiTune,
    EquiDetector,
    EquiTune,
    EquiZero,
    GroupConv2d,
    LambdaEquiTune,
    RegularLift,
    boxes,
    field,
    grid,
    keypoints,
    permutation,
    train_weights,
    vector_frame,
)
from torch import Tensor, nn


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# -- values that a later layer changes


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_features_are_those_of_their_layer(flat: bool, inference: bool) -> None:
    """A layer behind it may work in place."""

    def model(inplace: bool) -> LambdaEquiTune:
        torch.manual_seed(0)
        first: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 36, 5)] if flat else [nn.Conv2d(3, 5, 3)]
        last: list[nn.Module] = [] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        backbone = nn.Sequential(*first, nn.ReLU(inplace=inplace), *last)
        return LambdaEquiTune(backbone, "c4", "trivial", 5, features=str(len(first) - 1)).eval()

    with torch.inference_mode() if inference else torch.no_grad():
        x = images(2, 3, 6, 6)
        torch.testing.assert_close(model(True)(x), model(False)(x), rtol=0, atol=0)
        torch.testing.assert_close(model(True).weights(x), model(False).weights(x), rtol=0, atol=0)


# -- another default device


@pytest.fixture
def elsewhere() -> Iterator[None]:
    with torch.device("meta"):  # of set_default_device torch 2.8 does not get back
        yield


def cpu(module: nn.Module) -> nn.Module:
    return module.to_empty(device="cpu") if any(t.is_meta for t in module.parameters()) else module


CALLS: dict[str, Callable[[Callable[[], nn.Module]], Any]] = {
    "mean": lambda net: EquiTune(net(), "d4", "d4"),
    "rectangle": lambda net: EquiZero(net(), "c4", "c4", loss=lambda y: y.flatten(2).mean(2)),
    "views": lambda net: EquiTune(net(), "c4", "c4").views,
    "weighted": lambda net: LambdaEquiTune(net(), "c4", "c4", 4),
    "lift": lambda net: RegularLift(net(), "c4", "c4"),
    "field": lambda net: EquiTune(nn.Identity(), field(grid("c4"), "vector"), field(grid("c4"), "vector")),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_default_device(name: str, elsewhere: None) -> None:
    """Tensors that are made on the way are where the input is."""
    x = torch.ones(2, 2 if name == "field" else 3, 6, 8 if name in ("rectangle", "mean", "views") else 6, device="cpu")

    def net() -> nn.Module:
        return nn.Conv2d(3, 4, 3, padding=1, device="cpu")

    call = CALLS[name](net)
    if isinstance(call, nn.Module):
        call = cpu(call)
    assert call(x).device.type == "cpu"


def test_canonical_poses_on_another_default_device(elsewhere: None) -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(10, 3, device="cpu"))
    quarters = [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]
    model = CanonicalLambdaEquiTune(backbone, vector_frame, quarters)
    assert model(torch.rand(4, 5, 2, device="cpu")).shape == (4, 3)


def one_box(found: list[list[float]], scores: list[float]) -> Callable[[Tensor], list[dict[str, Tensor]]]:
    def detect(x: Tensor) -> list[dict[str, Tensor]]:
        # Only views whose first pixel is brightest find it, as often as there are scores.
        return [
            {
                "boxes": torch.tensor(found if image[0, 0, 0] > 0.5 else [], device="cpu").reshape(-1, 4),
                "scores": torch.tensor(scores if image[0, 0, 0] > 0.5 else [], device="cpu"),
                "labels": torch.ones(len(scores) if image[0, 0, 0] > 0.5 else 0, dtype=torch.int64, device="cpu"),
            }
            for image in x
        ]

    return detect


def test_detectors_on_another_default_device(elsewhere: None) -> None:
    x = torch.zeros(1, 1, 6, 8, device="cpu")
    x[0, 0, 0, 0] = 1
    (found,) = EquiDetector(one_box([[1.0, 1.0, 3.0, 3.0]], [0.8]), "hflip", boxes("hflip"))(x)
    assert found["boxes"].device.type == "cpu"


# -- what one view finds twice


def test_a_box_found_twice_by_one_view_counts_once() -> None:
    """The mean over both views, of which one has found nothing, is half of the surer score."""
    x = torch.zeros(1, 1, 6, 8)
    x[0, 0, 0, 0] = 1
    twice = one_box([[1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 3.0, 3.1]], [1.0, 0.9])
    (found,) = EquiDetector(twice, "hflip", boxes("hflip"))(x)
    torch.testing.assert_close(found["scores"], torch.tensor([0.5]))
    torch.testing.assert_close(found["boxes"], torch.tensor([[1.0, 1.0, 3.0, 3.0]]))


# -- maps of probabilities


@pytest.mark.parametrize("views_per_forward", [None, 1, 3])
@pytest.mark.parametrize("space", ["probs", "log_probs"])
@pytest.mark.parametrize("sides", [(8, 8), (6, 9)])
def test_probabilities_of_every_pixel(space: Any, views_per_forward: int | None, sides: tuple[int, int]) -> None:
    """Softmax over the channels, turned back, averaged: as people do by hand."""
    net, x = conv(), images(2, 3, *sides)
    model = EquiTune(net, "d4", "d4", space=space, views_per_forward=views_per_forward)
    action = grid("d4")
    expected = torch.zeros(2, 4, *sides)
    for g in range(8):
        y = net(action.act(g, x))
        p = y.softmax(1) if space == "probs" else y.log_softmax(1)
        expected += action.act(int(action.group.inverse[g]), p) / 8
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_probabilities_of_labels_that_change_sides() -> None:
    """Left and right label channels: probabilities are turned with their channels."""
    hands = field(grid("hflip"), permutation([[0, 1, 2, 3], [1, 0, 2, 3]]))
    net, x = conv(), images(2, 3, 6, 6)
    p, q = net(x).softmax(1), net(x.flip(-1)).softmax(1).flip(-1)[:, [1, 0, 2, 3]]
    torch.testing.assert_close(EquiTune(net, "hflip", hands, space="probs")(x), (p + q) / 2)


def test_no_probabilities_of_vectors() -> None:
    with pytest.raises(ValueError, match="space: expected None where an output is no logits"):
        EquiTune(conv(), "c4", field(grid("c4"), "vector"), space="probs")


# -- messages


def test_an_image_without_a_batch() -> None:
    with pytest.raises(ValueError, match=r"x: \(3, 24, 24\) was taken for a batch of 3 .* x\[None\]"):
        EquiTune(conv(), "d4", "d4")(images(3, 24, 24))


def test_which_part_of_an_output_does_not_fit() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"maps": (x, [x.sum()]), "logits": x.mean((1, 2, 3))}

    out = {"maps": ("c4", ("c4",)), "logits": "trivial"}
    with pytest.raises(ValueError, match=r"backbone: expected an output at \['maps'\]\[1\]\[0\] whose first dim"):
        EquiTune(Nested(), "c4", out)(images(2, 3, 6, 6))

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"maps": (x, [x, x]), "logits": x.mean((1, 2, 3))}

    with pytest.raises(ValueError, match=r"out\['maps'\]\[1\]: the backbone returns a list with \[0, 1\]"):
        EquiTune(Other(), "c4", out)(images(2, 3, 6, 6))


def test_networks_of_weights_that_say_nothing() -> None:
    class Nothing(nn.Module):
        def forward(self, features: Tensor) -> None:
            return None

    with pytest.raises(TypeError, match="weight_net: expected to return a tensor"):
        LambdaEquiTune(conv(), "c4", "c4", Nothing())(images(2, 3, 6, 6))
    with pytest.raises(TypeError, match="model: expected one with a weight_net"):
        train_weights(EquiTune(conv(), "c4", "c4"))  # type: ignore[arg-type]


def test_what_layers_do_not_have() -> None:
    with pytest.raises(TypeError, match="groups"):
        GroupConv2d("c4", 4, 4, 3, groups=2)  # type: ignore[call-arg]


def test_boxes_that_are_lists() -> None:
    def detect(x: Tensor) -> list[dict[str, Any]]:
        return [{"boxes": [[0, 0, 1, 1]], "scores": [1.0], "labels": [1]} for _ in x]

    with pytest.raises(TypeError, match='backbone: expected tensors in its dicts, got list for "boxes"'):
        EquiDetector(detect, "hflip", boxes("hflip"))(images(1, 3, 4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["margin", "max_prob"])
def test_a_tie_in_a_map_does_not_decide_for_it(loss: Any) -> None:
    """In bfloat16 two largest logits are equal somewhere in every map."""
    torch.manual_seed(0)
    model = EquiZero(nn.Conv2d(3, 10, 3, padding=1).to(torch.bfloat16), "c4", "c4", loss=loss, classes=-3)
    x = torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)
    assert torch.equal(model(x.rot90(1, (-2, -1))), model(x).rot90(1, (-2, -1)))
    assert model.chosen(x).any()


def test_no_boxes_at_all() -> None:
    for spec, shape in ((boxes("d4"), (0, 4)), (boxes("d4", "xywh"), (0, 5, 4)), (keypoints("d4"), (0, 2))):
        nothing, none = torch.zeros(shape), torch.zeros(0, dtype=torch.int64)
        assert spec.act(none, nothing, (4, 4)).shape == shape
        assert spec.undo(none, nothing, (4, 4)).shape == shape


def test_a_backbone_that_runs_out_of_memory_says_so() -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        EquiTune(full, "c4", "c4")(torch.rand(2, 8, 8))


def test_points_by_any_numbers() -> None:
    x = torch.randn(4, 5, 3)
    expected = vector_frame(x, points=(0, 1))
    for points in ([0, 1], range(2), (numpy.int64(0), 1)):
        assert torch.equal(vector_frame(x, points=points), expected)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="points: expected a whole number, got bool"):
        vector_frame(x, points=(0, True))


def test_a_part_whose_packages_are_missing_is_no_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in [name for name in sys.modules if name.startswith("equikern.lm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(equikern, "lm", raising=False)
    assert not hasattr(equikern, "lm")
    with pytest.raises(AttributeError, match=r"equikern.lm needs transformers, which is not installed"):
        _ = equikern.lm


class OneTuple(Tensor):
    """A tensor whose ``new_empty`` takes sizes in one tuple alone, as that of MONAI's MetaTensor."""

    def new_empty(self, size: Any, dtype: Any = None) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor).new_empty(size, dtype=dtype).as_subclass(OneTuple)


def test_a_tensor_of_another_class_stays_one() -> None:
    plain, net = images(2, 3, 6, 6), conv()
    x = plain.as_subclass(OneTuple)
    for settings in ({}, {"reduce": "max"}, {"reduce": "mean_std"}, {"space": "probs"}, {"views_per_forward": 3}):
        for out in ("d4", "trivial"):
            model = EquiTune(net if out == "d4" else nn.Sequential(net, nn.Flatten()), "d4", out, **settings)
            found, expected = (y if isinstance(y, tuple) else (y,) for y in (model(x), model(plain)))
            for one, other in zip(found, expected, strict=True):
                assert isinstance(one, OneTuple), (settings, out)
                assert torch.equal(one.as_subclass(Tensor), other), (settings, out)
            found[0].sum().backward()
    turned = equikern.orbit(x, grid("d4"))
    assert isinstance(turned, OneTuple)
    assert torch.equal(turned.as_subclass(Tensor), equikern.orbit(plain, grid("d4")))
