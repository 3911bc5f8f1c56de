"""Django's tests of tasks, with what is enqueued kept by the cluster, and run by a worker."""

from __future__ import annotations

import shutil

from tests.conformance.suites import INSIDE, Command, Place, Suite

ADDED = "django_tasks_raft.py"


def command(place: Place) -> Command:
    tests = place.source / "tests"
    shutil.copy(INSIDE / ADDED, tests / ADDED)
    words = [place.python, "-m", "pytest", "-p", "no:cacheprovider", ADDED, f"--junitxml={place.report}"]
    return Command(words, tests)


SUITE = Suite(
    name="django_tasks",
    host="django",
    versions={"3.12": "6.0.10", "3.13": "6.0.10"},
    extras="django",
    command=command,
    left_out={
        "test_using_correct_backend, test_get_backend": "of the class of another backend",
        "test_cannot_get_result, test_cannot_refresh_result, test_cannot_pass_run_after": "here one can",
        "test_throws_keyboard_interrupt": "it ends who enqueues; here a task ends no worker, and has failed",
        "tests/tasks/test_dummy_backend.py, test_custom_backend.py": "of other backends",
    },
)
