"""What a submodule of the backbone gives in a forward, beside the backbone's own output."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .models import inner

__all__ = ["POOLS", "Pool", "Tap", "shares", "size_read", "weighed"]

POOLS = ("auto", "first", "last", None)


class Pool:
    """Makes (N, F) of what a submodule gives, (N, F, …) or (N, …, F), by the mean over all other dims.

    Args:
        how: where the features are: ``"first"``, behind the samples; ``"last"``; or ``"auto"``: where they are as many
            as ``size`` in one of these places alone, there; otherwise first in maps, last in sequences (N, T, F). With
            None everything stays as it is.
        size: how many there are, or None.

    Example:
        >>> maps = torch.zeros(2, 7, 7, 96)
        >>> Pool("auto", 96)(maps).shape, Pool("auto", None)(maps).shape, Pool(None, 96)(maps).shape
        (torch.Size([2, 96]), torch.Size([2, 7]), torch.Size([2, 7, 7, 96]))
    """

    def __init__(self, how: str | None, size: int | None) -> None:
        self.how, self.size = how, size

    def __call__(self, features: Any) -> Tensor:
        """The features, of the first tensor where there are several; a loss has none."""
        while isinstance(features, (tuple, list, Mapping)) and features:
            parts = list(features.values() if isinstance(features, Mapping) else features)
            features = ([part for part in parts if not isinstance(part, Tensor) or part.dim()] or parts)[0]
        if not isinstance(features, Tensor):
            raise TypeError(f"features: expected a tensor, got {type(features).__name__}")
        if self.how is None or features.dim() < 3:
            return features
        if self._last(features):
            return features.flatten(1, -2).mean(1)
        return features.flatten(2).mean(2)

    def _last(self, features: Tensor) -> bool:
        if self.how != "auto":
            return self.how == "last"
        if features.dim() == 3:
            return features.shape[-1] == self.size or features.shape[1] != self.size
        # The sides are looked at last: exported with sides of any length they may not be compared.
        return features.shape[1] != self.size and features.shape[-1] == self.size


def size_read(weight_net: nn.Module) -> int | None:
    """How many features a network of weights reads, if it begins with a linear map that says so.

    Example:
        >>> size_read(nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
        5
    """
    linear = next((part for part in weight_net.modules() if isinstance(part, nn.Linear)), None)
    return (linear.in_features or None) if linear is not None else None  # a lazy one has none yet


class Tap:
    """Listens to one submodule by a hook that is registered once.

    What the hook hears belongs to the forward under way in its thread; outside of one it hears nothing.

    Args:
        name: the submodule's, or None for the backbone's own output.
        pool: what is made of its output at once.
    """

    def __init__(self, name: str | None, pool: Pool) -> None:
        self.name, self.pool = name, pool
        self._reset()

    def _reset(self) -> None:
        self._own = threading.local()
        self._traced: list[list[Any]] = []  # the compiler follows a list, but no thread's own

    @property
    def _calls(self) -> list[list[Any]]:
        """A list of what was heard for every forward under way, the innermost last."""
        if torch.compiler.is_compiling():
            return self._traced
        calls: list[list[Any]] = self._own.__dict__.setdefault("calls", [])
        return calls

    def listen(self, model: object) -> None:
        """Register the hook on the model's submodule; once for the model's life.

        Raises:
            TypeError: the model is no module.
            ValueError: it has no submodule of that name.
        """
        if self.name is None:
            return
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"features: expected a callable, since the backbone is no module, got the name {self.name!r}"
            )
        for known in (model, inner(model)):  # inside DDP names are those of the model it was made of
            try:
                handle = known.get_submodule(self.name).register_forward_hook(_Hook(self))
                break
            except AttributeError:
                names = [found for found, _ in known.named_modules() if found]
        else:
            raise ValueError(f"features: the backbone has no submodule {self.name!r}; it has {', '.join(names[:40])}")
        weakref.finalize(self, handle.remove)

    def hear(self, output: Any) -> None:
        """What the submodule gave just now, pooled at once: layers behind it may change it in place."""
        if self._calls:
            features = self.pool(output)
            own = self.pool.how is None or features.dim() < 3  # what is not averaged is not new
            self._calls[-1].append(features.clone() if own else features)

    def run(self, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The model's output, and the submodule's pooled features, or those of the output."""
        if self.name is None:
            output = model(*args, **kwargs)
            return output, self.pool(output)
        heard: list[Any] = []
        self._calls.append(heard)
        try:
            output = model(*args, **kwargs)
        finally:
            self._calls.pop()
        if len(heard) != 1:
            raise ValueError(
                f"features: expected submodule {self.name!r} to run once in a forward, it ran {len(heard)} times"
            )
        return output, heard[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "pool": self.pool}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.pool = state["name"], state["pool"]
        self._reset()


class _Hook:
    """Passes on what a submodule gives as long as its listener lives; a copied model's hook leads to its copy."""

    def __init__(self, tap: Tap) -> None:
        self._tap = weakref.ref(tap)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tap = self._tap()
        if tap is not None:
            tap.hear(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(copy.deepcopy(self._tap() or _deaf(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (self._tap() or _deaf(),)


def _deaf() -> Tap:
    return Tap(None, Pool(None, None))


def weighed(weight_net: Callable[[Tensor], Tensor], features: Tensor, count: int, samples: str) -> Tensor:
    """What a network of weights says of so many samples, (N,)."""
    raw = weight_net(features)
    if not isinstance(raw, Tensor):
        raise TypeError(f"weight_net: expected to return a tensor ({count}, 1), got {type(raw).__name__}")
    # One by one: sizes may be symbols, which Dynamo does not find in tuples.
    if raw.dim() not in (1, 2) or raw.shape[0] != count or (raw.dim() == 2 and raw.shape[1] != 1):
        raise ValueError(
            f"weight_net: expected one number for each of {count} {samples}, ({count}, 1), got {tuple(raw.shape)}"
        )
    return raw.reshape(count)


def shares(raw: Tensor, normalize: str | None) -> Tensor:
    """How much each view counts, from what the network says of it, (|G|, B)."""
    if normalize == "softmax":
        return raw.softmax(0)
    return raw / raw.sum(0) if normalize == "sum" else raw
