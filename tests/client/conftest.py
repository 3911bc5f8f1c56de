from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.harness import Members


@pytest.fixture
def make_members(tmp_path: Path) -> Iterator[Callable[..., Members]]:
    """Makes clusters that are stopped, whatever happens, when the test ends."""
    made: list[Members] = []

    def make(size: int = 1, **options: Any) -> Members:
        members = Members(tmp_path / f"c{len(made)}", size, **options)
        made.append(members)
        return members

    yield make
    for members in made:
        members.stop()
