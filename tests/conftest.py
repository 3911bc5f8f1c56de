"""How hard the generated tests try; see tests/effort.py."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import raftsvc
from tests.effort import EFFORT

collect_ignore = ["conformance/inside"]
"""What is added to the tests of others, and run among these."""

# Quick and the same at every run; with more effort other examples each time, of which a failing one is printed.
settings.register_profile(
    "raftsvc",
    max_examples=60 * EFFORT,
    stateful_step_count=30,
    derandomize=EFFORT == 1,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("raftsvc")


def pytest_sessionstart() -> None:
    """What is compiled would be tested instead of what the sources say by now."""
    if raftsvc.__compiled__:
        package = Path(raftsvc.__file__).parent
        (library,) = package.glob("native__mypyc*.so")
        built = library.stat().st_mtime
        newer = [path for path in package.rglob("*.py") if path.stat().st_mtime > built]
        if newer:
            raise pytest.UsageError(f"{newer[0]} changed since it was compiled: `make compile`, or `make pure`")


def pytest_collection_finish() -> None:
    """What many thousand tests are made of stays until the end: no collection looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `pure` are left out where the code is compiled."""
    if raftsvc.__compiled__:
        for item in items:
            if item.get_closest_marker("pure"):
                item.add_marker(pytest.mark.skip(reason="replaces parts of what is compiled"))
