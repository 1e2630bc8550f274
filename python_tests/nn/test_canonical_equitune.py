"""Canonical equitune: equivariance for every number of views, symmetric inputs, energies that learn, early exit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from equikern import (
    CanonicalEquiTune,
    EquiTune,
    GroupAction,
    energy_network,
    field,
    grid,
    keypoints,
    matrix,
    orbit,
    orbit_act,
    permutation,
    tokens,
    train_backbone,
    train_energy,
)
from torch import Tensor, nn

D4, C4 = grid("d4"), grid("c4")
STATISTICS = ("linear", "gradient", "moments", "corner")


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 5, 3, padding=1)).eval()


@pytest.fixture
def classifier(dense: nn.Module) -> nn.Module:
    return nn.Sequential(dense, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 4)).eval()


def error(model: nn.Module, x: Tensor, inp: GroupAction, out: GroupAction | None) -> float:
    """The largest error of any element, relative to the output's size."""
    with torch.no_grad():
        y = model(x)
        found = [(model(inp.act(g, x)) - (y if out is None else out.act(g, y))).abs().max() for g in range(inp.order)]
        return float(torch.stack(found).max() / y.abs().max())


def symmetric() -> Tensor:
    """Images of every kind: a constant one, mirrored, turned, and without a symmetry, one of them nearly constant."""
    x = drawn(6, 3, 9, 9)
    x[0] = 0.3
    x[1] = x[1] + x[1].flip(-1)
    x[2] = x[2] + x[2].mT
    x[3] = sum(x[3].rot90(k, (-2, -1)) for k in range(4))
    x[4] = 1 + 0.01 * x[4]
    return x


@pytest.mark.parametrize("reduce", ["mean", "softmax", "entropy"])
def test_equivariant_for_every_energy_and_number_of_views(dense: nn.Module, classifier: nn.Module, reduce: Any) -> None:
    """Symmetric images, too: outputs that turn as their image does are as symmetric as it is."""
    x = symmetric()
    torch.manual_seed(2)
    for energy in (*STATISTICS, energy_network(3, 4), lambda v: v.flatten(1).std(1), lambda v: torch.zeros(len(v))):
        for views in (1, 3, 8):
            maps = CanonicalEquiTune(dense, "d4", "d4", energy, views, reduce, size=4, classes=-3)
            logits = CanonicalEquiTune(classifier, "d4", "trivial", energy, views, reduce, size=4)
            for model, out in ((maps, D4), (logits, None)):
                assert error(model, x, D4, out) <= 1e-6, f"{energy}, {views} views, {out}"


def test_every_action() -> None:
    torch.manual_seed(0)
    flips, rot = grid("flips3d", dims=3), grid("rot3d", dims=3)
    volume = nn.Conv3d(2, 2, 3, padding=1)
    turn = matrix([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
    cycle = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    signed = permutation([[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [-1, -1, -1]])
    rows = permutation([[0, 1, 2], [1, 2, 0], [2, 0, 1]], dim=-2)
    words = tokens([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [2, 0, 1, 3, 4]])
    flow = field(D4, "vector")
    text = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(32, 5))
    cases: dict[str, tuple[nn.Module, Any, Any, Tensor]] = {
        "flips of volumes": (volume, flips, flips, drawn(2, 2, 4, 5, 6)),
        "rotations of volumes": (volume, rot, rot, drawn(2, 2, 5, 5, 5)),
        "flips of rectangles": (nn.Conv2d(3, 2, 3, padding=1), grid("flips"), grid("flips"), drawn(3, 3, 6, 8)),
        "points": (nn.Linear(2, 2), turn, turn, drawn(4, 5, 2)),
        "a point": (nn.Linear(2, 2), turn, turn, drawn(4, 2)),
        "permutation": (nn.Linear(3, 3), cycle, cycle, drawn(4, 3)),
        "signs": (nn.Linear(3, 3), signed, signed, drawn(4, 2, 3)),
        "rows": (nn.Linear(4, 4), rows, rows, drawn(4, 2, 3, 4)),
        "words": (text, words, words.logits, torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1], [3, 3, 4, 3]])),
        "flow": (nn.Conv2d(2, 2, 3, padding=1), flow, flow, drawn(3, 2, 6, 6)),
        "nothing": (nn.Linear(3, 3), "trivial", "trivial", drawn(4, 2, 2, 3)),
    }
    for name, (net, inp, out, x) in cases.items():
        for views in (1, 2):
            if name == "nothing" and views > 1:
                continue
            model = CanonicalEquiTune(net, inp, out, views=views)
            assert error(model, x, model.inp, model.out) <= 1e-6, f"{name}, {views} views"
    for energy in STATISTICS:
        assert error(CanonicalEquiTune(volume, rot, rot, energy, 2), drawn(2, 2, 5, 5, 5), rot, rot) <= 1e-6, energy
        assert error(CanonicalEquiTune(cases["flow"][0], flow, flow, energy, 2), cases["flow"][3], flow, flow) <= 1e-6


