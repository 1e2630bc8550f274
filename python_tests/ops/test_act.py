"""orbit_act: every sample by its own element, as a loop over samples does it, for all kinds of actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from equikern import Action, boxes, field, grid, keypoints, matrix, orbit, orbit_act, tokens
from equikern.coordinates import Coordinates, Units
from equikern.core.act import listed, unpacked
from helpers.accuracy import assert_rounded_once
from helpers.calls import ONE_BACKEND
from helpers.looped import each
from helpers.oracles import CASES, SOME, Case, Map, powers
from helpers.strategies import EXACT, FLOATS, LAYOUTS, bits, generator, images, laid_out, random_bits, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("single_thread", "backend")
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=repr)
FEW = pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=repr)
IDS = tokens(powers([1, 2, 0, 3, 5, 4], 6))
TURN = matrix([[[1, 0], [0, 1]], [[0, -2], [0.5, 0]], [[-1, 0], [0, -1]], [[0, 2], [-0.5, 0]]])


def drawn(order: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Elements for every entry of the shape."""
    return torch.randint(0, order, tuple(shape), generator=generator(seed))


def looped(maps: Sequence[Map], x: Tensor, elements: Tensor) -> Tensor:
    """One sample after the other."""
    if x.numel() == 0:
        return x
    samples = x.reshape(-1, *x.shape[elements.dim() :])
    moved = [maps[g](sample) for g, sample in zip(elements.flatten().tolist(), samples, strict=True)]
    return torch.stack(moved).unflatten(0, elements.shape)


def single(action: Action, inverse: bool = False) -> list[Map]:
    """Action.act with each element; those of groups by the group's own inverses."""
    back = action.group.inverse.tolist()  # type: ignore[attr-defined]
    return [lambda t, g=back[g] if inverse else g: action.act(g, t) for g in range(action.order)]


def samples_of(case: Case, data: st.DataObject, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor, Tensor]:
    """A batch in any shape and layout, and elements for the first dims of it."""
    spec = data.draw(images(case, dtypes))
    moved = case.action.dims
    if len(spec.shape) == moved:
        spec = replace(spec, shape=(data.draw(st.integers(0, 5)), *spec.shape))
    k = data.draw(st.integers(1, len(spec.shape) - moved))
    return spec.bits(), drawn(case.order, spec.shape[:k], spec.seed)


@EVERY
@settings(max_examples=15)
@given(data=st.data())
def test_every_sample_has_its_element(case: Case, data: st.DataObject) -> None:
    x, elements = samples_of(case, data, EXACT)
    inverse = data.draw(st.booleans())
    before = x.clone()
    ours = orbit_act(x, elements, case.action, inverse=inverse)
    assert (ours.shape, ours.dtype) == (x.shape, x.dtype)
    for maps in (case.inverse if inverse else case.forward, single(case.action, inverse)):
        expected = looped(maps, x, elements)
        if case.multiplies:  # by powers of two
            assert torch.equal(ours, expected)
        else:
            assert torch.equal(bits(ours), bits(expected))
    back = orbit_act(ours, elements, case.action, inverse=not inverse)
    if case.multiplies:  # by an eighth at the least: what then lies below the normal numbers loses three bits there
        finfo = torch.finfo(x.dtype)
        torch.testing.assert_close(back, x, rtol=0, atol=8 * finfo.smallest_normal * finfo.eps)
    else:
        assert torch.equal(bits(back), bits(x))
    assert torch.equal(bits(x), bits(before))


@EVERY
@settings(max_examples=15)
@given(data=st.data())
def test_is_the_orbits_view(case: Case, data: st.DataObject) -> None:
    """``orbit_act(x, elements)[b] = orbit(x)[elements[b], b]`` to the bit."""
    x, elements = samples_of(case, data, EXACT)
    views = orbit(x, case.action).flatten(1, elements.dim())
    picked = views[elements.flatten(), torch.arange(elements.numel())].reshape(x.shape)
    assert torch.equal(bits(orbit_act(x, elements, case.action)), bits(picked))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("size", [1, 2, 3, 4, 5, 9])
