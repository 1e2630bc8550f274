"""Argument checks of the public operators, always in the order: type, device, dtype, rank, shape, group."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..scalars import index, kind_of
from ..views import EXACT, FLOATS, UNSIGNED, accumulator
from ..views.grid import sides_named
from ..views.maps import Acting, Maps
from ..views.permutation import Permutation
from ..views.tokens import IDS
from . import functions

INTEGERS = EXACT - FLOATS
A = TypeVar("A", bound=Acting)
_MOST_BYTES = 2**63 - 1  # sizes and offsets are int64


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if value.layout is not torch.strided or value.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}, dtype {value.dtype}")
    return value


def acting(action: A) -> A:
    """An action."""
    if not isinstance(action, Acting):
        hint = f'; write grid("{action}")' if isinstance(action, str) else ""
        raise TypeError(f"action: expected an action such as grid('c4'), got {type(action).__name__}{hint}")
    return action


def _values(name: str, t: Tensor, action: Acting, dtypes: frozenset[torch.dtype]) -> None:
    """That t has a dtype which the action can transform."""
    allowed, dtype = action.views.dtypes, t.dtype
    if dtype in allowed and dtype in dtypes:
        return
    if t.dtype in UNSIGNED and t.dtype in dtypes and allowed > FLOATS:
        raise TypeError(f"{name}: expected a dtype that has negative numbers for {action.name!r}, got {t.dtype}")
    raise TypeError(f"{name}: expected {_kinds(dtypes if dtypes <= allowed else allowed)}, got {t.dtype}")


def _spatial(name: str, t: Tensor, action: Acting, skip: int, turns: bool = False) -> None:
    """That t (|G|, …) if skip else (…) has the dims that the action moves, in sizes that it can."""
    views = action.views
    group = "|G|, " * skip
    if not views.sides:
        lacks = views.kind.lacks(views, t.shape, skip, action.name) if views.size else None
        if lacks is None and t.dim() < skip:
            raise ValueError(f"{name}: expected at least {skip} dims ({group}…) for {action.name!r}, got shape ()")
        if lacks is not None:
            raise ValueError(f"{name}: expected a tensor ({group}{lacks}, got shape {tuple(t.shape)}")
        return
    if t.dim() < views.dims + skip:
        raise ValueError(
            f"{name}: expected at least {action.dims + skip} dims ({group}…, {moved(action)}) for {action.name!r}, "
            f"got shape {tuple(t.shape)}"
        )
    if views.size and t.shape[views.dim] % views.size:
        raise ValueError(
            f"{name}: expected a multiple of {views.size} channels on dim {views.dim} for {action.name!r}, got "
            f"{t.shape[views.dim]} in shape {tuple(t.shape)}"
        )
    if turns or views.keeps(t.shape):
        return
    if views.sides == 3:
        raise ValueError(
            f'{name}: expected a volume whose sides are alike where "{action.name}" turns them, got '
            f'{"×".join(map(str, t.shape[-3:]))}; use "flips3d" or EquiTune'
        )
    raise ValueError(
        f'{name}: expected a square image for "{action.name}", got {t.shape[-2]}×{t.shape[-1]}; use "flips" or EquiTune'
    )


def moved(action: Acting) -> str:
    """What the dims that an action moves are called."""
    return "C, " * (action.dims > action.sides > 0) + sides_named(action.sides)


def image(name: str, x: object, action: A, dtypes: frozenset[torch.dtype], turns: bool = False) -> tuple[Tensor, A]:
    """An input (*lead, H, W) that the action can transform; with ``turns`` a rectangle may be turned."""
    x = _tensor(name, x)
    action = acting(action)
    if action.views.kind.ids:
        if dtypes is FLOATS:
            raise TypeError(f"action: expected one on numbers, got {action!r} on token ids; its logits acts on logits")
        dtypes = IDS
    _values(name, x, action, dtypes)
    _spatial(name, x, action, 0, turns)
    # An expanded tensor can claim any size. Of a program's dynamic ones the question would be a bound of its own.
    if not torch.compiler.is_compiling() and x.numel() > _MOST_BYTES // (action.order * x.element_size()):
        raise ValueError(
            f"{name}: expected {action.order} views of fewer than 2**63 bytes together, got shape {tuple(x.shape)}"
        )
    return x, action


def views(name: str, y: object, action: A, dtypes: frozenset[torch.dtype] = FLOATS) -> tuple[Tensor, A]:
    """An orbit (|G|, *lead, H, W) that the action's inverses can transform back."""
    y = _tensor(name, y)
    action = acting(action)
    if action.views.kind.ids:
        raise TypeError(f"action: expected one on outputs, got {action!r} on token ids; its logits acts on logits")
    _values(name, y, action, dtypes)
    _spatial(name, y, action, 1)
    if y.shape[0] != action.order:
        raise ValueError(
            f"{name}: expected {action.order} views on dim 0 (the group axis of {action.name!r}), got {y.shape[0]} "
            f"in shape {tuple(y.shape)}"
        )
    return y, action


