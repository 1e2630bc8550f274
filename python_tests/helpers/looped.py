"""Parametrizations whose cases take less time than pytest takes for a test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

Test = Callable[..., None]


def each(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[[Test], Test]:
    """As ``pytest.mark.parametrize``, but one test goes through all values; a failure says at which one.

    ``each(*MARK.args)`` does so with the values of a mark that other tests have as it is. Every value begins with the
    random numbers with which the first one began, as a test of its own would. It is skipped where all values are.
    """
    keys = (names,) if isinstance(names, str) else names
    rows = [(value,) if isinstance(names, str) else tuple(value) for value in values]

    def loop(test: Test) -> Test:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**given: Any) -> None:
            skips: list[BaseException] = []
            random = torch.get_rng_state()
            for row in rows:
                torch.set_rng_state(random)
                try:
                    test(**given, **dict(zip(keys, row, strict=True)))
                except pytest.skip.Exception as skip:
                    skips.append(skip)
                except (Exception, pytest.fail.Exception) as error:
                    where = ", ".join(f"{key} = {value!r}" for key, value in zip(keys, row, strict=True))
                    raise AssertionError(f"{where}: {error}") from error
            if len(skips) == len(rows):
                raise skips[0]

        others = [parameter for key, parameter in signature.parameters.items() if key not in keys]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]  # what pytest reads
        return run

    return loop