@each("layout", LAYOUTS)
def test_samples_of_matrices_are_rounded_once(size: int, dtype: torch.dtype, layout: str) -> None:
    """No group: each sample by a matrix of its own, as in canonical poses."""
    mats = torch.randn(7, size, size, generator=generator(size), dtype=torch.float64) + 3 * torch.eye(size)
    action = matrix(mats, closed=False)
    x, elements = laid_out(random_values((6, 5, size), dtype, 1), layout), drawn(7, (6,), 2)
    for inverse, rows in ((False, mats), (True, torch.linalg.inv(mats))):
        chosen = rows[elements]
        exact = torch.einsum("bij,bnj->bni", chosen, x.double())
        magnitude = torch.einsum("bij,bnj->bni", chosen.abs(), x.double().abs())
        assert_rounded_once(orbit_act(x, elements, action, inverse=inverse), exact, magnitude, 2 * size)
    each = drawn(7, (6, 5), 3)
    exact = torch.einsum("bnij,bnj->bni", mats[each], x.double())
    magnitude = torch.einsum("bnij,bnj->bni", mats[each].abs(), x.double().abs())
    assert_rounded_once(orbit_act(x, each, action), exact, magnitude, 2 * size)


FIELDS = {
    "regular d4": field(grid("d4"), "regular"),
    "vector d4": field(grid("d4"), "vector"),
    "vector rot3d": field(grid("rot3d"), "vector"),
    "regular flips3d": field(grid("flips3d"), "regular"),
    "mixed c4": field(grid("c4"), TURN),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int16], ids=str)
@each("name", FIELDS)
def test_fields(name: str, dtype: torch.dtype) -> None:
    action = FIELDS[name]
    if action.mixes and not dtype.is_floating_point:
        pytest.skip("matrices multiply floats")
    sides = (6,) * action.sides
    x = random_values((5, 2 * action.size, *sides), torch.float64, 1).mul(8).to(dtype)
    elements = drawn(action.order, (5,), 3)
    for inverse in (False, True):
        ours = orbit_act(x, elements, action, inverse=inverse)
        assert torch.equal(ours, looped(single(action, inverse), x, elements))
    assert torch.equal(orbit_act(ours, elements, action), x)
    stacked = x.unflatten(0, (1, 5)).repeat(2, 1, *(1,) * (x.dim() - 1))
    each = drawn(action.order, (2, 5), 4)
    assert torch.equal(orbit_act(stacked, each, action), looped(single(action), stacked, each))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@given(data=st.data())
