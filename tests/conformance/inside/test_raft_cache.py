"""Beside cachelib's own tests: these bring theirs for every cache to this one."""

import os

import pytest
from clear import ClearTests
from common import CommonTests
from has import HasTests

from raftsvc.ext.cachelib import RaftCache

try:
    from delete_many_with_prefix import DeleteManyWithPrefixTests
except ImportError:  # before 0.16

    class DeleteManyWithPrefixTests:
        pass


PLACES = os.environ["CACHE_URLS"].splitlines()


WAYS = {"here": ("", 0), "prefixed": ("test-key-prefix:", 0), "directory": ("", 1), "members": ("", 2)}


@pytest.fixture(autouse=True, params=WAYS.values(), ids=WAYS)
def cache_factory(request):
    prefix, place = request.param

    def make(self, *args, **kwargs):
        kwargs.setdefault("key_prefix", prefix)
        cache = RaftCache(*args, key="a key of the tests, long enough", url=PLACES[place], **kwargs)
        cache.clear()
        return cache

    request.cls.cache_factory = make


class TestRaftCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests):
    pass
