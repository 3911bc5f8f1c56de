"""cachelib's tests of what every cache does, and of what those may do that can."""

from __future__ import annotations

import os
import shutil

from tests.conformance.suites import INSIDE, Command, Place, Suite

ADDED = "test_raft_cache.py"


def command(place: Place) -> Command:
    shutil.copy(INSIDE / ADDED, place.source / "tests" / ADDED)
    words = [place.python, "-m", "pytest", f"tests/{ADDED}", f"--junitxml={place.report}"]
    if place.is_short:
        words += ["-k", "here or directory"]
    # Plugins of other suites may be in the environment, and by their settings any warning is an error.
    return Command(
        words,
        place.source,
        {"CACHE_URLS": os.linesep.join(place.urls), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


SUITE = Suite(
    name="cachelib",
    host="cachelib",
    versions={"3.10": "0.13.0", "3.11": "0.17.0", "3.13": "0.17.0"},
    extras="cachelib",
    others=("pytest-xprocess",),
    command=command,
    is_short=True,
    left_out={
        "tests/test_*_cache.py": "of other caches, by their servers",
        "tests/test_interface_uniformity.py": "compares four other caches, two of which need their servers",
        "tests/serializer.py": "of caches whose serializer may be replaced; what this one pickles, it signs",
    },
)
