"""Parity with MONAI, nnU-Net and equiadapt, as their pages in docs/migration say, where these are installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from equikern import (
    CanonicalEquiTune,
    EquiTune,
    GridAction,
    cyclic_group,
    field,
    grid,
    orbit_mean,
    orbit_reduce,
    product_group,
    trivial,
)
from helpers import vision
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("single_thread")


def installed(name: str) -> Any:
    """A module of a library that torchvision comes with; the test is skipped without it, but where .ci/run asks for it.

    equiadapt is not in .ci/run's environments: python_tests/by_hand.txt.
    """
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None and not os.environ.get("EQUIKERN_REQUIRE_RECIPES"):
        pytest.skip(f"{package} is not installed")
    vision.torchvision("ops")
    return importlib.import_module(name)


def test_monai_draws_views_and_spreads_as_of_a_sample() -> None:
    """Its draws are our views, its mode is the vote, its std has n − 1 in the denominator; a MetaTensor stays one."""
    data, transforms = installed("monai.data"), installed("monai.transforms")
    torch.manual_seed(0)
    net = nn.Conv3d(1, 2, 3, padding=1).requires_grad_(False)
    scan, drawn = torch.rand(1, 4, 6, 5), []

    def seen(y: Any) -> Any:
        drawn.append(y.as_tensor())
        return y

    flips = transforms.Compose([transforms.RandFlipd(["image", "label"], 0.5, axis) for axis in range(3)])
    tta = data.TestTimeAugmentation(flips, 4, inferrer_fn=net, progress=False, post_func=seen)
    _, mean, std, variation = tta({"image": scan, "label": scan}, num_examples=8)
    model, still = EquiTune(net, "flips3d", "flips3d"), trivial(cyclic_group(8))
    views = model.views(scan[None])[:, 0]
    for y in drawn:
        assert min((y - view).abs().max() for view in views) == 0
    y = torch.stack(drawn)
    torch.testing.assert_close(orbit_mean(y, still), mean.as_tensor())
    spread = orbit_reduce(y, still, "std")
    torch.testing.assert_close(spread * (8 / 7) ** 0.5, std.as_tensor())  # type: ignore[operator]
    assert variation == pytest.approx((y.std() / y.mean()).item(), rel=1e-4)
    labels = torch.randint(3, (8, 4, 6, 5))
    voted = installed("monai.transforms.utils_pytorch_numpy_unification").mode(labels, dim=0)
    assert torch.equal(voted, orbit_reduce(labels, still, "vote"))  # type: ignore[arg-type]

    assert torch.equal(transforms.Rotate90(1, (1, 2))(scan).as_tensor(), grid("c4").act(1, scan))
    meta = data.MetaTensor(scan[None], affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    found = model(meta)
    assert torch.equal(found.affine, meta.affine)
    assert torch.equal(found.as_tensor(), model(scan[None]))


def test_nnunet_mirrors_along_axes() -> None:
    """Every set of axes of the page's table."""
    module = installed("nnunetv2.inference.predict_from_raw_data")
    torch.manual_seed(0)
    two = cyclic_group(2)
    first, both = GridAction(two, ["dhw", "Dhw"]), GridAction(product_group(two, two), ["dhw", "dHw", "Dhw", "DHw"])
    volumes = {(0, 1, 2): "flips3d", (1, 2): "flips", (2,): "hflip", (1,): "vflip", (0,): first, (0, 1): both}
    maps = {(0, 1): "flips", (1,): "hflip", (0,): "vflip"}
    for net, x, rows in (
        (nn.Conv3d(1, 2, 3, padding=1), torch.rand(1, 1, 4, 6, 5), volumes),
        (nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 6, 5), maps),
    ):
        for axes, action in rows.items():
            predictor = module.nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"))
            predictor.network, predictor.allowed_mirroring_axes = net.requires_grad_(False), axes
            expected = predictor._internal_maybe_mirror_and_predict(x)
            torch.testing.assert_close(EquiTune(net, action, action)(x), expected)


Canonicalizer = tuple[Any, Callable[[Tensor], Tensor]]  # equiadapt's, and the energy that is the same


