"""Calls as users write them: several inputs by position or name, nested ones, what is repeated and what is shared."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import (
    CanonicalEquiTune,
    CanonicalLambdaEquiTune,
    EquiTune,
    EquiZero,
    GroupAction,
    InvariantSymmetric,
    LambdaEquiTune,
    MultiInputEquiTune,
    ProductEquiTune,
    RegularLift,
    grid,
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
    "canonical": lambda net: CanonicalEquiTune(net, "d4", "d4", "moments", 3, "softmax"),
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
    if name in ("mean", "canonical", "frozen"):
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
    batch = torch.export.Dim("batch")  # of any size: no check of ours may bound it
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


# -- what cannot be meant


def test_what_has_no_batch_is_shared_in_a_batch_of_one() -> None:
    """By its length alone a table of one row is a batch of one; the word for it makes the answer one of the table's."""
    x, table = torch.ones(1, 1, 4, 4), torch.tensor([[1.0, 2.0]])

    def summed(x: Tensor, table: Tensor) -> Tensor:
        return x * table.sum()

    for most in (None, 1, 3):
        model = EquiTune(summed, {"x": "d4", "table": "shared"}, "d4", views_per_forward=most)
        torch.testing.assert_close(model(x, table), 3 * x)
        torch.testing.assert_close(model(x=torch.cat((x, x)), table=table), 3 * torch.cat((x, x)))


def test_a_keyword_that_is_called_x() -> None:
    """It is the backbone's, if that has one; otherwise the first input."""

    def either(mask: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        return x if mask is None and x is not None else 100 * mask  # type: ignore[operator]

    torch.testing.assert_close(EquiTune(either, {"x": "d4"}, "d4")(x=X), X)
    torch.testing.assert_close(EquiTune(either, "d4", "d4")(x=X), X)
    torch.testing.assert_close(EquiTune(either, "d4", "d4")(X), 100 * X)
    torch.testing.assert_close(EquiTune(lambda a, x: a + x, {"a": "d4", "x": "d4"}, "d4")(X, x=X), 2 * X)
    conv = nn.Conv2d(3, 2, 3, padding=1)
    torch.testing.assert_close(EquiTune(conv, "d4", "d4")(x=X), EquiTune(conv, "d4", "d4")(X))


def test_containers_of_every_kind_go_in() -> None:
    @dataclasses.dataclass
    class Pair:
        image: Tensor
        shift: Tensor

    def added(x: Tensor, more: Any) -> Tensor:
        pair = more if isinstance(more, Pair) else more["pair"]
        return x + pair.image + pair.shift.reshape(-1, 1, 1, 1)

    pair = Pair(X.flip(-1), torch.tensor([1.0, 2.0]))
    expected = X + pair.image + pair.shift.reshape(-1, 1, 1, 1)
    model = EquiTune(added, {"x": "d4", "more": {"image": "d4"}}, "d4")
    torch.testing.assert_close(model(X, pair), expected)
    several = collections.defaultdict(list, {"pair": pair})
    model = EquiTune(added, {"x": "d4", "more": {"pair": {"image": "d4"}}}, "d4")
    torch.testing.assert_close(model(X, several), expected)
    assert several["pair"] is pair


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
    "more actions than inputs": (
        lambda: EquiTune(nn.Conv2d(3, 2, 1), ("d4", "d4", "d4"), "d4")(X),
        ValueError,
        "inp: expected an action for each input at most, got 3 for 1 by position of input",
    ),
    "a second input that cannot turn": (
        lambda: CanonicalLambdaEquiTune(
            lambda x, v: x + v, vector_frame, [[[1.0, 0.0], [0.0, 1.0]]], inp=("turned", "turned")
        )(torch.randn(2, 3, 2), torch.randn(2, 3, 1)),
        ValueError,
        r"args\[0\]: expected a batch \(B, …, 2\) of coordinates, got \(2, 3, 1\)",
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
