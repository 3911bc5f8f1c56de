"""tooz's tests of what a coordinator does."""

from __future__ import annotations

from tests.conformance.suites import Command, Place, Suite


def command(place: Place) -> Command:
    words = [place.python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={place.report}"]
    words.append("tooz/tests/test_coordination.py")
    return Command(words, place.source, {"TOOZ_TEST_URL": "raftsvc://"})


SUITE = Suite(
    name="tooz",
    host="tooz",
    versions={"3.11": "9.1.0", "3.13": "9.1.0"},
    extras="tooz",
    # The tests import four other drivers.
    others=("testtools", "fixtures", "ddt", "etcd3gw", "redis", "pymemcache", "sysv-ipc", "hypothesis"),
    own=("tests/ext/test_tooz.py", "tests/ext/test_tooz_example.py"),
    command=command,
    skips={
        "test_watch_join_group_disappear": "it runs for drivers of three classes that it names",
    },
    left_out={
        "test_partitioner.py, test_hashring.py, test_utils.py, test_retry.py": "of tooz itself, by no driver",
        "drivers, test_kubernetes.py": "of other drivers",
    },
)
