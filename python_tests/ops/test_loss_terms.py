"""Class weights, the penalty of log Σ exp and capped logits in both cross-entropies; what a loss keeps in memory."""

from __future__ import annotations

import gc
from itertools import product
from typing import Any

import pytest
import torch
from equikern import cyclic_group, linear_orbit_cross_entropy, orbit_cross_entropy, trivial
from helpers.logits import ACTIONS, SPACES, loss, size_of, targets
from helpers.looped import each
from helpers.strategies import FLOATS, laid_out, layouts, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("backend")

NINE = ACTIONS["9 of 50"]
TARGET = torch.tensor([4, 0, -100, 49])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
TERMS = tuple(product((0.0, 0.1), (False, True), (0.0, 0.02), (None, 3.0)))  # smoothing, weights, z, cap


def class_weights(size: int, seed: int = 9) -> Tensor:
    """One of them zero."""
    found = random_values((size,), torch.float64, seed, "positive")
    found[size // 2] = 0.0
    return found


def given_terms(smoothing: float, weighted: bool, z_loss: float, softcap: float | None, size: int) -> dict[str, Any]:
    weight = class_weights(size) if weighted else None
    return {"label_smoothing": smoothing, "weight": weight, "z_loss": z_loss, "softcap": softcap}


def of_linear(options: dict[str, Any]) -> dict[str, Any]:
    """The same options as the loss of a hidden state calls them."""
    return {"class_weight" if key == "weight" else key: value for key, value in options.items()}


def plain(y: Tensor, target: Tensor, action: Any, space: str | None, options: dict[str, Any]) -> Tensor:
    order = ("label_smoothing", "ignore_index", "weight", "z_loss", "softcap")
    return loss(y, target, action, space, options["reduction"], *(options.get(key, -100) for key in order))


@settings(max_examples=60)
@given(data=st.data())
def test_value_and_gradient(data: st.DataObject) -> None:
    name, dtype = data.draw(st.sampled_from(sorted(ACTIONS))), data.draw(st.sampled_from(FLOATS))
    action, lead = ACTIONS[name], tuple(data.draw(st.lists(st.integers(1, 5), max_size=2)))
    size, seed, space = size_of(action), data.draw(st.integers(0, 999)), data.draw(st.sampled_from(SPACES))
    options = given_terms(*data.draw(st.sampled_from(TERMS)), size)
    options["reduction"] = data.draw(st.sampled_from(["mean", "sum", "none"]))
    target = targets(lead, size, seed, -100)
    if not bool((class_weights(size)[target.clamp(0)] * (target != -100)).any()):  # a mean of nothing
        target = torch.zeros(lead, dtype=torch.int64)
    y = laid_out(random_values((action.order, *lead, size), dtype, seed) * 2, data.draw(layouts)).requires_grad_()
    value = orbit_cross_entropy(y, target, action, space, **options)
    assert torch.equal(orbit_cross_entropy(y.detach(), target, action, space, **options), value)
    incoming = random_values(tuple(value.shape), value.dtype, seed, "positive")
    (grad,) = torch.autograd.grad(value, y, incoming)
    exact = y.detach().double().requires_grad_()
    expected = plain(exact, target, action, space, options)
    (slope,) = torch.autograd.grad(expected, exact, incoming.double())
    close = TOLERANCE[dtype]
    # The kernels sum in float32; the gradient, and capped logits, are rounded to the logits' dtype.
    rough = close if options["softcap"] else TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    terms = max(1, target.numel() if options["reduction"] == "sum" else 1)
    torch.testing.assert_close(value.double(), expected, rtol=4 * rough, atol=4 * rough * terms)
    most = max(1.0, float(slope.abs().max()))
    torch.testing.assert_close(grad.double(), slope, rtol=2 * close, atol=close * most)


@each("terms", [t for t in TERMS if any(t[1:])])
def test_from_the_hidden_state(terms: tuple[float, bool, float, float | None]) -> None:
    hidden, weight, bias = (random_values(s, torch.float64, k) for k, s in enumerate([(3, 40, 12), (50, 12), (50,)]))
    target, options = targets((40,), 50, 5, -100), given_terms(*terms, 50)
    for space, reduction in product(SPACES, ("mean", "none")):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        options["reduction"] = reduction
        value = linear_orbit_cross_entropy(
            leaves[0], leaves[1], target, NINE, space, bias=leaves[2], **of_linear(options)
        )
        expected = plain(linear(*leaves), target, NINE, space, options)
        torch.testing.assert_close(value, expected)
        incoming = random_values(tuple(value.shape), value.dtype, 4, "positive")
        found = torch.autograd.grad(value, leaves, incoming, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, incoming))
        torch.testing.assert_close(torch.autograd.grad(value, leaves, 2 * incoming), tuple(2 * g for g in found))


