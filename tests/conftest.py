"""How hard the generated tests try; see tests/effort.py."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.effort import EFFORT

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