def test_all_views_are_equitune(dense: nn.Module) -> None:
    x = symmetric()
    for energy in ("linear", energy_network(3, 4)):
        model = CanonicalEquiTune(dense, "d4", "d4", energy, 8, size=4, views_per_forward=3)
        torch.testing.assert_close(model(x), EquiTune(dense, "d4", "d4")(x), rtol=0, atol=1e-6)


def test_views_in_parts_are_merged_as_together(dense: nn.Module) -> None:
    """With and without gradients, which are the same, too; and parts are as exact."""
    x, net = symmetric(), energy_network(3, 4)
    for reduce in ("mean", "softmax", "entropy"):
        whole = CanonicalEquiTune(dense, "d4", "d4", net, 5, reduce, size=4, classes=-3)  # type: ignore[arg-type]
        learns = [*dense.parameters(), *(net.parameters() if reduce == "softmax" else ())]
        together = whole(x)
        expected = torch.autograd.grad(together.square().sum(), learns)
        for most in (1, 2, 4):
            parts = copy.copy(whole)
            parts.views_per_forward = most
            y = parts(x)
            found = torch.autograd.grad(y.square().sum(), learns)
            with torch.no_grad():
                for other in (y, parts(x)):
                    torch.testing.assert_close(other, together, rtol=0, atol=1e-6, msg=f"{reduce}, {most}")
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=f"{reduce}, {most}")
            assert error(parts, x, D4, D4) <= 1e-6, f"{reduce}, {most}"
    half = CanonicalEquiTune(copy.deepcopy(dense).bfloat16(), "d4", "d4", views=5)
    together = half(x.bfloat16())
    half.views_per_forward = 1
    torch.testing.assert_close(half(x.bfloat16()), together, rtol=2**-7, atol=1e-6)  # added in float32, rounded once


def test_the_views_are_those_of_least_energy(classifier: nn.Module) -> None:
    x, net = drawn(5, 3, 8, 8), energy_network(3, 8)
    model = CanonicalEquiTune(classifier, "d4", "trivial", net, 3, "softmax", size=None, temperature=0.1)
    views = torch.stack([D4.act(g, x) for g in range(8)])
    energies = net(views.flatten(0, 1)).view(8, 5)
    torch.testing.assert_close(model.energies(x), energies)
    order = energies.argsort(0)[:3]
    assert torch.equal(model.elements(x), order)
    each = torch.stack([classifier(views[order[j], torch.arange(5)]) for j in range(3)])
    weights = (-energies.gather(0, order) / 0.1).softmax(0)
    torch.testing.assert_close(model(x), (weights[..., None] * each).sum(0))
    y, used = model.counted(x)
    assert torch.equal(y, model(x))
    assert used.tolist() == [3] * 5


def test_one_forward_sees_one_view(classifier: nn.Module) -> None:
    """And a batch in another order gives the same in that order."""
    seen: list[int] = []

    def backbone(x: Tensor) -> Tensor:
        seen.append(len(x))
        return classifier(x)

    x, order = symmetric(), torch.tensor([4, 2, 0, 5, 1, 3])
    model = CanonicalEquiTune(backbone, "d4", "trivial", "corner")
    torch.testing.assert_close(model(x)[order], model(x[order]))
    assert seen == [6, 6]


def test_fixed_poses_behind_the_best_one(dense: nn.Module, classifier: nn.Module) -> None:
    """The rotations and two flips of D4, by number and by name, which is no group."""
    x, names = symmetric(), D4.group.names
    subset = [0, 1, 2, 3, 4, 6]
    model = CanonicalEquiTune(dense, "d4", "d4", "gradient", poses=[names[g] for g in subset])
    assert error(model, x, D4, D4) <= 1e-6
    assert error(CanonicalEquiTune(classifier, "d4", "trivial", poses=subset, reduce="softmax"), x, D4, None) <= 1e-6
    best = CanonicalEquiTune(dense, "d4", "d4", "gradient").elements(x)[0]
    assert torch.equal(model.elements(x), D4.group.multiply[subset][:, best])