@each(("space", "reduction"), zip(SPACES, ("mean", "none", "sum"), strict=True))
def test_all_orders(space: Any, reduction: Any) -> None:
    action, target = ACTIONS["8 of 8"], torch.tensor([1, 7, -100])
    y = random_values((2, 3, 8), torch.float64, 3).requires_grad_()
    for smoothing in (0.0, 0.2):
        options = given_terms(smoothing, True, 0.1, 1.5, 8)

        def call(t: Tensor, options: dict[str, Any] = options) -> Tensor:
            return orbit_cross_entropy(t, target, action, space, reduction=reduction, **options)

        assert torch.autograd.gradcheck(call, y, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, y, fast_mode=True)


@each("dtype", FLOATS)
def test_what_changes_nothing(dtype: torch.dtype) -> None:
    """Weights of one and a z of 0 leave every bit, a cap far away nearly all digits."""
    y = random_values((3, 4, 50), dtype, 2).requires_grad_()
    for space, reduction in product(SPACES, ("mean", "sum", "none")):

        def pair(space: Any = space, reduction: Any = reduction, **options: Any) -> tuple[Tensor, Tensor]:
            value = orbit_cross_entropy(y, TARGET, NINE, space, reduction=reduction, **options)
            return value, torch.autograd.grad(value.sum(), y)[0]

        without = pair()
        for a, b in zip(pair(weight=torch.ones(50, dtype=dtype), z_loss=0, softcap=None), without, strict=True):
            assert torch.equal(a, b)
        close = max(TOLERANCE[dtype], 1e-6)  # x³/3c²
        torch.testing.assert_close(pair(softcap=1e4), without, rtol=close, atol=close)


@each(("reduction", "smoothing"), product(("mean", "sum", "none"), (0.0, 0.1, 1.0)))
def test_as_torch(reduction: Any, smoothing: float) -> None:
    """Of one view: torch's own loss and its gradient, whose mean is over the targets' weights."""
    alone, weight = trivial(cyclic_group(1)), class_weights(50)
    y, options = random_values((4, 50), torch.float64, 8).requires_grad_(), {"reduction": reduction}
    expected = torch.nn.functional.cross_entropy(y, TARGET, weight, label_smoothing=smoothing, **options)
    incoming = random_values(tuple(expected.shape), torch.float64, 4)
    slope = torch.autograd.grad(expected, y, incoming)
    identity = torch.eye(50).double()
    for space in SPACES:
        found = [
            orbit_cross_entropy(y[None], TARGET, alone, space, weight=weight, label_smoothing=smoothing, **options),
            linear_orbit_cross_entropy(
                y[None], identity, TARGET, alone, space, class_weight=weight, label_smoothing=smoothing, **options
            ),
        ]
        for value in found:
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(torch.autograd.grad(value, y, incoming), slope)


def test_a_weight_is_that_of_the_untransformed_class() -> None:
    """The loss of an orbit is that of its one prediction, in every space."""
    base, weight = random_values((4, 50), torch.float64, 3), class_weights(50)
    views = torch.stack([NINE.act(g, base) for g in range(NINE.order)])
    expected = torch.nn.functional.cross_entropy(base, TARGET, weight, label_smoothing=0.1)
    for space in SPACES:
        found = orbit_cross_entropy(views, TARGET, NINE, space, weight=weight, label_smoothing=0.1)
        torch.testing.assert_close(found, expected)


@each("reduction", ["mean", "sum", "none"])
def test_weights_of_targets_that_do_not_count(reduction: Any) -> None:
    """As torch's: NaN where the weights of a mean add to 0; what is ignored and what weighs nothing give no slope."""
    y, weight = random_values((3, 3, 50), torch.float64, 1).requires_grad_(), torch.ones(50).double()
    weight[7] = 0.0
    for target in (torch.tensor([7, -100, 7]), torch.tensor([-100, -100, -100]), torch.tensor([7, 1, -100])):
        value = orbit_cross_entropy(y, target, NINE, weight=weight, reduction=reduction)
        expected = loss(y, target, NINE, None, reduction, 0.0, -100, weight)
        torch.testing.assert_close(value, expected, equal_nan=True)
        if not bool(value.isnan().any()):
            (grad,) = torch.autograd.grad(value.sum(), y)
            assert not grad[:, target != 1].any()


