"""Group convolutions: equivariance, the written-out sum, escnn's filters, strides, gradients, whole nets."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from equikern import EquivariantHead, GroupConv2d, GroupLinear, GroupPool, InvariantHead, RegularLift, grid, permutation
from helpers.looped import each
from helpers.oracles import NAMED
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("single_thread")
KINDS = pytest.mark.parametrize("inp", ["trivial", "regular"])
SHAPES = pytest.mark.parametrize("shape", [(7, 7), (5, 9)])


def features(name: str, inp: Any, *shape: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    entries = (grid(name).order,) if inp == "regular" else ()
    return torch.randn(2, channels, *entries, *shape, dtype=dtype)


def acted(name: str, inp: Any, h: int, z: Tensor) -> Tensor:
    """h turns the image, and on regular features entry g goes to entry g h⁻¹."""
    action = grid(name)
    if inp == "trivial":
        return action.act(h, z)
    moved = torch.empty_like(z)
    for g in range(action.order):
        moved[:, :, int(action.group.multiply[g, action.group.inverse[h]])] = z[:, :, g]
    return action.act(h, moved)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@KINDS
@each(*SHAPES.args)
@each("name", NAMED)
def test_equivariant(name: str, inp: Any, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z = features(name, inp, *shape)
    for settings in ({"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2, "bias": False}):
        layer = GroupConv2d(name, 3, 4, 3, inp, **settings)
        for h in range(grid(name).order):
            close(layer(acted(name, inp, h, z)), acted(name, "regular", h, layer(z)))


@KINDS
def test_even_kernels_are_equivariant_where_their_windows_fill_the_image(inp: Any) -> None:
    torch.manual_seed(0)
    z = features("d4", inp, 8, 6)
    for layer in (GroupConv2d("d4", 3, 4, 2, inp, stride=2), GroupConv2d("d4", 3, 4, 4, inp, stride=2, padding=1)):
        assert layer(z).shape == (2, 4, 8, 4, 3)
        for h in range(8):
            close(layer(acted("d4", inp, h, z)), acted("d4", "regular", h, layer(z)))


@KINDS
@pytest.mark.parametrize("name", ["c4", "d4"])
def test_sizes_are_refused_exactly_where_turning_would_not_commute(name: str, inp: Any) -> None:
    """What the layer refuses is not equivariant, and what is not equivariant it refuses."""
    torch.manual_seed(0)
    for side in (6, 7, 8, 9):
        for kernel, stride, padding in ((3, 1, 0), (3, 2, 1), (2, 2, 0), (3, 3, 1), (4, 2, 1)):
            layer = GroupConv2d(name, 1, 1, kernel, inp, stride, padding)
            z = features(name, inp, side, side, channels=1)
            flat = z.flatten(1, 2) if inp == "regular" else z
            turned = acted(name, inp, 1, z)
            turned = turned.flatten(1, 2) if inp == "regular" else turned
            y, moved = (functional.conv2d(t, layer.filters(), None, stride, padding) for t in (flat, turned))
            y = acted(name, "regular", 1, y.unflatten(1, (1, grid(name).order)))
            exact = bool((moved.unflatten(1, (1, grid(name).order)) - y).abs().max() < 1e-5)
            if exact:
                layer(z)
            else:
                with pytest.raises(ValueError, match="windows that fill the image"):
                    layer(z)


def test_flips_ask_nothing_of_the_other_side() -> None:
    layer = GroupConv2d("hflip", 1, 1, 3, "trivial", stride=2)
    z = features("hflip", "trivial", 6, 7, channels=1)
    close(layer(z.flip(-1)), acted("hflip", "regular", 1, layer(z)))
    with pytest.raises(ValueError, match="leave out 1 of W = 6"):
        layer(z.mT)


def turned(filters: Tensor, s: int, k: int) -> Tensor:
    """The filters under the inverse of element 4·s + k: turned back, then flipped back."""
    back = torch.rot90(filters, -k, (-2, -1))
    return back.flip(-1) if s else back


@pytest.mark.parametrize("name", ["c4", "d4"])
def test_is_the_written_sum(name: str) -> None:
    """In plain torch, one element after another, with the products of elements found by turning a small image."""
    torch.manual_seed(0)
    elements = [(s, k) for s in range(2 if name == "d4" else 1) for k in range(4)]
    probe = torch.arange(4.0).view(2, 2)

    def image(s: int, k: int, x: Tensor = probe) -> Tensor:
        return torch.rot90(x.flip(-1) if s else x, k, (-2, -1))

    def product(g: int, h: int) -> int:
        """The element that does h first, then g."""
        both = image(*elements[g], image(*elements[h]))
        return next(i for i, e in enumerate(elements) if torch.equal(image(*e), both))

    lifting, layer = GroupConv2d(name, 2, 3, 3, "trivial", padding=1), GroupConv2d(name, 3, 2, 3)
    assert lifting.bias is not None
    assert layer.bias is not None
    x, n = torch.randn(2, 2, 6, 9), len(elements)
    z = torch.stack([functional.conv2d(x, turned(lifting.weight, *e), lifting.bias, padding=1) for e in elements], 2)
    torch.testing.assert_close(lifting(x), z)
    out = layer.bias[:, None, None, None].expand(2, 2, n, 4, 7).clone()
    for g, element in enumerate(elements):
        for u in range(n):  # entry u of the filter meets entry u∘g of z
            out[:, :, g] += functional.conv2d(z[:, :, product(u, g)], turned(layer.weight[:, :, u], *element))
    torch.testing.assert_close(layer(z), out)


@KINDS
@pytest.mark.parametrize("name", ["c4", "d4"])
def test_every_equivariant_convolution_is_one(name: str, inp: Any) -> None:
    """A bank averaged over the group until it commutes with it is the layer's, its weights read off one entry."""
    torch.manual_seed(0)
    group, n = grid(name).group, grid(name).order
    entries = n if inp == "regular" else 1
    bank = torch.randn(2, n, 3, entries, 3, 3, dtype=torch.float64)
    average = torch.zeros_like(bank)
    for h in range(n):
        for g in range(n):
            for k in range(entries):
                to = int(group.multiply[k, group.inverse[h]]) if inp == "regular" else 0
                average[:, int(group.multiply[g, group.inverse[h]]), :, to] += grid(name).act(h, bank[:, g, :, k]) / n
    layer = GroupConv2d(name, 3, 2, 3, inp, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(average[:, 0].view(layer.weight.shape))
    torch.testing.assert_close(layer.filters().detach(), average.flatten(0, 1).flatten(1, 2))


@KINDS
@pytest.mark.parametrize("name", ["c4", "d4"])
def test_gradients(name: str, inp: Any) -> None:
    torch.manual_seed(0)
    layer = GroupConv2d(name, 2, 1, 3, inp, padding=1, dtype=torch.float64)
    z = features(name, inp, 3, 4, channels=2, dtype=torch.float64).requires_grad_()

    def call(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (z,))

    inputs = (z, *(p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias) if p is not None))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def net(name: str) -> nn.Module:
    order = grid(name).order
    return nn.Sequential(
        GroupConv2d(name, 3, 4, 3, "trivial", padding=1), nn.BatchNorm3d(4), nn.ReLU(),
        GroupConv2d(name, 4, 6, 3, padding=1), nn.ReLU(), nn.AvgPool3d((1, 2, 2)),
        GroupConv2d(name, 6, 5, 3, stride=2, padding=1), nn.BatchNorm3d(5), nn.GELU(),
        nn.GroupNorm(1, 5), GroupConv2d(name, 5, 2 * order, 1),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["c4", "d4"])