def test_bfloat16(dense: nn.Module) -> None:
    """Poses are chosen in float32, so views are the same bits; only what merges is rounded, once for each view."""
    x, net = symmetric().bfloat16(), dense.bfloat16()
    for views in (1, 3, 8):
        for reduce in ("mean", "softmax"):
            model = CanonicalEquiTune(net, "d4", "d4", "moments", views, reduce)  # type: ignore[arg-type]
            assert error(model, x, D4, D4) <= 2**-7, (views, reduce)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(CanonicalEquiTune(net.float(), "d4", "d4", "moments"), x.float(), D4, D4) <= 2**-6


def test_containers_and_coordinates(classifier: nn.Module, dense: nn.Module) -> None:
    """Several inputs and outputs; a second input that is not symmetric tells poses of a symmetric one apart."""

    def backbone(image: Tensor, mask: Tensor, scale: Tensor, name: str = "n") -> dict[str, Any]:
        maps = dense(image) * mask * scale[:, None, None, None]
        return {"maps": maps, "points": maps.mean((2, 3))[:, :2], "logits": classifier(image * mask), "extra": maps}

    out = {"maps": "d4", "points": keypoints("d4"), "logits": "trivial", "extra": None}
    model = CanonicalEquiTune(backbone, ("d4", "d4", None), out, "gradient", 2)
    x, mask, scale = symmetric(), drawn(6, 1, 9, 9, seed=5), torch.arange(1.0, 7)
    y = model(x, mask, scale)
    assert list(y) == ["maps", "points", "logits"]
    for g in range(8):
        z = model(D4.act(g, x), D4.act(g, mask), scale, name="m")
        torch.testing.assert_close(z["maps"], D4.act(g, y["maps"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(z["logits"], y["logits"], rtol=0, atol=1e-6)
        torch.testing.assert_close(z["points"], keypoints("d4").act(g, y["points"], (9, 9)), rtol=0, atol=1e-5)


def test_gradients_reach_the_energy(classifier: nn.Module) -> None:
    """Through the weights exactly; through the choice of one view as of the mixture of all that it stands for."""
    x, net = drawn(3, 1, 4, 4).double().requires_grad_(), energy_network(1, 4).double()
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)).double()
    model = CanonicalEquiTune(backbone, "c4", "trivial", net, 2, "softmax", size=4)
    names = [name for name, _ in model.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        found = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(call, (x, *model.parameters()), fast_mode=True)
    one = CanonicalEquiTune(backbone, "c4", "trivial", net, size=4)
    y = one(x)
    torch.testing.assert_close(
        y.detach(), CanonicalEquiTune(backbone, "c4", "trivial", net, size=4)(x.detach()).detach()
    )
    weight = drawn(3, 4, seed=3).double()
    (found,) = torch.autograd.grad((y * weight).sum(), net[1][0].weight, retain_graph=True)
    p = (-one.energies(x)).softmax(0)
    views = torch.stack([C4.act(g, x) for g in range(4)]).detach()
    chosen = views[one.elements(x)[0], torch.arange(3)].requires_grad_()
    (slope,) = torch.autograd.grad((backbone(chosen) * weight).sum(), chosen)
    stand_in = (p * (views * slope).flatten(2).sum(2)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(stand_in, net[1][0].weight)[0])
    assert torch.autograd.grad((y * weight).sum(), x)[0].isfinite().all()


def test_an_energy_learns_which_pose_is_upright() -> None:
    """By the prior alone, without labels and without the backbone; then the backbone is tuned."""
    torch.manual_seed(0)
    slope = torch.linspace(1, 0, 8)[:, None].expand(8, 8)
    upright = slope + 0.3 * torch.randn(64, 1, 8, 8)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    model = CanonicalEquiTune(net, "c4", "trivial", energy_network(1, 8), size=8)
    optimizer = torch.optim.Adam(train_energy(model), 1e-2)
    statistics = net[1].running_mean.clone()
    first = model.prior_loss(upright).item()
    for _ in range(40):
        model.train()
        optimizer.zero_grad()
        model.prior_loss(upright).backward()
        optimizer.step()
    assert float(model.prior_loss(upright)) < 0.3 * first
    new = slope + 0.3 * torch.randn(32, 1, 8, 8)
    assert (model.elements(new.rot90(1, (-2, -1)))[0] == 3).float().mean() > 0.9
    uniform = torch.full((4,), 0.25)
    assert model.prior_loss(upright, prior=uniform) > model.prior_loss(upright)
    each = torch.eye(4)[:, torch.zeros(64, dtype=torch.long)]
    torch.testing.assert_close(model.prior_loss(upright, prior=each), model.prior_loss(upright))
    assert all(p.grad is None for p in net.parameters())
    model(upright)
    assert torch.equal(net[1].running_mean, statistics)
    assert {tuple(p.shape) for p in train_backbone(model)} == {(64,), (3, 64), (3,)}
    assert not model.energy.training  # type: ignore[union-attr]


@pytest.mark.parametrize("agree", [1, 2, None])
def test_early_exit(classifier: nn.Module, agree: int | None) -> None:
    """By the bound the answer is that of all views; either way it is the same for every frame and counts forwards."""
    x = torch.cat((symmetric(), drawn(10, 3, 9, 9, seed=4)))
    seen: list[int] = []

    def backbone(t: Tensor, by: Tensor, names: list[str]) -> Tensor:
        seen.append(len(t))
        assert len(names) == len(t)
        return classifier(t) * by[:, None]

    rest = torch.linspace(1, 40, 16), [str(b) for b in range(16)]
    model = CanonicalEquiTune(backbone, "d4", "trivial", "moments", "auto", agree=agree)
    with torch.no_grad():
        y, used = model.counted(x, *rest)
        assert sum(seen) == int(used.sum())
        assert seen == sorted(seen, reverse=True)
        for g in range(8):
            z, again = model.counted(D4.act(g, x), *rest)
            torch.testing.assert_close(z, y, rtol=0, atol=1e-6)
            assert torch.equal(again, used)
        every = EquiTune(backbone, "d4", "trivial").views(x, *rest).softmax(-1)
    if agree is None:
        assert torch.equal(y.argmax(-1), every.mean(0).argmax(-1))
        assert int(used.min()) > 4
        assert int(used.min()) < 8
    else:
        assert int(used.min()) == agree
        assert agree == 1 or int(used.max()) >= 2
    order = model.elements(x, *rest)
    for b in (5, 9):
        torch.testing.assert_close(y[b], every[order[: int(used[b]), b], b].mean(0))


def test_early_exit_by_what_the_energy_is_sure_of(classifier: nn.Module) -> None:
    """The arg max is that of the weighted mean of all views; where one view has all the weight, it is enough."""
    x = torch.cat((symmetric(), drawn(20, 3, 9, 9, seed=4)))
    torch.manual_seed(3)
    energy = energy_network(3, 4)
    with torch.no_grad():
        every = EquiTune(classifier, "d4", "trivial").views(x).softmax(-1)
    for temperature, low, high in ((1e-6, 1.0, 1.5), (1e-2, 1.5, 6.0), (1e3, 4.5, 8.0)):
        model = CanonicalEquiTune(
            classifier, "d4", "trivial", energy, "auto", "softmax", size=4, temperature=temperature, agree=None
        )
        with torch.no_grad():
            shares = (model.energies(x) / -temperature).softmax(0)
            y, used = model.counted(x)
            order = model.elements(x)
            for g in range(8):
                z, again = model.counted(D4.act(g, x))
                torch.testing.assert_close(z, y, rtol=0, atol=1e-5)
                assert torch.equal(again, used), temperature
        assert torch.equal(y.argmax(-1), (shares[..., None] * every).sum(0).argmax(-1)), temperature
        mean = float(used[6:].double().mean())  # images without a symmetry, whose views all differ
        assert low <= mean <= high, (temperature, mean)
        for b in range(len(x)):
            some = order[: int(used[b]), b]
            wanted = (shares[some, b, None] * every[some, b]).sum(0) / shares[some, b].sum()
            torch.testing.assert_close(y[b], wanted, rtol=0, atol=1e-5)
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in energy.parameters())


def test_early_exit_of_logits_that_are_permuted() -> None:
    moves = permutation([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 16), nn.Tanh(), nn.Linear(16, 4))
    x = drawn(6, 5, 5)
    x[0] = 1.0
    for agree in (2, None):
        assert error(CanonicalEquiTune(net, "c4", moves, views="auto", agree=agree), x, C4, moves) <= 1e-6


def test_copied_saved_and_exported(classifier: nn.Module) -> None:
    x = symmetric()
    model = CanonicalEquiTune(classifier, "d4", "trivial", energy_network(3, 4), 2, "softmax", size=4).eval()
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
    other = CanonicalEquiTune(copy.deepcopy(classifier), "d4", "trivial", energy_network(3, 4), 2, "softmax", size=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), y)
    poses = CanonicalEquiTune(nn.Conv2d(3, 2, 3, padding=1), "d4", "d4", "corner", poses=[0, 4]).eval()
    with torch.no_grad():
        exported = torch.export.export(poses, (x,)).module()
        torch.testing.assert_close(exported(x), poses(x))
        assert error(exported, x, D4, D4) <= 1e-6
    assert torch.equal(poses.double()(x.double()), poses(x.double()))


