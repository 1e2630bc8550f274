"""What every error of bad input has to say."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def assert_error(call: Callable[[], object], error: type[Exception], argument: str, expected: str, got: str) -> None:
    """The call raises exactly this type, with the message "argument: … expected …, got …" (regular expressions)."""
    with pytest.raises(Exception, match=rf"(?s)^{argument}: .*expected .*{expected}.*got .*{got}") as caught:
        call()
    assert type(caught.value) is error
