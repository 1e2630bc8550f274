"""Outputs of every kind, some left out: containers, integers, tokens of patches, the loss where there are labels."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from equikern import (
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    RegularLift,
    field,
    grid,
    orbit,
    patches,
    permutation,
)
from helpers.backbones import classifier
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")
B = 2
X = torch.randn(B, 3, 6, 6)


@dataclasses.dataclass(frozen=True)
class Answer:
    maps: Any
    logits: Any = None
    name: str = "answer"
    seen: Any = dataclasses.field(default=None, init=False)


class Pair(NamedTuple):
    maps: Any
    logits: Any


def answers(kind: str) -> Callable[[Tensor], Any]:
    def model(x: Tensor) -> Any:
        maps, logits = x * 2, x.mean((2, 3))
        return {
            "dataclass": lambda: Answer(maps, logits),
            "named": lambda: Pair(maps, logits),
            "dict": lambda: {"maps": maps, "logits": logits, "count": 3, "none": None, "name": "answer"},
            "ordered": lambda: OrderedDict(maps=maps, logits=logits),
            "nested": lambda: {"all": (Answer(maps, [logits, 7]), None, "x")},
            "tuple": lambda: (maps, logits, maps.sum(), x.long()),
        }[kind]()

    return model


def test_outputs_of_every_kind() -> None:
    maps, logits = EquiTune(lambda x: x * 2, "c4", "c4")(X), X.mean((2, 3))
    both = {"maps": "c4", "logits": "trivial"}
    cases: dict[str, tuple[str, Any, Any]] = {
        "dataclass": ("dataclass", both, Answer(maps, logits)),
        "dataclass without one": ("dataclass", {**both, "maps": None}, Answer(None, logits)),
        "named without one": ("named", ("c4", None), Pair(maps, None)),
        "dict": ("dict", both, {"maps": maps, "logits": logits, "count": 3, "none": None, "name": "answer"}),
        "dict without some": (
            "dict",
            {"maps": "c4", "logits": None, "count": None},
            {"maps": maps, "none": None, "name": "answer"},
        ),
        "ordered without one": ("ordered", {"maps": None, "logits": "trivial"}, OrderedDict(logits=logits)),
        "nested": (
            "nested",
            {"all": ({"maps": "c4", "logits": ("trivial",)},)},
            {"all": (Answer(maps, [logits, 7]), None, "x")},
        ),
        "tuple": ("tuple", ("c4", None, None, None), (maps, None, None, None)),
    }
    for name, (kind, out, expected) in cases.items():
        for most in (None, 1):
            found = EquiTune(answers(kind), "c4", out, views_per_forward=most)(X)
            assert type(found) is type(expected), name
            for ours, theirs in zip(flat(found), flat(expected), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6) if isinstance(theirs, Tensor) else None
                assert isinstance(theirs, Tensor) or ours == theirs, name


def flat(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in (key, *flat(value))]
    if dataclasses.is_dataclass(tree):
        return [leaf for f in dataclasses.fields(tree) for leaf in flat(getattr(tree, f.name))]
    return [leaf for value in tree for leaf in flat(value)] if isinstance(tree, (tuple, list)) else [tree]


def test_what_is_not_listed() -> None:
    with pytest.raises(ValueError, match=r"strict=False to drop what is not listed; not listed: \['logits'\]"):
        EquiTune(answers("dict"), "c4", {"maps": "c4"})(X)
    with pytest.raises(ValueError, match=r"not returned: \['mask'\]"):
        EquiTune(answers("dict"), "c4", {"maps": "c4", "logits": None, "mask": "c4"}, strict=False)(X)
    with pytest.raises(ValueError, match=r"first dim is the batch 8 \(4 views of 2\), got shape \(\)"):
        EquiTune(answers("tuple"), "c4", ("c4", "trivial", "trivial", None))(X)
    with pytest.raises(ValueError, match=r"not listed: \[2, 3\]"):
        EquiTune(answers("tuple"), "c4", ("c4", "trivial"))(X)
    loose: list[Any] = [
        EquiTune(answers("dict"), "c4", {"maps": "c4"}, strict=False),
        EquiZero(answers("dict"), "c4", {"maps": "c4"}, scored="logits", strict=False),
        LambdaEquiTune(answers("dict"), "c4", {"maps": "c4"}, 3, strict=False),
    ]
    for model in loose:
        found = model(X)
        assert list(found) == ["maps"]
    assert EquiTune(answers("tuple"), "c4", ("c4",), strict=False)(X)[1:] == (None, None, None)
    with pytest.raises(TypeError, match="strict: expected True or False"):
        EquiTune(nn.Identity(), "c4", "c4", strict=1)  # type: ignore[arg-type]


def test_a_loss_of_views_sees_outputs_that_are_dropped() -> None:
    seen = []

    def loss(outputs: Any) -> Tensor:
        seen.append(outputs["logits"].shape)
        return outputs["logits"].sum(2)  # type: ignore[no-any-return]

    model = EquiZero(answers("dict"), "c4", {"maps": "c4", "logits": None}, loss=loss)
    assert list(model(X)) == ["maps", "count", "none", "name"]
    assert seen == [(4, B, 3)]


def test_integers_of_single_views() -> None:
    out = dict.fromkeys(("labels", "mask", "maps"), "d4")
    model = EquiTune(lambda x: {"labels": (x * 9).long(), "mask": x > 0, "maps": x}, "d4", out)
    found = model.views(X[:, :, :4])  # a rectangle
    assert found["labels"].dtype == torch.int64
    assert torch.equal(found["labels"], (X[:, :, :4] * 9).long().expand(8, B, 3, 4, 6))
    assert torch.equal(found["mask"], (X[:, :, :4] > 0).expand(8, B, 3, 4, 6))
    voted = EquiTune(lambda x: ((x * 9).long(), x), "d4", ("d4", None), reduce="vote")(X)
    assert torch.equal(voted[0], (X * 9).long())
    assert voted[1] is None
    with pytest.raises(TypeError, match=r"floating-point dtype to merge, got torch\.int64"):
        model(X)


# -- tokens of patches


def test_tokens_of_patches() -> None:
    """A class token and a register stay, the patches turn; merged hidden states turn with the image."""
    patch = nn.Conv2d(3, 5, 2, stride=2)
    kept = torch.randn(2, 5)

    def tokens_of(x: Tensor) -> Tensor:
        grid_tokens = patch(x).flatten(2).mT
        front = kept.expand(len(x), 2, 5) * grid_tokens.mean(1, keepdim=True)
        return torch.cat((front, grid_tokens), 1)

    d4 = patches("d4", 3, prefix=2)
    maps = EquiTune(patch, "d4", "d4")(X)
    model = EquiTune(tokens_of, "d4", d4)
    torch.testing.assert_close(model(X)[:, 2:], maps.flatten(2).mT, rtol=1e-5, atol=1e-6)
    for g in range(8):
        torch.testing.assert_close(model(grid("d4").act(g, X)), d4.act(g, model(X)), rtol=1e-5, atol=1e-6)
    masked = patches("d4", 3).along(-1)
    mask = torch.rand(B, 10)
    assert torch.equal(masked.act(5, mask)[:, 1:].view(B, 3, 3), grid("d4").act(5, mask[:, 1:].view(B, 3, 3)))
    assert torch.equal(masked.act(5, mask)[:, 0], mask[:, 0])
    for name, size in (("d4", 3), ("flips", (2, 3)), ("oct", 2), ("flips3d", (1, 2, 3))):
        action = patches(name, size)
        again = permutation(action.perm, dim=-2, group=action.group)  # which checks that it is an action
        assert again == action
    for bad, error, message in (
        (("d4", (3, 4)), ValueError, "size: expected equal sides where 'd4' exchanges them, got 3×4"),
        (("d4", (3, 3, 3)), ValueError, "size: expected 2 numbers for 'd4'"),
        (("d4", 0), ValueError, "size: expected 1 or more"),
        (("d4", 2.0), TypeError, "size: expected a whole number, got float"),
        (("d4", 2, -1), ValueError, "prefix: expected 0 or more"),
        ((field(grid("c4"), "vector"), 2), TypeError, "action: expected one on a grid"),
    ):
        with pytest.raises(error, match=message):
            patches(*bad)  # type: ignore[arg-type]


# -- transformers' models


PIXELS, LABELS = torch.randn(3, 3, 12, 12), torch.tensor([0, 4, 2])


def test_the_loss_is_that_of_the_merged_logits() -> None:
    vit = classifier()
    for model in (
        EquiTune(vit, "d4", {"logits": "trivial"}),
        EquiTune(vit, "d4", {"logits": "trivial"}, views_per_forward=3),
        EquiZero(vit, "d4", {"logits": "trivial"}, scored="logits"),
        LambdaEquiTune(vit, "d4", {"logits": "trivial"}, 5),
        EquiTune(nn.DataParallel(vit), "d4", {"logits": "trivial"}),
    ):
        plain = model(PIXELS)
        assert type(plain) is type(vit(PIXELS))
        found = model(pixel_values=PIXELS, labels=LABELS)
        assert list(found) == ["loss", "logits"]
        torch.testing.assert_close(found.logits, plain.logits)
        torch.testing.assert_close(found.loss, nn.functional.cross_entropy(plain.logits, LABELS))
        turned = model(pixel_values=PIXELS.rot90(1, (-2, -1)), labels=LABELS)
        torch.testing.assert_close(turned.loss, found.loss, rtol=1e-4, atol=1e-5)
        summed = model(pixel_values=PIXELS, labels=LABELS, num_items_in_batch=6)
        torch.testing.assert_close(summed.loss, found.loss / 2)
    model = EquiTune(vit, "d4", ("trivial",))
    loss, logits = model(PIXELS, labels=LABELS, return_dict=False)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, LABELS))
    loss.backward()
    assert next(vit.parameters()).grad is not None
    before = list(inspect.signature(vit.forward).parameters).index("labels") - 1
    by_position = model(PIXELS, *[None] * before, LABELS, return_dict=False)
    assert by_position[0] == loss
    several = classifier(problem_type="multi_label_classification")
    many = torch.rand(3, 5).round()
    found = EquiTune(several, "d4", {"logits": "trivial"})(PIXELS, labels=many)
    torch.testing.assert_close(found.loss, nn.functional.binary_cross_entropy_with_logits(found.logits, many))


def test_no_loss_is_better_than_a_wrong_one() -> None:
    """Of probabilities, and of models that compute their loss themselves."""
    vit = classifier()
    assert list(EquiTune(vit, "d4", {"logits": "trivial"}, space="probs")(PIXELS, labels=LABELS)) == ["logits"]
    assert list(EquiTune(vit, "d4", {"logits": "trivial"}, "std")(PIXELS, labels=LABELS)) == ["logits"]
    assert EquiTune(vit, "d4", {"logits": "trivial"}).views(PIXELS, labels=LABELS)["logits"].shape == (8, 3, 5)

    class Own(type(vit)):  # type: ignore[misc]
        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
            output = super().forward(pixel_values)
            if labels is not None:
                output["loss"] = nn.functional.cross_entropy(output.logits, labels, label_smoothing=0.5)
            return output

    model = EquiTune(Own(vit.config), "d4", {"logits": "trivial"})
    assert list(model(PIXELS, labels=LABELS)) == ["logits"]
    given = EquiTune(vit, {"pixel_values": "d4", "labels": None}, {"loss": "shared", "logits": "trivial"})
    found = given(PIXELS, labels=LABELS)  # as the user says: the loss of the views
    expected = vit(orbit(PIXELS, grid("d4")).flatten(0, 1), labels=LABELS.repeat(8)).loss
    torch.testing.assert_close(found.loss, expected)
    with pytest.raises(ValueError, match=r"not listed: \['hidden_states'\]"):
        EquiTune(vit, "d4", {"logits": "trivial"})(PIXELS, output_hidden_states=True)


def test_labels_that_lead_to_no_loss_are_an_error() -> None:
    vit = classifier()
    with pytest.raises(ValueError, match="labels: expected out to have the logits"):
        EquiTune(vit, "d4", {"hidden_states": (None, None)}, strict=False)(
            PIXELS, labels=LABELS, output_hidden_states=True
        )
    lifted = RegularLift(vit, "d4", {"logits": "trivial"}, strict=False)(PIXELS, labels=LABELS)
    assert list(lifted) == ["logits"]  # of views, whose losses are none


def test_features_beside_a_loss() -> None:
    """A backbone that computes its loss itself gives it first; weights are of the logits behind it."""
    vit = classifier()

    class Own(type(vit)):  # type: ignore[misc]
        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
            output = super().forward(pixel_values)
            if labels is not None:
                output = type(output)(loss=output.logits.square().mean(), logits=output.logits)
            return output

    model = LambdaEquiTune(Own(vit.config), "d4", {"logits": "trivial"}, 5)
    for labels in ({"labels": LABELS}, {}):
        assert list(model(PIXELS, **labels)) == ["logits"]
    torch.testing.assert_close(model(PIXELS, LABELS).logits, model(PIXELS).logits)


def test_hidden_states_of_a_vision_transformer() -> None:
    vit, d4 = classifier(), patches("d4", 3)
    model = EquiTune(vit, "d4", {"logits": "trivial", "hidden_states": (d4, d4)})
    y, turned = (model(v, output_hidden_states=True) for v in (PIXELS, PIXELS.rot90(1, (-2, -1)).flip(-1)))
    g = int(grid("d4").group.multiply[grid("d4").group.names.index("hflip"), 1])
    for before, after in zip(y.hidden_states, turned.hidden_states, strict=True):
        torch.testing.assert_close(after, d4.act(g, before), rtol=1e-4, atol=1e-5)
    compiled = torch.compile(EquiTune(vit, "d4", {"logits": "trivial"}), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(pixel_values=PIXELS, labels=LABELS).loss,
            EquiTune(vit, "d4", {"logits": "trivial"})(PIXELS, labels=LABELS).loss,
        )