@pytest.mark.parametrize("energy", STATISTICS)
def test_poses_whose_energies_nearly_tie(energy: Any) -> None:
    """Closer than sums in float32 can tell: the best view is the same one whichever way the input comes in."""
    x = drawn(6, 3, 18, 18)
    x = torch.stack([view for k in range(4) for view in (x.rot90(k, (-2, -1)), x.rot90(k, (-2, -1)).mT)]).sum(0)
    x = x + 1e-5 * drawn(6, 3, 18, 18, seed=2)
    model = CanonicalEquiTune(nn.Identity(), "d4", "d4", energy)
    for layout in (torch.contiguous_format, torch.channels_last):
        for gradients in (False, True):
            best = [
                orbit_act(view, model.elements(view.contiguous(memory_format=layout).requires_grad_(gradients))[0], D4)
                for view in orbit(x, D4)
            ]
            assert len(best[0].unique()) > 100
            assert all(torch.equal(one, best[0]) for one in best)


def test_layouts_and_empty_batches(dense: nn.Module) -> None:
    x = symmetric()
    model = CanonicalEquiTune(dense, "d4", "d4", "moments", 2)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x), rtol=0, atol=1e-6)
    assert model(x[:0]).shape == (0, 5, 9, 9)
    ints = CanonicalEquiTune(lambda t: dense(t.float()), "d4", "d4", "moments")
    assert error(ints, (x * 20).to(torch.int32), D4, D4) <= 1e-6


