"""Calls as users write them: several inputs, keywords, nested ones, labels; outputs of every kind, some left out."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from equikern import (
    CanonicalLambdaEquiTune,
    EquiTune,
    EquiZero,
    GroupAction,
    InvariantSymmetric,
    LambdaEquiTune,
    MultiInputEquiTune,
    ProductEquiTune,
    RegularLift,
    field,
    grid,
    patches,
    permutation,
    tokens,
    vector_frame,
)
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")


class Denoiser(nn.Module):
    """A map of images that depends on all that it is given, with outputs that no group leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.cond = nn.Conv2d(6, 3, 3, padding=1), nn.Linear(4, 3)

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        states: Tensor | None = None,
        *,
        control: Tensor | None = None,
        scale: float = 1.0,
        prompt: Any = "",
        batch: Any = None,
        table: Tensor | None = None,
    ) -> Tensor:
        control = sample if control is None else control
        y: Tensor = self.conv(torch.cat((sample, control), 1))
        t = torch.as_tensor(timestep, dtype=y.dtype).reshape(-1, 1, 1, 1)
        y = y * scale + t.sin()
        if states is not None:
            y = y + self.cond(states.mean(1))[:, :, None, None]
        if not isinstance(prompt, str):
            assert len(prompt) == len(sample)
            y = y + torch.tensor([float(len(word)) for word in prompt])[:, None, None, None]
        if batch is not None:
            y = y + batch["more"][0].sin() + batch["mask"].reshape(-1, 1, 1, 1)
        return y if table is None else y + table.sum()


B, SIDES = 2, (6, 6)
X, CONTROL, MORE = (torch.randn(B, 3, *SIDES) for _ in range(3))
STATES, MASK, TABLE = torch.randn(B, 5, 4), torch.tensor([1.0, 0.0]), torch.randn(7, 2)


def one_by_one(action: GroupAction, call: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """The mean over the group of what a call gives whose inputs are turned by hand, turned back."""
    return (
        sum(
            action.act(int(action.group.inverse[g]), call(lambda t, g=g: action.act(g, t))) for g in range(action.order)
        )
        / action.order
    )  # type: ignore[return-value]


def test_inputs_of_every_kind() -> None:
    net = Denoiser()
    timesteps = torch.tensor([3, 7])
    d4: dict[str, Any] = {"sample": "d4", "control": "d4"}
    calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Callable[[Any], Tensor]]] = {
        "a number": ("d4", (X, 3), {}, lambda v: net(v(X), 3)),
        "a tensor of no dims": ("d4", (X, torch.tensor(3)), {}, lambda v: net(v(X), 3)),
        "one for all": ("d4", (X, torch.tensor([3])), {}, lambda v: net(v(X), 3)),
        "one for each": ("d4", (X, timesteps), {}, lambda v: net(v(X), timesteps)),
        "by name": ("d4", (), {"sample": X, "timestep": timesteps}, lambda v: net(v(X), timesteps)),
        "a tuple": (("d4", None), (X, timesteps), {"states": STATES}, lambda v: net(v(X), timesteps, STATES)),
        "a tuple, by name": (("d4",), (), {"timestep": 1, "sample": X}, lambda v: net(v(X), 1)),
        "not the first": (
            {"control": "d4", "sample": "d4"},
            (X, 1, STATES),
            {"control": CONTROL, "scale": 0.5},
            lambda v: net(v(X), 1, STATES, control=v(CONTROL), scale=0.5),
        ),
        "one that stays": (
            {"sample": "d4", "control": None},
            (X, 1),
            {"control": CONTROL},
            lambda v: net(v(X), 1, control=CONTROL),
        ),
        "None": (d4, (X, 1, None), {"control": None}, lambda v: net(v(X), 1)),
        "a word": (d4, (X, 1), {"prompt": "cat"}, lambda v: net(v(X), 1)),
        "words": (d4, (X, 1), {"prompt": ["a", "cat"]}, lambda v: net(v(X), 1, prompt=["a", "cat"])),
        "nested": (
            {"sample": "d4", "batch": {"more": ("d4",)}},
            (X, 1),
            {"batch": {"mask": MASK, "more": (MORE,)}},
            lambda v: net(v(X), 1, batch={"mask": MASK, "more": (v(MORE),)}),
        ),
        "shared": ({"sample": "d4", "table": "shared"}, (X, 1), {"table": TABLE}, lambda v: net(v(X), 1, table=TABLE)),
    }
    for name, (inp, args, kwargs, by_hand) in calls.items():
        expected = one_by_one(grid("d4"), by_hand)
        for most in (None, 3):
            found = EquiTune(net, inp, "d4", views_per_forward=most)(*args, **kwargs)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_rectangles_of_two_inputs() -> None:
    """Both are wide, or one is square where the other is not: the views come in as many shapes as they have to."""
    net = Denoiser()
    wide, control = torch.randn(B, 3, 4, 6), torch.randn(B, 3, 4, 6)
    model = EquiTune(net, {"sample": "d4", "control": "d4"}, "d4")
    expected = one_by_one(grid("d4"), lambda v: net(v(wide), 1, control=v(control)))
    torch.testing.assert_close(model(wide, 1, control=control), expected, rtol=1e-5, atol=1e-5)

    def pooled(image: Tensor, hint: Tensor) -> Tensor:
        height, width = (torch.arange(1.0, n + 1) for n in hint.shape[-2:])
        return image * (hint * height[:, None] * width.square()).mean((1, 2, 3), keepdim=True)

    model = EquiTune(pooled, ("d4", "d4"), "d4")
    expected = one_by_one(grid("d4"), lambda v: pooled(v(X), v(wide)))
    torch.testing.assert_close(model(X, wide), expected, rtol=1e-5, atol=1e-5)
    turned = model(X.rot90(1, (-2, -1)), wide.rot90(1, (-2, -1)))
    torch.testing.assert_close(turned, model(X, wide).rot90(1, (-2, -1)), rtol=1e-5, atol=1e-5)