def with_activations(kind: str, settings: Any) -> Canonicalizer:
    """By a network that is equivariant itself: the activation of "as it is" is what a view's energy reads."""
    networks = installed("equiadapt.images.canonicalization_networks")
    network = networks.CustomEquivariantNetwork((1, 16, 16), 4, 3, kind, 4, 2, "cpu")
    network.group_type, network.num_rotations = kind, 4  # which 0.1.2 asks for and forgets to keep
    module = installed("equiadapt.images.canonicalization.discrete_group")
    theirs = module.GroupEquivariantImageCanonicalization(network, settings, (1, 16, 16)).eval()
    return theirs, lambda views: -network(views)[:, :1]


def with_reference(settings: Any) -> Canonicalizer:
    """By any network, whose features of every pose are compared with a vector."""
    network = installed("equiadapt.images.canonicalization_networks").ConvNetwork((1, 16, 16), 4, 3, 2, 8).eval()
    module = installed("equiadapt.images.canonicalization.discrete_group")
    theirs = module.OptimizedGroupEquivariantImageCanonicalization(network, settings, (1, 16, 16)).eval()
    return theirs, lambda views: -nn.functional.cosine_similarity(network(views), theirs.reference_vector)


@torch.no_grad()
def test_equiadapt_canonicalizes_alike() -> None:
    """The same pose, output, prior loss and identity metric, with either of its ways to choose."""
    torch.manual_seed(0)
    x, backbone = torch.rand(6, 1, 16, 16), nn.Conv2d(1, 8, 3, padding=1)
    inverse = grid("c4").group.inverse

    def regular(t: Tensor) -> Tensor:  # channel j of theirs is entry j⁻¹ of ours
        return backbone(t).unflatten(1, (2, 4))[:, :, inverse]

    for theirs, energy in (with_activations("rotation", of("rotation")), with_reference(of("rotation"))):
        ours = CanonicalEquiTune(backbone, "c4", "c4", energy, size=None)
        y = backbone(theirs(x))
        chosen = theirs.canonicalization_info_dict["group_element"]["rotation"]
        assert torch.equal(90.0 * (-ours.elements(x)[0] % 4), chosen)
        back = theirs.invert_canonicalization(y, induced_rep_type="scalar")
        torch.testing.assert_close(ours(x), back, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.prior_loss(x), theirs.get_prior_regularization_loss())
        assert (ours.elements(x)[0] == 0).float().mean() == theirs.get_identity_metric()
        fields = CanonicalEquiTune(regular, "c4", field(grid("c4"), "regular"), energy, size=None)
        back = theirs.invert_canonicalization(y, induced_rep_type="regular")
        torch.testing.assert_close(fields(x)[:, :, inverse].flatten(1, 2), back, rtol=0, atol=1e-4)


@torch.no_grad()
def test_equiadapt_mistakes_reflections() -> None:
    """One of its classes comes back mirrored; the other one's canonical image depends on how the image lay."""
    torch.manual_seed(0)
    x, backbone = torch.rand(6, 1, 16, 16), nn.Conv2d(1, 8, 3, padding=1)
    kind = "roto-reflection"
    theirs, energy = with_activations(kind, of(kind))
    ours = CanonicalEquiTune(backbone, "d4", "d4", energy, size=None)
    y = theirs.invert_canonicalization(backbone(theirs(x)), induced_rep_type="scalar")
    torch.testing.assert_close(ours(x), y.flip(3), rtol=0, atol=1e-4)
    theirs, energy = with_reference(of(kind))
    ours = CanonicalEquiTune(backbone, "d4", "d4", energy, size=None)
    assert (theirs(x) - theirs(x.rot90(1, (2, 3)))).abs().max() > 0.1
    torch.testing.assert_close(ours(x.rot90(1, (2, 3))), ours(x).rot90(1, (2, 3)))


def of(kind: str) -> SimpleNamespace:
    settings = {"input_crop_ratio": 1.0, "resize_shape": 16, "num_rotations": 4, "artifact_err_wt": 0.0}
    return SimpleNamespace(**settings, beta=1.0, group_type=kind, learn_ref_vec=False)
