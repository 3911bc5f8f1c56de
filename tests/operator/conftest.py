from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.operator.browser import browser


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """One browser for all tests of the room that run one after the other."""
    with browser() as opened:
        yield opened
