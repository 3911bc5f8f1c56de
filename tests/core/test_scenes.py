from __future__ import annotations

import pytest

from tests.core.scene import SCENES, play


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENES.glob("*.txt")))
def test_scene(name: str) -> None:
    expected = (SCENES / f"{name}.txt").read_text()
    assert play(expected) == expected, "if this is intended: python -m tests.core.scene --rewrite"
