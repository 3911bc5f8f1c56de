"""Beside Django's own tests: these bring theirs for every cache and every engine of sessions to the cluster's."""

import os

import django
import pytest
from django.conf import settings

settings.configure(
    SECRET_KEY="a key of the tests, long enough",
    USE_TZ=False,
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "cache",
        "sessions_tests",
        "raftsvc.ext.django",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

import cache.tests as cache_tests  # noqa: E402 - models need settings
import sessions_tests.tests as sessions_tests  # noqa: E402
from django.test import TestCase, override_settings  # noqa: E402
from django.test.runner import DiscoverRunner  # noqa: E402

from raftsvc.ext.django.sessions import SessionStore  # noqa: E402
from raftsvc.ext.nodes import one_node  # noqa: E402

one_node.configure(os.environ, {})  # else tests of Django's have a cluster of their own process alone

CACHES = cache_tests.caches_setting_for_tests(BACKEND="raftsvc.ext.django.RaftCache", exclude={"cull", "zero_cull"})


@pytest.fixture(scope="module", autouse=True)
def environment():
    runner = DiscoverRunner(verbosity=0)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    yield
    runner.teardown_databases(databases)
    runner.teardown_test_environment()


@override_settings(CACHES=CACHES)
class RaftCacheTests(cache_tests.BaseCacheTests, TestCase):
    pass


class RaftSessionTests(sessions_tests.SessionTestsMixin, TestCase):
    backend = SessionStore