def moved_dim(name: str, y: Tensor, action: Acting) -> None:
    """That the dim of an orbit (|G|, …) that an action permutes or multiplies has the right size."""
    if action.views.size:
        _spatial(name, y, action, 1, turns=True)


def _kinds(dtypes: frozenset[torch.dtype]) -> str:
    if dtypes is IDS:
        return "token ids of dtype int32 or int64"
    if dtypes is INTEGERS:
        return "an integer dtype or bool"
    return "float16, bfloat16, float32 or float64" + ("" if dtypes is FLOATS else ", an integer dtype or bool")


def per_view(name: str, w: object, y: Tensor, action: Acting, accumulator: torch.dtype) -> Tensor:
    """Weights or scores of shape y.shape[:k], k ≥ 1, contiguous and in the dtype the kernels accumulate in."""
    w = _tensor(name, w)
    if w.device != y.device:
        raise ValueError(f"{name}: expected a tensor on {y.device} like y, got one on {w.device}")
    if w.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {w.dtype}")
    k = w.dim()
    most = y.dim() - action.dims
    if k < 1 or k > most or w.shape != y.shape[:k]:
        raise ValueError(
            f"{name}: expected shape y.shape[:k] with 1 ≤ k ≤ {most}, so one of "
            f"{', '.join(str(tuple(y.shape[:n])) for n in range(1, most + 1))}, got {tuple(w.shape)}"
        )
    if w.dtype is not accumulator:
        w = w.to(accumulator)
    return w if w.is_contiguous() else w.contiguous()


def like_view(name: str, t: object, y: Tensor) -> Tensor:
    """A tensor like one view of an orbit y."""
    t = _tensor(name, t)
    if t.device != y.device:
        raise ValueError(f"{name}: expected a tensor on {y.device} like y, got one on {t.device}")
    if t.dtype != y.dtype:
        raise TypeError(f"{name}: expected {y.dtype} like y, got {t.dtype}")
    if t.shape != y.shape[1:]:
        raise ValueError(f"{name}: expected the shape of one view, {tuple(y.shape[1:])}, got {tuple(t.shape)}")
    return t


def logits(name: str, y: object, action: Acting) -> tuple[Tensor, Maps]:
    """Views of logits with the classes or words moved to the last dim, and the inverse maps of that dim.

    A softmax goes over the dim that the action permutes, or the last one under a trivial action.
    """
    y, action = views(name, y, action)
    own = action.views
    if own.kind.permutes:
        if own.signed:
            raise ValueError(f"action: expected permutations without signs for probabilities, got {action!r}")
        return y if own.dim == -1 else y.movedim(own.dim, -1), along_last(action.inverse_maps)
    if action.dims:
        raise ValueError(
            f"action: expected a permutation or the trivial action, whose softmax goes over one dim, got {action!r}"
        )
    if y.dim() < 2:
        raise ValueError(f"{name}: expected views (|G|, …, n) of n logits, got shape {tuple(y.shape)}")
    return y, action.inverse_maps