@pytest.mark.parametrize("shape", [(10, 10), (14, 10)])
def test_a_whole_net_on_rectangles(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    body, x = net(name), torch.randn(2, 3, *shape)
    scalar, logits = nn.Sequential(body, GroupPool("max")), nn.Sequential(body, InvariantHead(2 * grid(name).order, 5))
    for training in (True, False):
        body.train(training)
        for h in range(grid(name).order):
            moved = grid(name).act(h, x)
            close(body(moved), acted(name, "regular", h, body(x)))
            close(scalar(moved), acted(name, "trivial", h, scalar(x)))
            close(logits(moved), logits(x))


def test_after_a_lifted_backbone() -> None:
    """A plain backbone's regular features, and group convolutions over them."""
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(RegularLift(backbone, "d4", "d4"), nn.ReLU(), GroupConv2d("d4", 4, 2, 3))
    x = torch.randn(2, 3, 6, 8)
    for h in range(8):
        close(model(grid("d4").act(h, x)), acted("d4", "regular", h, model(x)))
    model(x).square().sum().backward()
    assert backbone.weight.grad is not None
    assert bool((backbone.weight.grad != 0).any())


def test_compiles_and_takes_other_dtypes() -> None:
    torch.manual_seed(0)
    body, x = net("c4").eval(), torch.randn(2, 3, 10, 14)
    torch._dynamo.reset()
    compiled = torch.compile(body, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), body(x))
    compiled(x).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = body(x)
    torch.testing.assert_close(half.float(), body(x), rtol=0.1, atol=0.1)
    layers = body[:5].bfloat16()  # torch's pooling takes no bfloat16 on CPUs
    assert layers(x.bfloat16()).dtype == torch.bfloat16


