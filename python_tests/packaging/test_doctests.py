"""The examples in the docstrings of every public module."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import equikern
import pytest
import torch

# the Triton kernels need Triton to be imported, and have tests of their own
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(equikern.__path__, "equikern.")
    if not m.name.startswith("equikern.backends.triton") and m.name not in ("equikern.__main__", "equikern._C")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_function_has_an_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    without = []
    for name in equikern.__all__:
        thing = getattr(equikern, name)
        if not any(test.examples for test in finder.find(thing, name)):
            without.append(name)
    # the base class of actions and the record of the build are not made by hand
    assert set(without) <= {"Action", "BuildInfo"}
