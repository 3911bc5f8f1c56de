"""Django's tests of what every cache does, and of what every engine of sessions does."""

from __future__ import annotations

import shutil

from tests.conformance.suites import INSIDE, Command, Place, Suite

ADDED = "django_raft.py"


def command(place: Place) -> Command:
    tests = place.source / "tests"
    shutil.copy(INSIDE / ADDED, tests / ADDED)
    words = [place.python, "-m", "pytest", "-p", "no:cacheprovider", ADDED, f"--junitxml={place.report}"]
    return Command(words, tests)


SUITE = Suite(
    name="django",
    host="django",
    versions={"3.10": "5.2.19", "3.13": "6.0.10"},
    extras="django",
    command=command,
    skips={"cull": "nothing is culled: entries end by their timeouts, as with Django's own Redis and memcached"},
    left_out={
        "tests/cache/tests.py but for BaseCacheTests": "of other caches, and of what stands on any cache",
        "tests/sessions_tests/tests.py but for SessionTestsMixin": "of other engines, and of what stands on any engine",
    },
)
