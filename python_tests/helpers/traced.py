"""Where the programs of a Triton launch read and write, as Triton's interpreter runs them.

    with traced() as launches:
        kernels.orbit(x, out, views, None, 1.0, None, None)
    for launch in launches:
        launch.check()
        assert launch.covers("out")

Scalars have the types that kernels annotate, so that numbers wrap around where a GPU's would. With ``programs``, some
of a launch's programs run alone, on meta tensors, which no memory has to hold: every element reads as its own number.
The interpreter is chosen when Triton is imported: for tests in a process of their own.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Store", "Traced", "traced"]

GRID_LIMIT = 2**31 - 1

Numbers = NDArray[np.int64]


@dataclass
class Store:
    """Elements of a tensor, counted from its first, that a program wrote, and what to them."""

    program: int
    places: Numbers
    values: NDArray[Any]


def extent(t: Tensor) -> int:
    """How many elements there are from a tensor's first to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


def elements(t: Tensor) -> Numbers:
    """The places of a tensor's elements, counted from its first."""
    places = np.zeros((), np.int64)
    for size, step in zip(t.shape, t.stride(), strict=True):
        places = places[..., None] + np.arange(size) * step
    return places.reshape(-1)


@dataclass
class Traced:
    """One launch: its tensors by the names of the kernel's parameters, what was read and written of each."""

    kernel: str
    programs: int
    num_warps: int
    tensors: dict[str, Tensor]
    starts: dict[str, int]  # their addresses
    loads: dict[str, list[Numbers]] = field(default_factory=dict)
    stores: dict[str, list[Store]] = field(default_factory=dict)

    def owner(self, addresses: NDArray[np.uint64], what: str) -> tuple[str, Numbers]:
        """Whose elements these are, and which; an error if there is no such tensor."""
        least, most = int(addresses.min()), int(addresses.max())
        for name, t in self.tensors.items():
            start = self.starts[name]
            if start <= least and most < start + extent(t) * t.itemsize:
                places = addresses.astype(np.int64) - start
                assert not (places % t.itemsize).any(), f"{self.kernel}: {what} of {name} between its elements"
                return name, places // t.itemsize
        raise AssertionError(f"{self.kernel}: {what} outside of all tensors")

    def fits(self) -> None:
        """That a GPU can launch it."""
        assert 0 < self.programs <= GRID_LIMIT
        assert self.num_warps in (1, 2, 4, 8, 16)

    def check(self, again: Iterable[str] = ()) -> None:
        """That it fits the grid, accesses are to elements, and no element is written twice.

        again: tensors of which it may be, with the same value.
        """
        self.fits()
        for name, read in self.loads.items():
            self._within(name, np.concatenate(read), "reads")
        for name, stores in self.stores.items():
            places = np.concatenate([store.places for store in stores])
            self._within(name, places, "writes")
            if name in again:
                values = np.concatenate([store.values for store in stores])
                places = np.unique(np.stack((places, values)), axis=1)[0]
            assert np.unique(places).size == places.size, f"{self.kernel} writes elements of {name} twice"

    def _within(self, name: str, places: Numbers, what: str) -> None:
        assert np.isin(places, elements(self.tensors[name])).all(), f"{self.kernel} {what} between elements of {name}"

    def covers(self, name: str) -> bool:
        """Whether every element of a tensor is written."""
        stores = self.stores.get(name, [])
        written = np.concatenate([np.zeros(0, np.int64), *(store.places for store in stores)])
        return bool(np.isin(elements(self.tensors[name]), written).all())

    def one_program_each(self) -> None:
        """As ``check``, but a program may write what it wrote itself anew."""
        self.fits()
        for name, stores in self.stores.items():
            places = np.concatenate([store.places for store in stores])
            by = np.concatenate([np.full(store.places.shape, store.program) for store in stores])
            self._within(name, places, "writes")
            first = np.unique(np.stack((places, by)), axis=1)[0]
            assert np.unique(first).size == first.size, f"programs of {self.kernel} write the same elements of {name}"


@contextmanager
def traced(programs: Callable[[int], list[int]] | None = None) -> Iterator[list[Traced]]:
    """Note down all launches within; ``programs`` says of a number of them which are to run."""
    import triton.language as tl
    from equikern.backends.triton import compat, launch
    from triton.runtime import interpreter

    done: list[Traced] = []
    own_load, own_store = (getattr(interpreter.InterpreterBuilder, f"create_masked_{n}") for n in ("load", "store"))
    own_number = interpreter.InterpreterBuilder.create_get_program_id
    own_launch = compat.launch
    numbers: list[int] = []  # of the programs that run

    def number(self: Any, axis: int) -> Any:
        own = own_number(self, axis)
        if programs is not None:
            own.data[:] = numbers[int(own.data[0])]
        return own

    def current(builder: Any) -> int:
        return numbers[int(builder.grid_idx[0])]

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        addresses = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)]
        own = None if programs is not None else own_load(self, ptrs, mask, other, *rest)
        if addresses.size:
            name, places = done[-1].owner(addresses, "load")
            done[-1].loads.setdefault(name, []).append(places)
        if own is not None:
            return own
        kind = ptrs.get_element_ty()
        found = np.zeros(ptrs.data.shape, interpreter._get_np_dtype(kind))
        if addresses.size:
            found[np.broadcast_to(mask.data, found.shape)] = places.astype(found.dtype)
        return interpreter.TensorHandle(found, kind)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        where = np.broadcast_to(mask.data, ptrs.data.shape)
        if where.any():
            name, places = done[-1].owner(ptrs.data[where], "store")
            values = np.broadcast_to(value.data, ptrs.data.shape)[where]
            done[-1].stores.setdefault(name, []).append(Store(current(self), places, values))
        return own_store(self, ptrs, value, mask, *rest) if programs is None else None

    def typed(name: str, value: Any, kernel: Any) -> Any:
        kind = kernel.fn.__annotations__.get(name)
        if isinstance(value, Tensor) and value.is_meta:
            kind = tl.pointer_type(getattr(tl, str(value.dtype).removeprefix("torch.")))
            data = np.array([done[-1].starts[name]], np.uint64)
        elif isinstance(kind, tl.dtype):
            data = np.array([value], interpreter._get_np_dtype(kind))
            assert data[0] == value, f"{name} = {value} is no {kind}"
        else:
            return value
        return tl.tensor(interpreter.TensorHandle(data, kind), kind)

    def execute(
        kernel: Any, grid: tuple[int], args: tuple[Any, ...], constants: Mapping[str, Any], num_warps: int
    ) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        tensors = {name: t for name, t in named.items() if isinstance(t, Tensor)}
        starts = {name: (k + 1) << 44 if t.is_meta else t.data_ptr() for k, (name, t) in enumerate(tensors.items())}
        done.append(Traced(kernel.__name__, grid[0], num_warps, tensors, starts))
        numbers[:] = range(grid[0]) if programs is None else programs(grid[0])
        own_launch(kernel, (len(numbers),), tuple(typed(n, a, kernel) for n, a in named.items()), constants, num_warps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", execute)
        patch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", number)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", store)
        yield done