def test_wrong_calls(classifier: nn.Module, dense: nn.Module) -> None:
    def model(out: Any = "trivial", net: Any = classifier, **options: Any) -> CanonicalEquiTune:
        return CanonicalEquiTune(net, "d4", out, **options)

    x, rectangle = drawn(2, 3, 9, 9), drawn(2, 3, 8, 9)
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: model(views=9), ValueError, "views: expected at most 8"),
        (lambda: model(views=0), ValueError, "views: expected 1 or more"),
        (lambda: model(views=2, poses=[0]), ValueError, "views: expected None beside poses"),
        (lambda: model(views="auto", poses=[0]), ValueError, "views: expected a number beside poses"),
        (lambda: model(views="auto", reduce="margin"), ValueError, "views: expected a number beside poses or a red"),
        (lambda: model(poses=[0, 8]), ValueError, "poses: expected elements 0 … 7"),
        (lambda: model(poses=[1, 1]), ValueError, "poses: expected every element once"),
        (lambda: model(poses=["nowhere"]), ValueError, "poses: expected one of"),
        (lambda: model(energy="entropy"), ValueError, "energy: expected one of"),
        (lambda: model(energy=3), TypeError, "energy: expected a module"),
        (lambda: model(reduce="median"), ValueError, "reduce: expected one of"),
        (lambda: model(temperature=0.0), ValueError, "temperature: "),
        (
            lambda: CanonicalEquiTune(
                nn.Linear(2, 2), matrix([[[1, 0], [0, 1]], [[-1, 0], [0, 1]]]), "trivial", "corner"
            ),
            ValueError,
            "energy: expected 'linear' or a module",
        ),
        (lambda: model()(rectangle), ValueError, "x: expected equal sides"),
        (lambda: model()(x[0]), ValueError, r"x: \(3, 9, 9\) was taken for a batch of 3 .* x\[None\]"),
        (lambda: model(energy=lambda v: v)(x), ValueError, "energy: expected one number for each of 16 views"),
        (lambda: model(energy=energy_network(3, 8))(x), ValueError, r"energy: .*the 768 numbers.* by size=16, .*192"),
        (lambda: model(energy=energy_network(3), size=None)(x), ValueError, r"the 243 numbers of a view \(3, 9, 9\), "),
        (lambda: model(energy=lambda v: 1.0)(x), TypeError, "energy: expected it to return a tensor"),
        (lambda: model(energy=lambda v: torch.zeros(16, dtype=torch.long))(x), TypeError, "energy: .*floating-point"),
        (lambda: model("d4", dense, views="auto")(x), ValueError, "views: expected a number where"),
        (lambda: model("d4", dense, reduce="max_prob", views=2, classes=-7)(x), ValueError, "classes: "),
        (lambda: model().prior_loss(x, prior=torch.ones(3)), ValueError, r"prior: expected the shape \(8,\)"),
        (lambda: model().prior_loss(x, prior=1), TypeError, "prior: expected a floating-point tensor"),
        (lambda: train_energy(model()), TypeError, "model: expected an energy"),
        (lambda: train_energy(EquiTune(dense, "d4", "d4")), TypeError, "model: expected one with an en"),  # type: ignore[arg-type]
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message):
            call()