def test_token_ids(dtype: torch.dtype, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    ids = laid_out(drawn(6, shape, data.draw(st.integers(0, 99))).to(dtype), data.draw(st.sampled_from(LAYOUTS)))
    elements = drawn(6, shape[: data.draw(st.integers(1, len(shape)))], 5)
    ours = orbit_act(ids, elements, IDS)
    assert (ours.dtype, ours.shape) == (dtype, ids.shape)
    if elements.numel():
        rows = IDS.perm[elements.flatten()]
        expected = rows.gather(1, ids.reshape(len(rows), -1).long()).to(dtype).reshape(shape)
        assert torch.equal(ours, expected)
    assert torch.equal(orbit_act(ours, elements, IDS, inverse=True), ids)
    assert torch.equal(ours, looped(single(IDS), ids, elements))


@pytest.mark.parametrize("wrong", [-1, 6, 2**31 + 3])
def test_ids_outside_the_vocabulary(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"x: expected token ids from 0 to 5, got {wrong}$"):
        orbit_act(torch.tensor([[0, 5], [1, wrong]]), torch.tensor([1, 2]), IDS)


# -- rectangles and boxes whose sides change places


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", ["c4", "d4", "vector d4", "mixed c4"])
def test_rectangles_that_are_turned_alike(name: str, inverse: bool) -> None:
    action: Any = FIELDS.get(name) or grid(name)
    x = random_values((6, 4, 5, 9), torch.float32, 1)
    turning = [g for g in range(action.order) if action.act(g, x).shape != x.shape]
    upright = [g for g in range(action.order) if g not in turning]
    for members in (turning, upright):
        elements = torch.tensor(members)[drawn(len(members), (6,), 2)]
        ours = orbit_act(x, elements, action, inverse=inverse)
        assert ours.shape == ((6, 4, 9, 5) if members is turning else (6, 4, 5, 9))
        assert torch.equal(ours, looped(single(action, inverse), x, elements))
        assert torch.equal(orbit_act(ours, elements, action, inverse=not inverse), x)
    both = torch.tensor([upright[0], turning[0]]).repeat(3)
    message = r"^elements: expected views of one shape, .* turn a rectangle into 5×9 and 9×5; .* pad x to equal sides"
    with pytest.raises(ValueError, match=message):
        orbit_act(x, both, action, inverse=inverse)


def test_every_channel_of_a_rectangle_by_its_element() -> None:
    x, elements = random_bits((2, 3, 4, 7), torch.int16), torch.tensor([[1, 3, 3], [7, 5, 1]])
    assert torch.equal(orbit_act(x, elements, grid("d4")), looped(single(grid("d4")), x, elements))
    assert torch.equal(grid("d4").act(elements, x), looped(single(grid("d4")), x, elements))


@pytest.mark.parametrize("sides", [(2, 3, 4), (3, 3, 5), (5, 3, 3), (4, 2, 4)])
def test_boxes_of_any_sides(sides: tuple[int, int, int]) -> None:
    """Volumes with two equal sides: elements that move other axes may still agree in the shape they give."""
    action = grid("oct")
    x = random_bits((4, 2, *sides), torch.float16)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for g in range(48):
        shapes.setdefault(tuple(action.act(g, x).shape), []).append(g)
    assert len(shapes) == (6 if len(set(sides)) == 3 else 3)
    for shape, members in shapes.items():
        elements = torch.tensor(members)[drawn(len(members), (4,), 1)]
        ours = orbit_act(x, elements, action)
        assert tuple(ours.shape) == shape
        assert torch.equal(bits(ours), bits(looped(single(action), x, elements)))
        assert torch.equal(bits(orbit_act(ours, elements, action, inverse=True)), bits(x))
    some = torch.tensor([members[0] for members in shapes.values()])[[0, 1, 0, 1]]
    with pytest.raises(ValueError, match="elements: expected views of one shape"):
        orbit_act(x, some, action)


def test_an_empty_batch_of_rectangles() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert orbit_act(torch.zeros(0, 3, 4, 6), none, grid("c4")).shape == (0, 3, 4, 6)


def test_gradient_of_turned_rectangles() -> None:
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    elements = torch.tensor([1, 7, 3])
    assert gradcheck(lambda t: orbit_act(t, elements, grid("d4")), x, fast_mode=True)
    assert gradgradcheck(lambda t: orbit_act(t, elements, grid("d4"), inverse=True), x, fast_mode=True)


# -- memory


@each(*FEW.args)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "rows", "transposed", "expanded"])
def test_the_layout_is_that_of_the_input(case: Case, layout: str) -> None:
    x = random_values(case.shape(4, 3, side=6), torch.float32, 1)
    x, elements = laid_out(x, layout), drawn(case.order, (4,), 2)
    ours = orbit_act(x, elements, case.action)
    assert torch.equal(ours, looped(case.forward, x, elements))
    one = orbit(x, case.action)[0]  # which keeps the layout of one view
    assert ours.stride() == one.stride()


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_stays_in_the_gradient(dims: int) -> None:
    action = grid("d4" if dims == 2 else "rot3d")
    shape = (4, 3, *(5,) * dims)
    x = random_values((4, *shape[2:], 3), torch.float32).movedim(-1, 1).requires_grad_()
    elements = drawn(action.order, (4,), 1)
    out = orbit_act(x, elements, action)
    assert out.stride() == x.stride()
    incoming = random_values(shape, torch.float32, 2)
    (grad,) = torch.autograd.grad(out, x, incoming)
    assert grad.stride() == x.stride()
    assert torch.equal(grad, looped(single(action, True), incoming, elements))