def test_logits_at_the_ends_of_a_cap() -> None:
    """−∞ is −c there, and has no slope; a row with NaN is none."""
    y = random_values((3, 4, 50), torch.float32, 6)
    y[:, :, 20], y[:, 0, 21], y[0, 1, 3] = -torch.inf, 1e30, torch.nan
    y.requires_grad_()
    value = orbit_cross_entropy(y, torch.tensor([20, 1, -100, 2]), NINE, "probs", softcap=5.0, reduction="none")
    assert value.isnan().tolist() == [False, True, False, False]
    (grad,) = torch.autograd.grad(value[[0, 3]].sum(), y)
    assert bool(grad[:, [0, 3]].isfinite().all())
    assert not grad[:, [0, 3], 20].any()
    assert not grad[:, 0, 21].any()


@each("linear_one", [False, True])
def test_compiled(linear_one: bool) -> None:
    hidden, weight = random_values((3, 4, 6), torch.float32, 1), random_values((50, 6), torch.float32, 2)
    options: dict[str, Any] = {"z_loss": 0.05, "softcap": 3.0, "reduction": "mean"}
    classes = class_weights(50).float()

    def call(h: Tensor, w: Tensor) -> Tensor:
        if linear_one:
            return linear_orbit_cross_entropy(h, w, TARGET, NINE, "probs", class_weight=classes, **options)
        return orbit_cross_entropy(h @ w.T, TARGET, NINE, "probs", weight=classes, **options)

    results = []
    for run in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        value = run(*leaves)
        results.append((value, *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("linear_one", [False, True])
@each(
    ("options", "kind", "message"),
    [
        ({"weight": -torch.ones(50)}, ValueError, "weight: expected finite numbers of 0 or more"),
        ({"weight": torch.full((50,), torch.nan)}, ValueError, "weight: expected finite numbers of 0 or more"),
        ({"weight": torch.full((50,), torch.inf)}, ValueError, "weight: expected finite numbers of 0 or more"),
        (
            {"weight": torch.full((50,), 1e39, dtype=torch.float64)},
            ValueError,
            "weight: expected finite .* in torch.float32",
        ),
        ({"weight": torch.ones(49)}, ValueError, r"weight: expected shape \(50,\), one weight for each class"),
        ({"weight": torch.ones(1, 50)}, ValueError, r"weight: expected shape \(50,\)"),
        ({"weight": torch.ones(50, device="meta")}, ValueError, "weight: expected a tensor on cpu like the logits"),
        ({"weight": torch.ones(50, dtype=torch.int64)}, TypeError, "weight: expected float16"),
        ({"weight": [1.0] * 50}, TypeError, "weight: expected a torch.Tensor, got list"),
        ({"weight": torch.ones(50, requires_grad=True)}, ValueError, "weight: expected constants"),
        ({"z_loss": -0.1}, ValueError, "z_loss: expected a finite number of 0 or more, got -0.1"),
        ({"z_loss": float("nan")}, ValueError, "z_loss: expected a finite number of 0 or more, got nan"),
        ({"z_loss": float("inf")}, ValueError, "z_loss: expected a finite number of 0 or more, got inf"),
        ({"z_loss": None}, TypeError, "z_loss: expected a finite number of 0 or more, got NoneType"),
        ({"softcap": 0.0}, ValueError, "softcap: expected a finite number above 0, got 0.0"),
        ({"softcap": -30}, ValueError, "softcap: expected a finite number above 0, got -30"),
        ({"softcap": float("nan")}, ValueError, "softcap: expected a finite number above 0, got nan"),
        ({"softcap": 1e39}, ValueError, r"softcap: expected a number from 1\.2e-38 to 3\.4e\+38, got 1e\+39"),
        ({"softcap": 1e-39}, ValueError, r"softcap: expected a number from 1\.2e-38 to 3\.4e\+38, got 1e-39"),
        ({"z_loss": 1e39}, ValueError, r"z_loss: expected 0 or a number from 1\.2e-38 to 3\.4e\+38, got 1e\+39"),
        ({"softcap": True}, TypeError, "softcap: expected a finite number above 0, got bool"),
    ],
)
def test_what_is_refused(options: dict[str, Any], kind: type[Exception], message: str, linear_one: bool) -> None:
    if linear_one:
        message = message.replace("weight: ", "class_weight: ")
        with pytest.raises(kind, match="^" + message):
            linear_orbit_cross_entropy(torch.zeros(3, 4, 6), torch.zeros(50, 6), TARGET, NINE, **of_linear(options))
    else:
        with pytest.raises(kind, match="^" + message):
            orbit_cross_entropy(torch.zeros(3, 4, 50), TARGET, NINE, **options)


def test_operators_leave_nothing_unwritten_where_rows_have_no_class() -> None:
    """The registered ones too, which the public checks do not stand before: losses and scores refuse, log Σ is −∞."""
    y, target, operators = torch.zeros(2, 3, 0), torch.full((3,), -100), torch.ops.equikern
    placed = trivial(cyclic_group(2)).inverse_maps.placed(y)
    loss_call = (target, *placed, "logits", -100, 0.0, None)
    calls = {
        "cross_entropy": lambda: operators.cross_entropy(y, *loss_call, True),
        "weighed_cross_entropy": lambda: operators.weighed_cross_entropy(y, *loss_call, True, 0.1, 0.0, None),
        "linear_cross_entropy": lambda: operators.linear_cross_entropy(
            torch.zeros(2, 3, 4), torch.zeros(0, 4), None, *loss_call, False, False, False
        ),
        "score": lambda: operators.score(y, "entropy"),
        "score_select": lambda: operators.score_select(y, "entropy", *placed, True),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"expected .*one class or more"):
            pytest.fail(f"{name} gave {call()}")
    _, lse = operators.softmax_mean(y, *placed, "probs")
    assert bool((lse == -torch.inf).all())


def test_the_range_of_terms_is_that_of_the_sums() -> None:
    """What float32 does not hold, float64 does."""
    y = random_values((3, 4, 50), torch.float64, 1)
    capped = orbit_cross_entropy(y, TARGET, NINE, softcap=1e39)
    torch.testing.assert_close(capped, orbit_cross_entropy(y, TARGET, NINE))
    assert orbit_cross_entropy(y, TARGET, NINE, z_loss=1e39) > 1e38
    y = torch.zeros(3, 4, 50)
    assert orbit_cross_entropy(y, TARGET, NINE, softcap=3e38).isfinite()


def test_weights_of_all_samples_or_of_each() -> None:
    """A batch of logits with one weight is a vmap like any other, and so is a batch of weights: in both losses."""
    y, weights = random_values((2, 3, 4, 50), torch.float64, 1), torch.stack([class_weights(50), class_weights(50, 10)])
    eye = torch.eye(50, dtype=torch.float64)

    def call(t: Tensor, w: Tensor) -> Tensor:
        return orbit_cross_entropy(t, TARGET, NINE, weight=w, z_loss=0.1)

    def linear_call(t: Tensor, w: Tensor) -> Tensor:
        return linear_orbit_cross_entropy(t, eye, TARGET, NINE, class_weight=w, z_loss=0.1)

    for some in (call, linear_call):
        for places, pairs in (((0, None), [(t, weights[0]) for t in y]), ((0, 0), [*zip(y, weights, strict=True)])):
            given = (y, weights if places[1] == 0 else weights[0])
            torch.testing.assert_close(torch.vmap(some, places)(*given), torch.stack([call(*pair) for pair in pairs]))
            found = torch.vmap(torch.func.grad(some), places)(*given)
            torch.testing.assert_close(found, torch.stack([torch.func.grad(call)(*pair) for pair in pairs]))
        alone = torch.vmap(some, (None, 0))(y[0], weights)
        torch.testing.assert_close(alone, torch.stack([call(y[0], w) for w in weights]))


def test_weights_have_no_derivative() -> None:
    """A tangent is refused as a gradient is, not dropped."""
    y, weight = random_values((3, 4, 50), torch.float64, 1), class_weights(50)

    def call(w: Tensor) -> Tensor:
        return orbit_cross_entropy(y, TARGET, NINE, weight=w)

    with pytest.raises(ValueError, match=r"^weight: expected constants, got a tensor with a tangent"):
        torch.func.jvp(call, (weight,), (torch.ones_like(weight),))
    with forward_ad.dual_level(), pytest.raises(ValueError, match=r"^weight: expected constants"):
        call(forward_ad.make_dual(weight, torch.ones_like(weight)))
    with pytest.raises(ValueError, match=r"^weight: expected constants"):
        torch.func.grad(call)(weight)


def test_a_loss_of_no_classes_is_refused() -> None:
    alone, target = trivial(cyclic_group(3)), torch.full((2,), -100)
    with pytest.raises(ValueError, match=r"^logits: expected one or more logits, got shape \(3, 2, 0\)"):
        orbit_cross_entropy(torch.zeros(3, 2, 0), target, alone)
    with pytest.raises(ValueError, match=r"^hidden @ weightᵀ: expected one or more logits, got shape \(3, 2, 0\)"):
        linear_orbit_cross_entropy(torch.zeros(3, 2, 4), torch.zeros(0, 4), target, alone)


# -- what a loss keeps

CALLS = {
    "logits": lambda h, w, **o: orbit_cross_entropy(h @ w.T, TARGET, NINE, **o),
    "linear": lambda h, w, **o: linear_orbit_cross_entropy(h, w, TARGET, NINE, **of_linear(o)),
}
KEEPING = [(name, options) for name in CALLS for options in ({}, {"weight": class_weights(50), "softcap": 3.0})]


def operands() -> list[Tensor]:
    shapes = [(3, 4, 6), (50, 6)]
    return [random_values(s, torch.float64, k).requires_grad_() for k, s in enumerate(shapes)]


class Alive(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers, without holding it, all memory that operators return, but for that of the tensors given."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = call(*args, **(kwargs or {}))
        for t in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.known:
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    def bytes(self) -> int:
        gc.collect()
        return sum(size for storage, size in self.made.values() if not storage.expired())


@each(("name", "options"), KEEPING)
def test_hooks_see_all_that_a_loss_keeps(name: str, options: dict[str, Any]) -> None:
    """Packed as nothing, all of it is gone: the gradients made in the forward too."""
    hidden, weight = operands()
    seen: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> None:
        seen.append(tuple(t.shape))

    with Alive(hidden, weight) as alive, saved_tensors_hooks(pack, lambda _: pytest.fail("nobody asked")):
        value = CALLS[name](hidden, weight, **options)
    made = [hidden.shape, weight.shape] if name == "linear" else [(3, 4, 50)] * 2  # logits and their gradient
    kept = list(seen)
    for shape in [*made, *([hidden.shape, weight.shape] if name == "linear" else [])]:  # and what they are of
        kept.remove(tuple(shape))
    assert alive.bytes() == value.element_size()


@each(("name", "options"), KEEPING)
def test_checkpoints_and_offloading(name: str, options: dict[str, Any]) -> None:
    """Under a checkpoint four losses keep four numbers; gradients are the same, from wherever they come back."""
    leaves = operands()
    expected = torch.autograd.grad(CALLS[name](*leaves, **options), leaves)

    def step(h: Tensor, w: Tensor) -> Tensor:
        return CALLS[name](h, w, **options)

    with Alive(*leaves) as alive:
        losses = [checkpoint(step, *leaves, use_reentrant=False) for _ in range(4)]
    assert alive.bytes() == 4 * losses[0].element_size()
    found = torch.autograd.grad(sum(losses), leaves)
    torch.testing.assert_close(found, tuple(4 * g for g in expected))
    with save_on_cpu():
        value = step(*leaves)
    for factor in (2.0, 1.0, 3.0):  # each backward gets what was stored, whatever the one before did with it
        found = torch.autograd.grad(value, leaves, torch.tensor(factor).double(), retain_graph=True)
        torch.testing.assert_close(found, tuple(factor * g for g in expected))


@each("weighed", [False, True])
def test_operators_take_targets_of_any_strides(weighed: bool) -> None:
    """The public functions lay them out; what calls the operator itself, as a compiler may, need not."""
    y, target = random_values((2, 4, 3, 7), torch.float32), torch.arange(12).reshape(3, 4).t() % 7
    code, table = trivial(cyclic_group(2)).inverse_maps.placed(y)
    call = (code, table, "logits", -100, 0.1, None, True)
    terms = (0.1, 0.0, torch.rand(7, generator=torch.Generator().manual_seed(0))) if weighed else ()
    operator = torch.ops.equikern.weighed_cross_entropy if weighed else torch.ops.equikern.cross_entropy
    for found, expected in zip(
        operator(y, target, *call, *terms), operator(y, target.contiguous(), *call, *terms), strict=True
    ):
        assert torch.equal(found, expected)