def test_an_image_with_its_words() -> None:
    """Actions of two kinds on two inputs; the one on the grid leads."""
    mirror = tokens([[0, 1, 2], [0, 2, 1]])  # -, left, right
    embed, conv = nn.Embedding(3, 4), nn.Conv2d(3, 4, 3, padding=1)

    def model(ids: Tensor, image: Tensor) -> Tensor:
        weight = torch.arange(1.0, ids.shape[1] + 1)[:, None]
        return conv(image) * (embed(ids) * weight).sum(1)[:, :, None, None]

    ids = torch.tensor([[0, 1, 2], [1, 1, 0]])
    hflip = GroupAction(mirror.group, "hflip", grid("hflip").maps)
    wrapped = EquiTune(model, (mirror, hflip), hflip)
    assert wrapped.inp is hflip
    flipped = model(mirror.act(1, ids), X.flip(-1)).flip(-1)
    torch.testing.assert_close(wrapped(ids, X), (model(ids, X) + flipped) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wrapped(ids=ids, image=X), wrapped(ids, X))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "mean": lambda net: EquiTune(net, "d4", "d4"),
    "zero": lambda net: EquiZero(net, "d4", "d4", classes=-3),
    "lambda": lambda net: LambdaEquiTune(net, "d4", "d4", 3, features="conv"),
    "frozen": lambda net: LambdaEquiTune(net, "d4", "d4", 3, features="conv", frozen=True),
    "lift": lambda net: RegularLift(net, "d4", "d4"),
    "symmetric": lambda net: InvariantSymmetric(net, "d4", "flips"),
    "product": lambda net: ProductEquiTune(net, ["hflip", "vflip"], ["hflip", "vflip"]),
    "multi": lambda net: MultiInputEquiTune(net, ["d4"], ["d4"]),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_hands_on_what_it_is_given(name: str) -> None:
    """As the wrapper of a model into which it is bound; compiled and exported with it."""
    net = Denoiser().eval()
    t = torch.tensor(0.3)

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.net = net.conv, net

        def forward(self, sample: Tensor) -> Any:
            rows = STATES.repeat(len(sample) // B, 1, 1)
            return self.net(sample, t, rows, scale=2.0)

    torch.manual_seed(1)
    plain = WRAPPERS[name](Bound()).eval()
    torch.manual_seed(1)
    model = WRAPPERS[name](net).eval()
    expected = plain(X)
    if name == "multi":
        kwargs = {"timestep": t, "states": STATES, "scale": 2.0}
        torch.testing.assert_close(model(X, **kwargs), expected)
        return
    torch.testing.assert_close(model(X, t, STATES, scale=2.0), expected)
    torch.testing.assert_close(model(sample=X, timestep=t, states=STATES, scale=2.0), expected)
    if name in ("mean", "frozen"):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(X, t, STATES, scale=2.0), expected)
            program = torch.export.export(model, (X, t), {"states": STATES}).module()
            torch.testing.assert_close(program(X, t, states=STATES), model(X, t, STATES))
    if isinstance(model, EquiZero):
        assert torch.equal(model.chosen(X, t, states=STATES), model.scores(X, t, STATES).argmin(0))
    if isinstance(model, LambdaEquiTune):
        torch.testing.assert_close(model.weights(X, t, STATES).sum(0), torch.ones(B))