@each(*FEW.args)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "rows", "transposed", "reversed"])
def test_out(case: Case, layout: str) -> None:
    x = random_values(case.shape(4, 2, side=5), torch.float32, 1)
    elements = drawn(case.order, (4, 2), 2)
    expected = orbit_act(x, elements, case.action)
    out = laid_out(torch.full(expected.shape, 7.0), layout)
    assert orbit_act(x, elements, case.action, out=out) is out
    assert torch.equal(bits(out), bits(expected))
    with torch.no_grad():
        out.fill_(7.0)
        orbit_act(x.requires_grad_(), elements, case.action, inverse=True, out=out)
    assert torch.equal(out, orbit_act(x.detach(), elements, case.action, inverse=True))


def test_nothing_beside_out_is_written() -> None:
    block = torch.full((5, 4, 9, 8), 7.0)
    out = block[1:4, 1:3, 2:7, 2:8]
    x, elements = random_values((3, 2, 6, 5), torch.float32), torch.tensor([1, 3, 1])
    orbit_act(x, elements, grid("c4"), out=out)
    assert torch.equal(out, looped(single(grid("c4")), x, elements))
    out.fill_(7.0)
    assert bool((block == 7).all())


def test_autograd_sees_that_out_changed() -> None:
    x, elements = torch.randn(3, 4, 4), torch.tensor([0, 1, 2])
    out, scale = torch.zeros(3, 4, 4), torch.ones(3, 4, 4, requires_grad=True)
    loss = (scale * out).sum()
    orbit_act(x, elements, grid("c4"), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_elements_in_any_layout() -> None:
    x = random_bits((6, 3, 5, 5), torch.float32)
    elements = drawn(8, (6, 3), 1)
    expected = orbit_act(x, elements, grid("d4"))
    for layout in ("transposed", "sliced", "reversed"):
        assert torch.equal(bits(orbit_act(x, laid_out(elements, layout), grid("d4"))), bits(expected))
    one = torch.tensor([5]).expand(6)
    assert torch.equal(bits(orbit_act(x, one, grid("d4"))), bits(grid("d4").act(5, x)))


def test_results_repeat_with_any_number_of_threads() -> None:
    x, elements = random_values((64, 3, 40, 40), torch.float32), drawn(8, (64,), 1)
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(orbit_act(x, elements, grid("d4")))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0], looped(single(grid("d4")), x, elements))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# -- derivatives


@each(*EVERY.args)
@pytest.mark.parametrize("inverse", [False, True])
def test_derivatives(case: Case, inverse: bool) -> None:
    x = random_values(case.shape(2, 2, side=2), torch.float64, 1).requires_grad_()
    for elements in (drawn(case.order, (2,), 2), drawn(case.order, (2, 2), 3)):
        assert gradcheck(lambda t, e=elements: orbit_act(t, e, case.action, inverse=inverse), x, fast_mode=True)
        assert gradgradcheck(lambda t, e=elements: orbit_act(t, e, case.action, inverse=inverse), x, fast_mode=True)


