"""Beside Django's own tests of tasks: these have what they enqueue kept by the cluster."""

import django
from django.conf import settings

settings.configure(SECRET_KEY="a key of the tests, long enough", USE_TZ=True, INSTALLED_APPS=["raftsvc.ext.django"])
django.setup()

import tasks.test_immediate_backend as immediate_tests  # noqa: E402 - they need settings
import tasks.test_tasks as task_tests  # noqa: E402
from django.test import override_settings  # noqa: E402

from raftsvc.ext.django.tasks import RaftBackend  # noqa: E402
from raftsvc.ext.django.worker import Worker  # noqa: E402


class RunAtOnce(RaftBackend):
    """What is enqueued is run by a worker before `enqueue` returns, as Django's immediate backend has it."""

    def enqueue(self, task, args, kwargs):
        result = super().enqueue(task, args, kwargs)
        assert Worker(self, [task.queue_name], max_tasks=1).run()
        result.refresh()
        return result


class Remembering(RaftBackend):
    """It has a list of what was enqueued, as Django's dummy backend has."""

    def __init__(self, alias, params):
        super().__init__(alias, params)
        self.results = []

    def enqueue(self, task, args, kwargs):
        result = super().enqueue(task, args, kwargs)
        self.results.append(result)
        return result

    def clear(self):
        self.results.clear()


@override_settings(
    TASKS={"default": {"BACKEND": f"{__name__}.RunAtOnce", "QUEUES": [], "OPTIONS": {"name": "at once"}}}
)
class RunTests(immediate_tests.ImmediateBackendTestCase):
    test_using_correct_backend = None
    test_throws_keyboard_interrupt = None
    test_cannot_get_result = None
    test_cannot_refresh_result = None
    test_cannot_pass_run_after = None


@override_settings(
    TASKS={
        **task_tests.TaskTestCase._overridden_settings["TASKS"],
        "default": {"BACKEND": f"{__name__}.Remembering", "QUEUES": ["default", "queue_1"]},
    }
)
class EnqueueTests(task_tests.TaskTestCase):
    test_using_correct_backend = None
    test_get_backend = None