def logits_of_loss(name: str, y: object, action: Acting) -> tuple[Tensor, Maps]:
    """``logits``, one or more: of none the kernels write no loss."""
    y, back = logits(name, y, action)
    if y.shape[-1] == 0:
        raise ValueError(f"{name}: expected one or more logits, got shape {tuple(y.shape)} with them last")
    return y, back


def along_last(maps: Maps) -> Maps:
    """The same permutations of the last dim."""
    if maps.views.dim == -1:
        return maps
    return Maps(Permutation.along(maps.views, -1), maps.tables)


def keeps_rows(action: Acting) -> bool:
    """Whether the action leaves rows of logits, on the last dim, in place or permutes their entries, without signs."""
    own = action.views
    return own.dims == 0 or (own.kind.permutes and own.dim == -1 and not own.signed)


def scored_views(name: str, y: object, action: A, kind: str) -> tuple[Tensor, A]:
    """Views whose rows are scored where they are chosen."""
    y, action = views(name, y, action)
    if not keeps_rows(action):
        raise ValueError(
            "action: expected a permutation of the last dim without signs, or the trivial action, where the scores "
            f"are those of y's own rows, got {action!r}; for others give orbit_select the scores of "
            f"orbit_score(y, {kind!r}, dim=…)"
        )
    if y.dim() < 2 or y.shape[-1] == 0:
        raise ValueError(f"{name}: expected views (|G|, …, n) of one or more logits, got shape {tuple(y.shape)}")
    return y, action


def rows(name: str, t: object, dim: object) -> Tensor:
    """Logits with the classes or words, one or more, moved from dim to the last one."""
    t = _tensor(name, t)
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {_kinds(FLOATS)}, got {t.dtype}")
    dim = index("dim", dim)
    dims = t.dim()
    if dims == 0:
        raise ValueError(f"{name}: expected one or more logits on dim {dim}, got shape ()")
    if not -dims <= dim < dims:
        raise ValueError(f"dim: expected a dim of {name} {tuple(t.shape)}, got {dim}")
    if t.shape[dim] == 0:
        raise ValueError(f"{name}: expected one or more logits on dim {dim}, got shape {tuple(t.shape)}")
    return t if dim in (-1, dims - 1) else t.movedim(dim, -1)


