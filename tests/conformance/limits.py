"""limits' tests of storages and of the strategies over them, for this storage by each way to it."""

from __future__ import annotations

import os
import shutil

from tests.conformance.suites import INSIDE, Command, Place, Suite


def command(place: Place) -> Command:
    shutil.copy(INSIDE / "limits_storages.py", place.source / "conftest.py")
    words = [
        place.python,
        "-m",
        "pytest",
        "-k",
        "raftsvc-0 and not Sliding" if place.is_short else "raftsvc",
        "--no-cov",
    ]
    # One of the plugins they use has the name of pytest, of which pytest warns, and their settings make that an error.
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    words += [
        "-o",
        "asyncio_default_fixture_loop_scope=function",
    ]  # as a newer plugin has it that is not for all Pythons
    words += [f"--junitxml={place.report}", "tests/test_storage.py", "tests/test_strategy.py"]
    return Command(words, place.source, {"STORAGE_URLS": os.linesep.join(place.urls)})


SUITE = Suite(
    name="limits",
    host="limits",
    versions={"3.10": "5.8.0", "3.13": "5.8.0"},
    extras="limits",
    others=(
        *("flaky", "hiro", "lovely-pytest-docker", "pytest-asyncio", "pytest-benchmark", "pytest-cov"),
        *("pytest-lazy-fixtures", "pytest-mock", "PyYAML", "pymemcache", "pymongo", "redis!=7.1", "valkey"),
        "setuptools<81",
    ),
    command=command,
    is_short=True,
    left_out={
        "tests/aio": "of storages that are asynchronous, which this one is not",
        "tests/storage, tests/integration": "of other storages, by their servers",
    },
)
