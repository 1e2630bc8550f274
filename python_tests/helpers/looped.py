"""Parametrizations whose cases take less time than pytest takes for a test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

Test = Callable[..., None]


def each(name: str, values: Sequence[object]) -> Callable[[Test], Test]:
    """As ``pytest.mark.parametrize``, but one test goes through all values; a failure says at which one."""

    def loop(test: Test) -> Test:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**given: Any) -> None:
            for value in values:
                try:
                    test(**given, **{name: value})
                except Exception as error:
                    raise AssertionError(f"{name} = {value}: {error}") from error

        others = [parameter for key, parameter in signature.parameters.items() if key != name]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]  # what pytest reads
        return run

    return loop