def test_derivatives_of_samples() -> None:
    action = matrix(torch.randn(5, 3, 3, generator=generator(0), dtype=torch.float64), closed=False)
    x, elements = random_values((4, 2, 3), torch.float64, 1).requires_grad_(), torch.tensor([4, 0, 2, 2])
    for inverse in (False, True):
        assert gradcheck(lambda t, inverse=inverse: orbit_act(t, elements, action, inverse=inverse), x, fast_mode=True)
        assert gradgradcheck(
            lambda t, inverse=inverse: orbit_act(t, elements, action, inverse=inverse), x, fast_mode=True
        )


@each(*FEW.args)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_is_the_adjoint(case: Case, dtype: torch.dtype) -> None:
    x = random_values(case.shape(3, 2, side=5), dtype, 1).requires_grad_()
    elements = drawn(case.order, (3,), 2)
    out = orbit_act(x, elements, case.action)
    incoming = random_values(tuple(out.shape), dtype, 3)
    (grad,) = torch.autograd.grad(out, x, incoming)
    expected = looped(case.adjoints[1] or case.inverse, incoming, elements)
    assert torch.equal(grad, expected)
    assert grad.dtype == dtype


# -- compiled


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


KINDS: dict[str, tuple[Action, tuple[int, ...]]] = {
    "grid": (grid("d4"), (3, 6, 6)),
    "flips": (grid("flips"), (3, 4, 6)),
    "volumes": (grid("rot3d"), (2, 4, 4, 4)),
    "permutation": (CASES["cycle3"].action, (41,)),
    "signs": (CASES["signed"].action, (2, 4)),
    "matrices": (CASES["matrix3"].action, (5, 3)),
    "field": (CASES["flow"].action, (4, 5, 5)),
    "mixed field": (CASES["mixed"].action, (4, 5, 5)),
    "trivial": (CASES["nothing"].action, (4,)),
}