def test_exported_with_a_dynamic_batch() -> None:
    model, t = EquiTune(Denoiser(), "c4", "c4").eval(), torch.tensor([1.0, 2.0])
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "args": ({0: batch}, {0: batch})}
    with torch.no_grad():
        program = torch.export.export(model, (X, t, STATES), dynamic_shapes=shapes).module()
        more = [torch.cat((s, s, s)) for s in (X, t, STATES)]
        torch.testing.assert_close(program(*more), model(*more), rtol=1e-5, atol=1e-6)


def test_an_input_of_the_backbone_that_is_called_as_ours() -> None:
    """x may be any input of the backbone's, by name."""
    expected = EquiTune(lambda x: x * 3, "c4", "c4")(X)
    torch.testing.assert_close(EquiTune(lambda t, x: x * t, (None, "c4"), "c4")(3.0, X), expected)
    torch.testing.assert_close(EquiTune(lambda t, x: x * t, {"x": "c4"}, "c4")(x=X, t=3.0), expected)
    torch.testing.assert_close(EquiTune(lambda **kw: kw["x"] * 3, {"x": "c4"}, "c4")(x=X), expected)
    torch.testing.assert_close(EquiTune(lambda **kw: kw["y"] * 3, "c4", "c4")(y=X), expected)


def test_coordinates_that_turn_beside_x() -> None:
    """Positions and velocities, with a number for each sample and one for all."""
    lift = nn.Linear(8, 2)

    def model(x: Tensor, v: Tensor, mass: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        y = lift(torch.cat((x, v), 1).flatten(1)) * mass[:, None] * scale
        return {"force": y[:, None], "energy": y.square().sum(1), "count": torch.tensor(3)}

    quarters = [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]
    x, v, mass = torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.rand(3)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    out = {"force": "equivariant", "energy": "invariant", "count": "shared"}
    weight_net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    wrapped = CanonicalLambdaEquiTune(model, vector_frame, quarters, weight_net, out, inp=("turned", "turned"))
    y, turned = wrapped(x, v, mass, scale=2.0), wrapped(x @ turn.T, v @ turn.T, mass, scale=2.0)
    assert list(y) == list(out)
    assert y["count"] == 3
    torch.testing.assert_close(turned["force"], y["force"] @ turn.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned["energy"], y["energy"], rtol=1e-4, atol=1e-5)
    alone = CanonicalLambdaEquiTune(lambda x, v: model(x, v, mass.repeat(4)), vector_frame, quarters, None, out)
    assert not torch.allclose(alone(x, v)["energy"], alone(x @ turn.T, v @ turn.T)["energy"], rtol=1e-3)
    with pytest.raises(ValueError, match="inp: expected one input at least that is 'turned'"):
        CanonicalLambdaEquiTune(model, vector_frame, quarters, inp=(None,))
    with pytest.raises(ValueError, match="undo: expected False"):
        CanonicalLambdaEquiTune(model, vector_frame, quarters, out={"energy": "invariant"}, undo=True)


# -- outputs


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


# -- what cannot be meant


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no action": (lambda: EquiTune(Denoiser(), (None, "shared"), "d4"), ValueError, "inp: expected an action for one"),
    "other groups": (
        lambda: EquiTune(Denoiser(), {"sample": "d4", "control": "c4"}, "d4"),
        ValueError,
        r"inp\['control'\]: expected an action of the input's group",
    ),
    "a wrong name": (
        lambda: EquiTune(Denoiser(), {"sampel": "d4"}, "d4"),
        ValueError,
        r"inp: expected names of the backbone's inputs, batch, control.*got \['sampel'\]",
    ),
    "a wrong name among any": (
        lambda: EquiTune(lambda **kw: kw["x"], {"x": "d4", "hint": "d4"}, "d4")(x=X),
        ValueError,
        "inp: expected names of inputs, got 'hint', which is neither given nor",
    ),
    "nothing that is acted on": (
        lambda: EquiTune(Denoiser(), {"control": "d4"}, "d4")(X, 1),
        ValueError,
        "inp: expected an input that the group acts on, got none",
    ),
    "which keyword": (
        lambda: EquiTune(Denoiser(), "d4", "d4")(control=X, timestep=1),
        ValueError,
        r"inp: expected a dict that says which input 'd4' acts on.*\['control', 'timestep'\]",
    ),
    "no batch": (
        lambda: EquiTune(Denoiser(), "d4", "d4")(X, 1, table=TABLE),
        ValueError,
        r"table: expected a first dim that is the batch 2, .* got shape \(7, 2\); \"shared\"",
    ),
    "words of no batch": (
        lambda: EquiTune(Denoiser(), "d4", "d4")(X, 1, prompt=["a", "b", "c"]),
        ValueError,
        "prompt: expected a first dim that is the batch 2, .* got 3 strings",
    ),
    "another batch": (
        lambda: EquiTune(Denoiser(), {"sample": "d4", "control": "d4"}, "d4")(X, 1, control=X[:1]),
        ValueError,
        r"control: expected the batch of the other inputs, 2, got shape \(1, 3, 6, 6\)",
    ),
    "an action for several": (
        lambda: EquiTune(Denoiser(), {"sample": "d4", "batch": "d4"}, "d4")(X, 1, batch={"more": [X]}),
        TypeError,
        "batch: expected a torch.Tensor for 'd4', got a dict",
    ),
    "a container that is none": (
        lambda: EquiTune(Denoiser(), {"sample": "d4", "batch": {"more": "d4"}}, "d4")(X, 1, batch=X),
        TypeError,
        "batch: expected a dict as in inp, got Tensor",
    ),
    "a name that a container lacks": (
        lambda: EquiTune(Denoiser(), {"sample": "d4", "batch": {"else": "d4"}}, "d4")(X, 1, batch={"mask": MASK}),
        ValueError,
        r"inp: expected a dict of some of \['mask'\] for batch",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


# -- transformers' models


def classifier(**changed: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=12,
        patch_size=4,
        num_labels=5,
        **changed,
    )
    return transformers.ViTForImageClassification(config).eval()


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
    torch.testing.assert_close(found.loss, vit(grid("d4").act(0, PIXELS), labels=LABELS).loss, rtol=1, atol=1)
    with pytest.raises(ValueError, match=r"not listed: \['hidden_states'\]"):
        EquiTune(vit, "d4", {"logits": "trivial"})(PIXELS, output_hidden_states=True)


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