def test_a_saved_model_loads_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    turn = permutation([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
    model = nn.Sequential(
        GroupConv2d("c4", 3, 4, 3, "trivial"), GroupConv2d("c4", 4, 2, 3), nn.AvgPool3d((1, 4, 4)), nn.Flatten(3),
        nn.Flatten(2), GroupLinear("c4", 2, 3), EquivariantHead(3, turn, dims=0),
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    torch.save((model, x, model(x)), tmp_path / "saved.pt")
    code = """
import sys, torch
model, x, y = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(model(x), y)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved.pt")], check=True)


# -- escnn, see python_tests/compared.txt


@pytest.fixture(scope="module")
def escnn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lie_learn.representations.SO3.wigner_d", exc_type=ImportError)
        return pytest.importorskip("escnn", exc_type=ImportError)


def space(escnn: Any, name: str) -> tuple[Any, list[int]]:
    """escnn's space of the group, and for each of our elements the number of its inverse there.

    escnn's regular representation takes entry g to entry hg, ours to g h⁻¹: entry g here is entry g⁻¹ there.
    """
    r2 = escnn.gspaces.rot2dOnR2(4) if name == "c4" else escnn.gspaces.flipRot2dOnR2(4)
    elements = list(r2.fibergroup.elements)
    image = escnn.nn.GeometricTensor(torch.arange(9.0).view(1, 1, 3, 3), escnn.nn.FieldType(r2, [r2.trivial_repr]))
    turned = [image.transform(element).tensor.round() for element in elements]
    ours = [grid(name).act(g, image.tensor) for g in range(grid(name).order)]
    theirs = [next(i for i, t in enumerate(turned) if torch.equal(t, view)) for view in ours]
    return r2, [theirs[int(g)] for g in grid(name).group.inverse]


@pytest.mark.parametrize("name", ["c4", "d4"])
def test_regular_features_move_as_escnns(escnn: Any, name: str) -> None:
    r2, inverse = space(escnn, name)
    regular = escnn.nn.FieldType(r2, [r2.regular_repr] * 3)
    z = features(name, "regular", 7, 7)
    there = torch.empty_like(z)
    there[:, :, inverse] = z
    elements = list(r2.fibergroup.elements)
    for h in range(grid(name).order):
        element = elements[inverse[int(grid(name).group.inverse[h])]]
        moved = escnn.nn.GeometricTensor(there.flatten(1, 2), regular).transform(element).tensor.view(z.shape)
        close(acted(name, "regular", h, z), moved[:, :, inverse])


@KINDS
@pytest.mark.parametrize("name", ["c4", "d4"])
def test_escnns_convolutions(escnn: Any, name: str, inp: Any) -> None:
    """The same filters at the identity's entry make the same bank and the same outputs."""
    torch.manual_seed(0)
    r2, inverse = space(escnn, name)
    kind = r2.regular_repr if inp == "regular" else r2.trivial_repr
    types = escnn.nn.FieldType(r2, [kind] * 3), escnn.nn.FieldType(r2, [r2.regular_repr] * 2)
    conv = escnn.nn.R2Conv(*types, kernel_size=3, padding=1, bias=True)
    torch.nn.init.normal_(conv.bias)
    bank, bias = (t.detach() for t in conv.expand_parameters())
    n = grid(name).order
    order = inverse if inp == "regular" else [0]
    bank = bank.view(2, n, 3, len(order), 3, 3)[:, inverse][:, :, :, order]
    layer = GroupConv2d(name, 3, 2, 3, inp, padding=1)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(bank[:, 0].view(layer.weight.shape))
        layer.bias.copy_(bias.view(2, n)[:, 0])
    close(layer.filters(), bank.flatten(0, 1).flatten(1, 2))
    z = features(name, inp, 6, 8)
    there = z
    if inp == "regular":
        there = torch.empty_like(z)
        there[:, :, inverse] = z
        there = there.flatten(1, 2)
    out = conv(escnn.nn.GeometricTensor(there, types[0])).tensor.view(2, 2, n, 6, 8)
    close(layer(z), out[:, :, inverse])


def test_channels_last() -> None:
    """``to(memory_format=…)`` lays the weights out as ``nn.Conv2d``'s, and what comes out is the same."""
    torch.manual_seed(0)
    model = nn.Sequential(
        GroupConv2d("d4", 3, 4, 3, inp="trivial", padding=1), nn.ReLU(), GroupConv2d("d4", 4, 5, 3, padding=1)
    )
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert model.to(memory_format=torch.channels_last) is model
    first, second = model[0].weight, model[2].weight
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert second.shape == (5, 4, 8, 3, 3)
    assert second.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)
    y = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert second.grad is not None
    model.to(memory_format=torch.contiguous_format)
    assert torch.equal(model[2].weight, second)
    model.double()
    torch.testing.assert_close(model(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