@ONE_BACKEND
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", KINDS)
def test_compiled_in_one_graph(name: str) -> None:
    action, shape = KINDS[name]

    def function(t: Tensor, e: Tensor) -> Tensor:
        return orbit_act(2 * t, e, action) + orbit_act(t, e, action, inverse=True)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for batch in (3, 4, 7):
        x = random_values((batch, *shape), torch.float32, batch).requires_grad_()
        elements = drawn(action.order, (batch,), 1)
        ours, expected = compiled(x, elements), function(x, elements)
        assert torch.equal(ours, expected)
        grads = [torch.autograd.grad(t.square().sum(), x)[0] for t in (ours, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.usefixtures("fresh_compiler")
def test_token_ids_in_one_graph() -> None:
    compiled = torch.compile(lambda t, e: orbit_act(t, e, IDS), backend="aot_eager", fullgraph=True)
    ids, elements = drawn(6, (4, 9), 1), drawn(6, (4,), 2)
    assert torch.equal(compiled(ids, elements), orbit_act(ids, elements, IDS))


@pytest.mark.usefixtures("fresh_compiler")
def test_wrong_elements_in_a_graph() -> None:
    """Looking at them would break the graph in two; the look-up in it says so."""
    compiled = torch.compile(lambda t, e: orbit_act(t, e, grid("c4")), backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 4)
    for wrong in (4, -1, 1000):
        with pytest.raises((IndexError, RuntimeError), match="index out of range"):
            compiled(x, torch.tensor([0, wrong]))


@ONE_BACKEND
@pytest.mark.parametrize("name", KINDS)
def test_opcheck(name: str) -> None:
    action, shape = KINDS[name]
    x, elements = random_values((3, *shape), torch.float64, 1), drawn(action.order, (3,), 2)
    for maps in (action.maps, action.inverse_maps, action.maps.T):
        torch.library.opcheck(torch.ops.equikern.act.default, (x, elements, maps.code, maps.table(x)))
        arguments = (x, elements, maps.code, maps.table(x), torch.zeros_like(x))
        torch.library.opcheck(torch.ops.equikern.act_out.default, arguments)


# -- Action.act, keypoints and boxes


@each(*EVERY.args)
def test_actions_act_with_many_elements(case: Case) -> None:
    x = random_values(case.shape(5, 2, side=4), torch.float32, 1)
    for elements in (drawn(case.order, (5,), 2), drawn(case.order, (5, 2), 2)):
        assert torch.equal(case.action.act(elements, x), orbit_act(x, elements, case.action))


def places(name: str, units: Units) -> list[Coordinates]:
    return [
        keypoints(name, units=units),
        keypoints(name, [1, 0, 2], units=units, extra=1),
        boxes(name, "xyxy", units),
        boxes(name, "xywh", units),
        boxes(name, "cxcywh", units),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64], ids=str)
@each("units", ["edge", "center", "normalized"])
@each("name", ["c4", "d4", "flips"])
def test_coordinates_by_many_elements(name: str, units: Units, dtype: torch.dtype) -> None:
    order, size = grid(name).order, (4, 7)
    for spec in places(name, units):
        elements = drawn(order, (9,), 1)
        for lead in ((9,), (9, 2)):
            t = random_values((*lead, *spec.shape), torch.float64, 2).mul(9).to(dtype)
            for move in (spec.act, spec.undo):
                ours = move(elements, t, size)
                expected = torch.stack([move(g, one, size) for g, one in zip(elements.tolist(), t, strict=True)])
                assert torch.equal(ours, expected)
                assert (ours.dtype, ours.shape) == (dtype, t.shape)
        each, t = drawn(order, (3, 2), 4), random_values((3, 2, *spec.shape), torch.float64, 5).mul(9).to(dtype)
        for move in (spec.act, spec.undo):
            pairs = zip(each.flatten().tolist(), t.flatten(0, 1), strict=True)
            expected = torch.stack([move(g, one, size) for g, one in pairs])
            assert torch.equal(move(each, t, size).flatten(0, 1), expected)
        found = random_values((9, *spec.shape), torch.float64, 3)
        torch.testing.assert_close(spec.undo(elements, spec.act(elements, found, size), size), found)


def test_labels_turn_with_their_images() -> None:
    """What augmentation does: a batch of images, their keypoints and boxes, each by an element of its own."""
    images, elements = torch.zeros(8, 5, 7), torch.arange(8)
    at = torch.stack((torch.arange(8) % 7, torch.arange(8) % 5), 1)
    images[torch.arange(8), at[:, 1], at[:, 0]] = 1
    for members in (elements[::2], elements[1::2]):  # upright ones, turned ones
        moved = orbit_act(images[members], members, grid("d4"))
        there = torch.stack((moved.amax(1).argmax(1), moved.amax(2).argmax(1)), 1)
        found = keypoints("d4", units="center").act(members, at[members], (5, 7))
        assert torch.equal(found, there)
        assert torch.equal(keypoints("d4", units="center").undo(members, there, (5, 7)), at[members])


def test_gradients_of_coordinates() -> None:
    t, elements = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True), torch.tensor([5, 0, 3, 6])
    spec = keypoints("d4", [1, 0, 2])
    assert gradcheck(lambda x: spec.act(elements, x, (4, 6)), t, fast_mode=True)
    assert gradcheck(lambda x: spec.undo(elements, x, (4, 6)), t, fast_mode=True)


def test_nothing_is_rounded_under_autocast() -> None:
    x, elements = random_values((5, 2), torch.float32, 1), torch.tensor([0, 1, 2, 3, 1])
    with torch.autocast("cpu", torch.bfloat16):
        ours = orbit_act(x, elements, TURN)
    assert torch.equal(ours, orbit_act(x, elements, TURN))
    assert ours.dtype == torch.float32


@given(st.lists(st.integers(0, 2000), max_size=50))
def test_lists_of_elements_without_an_upload(elements: list[int]) -> None:
    assert listed(elements, torch.device("cpu")).tolist() == elements
    assert unpacked(elements, torch.device("cpu")).tolist() == elements
