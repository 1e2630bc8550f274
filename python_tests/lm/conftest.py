"""Models and groups go in pairs outside of ``.ci/run``, which crosses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.thorough import THOROUGH

LEFT_OUT = {("llama", 3), ("gpt2", 2)}  # so each model meets one group, and each group one model


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if THOROUGH:
        return
    out = [item for item in items if item.path.parent == Path(__file__).parent and _pair(item) in LEFT_OUT]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]


def _pair(item: pytest.Item) -> tuple[object, object]:
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return given.get("model"), given.get("order")