def targets(name: str, target: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The right classes of a loss; the kernels check their range."""
    target = _tensor(name, target)
    if target.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device} like the logits, got one on {target.device}")
    if target.dtype != torch.int64:
        raise TypeError(f"{name}: expected the classes' numbers in int64, got {target.dtype}")
    if tuple(target.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, one class for each prediction, got {tuple(target.shape)}")
    return target.contiguous()


def class_weights(name: str, weight: object, size: int, like: Tensor) -> Tensor:
    """A loss's weights of its classes, in the dtype of the kernels' sums; their values where asking stops no queue."""
    weight = _tensor(name, weight)
    if weight.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device} like the logits, got one on {weight.device}")
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {_kinds(FLOATS)}, got {weight.dtype}")
    if tuple(weight.shape) != (size,):
        raise ValueError(f"{name}: expected shape ({size},), one weight for each class, got {tuple(weight.shape)}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected constants, got a tensor that requires grad; detach it")
    if functions.in_forward_mode() and _is_dual(weight):
        raise ValueError(f"{name}: expected constants, got a tensor with a tangent; detach it")
    wide = weight.to(accumulator(like)).contiguous()
    if wide.is_cpu and not functions.functional(weight) and not bool(((wide >= 0) & wide.isfinite()).all()):
        raise ValueError(f"{name}: expected finite numbers of 0 or more, got others among them in {wide.dtype}")
    return wide


def model(name: str, given: object) -> None:
    """A module, or anything else that can be called; not the class of one, which is a frequent slip."""
    if isinstance(given, type) and issubclass(given, torch.nn.Module):
        raise TypeError(f"{name}: expected a module, got the class {given.__name__}: pass {given.__name__}(…)")
    if not callable(given):
        raise TypeError(f"{name}: expected a module or a callable, got {type(given).__name__}")


def choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """A keyword from a fixed set."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        kind = TypeError if not isinstance(value, str) and value is not None else ValueError
        got = repr(value) if isinstance(value, (str, bool, int, float)) else type(value).__name__
        raise kind(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {got}")


def flag(name: str, value: object) -> None:
    """A switch."""
    if value is not True and value is not False:
        raise TypeError(f"{name}: expected True or False, got {kind_of(value)}")


def whole(name: str, n: object, least: int) -> int:
    """A whole number, at least ``least``."""
    number = index(name, n)
    if number < least or number > _MOST_BYTES:
        raise ValueError(f"{name}: expected {least} or more{', below 2**63' * (number > least)}, got {number}")
    return number


def placed(device: object, dtype: object) -> None:
    """Where parameters are, and their dtype."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {kind_of(dtype)}")
    if device is not None and not isinstance(device, (str, int, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {kind_of(device)}")
    try:
        torch.device(device if device is not None else "cpu")
    except RuntimeError as error:
        raise ValueError(f"device: expected one of torch's, got {device!r}: {error}") from None


def output(name: str, out: object, shape: tuple[int, ...], like: Tensor, *inputs: Tensor | None) -> Tensor:
    """A tensor of the caller's to write into: right shape, dtype and device, no grad, no memory shared with inputs."""
    out = _tensor(name, out)
    if out.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got one on {out.device}")
    if out.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype}, got {out.dtype}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    if torch.is_grad_enabled():
        for t in (out, like, *inputs):
            if t is not None and t.requires_grad:
                raise ValueError(
                    f"{name}: an output given by the caller takes no gradient, but a tensor of the call requires grad; "
                    "call under torch.no_grad() or leave out the argument"
                )
    if functions.in_forward_mode() and any(t is not None and _is_dual(t) for t in (out, like, *inputs)):
        raise ValueError(
            f"{name}: an output given by the caller takes no derivative; expected plain tensors, "
            "got one with a tangent of forward mode"
        )
    if not torch.compiler.is_compiling():
        if out.is_neg():
            raise ValueError(f"{name}: expected memory that holds its values, got a lazily negated view")
        if out.device.type != "meta":
            try:
                if out.data_ptr():  # a DTensor's memory is its parts', and says nothing here
                    _own_memory(name, out, (like, *inputs))
            except RuntimeError as error:  # tensors of a transform have no memory that could be asked for
                raise ValueError(
                    f"{name}: an output given by the caller takes part in no transform of torch.func; leave out the "
                    f"argument ({error})"
                ) from None
    return out


def _is_dual(t: Tensor) -> bool:
    return forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]


def _own_memory(name: str, out: Tensor, inputs: tuple[Tensor | None, ...]) -> None:
    if out.numel() == 0:
        return
    reach = 0  # how far the finer dims reach: every dim must step over it, as the slices of any dense tensor do
    for step, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1:
            if step <= reach:
                raise ValueError(
                    f"{name}: expected memory of its own for every element, got strides {out.stride()} for shape "
                    f"{tuple(out.shape)}: an expanded or overlapping tensor"
                )
            reach += (size - 1) * step
    low, high = _extent(out)
    for t in inputs:
        if t is not None and t.numel():
            start, end = _extent(t)
            if low < end and start < high:
                raise ValueError(
                    f"{name}: expected a tensor that shares no range of memory with the inputs, got one that does"
                )


def _extent(t: Tensor) -> tuple[int, int]:
    span = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) + 1
    return t.data_ptr(), t.data_ptr() + span * t.element_size()
