"""Triton's interpreter without what makes it slow.

``test_triton_interpreter.py`` compares it with Triton's own, bit for bit.
"""

from __future__ import annotations

from typing import Any


def hasten() -> Any:
    """Combine whole slices, and prepare Triton's modules once a launch, where this release lets us.

    Returns:
        Triton's own way of combining, or None where its interpreter is another one and stays as it is.

    Triton's interpreter calls the function of a reduction that numpy has not, such as the one in ``tl.flip``, for one
    pair of numbers at a time; here it combines whole slices, in the same order. At every call of a device function it
    looks for builtins in all of ``triton.language`` and replaces them; here only at the first call in a launch.
    """
    from triton.runtime import interpreter  # type: ignore[import-untyped, unused-ignore]

    try:
        own = interpreter.ReduceOps.generic_reduce
        launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
        _ = interpreter.InterpretedFunction.rewrite
    except AttributeError:
        return None
    prepared = set[int]()

    def generic_reduce(self: Any, given: tuple[Any, ...]) -> list[Any]:
        parts, axis = self.unravel(given, self.axis)
        shape = parts[0].handle.data.shape
        rest = shape[:axis] + shape[axis + 1 :]
        kept = (*shape[:axis], 1, *shape[axis + 1 :]) if self.keep_dims else rest

        def at(k: int) -> tuple[Any, ...]:
            return tuple(self.to_tensor(part.handle.data.take(k, axis), part.dtype) for part in parts)

        found = at(0)
        for k in range(1, shape[axis]):
            combined = self.combine_fn.fn(*found, *at(k))
            found = combined if isinstance(combined, tuple) else (combined,)
        arrays = [one.handle.data.reshape(kept) for one in found]
        return [
            self.to_tensor(array if kept else array.item(), part.dtype)
            for array, part in zip(arrays, parts, strict=True)
        ]

    def first(self: Any, *args: Any, **kwargs: Any) -> None:
        prepared.clear()  # the end of the launch before took back what it had replaced
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self.fn.__globals__) not in prepared:
            patch(self.fn)
            prepared.add(id(self.fn.__globals__))
        return self.rewrite()(*args, **kwargs)

    interpreter.ReduceOps.generic_reduce = generic_reduce
    interpreter.GridExecutor.__call__ = first
    interpreter.InterpretedFunction.__call__ = call
    return own
